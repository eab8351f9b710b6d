"""Training: configuration, engine, loop, checkpoints and the run directory."""

"""How much memory a training takes, planned and measured."""

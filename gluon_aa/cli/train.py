"""gluon-aa train"""
import pathlib
import sys
from typing import Any, Callable, Dict, Iterable, List, Optional

import click

from gluon_aa import compat
from gluon_aa.cli.options import key_options, option_name
from gluon_aa.cli.output import json_option, printer, write_result
from gluon_aa.configs import find_recipe
from gluon_aa.errors import UsageError
from gluon_aa.training.config import FIELDS, RESUMABLE, TrainConfig, load, override
from gluon_aa.training.tracking import RunDirectory

LEVELS = '▁▂▃▄▅▆▇█'


@click.command()
@click.option('--config', 'recipe', metavar='FILE', help='YAML file of keys, or a recipe of ours, such as cpu/digits.')
@click.option('--run', 'run_path', type=click.Path(path_type=pathlib.Path),
              help='Directory to make for the results [default: runs/<net>-<dataset>-<UTC time>].')
@click.option('--resume', 'resumed', metavar='RUN', type=click.Path(path_type=pathlib.Path),
              help='Go on with the training of this run directory, from its last checkpoint. '
                   f'Beside it only: {", ".join(option_name(key) for key in RESUMABLE)}.')
@key_options(*FIELDS)
@json_option
def train(recipe: Optional[str], run_path: Optional[pathlib.Path], resumed: Optional[pathlib.Path],
          json_path: Optional[str], **flags: Any) -> None:
    """Train a network. Flags win over the keys of --config, which have the same names.

    Ctrl-C and SIGTERM write a checkpoint first; --resume goes on from the last one.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    if resumed is not None:
        if recipe or run_path:
            raise UsageError('--resume goes on with what its run directory says: leave out --config and --run')
        directory = RunDirectory.open(resumed)
        config = override(directory.config(), given)
    else:
        config = load(find_recipe(recipe) if recipe else None, given)
    if not config.gpus:
        compat.share_cores(config.cpus)
    from gluon_aa.training import loop
    report = _Report(config, printer(json_path))
    reporter = loop.Reporter(report.echo, report.on_start, report.on_epoch, progress_bar())
    try:
        run, result = loop.resume(directory, reporter, **given) if resumed else loop.train(config, run_path, reporter)
    except KeyboardInterrupt as interruption:
        text = str(interruption) or report.kept()
        if text:
            click.echo(text, err=True)
        raise
    report.on_end(run, result)
    write_result(json_path, {**result, 'run': str(run.path)})


class _Report:
    """What a training says to people."""

    def __init__(self, config: TrainConfig, echo: Callable[[str], None]) -> None:
        self.config, self.echo = config, echo
        self.run: Optional[RunDirectory] = None

    def on_start(self, run: RunDirectory, facts: Dict[str, Any]) -> None:
        self.run, config, devices = run, self.config, facts['devices']
        self.echo(f'{config.net} on {config.dataset} in {config.dtype}: {facts["parameters"]:,} parameters, '
                  f'{facts["train_images"]:,} training images, {facts["steps_per_epoch"]} steps an epoch')
        parts, images = config.accumulate, config.batch_size / len(devices) / config.accumulate
        self.echo(f'batch of {config.batch_size} on {", ".join(devices)}, {f"{parts} x " if parts > 1 else ""}'
                  f'{images:.4g} a device; {facts["how_computed"]}')
        self.echo(f'run directory: {run.path}')

    def on_epoch(self, row: Dict[str, Any]) -> None:
        self.echo(f'epoch {row["epoch"]:>3}/{self.config.epochs}  loss {row["train_loss"]:.4f}  '
                  f'train {row["train_accuracy"]:.4f}  val {row["val_accuracy"]:.4f}  '
                  f'lr {row["learning_rate"]:.3g}  {row["images_per_second"]:,.0f} images/s  {row["seconds"]:.1f} s')

    def on_end(self, run: RunDirectory, result: Dict[str, Any]) -> None:
        rows = run.metrics()
        for key in ('train_loss', 'val_accuracy'):
            values = [row[key] for row in rows]
            self.echo(f'{key:<13} {sparkline(values)}  {values[0]:.4f} to {values[-1]:.4f}')
        self.echo(f'validation accuracy {result["val_accuracy"]:.4f} in epoch {result["best_epoch"]}, the best')
        self.echo(f'test accuracy {result["test_accuracy"]:.4f} of that epoch, after {result["seconds"]:.0f} s')
        self.echo(f'curves: {run.path / "curves.png"}')
        self.echo(f'run directory: {run.path}')

    def kept(self) -> str:
        """What is left where a second signal, or one at an odd moment, ended the training at once."""
        if self.run is None:
            return ''
        return f'gluon-aa train --resume {self.run.path} goes on from its last checkpoint.'


def progress_bar() -> Callable[[Iterable[Any], str, int, int], Iterable[Any]]:
    """A bar on a terminal, nothing elsewhere."""
    from tqdm import tqdm
    return lambda batches, description, total, done: tqdm(
        batches, desc=description, total=total, initial=done, leave=False, disable=None, unit='batch')


def sparkline(values: List[float], width: int = 60) -> str:
    """`values` as one line of blocks, lowest to highest; at most `width` of them, evenly spaced."""
    step = max(1, -(-len(values) // width))
    shown = values[::-step][::-1]  # keeps the last
    low, high = min(shown), max(shown)
    levels = LEVELS if _can_print(LEVELS) else '_.-=+*#@'
    scale = (len(levels) - 1) / (high - low) if high > low else 0.0
    return ''.join(levels[round((value - low) * scale)] for value in shown)


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or 'ascii')
    except UnicodeEncodeError:
        return False
    return True

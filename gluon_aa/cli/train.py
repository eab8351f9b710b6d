"""gluon-aa train"""
import pathlib
import sys
from typing import Any, Callable, Dict, Iterable, List, Optional

import click

from gluon_aa import compat
from gluon_aa.cli.options import key_options
from gluon_aa.cli.output import json_option, printer, write_result
from gluon_aa.configs import find_recipe
from gluon_aa.training.config import FIELDS, load

LEVELS = '▁▂▃▄▅▆▇█'


@click.command()
@click.option('--config', 'recipe', metavar='FILE', help='YAML file of keys, or a recipe of ours, such as cpu/digits.')
@click.option('--run', 'run_path', type=click.Path(path_type=pathlib.Path),
              help='Directory to make for the results [default: runs/<net>-<dataset>-<UTC time>].')
@key_options(*FIELDS)
@json_option
def train(recipe: Optional[str], run_path: Optional[pathlib.Path], json_path: Optional[str], **flags: Any) -> None:
    """Train a network. Flags win over the keys of --config, which have the same names."""
    config = load(find_recipe(recipe) if recipe else None,
                  {key: value for key, value in flags.items() if value is not None})
    if not config.gpus:
        compat.share_cores(config.cpus)
    from gluon_aa.training.loop import Reporter
    from gluon_aa.training.loop import train as run_training
    echo = printer(json_path)
    rows: List[Dict[str, Any]] = []
    places: List[pathlib.Path] = []

    def on_start(run: Any, facts: Dict[str, Any]) -> None:
        places.append(run.path)
        devices = facts['devices']
        echo(f'{config.net} on {config.dataset}: {facts["parameters"]:,} parameters, '
             f'{facts["train_images"]:,} training images, {facts["steps_per_epoch"]} steps an epoch')
        echo(f'batch of {config.batch_size} on {", ".join(devices)}, {config.batch_size / len(devices):g} a device')
        echo(f'run directory: {run.path}')

    def on_epoch(row: Dict[str, Any]) -> None:
        rows.append(row)
        echo(f'epoch {row["epoch"]:>3}/{config.epochs}  loss {row["train_loss"]:.4f}  '
             f'train {row["train_accuracy"]:.4f}  val {row["val_accuracy"]:.4f}  '
             f'lr {row["learning_rate"]:.3g}  {row["images_per_second"]:,.0f} images/s  {row["seconds"]:.1f} s')

    try:
        run, result = run_training(config, run_path, Reporter(on_start, on_epoch, progress_bar()))
    except KeyboardInterrupt:
        if places:
            click.echo(f'{places[0]} keeps the {len(rows)} finished epochs.', err=True)
        raise
    for key in ('train_loss', 'val_accuracy'):
        values = [row[key] for row in rows]
        echo(f'{key:<13} {sparkline(values)}  {values[0]:.4f} to {values[-1]:.4f}')
    echo(f'validation accuracy {result["val_accuracy"]:.4f} in epoch {result["best_epoch"]}, the best')
    echo(f'test accuracy {result["test_accuracy"]:.4f} of that epoch, after {result["seconds"]:.0f} s')
    echo(f'curves: {run.path / "curves.png"}')
    echo(f'run directory: {run.path}')
    write_result(json_path, {**result, 'run': str(run.path)})


def progress_bar() -> Callable[[Iterable[Any], str], Iterable[Any]]:
    """A bar on a terminal, nothing elsewhere."""
    from tqdm import tqdm
    return lambda batches, description: tqdm(batches, desc=description, leave=False, disable=None, unit='batch')


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

"""gluon-aa eval RUN"""
import pathlib
from typing import Any, Optional

import click

from gluon_aa import compat
from gluon_aa.cli.options import key_options
from gluon_aa.cli.output import json_option, printer, write_result
from gluon_aa.training.config import override
from gluon_aa.training.tracking import RunDirectory


@click.command('eval')
@click.argument('run', type=click.Path(path_type=pathlib.Path))
@click.option('--split', type=click.Choice(('test', 'val', 'train')), default='test', show_default=True,
              help='Which images.')
@click.option('--checkpoint', default='best', show_default=True, metavar='best|last|EPOCH', help='Which checkpoint.')
@key_options('batch_size', 'data_dir', 'gpus', 'cpus', 'dtype', 'attention_backend')
@json_option
def evaluate(run: pathlib.Path, split: str, checkpoint: str, json_path: Optional[str], **flags: Any) -> None:
    """Accuracy of a checkpoint of the run directory RUN."""
    directory = RunDirectory.open(run)
    overrides = {key: value for key, value in flags.items() if value is not None}
    config = override(directory.config(), overrides)
    if not config.gpus:
        compat.share_cores(config.cpus)
    from gluon_aa.training.checkpoint import Position
    from gluon_aa.training.loop import evaluate as evaluate_run
    result = evaluate_run(directory, split, checkpoint, **overrides)
    printer(json_path)(f'{split} accuracy {result["accuracy"]:.4f} of {result["images"]:,} images, '
                       f'checkpoint after {Position(result["epoch"], result["steps"])}')
    write_result(json_path, result)

"""gluon-aa data show"""
import pathlib
from typing import Any, Dict, List, Optional, Tuple

import click
from tabulate import tabulate

from gluon_aa.cli.options import key_options
from gluon_aa.cli.output import json_option, printer, writable, write_result
from gluon_aa.errors import FailedError, UsageError
from gluon_aa.training.config import load, parse_size

#: Rows of augmented versions beneath the samples.
AUGMENTED_ROWS = 3
#: Names of classes to print; --json has them all.
CLASSES_SHOWN = 100


@click.group()
def data() -> None:
    """The data sets: what each holds, and what its images look like."""


@data.command()
@key_options('dataset', 'data_dir', 'allow_unverified', 'input_size')
@click.option('--count', default=6, show_default=True, type=click.IntRange(1, 100), help='Training images to draw.')
@click.option('--seed', default=0, show_default=True, type=click.IntRange(min=0), help='Seed of their choice.')
@click.option('--augmented', is_flag=True, help='Draw augmented versions of each beneath it.')
@click.option('--output', default='samples.png', show_default=True, metavar='PNG', callback=writable,
              help='File to write.')
@json_option
def show(count: int, seed: int, augmented: bool, output: pathlib.Path, json_path: Optional[str], **flags: Any) -> None:
    """Draw random training images with their classes, and say what the data set holds."""
    config = load(overrides={key: value for key, value in flags.items() if value is not None})
    from gluon_aa.data import load_dataset
    size = parse_size(config.input_size) if config.input_size else None
    dataset = load_dataset(config.dataset, config.data_dir, allow_unverified=config.allow_unverified, input_size=size,
                           on_progress=lambda notice: click.echo(notice, err=True))
    indices = _draw(dataset, count, seed, augmented, output)
    described = _describe(dataset)
    samples = [{'index': index, 'class': dataset.classes[dataset.train.labels[index]]} for index in indices]
    printer(json_path)(tabulate([*_rows(described), ('samples', str(output))], tablefmt='plain',
                                maxcolwidths=[None, 100], disable_numparse=True))
    write_result(json_path, {**described, 'samples': samples, 'output': str(output)})


def _draw(dataset: Any, count: int, seed: int, augmented: bool, output: pathlib.Path) -> List[int]:
    """Draw the sheet; the indices of its training images."""
    import numpy as np

    from gluon_aa.data.pipeline import augment
    from gluon_aa.data.sheet import draw_sheet
    if count > len(dataset.train):
        raise UsageError(f'--count {count} is more than the {len(dataset.train)} training images of {dataset.name}')
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(dataset.train), count, replace=False)
    images = dataset.train.images[chosen]
    variants = [augment(images, rng, crop_padding=dataset.crop_padding, flip=dataset.flip)
                for _ in range(AUGMENTED_ROWS if augmented else 0)]
    names = [dataset.classes[label] for label in dataset.train.labels[chosen]]
    try:
        draw_sheet(output, images, names, variants, white=int(dataset.train.images.max()))
    except OSError as error:
        raise FailedError(f'cannot write {output}: {error.strerror}') from error
    return [int(index) for index in chosen]


def _describe(dataset: Any) -> Dict[str, Any]:
    return {'dataset': dataset.name, 'train_images': len(dataset.train), 'val_images': len(dataset.val),
            'test_images': len(dataset.test), 'channels': dataset.channels, 'input_size': list(dataset.input_size),
            'classes': list(dataset.classes), 'mean': dataset.mean.ravel().tolist(),
            'std': dataset.std.ravel().tolist(), 'flip': dataset.flip, 'crop_padding': dataset.crop_padding,
            'fingerprint': dataset.fingerprint}


def _rows(described: Dict[str, Any]) -> List[Tuple[str, str]]:
    """What the data set holds, as (what, value) for people."""
    classes, (height, width) = described['classes'], described['input_size']
    names = ', '.join(classes[:CLASSES_SHOWN]) + (', ...' if len(classes) > CLASSES_SHOWN else '')
    colour = 'grey' if described['channels'] == 1 else 'RGB'
    flips = 'random flips' if described['flip'] else 'no flips'
    return [('data set', described['dataset']),
            ('images', f'{described["train_images"]:,} training, {described["val_images"]:,} validation, '
                       f'{described["test_images"]:,} test'),
            ('size', f'{height}x{width} pixels (HxW), {colour}'),
            ('classes', f'{len(classes)}: {names}'),
            ('mean', ', '.join(f'{value:.2f}' for value in described['mean'])),
            ('deviation', ', '.join(f'{value:.2f}' for value in described['std'])),
            ('augmentation', f'random crops of images padded by {described["crop_padding"]}, {flips}')]

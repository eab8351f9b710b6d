"""The trainer's loop against the bare forward-backward-update loop, in one process, turn by turn.

    python bench/trainer.py --dtype float32
    python bench/trainer.py --dtype bfloat16

The trainer's turn is its own code for an epoch: batches shuffled, cropped and flipped in the background, copied to the
device, normalised in the graph, losses and accuracy read. The bare loop repeats one batch that lies on the device.
"""
import argparse
import contextlib
import pathlib
import statistics
import tempfile
import time
from typing import Callable, List

import bare

import numpy as np

from gluon_aa.compat import mx
from gluon_aa.data.pipeline import TrainingBatches
from gluon_aa.data.split import Split
from gluon_aa.training import loop
from gluon_aa.training.config import load
from gluon_aa.training.tracking import RunDirectory


def trainer_turn(dtype: str, batch_size: int, steps: int, directory: pathlib.Path) -> Callable[[], None]:
    """One epoch of `steps` steps of the trainer, as `gluon-aa train` runs it."""
    config = load(None, {'net': 'resnet34', 'dataset': 'synthetic', 'optimizer': 'sgd', 'learning_rate': 0.01,
                         'batch_size': batch_size, 'dtype': dtype, 'epochs': 1000})
    parts = loop._prepare(config, loop.Reporter())
    count = steps * batch_size
    images = np.resize(parts.dataset.train.images, (count, *parts.dataset.train.images.shape[1:]))
    batches = TrainingBatches(Split(images, np.resize(parts.dataset.train.labels, count)), batch_size, 0,
                              crop_padding=4, flip=True)
    parts = parts._replace(batches=batches, schedule=lambda step: 0.01)
    training = loop._Training(config, parts, RunDirectory(directory), loop.Reporter(), loop.Progress())

    def turn() -> None:
        training._train_epoch(training.progress.epochs + 1)
        training.progress.finish_epoch(0.0)
        mx.nd.waitall()
    return turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--steps', type=int, default=10, help='steps a turn')
    parser.add_argument('--rounds', type=int, default=11)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    step = bare.make_step(options.dtype, rng.standard_normal((options.batch_size, 3, 32, 32)),
                          rng.integers(0, 10, options.batch_size))

    def bare_turn() -> None:
        for _ in range(options.steps):
            step()
        mx.nd.waitall()

    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        turns = {'bare': bare_turn,
                 'trainer': trainer_turn(options.dtype, options.batch_size, options.steps, directory)}
        seconds: List[List[float]] = [[], []]
        for _ in range(options.rounds + 1):
            for place, turn in zip(seconds, turns.values()):
                start = time.perf_counter()
                turn()
                place.append(time.perf_counter() - start)
    images = options.steps * options.batch_size
    rates = [[images / value for value in place[1:]] for place in seconds]  # the first is warm-up
    for name, values in zip(turns, rates):
        print(f'{options.dtype}  {name:8} {statistics.median(values):7.1f} images/s ({min(values):.1f} to '
              f'{max(values):.1f})')
    ratios = sorted(trainer / bare_rate for bare_rate, trainer in zip(*rates))
    print(f'{options.dtype}  trainer / bare: median {statistics.median(ratios):.3f} '
          f'({ratios[0]:.3f} to {ratios[-1]:.3f}) of {len(ratios)} rounds of {options.steps} steps')


if __name__ == '__main__':
    main()

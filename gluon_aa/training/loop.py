"""Training from a configuration to a run directory."""
import collections
import dataclasses
import math
import pathlib
import time
from typing import Any, Callable, Deque, Dict, Iterable, Optional, Tuple

from gluon_aa import compat
from gluon_aa.data import Dataset, Split, load_dataset
from gluon_aa.data.pipeline import TrainingBatches, evaluation_batches
from gluon_aa.errors import FailedError, UsageError
from gluon_aa.models import get_model, placement
from gluon_aa.training import checkpoint
from gluon_aa.training.config import TrainConfig, override
from gluon_aa.training.devices import resolve_devices
from gluon_aa.training.engine import HybridizedEngine, StepResult
from gluon_aa.training.schedules import Schedule
from gluon_aa.training.tracking import RunDirectory, refuse_existing

#: Steps the host may run ahead of the devices: enough to keep them busy, few enough to stop soon.
STEPS_AHEAD = 2

Row = Dict[str, Any]


def _no_progress(batches: Iterable[Any], description: str) -> Iterable[Any]:
    return batches


@dataclasses.dataclass
class Reporter:
    """What the caller hears of a training; the defaults are silent."""

    on_start: Callable[[RunDirectory, Row], None] = lambda run, facts: None
    on_epoch: Callable[[Row], None] = lambda row: None
    progress: Callable[[Iterable[Any], str], Iterable[Any]] = _no_progress


class NonFiniteLoss(FailedError):
    """The loss is no longer a number."""


def build_engine(config: TrainConfig, dataset: Dataset) -> HybridizedEngine:
    """The network of `config` for the images of `dataset`, initialised, on its devices."""
    devices = resolve_devices(config.gpus, config.cpus)
    if config.batch_size < len(devices):
        raise UsageError(f'batch_size={config.batch_size} must be at least the number of devices, {len(devices)}')
    net = get_model(config.net, len(dataset.classes), input_size=dataset.input_size, **config.model_options())
    if len(devices) > 1 and not config.gpus and compat.THREADS.number > 1 and placement.is_augmented(net):
        raise FailedError(f"MXNet's OpenBLAS hangs on attention on several CPU devices with more than one thread each: "
                          f'set OMP_NUM_THREADS=1 (it is {compat.THREADS.number}), or use one device')
    return HybridizedEngine(net, dataset.mean, dataset.std, (dataset.channels, *dataset.input_size), config, devices)


def accuracy(engine: HybridizedEngine, split: Split, batch_size: int) -> float:
    """Fraction of `split` that is classified right."""
    return engine.count_correct(evaluation_batches(split, batch_size)) / len(split)


def train(config: TrainConfig, run_path: Optional[pathlib.Path] = None,
          reporter: Optional[Reporter] = None) -> Tuple[RunDirectory, Row]:
    """Train as `config` says; everything is checked before the run directory is made.

    Returns:
        The run directory and the content of its result.json.

    Raises:
        UsageError: a configuration that contradicts itself or the data.
        FailedError: missing data or devices, a run directory that cannot be written.
        NonFiniteLoss: the loss is no longer finite; checkpoints of earlier epochs stay.
    """
    reporter = reporter or Reporter()
    refuse_existing(run_path)
    dataset = load_dataset(config.dataset, config.data_dir)
    if config.batch_size > len(dataset.train):
        raise UsageError(f'batch_size={config.batch_size} is larger than the {len(dataset.train)} training images of '
                         f'{config.dataset}: lower --batch-size')
    batches = TrainingBatches(dataset.train, config.batch_size, config.seed,
                              crop_padding=dataset.crop_padding if config.data_augmentation else 0,
                              flip=dataset.flip and config.data_augmentation)
    schedule = Schedule(config, len(batches))
    engine = build_engine(config, dataset)
    run = RunDirectory.create(run_path, config)
    return run, _Training(config, dataset, batches, schedule, engine, run, reporter).run_all()


class _Training:
    """The state of one training, and its three nested spans: all, an epoch, a step."""

    def __init__(self, config: TrainConfig, dataset: Dataset, batches: TrainingBatches, schedule: Schedule,
                 engine: HybridizedEngine, run: RunDirectory, reporter: Reporter) -> None:
        self.config, self.dataset, self.batches, self.schedule = config, dataset, batches, schedule
        self.engine, self.run, self.reporter = engine, run, reporter
        self.best_epoch, self.best_accuracy = 0, -1.0

    def run_all(self) -> Row:
        start = time.perf_counter()
        trainable = [p for p in self.engine.net.collect_params().values() if p.grad_req != 'null']
        facts = {'parameters': sum(math.prod(parameter.shape) for parameter in trainable),
                 'devices': [str(device) for device in self.engine.devices],
                 'train_images': len(self.dataset.train), 'steps_per_epoch': len(self.batches)}
        self.reporter.on_start(self.run, facts)
        for epoch in range(1, self.config.epochs + 1):
            row = self._epoch(epoch)
            self.run.append_metrics(row)
            self._save(epoch, row['val_accuracy'])
            self.reporter.on_epoch(row)
        best = checkpoint.path_of(self.run.checkpoints, self.best_epoch)
        checkpoint.load_parameters(best, self.engine.net, self.engine.devices)
        result = {
            'test_accuracy': accuracy(self.engine, self.dataset.test, self.config.batch_size),
            'val_accuracy': self.best_accuracy, 'best_epoch': self.best_epoch, 'epochs': self.config.epochs,
            'parameters': facts['parameters'], 'seconds': time.perf_counter() - start, 'net': self.config.net,
            'dataset': self.config.dataset, 'seed': self.config.seed, 'devices': facts['devices']}
        self.run.write_result(result)
        return result

    def _epoch(self, epoch: int) -> Row:
        start = time.perf_counter()
        loss, correct = self._train_epoch(epoch)
        trained = time.perf_counter()
        images = len(self.batches) * self.config.batch_size
        self.engine.average_statistics()
        val_accuracy = accuracy(self.engine, self.dataset.val, self.config.batch_size)
        return {'epoch': epoch, 'train_loss': loss / images, 'train_accuracy': correct / images,
                'val_accuracy': val_accuracy, 'images_per_second': images / (trained - start),
                'seconds': time.perf_counter() - start,
                'learning_rate': self.schedule(epoch * len(self.batches) - 1)}

    def _train_epoch(self, epoch: int) -> Tuple[float, int]:
        """(sum of the losses, correct predictions) of the epoch; a step's are read while later ones are under way."""
        loss, correct = 0.0, 0
        ahead: Deque[Tuple[int, StepResult]] = collections.deque()
        first = (epoch - 1) * len(self.batches)
        progress = self.reporter.progress(self.batches.epoch(epoch), f'epoch {epoch}/{self.config.epochs}')
        for step, (images, labels) in enumerate(progress):
            self.engine.seed_step(epoch, step)
            ahead.append((first + step, self.engine.train_step(images, labels, self.schedule(first + step))))
            if len(ahead) > STEPS_AHEAD:
                step_loss, step_correct = self._read(*ahead.popleft())
                loss, correct = loss + step_loss, correct + step_correct
        for entry in ahead:
            step_loss, step_correct = self._read(*entry)
            loss, correct = loss + step_loss, correct + step_correct
        return loss, correct

    def _read(self, step: int, result: StepResult) -> Tuple[float, int]:
        loss, correct = result.read()
        if not math.isfinite(loss):
            epoch, within = divmod(step, len(self.batches))
            kept = checkpoint.epochs(self.run.checkpoints)
            last = f'the last good checkpoint is {checkpoint.path_of(self.run.checkpoints, kept[-1])}' if kept else \
                'no epoch was finished, so there is no checkpoint'
            raise NonFiniteLoss(
                f'the loss is {loss} at step {step + 1} (epoch {epoch + 1}, its step {within + 1} of '
                f'{len(self.batches)}): {last}; try a lower --learning-rate (now {self.config.learning_rate:g}) '
                'or --warmup-epochs')
        return loss, correct

    def _save(self, epoch: int, val_accuracy: float) -> None:
        if val_accuracy >= self.best_accuracy:  # of equals the later: its learning rate is lower
            self.best_epoch, self.best_accuracy = epoch, val_accuracy
        checkpoint.save(self.run.checkpoints, self.engine.net, epoch, {
            'step': epoch * len(self.batches), 'val_accuracy': val_accuracy, 'best_epoch': self.best_epoch,
            'best_val_accuracy': self.best_accuracy, 'net': self.config.net, 'classes': list(self.dataset.classes),
            'image_shape': [self.dataset.channels, *self.dataset.input_size],
            'mean': self.dataset.mean.tolist(), 'std': self.dataset.std.tolist()})
        checkpoint.prune(self.run.checkpoints, self.config.keep_checkpoints, self.best_epoch)


def evaluate(run: RunDirectory, split: str = 'test', which: str = 'best', **overrides: Any) -> Row:
    """The accuracy of a run's checkpoint on `split` (`train`, `val` or `test`).

    Args:
        which: `best`, `last` or an epoch.
        **overrides: of the run's configuration, such as `batch_size`, `gpus` or `data_dir`.
    """
    config = override(run.config(), overrides)
    path = checkpoint.choose(run.checkpoints, which)
    dataset = load_dataset(config.dataset, config.data_dir)
    engine = build_engine(config, dataset)
    checkpoint.load_parameters(path, engine.net, engine.devices)
    images: Split = getattr(dataset, split)
    return {'accuracy': accuracy(engine, images, config.batch_size), 'images': len(images), 'split': split,
            'epoch': checkpoint.read_state(path)['epoch'], 'checkpoint': str(path), 'net': config.net,
            'dataset': config.dataset}

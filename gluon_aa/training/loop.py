"""Training from a configuration to a run directory, and on from where it was stopped."""
import collections
import dataclasses
import math
import pathlib
import time
from typing import Any, Callable, Deque, Dict, Iterable, Iterator, NamedTuple, Optional, Tuple

from gluon_aa.data import Dataset, Split, load_dataset
from gluon_aa.data.pipeline import Batch, TrainingBatches, evaluation_batches, prefetch
from gluon_aa.errors import FailedError, UsageError
from gluon_aa.training import checkpoint, precision, shortage
from gluon_aa.training.assembly import build_engine, circumstances, for_evaluation, how_computed, noted, words
from gluon_aa.training.checkpoint import Position
from gluon_aa.training.config import RESUMABLE, TrainConfig, from_values, override, parse_interval, parse_size
from gluon_aa.training.devices import resolve_devices
from gluon_aa.training.engine import Engine, StepResult
from gluon_aa.training.interruption import Interrupted, StopRequest
from gluon_aa.training.progress import Progress
from gluon_aa.training.schedules import Schedule
from gluon_aa.training.tracking import RunDirectory, refuse_existing

#: Steps the host may run ahead of the devices: enough to keep them busy, few enough to stop soon.
STEPS_AHEAD = 2

Row = Dict[str, Any]


def _no_progress(batches: Iterable[Any], description: str, total: int, done: int) -> Iterable[Any]:
    return batches


@dataclasses.dataclass
class Reporter:
    """What the caller hears of a training; the defaults are silent."""

    on_notice: Callable[[str], None] = lambda text: None
    on_start: Callable[[RunDirectory, Row], None] = lambda run, facts: None
    on_epoch: Callable[[Row], None] = lambda row: None
    progress: Callable[[Iterable[Any], str, int, int], Iterable[Any]] = _no_progress


class NonFiniteLoss(FailedError):
    """The loss, or its gradient, is no longer finite."""


class _Stopped(Exception):
    """A wish to stop was found."""


def load_data(config: TrainConfig, on_notice: Optional[Callable[[str], None]] = None) -> Dataset:
    """The data set of `config`."""
    return load_dataset(config.dataset, config.data_dir, allow_unverified=config.allow_unverified,
                        input_size=parse_size(config.input_size) if config.input_size else None,
                        normalization=config.normalization, on_progress=on_notice)


def accuracy(engine: Engine, split: Split, batch_size: int,
             watch: Callable[[Iterable[Batch]], Iterable[Batch]] = iter) -> float:
    """Fraction of `split` that is classified right; its batches pass through `watch`."""
    return engine.count_correct(watch(evaluation_batches(split, batch_size))) / len(split)


def train(config: TrainConfig, run_path: Optional[pathlib.Path] = None,
          reporter: Optional[Reporter] = None) -> Tuple[RunDirectory, Row]:
    """Train as `config` says; everything is checked before the run directory is made.

    Returns:
        The run directory and the content of its result.json.

    Raises:
        UsageError: a configuration that contradicts itself or the data.
        FailedError: missing data or devices, a run directory that cannot be written.
        NonFiniteLoss: the loss is no longer finite; earlier checkpoints stay.
        OutOfMemory: says what would fit; earlier checkpoints stay.
        Interrupted: by a signal; a checkpoint was written, and `resume` goes on.
    """
    reporter = reporter or Reporter()
    refuse_existing(run_path)
    parts = _prepare(config, reporter)
    run = RunDirectory.create(run_path, config)
    with run.locked(), shortage.explained(parts.subject, run, parts.engine.config):
        return run, _Training(config, parts, run, reporter, Progress()).run_all()


def resume(run: RunDirectory, reporter: Optional[Reporter] = None, **overrides: Any) -> Tuple[RunDirectory, Row]:
    """Go on with a training that was stopped, from its last checkpoint, or from its beginning where it has none.

    On the same CPU devices with the same number of threads, what comes out is what the training would have come to by
    itself, bit for bit. One that has finished is left as it is.

    Args:
        **overrides: of the run's configuration; RESUMABLE lists what may change.

    Returns, Raises:
        as `train`; and UsageError: another process trains it, or a key that may not change; FailedError: a
        checkpoint that is damaged or foreign, data that are not what they were.
    """
    reporter = reporter or Reporter()
    for key in overrides:
        if key not in RESUMABLE:
            raise UsageError(f'{key} cannot change in a training that goes on (only {", ".join(RESUMABLE)} can): '
                             f'start a new one with --config {run.path / "config.yaml"}')
    config = override(run.config(), overrides)
    with run.locked():
        finished = run.result()
        if finished is not None:
            reporter.on_notice(f'{run.path} has finished its {config.epochs} epochs: nothing is left to do')
            return run, finished
        kept = bool(checkpoint.positions(run.checkpoints))
        path = checkpoint.choose(run.checkpoints, 'last') if kept else None
        if path:
            _check_config(path, config)
        parts = _prepare(config, reporter, run)
        with shortage.explained(parts.subject, run, parts.engine.config):
            progress = _restore(path, parts, reporter) if path else Progress()
            run.keep_metrics(progress.epochs)
            run.write_config(config)  # so that the next command need not say it again
            return run, _Training(config, parts, run, reporter, progress).run_all()


class _Parts(NamedTuple):
    """What a training is made of."""

    dataset: Dataset
    batches: TrainingBatches
    schedule: Schedule
    engine: Engine
    subject: shortage.Subject


def _prepare(config: TrainConfig, reporter: Reporter, run: Optional[RunDirectory] = None) -> _Parts:
    dataset = load_data(config, reporter.on_notice)
    if config.batch_size > len(dataset.train):
        raise UsageError(f'batch_size={config.batch_size} is larger than the {len(dataset.train)} training images of '
                         f'{config.dataset}: lower --batch-size')
    batches = TrainingBatches(dataset.train, config.batch_size, config.seed,
                              crop_padding=dataset.crop_padding if config.data_augmentation else 0,
                              flip=dataset.flip and config.data_augmentation, last_batch=config.last_batch)
    precision.use(config.dtype, on_gpus=bool(config.gpus))
    resolve_devices(config.gpus, config.cpus)  # are they there at all?
    shape = (dataset.channels, *dataset.input_size)
    subject = shortage.Subject.of(config, len(dataset.classes), shape)
    with shortage.explained(subject, run):
        engine = build_engine(config, dataset, reporter.on_notice)
    return _Parts(dataset, batches, Schedule(config, len(batches)), engine, subject)


def _check_config(path: pathlib.Path, config: TrainConfig) -> None:
    """Raise FailedError where a checkpoint is another training's; keys it does not have yet are at their default."""
    state = checkpoint.read_state(path)
    try:
        saved, wanted = from_values(state['config']).values(), config.values()
    except (KeyError, AttributeError, UsageError) as error:
        raise FailedError(f'{path} does not say what it was trained with ({error}): upgrade gluon-aa') from error
    for key in wanted:
        if key not in RESUMABLE and saved[key] != wanted[key]:
            raise FailedError(f'{path} and config.yaml disagree: {key} is {saved[key]} there and {wanted[key]} here; '
                              'put back the one that was changed')


def _restore(path: pathlib.Path, parts: _Parts, reporter: Reporter) -> Progress:
    """Load a checkpoint into the engine; returns how far it had come."""
    state, engine = checkpoint.read_state(path), parts.engine
    arrays = checkpoint.load_training(path)
    checkpoint.load_parameters(path, engine.net, engine.devices)
    try:
        progress, machine, data = Progress.of(state), state['machine'], state['data']
        engine.restore(arrays)
    except KeyError as error:
        raise FailedError(f'{path} lacks {error}: remove it and resume from an earlier checkpoint') from error
    if progress.position.name != path.name:
        raise FailedError(f'{path} holds the checkpoint of {progress.position}: give it back its name, '
                          f'{progress.position.name}')
    if data != parts.dataset.fingerprint:
        raise FailedError(f'the images of {parts.dataset.name} are not those that {path} was trained with: '
                          'name their place with --data-dir')
    present = circumstances(engine)
    before = noted(machine, state['config'], present)
    if before != present:
        reporter.on_notice(f'not bit for bit what it would have been: it was on {words(before)}, '
                           f'and is on {words(present)}')
    _check_best(path.parent, progress, reporter)
    reporter.on_notice(f'going on after {progress.position}')
    return progress


def _check_best(directory: pathlib.Path, progress: Progress, reporter: Reporter) -> None:
    """Where the best checkpoint is gone or damaged, let the best of the others be it: it is needed in the end."""
    if not progress.best_epoch or checkpoint.is_whole(checkpoint.path_of(directory, Position(progress.best_epoch))):
        return
    lost = checkpoint.path_of(directory, Position(progress.best_epoch))
    progress.best_epoch, progress.best_val_accuracy = 0, -1.0
    for epoch in checkpoint.epochs(directory):
        path = checkpoint.path_of(directory, Position(epoch))
        if checkpoint.is_whole(path):
            progress.note_accuracy(epoch, float(checkpoint.read_state(path)['val_accuracy']))
    best = f'epoch {progress.best_epoch} is' if progress.best_epoch else 'a later epoch will be'
    reporter.on_notice(f'the best checkpoint, {lost}, is missing or damaged: {best} the best in its place')


class _Training:
    """The state of one training, and its three nested spans: all, an epoch, a step."""

    def __init__(self, config: TrainConfig, parts: _Parts, run: RunDirectory, reporter: Reporter,
                 progress: Progress) -> None:
        self.config, self.run, self.reporter, self.progress = config, run, reporter, progress
        self.dataset, self.batches, self.schedule, self.engine, _ = parts
        self.stop = StopRequest()
        self.every = parse_interval(config.checkpoint_every) if config.checkpoint_every else None
        self.clock = self.saved = time.monotonic()

    def run_all(self) -> Row:
        trainable = [p for p in self.engine.net.collect_params().values() if p.grad_req != 'null']
        parameters = sum(math.prod(parameter.shape) for parameter in trainable)
        found = circumstances(self.engine)
        self.reporter.on_start(self.run, {
            'parameters': parameters, 'train_images': len(self.dataset.train), 'steps_per_epoch': len(self.batches),
            'how_computed': how_computed(found), **found})
        checkpoint.sweep(self.run.checkpoints)
        try:
            with self.stop:
                while self.progress.epochs < self.config.epochs:
                    self._epoch()
                return self._finish(parameters)
        except _Stopped:
            raise Interrupted(f'stopped by {self.stop.signal} after {self.progress.position}; '
                              f'gluon-aa train --resume {self.run.path} goes on from there') from None

    def _epoch(self) -> None:
        progress, epoch = self.progress, self.progress.epochs + 1
        self._train_epoch(epoch)
        self.engine.average_statistics()
        try:
            val_accuracy = accuracy(self.engine, self.dataset.val, self.config.batch_size, self._watched)
        except _Stopped:
            self._save()
            raise
        self._tick()
        images = self.batches.images
        row = {'epoch': epoch, 'train_loss': progress.loss / images, 'train_accuracy': progress.correct / images,
               'val_accuracy': val_accuracy, 'images_per_second': images / progress.training_seconds,
               'seconds': progress.epoch_seconds, 'learning_rate': self.schedule(epoch * len(self.batches) - 1)}
        progress.finish_epoch(val_accuracy)
        self.run.append_metrics(row)
        self._save(val_accuracy=val_accuracy)
        self.reporter.on_epoch(row)

    def _train_epoch(self, epoch: int) -> None:
        """The rest of the epoch; a step's loss is read while later steps are under way."""
        progress, first = self.progress, (epoch - 1) * len(self.batches)
        if progress.steps == len(self.batches):  # stopped while validating
            return
        ahead: Deque[Tuple[int, StepResult]] = collections.deque()
        batches = prefetch(self.batches.epoch(epoch, progress.steps))
        title = f'epoch {epoch}/{self.config.epochs}'
        shown = self.reporter.progress(batches, title, len(self.batches), progress.steps)
        try:
            for images, labels in shown:
                step = first + progress.steps
                self.engine.seed_step(epoch, progress.steps)
                ahead.append((step, self.engine.train_step(images, labels, self.schedule(step))))
                progress.steps += 1
                if len(ahead) > STEPS_AHEAD:
                    self._read(*ahead.popleft())
                stopping = self.stop.signal is not None  # asked once: it can come at any moment
                if stopping or self._due():
                    self._read_all(ahead)
                    self._save()
                if stopping:
                    raise _Stopped
        finally:
            batches.close()
        self._read_all(ahead)

    def _read_all(self, ahead: Deque[Tuple[int, StepResult]]) -> None:
        while ahead:
            self._read(*ahead.popleft())
        self.progress.training_seconds += self._tick()

    def _read(self, step: int, result: StepResult) -> None:
        loss, correct = result.read()
        if not math.isfinite(loss):
            epoch, within = divmod(step, len(self.batches))
            kept = checkpoint.positions(self.run.checkpoints)
            last = f'the last good checkpoint is {checkpoint.path_of(self.run.checkpoints, kept[-1])}' if kept else \
                'no checkpoint was written before'
            raise NonFiniteLoss(
                f'the loss or its gradient is not finite at step {step + 1} (epoch {epoch + 1}, its step {within + 1} '
                f'of {len(self.batches)}): {last}; try a lower --learning-rate (now {self.config.learning_rate:g}) '
                'or --warmup-epochs')
        self.progress.loss += loss
        self.progress.correct += correct

    def _tick(self) -> float:
        """The seconds since the last call, added to the epoch's and the training's."""
        now = time.monotonic()
        seconds, self.clock = now - self.clock, now
        self.progress.epoch_seconds += seconds
        self.progress.seconds += seconds
        return seconds

    def _due(self) -> bool:
        """Whether it is time for a checkpoint within the epoch; its end has one anyway."""
        if self.every is None or self.progress.steps == len(self.batches):
            return False
        if self.every.steps:
            return (self.progress.epochs * len(self.batches) + self.progress.steps) % self.every.steps == 0
        return time.monotonic() - self.saved >= 60 * (self.every.minutes or math.inf)

    def _save(self, **more: Any) -> None:
        state = {
            **dataclasses.asdict(self.progress), **more, 'machine': circumstances(self.engine),
            'data': self.dataset.fingerprint, 'classes': list(self.dataset.classes),
            'image_shape': [self.dataset.channels, *self.dataset.input_size], 'config': self.config.values()}
        arrays = {**self.engine.state(), 'data/mean': self.dataset.mean, 'data/std': self.dataset.std}
        checkpoint.save(self.run.checkpoints, self.progress.position, self.engine.net, arrays, state)
        checkpoint.prune(self.run.checkpoints, self.config.keep_checkpoints,
                         {self.progress.position, Position(self.progress.best_epoch)})
        self.saved = time.monotonic()
        self._tick()

    def _watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """`batches`, until a signal asks to stop."""
        for batch in batches:
            if self.stop.signal:
                raise _Stopped
            yield batch

    def _finish(self, parameters: int) -> Row:
        """Test the best checkpoint and write the result."""
        best = checkpoint.path_of(self.run.checkpoints, Position(self.progress.best_epoch))
        checkpoint.load_parameters(best, self.engine.net, self.engine.devices)
        test_accuracy = accuracy(self.engine, self.dataset.test, self.config.batch_size, self._watched)
        self._tick()
        result = {
            'test_accuracy': test_accuracy, 'val_accuracy': self.progress.best_val_accuracy,
            'best_epoch': self.progress.best_epoch, 'epochs': self.config.epochs, 'parameters': parameters,
            'seconds': self.progress.seconds, 'net': self.config.net, 'dataset': self.config.dataset,
            'dtype': self.config.dtype, 'seed': self.config.seed, **circumstances(self.engine)}
        self.run.write_result(result)
        return result


def evaluate(run: RunDirectory, split: str = 'test', which: str = 'best', **overrides: Any) -> Row:
    """The accuracy of a run's checkpoint on `split` (`train`, `val` or `test`).

    Args:
        which: `best`, `last` or an epoch.
        **overrides: of the run's configuration, such as `batch_size`, `gpus` or `data_dir`.
    """
    config = override(run.config(), overrides)
    path = checkpoint.choose(run.checkpoints, which)
    state, arrays = checkpoint.read_state(path), checkpoint.load_training(path)
    dataset = load_data(config)
    if list(dataset.classes) != state['classes']:
        raise FailedError(f'{path} tells other classes apart than those of {config.dataset}: name the place of the '
                          'data that it was trained with, --data-dir')
    # normalised as it was in training, whatever images are there now
    dataset = dataclasses.replace(dataset, mean=arrays['data/mean'], std=arrays['data/std'])
    engine = build_engine(for_evaluation(config), dataset)
    checkpoint.load_parameters(path, engine.net, engine.devices)
    images: Split = getattr(dataset, split)
    return {'accuracy': accuracy(engine, images, config.batch_size), 'images': len(images), 'split': split,
            'epoch': state['epochs'], 'steps': state['steps'], 'checkpoint': str(path), 'net': config.net,
            'dataset': config.dataset}

"""Learning rate over steps: a pure function of the step, so that it can be asked in any order.

Built from gluoncv's LRScheduler; what it lacks is the guard for spans of one step, where it divides by zero.
"""
from typing import Any, List, Tuple

from gluon_aa.compat import mx  # noqa: F401  prepares MXNet, which gluoncv imports
from gluon_aa.errors import UsageError
from gluon_aa.training.config import TrainConfig

from gluoncv.utils import LRScheduler, LRSequential  # isort:skip

#: The replication's recipe for ResNet-34: (epochs done, multiple of the learning rate). [seed, code]
SEED_RESNET34 = ((0, 1.0), (80, 0.1), (120, 0.01), (160, 0.001), (180, 0.0005))
#: The replication's recipe for WRN-28-10: x0.2 after each of these epochs. [seed, code]
SEED_WRN = ((30, 60, 90), 0.2)
#: What the replication tried first, after the paper: this share of the epochs is linear warm-up, then cosine. [seed]
SEED_WARMUP_SHARE = 0.05
#: One-cycle (Smith 2018, arXiv 1803.09820): share of the steps that climb, and start and end as parts of the peak.
ONE_CYCLE = (0.3, 1 / 25, 1e-4)


class Schedule:
    """schedule(step) -> learning rate; step counts from 0.

    Args:
        config: `schedule`, `learning_rate` (the peak), `epochs`, `warmup_epochs`, `decay_epochs`, `decay_factor`.
        steps_per_epoch: optimizer steps an epoch, at least 1.

    Raises:
        UsageError: decay epochs out of order, warm-up as long as the training.
    """

    def __init__(self, config: TrainConfig, steps_per_epoch: int) -> None:
        if list(config.decay_epochs) != sorted(config.decay_epochs):
            raise UsageError(f'decay_epochs={config.decay_epochs} must rise')
        total = config.epochs * steps_per_epoch
        warmup_epochs = config.warmup_epochs
        if config.schedule == 'seed-warmup-cosine':
            warmup_epochs = SEED_WARMUP_SHARE * config.epochs
        warmup = round(warmup_epochs * steps_per_epoch)
        if warmup >= total:
            raise UsageError(f'warmup_epochs={warmup_epochs} must be fewer than epochs={config.epochs}')
        pieces: List[Any] = []
        if warmup:  # step s has (s + 1) / warmup of the peak: never 0, and the peak at the last
            pieces.append(_span('linear', warmup, config.learning_rate / warmup, config.learning_rate))
        pieces += _pieces(config, total - warmup, warmup, steps_per_epoch)
        self._sequence = LRSequential(pieces)

    def __call__(self, step: int) -> float:
        return float(self._sequence(step))


def _span(mode: str, steps: int, start: float, end: float) -> Any:
    """`steps` steps of linear or cosine change, the first at `start`, the last at `end`."""
    if steps == 1:
        return LRScheduler('constant', base_lr=end, niters=1)
    return LRScheduler(mode, base_lr=start, target_lr=end, niters=steps)


def _staircase(peak: float, steps: int, levels: List[Tuple[int, float]]) -> List[Any]:
    """`levels` are (first step, multiple of the peak), the first of them at step 0 or before."""
    ends = [min(max(first, 0), steps) for first, _ in levels[1:]] + [steps]
    begins = [0] + ends[:-1]
    return [LRScheduler('constant', base_lr=peak * multiple, niters=end - begin)
            for begin, end, (_, multiple) in zip(begins, ends, levels) if end > begin]


def _pieces(config: TrainConfig, steps: int, done: int, steps_per_epoch: int) -> List[Any]:
    """The schedule proper: `steps` steps after `done` of warm-up; epochs count from the training's start."""
    peak = config.learning_rate
    if config.schedule == 'constant':
        return [LRScheduler('constant', base_lr=peak, niters=steps)]
    if config.schedule in ('cosine', 'seed-warmup-cosine'):
        return [_span('cosine', steps, peak, 0.0)]
    if config.schedule == 'one-cycle':
        share, start, end = ONE_CYCLE
        climb = max(1, round(share * steps))
        descent = [_span('cosine', steps - climb, peak, peak * end)] if steps > climb else []
        return [_span('cosine', climb, peak * start, peak), *descent]
    if config.schedule == 'seed-resnet34':
        levels = [(epoch * steps_per_epoch - done, multiple) for epoch, multiple in SEED_RESNET34]
        return _staircase(peak, steps, levels)
    epochs, factor = SEED_WRN if config.schedule == 'seed-wrn' else (config.decay_epochs, config.decay_factor)
    return [LRScheduler('step', base_lr=peak, niters=steps, step_factor=factor,
                        step_iter=[epoch * steps_per_epoch - done for epoch in epochs])]

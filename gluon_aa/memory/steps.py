"""Real steps, measured; see cells.py for processes of their own, as they may run out of memory, hang or crash.

What is metered is what a training runs: the engine that its configuration builds, from a batch in host memory to the
updated weights.
"""
import contextlib
import dataclasses
import resource
from typing import Any, Dict, Iterator, Optional, Sequence, Tuple

import numpy as np

from gluon_aa.compat import mx
from gluon_aa.data import Dataset, Split
from gluon_aa.memory import meter
from gluon_aa.training.assembly import build_engine
from gluon_aa.training.config import TrainConfig

#: Steps that a peak is taken over: the optimizer's states come in the first, and workspaces have grown by the third.
STEPS = 3

Row = Dict[str, Any]


def measure(config: TrainConfig, classes: int, image_shape: Sequence[int], inference: bool = False,
            budget: Optional[int] = None) -> Row:
    """The peak of training steps of `config` (or of inference) at its batch size, in this process, which must be new.

    Args:
        image_shape: (C, H, W).
        budget: bytes that the process may take beyond what it has when a tiny network was trained; enforced on CPUs.

    Returns:
        `storage_bytes`: MXNet's own count on the first device, workspaces included; `resident_bytes`: what the process
        grew by (RSS); `driver_bytes`: on a GPU, what the driver says is in use more than before, else None;
        `baseline_bytes`: what the process had before, of the kind that `budget` limits.
    """
    meter.start()
    meter.return_freed_memory()
    images, labels = _batch(config.batch_size, image_shape, classes)
    device = mx.gpu(config.gpus[0]) if config.gpus else mx.cpu(0)
    mx.nd.ones((1,), ctx=device).wait_to_read()
    if budget is not None:
        _warm_up(config)
    baseline = meter.data_bytes()
    with _limited(None if budget is None else baseline + budget), meter.storage(device) as allocated, \
            meter.resident() as held, _driver(config.gpus) as driver:
        engine = build_engine(config, _stand_in(classes, image_shape))
        for _ in range(STEPS):
            if inference:
                engine.count_correct([(images, labels)])
            else:
                engine.train_step(images, labels, config.learning_rate).read()
        mx.nd.waitall()
    return {'storage_bytes': allocated.peak, 'resident_bytes': held.growth, 'baseline_bytes': baseline,
            'driver_bytes': driver.get('bytes')}


def _warm_up(config: TrainConfig) -> None:
    """Train a tiny network for a step, so that what libraries allocate once, for threads and products, is there."""
    tiny = dataclasses.replace(config, net='aa_wrn10_1', placement=None, batch_size=max(1, config.cpus), stem=None,
                               num_heads=None, key_ratio=None, value_ratio=None, min_key_channels_per_head=None)
    shape = (3, 8, 8)
    engine = build_engine(tiny, _stand_in(2, shape))
    engine.train_step(*_batch(tiny.batch_size, shape, 2), 0.0).read()
    mx.nd.waitall()


def _batch(count: int, image_shape: Sequence[int], classes: int) -> Tuple[np.ndarray, np.ndarray]:
    """Random images (B, C, H, W) and labels (B,), as the pipeline gives them."""
    rng = np.random.default_rng(0)
    return (rng.integers(0, 256, (count, *image_shape), np.uint8), rng.integers(0, classes, count).astype(np.int32))


def _stand_in(classes: int, image_shape: Sequence[int]) -> Dataset:
    """A data set of the wanted form with one image."""
    split = Split(*_batch(1, image_shape, classes))
    channels = np.ones((image_shape[0], 1, 1))
    return Dataset('stand-in', split, split, split, tuple(map(str, range(classes))), flip=False, crop_padding=0,
                   mean=128 * channels, std=64 * channels)


@contextlib.contextmanager
def _limited(count: Optional[int]) -> Iterator[None]:
    """Let this process's own data be at most `count` bytes: an allocation beyond fails, as on a full device."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    if count is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@contextlib.contextmanager
def _driver(gpus: Sequence[int]) -> Iterator[Dict[str, int]]:
    """The growth of what is in use on the first GPU, as its driver tells: the pool never gives back, so at its peak."""
    found: Dict[str, int] = {}
    before = mx.context.gpu_memory_info(gpus[0])[0] if gpus else 0
    yield found
    if gpus:
        found['bytes'] = before - mx.context.gpu_memory_info(gpus[0])[0]

"""What cells need, in processes of their own: a number format and a number of threads hold for a whole process.

Cells come in lines: one network, in one way, at any batch sizes. MXNet is not imported here: each process sets what
must be set before.
"""
from typing import Any, Dict, List, Optional, Sequence

from gluon_aa import compat, isolation
from gluon_aa.errors import UsageError
from gluon_aa.memory.devices import DEVICES, Device

#: Images on each device in the step that is metered for an extrapolation.
PILOT = 2

Row = Dict[str, Any]


def modelled(config: Row, classes: int, image_shape: Sequence[int], device: Device, batch_sizes: Sequence[int],
             time_limit: float, inference: bool = False) -> List[Row]:
    """A row for each batch size, from a plan: no step is run.

    Args:
        config: values of a `TrainConfig`, its choices made.
        image_shape: (C, H, W).
        batch_sizes: images over all devices.
        time_limit: in seconds.

    Returns:
        `batch_size`, `bytes` (by `gluon_aa.memory.plan.CATEGORIES`), `total_bytes`, `uncertainty_bytes`, `obstacle`
        ('' or why MXNet cannot do it), `layers`.

    Raises:
        FailedError: what the configuration deserves, or the process ended badly.
    """
    return list(isolation.call(f'{__name__}:modelled_here', {
        'config': config, 'classes': classes, 'image_shape': list(image_shape), 'device': list(device),
        'batch_sizes': list(batch_sizes), 'inference': inference}, time_limit))


def modelled_here(config: Row, classes: int, image_shape: Sequence[int], device: Sequence[Any],
                  batch_sizes: Sequence[int], inference: bool) -> List[Row]:
    """`modelled` in this process."""
    from gluon_aa.memory import plan
    from gluon_aa.training.config import from_values
    channels, height, width = image_shape
    made = plan.plans(from_values(config), classes, (channels, height, width), Device(*device), batch_sizes, inference)
    return [{'batch_size': batch, 'bytes': each.bytes, 'total_bytes': each.total,
             'uncertainty_bytes': each.uncertainty, 'obstacle': each.obstacle,
             'layers': [layer._asdict() for layer in each.layers]} for batch, each in zip(batch_sizes, made)]


def extrapolated(config: Row, classes: int, image_shape: Sequence[int], device: Device, batch_sizes: Sequence[int],
                 time_limit: float, inference: bool = False) -> List[Row]:
    """As `modelled`, and more by the share that steps metered on this CPU at a tiny batch had more than their plan.

    It is added as temporaries; nothing is taken off where they had less, so that no estimate is below the model's.

    Args:
        time_limit: in seconds, of each process.

    Raises:
        UsageError: a number format that this CPU cannot compute in.
    """
    if config['dtype'] == 'float16':
        raise UsageError('float16 cannot be metered on a CPU: model it')
    devices = len(config['gpus']) or config['cpus']
    here = {**config, 'gpus': [], 'cpus': devices}
    pilot = devices * PILOT
    planned = modelled(here, classes, image_shape, DEVICES['cpu'], [pilot], time_limit, inference)[0]['total_bytes']
    metered = measured({**here, 'batch_size': pilot}, classes, image_shape, time_limit, inference=inference)
    share = max(0.0, metered['storage_bytes'] / planned - 1)
    rows = modelled(config, classes, image_shape, device, batch_sizes, time_limit, inference)
    for row in rows:
        more = round(share * row['total_bytes'])
        row['bytes']['temporaries'] += more
        row['total_bytes'] += more
    return rows


def measured(config: Row, classes: int, image_shape: Sequence[int], time_limit: float, *, inference: bool = False,
             budget: Optional[int] = None) -> Row:
    """The peak of real steps of `config` at its batch size; see `gluon_aa.memory.steps.measure`.

    Raises:
        FailedError: the process failed; `gluon_aa.memory.failures.is_out_of_memory` tells whether for lack of memory.
    """
    return dict(isolation.call(f'{__name__}:measured_here', {
        'config': config, 'classes': classes, 'image_shape': list(image_shape), 'inference': inference,
        'budget': budget}, time_limit))


def measured_here(config: Row, classes: int, image_shape: Sequence[int], inference: bool, budget: Optional[int]) -> Row:
    """`measured` in this process, which must be a new one."""
    if not config['gpus']:
        compat.share_cores(config['cpus'])
    from gluon_aa.memory import steps
    from gluon_aa.training.config import from_values
    return steps.measure(from_values(config), classes, image_shape, inference, budget)

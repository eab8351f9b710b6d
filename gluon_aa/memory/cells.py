"""What fits, one line of cells at a time: a network and the batch sizes it is asked for, in a process of its own.

A process has one number format, which a plan needs as well as a step does.
"""
from typing import Any, Dict, List, Sequence

from gluon_aa import isolation
from gluon_aa.memory.devices import Device
from gluon_aa.memory.steps import ENVIRONMENT

Row = Dict[str, Any]


def modelled(config: Row, classes: int, image_shape: Sequence[int], device: Device, batch_sizes: Sequence[int],
             time_limit: float, inference: bool = False) -> List[Row]:
    """A row for each batch size: `batch_size` (over all devices), `bytes` (by category), `total_bytes`,
    `uncertainty_bytes`, `layers`; no step is run.

    Args:
        config: values of a `TrainConfig`, its choices made.

    Raises:
        FailedError, UsageError: as the configuration deserves.
    """
    return list(isolation.call(f'{__name__}:modelled_here', {
        'config': config, 'classes': classes, 'image_shape': list(image_shape), 'device': list(device),
        'batch_sizes': list(batch_sizes), 'inference': inference}, time_limit, ENVIRONMENT))


def modelled_here(config: Row, classes: int, image_shape: Sequence[int], device: Sequence[Any],
                  batch_sizes: Sequence[int], inference: bool) -> List[Row]:
    """`modelled` in this process."""
    from gluon_aa.memory import plan
    from gluon_aa.training.config import load
    channels, height, width = image_shape
    made = plan.plans(load(None, config), classes, (channels, height, width), Device(*device), batch_sizes, inference)
    return [{'batch_size': batch, 'bytes': each.bytes, 'total_bytes': each.total, 'uncertainty_bytes': each.uncertainty,
             'layers': [layer._asdict() for layer in each.layers]} for batch, each in zip(batch_sizes, made)]


def extrapolated(config: Row, classes: int, image_shape: Sequence[int], device: Device, batch_sizes: Sequence[int],
                 time_limit: float, inference: bool = False) -> List[Row]:
    """As `modelled`, from steps metered at the tiniest batches, each in a process of its own with this time limit."""
    return modelled(config, classes, image_shape, device, batch_sizes, time_limit, inference)

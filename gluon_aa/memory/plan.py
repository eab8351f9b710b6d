"""The bytes of a training step on one device, planned: no step is run, no GPU is needed, nothing is filled in.

MXNet plans an executor's buffers when it is bound. Its plan is read at small batch sizes and carried on linearly, so
that what is planned need not fit this machine. Not counted: the operators' workspace, and what the allocator rounds up.
16-bit formats are planned as if they had 32 bits, which is more than they need.
"""
import dataclasses
import math
import re
from typing import Any, Dict, Optional, Tuple

from gluon_aa.compat import mx
from gluon_aa.training.recompute import MARK, bind, mark, trace

#: Batch sizes whose plans are read. MXNet says whole megabytes: half of one at 8 is 8 MB at 128.
_PILOTS = (4, 8)
_FLOAT = 4  # bytes; MXNet plans every number with as many


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """Bytes on one device by what they are for."""

    parameters: int
    gradients: int
    statistics: int  # batch norm's, and the images' mean and deviation
    optimizer: int
    exchange: int  # kvstore's copies of the gradients, of several devices
    batch: int  # images and labels
    graph: int  # maps kept for the backward pass, attention's, and their gradients

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def plan_step(classifier: Any, image_shape: Tuple[int, int, int], batch_size: int, *, recompute: Optional[str] = None,
              optimizer_states: int = 1, devices: int = 1) -> StepPlan:
    """The plan of one training step of a `Classifier`, which need not be initialised.

    Args:
        image_shape: (C, H, W).
        batch_size: images a step on each device.
        recompute: as the configuration has it, for memory mode recompute; None for memory mode speed.
        optimizer_states: numbers kept for each parameter: 1 with momentum, 2 of Adam.
        devices: how many share the work.
    """
    symbol = trace(classifier, recompute or 'attention')
    if recompute is None:
        mark(symbol, [name for name, attributes in symbol.attr_dict().items() if MARK in attributes], False)
    parameters = classifier.collect_params()
    trainable = {name for name, parameter in parameters.items() if parameter.grad_req != 'null'}
    arguments, auxiliary = _shapes(symbol, image_shape, 1)
    weights = _FLOAT * sum(math.prod(shape) for name, shape in arguments.items() if name in trainable)
    others = [shape for name, shape in arguments.items() if name in parameters.keys() and name not in trainable]
    statistics = _FLOAT * sum(math.prod(shape) for shape in (*auxiliary.values(), *others))
    return StepPlan(
        parameters=weights, gradients=weights, statistics=statistics, optimizer=optimizer_states * weights,
        # each key is summed on one of the devices, from a copy of every other's, into one more
        exchange=weights if devices > 1 else 0,
        batch=batch_size * (math.prod(image_shape) + 4),
        graph=_graph_bytes(symbol, trainable, image_shape, batch_size, tight=recompute is not None))


def _shapes(symbol: Any, image_shape: Tuple[int, int, int], batch_size: int) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """The shapes of a traced symbol's arguments and auxiliary states, by name."""
    arguments, _, auxiliary = symbol.infer_shape(images=(batch_size, *image_shape), labels=(batch_size,))
    return (dict(zip(symbol.list_arguments(), arguments)), dict(zip(symbol.list_auxiliary_states(), auxiliary)))


def _graph_bytes(symbol: Any, trainable: Any, image_shape: Tuple[int, int, int], batch_size: int, tight: bool) -> int:
    """The planned buffers of a batch: read where it is small, else extrapolated from the pilots."""
    if batch_size <= _PILOTS[-1]:
        return _read_plan(symbol, trainable, image_shape, batch_size, tight)
    small, large = (_read_plan(symbol, trainable, image_shape, pilot, tight) for pilot in _PILOTS)
    slope = (large - small) / (_PILOTS[1] - _PILOTS[0])
    return round(large + slope * (batch_size - _PILOTS[1]))


def _read_plan(symbol: Any, trainable: Any, image_shape: Tuple[int, int, int], batch_size: int, tight: bool) -> int:
    arguments, auxiliary = _shapes(symbol, image_shape, batch_size)
    kinds = {'images': 'uint8', 'labels': 'int32'}
    # never written to, so that the system never gives them memory
    arrays = {name: mx.nd.empty(shape, dtype=kinds.get(name, 'float32')) for name, shape in arguments.items()}
    gradients = {name: mx.nd.empty(shape) for name, shape in arguments.items() if name in trainable}
    states = {name: mx.nd.empty(shape) for name, shape in auxiliary.items()}
    executor = bind(symbol, mx.cpu(), arrays, gradients, states, tight=tight)
    found = re.search(r'Total (\d+) MB allocated', executor.debug_str())
    assert found is not None, 'MXNet ends its description of an executor with the plan'
    return int((int(found.group(1)) + 0.5) * 2 ** 20)  # it rounds down

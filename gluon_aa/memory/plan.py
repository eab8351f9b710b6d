"""The bytes of a training step on one device, planned: no step is run, no GPU is needed, nothing is filled in.

MXNet plans an executor's buffers when it is bound. Its plan is read at small batch sizes and carried on linearly, so
that what is planned need not fit this machine. Not counted: the operators' workspace, and what the allocator rounds up.
16-bit formats are planned as if they had 32 bits, which is more than they need.
"""
import dataclasses
import math
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from gluon_aa.compat import mx
from gluon_aa.memory.devices import CONTEXT, Device
from gluon_aa.models import get_model
from gluon_aa.training.config import TrainConfig
from gluon_aa.training.engine import Classifier
from gluon_aa.training.recompute import MARK, bind, mark, trace

#: What bytes on a device are for, in the order of charts. `exchange`: kvstore's copies of gradients; `workspace`: what
#: operators ask for while they run, oneDNN's or cuDNN's; the last two are a GPU's alone.
CATEGORIES = ('parameters', 'gradients', 'optimizer', 'statistics', 'exchange', 'input', 'activations', 'attention',
              'temporaries', 'workspace', 'rounding', 'context')

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


class Layer(NamedTuple):
    """What a layer keeps for the backward pass, in bytes."""

    name: str  # 'stage3.block1.conv1'
    kind: str
    parameters: int
    activations: int
    attention: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """The peak of a training step, or of inference, on one device.

    `bytes`: by `CATEGORIES`. `uncertainty`: bytes by which the total may be too low or too high; 0 on CPUs.
    """

    batch_size: int
    bytes: Dict[str, int]
    layers: Tuple[Layer, ...]
    uncertainty: int = 0

    @property
    def total(self) -> int:
        return sum(self.bytes.values())

    @property
    def safe(self) -> int:
        """What a device must have."""
        return self.total + self.uncertainty


def plans(config: TrainConfig, classes: int, image_shape: Tuple[int, int, int], device: Device,
          batch_sizes: Sequence[int], inference: bool = False) -> List[Plan]:
    """A plan for each of `batch_sizes`, all of one network.

    Args:
        config: its choices made; its own batch size does not matter. Its `gpus` or `cpus` share each batch.
        image_shape: (C, H, W).
        device: what each of them is.
        batch_sizes: images a step over all devices.
    """
    net = get_model(config.net, classes, input_size=image_shape[1:], **config.model_options())
    channels = np.zeros((image_shape[0], 1, 1))
    classifier = Classifier(net, channels, channels + 1, config.label_smoothing)
    devices = len(config.gpus) or config.cpus
    states = 2 if config.optimizer == 'adam' else 1 if config.momentum else 0
    recompute = config.recompute if config.memory_mode == 'recompute' else None
    found = []
    for total in batch_sizes:
        made = plan_step(classifier, image_shape, -(-total // devices), recompute=recompute, optimizer_states=states,
                         devices=devices)
        parts = dict.fromkeys(CATEGORIES, 0)
        parts.update(parameters=made.parameters, gradients=made.gradients, optimizer=made.optimizer,
                     statistics=made.statistics, exchange=made.exchange, input=made.batch, activations=made.graph)
        if device.gpu:
            parts.update(workspace=2 ** 29, rounding=2 ** 26, context=CONTEXT)
        found.append(Plan(-(-total // devices), parts, (Layer('stage1.block1.conv1', 'Conv2D', 0, made.graph, 0),),
                          uncertainty=2 ** 29 if device.gpu else 0))
    return found

"""The bytes of a training step, or of inference, on one device, modelled: no step is run, nothing is filled in, no GPU.

The graph is the one that trains (graph.py), in the buffers that MXNet gives it (buffers.py), at any batch size. Around
it lie parameters, gradients, the optimizer's state and the batch. What else a CPU takes is oneDNN's (onednn.py); what
else a GPU takes is estimated below and uncertain.
"""
import dataclasses
import math
from typing import Any, Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from gluon_aa.layers import AttentionAugmentedConv2D
from gluon_aa.memory import buffers, onednn
from gluon_aa.memory.buffers import Buffers
from gluon_aa.memory.devices import CONTEXT, START_SPIKE, Device
from gluon_aa.memory.graph import LARGEST, Entry, Node, Sizes, StepGraph
from gluon_aa.models import get_model
from gluon_aa.training import precision
from gluon_aa.training.config import TrainConfig
from gluon_aa.training.engine import Classifier
from gluon_aa.training.recompute import MARK, mark, trace

#: What bytes on a device are for, in the order of charts. `statistics`: batch norm's, and the images' mean and
#: deviation; `exchange`: kvstore's copies of gradients; `activations` and `attention`: what layers keep for the
#: backward pass, and all else that attention needs; `temporaries`: what other layers need for a while; `workspace`:
#: what operators ask for while they run, oneDNN's or cuDNN's; the last two are a GPU's alone.
CATEGORIES = ('parameters', 'gradients', 'optimizer', 'statistics', 'exchange', 'input', 'activations', 'attention',
              'temporaries', 'workspace', 'rounding', 'context')

_NOWHERE = 2 ** 60  # bytes

_FLOAT = 4  # bytes; parameters are float32 whatever the number format

#: MXNet's pool of GPU memory rounds up to this: small allocations to pages, larger ones to the second [1.9.1 source].
_PAGE, _LARGE = 4096, 2 * 2 ** 20

#: By how much a GPU's context may differ from what is counted for it, from driver to driver.
_CONTEXT_UNCERTAINTY = CONTEXT // 3

#: What a training on a CPU takes beside what MXNet counts and oneDNN's temporaries: primitives, their scratch, the C
#: library's rounding. It was 46 to 79 MB in four networks of 200 to 1,240 MB.
_PROCESS = 80 * 10 ** 6


class Layer(NamedTuple):
    """A layer's parameters, and its share of the categories `activations` and `attention`, in bytes.

    What attention needs beside what is kept is used by all its layers in turn, and has a row of its own.
    """

    name: str  # 'stage3.block1.conv1'
    kind: str
    parameters: int
    activations: int
    attention: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """The peak of a training step, or of inference, on one device.

    `batch_size`: images in one pass on the device. `bytes`: by `CATEGORIES`; on a CPU their sum is what MXNet's storage
    profiler counts. `uncertainty`: on a GPU, bytes by which the total may be too low or too high; on a CPU, what the
    process may take beside MXNet's count.
    """

    batch_size: int
    bytes: Dict[str, int]
    layers: Tuple[Layer, ...]
    uncertainty: int = 0
    obstacle: str = ''  # why MXNet cannot do it, however much memory there is

    @property
    def total(self) -> int:
        return sum(self.bytes.values())

    @property
    def safe(self) -> int:
        """What a device must have; more than there is anywhere where there is an obstacle."""
        return _NOWHERE if self.obstacle else self.total + self.uncertainty


def plans(config: TrainConfig, classes: int, image_shape: Tuple[int, int, int], device: Device,
          batch_sizes: Sequence[int], inference: bool = False) -> List[Plan]:
    """A plan for each of `batch_sizes`, all of one network.

    Args:
        config: its choices made; its own batch size does not matter. Its `gpus` or `cpus` share each batch.
        image_shape: (C, H, W).
        device: what each of them is.
        batch_sizes: images a step over all devices.
        inference: an evaluation's pass in place of a training step.

    Raises:
        UsageError, FailedError: a network that cannot be built, a number format that cannot be had: see
            `gluon_aa.training.precision.use`, which this calls.
    """
    planner = Planner(config, classes, image_shape, device, inference)
    return [planner.plan(batch_size) for batch_size in batch_sizes]


class Planner:
    """Plans of one network at any batch size; the arguments are those of `plans`."""

    def __init__(self, config: TrainConfig, classes: int, image_shape: Tuple[int, int, int], device: Device,
                 inference: bool = False) -> None:
        precision.use(config.dtype, on_gpus=device.gpu)
        net = get_model(config.net, classes, input_size=image_shape[1:], **config.model_options())
        if config.dtype == 'bfloat16':
            precision.even_channels(net)
        channels = np.zeros((image_shape[0], 1, 1))
        classifier = Classifier(net, channels, channels + 1, config.label_smoothing)
        self.config, self.device, self.inference, self.image_shape = config, device, inference, image_shape
        self.executor = config.memory_mode == 'recompute' and not inference
        symbol = trace(classifier, config.recompute if self.executor else 'attention')
        if not self.executor:  # hybridized networks compute nothing again
            mark(symbol, [name for name, attributes in symbol.attr_dict().items() if MARK in attributes], False)
        parameters = classifier.collect_params()
        trainable = {name for name, parameter in parameters.items() if parameter.grad_req != 'null'}
        self.graph = StepGraph(symbol, trainable, image_shape, tight=self.executor)
        sizes = {name: _FLOAT * count for name, count in self.graph.counts().items() if name in parameters.keys()}
        self.weights = {name: size for name, size in sizes.items() if name in trainable}
        self.statistics = sum(sizes.values()) - sum(self.weights.values())
        self.owners = _Owners(net, self.graph.nodes)
        self.kept = buffers.kept(self.graph)

    def plan(self, batch_size: int, accumulate: Optional[int] = None) -> Plan:
        """The plan of a step of `batch_size` images over all devices, in the configuration's micro-batches or so many.
        """
        devices = len(self.config.gpus) or self.config.cpus
        passes = 1 if self.inference else accumulate or self.config.accumulate
        share = math.ceil(batch_size / devices)
        images = math.ceil(share / passes)
        sizes = self.graph.sizes(images)
        parts = self._parts(sizes)
        image = math.prod(self.image_shape) + 4  # uint8; labels are int32
        found = dict.fromkeys(CATEGORIES, 0)
        weights = sum(self.weights.values())
        found.update(
            parameters=weights, gradients=weights * (2 if passes > 1 else 1), statistics=self.statistics,
            optimizer=0 if self.inference else weights * _states(self.config),
            # each key is summed on one of the devices, from a copy of every other's, into one more
            exchange=weights if devices > 1 and not self.inference else 0,
            input=image * (share + (images if self.executor else 0)))  # an executor has arrays of its own
        layers = self._attribute(parts, sizes, found)
        if self.device.gpu:
            uncertainty = self._add_gpu(found, parts, sizes)
        else:
            taken_over: FrozenSet[Entry] = frozenset().union(*(part.taken_over for part in parts))
            nodes = self.graph.forward_nodes if self.inference else len(self.graph.nodes)
            one = onednn.workspace(self.graph, sizes, taken_over, nodes, onednn.block())
            found['workspace'] = one.copies + devices * (one.total - one.copies)  # CPU devices share theirs
            # in the first step oneDNN makes temporaries itself, which then have half of MXNet's workspace for them
            uncertainty = one.temporaries // 2 + _PROCESS
            if self.config.dtype == 'bfloat16':
                # oneDNN's layouts of 16 bits are not followed: plans were 0.73 to 1.63 of six measured steps
                uncertainty += sum(found.values()) // 2
        return Plan(images, found, tuple(layers), uncertainty, _obstacle(sizes))

    def _parts(self, sizes: Sizes) -> List[Buffers]:
        if self.executor:
            return [buffers.of_executor(self.graph, sizes)]
        forward = buffers.of_forward(self.graph, sizes, recording=not self.inference)
        return [forward] if self.inference else [forward, buffers.of_backward(self.graph, sizes)]

    def _attribute(self, parts: Sequence[Buffers], sizes: Sizes, found: Dict[str, int]) -> List[Layer]:
        """Add the buffers to the categories, each to what its largest entry is; returns the layers' shares.

        Attention's buffers that nothing is kept in are no single layer's.
        """
        rows = {owner: Layer(owner.name, owner.kind, sum(self.weights[name] for name in names), 0, 0)
                for owner, names in self.owners.parameters(self.weights)}
        for part in parts:
            entries: Dict[int, List[Entry]] = {}
            for entry, buffer in part.of.items():
                entries.setdefault(buffer, []).append(entry)
            for buffer, held in entries.items():
                lasting = [entry for entry in held if entry in self.kept] if not self.inference else []
                largest = max(lasting or held, key=sizes.bytes)
                owner = self.owners.of(largest[0])
                category = 'attention' if owner.attention else 'activations' if lasting else 'temporaries'
                found[category] += part.sizes[buffer]
                if category != 'temporaries':
                    place = owner._replace(attention=False) if lasting or self.inference else _SHARED
                    row = rows.get(place, Layer(place.name, place.kind, 0, 0, 0))
                    rows[place] = row._replace(**{category: getattr(row, category) + part.sizes[buffer]})
        return [row for row in rows.values() if any(row[2:])]

    def _add_gpu(self, found: Dict[str, int], parts: Sequence[Buffers], sizes: Sizes) -> int:
        """Add what a GPU takes beside; returns the uncertainty."""
        copies = sum(found[name] for name in ('parameters', 'gradients', 'optimizer', 'exchange'))
        times = copies // max(1, sum(self.weights.values()))
        allocations = [*(size for part in parts for size in part.sizes), *(list(self.weights.values()) * times)]
        found['rounding'] = sum(-size % (_PAGE if size <= _LARGE else _LARGE) for size in allocations)
        # cuDNN asks for anything between nothing and what Winograd's algorithm needs, by what it finds fastest
        most = max((_winograd_bytes(self.graph, node, sizes) for node in self.graph.nodes), default=0)
        found['workspace'] = most // 2
        found['context'] = max(CONTEXT, START_SPIKE - sum(found.values()))
        return most - most // 2 + _CONTEXT_UNCERTAINTY


def _obstacle(sizes: Sizes) -> str:
    largest = max(map(math.prod, sizes.shapes.values()))
    return f'an array of {largest:,} numbers, and MXNet has none of more than {LARGEST:,}' if largest > LARGEST else ''


def _states(config: TrainConfig) -> int:
    """Numbers that the optimizer keeps for each parameter."""
    return 2 if config.optimizer == 'adam' else 1 if config.momentum else 0


def _winograd_bytes(graph: StepGraph, node: Node, sizes: Sizes) -> int:
    """Workspace of a 3x3 convolution by Winograd's algorithm F(4x4, 3x3), not fused (Lavin and Gray 2016, arXiv
    1509.09308): 36 numbers for each 4x4 tile of input and output, and for each 3x3 filter."""
    if node.op != 'Convolution':
        return 0
    data, weight = node.inputs[:2]
    if sizes.shapes[weight][2:] != (3, 3) or node.attributes.get('stride', '(1, 1)') != '(1, 1)':
        return 0
    maps = sizes.bytes(data) + math.prod(sizes.shapes[data]) // sizes.shapes[data][1] * sizes.shapes[weight][0] * \
        sizes.items[data]
    return maps * 36 // 16 + sizes.bytes(weight) * 36 // 9


class _Owner(NamedTuple):
    """The layer that a node belongs to, and whether to its attention."""

    name: str
    kind: str
    attention: bool = False


#: Buffers that layers use in turn.
_SHARED = _Owner('shared by attention', 'buffers')


class _Owners:
    """Which layer each node of a graph belongs to, by the prefixes of names that Gluon gives."""

    def __init__(self, net: Any, nodes: Sequence[Node]) -> None:
        self.by_prefix: Dict[str, _Owner] = {}
        for address, block in _blocks(net, ''):
            if isinstance(block, AttentionAugmentedConv2D):
                layer = _Owner(address, type(block).__name__, True)
                self.by_prefix.update(dict.fromkeys((block.prefix, block.qkv.prefix, block.projection.prefix), layer))
                self.by_prefix[block.conv.prefix] = layer._replace(attention=False)
            else:
                self.by_prefix.setdefault(block.prefix, _Owner(address or 'network', type(block).__name__))
        self.found: List[_Owner] = []
        for node in nodes:
            owner = self._by_name(node.name)
            if owner is None and node.inputs:  # a sum of gradients
                owner = self.found[node.inputs[0][0]]
            self.found.append(owner or _Owner('loss', 'Classifier'))

    def of(self, node: int) -> _Owner:
        return self.found[node]

    def parameters(self, names: Dict[str, int]) -> Iterator[Tuple[_Owner, List[str]]]:
        """Layers in the order of their parameters, with the names of those."""
        grouped: Dict[_Owner, List[str]] = {}
        for name in names:
            owner = self._by_name(name) or _Owner('loss', 'Classifier')
            grouped.setdefault(owner._replace(attention=False), []).append(name)
        return iter(grouped.items())

    def _by_name(self, name: str) -> Optional[_Owner]:
        end = name.rfind('_')
        while end >= 0:
            if name[:end + 1] in self.by_prefix:
                return self.by_prefix[name[:end + 1]]
            end = name.rfind('_', 0, end)
        return None


def _blocks(block: Any, address: str) -> Iterator[Tuple[str, Any]]:
    """A block and those in it, with their addresses; augmented convolutions as one."""
    yield address, block
    if not isinstance(block, AttentionAugmentedConv2D):
        for name, child in block._children.items():
            yield from _blocks(child, f'{address}.{name}' if address else name)

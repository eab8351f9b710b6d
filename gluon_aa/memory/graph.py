"""A training step as the graph that MXNet makes of it: forward pass and backward pass, operator by operator.

MXNet shows the whole graph of an executor only as text (`Executor.debug_str`). It has operators, inputs and attributes,
but neither shapes nor unique names, so both are worked out here: shapes of the forward pass are MXNet's own inference,
and a gradient has the shape of what it is the gradient of.
"""
import collections
import math
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from gluon_aa.compat import mx
from gluon_aa.errors import FailedError
from gluon_aa.training.recompute import bind

#: One output of a node: (the node's place in the graph, which output).
Entry = Tuple[int, int]
Shape = Tuple[int, ...]

#: The batch that the graph is made with; its operators do not depend on it.
_PILOT = 2

#: Numbers in an array of MXNet 1.9.1's wheels, which are built without INT64_TENSOR_SIZE.
LARGEST = 2 ** 31 - 1

_MIRROR = '_mirror'  # what MXNet appends to the name of a node that it computes again


class Node(NamedTuple):
    """An operator, or a variable where `op` is None."""

    op: Optional[str]
    name: str
    inputs: Tuple[Entry, ...]
    attributes: Dict[str, str]
    forward: Optional[int]  # of a gradient: the node whose gradient it is
    outputs: int

    def flag(self, name: str) -> bool:
        """An attribute that is true or false; MXNet writes it in several ways."""
        return self.attributes.get(name, 'False').lower() in ('true', '1')

    @property
    def recomputed(self) -> bool:
        return self.name.endswith(_MIRROR)


class Sizes(NamedTuple):
    """Of each entry at some batch size: its shape, and the bytes of one number."""

    shapes: Dict[Entry, Shape]
    items: Dict[Entry, int]

    def count(self, entry: Entry) -> int:
        return math.prod(self.shapes[entry])

    def bytes(self, entry: Entry) -> int:
        return self.count(entry) * self.items[entry]


class StepGraph:
    """Forward and backward pass of a `Classifier`.

    Args:
        symbol: as `gluon_aa.training.recompute.trace` makes it, outputs loss and number of correct predictions.
        trainable: names of the arguments whose gradients are wanted.
        image_shape: (C, H, W).
        tight: how buffers are to be planned; see `gluon_aa.training.recompute.bind`.

    Attributes:
        nodes: in the order in which they run. outputs: the entries that the graph gives, loss and correct first.
        forward_nodes: how many of the nodes, which come first, are the forward pass.
        planned_megabytes: what MXNet says that an executor needs at the batch that the graph is made with; it rounds
            down.
    """

    def __init__(self, symbol: Any, trainable: Set[str], image_shape: Shape, tight: bool) -> None:
        self.symbol, self.image_shape, self.tight = symbol, image_shape, tight
        try:
            text = _description(symbol, trainable, image_shape, tight)
        except mx.MXNetError as error:
            raise FailedError(f'MXNet cannot make this network for images of {image_shape[1]}x{image_shape[2]}, as an '
                              f'array would have more than {LARGEST} numbers: choose smaller images, or attention '
                              'backend tiled or native') from error
        found = re.search(r'Total (\d+) MB allocated', text)
        assert found is not None, 'MXNet ends its description of an executor with the plan'
        self.planned_megabytes = int(found.group(1))
        self.nodes, self.outputs = _Reader(*_parse(text), *self._known(_PILOT)).read()
        self.forward_nodes = 1 + max(node for node, _ in self.outputs[:2])

    def sizes(self, batch_size: int) -> Sizes:
        """Shapes and number formats of all entries at this batch size."""
        shapes, items = self._known(batch_size)
        sizes = Sizes({}, {})
        for index, node in enumerate(self.nodes):
            _infer(self.nodes, index, node, shapes, items, sizes)
        return sizes

    def counts(self) -> Dict[str, int]:
        """Numbers in each argument and auxiliary state, in the order in which the network uses them."""
        arguments, _, auxiliary = self.symbol.infer_shape(**self._inputs(1))
        shapes = [*zip(self.symbol.list_arguments(), arguments), *zip(self.symbol.list_auxiliary_states(), auxiliary)]
        return {name: math.prod(shape) for name, shape in shapes}

    def _inputs(self, batch_size: int) -> Dict[str, Shape]:
        return {'images': (batch_size, *self.image_shape), 'labels': (batch_size,)}

    def _known(self, batch_size: int) -> Tuple[Dict[Tuple[str, int], Shape], Dict[Tuple[str, int], int]]:
        """Shapes and bytes a number of what the forward pass shows, by (name, output)."""
        internals = self.symbol.get_internals()
        _, shapes, _ = internals.infer_shape(**self._inputs(batch_size))
        _, types, _ = internals.infer_type(images='uint8', labels='int32')
        by_shape: Dict[Tuple[str, int], Shape] = {}
        by_item: Dict[Tuple[str, int], int] = {}
        seen: Dict[str, int] = collections.Counter()
        for node, shape, dtype in zip(internals, shapes, types):
            key = node.name, seen[node.name]
            seen[node.name] += 1
            by_shape[key], by_item[key] = shape, np.dtype(dtype).itemsize
        return by_shape, by_item


def _description(symbol: Any, trainable: Set[str], image_shape: Shape, tight: bool) -> str:
    """What MXNet says of an executor. Its arrays are never written to, so that the system never gives them memory."""
    arguments, _, auxiliary = symbol.infer_shape(images=(_PILOT, *image_shape), labels=(_PILOT,))
    shapes = dict(zip(symbol.list_arguments(), arguments))
    kinds = {'images': 'uint8', 'labels': 'int32'}
    arrays = {name: mx.nd.empty(shape, dtype=kinds.get(name, 'float32')) for name, shape in shapes.items()}
    gradients = {name: mx.nd.empty(shape) for name, shape in shapes.items() if name in trainable}
    states = {name: mx.nd.empty(shape) for name, shape in zip(symbol.list_auxiliary_states(), auxiliary)}
    return str(bind(symbol, mx.cpu(), arrays, gradients, states, tight=tight).debug_str())


class _Line(NamedTuple):
    """A node as it is described."""

    op: Optional[str]
    name: str
    inputs: List[Tuple[str, int]]
    attributes: Dict[str, str]
    dependencies: List[str]


def _parse(text: str) -> Tuple[List[_Line], List[Tuple[str, int]]]:
    """The nodes, and the outputs as (name, number)."""
    lines: List[_Line] = []
    outputs: List[Tuple[str, int]] = []
    section = ''
    for line in text.splitlines():
        variable, operator = re.match(r'Variable:(.*)', line), re.match(r'Op:(\S+), Name=(.*)', line)
        if variable or operator:
            op, name = (None, variable.group(1)) if variable else operator.groups()  # type: ignore[union-attr]
            lines.append(_Line(op, name, [], {}, []))
            section = ''
        elif not line.startswith('\t'):
            section = line
        elif section == 'Attrs:':
            key, _, value = line.strip().partition('=')
            lines[-1].attributes[key] = value
        elif section == 'Control deps:':
            lines[-1].dependencies.append(line.partition('=')[2])
        else:
            found = re.search(r'=(.*)\((\d+)\)(?: version=\d+)?$', line)
            assert found is not None, f'an input or output as MXNet describes it: {line}'
            (outputs if section == 'Symbol Outputs:' else lines[-1].inputs).append((found.group(1),
                                                                                    int(found.group(2))))
    return lines, outputs


class _Reader:
    """Turns names into places.

    The sums of gradients all have one name. Their shapes tell most of them apart; of equal ones the latest is meant, as
    a gradient is used right after it is there.
    """

    def __init__(self, lines: Sequence[_Line], outputs: Sequence[Tuple[str, int]],
                 shapes: Dict[Tuple[str, int], Shape], items: Dict[Tuple[str, int], int]) -> None:
        self.lines, self.outputs = lines, outputs
        self.shapes, self.items = shapes, items
        self.places: Dict[str, List[int]] = collections.defaultdict(list)
        self.sizes = Sizes({}, {})
        self.nodes: List[Node] = []

    def read(self) -> Tuple[List[Node], List[Entry]]:
        for index, line in enumerate(self.lines):
            forward = self.places[line.dependencies[0]][-1] if line.dependencies else None
            inputs: List[Entry] = []
            for number, (name, output) in enumerate(line.inputs):
                inputs.append(self._entry(name, output, self._expected(line, number, forward, inputs)))
            self.nodes.append(Node(line.op, line.name, tuple(inputs), line.attributes, forward,
                                   self._count(line, forward)))
            _infer(self.nodes, index, self.nodes[index], self.shapes, self.items, self.sizes)
            self.places[line.name].append(index)
        return self.nodes, [(self.places[name][-1], number) for name, number in self.outputs]

    def _entry(self, name: str, output: int, shape: Optional[Shape]) -> Entry:
        places = self.places[name]
        if len(places) > 1 and shape is not None:
            places = [place for place in places
                      if math.prod(self.sizes.shapes[place, output]) == math.prod(shape)] or places
        return places[-1], output

    def _expected(self, line: _Line, number: int, forward: Optional[int], inputs: List[Entry]) -> Optional[Shape]:
        """The shape of an input, where it is known: a gradient's first are the gradients of its node's outputs."""
        if line.op == 'add_n' and inputs:
            return self.sizes.shapes[inputs[0]]
        if forward is None or line.op == 'batch_dot':
            return None
        gradients = self.nodes[forward].outputs if line.op in ('_backward_amp_multicast', '_split_v2_backward') else 1
        return self.sizes.shapes[forward, number] if number < gradients else None

    def _count(self, line: _Line, forward: Optional[int]) -> int:
        """How many outputs a node has, those that nobody can ask for included."""
        op, attributes = line.op, line.attributes
        if op in ('BatchNorm', '_backward_BatchNorm'):
            return 3
        if op in ('Dropout', '_backward_dot', '_backward_broadcast_add', '_backward_broadcast_sub',
                  '_backward_broadcast_mul', '_backward_broadcast_div', '_backward_add', 'gluon_aa_attention'):
            return 2
        if op == 'Pooling':  # the places of the maxima
            return 1 if attributes.get('pool_type', 'max') != 'max' else 2
        if op in ('_backward_Convolution', '_backward_FullyConnected'):
            return 2 if attributes.get('no_bias', 'False') in ('True', '1') else 3
        if op == '_backward_Concat':
            return int(attributes['num_args'])
        if op in ('amp_multicast', '_backward_amp_multicast'):
            return int(attributes['num_outputs'])
        if op == '_split_v2':
            return len(re.findall(r'\d+', attributes['indices']))
        if op == '_backward_gluon_aa_attention' and forward is not None:
            return len(self.nodes[forward].inputs)
        return 1


def _infer(nodes: Sequence[Node], index: int, node: Node, shapes: Dict[Tuple[str, int], Shape],
           items: Dict[Tuple[str, int], int], sizes: Sizes) -> None:
    """Put the sizes of a node's outputs into `sizes`, which has those of the nodes before it."""
    name = node.name[:-len(_MIRROR)] if node.recomputed else node.name
    for output in range(node.outputs):
        if (name, output) in shapes:
            shape, item = shapes[name, output], items[name, output]
        else:
            shape, item = _unseen(nodes, node, output, sizes, index)
        sizes.shapes[index, output], sizes.items[index, output] = shape, item


def _unseen(nodes: Sequence[Node], node: Node, output: int, sizes: Sizes, index: int) -> Tuple[Shape, int]:
    """Shape and bytes a number of an output that the forward pass does not show."""
    if node.op is None:  # the gradient that the backward pass begins with
        return (1,), 4
    if node.op == 'BatchNorm':  # mean and variance
        return (sizes.shapes[index, 0][1],), 4
    if node.op == 'gluon_aa_attention':  # the log-sum-exp
        batch, _, height, width = sizes.shapes[node.inputs[0]]
        return (batch, int(node.attributes['num_heads']), height * width), 4
    if node.op in ('Dropout', 'Pooling'):  # a mask; places
        return sizes.shapes[index, 0], sizes.items[index, 0]
    if node.op in ('_zeros', '_zeros_without_dtype'):
        return tuple(int(length) for length in re.findall(r'\d+', node.attributes.get('shape', ''))) or (1,), 4
    if node.op == 'batch_dot':  # a gradient that is itself a product
        left, right = (sizes.shapes[entry] for entry in node.inputs)
        rows, columns = left[2 if node.flag('transpose_a') else 1], right[1 if node.flag('transpose_b') else 2]
        return (left[0], rows, columns), sizes.items[node.inputs[0]]
    if node.forward is not None and output < len(nodes[node.forward].inputs):
        entry = nodes[node.forward].inputs[output]
        return sizes.shapes[entry], sizes.items[entry]
    if node.inputs:
        return sizes.shapes[node.inputs[0]], sizes.items[node.inputs[0]]
    raise FailedError(f'cannot tell the shape of {node.op} {node.name} in the graph of a step')

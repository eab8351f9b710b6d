"""MXNet's own assignment of buffers to a graph, done again here: which entry lies in which buffer, and how large it is.

MXNet plans hybridized networks without ever telling what it planned, and executors in whole megabytes. Its algorithm
(MXNet 1.9.1, src/nnvm/plan_memory.cc: PlanMemory, GraphAllocator) is small, so this is it: nodes in order, outputs that
take over an input's buffer where the operator allows it, free buffers within a factor of the wanted size. How it is
called for forward and backward pass of a hybridized network is src/imperative/cached_op.cc, for executors
src/executor/graph_executor.cc. Sizes agree with the megabytes that executors tell: tests/memory/test_buffers.py.
"""
import bisect
import collections
import dataclasses
from typing import Counter, Dict, FrozenSet, List, Sequence, Set, Tuple

from gluon_aa.memory.graph import Entry, Node, Sizes, StepGraph

#: Operators whose output may lie in the buffer of an input: (input, output, whether it is the same numbers). The same
#: numbers may share it even while others still read them. [1.9.1 source: FInplaceOption, FInplaceIdentity]
_SAME = ((0, 0, True),)
_FIRST = ((0, 0, False),)
_EITHER = ((0, 0, False), (1, 0, False))
_IN_PLACE: Dict[str, Tuple[Tuple[int, int, bool], ...]] = {
    **dict.fromkeys(('Reshape', '_backward_reshape', 'expand_dims', 'Flatten', 'BlockGrad', '_copy', '_backward_copy',
                     'Cast', '_backward_cast', 'amp_cast', '_backward_amp_cast', '_identity_with_attr_like_rhs'),
                    _SAME),
    **dict.fromkeys(('Activation', '_backward_Activation', 'softmax', 'log_softmax', '_mul_scalar',
                     '_backward_mul_scalar', '_plus_scalar', '_rminus_scalar', 'zeros_like', 'ones_like', 'Dropout',
                     '_backward_Dropout', 'add_n', 'negative'), _FIRST),
    **dict.fromkeys(('elemwise_add', 'elemwise_mul', '_grad_add', 'broadcast_add', 'broadcast_sub', 'broadcast_mul',
                     'broadcast_div', '_backward_softmax', '_backward_log_softmax'), _EITHER),
    '_backward_FullyConnected': ((1, 0, False),),
    '_backward_broadcast_add': ((0, 0, False), (0, 1, False)),
}

#: Inputs that are asked for their shape only. [FIgnoreInputs]
IGNORED: Dict[str, Tuple[int, ...]] = {
    'zeros_like': (0,), 'ones_like': (0,), '_contrib_arange_like': (0,), '_identity_with_attr_like_rhs': (1,),
    'broadcast_like': (1,)}

#: A buffer is reused for what is so many times smaller or larger; NNVM_EXEC_MATCH_RANGE, and what
#: gluon_aa/training/recompute.py sets it to.
_MATCH_RANGE, _TIGHT_MATCH_RANGE = 16, 2

_UNPLANNED, _EXTERNAL = -1, -2
_PLANNED_ITEM = 4  # bytes that MXNet counts for a number of any format while it looks for a buffer


def ignored(node: Node) -> Tuple[int, ...]:
    return IGNORED.get(node.op or '', ())


def _in_place(node: Node) -> Sequence[Tuple[int, int, bool]]:
    if node.op in ('amp_multicast', '_backward_amp_multicast'):
        return [(number, number, True) for number in range(node.outputs)]
    return _IN_PLACE.get(node.op or '', ())


@dataclasses.dataclass(frozen=True)
class Buffers:
    """A part of the graph in its buffers.

    `of` an entry: its buffer; `sizes` of the buffers in bytes; `taken_over`: the entries that lie in the buffer of one
    of their node's inputs.
    """

    of: Dict[Entry, int]
    sizes: Tuple[int, ...]
    taken_over: FrozenSet[Entry]

    @property
    def total(self) -> int:
        return sum(self.sizes)


class _Free:
    """Buffers to give out, by their planned size. Of equal ones the one that has been free longest comes first."""

    def __init__(self, match_range: int) -> None:
        self.match_range = match_range
        self.planned: List[int] = []
        self._free: List[Tuple[int, int, int]] = []  # planned size, when it was released, buffer
        self._releases = 0

    def request(self, size: int) -> int:
        """A free buffer that is at least as large, else the largest smaller one, which grows, else a new one."""
        first = bisect.bisect_left(self._free, (size // self.match_range,))
        middle = bisect.bisect_left(self._free, (size,))
        end = bisect.bisect_left(self._free, (size * self.match_range + 1,))
        if middle < end:
            _, _, buffer = self._free.pop(middle)
        elif middle > first:
            _, _, buffer = self._free.pop(middle - 1)
        else:
            self.planned.append(size)
            return len(self.planned) - 1
        self.planned[buffer] = max(self.planned[buffer], size)
        return buffer

    def release(self, buffer: int) -> None:
        self._releases += 1
        bisect.insort(self._free, (self.planned[buffer], self._releases, buffer))


def _assign(nodes: Sequence[Node], begin: int, end: int, sizes: Sizes, references: Counter[Entry],
            external: Dict[Entry, int], match_range: int) -> Buffers:
    """MXNet's AllocMemory over the nodes from `begin` to before `end`; what is `external` has its place already."""
    place = dict(external)
    uses: Counter[int] = collections.Counter()  # of each buffer, still to come
    free = _Free(match_range)
    taken_over: Set[Entry] = set()
    for index in range(begin, end):
        node = nodes[index]
        if node.op is None:
            continue
        skipped = ignored(node)
        reads = len(skipped) < len(node.inputs)
        taken = set()
        for number, output, same in _in_place(node):
            source, target = node.inputs[number], (index, output)
            buffer = place.get(source, _UNPLANNED)
            if number in taken or target in place or buffer < 0 or not references[target]:
                continue
            if not (same or (uses[buffer] == 1 and reads)) or sizes.count(source) != sizes.count(target) or \
                    sizes.items[source] != sizes.items[target]:
                continue
            taken.add(number)
            taken_over.add(target)
            place[target] = buffer
            uses[buffer] += references[target]
        wanted = [(sizes.count((index, output)), output) for output in range(node.outputs)
                  if (index, output) not in place]
        for count, output in sorted(wanted, reverse=True):
            buffer = free.request(count * _PLANNED_ITEM)
            place[index, output] = buffer
            uses[buffer] = references[index, output]
        for number, entry in enumerate(node.inputs):
            buffer = place.get(entry, _UNPLANNED)
            if number not in skipped and buffer >= 0:
                uses[buffer] -= 1
                if uses[buffer] == 0:
                    free.release(buffer)
        for output in range(node.outputs):
            buffer = place[index, output]
            if buffer >= 0 and uses[buffer] == 0:
                free.release(buffer)
    found = {entry: buffer for entry, buffer in place.items() if buffer >= 0}
    real = [0] * len(free.planned)
    for entry, buffer in found.items():
        real[buffer] = max(real[buffer], sizes.bytes(entry))
    return Buffers(found, tuple(real), frozenset(taken_over))


def _references(nodes: Sequence[Node], begin: int, end: int, count_ignored: bool) -> Counter[Entry]:
    """How often each entry is an input of the nodes from `begin` to before `end`."""
    found: Counter[Entry] = collections.Counter()
    for node in nodes[begin:end]:
        for number, entry in enumerate(node.inputs):
            if count_ignored or number not in ignored(node):
                found[entry] += 1
    return found


def _variables(nodes: Sequence[Node]) -> Dict[Entry, int]:
    return {(index, 0): _EXTERNAL for index, node in enumerate(nodes) if node.op is None}


def of_executor(graph: StepGraph, sizes: Sizes) -> Buffers:
    """Of an executor: one plan for both passes. Gradients of parameters have arrays of their own."""
    references = _references(graph.nodes, 0, len(graph.nodes), count_ignored=False)
    references.update(graph.outputs)
    external = {**_variables(graph.nodes), **dict.fromkeys(graph.outputs[2:], _EXTERNAL)}
    return _assign(graph.nodes, 0, len(graph.nodes), sizes, references, external,
                   _TIGHT_MATCH_RANGE if graph.tight else _MATCH_RANGE)


def of_forward(graph: StepGraph, sizes: Sizes, recording: bool) -> Buffers:
    """Of a hybridized network's forward pass, which keeps what the backward pass reads where it is `recording`."""
    end = graph.forward_nodes
    references = _references(graph.nodes, 0, end, count_ignored=True)
    references.update(graph.outputs[:2])
    if recording:
        kept = _references(graph.nodes, end, len(graph.nodes), count_ignored=True)
        # it keeps for the gradients of all inputs, also those that nobody asks for, as here the images' deviation
        kept.update((index, 0) for index, node in enumerate(graph.nodes[:end]) if node.op == 'broadcast_sub')
        references.update({entry: count for entry, count in kept.items() if entry[0] < end})
    external = {**_variables(graph.nodes), **dict.fromkeys(graph.outputs[:2], _EXTERNAL)}
    return _assign(graph.nodes, 0, end, sizes, references, external, _MATCH_RANGE)


def of_backward(graph: StepGraph, sizes: Sizes) -> Buffers:
    """Of a hybridized network's backward pass, beside the forward pass's buffers and the gradients of parameters."""
    begin = graph.forward_nodes
    references = _references(graph.nodes, begin, len(graph.nodes), count_ignored=True)
    references.update(graph.outputs)
    external = {(index, output): _EXTERNAL for index, node in enumerate(graph.nodes[:begin])
                for output in range(node.outputs)}
    external.update({**_variables(graph.nodes), **dict.fromkeys(graph.outputs, _EXTERNAL)})
    return _assign(graph.nodes, begin, len(graph.nodes), sizes, references, external, _MATCH_RANGE)


def kept(graph: StepGraph) -> Dict[Entry, int]:
    """Entries of the forward pass that the backward pass reads, and how often."""
    found = _references(graph.nodes, graph.forward_nodes, len(graph.nodes), count_ignored=False)
    return {entry: count for entry, count in found.items() if entry[0] < graph.forward_nodes}

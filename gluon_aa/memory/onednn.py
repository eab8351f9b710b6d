"""What MXNet takes on a CPU beside the planned buffers, because oneDNN lays arrays out in blocks of channels.

Layouts are followed through the graph as MXNet 1.9.1 and its oneDNN choose them (read from DNNL_VERBOSE=1 and from the
trace of MXNet's storage profiler, and compared with its peaks: bench/memory/). Three kinds of memory come of them:

- temporaries within operators: arrays brought into the layout that a convolution wants, its weights and their gradient,
  gradients that are written where an input lies. MXNet's TmpMemMgr adds up what operators ask for until the next one
  that begins with a workspace, and from the next step on gives that one twice the largest sum, touched or not;
- one array for reshapes, and for sums over broadcast axes;
- a plain copy of each blocked array that a plain operator reads, which stays with the operator.
"""
from typing import Callable, Dict, FrozenSet, List, NamedTuple, Tuple, Union

from gluon_aa import machine
from gluon_aa.memory.buffers import ignored
from gluon_aa.memory.graph import Entry, Node, Sizes, StepGraph

#: Channels a block, or PLAIN.
Layout = int
PLAIN: Layout = 0

_ANY_LAYOUT = ('BatchNorm', 'Activation', 'Pooling', '_copy', '_backward_copy', 'BlockGrad', 'elemwise_add', 'add_n',
               '_identity_with_attr_like_rhs', 'amp_cast', '_backward_amp_cast', '_backward_Concat')
#: oneDNN's, on arrays that are plain already.
_PLAIN = ('softmax', 'log_softmax', 'FullyConnected', '_backward_FullyConnected', 'Dropout', 'Concat')
#: Operators that begin with TmpMemMgr's workspace.
_BEGIN = frozenset((
    'Convolution', '_backward_Convolution', 'BatchNorm', '_backward_BatchNorm', '_backward_Activation', 'elemwise_add',
    'Concat', '_backward_Concat', '_backward_Pooling', 'FullyConnected', '_backward_FullyConnected'))


class Workspace(NamedTuple):
    """Bytes by where they come from; all of them are there at a step's peak."""

    temporaries: int  # TmpMemMgr's
    reshapes: int
    copies: int

    @property
    def total(self) -> int:
        return sum(self)


def block() -> Layout:
    """Channels a block on this CPU."""
    return 16 if machine.cpu_instructions()['avx512f'] else 8


def workspace(graph: StepGraph, sizes: Sizes, taken_over: FrozenSet[Entry], nodes: int, largest: Layout) -> Workspace:
    """Of the first `nodes` nodes of the graph.

    Args:
        taken_over: entries that are written where an input of their node lies.
        largest: channels a block, as `block` tells.
    """
    walk = _Walk(sizes, taken_over, largest)
    for index, node in enumerate(graph.nodes[:nodes]):
        walk.visit(index, node)
    return walk.found()


class _Walk:
    """Visits nodes in order, knowing the layouts of what came before."""

    def __init__(self, sizes: Sizes, taken_over: FrozenSet[Entry], largest: Layout) -> None:
        self.sizes, self.taken_over, self.largest = sizes, taken_over, largest
        self.layouts: Dict[Entry, Layout] = {}
        self.pending = self.largest_sum = 0  # asked for since an operator began with a workspace
        self.reshapes = self.copies = self.passing = 0

    def found(self) -> Workspace:
        return Workspace(2 * max(self.largest_sum, self.pending), self.reshapes, self.copies + self.passing)

    def visit(self, index: int, node: Node) -> None:
        if node.op is None:
            return
        if self._begins(node):
            self.largest_sum = max(self.largest_sum, self.pending)
            self.pending = 0
        visitor: Callable[[int, Node], Union[Layout, List[Layout]]] = getattr(
            self, f'_visit{"" if node.op.startswith("_") else "_"}{node.op}', self._visit_other)
        layouts = visitor(index, node)
        for output in range(node.outputs):
            self.layouts[index, output] = layouts[output] if isinstance(layouts, list) else layouts

    def _begins(self, node: Node) -> bool:
        if node.op == 'add_n':  # oneDNN's only where all arrays are
            return all(self._layout(node, number) != PLAIN for number in range(len(node.inputs)))
        return node.op in _BEGIN

    def _layout(self, node: Node, number: int) -> Layout:
        return self.layouts.get(node.inputs[number], PLAIN)

    def _bytes(self, node: Node, number: int) -> int:
        return self.sizes.bytes(node.inputs[number])

    def _wanted(self, node: Node, weight: int) -> Tuple[Layout, Layout]:
        """The layouts of a convolution's input and output: blocks that both numbers of channels fill."""
        channels, in_channels = self.sizes.shapes[node.inputs[weight]][:2]
        blocks = [size for size in (16, 8) if size <= self.largest and channels % size == 0]
        if in_channels < 4:  # images
            return PLAIN, blocks[0] if blocks else PLAIN
        both = [size for size in blocks if in_channels % size == 0]
        return (both[0], both[0]) if both else (PLAIN, PLAIN)

    def _visit_Convolution(self, index: int, node: Node) -> Layout:
        wanted, given = self._wanted(node, 1)
        self.pending += self._bytes(node, 0) if self._layout(node, 0) != wanted else 0
        self.pending += self._bytes(node, 1) if given != PLAIN else 0
        return given

    def _visit_backward_Convolution(self, index: int, node: Node) -> Layout:
        wanted, given = self._wanted(node, 2)  # inputs: gradient of the output, input, weight
        self.pending += self._bytes(node, 0) if self._layout(node, 0) != given else 0
        self.pending += self._bytes(node, 1) if self._layout(node, 1) != wanted else 0
        self.pending += 2 * self._bytes(node, 2) if given != PLAIN else 0  # and its gradient
        return wanted

    def _visit_backward_BatchNorm(self, index: int, node: Node) -> Layout:
        gradient = self._layout(node, 0)  # inputs: gradient of the output, mean, variance, input
        self.pending += self._bytes(node, 3) if self._layout(node, 3) != gradient else 0
        return gradient

    def _visit_backward_Activation(self, index: int, node: Node) -> Layout:
        gradient = self._layout(node, 0)
        self.pending += self._bytes(node, 1) if self._layout(node, 1) != gradient else 0
        self.pending += self._bytes(node, 0) if (index, 0) in self.taken_over else 0
        return gradient

    def _visit_backward_softmax(self, index: int, node: Node) -> Layout:
        self.pending += self._bytes(node, 0) if (index, 0) in self.taken_over else 0
        return PLAIN

    _visit_backward_log_softmax = _visit_backward_softmax

    def _visit_backward_Pooling(self, index: int, node: Node) -> Layout:
        return self._layout(node, len(node.inputs) - 1) or self._layout(node, 0)

    def _visit_Concat(self, index: int, node: Node) -> Layout:
        layouts = {self._layout(node, number) for number in range(len(node.inputs))}
        return layouts.pop() if len(layouts) == 1 else PLAIN

    def _visit_amp_multicast(self, index: int, node: Node) -> List[Layout]:
        return [self._layout(node, number) for number in range(node.outputs)]

    _visit_backward_amp_multicast = _visit_amp_multicast

    def _visit_Reshape(self, index: int, node: Node) -> Layout:
        if self._layout(node, 0) != PLAIN:
            self.reshapes = max(self.reshapes, self._bytes(node, 0))
        return PLAIN

    _visit_expand_dims = _visit_Reshape

    def _visit_backward_broadcast_add(self, index: int, node: Node) -> Layout:
        self.reshapes = max(self.reshapes, self._bytes(node, 0))
        return PLAIN

    def _visit_backward_reshape(self, index: int, node: Node) -> Layout:
        if self._layout(node, 0) != PLAIN:  # of its input and of its output; and a third while the second is made
            self.copies += 2 * self._bytes(node, 0)
            self.passing = max(self.passing, self._bytes(node, 0))
        return PLAIN

    def _visit_other(self, index: int, node: Node) -> Layout:
        if node.op in _ANY_LAYOUT:
            return self._layout(node, 0)
        if node.op not in _PLAIN:
            self.copies += sum(self._bytes(node, number) for number in range(len(node.inputs))
                               if number not in ignored(node) and self._layout(node, number) != PLAIN)
        return PLAIN

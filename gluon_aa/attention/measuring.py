"""Time and memory of the operator alone, measured: each size and backend in processes of its own.

Time and memory are measured in different processes, because MXNet's storage profiler slows what it watches and never
stops. The operator is hybridized with static memory; its gradients are those of all its inputs.
"""
import contextlib
import pathlib
import statistics
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Type

import numpy as np

from gluon_aa import compat, files, isolation, machine
from gluon_aa.attention import relative_attention
from gluon_aa.attention.cost import BACKWARD_OVER_FORWARD, attention_flops
from gluon_aa.compat import mx
from gluon_aa.errors import FailedError, UsageError
from gluon_aa.memory import meter

#: `forward` is inference (outside autograd.record); `backward` begins when a recorded forward pass is done.
PASSES = ('forward', 'backward', 'forward+backward')

#: The maps of aa_wrn28_10 -> channels of the values there; each has 160 key channels and 8 heads.
VALUE_CHANNELS = {(32, 32): 16, (16, 16): 32, (8, 8): 64}
DEFAULT_VALUE_CHANNELS = 32  # of any other map

#: The default batch has about so many pixels on every map: 8 images of 32x32, 128 of 8x8.
PIXELS_A_BATCH = 8192

#: Runs that the peak is taken over: memory that is kept from one to the next is there from the second.
MEMORY_RUNS = 3

nn: Any = mx.gluon.nn

Row = Dict[str, Any]


class Case(NamedTuple):
    """One operator: its sizes and its backend. Channels are those of all heads together."""

    height: int
    width: int
    batch_size: int
    num_heads: int
    key_channels: int
    value_channels: int
    relative: bool
    attention_backend: str
    tile: Optional[int] = None

    def operator_arguments(self) -> Row:
        """Those of `relative_attention` beside the arrays."""
        arguments = {name: value for name, value in self._asdict().items() if name not in ('batch_size', 'relative')}
        if self.tile is None:
            del arguments['tile']
        return arguments

    def flops(self, pass_: str) -> int:
        """Necessary FLOPs (2 x multiply-adds) of a pass over the batch; see gluon_aa/attention/cost.py."""
        forward = self.batch_size * attention_flops(
            height=self.height, width=self.width, key_channels=self.key_channels, value_channels=self.value_channels,
            relative=self.relative)
        return forward * {'forward': 1, 'backward': BACKWARD_OVER_FORWARD,
                          'forward+backward': 1 + BACKWARD_OVER_FORWARD}[pass_]


class Protocol(NamedTuple):
    """How a case is measured: each pass `repeats` times, one by one, after `warm_up` times."""

    warm_up: int = 3
    repeats: int = 10
    passes: Tuple[str, ...] = PASSES
    time_limit: float = 600.0  # seconds a process


def cases(map_sizes: Sequence[Tuple[int, int]], batch_sizes: Sequence[int], value_channels: Sequence[int],
          backends: Sequence[str], *, num_heads: int, key_channels: int, relative: bool,
          tile: Optional[int] = None) -> List[Case]:
    """Every size with every backend.

    Args:
        map_sizes: (H, W) in pixels; none for those of aa_wrn28_10.
        batch_sizes, value_channels: one for all maps or one for each; none for the defaults above.

    Raises:
        UsageError: lists of other lengths, sizes below 1, or what `relative_attention` refuses.
    """
    sizes = list(map_sizes) or list(VALUE_CHANNELS)
    batches = _for_each_map('batch sizes', batch_sizes, sizes,
                            lambda size: max(1, PIXELS_A_BATCH // (size[0] * size[1])))
    values = _for_each_map('value channels', value_channels, sizes,
                           lambda size: VALUE_CHANNELS.get(size, DEFAULT_VALUE_CHANNELS))
    found = [Case(*size, batch, num_heads, key_channels, value, relative, backend, tile)
             for size, batch, value in zip(sizes, batches, values) for backend in backends]
    for case in found:
        _check(case)
    return found


def _for_each_map(what: str, given: Sequence[int], sizes: Sequence[Tuple[int, int]],
                  default: Callable[[Tuple[int, int]], int]) -> List[int]:
    if not given:
        return [default(size) for size in sizes]
    if len(given) not in (1, len(sizes)):
        raise UsageError(f'{len(given)} {what} for {len(sizes)} maps: give one for all, or one for each')
    return list(given) * (len(sizes) if len(given) == 1 else 1)


def _check(case: Case) -> None:
    """Refuse what cannot be computed before anything is measured."""
    for name in ('batch_size', 'num_heads', 'key_channels', 'value_channels'):
        if getattr(case, name) < 1:
            raise UsageError(f'{name}={getattr(case, name)} must be at least 1')
    variables = [mx.sym.var(name) for name in ('qkv', 'rel_h', 'rel_w')]
    with contextlib.suppress(FailedError):  # a backend that cannot run here becomes a row that says so
        relative_attention(mx.sym, *(variables if case.relative else [variables[0], None, None]),
                           **case.operator_arguments())


def measure_all(chosen: Sequence[Case], protocol: Protocol) -> Iterator[Row]:
    """A row for each pass of each case, as they come; a case that fails is one row with `error` for its figures.

    Bytes are None where they were not measured: a backward pass alone has no memory of its own.
    """
    for case in chosen:
        about = {**case._asdict(), 'source': 'measured'}
        try:
            times = _ask('time_passes', case, protocol, passes=protocol.passes, warm_up=protocol.warm_up,
                         repeats=protocol.repeats)
            extra = {pass_: _ask('extra_bytes', case, protocol, pass_=pass_)
                     for pass_ in protocol.passes if pass_ != 'backward'}
        except FailedError as error:
            yield {**about, 'pass': None, 'error': str(error)}
            continue
        for pass_ in protocol.passes:
            seconds = times['seconds'][pass_]
            flops = case.flops(pass_)
            yield {**about, 'pass': pass_, 'threads': times['threads'], 'seconds': statistics.median(seconds),
                   'fastest': min(seconds), 'slowest': max(seconds), 'repeats': seconds, 'flops': flops,
                   'flops_per_second': flops / statistics.median(seconds),
                   **extra.get(pass_, {'storage_bytes': None, 'resident_bytes': None})}


def _ask(function: str, case: Case, protocol: Protocol, **arguments: Any) -> Row:
    # by default MXNet keeps four copies of the largest workspace, in turn, and peaks depend on whose turn it is
    environment = {'MXNET_CPU_TEMP_COPY': '1'} if function == 'extra_bytes' else {}
    return dict(isolation.call(f'{__name__}:{function}', {'case': case._asdict(), **arguments}, protocol.time_limit,
                               environment))


def time_passes(case: Row, passes: Sequence[str], warm_up: int, repeats: int) -> Row:
    """Seconds of each repeat of each pass, in this process."""
    operator = Running(Case(**case))
    seconds = {}
    for pass_ in passes:
        for _ in range(warm_up):
            operator.run(pass_)
        seconds[pass_] = [operator.run(pass_) for _ in range(repeats)]
    return {'seconds': seconds, 'threads': compat.THREADS.number}


def extra_bytes(case: Row, pass_: str) -> Row:
    """The peak of a pass beyond inputs, output and their gradients, in this process, which must be a new one.

    As in a network, queries, keys and values are not the graph's own input: they are made in it, so that a copy of them
    and one of their gradients are there whatever the backend, and are not extra. The operator runs on a map of 2x2
    first, so that what libraries allocate once, whatever the size, does not count.
    """
    meter.start()
    meter.return_freed_memory()
    wanted = Case(**case)
    Running(wanted._replace(height=2, width=2, batch_size=1), _InNetwork).run(pass_)
    operator = Running(wanted, _InNetwork)
    known = operator.output_bytes + operator.input_bytes * (1 if pass_ == 'forward' else 2)
    with meter.storage(operator.device) as allocated, meter.resident() as held:
        for _ in range(MEMORY_RUNS):
            operator.run(pass_)
    return {'storage_bytes': allocated.growth - known, 'resident_bytes': held.growth - known}


class _Operator(nn.HybridBlock):
    """`relative_attention` as a block."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.arguments = case.operator_arguments()

    def hybrid_forward(self, F: Any, qkv: Any, rel_h: Any = None, rel_w: Any = None) -> Any:
        return relative_attention(F, qkv, rel_h, rel_w, **self.arguments)


class _InNetwork(_Operator):
    """The same after something that makes its input."""

    def hybrid_forward(self, F: Any, qkv: Any, rel_h: Any = None, rel_w: Any = None) -> Any:
        return super().hybrid_forward(F, 1 * qkv, rel_h, rel_w)


class Running:
    """The operator of a case with its arrays: standard normal queries, keys and values, tables as new layers have."""

    def __init__(self, case: Case, operator: Type[_Operator] = _Operator) -> None:
        self.device = mx.cpu()
        self.block = operator(case)
        self.block.hybridize(static_alloc=True, static_shape=True)
        rng, depth = np.random.default_rng(0), case.key_channels // case.num_heads
        shape = case.batch_size, 2 * case.key_channels + case.value_channels, case.height, case.width
        arrays = [rng.standard_normal(shape, np.float32)]
        if case.relative:
            arrays += [rng.standard_normal((2 * length - 1, depth), np.float32) * np.float32(depth ** -0.5)
                       for length in (case.height, case.width)]
        self.inputs = [mx.nd.array(array, ctx=self.device) for array in arrays]
        for array in self.inputs:
            array.attach_grad()
        output = case.batch_size, case.value_channels, case.height, case.width
        self.head_gradient = mx.nd.array(rng.standard_normal(output, np.float32), ctx=self.device)
        self.input_bytes, self.output_bytes = 4 * self.inputs[0].size, 4 * self.head_gradient.size
        mx.nd.waitall()

    def run(self, pass_: str) -> float:
        """Seconds of one pass."""
        start = time.perf_counter()
        if pass_ == 'forward':
            self.block(*self.inputs)
        else:
            with mx.autograd.record():
                output = self.block(*self.inputs)
            if pass_ == 'backward':
                mx.nd.waitall()
                start = time.perf_counter()
            output.backward(self.head_gradient)
        mx.nd.waitall()
        return time.perf_counter() - start


def conditions(protocol: Protocol) -> Row:
    """What the figures depend on beside the cases."""
    return {'cpu': machine.cpu_model(), 'physical_cores': machine.physical_cores(),
            'protocol': {'warm_up': protocol.warm_up, 'repeats': protocol.repeats, 'passes': list(protocol.passes)}}


def size_label(row: Row) -> str:
    """The size of a row in a few words."""
    return f'{row["height"]}x{row["width"]}, B={row["batch_size"]}'


def label(row: Row) -> str:
    """The case of a row in a few words."""
    return f'{size_label(row)}, {row["attention_backend"]}'


#: What is drawn: title -> (key, factor, pass).
_PANELS = {
    'Forward, ms': ('seconds', 1e3, 'forward'),
    'Forward + backward, ms': ('seconds', 1e3, 'forward+backward'),
    'Extra memory of forward + backward, MB': ('storage_bytes', 1e-6, 'forward+backward'),
}


def draw(rows: Sequence[Row], path: pathlib.Path, title: str) -> None:
    """A PNG: times and memory on logarithmic axes, a bar for each size and backend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    panels = {name: panel for name, panel in _PANELS.items() if any(row['pass'] == panel[2] for row in rows)}
    labels = list(dict.fromkeys(label(row) for row in rows))[::-1]  # the first on top
    backends = list(dict.fromkeys(row['attention_backend'] for row in rows))
    figure = Figure(figsize=(2.5 + 4 * max(1, len(panels)), 1.6 + 0.3 * len(labels)), layout='constrained')
    FigureCanvasAgg(figure)
    places = figure.subplots(1, max(1, len(panels)), squeeze=False, sharey=True)[0]
    for axes, (name, (key, factor, pass_)) in zip(places, panels.items()):
        shown = [row for row in rows if row['pass'] == pass_]
        values = [factor * max(row[key], 0) for row in shown]
        bars = axes.barh([labels.index(label(row)) for row in shown], values,
                         color=[f'C{backends.index(row["attention_backend"])}' for row in shown])
        axes.bar_label(bars, [f'{value:,.0f}' if value >= 100 else f'{value:.3g}' for value in values], padding=3)
        axes.set(title=name, xscale='log' if min(values) > 0 else 'symlog', yticks=range(len(labels)))
        axes.set_yticklabels(labels)
        axes.set_xlim(left=10 ** np.floor(np.log10(min(values))) if min(values) > 0 else 0, right=8 * max(values) or 1)
        axes.grid(axis='x', alpha=0.3)
        axes.set_axisbelow(True)
    figure.suptitle(title, wrap=True)
    with files.replacing(path) as temporary:
        figure.savefig(str(temporary), dpi=120, format='png')

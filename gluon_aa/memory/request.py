"""What a sweep of memory is asked for: networks by augmented depth, batch sizes, ways to compute, devices."""
import dataclasses
import itertools
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from gluon_aa import machine
from gluon_aa.attention import BACKENDS, DEFAULT_TILE, native
from gluon_aa.errors import FailedError, UsageError, unknown
from gluon_aa.memory.devices import DEVICES, Device, find_device
from gluon_aa.models.registry import GLUONCV_PREFIX, eligible_layers
from gluon_aa.training.config import DTYPES, MEMORY_MODES, load, parse_size

#: How a figure was found: from the plan, from steps metered at tiny batches, or by running the very step.
SOURCES = ('modelled', 'extrapolated', 'measured')

ALL = 'all'

BATCH_SIZES = (8, 16, 32, 64, 96, 128, 192, 256)

#: The GPUs that MXNet sees here; what they have is asked of their driver.
PRESENT_GPU = 'gpu'

Row = Dict[str, Any]


class Way(NamedTuple):
    """A way to compute a network: keys of the configuration. None where a key has no meaning."""

    attention_backend: Optional[str]
    memory_mode: str
    recompute: Optional[str] = None
    tile: Optional[int] = None

    def __str__(self) -> str:
        name = self.attention_backend or 'plain'
        tile = f' of {self.tile}' if self.tile not in (None, DEFAULT_TILE) else ''
        again = {None: '', 'attention': ' + recompute', 'blocks': ' + recompute of blocks'}[self.recompute]
        return f'{name}{tile}{again}'


@dataclasses.dataclass(frozen=True)
class Request:
    """A sweep: every combination of its lists. `ways` that have no kernel on a device are left out there."""

    net: str
    layers: int  # that can be augmented
    depths: Tuple[int, ...]  # of them, counted from the output
    batch_sizes: Tuple[int, ...]  # over all devices
    ways: Tuple[Way, ...]
    dtypes: Tuple[str, ...]
    devices: Tuple[str, ...]
    memory_budget: Optional[int]
    gpus: Tuple[int, ...]
    cpus: int
    input_size: str
    classes: int
    source: str
    inference: bool
    all_cells: bool

    @property
    def image_shape(self) -> Tuple[int, int, int]:
        """(C, H, W)."""
        return (3, *parse_size(self.input_size))

    def values(self) -> Row:
        """As JSON has it; `from_values` reads it back."""
        return {key: _listed(value) for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_values(cls, values: Row) -> 'Request':
        """The request that `values` came from."""
        read: Row = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**{**read, 'ways': tuple(Way(*way) for way in values['ways'])})

    def lines(self, devices: Sequence[Device]) -> List['Line']:
        """Lines of cells, in the order of tables."""
        return [Line(self, device, dtype, way, depth)
                for device, dtype, way, depth in itertools.product(devices, self.dtypes, self.ways, self.depths)
                if not (device.gpu and way.attention_backend == 'native')]

    def command(self) -> str:
        """What asks for this sweep on a command line."""
        ways = {name: list(dict.fromkeys(getattr(way, name) for way in self.ways if getattr(way, name) is not None))
                for name in Way._fields}
        modes = ['auto'] if all(way.memory_mode == _mode(way.attention_backend, 'auto') for way in self.ways) else (
            ways['memory_mode'])
        flags: Dict[str, Any] = {
            'net': (self.net,), 'device': self.devices,
            'memory-budget': [] if self.memory_budget is None else [self.memory_budget],
            'batch-size': self.batch_sizes,
            'depth': [ALL] if self.depths == tuple(range(self.layers + 1)) else self.depths,
            'attention-backend': ways['attention_backend'],
            'memory-mode': modes, 'recompute': [] if ways['recompute'] == ['attention'] else ways['recompute'],
            'tile': ways['tile'], 'dtype': self.dtypes, 'gpus': self.gpus,
            'cpus': [self.cpus] if self.cpus > 1 else [], 'input-size': [self.input_size], 'classes': [self.classes],
            'source': [self.source]}
        words = [f'--{flag} {",".join(map(str, values))}' for flag, values in flags.items() if values]
        words += [f'--{flag}' for flag, on in (('inference', self.inference), ('all-cells', self.all_cells)) if on]
        return ' '.join(['gluon-aa bench memory', *words])

    def found_devices(self) -> List[Device]:
        """The devices with the memory that decides; a CPU's own is what is free now."""
        return [_with_memory(_present_gpu(self.gpus) if name == PRESENT_GPU else find_device(name), self.memory_budget,
                             self.cpus) for name in self.devices]


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _with_memory(device: Device, budget: Optional[int], cpus: int) -> Device:
    """The device with its budget; CPU devices share what is free."""
    if budget is None and device.memory is None:
        free = machine.available_memory()
        if free is None:
            raise FailedError('this system does not tell how much memory is free: say --memory-budget, such as 8GiB')
        budget = free // cpus
    return device if budget is None else device._replace(memory=budget)


def _present_gpu(gpus: Sequence[int]) -> Device:
    from gluon_aa.compat import mx
    from gluon_aa.training.devices import resolve_devices
    first = resolve_devices(gpus or (0,))[0]
    total = mx.context.gpu_memory_info(first.device_id)[1]
    return Device(PRESENT_GPU, f'GPU {first.device_id}', True, int(total))


class Line(NamedTuple):
    """Cells that differ in their batch size only."""

    request: Request
    device: Device
    dtype: str
    way: Way
    depth: int

    @property
    def places(self) -> int:
        """How many devices share a batch."""
        return len(self.request.gpus) or 1 if self.device.gpu else self.request.cpus

    @property
    def placement(self) -> Optional[str]:
        return f'last:{self.depth}' if self.request.layers else None

    def about(self) -> Row:
        """What a cell says of itself beside its figures."""
        return {'net': self.request.net, 'depth': self.depth, 'placement': self.placement, **self.way._asdict(),
                'dtype': self.dtype, 'device': self.device.name, 'devices': self.places,
                'source': self.request.source, 'budget_bytes': self.device.usable}

    def config(self, batch_size: int) -> Row:
        """Values of the configuration that trains a cell."""
        keys = {**self.way._asdict(), 'net': self.request.net, 'placement': self.placement, 'dtype': self.dtype,
                'dataset': 'synthetic', 'input_size': self.request.input_size, 'batch_size': batch_size,
                'gpus': self.request.gpus or (0,) if self.device.gpu else None,
                'cpus': None if self.device.gpu else self.places}
        return load(None, {key: value for key, value in keys.items() if value is not None}).values()


def parse_depths(text: str) -> Union[str, Tuple[int, ...]]:
    """'all', or the numbers of 0,1,4-6.

    Raises:
        UsageError: anything else.
    """
    if text.strip().lower() == ALL:
        return ALL
    found: List[int] = []
    for item in filter(None, (item.strip() for item in text.split(','))):
        first, dash, last = item.partition('-')
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f'--depth {text}: {item!r} is no depth: say all, numbers such as 0,4, or a range such as '
                             '0-12')
        numbers = range(int(first), int(last or first) + 1)
        if not numbers:
            raise UsageError(f'--depth {text}: {item} is no range: it ends before it begins')
        found += numbers[:10 ** 4]
    if len(set(found)) < len(found):
        raise UsageError(f'--depth {text} names a depth twice')
    return tuple(sorted(found))


def make(*, net: str = 'aa_wrn28_10', depths: Union[str, Sequence[int]] = ALL,
         batch_sizes: Sequence[int] = BATCH_SIZES, backends: Optional[Sequence[str]] = None,
         memory_modes: Sequence[str] = ('auto',), recompute: str = 'attention', tile: Optional[int] = None,
         dtypes: Sequence[str] = ('float32',), devices: Optional[Sequence[str]] = None,
         memory_budget: Optional[int] = None, gpus: Sequence[int] = (), cpus: Optional[int] = None,
         input_size: str = '32x32', classes: int = 10, source: str = 'modelled', inference: bool = False,
         all_cells: bool = False) -> Request:
    """The request for a sweep, checked. The defaults are those of the command line.

    Args:
        depths: `ALL`, or numbers.
        backends: None for all that the devices have.
        memory_modes: `auto` stands for recompute with the attention backend tiled, and for speed with the others.
        devices: None for the GPUs here, or else the CPU.

    Raises:
        UsageError: whatever cannot be swept; says what could.
    """
    parse_size(input_size)
    names = (_default_device(gpus, cpus),) if devices is None else tuple(devices)
    for flag, values in (('--batch-size', batch_sizes), ('--dtype', dtypes), ('--memory-mode', memory_modes),
                         ('--depth', depths), ('--device', names), ('--attention-backend', backends)):
        if values is not None and not values:
            raise UsageError(f'there is no cell to sweep: {flag} names nothing')
    _check_lists(batch_sizes, dtypes, memory_modes)
    found = [_device(name) for name in names]
    _check_devices(found, dtypes, gpus, cpus, source, recompute)
    places = max(len(gpus), cpus or 1)
    if min(batch_sizes) < places:
        raise UsageError(f'--batch-size {min(batch_sizes)} must be at least the number of devices that share a batch, '
                         f'{places}')
    if all_cells and source != 'measured':
        raise UsageError(f'--all-cells is for --measure: {source} sweeps have every cell anyway')
    layers = eligible_layers(net, classes, input_size=parse_size(input_size))
    return Request(net, layers, _depths(net, layers, depths), tuple(sorted(batch_sizes)),
                   tuple(_ways(net, layers, found, backends or (), memory_modes, recompute, tile)), tuple(dtypes),
                   names, memory_budget, tuple(gpus), cpus or 1, input_size, classes, source, inference, all_cells)


def _default_device(gpus: Sequence[int], cpus: Optional[int]) -> str:
    from gluon_aa import compat
    return PRESENT_GPU if gpus or (cpus is None and compat.sees_gpus()) else 'cpu'


def _device(name: str) -> Device:
    if name == PRESENT_GPU:
        return Device(PRESENT_GPU, 'GPU', True)
    if name not in DEVICES:
        raise unknown('device', name, (*DEVICES, PRESENT_GPU))
    return find_device(name)


def _check_lists(batch_sizes: Sequence[int], dtypes: Sequence[str], memory_modes: Sequence[str]) -> None:
    if min(batch_sizes) < 1:
        raise UsageError(f'--batch-size {min(batch_sizes)} must be at least 1')
    for kind, names, known in (('dtype', dtypes, DTYPES), ('memory mode', memory_modes, MEMORY_MODES)):
        for name in names:
            if name not in known:
                raise unknown(kind, name, known)


def _check_devices(devices: Sequence[Device], dtypes: Sequence[str], gpus: Sequence[int], cpus: Optional[int],
                   source: str, recompute: str) -> None:
    if cpus is not None and cpus < 1:
        raise UsageError(f'--cpus {cpus} must be at least 1')
    if len({device.name for device in devices}) < len(devices):
        raise UsageError('--device names one twice')
    for device in devices:
        if device.gpu and cpus is not None:
            raise UsageError(f'--cpus is for --device cpu: say which of {device.name} share a batch with --gpus 0,1')
        if gpus and not device.gpu:
            raise UsageError('--gpus is for GPUs: with --device cpu say --cpus 2, or name a GPU')
        if source == 'measured' and device.name not in ('cpu', PRESENT_GPU):
            raise UsageError(f'--measure runs on what is here, --device cpu or {PRESENT_GPU}: leave it out for '
                             f'{device.name}, which can be modelled anywhere')
        if device.gpu and recompute == 'blocks':
            raise UsageError('--recompute blocks computes batch norm twice, which is only known to be right on CPUs: '
                             f'on {device.name} choose --recompute attention')
        if 'bfloat16' in dtypes and device.gpu:
            raise UsageError(f'bfloat16 is for CPUs: on {device.name} choose --dtype float16 or float32')
        if 'float16' in dtypes and not device.gpu:
            raise UsageError('MXNet has no float16 on CPUs: choose --dtype float32 or bfloat16, or name a GPU')


def _depths(net: str, layers: int, asked: Union[str, Sequence[int]]) -> Tuple[int, ...]:
    if asked == ALL:
        return tuple(range(layers + 1))
    beyond = [int(depth) for depth in asked if int(depth) > layers]
    if beyond and not layers:
        ours = '' if net.startswith(GLUONCV_PREFIX) else f', or take aa_{net}'
        raise UsageError(f'--depth {beyond[0]}: {net} has no layer to augment: leave --depth out{ours}')
    if beyond:
        raise UsageError(f'--depth {beyond[0]}: {net} has {layers} convolutions that can be augmented, so the depth is '
                         f'0 to {layers}')
    return tuple(int(depth) for depth in asked)


def _ways(net: str, layers: int, devices: Sequence[Device], backends: Sequence[str], memory_modes: Sequence[str],
          recompute: str, tile: Optional[int]) -> Iterator[Way]:
    names: List[Optional[str]] = list(_backends(net, layers, devices, backends))
    if tile is not None and tile < 1:
        raise UsageError(f'--tile {tile} must be at least 1 query')
    if tile is not None and 'tiled' not in names:
        raise UsageError('--tile is for the attention backend tiled: name it, or leave out --tile')
    if not layers:
        names = [None]
    modes = {name: list(dict.fromkeys(_mode(name, mode) for mode in memory_modes)) for name in names}
    if recompute != 'attention' and not any('recompute' in each for each in modes.values()):
        raise UsageError(f'--recompute {recompute} is for --memory-mode recompute: name that too')
    for name in names:
        for mode in modes[name]:
            yield Way(name, mode, recompute if mode == 'recompute' else None,
                      (tile or DEFAULT_TILE) if name == 'tiled' else None)


def _mode(backend: Optional[str], asked: str) -> str:
    return asked if asked != 'auto' else 'recompute' if backend == 'tiled' else 'speed'


def _backends(net: str, layers: int, devices: Sequence[Device], asked: Sequence[str]) -> Sequence[str]:
    if asked and not layers:
        raise UsageError(f'{net} has no attention: leave out --attention-backend')
    for name in asked:
        if name not in BACKENDS:
            raise unknown('attention backend', name, BACKENDS)
    gpus = [device.name for device in devices if device.gpu]
    if 'native' in asked and gpus:
        raise UsageError(f'attention backend native has no GPU kernel: leave it out, or leave out {", ".join(gpus)}')
    if asked or not layers:
        return asked
    has_native = len(gpus) < len(devices) and native.unavailable() is None
    return [name for name in BACKENDS if name != 'native' or has_native]

"""The ways to compute one network on a device, and what fits each of them: planned, no step is run."""
import copy
import dataclasses
from typing import Any, Callable, Dict, List, Optional, Sequence

from gluon_aa.attention import DEFAULT_TILE, native
from gluon_aa.errors import UsageError
from gluon_aa.memory.devices import Device
from gluon_aa.memory.plan import Plan, Planner
from gluon_aa.models.registry import GLUONCV_PREFIX
from gluon_aa.training import automatic
from gluon_aa.training.config import TrainConfig

#: No batch larger than this is asked for: it is more than data sets of small images hold.
LARGEST = 2 ** 16


def number_of_devices(config: TrainConfig) -> int:
    return len(config.gpus) or config.cpus


def ways(config: TrainConfig, augmented: bool) -> List[TrainConfig]:
    """`config` in every way that its devices can compute it.

    Memory mode recompute without tiles has nothing to compute again in attention; so it stands here for plain networks
    only, whose buffers it packs tighter.
    """
    found: List[Dict[str, Any]] = []
    on_cpus = not config.gpus
    backends = ['folded', 'reference'] if augmented else ['folded']
    if augmented and on_cpus and native.unavailable() is None:
        backends.insert(0, 'native')
    found += [{'attention_backend': backend, 'memory_mode': 'speed'} for backend in backends]
    if augmented:
        found += [{'attention_backend': 'tiled', 'tile': tile, 'memory_mode': 'recompute'} for tile in automatic.TILES]
    else:
        found.append({'attention_backend': 'folded', 'memory_mode': 'recompute'})
    if on_cpus:
        found.append({'attention_backend': backends[0], 'memory_mode': 'recompute', 'recompute': 'blocks'})
    return [with_keys(config, {'recompute': 'attention', **keys}) for keys in found]


def with_keys(config: TrainConfig, keys: Dict[str, Any]) -> TrainConfig:
    """`config` with `keys`, but for attention's where the network is gluoncv's, which takes none."""
    if config.net.startswith(GLUONCV_PREFIX):
        keys = {key: value for key, value in keys.items() if key not in ('attention_backend', 'tile')}
    return dataclasses.replace(config, **keys)


def title(config: TrainConfig, augmented: bool) -> str:
    """A way, for people: 'tiled 256, recompute'."""
    mode = config.memory_mode
    if mode == 'recompute' and config.recompute == 'blocks':
        mode = 'recompute blocks'
    if not augmented:
        return mode
    tile = f' {config.tile or DEFAULT_TILE}' if config.attention_backend == 'tiled' else ''
    return f'{config.attention_backend}{tile}' + ('' if mode == 'speed' else f', {mode}')


class Variants:
    """Plans of one network's variants for one device, each made once.

    Args:
        image_shape: (C, H, W).
        device: its memory is looked up once. Several CPU devices share the machine's.
        devices: how many share the work.
    """

    def __init__(self, classes: int, image_shape: Sequence[int], device: Device, devices: int = 1) -> None:
        channels, height, width = image_shape
        self.classes, self.image_shape = classes, (channels, height, width)
        if device.memory is None:
            device = device._replace(memory=device.usable // devices)
        self.device = device
        self._planners: Dict[TrainConfig, Planner] = {}  # by configurations of one batch size
        self._made: Dict[TrainConfig, Plan] = {}
        self._depth: Optional[int] = None  # the last one found: other ways have similar ones, and graphs take long

    @property
    def budget(self) -> int:
        """Bytes that a plan and its uncertainty may come to."""
        return self.device.usable

    def plan(self, config: TrainConfig) -> Plan:
        """Of a configuration whose choices are made, at its batch size."""
        if config not in self._made:
            self._made[config] = self._planner(dataclasses.replace(config, batch_size=1)).plan(config.batch_size)
        return self._made[config]

    def _planner(self, network: TrainConfig) -> Planner:
        """Of a configuration of one batch size; in however many micro-batches, the graph is the same."""
        whole = dataclasses.replace(network, accumulate=1)
        if whole not in self._planners:
            self._planners[whole] = Planner(whole, self.classes, self.image_shape, self.device)
        planner = copy.copy(self._planners[whole])
        planner.config = network
        return planner

    def fits(self, config: TrainConfig) -> bool:
        return self.plan(config).safe <= self.budget

    def largest_batch(self, config: TrainConfig) -> int:
        """Images a step over all devices, as many for each micro-batch; 0 where not even one each fits."""
        step = number_of_devices(config) * config.accumulate

        def size(count: int) -> int:
            return self.plan(dataclasses.replace(config, batch_size=count * step)).safe
        return step * largest(size, self.budget, max(2, config.batch_size // step), LARGEST // step)

    def deepest(self, config: TrainConfig, eligible: int, now: Optional[int] = None) -> Optional[int]:
        """The largest K whose placement last:K fits; None where not even the network without attention does.

        Args:
            eligible: the largest K that the network has.
            now: the K that `config` itself amounts to, if any.
        """
        def placed(count: int) -> TrainConfig:
            return config if count == now else dataclasses.replace(config, placement=f'last:{count}')

        def fits(count: int) -> bool:
            try:
                return self.fits(placed(count))
            except UsageError:  # channels are too few for the heads, and fewer still in the layers before
                return False
        if now == eligible and fits(eligible):  # its graph is there anyway
            return eligible
        found = last_true(fits, range(eligible + 1), self._depth)
        self._depth = 0 if found is None else found
        return found

    def fewest_micro_batches(self, config: TrainConfig) -> Optional[int]:
        """The smallest `accumulate` beyond that of `config` that fits, or the next that gives equal parts, if that is
        not twice as many; None where none fits.

        Executors of two sizes share their memory badly, so that with memory mode recompute parts must be equal.
        """
        share = -(-config.batch_size // number_of_devices(config))
        most = config.batch_size // number_of_devices(config)
        fewest = last_true(lambda number: self.fits(dataclasses.replace(config, accumulate=number)),
                           range(most, config.accumulate, -1))
        if fewest is None:
            return None
        equal = [number for number in range(fewest, most + 1) if share % number == 0]
        if config.memory_mode == 'recompute':
            return equal[0] if equal else None
        return equal[0] if equal and equal[0] < 2 * fewest else fewest

    def resolve(self, open_to: Sequence[TrainConfig]) -> TrainConfig:
        """The first of `open_to` that fits, or else the smallest, as a training chooses; of one nothing is planned."""
        if len(open_to) == 1:
            return open_to[0]
        for one in open_to:
            if self.fits(one):
                return one
        return min(open_to, key=lambda one: self.plan(one).safe)


def choices(config: TrainConfig, augmented: bool) -> List[TrainConfig]:
    """`config` with its choices made, in every way that it leaves open to a training, fastest first.

    Raises:
        UsageError: choices that contradict each other or the device.
    """
    open_to = automatic.candidates if augmented else automatic.without_attention
    return [automatic.apply(config, candidate) for candidate in open_to(config)]


def check_batch(config: TrainConfig) -> None:
    """Raise UsageError where a device would have no image."""
    least = number_of_devices(config) * config.accumulate
    if config.batch_size < least:
        of = f'the number of devices, {least}' if config.accumulate == 1 else (
            f'one image for each micro-batch of each device, {least}')
        raise UsageError(f'batch_size={config.batch_size} must be at least {of}')


def last_true(holds: Callable[[int], bool], values: Sequence[int], guess: Optional[int] = None) -> Optional[int]:
    """The last of `values` that it holds for, where it holds up to some value and not beyond; None: for none.

    Args:
        guess: the place where it is probably found, which takes two looks to confirm; by default the last, which takes
            one.
    """
    low, high = -1, len(values)  # it holds at `low` and not at `high`
    probe, step = (high - 1 if guess is None else guess + 1), 1
    while high - low > 1:
        probe = min(max(probe, low + 1), high - 1)
        if holds(values[probe]):
            low = probe
            probe = (low + high) // 2 if high < len(values) else high - 1
        else:
            high = probe
            probe = (low + high) // 2 if low >= 0 or guess is None else high - step
            step *= 2
    return values[low] if low >= 0 else None


def largest(size: Callable[[int], int], budget: int, start: int, limit: int) -> int:
    """The largest count from 1 to `limit` whose size is within `budget`, 0 for none.

    Sizes grow with the count and nearly in proportion, so that a secant finds it in some four looks; every third look
    is at the middle, in case they do not.

    Args:
        start: where to look first, beside 1.
    """
    if size(1) > budget:
        return 0
    low, high, looks, guess = 1, limit + 1, 0, start
    while high - low > 1:
        guess = min(max(guess, low + 1), high - 1)
        found, looks = size(guess), looks + 1
        low, high = (guess, high) if found <= budget else (low, guess)
        slope = (found - size(1)) / (guess - 1)
        guess = guess + int((budget - found) // slope) if slope > 0 else limit
        if looks % 3 == 0 and high <= limit:
            guess = (low + high) // 2
    return low

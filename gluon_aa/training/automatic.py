"""What `auto` stands for: how attention is computed, and what is kept for the backward pass, on these devices.

On CPUs that is what is fastest. On GPUs, and wherever a budget is given, it is the first of some candidates, fastest
first, whose plan fits into the memory that is free; what the user chose is kept, and only the rest decided.
"""
import dataclasses
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

from gluon_aa.attention import DEFAULT_TILE, resolve_backend
from gluon_aa.compat import mx
from gluon_aa.errors import FailedError, UsageError
from gluon_aa.memory.devices import CONTEXT, DEVICES, POOL_RESERVE, Device, in_words, parse_bytes
from gluon_aa.memory.plan import Plan, Planner, plans
from gluon_aa.models import get_model
from gluon_aa.models.placement import is_augmented
from gluon_aa.models.registry import GLUONCV_PREFIX
from gluon_aa.training.config import TrainConfig

#: Queries a tile that are tried on GPUs, fastest first.
TILES = (1024, DEFAULT_TILE, 64)


class Candidate(NamedTuple):
    """One way to train a network."""

    attention_backend: str
    memory_mode: str
    tile: int = DEFAULT_TILE

    def __str__(self) -> str:
        tile = f' of {self.tile} queries' if self.attention_backend == 'tiled' else ''
        return f'attention {self.attention_backend}{tile}, memory mode {self.memory_mode}'


class Choice(NamedTuple):
    """A candidate, and why it: empty where nothing was planned. `fits` is False where none does."""

    candidate: Candidate
    reason: str = ''
    fits: bool = True


def candidates(config: TrainConfig) -> List[Candidate]:
    """What `config` leaves open, fastest first.

    Raises:
        UsageError: choices that contradict each other or the device.
    """
    _check(config)
    backend, mode = config.attention_backend, config.memory_mode
    if mode == 'auto' and not (_is_planned(config) and config.hybridize):
        mode = 'speed'
    found = []
    for each in ('speed', 'recompute') if mode == 'auto' else (mode,):
        name = _backend(backend, each, bool(config.gpus))
        found += [Candidate(name, each, tile) for tile in _tiles(config, name)]
    return found


def _is_planned(config: TrainConfig) -> bool:
    return bool(config.gpus or config.memory_budget)


def _check(config: TrainConfig) -> None:
    mode = config.memory_mode
    if config.memory_budget and not config.hybridize:
        raise UsageError('memory_budget needs a plan, and there is none for what hybridize: false runs: leave out one')
    if mode == 'recompute' and not config.hybridize:
        raise UsageError('memory_mode recompute compiles the network, which hybridize: false forbids: leave out one')
    if mode != 'recompute' and config.recompute != 'attention':
        raise UsageError(f'recompute: {config.recompute} is for --memory-mode recompute, not for {mode}')
    if config.gpus and config.recompute == 'blocks':
        raise UsageError('recompute: blocks computes batch norm twice, which is only known to be right on CPUs: on '
                         'GPUs choose --recompute attention')


def _backend(asked: str, mode: str, on_gpus: bool) -> str:
    if asked != 'auto':
        return resolve_backend(asked, on_gpus)
    best = resolve_backend('auto', on_gpus)
    # native keeps no map anyway; of the others only tiled has something to compute again
    return 'tiled' if mode == 'recompute' and best != 'native' else best


def _tiles(config: TrainConfig, backend: str) -> Sequence[int]:
    if config.tile is not None or backend != 'tiled' or not _is_planned(config):
        return (config.tile or DEFAULT_TILE,)
    return TILES


def choose(open_to: Sequence[Candidate], planned: Callable[[Candidate], int], budget: int) -> Choice:
    """The first candidate whose `planned` bytes are within the `budget`, or else the smallest."""
    sizes = []
    for candidate in open_to:
        sizes.append(planned(candidate))
        if sizes[-1] <= budget:
            return Choice(candidate, f'{in_words(sizes[-1])} planned, {in_words(budget)} there for it')
    smallest = min(range(len(sizes)), key=sizes.__getitem__)
    return Choice(open_to[smallest], f'{in_words(sizes[smallest])} planned, the least there is, but only '
                  f'{in_words(budget)} there for it', fits=False)


def resolve(config: TrainConfig, classes: int, image_shape: Tuple[int, int, int]) -> Tuple[TrainConfig, Choice]:
    """`config` with its choices made, for images (C, H, W), and how they were made.

    Where there is neither a GPU nor a memory budget, and on GPUs without one where nothing is open, nothing is planned.

    Raises:
        UsageError: as `candidates`; a network that cannot be built.
        FailedError: nothing fits the memory budget.
    """
    open_to = (candidates(config) if _is_augmented(config, classes, image_shape) else
               without_attention(config))
    if not _is_planned(config) or (len(open_to) == 1 and not config.memory_budget):
        choice = Choice(open_to[0])
    else:
        device = device_of(config)
        choice = choose(open_to, lambda candidate: plan(
            apply(config, candidate), classes, image_shape, device).safe, device.usable)
        if config.memory_budget and not choice.fits:
            raise _too_large(config, classes, image_shape, device, open_to, choice)
    return apply(config, choice.candidate), choice


def device_of(config: TrainConfig) -> Device:
    """What `config` trains on, its memory the budget, a GPU's own free one (of several the least), or what is there."""
    if config.memory_budget:
        memory: Optional[int] = parse_bytes(config.memory_budget)
    else:
        memory = min(map(gpu_bytes, config.gpus)) if config.gpus else None
    return Device('gpu', 'GPU', True, memory) if config.gpus else DEVICES['cpu']._replace(memory=memory)


def gpu_bytes(gpu: int) -> int:
    """The memory of a GPU that has as much for a training as this one has now.

    MXNet's context, which plans count, is there already when it is asked; the pool's reserve is a share of the whole.
    """
    free, total = mx.context.gpu_memory_info(gpu)
    return int((free + CONTEXT - POOL_RESERVE * total) / (1 - POOL_RESERVE))


def _too_large(config: TrainConfig, classes: int, image_shape: Tuple[int, int, int], device: Device,
               open_to: Sequence[Candidate], choice: Choice) -> FailedError:
    """The error of a configuration none of whose candidates fits: what needs least, and how many parts would fit."""
    asked = f'{config.net} with --batch-size {config.batch_size}'
    parts = f' --accumulate {config.accumulate}' if config.accumulate > 1 else ''
    found = _fewest_parts(config, classes, image_shape, device, open_to)
    if found is None:
        return FailedError(f'{asked}{parts} does not fit ({choice.candidate}: {choice.reason}), and no '
                           '--accumulate makes it: raise --memory-budget, or choose a smaller network')
    number, candidate, size = found
    return FailedError(f'{asked}{parts} does not fit ({choice.candidate}: {choice.reason}): '
                       f'--accumulate {number} does, in {in_words(size)} ({candidate})')


def _fewest_parts(config: TrainConfig, classes: int, image_shape: Tuple[int, int, int], device: Device,
                  open_to: Sequence[Candidate]) -> Optional[Tuple[int, Candidate, int]]:
    """The smallest `accumulate` with which a candidate fits, the first such candidate, and its bytes.

    Of those that divide each device's images into parts of equal sizes: others cost more, see the engines.
    """
    share = -(-config.batch_size // (len(config.gpus) or config.cpus))
    numbers = [number for number in range(config.accumulate + 1, share + 1) if share % number == 0]
    best: Optional[Tuple[int, int, int]] = None  # accumulate, the candidate's place, bytes
    for place, candidate in enumerate(open_to if numbers else ()):
        planner = Planner(apply(dataclasses.replace(config, accumulate=numbers[0]), candidate), classes, image_shape,
                          device)
        for number in numbers if best is None else [one for one in numbers if one < best[0]]:
            size = planner.plan(config.batch_size, number).safe
            if size <= device.usable:
                best = number, place, size
                break
    return None if best is None else (best[0], open_to[best[1]], best[2])


def _is_augmented(config: TrainConfig, classes: int, image_shape: Tuple[int, int, int]) -> bool:
    options = config.model_options()
    if not config.net.startswith(GLUONCV_PREFIX):
        options['attention_backend'] = 'folded'  # whichever it will be: this one need not be compiled to ask
    return is_augmented(get_model(config.net, classes, input_size=image_shape[1:], **options))


def without_attention(config: TrainConfig) -> List[Candidate]:
    """For a network in which nothing is tiled. There is little that auto could save: in memory mode recompute buffers
    are packed tighter, which is tried where a budget asks for it."""
    _check(config)
    modes = [config.memory_mode]
    if config.memory_mode == 'auto':
        modes = ['speed', 'recompute'] if config.memory_budget else ['speed']
    return [Candidate('folded', mode, config.tile or DEFAULT_TILE) for mode in modes]


def apply(config: TrainConfig, candidate: Candidate) -> TrainConfig:
    """`config` with the candidate's choices; gluoncv's networks take no attention's options."""
    if config.net.startswith(GLUONCV_PREFIX):
        return dataclasses.replace(config, memory_mode=candidate.memory_mode)
    return dataclasses.replace(config, **candidate._asdict())


def plan(config: TrainConfig, classes: int, image_shape: Tuple[int, int, int], device: Device) -> Plan:
    """The plan of a training step of `config`, its choices made."""
    return plans(config, classes, image_shape, device, [config.batch_size])[0]

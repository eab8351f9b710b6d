"""What `auto` stands for: how attention is computed, and what is kept for the backward pass, on these devices.

On CPUs that is what is fastest. On GPUs it is the first of some candidates, fastest first, whose plan fits into the
memory that is free; what the user chose is kept, and only the rest decided.
"""
import dataclasses
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

from gluon_aa.attention import DEFAULT_TILE, resolve_backend
from gluon_aa.compat import mx
from gluon_aa.errors import UsageError
from gluon_aa.memory.devices import DEVICES
from gluon_aa.memory.plan import Plan, plans
from gluon_aa.models import get_model
from gluon_aa.models.placement import is_augmented
from gluon_aa.models.registry import GLUONCV_PREFIX
from gluon_aa.training.config import TrainConfig

#: Queries a tile that are tried on GPUs, fastest first.
TILES = (1024, DEFAULT_TILE, 64)

#: What a GPU's free memory must hold beside the plan. MXNet's pool leaves a share of the whole to others
#: (MXNET_GPU_MEM_POOL_RESERVE); a convolution may ask for cuDNN's workspace of up to 1 GiB [1.9.1 source].
POOL_RESERVE, WORKSPACE = 0.05, 2 ** 30

#: A hybridized network's maps over the executor's plan of them, as CachedOp plans forward and backward pass apart: its
#: profiled peak was above the executor's by 0.07 (aa_wrn10_2, folded, batch 8) and 0.11 (three layers) of the plan.
HYBRIDIZED_MARGIN = 1.12


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
    if mode == 'auto' and not (config.gpus and config.hybridize):
        mode = 'speed'
    found = []
    for each in ('speed', 'recompute') if mode == 'auto' else (mode,):
        name = _backend(backend, each, bool(config.gpus))
        found += [Candidate(name, each, tile) for tile in _tiles(config, name)]
    return found


def _check(config: TrainConfig) -> None:
    mode = config.memory_mode
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
    if config.tile is not None or backend != 'tiled' or not config.gpus:
        return (config.tile or DEFAULT_TILE,)
    return TILES


def choose(open_to: Sequence[Candidate], planned: Callable[[Candidate], int], budget: int) -> Choice:
    """The first candidate whose `planned` bytes are within the `budget`, or else the smallest."""
    sizes = []
    for candidate in open_to:
        sizes.append(planned(candidate))
        if sizes[-1] <= budget:
            return Choice(candidate, f'{_gb(sizes[-1])} planned, {_gb(budget)} free for it')
    smallest = min(range(len(sizes)), key=sizes.__getitem__)
    return Choice(open_to[smallest], f'{_gb(sizes[smallest])} planned, the least there is, but only {_gb(budget)} free '
                  'for it: expect to run out of memory, or lower --batch-size', fits=False)


def _gb(count: int) -> str:
    return f'{count / 1e9:.2f} GB'


def resolve(config: TrainConfig, classes: int, image_shape: Tuple[int, int, int],
            budget: Optional[int] = None) -> Tuple[TrainConfig, Choice]:
    """`config` with its choices made, for images (C, H, W), and how they were made.

    Args:
        budget: bytes a device; by default a GPU's own free memory, and none on CPUs, where nothing is planned.

    Raises:
        UsageError: as `candidates`; a network that cannot be built.
    """
    open_to = candidates(config) if _is_augmented(config, classes, image_shape) else [_without_attention(config)]
    if len(open_to) == 1 or (budget is None and not config.gpus):
        choice = Choice(open_to[0])
    else:
        choice = choose(open_to, lambda candidate: planned_bytes(apply(config, candidate), classes, image_shape),
                        min(map(free_bytes, config.gpus)) if budget is None else budget)
    return apply(config, choice.candidate), choice


def _is_augmented(config: TrainConfig, classes: int, image_shape: Tuple[int, int, int]) -> bool:
    options = config.model_options()
    if not config.net.startswith(GLUONCV_PREFIX):
        options['attention_backend'] = 'folded'  # whichever it will be: this one need not be compiled to ask
    return is_augmented(get_model(config.net, classes, input_size=image_shape[1:], **options))


def _without_attention(config: TrainConfig) -> Candidate:
    """For a network in which nothing is tiled: there is nothing that auto could save."""
    _check(config)
    return Candidate('folded', 'speed' if config.memory_mode == 'auto' else config.memory_mode,
                     config.tile or DEFAULT_TILE)


def apply(config: TrainConfig, candidate: Candidate) -> TrainConfig:
    """`config` with the candidate's choices; gluoncv's networks take no attention's options."""
    if config.net.startswith(GLUONCV_PREFIX):
        return dataclasses.replace(config, memory_mode=candidate.memory_mode)
    return dataclasses.replace(config, **candidate._asdict())


def planned_bytes(config: TrainConfig, classes: int, image_shape: Tuple[int, int, int]) -> int:
    """Bytes that a training step of `config`, its choices made, takes on each device."""
    return plan(config, classes, image_shape).total


def plan(config: TrainConfig, classes: int, image_shape: Tuple[int, int, int]) -> Plan:
    """The plan of a training step of `config`, its choices made."""
    return plans(config, classes, image_shape, DEVICES['cpu'], [config.batch_size])[0]


def free_bytes(gpu: int) -> int:
    """What a GPU has for a plan."""
    free, total = mx.context.gpu_memory_info(gpu)
    return int(free - POOL_RESERVE * total - WORKSPACE)

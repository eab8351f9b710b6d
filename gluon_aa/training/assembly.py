"""From a configuration to an engine, and what an engine's numbers depend on."""
import dataclasses
from typing import Any, Callable, Dict, Optional

from gluon_aa import compat
from gluon_aa.attention import DEFAULT_TILE
from gluon_aa.data import Dataset
from gluon_aa.errors import FailedError, UsageError
from gluon_aa.machine import cpu_model
from gluon_aa.models import get_model, placement
from gluon_aa.models.registry import GLUONCV_PREFIX
from gluon_aa.training import automatic, precision
from gluon_aa.training.config import TrainConfig
from gluon_aa.training.devices import resolve_devices
from gluon_aa.training.engine import Engine, HybridizedEngine
from gluon_aa.training.recompute import RecomputeEngine

ENGINES = {'speed': HybridizedEngine, 'recompute': RecomputeEngine}


def build_engine(config: TrainConfig, dataset: Dataset, on_notice: Optional[Callable[[str], None]] = None) -> Engine:
    """The network of `config` for the images of `dataset`, initialised, on its devices.

    Says to `on_notice` what was chosen, where memory decided that. The engine's `config` has the choices made.
    """
    precision.use(config.dtype, on_gpus=bool(config.gpus))
    devices = resolve_devices(config.gpus, config.cpus)
    least = len(devices) * config.accumulate
    if config.batch_size < least:
        of = 'the number of devices' if config.accumulate == 1 else 'one image for each micro-batch of each device'
        raise UsageError(f'batch_size={config.batch_size} must be at least {of}, {least}')
    shape = (dataset.channels, *dataset.input_size)
    config, choice = automatic.resolve(config, len(dataset.classes), shape)
    if choice.reason and on_notice:
        advice = '' if choice.fits else ': expect to run out of memory, or take the batch in parts with --accumulate'
        on_notice(f'{choice.candidate}: {choice.reason}{advice}')
    if on_notice and config.memory_mode == 'recompute' and -(-config.batch_size // len(devices)) % config.accumulate:
        on_notice(f'micro-batches of unequal sizes, {config.batch_size} images on {len(devices)} devices in '
                  f'{config.accumulate} parts, take more memory than planned: better an --accumulate that divides them')
    net = get_model(config.net, len(dataset.classes), input_size=dataset.input_size, **config.model_options())
    products = placement.is_augmented(net) and config.attention_backend != 'native'  # which are OpenBLAS's
    if len(devices) > 1 and not config.gpus and compat.THREADS.number > 1 and products:
        raise FailedError(f"MXNet's OpenBLAS hangs on attention on several CPU devices with more than one thread each: "
                          f'set OMP_NUM_THREADS=1 (it is {compat.THREADS.number}), or use one device')
    engine: Engine = ENGINES[config.memory_mode](net, dataset.mean, dataset.std, shape, config, devices)
    return engine


def for_evaluation(config: TrainConfig) -> TrainConfig:
    """`config` for an engine that never trains: there is nothing to compute again, and no reason to plan.

    On GPUs `auto` is the attention that needs least memory without a backward pass. Batches are in parts as they were
    in training, unless they are smaller now.
    """
    backend = 'tiled' if config.gpus and config.attention_backend == 'auto' else config.attention_backend
    tile = None if config.net.startswith(GLUONCV_PREFIX) else config.tile or DEFAULT_TILE
    accumulate = max(1, min(config.accumulate, config.batch_size // (len(config.gpus) or config.cpus)))
    return dataclasses.replace(config, memory_mode='speed', recompute='attention', attention_backend=backend, tile=tile,
                               accumulate=accumulate, memory_budget=None)


def circumstances(engine: Engine) -> Dict[str, Any]:
    """What decides in which order numbers are summed. Of attention None where the network has none."""
    config, augmented = engine.config, placement.is_augmented(engine.net)
    return {'devices': [str(device) for device in engine.devices], 'threads': compat.THREADS.number,
            'cpu': cpu_model(), 'mxnet': compat.mx.__version__,
            'attention_backend': config.attention_backend if augmented else None,
            'tile': config.tile if augmented and config.attention_backend == 'tiled' else None,
            'memory_mode': config.memory_mode, 'accumulate': config.accumulate}


def noted(saved: Dict[str, Any], config: Dict[str, Any], present: Dict[str, Any]) -> Dict[str, Any]:
    """Circumstances as a checkpoint has them; earlier ones, which do not tell all of them, completed.

    Args:
        config: of that checkpoint.
        present: circumstances of the same network now.
    """
    backend = config['attention_backend'] if config['attention_backend'] != 'auto' else 'folded'  # what it was then
    return {'attention_backend': backend if present['attention_backend'] else None, 'tile': None,
            'memory_mode': 'speed', 'accumulate': 1, **saved}


def words(found: Dict[str, Any]) -> str:
    """Circumstances for people."""
    parts = f', {found["accumulate"]} micro-batches a step' if found['accumulate'] > 1 else ''
    return (f'{", ".join(found["devices"])} with {found["threads"]} threads of {found["cpu"]}, MXNet {found["mxnet"]}, '
            f'{how_computed(found)}{parts}')


def how_computed(found: Dict[str, Any]) -> str:
    """The part of circumstances that `auto` decides."""
    tile = f' in tiles of {found["tile"]}' if found['tile'] else ''
    attention = f'attention {found["attention_backend"]}{tile}, ' if found['attention_backend'] else ''
    return f'{attention}memory mode {found["memory_mode"]}'

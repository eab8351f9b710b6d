"""The configuration of a training: one dataclass whose fields are YAML keys and command-line flags alike.

Defaults, then the YAML file, then flags. An unknown key is an error that names the near ones.
"""
import dataclasses
import pathlib
from typing import (Any, Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple, Union, get_args,
                    get_origin)

import yaml

from gluon_aa import attention
from gluon_aa.errors import UsageError, unknown
from gluon_aa.memory.devices import parse_bytes

MEMORY_MODES = ('auto', 'speed', 'recompute')
RECOMPUTE = ('attention', 'blocks')
DTYPES = ('float32', 'bfloat16', 'float16')
OPTIMIZERS = ('sgd', 'nag', 'adam')
SCHEDULES = ('constant', 'step', 'cosine', 'one-cycle', 'seed-resnet34', 'seed-wrn', 'seed-warmup-cosine')


def _key(default: Any, help: str, choices: Optional[Tuple[str, ...]] = None, minimum: Optional[float] = None,
         below: Optional[float] = None, form: Optional[Callable[[str], object]] = None) -> Any:
    metadata = {'help': help, 'choices': choices, 'minimum': minimum, 'below': below, 'form': form}
    return dataclasses.field(default=default, metadata=metadata)


def parse_size(text: str) -> Tuple[int, int]:
    """HxW in pixels, such as 32x48, as (32, 48). Raises UsageError for anything else."""
    try:
        height, width = (int(part) for part in text.lower().split('x'))
    except ValueError:
        raise UsageError(f'{text!r} is not HxW in pixels, such as 32x32') from None
    if min(height, width) < 1:
        raise UsageError(f'{text!r}: both must be at least 1')
    return height, width


class Interval(NamedTuple):
    """A number of steps, or of minutes."""

    steps: Optional[int] = None
    minutes: Optional[float] = None


def parse_interval(text: str) -> Interval:
    """'500' as steps, '10m' as minutes. Raises UsageError for anything else."""
    try:
        interval = Interval(minutes=float(text[:-1])) if text.endswith('m') else Interval(steps=int(text))
    except ValueError:
        raise UsageError(f'{text!r} is neither steps, such as 500, nor minutes, such as 10m') from None
    if not 0 < (interval.steps or interval.minutes or 0) < float('inf'):
        raise UsageError(f'{text!r} must be more than 0')
    return interval


#: Keys that a resumed training may change: where it runs and what it keeps, not what it is.
RESUMABLE = ('data_dir', 'allow_unverified', 'gpus', 'cpus', 'kvstore', 'checkpoint_every', 'keep_checkpoints',
             'accumulate', 'memory_budget', 'attention_backend', 'tile', 'memory_mode', 'recompute')


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training's result. Times in epochs, sizes in images or pixels."""

    net: str = _key('aa_wrn28_10', 'Network: see gluon-aa models list.')
    dataset: str = _key('cifar10', 'Data set: cifar10, cifar100, digits, folder, synthetic.')
    data_dir: Optional[str] = _key(
        None, "Where the data set lies: a directory or an archive; MXNet's own data directory by default.")
    allow_unverified: bool = _key(False, 'Take data files whose checksums are not the official ones.')
    input_size: Optional[str] = _key(
        None, "HxW in pixels that a folder's images are resized and cropped to, and synthetic ones are made with.",
        form=parse_size)
    normalization: str = _key(
        'channels', "Mean and deviation per channel, or the replication's mean image and 255.",
        choices=('channels', 'mean-image'))
    last_batch: str = _key(
        'discard', 'Images that do not fill a last batch: left out of the epoch, or a smaller batch.',
        choices=('discard', 'keep'))
    placement: Optional[str] = _key(
        None, 'Convolutions to augment: none, paper, all, last:K, stages:I,J, seed, or addresses.')
    num_heads: Optional[int] = _key(None, 'Attention heads a layer.', minimum=1)
    key_ratio: Optional[float] = _key(None, 'Key channels as a share of the output channels.')
    value_ratio: Optional[float] = _key(None, 'Value channels as a share of the output channels.')
    min_key_channels_per_head: Optional[int] = _key(None, 'Fewest key channels a head.', minimum=1)
    relative: bool = _key(True, 'Relative position embeddings.')
    attention_backend: str = _key('auto', 'How attention is computed.', choices=attention.BACKEND_NAMES)
    tile: Optional[int] = _key(
        None, f'Queries a tile of the attention backend tiled; {attention.DEFAULT_TILE}, or the largest that fits on '
        'GPUs and within a --memory-budget, by default.', minimum=1)
    memory_mode: str = _key(
        'auto', 'speed: keep what the backward pass needs; recompute: compute part of it again, in less memory; auto: '
        'recompute only on GPUs or within a --memory-budget, and where the other does not fit.', choices=MEMORY_MODES)
    recompute: str = _key(
        'attention', 'What memory mode recompute computes again: the attention of backend tiled; blocks: all but the '
        'sums that residual blocks end with (on CPUs).', choices=RECOMPUTE)
    memory_budget: Optional[str] = _key(
        None, "Bytes of each device, such as 16GiB, that auto's choices must fit into; where none does, nothing is "
        'trained. By default what a GPU has free, where there is something to choose.', form=parse_bytes)
    dropout: Optional[float] = _key(None, 'Dropout inside the blocks of wrn* networks.', minimum=0, below=1)
    stem: Optional[str] = _key(None, 'First layers of resnet* networks: cifar or imagenet.')
    batch_size: int = _key(128, 'Images a step, over all devices and micro-batches.', minimum=1)
    accumulate: int = _key(
        1, 'Micro-batches a step: each device takes its share of a batch in so many parts, in less memory, for one '
        'update; batch norm sees a part at a time.', minimum=1)
    epochs: int = _key(60, 'Passes over the training images.', minimum=1)
    optimizer: str = _key('nag', 'Optimizer.', choices=OPTIMIZERS)
    learning_rate: float = _key(0.1, 'Highest learning rate.', minimum=0)
    momentum: float = _key(0.9, 'Momentum of sgd and nag.', minimum=0, below=1)
    weight_decay: float = _key(0.0, 'L2 weight decay.', minimum=0)
    decay_norm_and_bias: bool = _key(True, 'Weight decay on batch norm and biases too.')
    schedule: str = _key('cosine', 'Learning rate over time.', choices=SCHEDULES)
    decay_epochs: Tuple[int, ...] = _key((30, 60, 90), 'Epochs after which the step schedule decays: 30,60,90.')
    decay_factor: float = _key(0.2, 'Factor of each decay of the step schedule.', minimum=0)
    warmup_epochs: float = _key(0.0, 'Epochs of linear warm-up from 0 before the schedule.', minimum=0)
    label_smoothing: float = _key(0.0, 'Probability spread over all classes.', minimum=0, below=1)
    data_augmentation: bool = _key(True, 'Random crops, and flips where they keep the label.')
    dtype: str = _key('float32', 'Number format of convolutions: bfloat16 on CPUs that have it, float16 on GPUs.',
                      choices=DTYPES)
    hybridize: bool = _key(True, 'Run compiled graphs with static memory; off is for debugging.')
    seed: int = _key(0, 'Seed of weights, order and augmentation.', minimum=0)
    gpus: Tuple[int, ...] = _key((), 'GPU ids to train on: 0,1.')
    cpus: int = _key(1, 'CPU contexts to train on where no --gpus are given.', minimum=1)
    kvstore: str = _key('device', 'Where gradients of several devices meet.', choices=('device', 'local'))
    checkpoint_every: Optional[str] = _key(
        None, 'Checkpoints within an epoch, beside those of its end: every so many steps (500) or minutes (10m).',
        form=parse_interval)
    keep_checkpoints: int = _key(2, 'Latest checkpoints to keep, beside the best.', minimum=1)

    def model_options(self) -> Dict[str, Any]:
        """The options of `get_model` that were asked for."""
        options = {name: getattr(self, name) for name in (
            'placement', 'num_heads', 'key_ratio', 'value_ratio', 'min_key_channels_per_head', 'tile', 'dropout',
            'stem')}
        options = {name: value for name, value in options.items() if value is not None}
        if not self.relative:
            options['relative'] = False
        if self.attention_backend != 'auto':
            options['attention_backend'] = self.attention_backend
        return options

    def values(self) -> Dict[str, Any]:
        """The keys and their values, as JSON and YAML have them."""
        return {key: list(value) if isinstance(value, tuple) else value
                for key, value in dataclasses.asdict(self).items()}

    def to_yaml(self) -> str:
        """What `load` reads back as an equal configuration."""
        return yaml.safe_dump(self.values(), sort_keys=False)


FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}


def load(path: Optional[pathlib.Path] = None, overrides: Optional[Mapping[str, Any]] = None) -> TrainConfig:
    """The configuration of a YAML file (or none), with `overrides` winning.

    Raises:
        UsageError: no such file, YAML that is no mapping, an unknown key, a value of the wrong type or out of range.
    """
    values = _read(path) if path is not None else {}
    return override(from_values(values, f'{path}: ' if path is not None else ''), overrides or {})


def from_values(values: Mapping[str, Any], where: str = '') -> TrainConfig:
    """The configuration whose `values` these are; keys that are not there have their defaults.

    Raises:
        UsageError: an unknown key, a value of the wrong type or out of range, prefixed by `where`.
    """
    for key in values:
        if key not in FIELDS:
            raise UsageError(f'{where}{unknown("key", key, FIELDS)}')
    return TrainConfig(**{key: check(key, value, where) for key, value in values.items()})


def override(config: TrainConfig, overrides: Mapping[str, Any]) -> TrainConfig:
    """`config` with `overrides` in place of its values; `cpus` without `gpus` means no GPUs.

    Raises:
        UsageError: a value of the wrong type or out of range; both `gpus` and `cpus`.
    """
    checked = {key: check(key, value) for key, value in overrides.items()}
    if checked.get('gpus') and 'cpus' in checked:
        raise UsageError('--gpus and --cpus exclude each other: choose one')
    if 'cpus' in checked:
        checked['gpus'] = ()
    return dataclasses.replace(config, **checked)


def _read(path: pathlib.Path) -> Dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f'cannot read the configuration {path}: {error}') from error
    except yaml.YAMLError as error:
        raise UsageError(f'{path} is not YAML: {" ".join(str(error).split())}') from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f'{path} must hold keys and values, such as "net: aa_wrn28_10"')
    return values


def kind(name: str) -> type:
    """The type of a key's value: bool, int, float, str, or tuple (of integers)."""
    annotation: Any = FIELDS[name].type
    if _optional(name):
        annotation = get_args(annotation)[0]
    return get_origin(annotation) or annotation  # type: ignore[no-any-return]


def _optional(name: str) -> bool:
    return type(None) in get_args(FIELDS[name].type)


def check(key: str, value: Any, where: str = '') -> Any:
    """`value` as the key's type and within its range, or a `UsageError` naming the key, prefixed by `where`."""
    wanted = kind(key)
    metadata = FIELDS[key].metadata
    if value is None and _optional(key):
        return None
    if wanted is tuple:
        return tuple(_check_integers(where, key, value))
    if wanted is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        value = _number(value)  # YAML reads 1e-3 as a string
    if metadata['form'] and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # and 500 as a number
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise UsageError(f'{where}{key}: {value!r} is not {_NAMES[wanted]}')
    if metadata['choices'] and value not in metadata['choices']:
        raise UsageError(f'{where}{key}: {unknown(key, value, metadata["choices"])}')
    if metadata['form']:
        _check_form(where, key, value, metadata['form'])
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_range(where, key, value, metadata)
    return value


def _check_form(where: str, key: str, value: Any, form: Callable[[str], object]) -> None:
    try:
        form(value)
    except UsageError as error:
        raise UsageError(f'{where}{key}: {error}') from None


_NAMES = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'a word'}


def _number(value: Union[int, str]) -> Union[float, str]:
    try:
        return float(value)
    except (ValueError, OverflowError):
        return str(value)


def _check_integers(where: str, key: str, value: Any) -> List[int]:
    items: Iterable[Any] = value.split(',') if isinstance(value, str) else value if isinstance(
        value, (list, tuple)) else [value]
    try:
        numbers = [int(str(item)) for item in items if str(item).strip()]
    except ValueError:
        raise UsageError(f'{where}{key}: {value!r} is not a list of whole numbers, such as 0,1') from None
    if any(number < 0 for number in numbers) or len(set(numbers)) < len(numbers):
        raise UsageError(f'{where}{key}: {value!r} must name each number once, none below 0')
    return numbers


def _check_range(where: str, key: str, value: float, metadata: Mapping[str, Any]) -> None:
    minimum, below = metadata['minimum'], metadata['below']
    if minimum is not None and not value >= minimum:
        raise UsageError(f'{where}{key}: {value} must be at least {minimum}')
    if below is not None and not value < below:
        raise UsageError(f'{where}{key}: {value} must be below {below}')
    if value != value or value in (float('inf'), float('-inf')):
        raise UsageError(f'{where}{key}: {value} is not finite')

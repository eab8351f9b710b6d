"""What fits a device, and what to change where a configuration does not: planned, no step is run.

The cheapest change costs least time by FLOPs. Those do not tell how fast kernels are, so that times within the same
tenth count as equal, and then the change is preferred that alters the training least: a backend, a memory mode or a
tile alters nothing; micro-batches alter what batch norm sees; a number format alters arithmetic. A smaller batch comes
last whatever it costs: it is another training.
"""
import dataclasses
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from gluon_aa import isolation
from gluon_aa.errors import FailedError, UsageError
from gluon_aa.memory.devices import Device, in_words
from gluon_aa.memory.ways import Variants, check_batch, choices, number_of_devices, title, ways, with_keys
from gluon_aa.memory.work import work
from gluon_aa.training import precision
from gluon_aa.training.config import TrainConfig, from_values, kind

Row = Dict[str, Any]

#: Seconds that planning in the other number format may take, in a process of its own.
TIME_LIMIT = 120.0

#: Keys that say how, and not what, is computed.
_HOW = ('attention_backend', 'memory_mode', 'tile', 'recompute')
_SIXTEEN = 'float16'


class Change(NamedTuple):
    """Keys of a configuration that, changed so, make it fit."""

    keys: Row
    safe_bytes: int  # the plan and its uncertainty
    budget_bytes: int
    extra_time: float  # a fraction, by FLOPs
    effect: str  # on the training, beside memory and time; '' for none

    def flags(self) -> List[str]:
        """The words of the command line."""
        return flags(self.keys)

    @property
    def why(self) -> str:
        """One line for people."""
        return (f'{in_words(self.safe_bytes)} of {in_words(self.budget_bytes)}, {self.extra_time:+.1%} time by FLOPs, '
                f'alters {self.effect or "nothing"}')

    @property
    def rank(self) -> Tuple[Any, ...]:
        """Cheapest first: see the module."""
        keys = self.keys
        altered = 2 * (_SIXTEEN in keys.values()) + ('accumulate' in keys)
        return ('batch_size' in keys, int(10 * max(0.0, self.extra_time) + 1e-9), altered, keys.get('accumulate', 1),
                self.extra_time, len(keys))


def flags(keys: Row) -> List[str]:
    """The words of the command line that set `keys`."""
    words: List[str] = []
    for key, value in keys.items():
        flag = f'--{key.replace("_", "-")}'
        if kind(key) is bool:
            words.append(flag if value else f'--no-{flag[2:]}')
        else:
            words += [flag, ','.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)]
    return words


def change_that_fits(config: Row, classes: int, image_shape: Sequence[int], device: Device) -> Optional[Change]:
    """The cheapest change that lets a training fit a device; None where nothing does, or where it fits as it is.

    Args:
        config: values of a `TrainConfig`. This process takes its number format.
        image_shape: (C, H, W).

    Raises:
        UsageError: a configuration that no training could have.
    """
    subject = _Subject(from_values(config), classes, image_shape, device)
    return None if subject.fits else next(iter(subject.changes()), None)


def change_that_fits_here(config: Row, classes: int, image_shape: Sequence[int],
                          device: Sequence[Any]) -> Optional[Row]:
    """`change_that_fits` of JSON's types, for `isolation.call`: `Change(**answer)` is the change."""
    change = change_that_fits(config, classes, image_shape, Device(*device))
    return None if change is None else change._asdict()


def advise(config: TrainConfig, classes: int, image_shape: Sequence[int], device: Device) -> Row:
    """All that `gluon-aa plan` says, of JSON's types.

    Returns:
        `cells`: what was asked first, its choices made, then the other ways to compute it; each with `source`, its
        keys, `bytes` by category, `total_bytes`, `uncertainty_bytes`, `fits`, `largest_batch`, `deepest` (the K of
        last:K), `relative_time` (by FLOPs, per image, the first being 1) and `seconds_at_peak`; `changes` that make it
        fit where it does not, cheapest first; `least` there is where nothing does; `device`, `budget_bytes`,
        `eligible` layers, `flops` of an image forward.

    Raises:
        UsageError: a configuration that no training could have.
    """
    subject = _Subject(config, classes, image_shape, device)
    changes = [] if subject.fits else subject.changes()
    return {
        'cells': [subject.cell(one) for one in subject.ways], 'changes': [
            {**change._asdict(), 'flags': change.flags(), 'why': change.why} for change in changes],
        'least': None if subject.fits or changes else subject.least(), 'device': subject.variants.device.name,
        'budget_bytes': subject.variants.budget, 'eligible': subject.eligible, 'flops': subject.work.forward,
        'classes': classes, 'image_shape': list(image_shape), 'source': 'modelled'}


class _Subject:
    """A configuration on a device."""

    def __init__(self, config: TrainConfig, classes: int, image_shape: Sequence[int], device: Device) -> None:
        check_batch(config)
        if not config.hybridize:
            raise UsageError('what a network needs that is not compiled is not known: leave out hybridize: false')
        precision.use(config.dtype, on_gpus=bool(config.gpus))
        self.given = config
        self.work = work(config, classes, image_shape)
        self.augmented = bool(self.work.augmented)
        self.variants = Variants(classes, image_shape, device, number_of_devices(config))
        self.open_to = choices(config, self.augmented)
        self.config = self.variants.resolve(self.open_to)
        self.eligible = self._eligible() if self.augmented else 0

    def _eligible(self) -> int:
        """How many layers there are to augment, whether as wide as they are now or not."""
        narrowest = dataclasses.replace(self.config, placement='paper', num_heads=1, min_key_channels_per_head=1,
                                        key_ratio=None, value_ratio=None)
        return work(narrowest, self.variants.classes, self.variants.image_shape).augmented

    @property
    def _depth(self) -> Optional[int]:
        """The K of last:K that the placement amounts to, if any."""
        placement = self.given.placement
        if placement in (None, 'paper') and self.work.augmented == self.eligible:
            return self.eligible
        return int(placement[len('last:'):]) if placement is not None and placement.startswith('last:') else None

    @property
    def fits(self) -> bool:
        return self.variants.fits(self.config)

    @property
    def ways(self) -> List[TrainConfig]:
        """What was asked, then the others."""
        return [self.config, *(one for one in ways(self.config, self.augmented) if not self._same(one))]

    def _same(self, other: TrainConfig) -> bool:
        return title(other, self.augmented) == title(self.config, self.augmented)

    def cell(self, config: TrainConfig) -> Row:
        """All about one way."""
        made, variants = self.variants.plan(config), self.variants
        return {
            'source': 'modelled', 'net': config.net, 'placement': config.placement, 'batch_size': config.batch_size,
            'accumulate': config.accumulate, 'devices': number_of_devices(config), 'dtype': config.dtype,
            'way': title(config, self.augmented), **{key: getattr(config, key) for key in _HOW},
            'bytes': made.bytes, 'total_bytes': made.total, 'uncertainty_bytes': made.uncertainty,
            'fits': variants.fits(config), 'largest_batch': variants.largest_batch(config),
            'deepest': variants.deepest(config, self.eligible, self._depth) if self.eligible else None,
            'relative_time': self._time(config) + 1,
            'seconds_at_peak': self.work.seconds_at_peak(config, variants.device)}

    def _time(self, config: TrainConfig) -> float:
        """Extra time by FLOPs."""
        return self.work.step(config) / self.work.step(self.config) - 1

    def changes(self) -> List[Change]:
        """Those that make it fit, cheapest first; a smaller batch last.

        Micro-batches are told as the configuration is, and in whatever way needs fewest: 64 of one image each are not
        what anybody wants where another backend takes 4.
        """
        found = self._fitting(self.ways[1:]) + self._in_parts(self.open_to)
        found += [change for change in self._in_parts(self.ways) if change.keys not in [one.keys for one in found]]
        found += self._in_float16(combined=not found)
        return sorted(found + self._smaller(), key=lambda change: change.rank)

    def _in_parts(self, configs: Sequence[TrainConfig]) -> List[Change]:
        """The cheapest in micro-batches, if any fits."""
        changes = [self._change(part) for config in configs for part in self.parts(config)]
        return sorted(changes, key=lambda change: change.rank)[:1]

    def parts(self, config: TrainConfig) -> List[TrainConfig]:
        """In the fewest micro-batches that fit, if any do."""
        number = self.variants.fewest_micro_batches(config)
        return [] if number is None else [dataclasses.replace(config, accumulate=number)]

    def _fitting(self, configs: Sequence[TrainConfig]) -> List[Change]:
        return [self._change(one) for one in configs if self.variants.fits(one)]

    def _change(self, config: TrainConfig) -> Change:
        size = self.variants.plan(config).safe
        return Change(self._keys(config), size, self.variants.budget, self._time(config), self._effect(config))

    def _keys(self, config: TrainConfig) -> Row:
        """What differs from what was given and is of any meaning, in the order of the configuration."""
        meaningless = set()
        if config.attention_backend != 'tiled' or not self.augmented:
            meaningless.add('tile')
        if not self.augmented:
            meaningless.add('attention_backend')
        given = self.given.values()
        return {key: value for key, value in config.values().items()
                if value != given[key] and key not in meaningless}

    def _effect(self, config: TrainConfig) -> str:
        effects = []
        if config.batch_size != self.given.batch_size:
            effects.append(f'the training: {config.batch_size} images a step')
        if config.accumulate != self.given.accumulate:
            images = -(-config.batch_size // (number_of_devices(config) * config.accumulate))
            effects.append(f'batch norm: {images} image{"s" if images > 1 else ""} at a time')
        if config.dtype != self.given.dtype:
            effects.append('arithmetic: convolutions in float16')
        return ', '.join(effects)

    def _smaller(self) -> List[Change]:
        """The largest batch that fits as asked, or else in the way that needs least."""
        for config in (self.config, min(self.ways, key=lambda one: self.variants.plan(one).safe)):
            batch = min(self.variants.largest_batch(config), config.batch_size)
            if batch:
                return [self._change(dataclasses.replace(config, batch_size=batch))]
        return []

    def _in_float16(self, combined: bool) -> List[Change]:
        """The same for float16, in a process of its own."""
        if self.config.dtype != 'float32' or not self.config.gpus:
            return []
        asked = {'config': self.config.values(), 'classes': self.variants.classes,
                 'image_shape': list(self.variants.image_shape), 'device': list(self.variants.device),
                 'combined': combined}
        try:
            found = isolation.call(f'{__name__}:ways_in_float16', asked, TIME_LIMIT)
        except FailedError:  # one way less to fit does not undo the others
            return []
        return [self._change_of(row) for row in found]

    def _change_of(self, row: Row) -> Change:
        config = with_keys(self.config, row['keys'])
        return Change(self._keys(config), row['safe_bytes'], self.variants.budget, self._time(config),
                      self._effect(config))

    def least(self) -> Row:
        """What needs least, with one image for each micro-batch."""
        fewest = number_of_devices(self.config) * self.config.accumulate
        config = min((dataclasses.replace(one, batch_size=fewest) for one in self.ways),
                     key=lambda one: self.variants.plan(one).safe)
        return {'way': title(config, self.augmented), 'batch_size': fewest,
                'total_bytes': self.variants.plan(config).total,
                'uncertainty_bytes': self.variants.plan(config).uncertainty}


def ways_in_float16(config: Row, classes: int, image_shape: Sequence[int], device: Sequence[Any],
                    combined: bool) -> List[Row]:
    """How a configuration whose choices are made fits in float16: `keys` and `safe_bytes` of each change.

    Args:
        combined: in any way and in micro-batches; else as it is.
    """
    subject = _Subject(from_values({**config, 'dtype': _SIXTEEN}), classes, image_shape, Device(*device))
    tried = [subject.config]
    if combined and not subject.fits:
        tried = [part for way in subject.ways for part in (way, *subject.parts(way))]
    return [{'keys': {key: getattr(one, key) for key in (*_HOW, 'dtype', 'accumulate')},
             'safe_bytes': subject.variants.plan(one).safe} for one in tried if subject.variants.fits(one)]

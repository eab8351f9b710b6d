"""Network names, and what builds each.

A family is a pattern of names, such as wrn<depth>_<widen_factor>. Every name also has an `aa_` form, which differs
in one thing: its placement is the family's own where none is asked for.
"""
import dataclasses
import inspect
import re
from typing import Any, Callable, Dict, List, Sequence, Tuple, Union

from gluon_aa.errors import UsageError, unknown
from gluon_aa.models.placement import Augmentation, augmented_layers

#: gluoncv's networks that `get_model` falls back to: its CIFAR baselines.
GLUONCV_PREFIX = 'cifar_'


@dataclasses.dataclass(frozen=True)
class Family:
    """A registered family: names that match `pattern`, its integers being arguments of `build`."""

    pattern: str
    build: Callable[..., Any]
    examples: Sequence[str]
    augmentation: Augmentation

    @property
    def options(self) -> List[str]:
        """What `build` takes beside the name's integers, the classes, the size and the augmentation."""
        named = set(re.compile(self.pattern).groupindex) | {'classes', 'input_size', 'augmentation'}
        return [name for name in inspect.signature(self.build).parameters if name not in named]


_FAMILIES: Dict[str, Family] = {}


def register(pattern: str, *, examples: Sequence[str], augmentation: Augmentation) -> Callable[..., Any]:
    """Decorator: the function builds the networks whose names match `pattern` (a regular expression).

    Args:
        pattern: its named groups are integers and become arguments.
        examples: names for listings and for suggestions.
        augmentation: of the `aa_` form.

    Raises:
        ValueError: a pattern or an example that is taken already.
    """
    def decorate(build: Callable[..., Any]) -> Callable[..., Any]:
        for family in _FAMILIES.values():
            taken = [name for name in examples if re.fullmatch(family.pattern, name)]
            if pattern == family.pattern or taken:
                raise ValueError(f'{pattern!r} is registered already, by {family.build.__name__}')
        _FAMILIES[pattern] = Family(pattern, build, tuple(examples), augmentation)
        return build
    return decorate


def families() -> List[Family]:
    """The registered families, in order of registration."""
    return list(_FAMILIES.values())


def list_models() -> List[str]:
    """Example names of every family, plain and augmented, and gluoncv's CIFAR baselines; any other
    depth and width that a family's pattern takes works too."""
    names = [name for family in families() for name in family.examples]
    return names + [f'aa_{name}' for name in names] + _gluoncv_names()


def _gluoncv_names() -> List[str]:
    from gluoncv.model_zoo import get_model_list
    return sorted(name for name in get_model_list() if name.startswith(GLUONCV_PREFIX))


def get_model(name: str, classes: int = 10, *, input_size: Union[int, Tuple[int, int]] = (32, 32),
              pretrained: bool = False, ctx: Any = None, **options: Any) -> Any:
    """A network by name, in gluoncv's grammar: a HybridBlock from images (B, C, H, W) to logits (B, classes).

    It is not initialised, unless `pretrained`.

    Args:
        name: such as `aa_wrn28_10`, `resnet34`, or one of gluoncv's CIFAR baselines, such as `cifar_resnet20_v1`.
        classes: number of classes.
        input_size: (H, W) of the images, or one number for both, in pixels.
        pretrained, ctx: gluoncv's weights and the device to load them on; there are none for our networks.
        **options: fields of `Augmentation`, such as `placement`; the family's own (`dropout` of wrn*, `stem` of
            resnet*); for gluoncv's networks, its `get_model`'s.

    Raises:
        UsageError: an unknown name (lists the near ones), option or value.
    """
    size = (input_size, input_size) if isinstance(input_size, int) else input_size
    if classes < 1 or min(size) < 1:
        raise UsageError(f'classes={classes} and input_size={size} must be at least 1')
    if name.startswith(GLUONCV_PREFIX):
        return _from_gluoncv(name, classes=classes, pretrained=pretrained, ctx=ctx, **options)
    if pretrained:
        raise UsageError(f'there are no pretrained weights for {name}: leave out pretrained')
    family, numbers = _match(name)
    fields = {field.name for field in dataclasses.fields(Augmentation)}
    for option in options:
        if option not in fields and option not in family.options:
            raise unknown(f'option of {name}', option, fields.union(family.options))
    changes = {key: value for key, value in options.items() if key in fields and value is not None}
    if not name.startswith('aa_'):
        changes.setdefault('placement', 'none')
    own = {key: value for key, value in options.items() if key in family.options and value is not None}
    return family.build(**numbers, classes=classes, input_size=size,
                        augmentation=dataclasses.replace(family.augmentation, **changes), **own)


def eligible_layers(name: str, classes: int = 10, *, input_size: Union[int, Tuple[int, int]] = (32, 32)) -> int:
    """The greatest K of placement `last:K` in an `aa_` network; 0 of plain networks and of gluoncv's.

    Raises:
        UsageError: as `get_model`.
    """
    options: Dict[str, Any] = {'placement': 'paper', 'attention_backend': 'folded'} if name.startswith('aa_') else {}
    return augmented_layers(get_model(name, classes, input_size=input_size, **options))


def _match(name: str) -> Tuple[Family, Dict[str, int]]:
    plain = name[len('aa_'):] if name.startswith('aa_') else name
    for family in families():
        match = re.fullmatch(family.pattern, plain)
        if match:
            return family, {key: int(value) for key, value in match.groupdict().items()}
    raise unknown('network', name, list_models())


def _from_gluoncv(name: str, **options: Any) -> Any:
    from gluoncv.model_zoo import get_model as get_gluoncv_model
    given = {key: value for key, value in options.items() if value is not None}
    ours = {field.name for field in dataclasses.fields(Augmentation)}.union(*(family.options for family in families()))
    asked = sorted(ours.intersection(given))
    if asked:
        raise UsageError(f"{name} is gluoncv's and cannot be changed or augmented: leave out {', '.join(asked)}, "
                         'or take a network of ours, such as aa_wrn28_10')
    if name not in _gluoncv_names():
        raise unknown('network', name, list_models())
    return get_gluoncv_model(name, **given)

"""Which convolutions of a network are augmented, and how."""
import dataclasses
import math
import re
from typing import Any, Callable, Dict, FrozenSet, List, NamedTuple, Optional, Sequence, Tuple

from gluon_aa.attention import DEFAULT_TILE
from gluon_aa.compat import mx
from gluon_aa.errors import UsageError, unknown
from gluon_aa.layers import AttentionAugmentedConv2D

nn: Any = mx.gluon.nn

#: What --placement takes, as shown to users.
PLACEMENTS = ('none', 'paper', 'all', 'last:K', 'stages:I,J', 'seed', 'stageS.blockB.convC,...')


class Site(NamedTuple):
    """A 3x3 convolution of a residual block."""

    address: str  # 'stage3.block1.conv1', counted from 1
    stage: int
    eligible: bool  # the first 3x3 convolution of its block: what the paper augments


def residual_sites(blocks_per_stage: Sequence[int], names: Sequence[str]) -> List[Site]:
    """All 3x3 convolutions from input to output; `names` are those of one block, the eligible one first."""
    return [Site(f'stage{stage}.block{block}.{name}', stage, name == names[0])
            for stage, blocks in enumerate(blocks_per_stage, 1)
            for block in range(1, blocks + 1)
            for name in names]


def resolve_placement(placement: str, sites: Sequence[Site], seed: str) -> FrozenSet[str]:
    """The addresses that `placement` augments among `sites` (ordered from input to output).

    Args:
        placement: `none`; `paper`: every eligible convolution; `all`: every 3x3 convolution; `last:K`: K eligible
            ones counted from the output; `stages:2,3`: the eligible ones of those stages; `seed`: the one the
            replication augmented; or addresses separated by commas.
        seed: the address that `seed` stands for.

    Raises:
        UsageError: an unknown word or address, a K or a stage that the network doesn't have.
    """
    eligible = [site for site in sites if site.eligible]
    fixed: Dict[str, Callable[[], List[str]]] = {
        'none': lambda: [],
        'paper': lambda: [site.address for site in eligible],
        'all': lambda: [site.address for site in sites],
        'seed': lambda: [seed],
    }
    word, _, argument = placement.partition(':')
    if placement in fixed:
        return frozenset(fixed[placement]())
    if word == 'last':
        return frozenset(site.address for site in _last(argument, eligible))
    if word == 'stages':
        return frozenset(site.address for site in _of_stages(argument, eligible))
    return _addresses(placement, sites)


def _last(argument: str, eligible: Sequence[Site]) -> Sequence[Site]:
    if not argument.isdecimal() or int(argument) > len(eligible):
        raise UsageError(f"placement 'last:{argument}': K must be 0 to {len(eligible)}, "
                         'the number of convolutions that can be augmented')
    return eligible[len(eligible) - int(argument):]


def _of_stages(argument: str, eligible: Sequence[Site]) -> List[Site]:
    stages = {str(site.stage) for site in eligible}
    wanted = {stage.strip() for stage in argument.split(',')}
    if not wanted <= stages:
        raise UsageError(f"placement 'stages:{argument}': this network has stages {', '.join(sorted(stages))}")
    return [site for site in eligible if str(site.stage) in wanted]


def _addresses(placement: str, sites: Sequence[Site]) -> FrozenSet[str]:
    known = {site.address for site in sites}
    wanted = [address.strip() for address in placement.split(',')]
    for address in wanted:
        if address in known:
            continue
        if re.fullmatch(r'stage\d+\.block\d+\.\w+', address):
            raise unknown('convolution in placement', address, known)
        raise unknown('placement', placement, PLACEMENTS)
    return frozenset(wanted)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Which convolutions are augmented, and the attention they get: see `AttentionAugmentedConv2D`."""

    placement: str = 'none'
    num_heads: int = 8
    key_ratio: float = 0.2
    value_ratio: float = 0.1
    min_key_channels_per_head: int = 20
    relative: bool = True
    attention_pool: Optional[int] = None  # of the first augmented stage, which has the largest maps; None: 1
    attention_backend: str = 'auto'
    tile: int = DEFAULT_TILE

    def convolutions(self, sites: Sequence[Site], seed: str) -> 'Convolutions':
        """What makes the 3x3 convolutions of a network that has these sites."""
        return Convolutions(resolve_placement(self.placement, sites, seed), self)


class Convolutions:
    """Makes the 3x3 convolutions of a network: augmented ones at `addresses`, plain ones elsewhere."""

    def __init__(self, addresses: FrozenSet[str], augmentation: Augmentation) -> None:
        self.addresses = addresses
        self.augmentation = augmentation
        self.first_stage = min((address.split('.')[0] for address in addresses), default='')

    def __call__(self, address: str, channels: int, strides: int, in_channels: int, map_size: Tuple[int, int]) -> Any:
        """The convolution at `address`: (B, in_channels, strides*H, strides*W) -> (B, channels, H, W)."""
        if address not in self.addresses:
            return nn.Conv2D(channels, 3, strides, 1, use_bias=False, in_channels=in_channels)
        attention = dataclasses.asdict(self.augmentation)
        del attention['placement']
        if attention['attention_pool'] is None or address.split('.')[0] != self.first_stage:
            attention['attention_pool'] = 1
        try:
            return AttentionAugmentedConv2D(channels, 3, strides, map_size=map_size, in_channels=in_channels,
                                            **attention)
        except UsageError as error:
            raise UsageError(f'{address}: {error}') from error


def halved(size: Tuple[int, int], strides: int) -> Tuple[int, int]:
    """(H, W) after a convolution or pooling of these strides that pads to keep the size."""
    return math.ceil(size[0] / strides), math.ceil(size[1] / strides)


def is_augmented(net: Any) -> bool:
    """Whether any layer of `net` is an attention-augmented convolution."""
    return augmented_layers(net) > 0


def augmented_layers(net: Any) -> int:
    """How many layers of `net` are attention-augmented convolutions."""
    if isinstance(net, AttentionAugmentedConv2D):
        return 1
    return sum(map(augmented_layers, net._children.values()))

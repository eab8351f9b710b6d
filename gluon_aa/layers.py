"""The attention-augmented convolution (Bello et al. 2019, section 3.3) as a Gluon block."""
import math
from typing import Any, Optional, Tuple

from gluon_aa.attention import DEFAULT_TILE, check_tile, relative_attention, resolve_backend
from gluon_aa.compat import mx
from gluon_aa.errors import UsageError

nn: Any = mx.gluon.nn


def resolve_channels(channels: int, *, num_heads: int, key_ratio: float, value_ratio: float,
                     min_key_channels_per_head: int, key_channels: Optional[int] = None,
                     value_channels: Optional[int] = None) -> Tuple[int, int]:
    """The attention's (key_channels, value_channels) in a layer of `channels` output channels.

    A ratio (the paper's kappa, upsilon) times `channels` is rounded down to a multiple of `num_heads`; values
    have at least one channel a head, keys at least `min_key_channels_per_head`. An integer given explicitly
    is taken as it is.

    Raises:
        UsageError: integers that do not divide by `num_heads`, ratios that are not positive, or attention
            that leaves no channel for the convolution.
    """
    if num_heads < 1:
        raise UsageError(f'num_heads={num_heads} must be at least 1')
    for name, count in (('key_channels', key_channels), ('value_channels', value_channels)):
        if count is not None and (count < 1 or count % num_heads):
            lower = max(num_heads, count - count % num_heads)
            raise UsageError(f'{name}={count} does not divide by num_heads={num_heads}: '
                             f'try {lower} or {lower + num_heads}')
    for name, ratio in (('key_ratio', key_ratio), ('value_ratio', value_ratio)):
        if not ratio > 0:
            raise UsageError(f'{name}={ratio} must be greater than 0')
    if key_channels is None:
        key_channels = max(_share(key_ratio, channels, num_heads), min_key_channels_per_head * num_heads)
    if value_channels is None:
        value_channels = _share(value_ratio, channels, num_heads)
    if value_channels >= channels:
        raise UsageError(f'attention takes {value_channels} of {channels} channels and leaves none for the '
                         f'convolution: lower value_ratio ({value_ratio}) or num_heads ({num_heads})')
    return key_channels, value_channels


def _share(ratio: float, channels: int, num_heads: int) -> int:
    """ratio * channels rounded down to a multiple of num_heads, at least num_heads."""
    share = math.floor(round(ratio * channels, 6))  # round: 0.29 * 100 is 28.999999999999996
    return max(num_heads, share - share % num_heads)


class AttentionAugmentedConv2D(nn.HybridBlock):
    """concat[convolution(x), W^O attention(x)] along the channels; follow it with batch norm.

    Bello et al. 2019, section 3.3; no convolution has a bias. `value_channels` of the output's `channels` come from
    attention, the others from the convolution. Where the convolution strides, the 1x1 convolution that makes queries,
    keys and values strides too. With `attention_pool` p > 1 attention instead sees its input average-pooled
    (kernel 2p-1, stride p; the paper's 3x3 for p = 2) and its output is upsampled bilinearly: the paper's ImageNet
    recipe for maps that are too large.

    As in the paper's reference code, a layer has one pair of relative tables, shared by its heads.

    Args:
        channels: output channels, attention's included.
        kernel_size: of the convolution, odd, in pixels; padded to keep the map's size.
        strides: of the convolution and of the queries, keys and values.
        map_size: (H, W) of the output, in pixels.
        in_channels: input channels; 0 to infer them at the first call.
        num_heads: N_h.
        key_ratio: kappa = key_channels / channels. value_ratio: upsilon = value_channels / channels.
        min_key_channels_per_head: lower bound of key_channels / num_heads.
        key_channels, value_channels: instead of ratios.
        relative: learn relative position embeddings `rel_h` (2H-1, d) and `rel_w` (2W-1, d).
        attention_pool: p; 1 for attention on the map itself.
        attention_backend: see `gluon_aa.attention.BACKEND_NAMES`.
        tile: queries a tile of the backend `tiled`.

    Inputs: (B, in_channels, strides*H, strides*W). Outputs: (B, channels, H, W).

    Raises:
        UsageError: see `resolve_channels`; an even kernel; sizes below 1.
    """

    def __init__(self, channels: int, kernel_size: int = 3, strides: int = 1, *, map_size: Tuple[int, int],
                 in_channels: int = 0, num_heads: int = 8, key_ratio: float = 0.2, value_ratio: float = 0.1,
                 min_key_channels_per_head: int = 20, key_channels: Optional[int] = None,
                 value_channels: Optional[int] = None, relative: bool = True, attention_pool: int = 1,
                 attention_backend: str = 'auto', tile: int = DEFAULT_TILE, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if kernel_size % 2 == 0:
            raise UsageError(f'kernel_size={kernel_size} must be odd')
        if min(*map_size, strides, attention_pool) < 1:
            raise UsageError(f'map_size={map_size}, strides={strides}, attention_pool={attention_pool} '
                             'must be at least 1')
        check_tile(tile)
        self.map_size = map_size
        self.attention_pool = attention_pool
        self.attention_size = tuple(math.ceil(size / attention_pool) for size in map_size)  # (H, W) attention works on
        self.num_heads = num_heads
        self.relative = relative
        self.attention_backend, self.tile = resolve_backend(attention_backend), tile
        self.key_channels, self.value_channels = resolve_channels(
            channels, num_heads=num_heads, key_ratio=key_ratio, value_ratio=value_ratio,
            min_key_channels_per_head=min_key_channels_per_head, key_channels=key_channels,
            value_channels=value_channels)
        # oneDNN keeps gradients in blocks of 16 channels and cannot split one ("could not construct a sub-memory" in
        # the backward pass); it does not touch 3-D arrays. Can go when tests/test_layers.py passes with this True.
        self.aligned = (channels - self.value_channels) % 16 == 0
        height, width = self.attention_size
        key_depth = self.key_channels // num_heads
        with self.name_scope():
            self.conv = nn.Conv2D(channels - self.value_channels, kernel_size, strides, kernel_size // 2,
                                  use_bias=False, in_channels=in_channels)
            # Glorot's uniform weights, the reference code's (Keras's) default. He's, which convolutions have, are
            # larger and sharpen the softmax: a new aa_resnet34's stem had 35 times resnet34's gradient, and has 5 now
            self.qkv = nn.Conv2D(2 * self.key_channels + self.value_channels, 1, strides, use_bias=False,
                                 in_channels=in_channels, weight_initializer=mx.init.Xavier())
            self.projection = nn.Conv2D(self.value_channels, 1, use_bias=False, in_channels=self.value_channels,
                                        weight_initializer=mx.init.Xavier())
            if relative:
                # the reference code's initial deviation
                init = mx.init.Normal(key_depth ** -0.5)
                self.rel_h = self.params.get('rel_h', shape=(2 * height - 1, key_depth), init=init)
                self.rel_w = self.params.get('rel_w', shape=(2 * width - 1, key_depth), init=init)

    def hybrid_forward(self, F: Any, x: Any, rel_h: Any = None, rel_w: Any = None) -> Any:
        """x (B, in_channels, strides*H, strides*W) -> (B, channels, H, W)."""
        attended = self._project(F, self._attend(F, self.qkv(self._pool(F, x)), rel_h, rel_w))
        return self._join(F, self.conv(x), attended)

    def _pool(self, F: Any, x: Any) -> Any:
        p = self.attention_pool
        if p == 1:
            return x
        return F.Pooling(x, kernel=(2 * p - 1, 2 * p - 1), stride=(p, p), pad=(p - 1, p - 1), pool_type='avg',
                         count_include_pad=False)

    def _attend(self, F: Any, qkv: Any, rel_h: Any, rel_w: Any) -> Any:
        height, width = self.attention_size
        return relative_attention(F, qkv, rel_h, rel_w, height=height, width=width, num_heads=self.num_heads,
                                  key_channels=self.key_channels, value_channels=self.value_channels,
                                  attention_backend=self.attention_backend, tile=self.tile)

    def _project(self, F: Any, attended: Any) -> Any:
        attended = self.projection(attended)
        if self.attention_pool == 1:
            return attended
        height, width = self.map_size
        return F.contrib.BilinearResize2D(attended, height=height, width=width, align_corners=False)

    def _join(self, F: Any, convolved: Any, attended: Any) -> Any:
        """(B, channels - d_v, H, W) and (B, d_v, H, W) -> (B, channels, H, W)."""
        if self.aligned:
            return F.concat(convolved, attended, dim=1)
        height, width = self.map_size
        flat = F.concat(F.reshape(convolved, shape=(0, 0, -1)), F.reshape(attended, shape=(0, 0, -1)), dim=1)
        return F.reshape(flat, shape=(0, 0, height, width))  # (B, channels, H*W) -> (B, channels, H, W)

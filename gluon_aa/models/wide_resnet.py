"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv 1605.07146), plain and attention-augmented.

Pre-activation blocks, a stem of 16 channels, three stages of 16k, 32k, 64k channels at 1, 1/2, 1/4 of the input's
size; a 1x1 shortcut without batch norm in each stage's first block; a final batch norm; no convolution has a bias.
"""
from typing import Any, Tuple

from gluon_aa.compat import mx
from gluon_aa.errors import UsageError
from gluon_aa.models.activation import relu
from gluon_aa.models.placement import Augmentation, Convolutions, halved, residual_sites
from gluon_aa.models.registry import register

nn: Any = mx.gluon.nn


class WideBlock(nn.HybridBlock):
    """norm-relu-conv1-norm-relu-dropout-conv2 beside the identity or a 1x1 convolution of the activated input."""

    def __init__(self, address: str, channels: int, strides: int, in_channels: int, map_size: Tuple[int, int],
                 convolution: Convolutions, dropout: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.norm1 = nn.BatchNorm(in_channels=in_channels)
            self.conv1 = convolution(f'{address}.conv1', channels, strides, in_channels, map_size)
            self.norm2 = nn.BatchNorm(in_channels=channels)
            self.dropout = nn.Dropout(dropout) if dropout else None
            self.conv2 = convolution(f'{address}.conv2', channels, 1, channels, map_size)
            self.shortcut = None
            if in_channels != channels or strides != 1:
                self.shortcut = nn.Conv2D(channels, 1, strides, use_bias=False, in_channels=in_channels)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        """x (B, in_channels, strides*H, strides*W) -> (B, channels, H, W)."""
        activated = relu(F, self.norm1(x))
        shortcut = self.shortcut(activated) if self.shortcut is not None else x
        x = relu(F, self.norm2(self.conv1(activated)))
        if self.dropout is not None:
            x = self.dropout(x)
        return self.conv2(x) + shortcut


class WideResNet(nn.HybridBlock):
    """Images (B, C, H, W) -> logits (B, classes). Addresses: stem, stage1.block1.conv1, ..., norm, output."""

    def __init__(self, blocks: int, widen_factor: int, classes: int, input_size: Tuple[int, int],
                 convolution: Convolutions, dropout: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.stem = nn.Conv2D(16, 3, 1, 1, use_bias=False)
            in_channels, size = 16, input_size
            for number, base in enumerate((16, 32, 64), 1):
                stage = nn.HybridSequential(prefix=f'stage{number}_')
                with stage.name_scope():
                    for block in range(1, blocks + 1):
                        strides = 2 if number > 1 and block == 1 else 1
                        size = halved(size, strides)
                        stage.register_child(WideBlock(
                            f'stage{number}.block{block}', base * widen_factor, strides, in_channels, size,
                            convolution, dropout, prefix=f'block{block}_'), f'block{block}')
                        in_channels = base * widen_factor
                setattr(self, f'stage{number}', stage)
            self.norm = nn.BatchNorm(in_channels=in_channels)
            self.output = nn.Dense(classes, in_units=in_channels)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        """x (B, C, H, W) -> (B, classes)."""
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        x = relu(F, self.norm(x))
        return self.output(F.Pooling(x, global_pool=True, pool_type='avg', kernel=(1, 1)))


@register(r'wrn(?P<depth>\d+)_(?P<widen_factor>\d+)', examples=('wrn16_4', 'wrn28_10', 'wrn40_4'),
          augmentation=Augmentation(placement='paper', num_heads=8, key_ratio=0.2, value_ratio=0.1))
def wide_resnet(depth: int, widen_factor: int, *, classes: int, input_size: Tuple[int, int],
                augmentation: Augmentation, dropout: float = 0.0) -> WideResNet:
    """Wide-ResNet-<depth>-<widen_factor>; depth = 6n + 4, n blocks a stage."""
    blocks, remainder = divmod(depth - 4, 6)
    if blocks < 1 or remainder or widen_factor < 1:
        nearest = 6 * max(1, round((depth - 4) / 6)) + 4
        raise UsageError(f'wrn{depth}_{widen_factor}: the depth must be 6n + 4 and the width at least 1, '
                         f'such as wrn{nearest}_{max(1, widen_factor)}')
    sites = residual_sites([blocks] * 3, ('conv1', 'conv2'))
    # the replication's text augments the first convolution of the third group
    convolutions = augmentation.convolutions(sites, seed='stage3.block1.conv1')
    return WideResNet(blocks, widen_factor, classes, input_size, convolutions, dropout)

"""Residual networks (He et al. 2015, arXiv 1512.03385), plain and attention-augmented.

Post-activation blocks, batch norm in the shortcuts, projections where the shape changes; no convolution has a bias.
Bottlenecks stride in their 3x3 convolution. The `cifar` stem is the replication's: 7x7 at stride 1, then 3x3 max-pool
at stride 2; the `imagenet` stem strides in both.
"""
import dataclasses
from typing import Any, NamedTuple, Sequence, Tuple

from gluon_aa.compat import mx
from gluon_aa.errors import unknown
from gluon_aa.models.activation import relu
from gluon_aa.models.placement import Augmentation, Convolutions, halved, residual_sites
from gluon_aa.models.registry import register

nn: Any = mx.gluon.nn

STEM_STRIDES = {'cifar': 1, 'imagenet': 2}
STAGE_CHANNELS = (64, 128, 256, 512)


class _Residual(nn.HybridBlock):
    """relu(branch(x) + shortcut(x)); the branch is the subclass's."""

    def __init__(self, out_channels: int, strides: int, in_channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.shortcut: Any = None
            self.shortcut_norm: Any = None
            if in_channels != out_channels or strides != 1:
                self.shortcut = nn.Conv2D(out_channels, 1, strides, use_bias=False, in_channels=in_channels)
                self.shortcut_norm = nn.BatchNorm(in_channels=out_channels)

    def branch(self, F: Any, x: Any) -> Any:
        raise AttributeError('a residual block defines its branch')

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        """x (B, in_channels, strides*H, strides*W) -> (B, out_channels, H, W)."""
        shortcut = x if self.shortcut is None else self.shortcut_norm(self.shortcut(x))
        return relu(F, self.branch(F, x) + shortcut)


class BasicBlock(_Residual):
    """Two 3x3 convolutions."""

    convolutions = ('conv1', 'conv2')
    expansion = 1

    def __init__(self, address: str, channels: int, strides: int, in_channels: int, map_size: Tuple[int, int],
                 convolution: Convolutions, **kwargs: Any) -> None:
        super().__init__(channels, strides, in_channels, **kwargs)
        with self.name_scope():
            self.conv1 = convolution(f'{address}.conv1', channels, strides, in_channels, map_size)
            self.norm1 = nn.BatchNorm(in_channels=channels)
            self.conv2 = convolution(f'{address}.conv2', channels, 1, channels, map_size)
            self.norm2 = nn.BatchNorm(in_channels=channels)

    def branch(self, F: Any, x: Any) -> Any:
        return self.norm2(self.conv2(relu(F, self.norm1(self.conv1(x)))))


class Bottleneck(_Residual):
    """1x1, 3x3, 1x1 convolutions; the last has four times the channels."""

    convolutions = ('conv2',)
    expansion = 4

    def __init__(self, address: str, channels: int, strides: int, in_channels: int, map_size: Tuple[int, int],
                 convolution: Convolutions, **kwargs: Any) -> None:
        super().__init__(4 * channels, strides, in_channels, **kwargs)
        with self.name_scope():
            self.conv1 = nn.Conv2D(channels, 1, use_bias=False, in_channels=in_channels)
            self.norm1 = nn.BatchNorm(in_channels=channels)
            self.conv2 = convolution(f'{address}.conv2', channels, strides, channels, map_size)
            self.norm2 = nn.BatchNorm(in_channels=channels)
            self.conv3 = nn.Conv2D(4 * channels, 1, use_bias=False, in_channels=channels)
            self.norm3 = nn.BatchNorm(in_channels=4 * channels)

    def branch(self, F: Any, x: Any) -> Any:
        x = relu(F, self.norm1(self.conv1(x)))
        x = relu(F, self.norm2(self.conv2(x)))
        return self.norm3(self.conv3(x))


class Variant(NamedTuple):
    """A row of He et al.'s table 1."""

    block: Any
    blocks_per_stage: Sequence[int]


VARIANTS = {
    18: Variant(BasicBlock, (2, 2, 2, 2)),
    34: Variant(BasicBlock, (3, 4, 6, 3)),
    50: Variant(Bottleneck, (3, 4, 6, 3)),
    101: Variant(Bottleneck, (3, 4, 23, 3)),
    152: Variant(Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.HybridBlock):
    """Images (B, C, H, W) -> logits (B, classes). Addresses: stem, stem_norm, stage1.block1.conv1, ..., output."""

    def __init__(self, variant: Variant, stem_strides: int, classes: int, input_size: Tuple[int, int],
                 convolution: Convolutions, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.stem = nn.Conv2D(64, 7, stem_strides, 3, use_bias=False)
            self.stem_norm = nn.BatchNorm(in_channels=64)
            in_channels, size = 64, halved(halved(input_size, stem_strides), 2)
            for number, (channels, blocks) in enumerate(zip(STAGE_CHANNELS, variant.blocks_per_stage), 1):
                stage = nn.HybridSequential(prefix=f'stage{number}_')
                with stage.name_scope():
                    for block in range(1, blocks + 1):
                        strides = 2 if number > 1 and block == 1 else 1
                        size = halved(size, strides)
                        stage.register_child(variant.block(
                            f'stage{number}.block{block}', channels, strides, in_channels, size, convolution,
                            prefix=f'block{block}_'), f'block{block}')
                        in_channels = channels * variant.block.expansion
                setattr(self, f'stage{number}', stage)
            self.output = nn.Dense(classes, in_units=in_channels)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        """x (B, C, H, W) -> (B, classes)."""
        x = relu(F, self.stem_norm(self.stem(x)))
        x = F.Pooling(x, kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type='max')
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        return self.output(F.Pooling(x, global_pool=True, pool_type='avg', kernel=(1, 1)))


@register(r'resnet(?P<depth>18|34|50|101|152)', examples=tuple(f'resnet{depth}' for depth in VARIANTS),
          augmentation=Augmentation(placement='stages:2,3,4', num_heads=8, key_ratio=0.25, value_ratio=0.25))
def resnet(depth: int, *, classes: int, input_size: Tuple[int, int], augmentation: Augmentation,
           stem: str = 'cifar') -> ResNet:
    """ResNet-<depth> with the replication's stem (cifar) or the paper's (imagenet)."""
    if stem not in STEM_STRIDES:
        raise unknown('stem', stem, STEM_STRIDES)
    if stem == 'imagenet' and augmentation.attention_pool is None:
        augmentation = dataclasses.replace(augmentation, attention_pool=2)  # the paper's ImageNet recipe
    variant = VARIANTS[depth]
    sites = residual_sites(variant.blocks_per_stage, variant.block.convolutions)
    # the replication's text augments "just the last layer of the network": the last 3x3 convolution
    convolutions = augmentation.convolutions(sites, seed=sites[-1].address)
    return ResNet(variant, STEM_STRIDES[stem], classes, input_size, convolutions)

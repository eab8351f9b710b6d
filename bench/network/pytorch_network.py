"""WRN-28-10, plain or attention-augmented in all twelve blocks, in PyTorch, channels_last; see compare.py.

The same architecture as gluon_aa/models/wide_resnet.py, with modules of the same names, so that weights can be copied.
A form of bench/attention/pytorch_forms.py computes the attention; `compiled-` before its name compiles the whole
network, and `none` stands for the plain one.
"""
import contextlib
import pathlib
import sys
from typing import Any, Callable, Optional

import numpy as np

import torch
from torch import nn
from torch.nn import functional

BENCH = pathlib.Path(__file__).parents[1]
sys.path += [str(BENCH / 'attention'), str(BENCH / 'frameworks')]
import loop  # noqa: E402
import pytorch_forms  # noqa: E402

HEADS, KEY_RATIO, VALUE_RATIO, MIN_KEY_CHANNELS = 8, 0.2, 0.1, 160
PARAMETERS = {'none': 36_479_194, 'augmented': 36_254_970}  # of 10 classes, as gluon-aa models show says

Attend = Callable[..., torch.Tensor]


class AugmentedConv2d(nn.Module):
    """concat[convolution(x), projection of attention(x)]."""

    def __init__(self, in_channels: int, channels: int, stride: int, map_size: int, form: pytorch_forms.Form) -> None:
        super().__init__()
        keys = max(int(KEY_RATIO * channels) // HEADS * HEADS, MIN_KEY_CHANNELS)
        values = int(VALUE_RATIO * channels) // HEADS * HEADS
        self.conv = nn.Conv2d(in_channels, channels - values, 3, stride, 1, bias=False)
        self.qkv = nn.Conv2d(in_channels, 2 * keys + values, 1, stride, bias=False)
        self.projection = nn.Conv2d(values, values, 1, bias=False)
        depth = keys // HEADS
        self.rel_h = nn.Parameter(torch.randn(2 * map_size - 1, depth) * depth ** -0.5)
        self.rel_w = nn.Parameter(torch.randn(2 * map_size - 1, depth) * depth ** -0.5)
        self.attend = form.build(pytorch_forms.Sizes(map_size, map_size, HEADS, keys, values))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attended = self.projection(self.attend(self.qkv(x), self.rel_h, self.rel_w))
        return torch.cat([self.conv(x), attended], 1)


class Block(nn.Module):
    """norm-relu-conv1-norm-relu-conv2 beside the identity or a 1x1 convolution of the activated input."""

    def __init__(self, in_channels: int, channels: int, stride: int, map_size: int,
                 form: Optional[pytorch_forms.Form]) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = (AugmentedConv2d(in_channels, channels, stride, map_size, form) if form else
                      nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False))
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut = None
        if in_channels != channels or stride != 1:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = functional.relu(self.norm1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        x = functional.relu(self.norm2(self.conv1(activated)), inplace=True)
        return self.conv2(x) + shortcut


class WideResNet(nn.Module):
    """Images (B, 3, 32, 32) -> logits (B, 10)."""

    def __init__(self, form: Optional[pytorch_forms.Form]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        in_channels, size = 16, 32
        for number, channels in enumerate((160, 320, 640), 1):
            blocks = {}
            for block in range(1, 5):
                stride = 2 if number > 1 and block == 1 else 1
                size //= stride
                blocks[f'block{block}'] = Block(in_channels, channels, stride, size, form)
                in_channels = channels
            stage = nn.Sequential()
            for name, module in blocks.items():
                stage.add_module(name, module)
            self.add_module(f'stage{number}', stage)
        self.norm = nn.BatchNorm2d(in_channels)
        self.output = nn.Linear(in_channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.output(functional.relu(self.norm(x)).mean((2, 3)))


def build(name: str) -> nn.Module:
    """The network whose attention is of form `name`, not compiled; as many parameters as gluon-aa's."""
    plain = name == 'none'
    net = WideResNet(None if plain else pytorch_forms.FORMS[name]._replace(compiled=False))
    count = sum(parameter.numel() for parameter in net.parameters())
    assert count == PARAMETERS['none' if plain else 'augmented'], count
    return net.to(memory_format=torch.channels_last)


_NAMES = {'gamma': 'weight', 'beta': 'bias'}  # of batch norm's parameters, MXNet's to PyTorch's


def copy_weights(net: nn.Module, path: str) -> None:
    """Load what mxnet_network.py saved."""
    state = net.state_dict()
    missing = {name for name in state if not name.endswith('num_batches_tracked')}
    with np.load(path) as arrays:
        for name in arrays.files:
            head, _, last = name.rpartition('.')
            target = f'{head}.{_NAMES.get(last, last)}'
            state[target].copy_(torch.from_numpy(arrays[name]))
            missing.remove(target)
    assert not missing, missing


def check(name: str, path: str) -> None:
    """Print the logits for mxnet_network's weights and images, in inference and with the batch's own statistics."""
    net = build(name)
    copy_weights(net, path)
    images = torch.from_numpy(loop.batch(2)[0]).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        found = [net.train(training)(images).numpy() for training in (False, True)]
    np.savez(path, *found)


def main() -> None:
    parser = loop.parser(__doc__)
    parser.add_argument('--form', default='pad-and-reshape')
    parser.add_argument('--check', metavar='NPZ', help='weights to copy; replaced by the logits')
    options: Any = parser.parse_args()
    torch.set_num_threads(options.threads)
    compiled = options.form.startswith('compiled-')
    name = options.form[len('compiled-'):] if compiled else options.form
    if options.check:
        check(name, options.check)
        return
    net = build(name).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    images, labels = map(torch.from_numpy, loop.batch(options.batch_size))
    images = images.contiguous(memory_format=torch.channels_last)
    run = torch.compile(net, dynamic=False) if compiled else net

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast('cpu', torch.bfloat16) if options.dtype == 'bfloat16' else contextlib.nullcontext():
            logits = run(images)
        functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    loop.run(options, step, lambda: None, f'PyTorch {torch.__version__.split("+")[0]}')


if __name__ == '__main__':
    main()

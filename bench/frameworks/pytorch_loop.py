"""ResNet-34 of the replication (7x7 stem at stride 1, 3x3 max-pool) in PyTorch, channels_last; see loop.py."""
import contextlib

import loop

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, as torchvision's BasicBlock."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity() if stride == 1 and in_channels == channels else nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)), inplace=True)))
        return functional.relu(branch + self.shortcut(x), inplace=True)


def resnet34() -> nn.Module:
    layers = [nn.Conv2d(3, 64, 7, 1, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    in_channels = 64
    for number, (channels, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            layers.append(Block(in_channels, channels, 2 if number and not block else 1))
            in_channels = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def main() -> None:
    options = loop.arguments(__doc__)
    torch.set_num_threads(options.threads)
    net = resnet34().to(memory_format=torch.channels_last).train()
    assert sum(parameter.numel() for parameter in net.parameters()) == 21_289_802
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    images, labels = map(torch.from_numpy, loop.batch(options.batch_size))
    images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast('cpu', torch.bfloat16) if options.dtype == 'bfloat16' else contextlib.nullcontext():
            logits = net(images)
        functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    loop.run(options, step, lambda: None, f'PyTorch {torch.__version__.split("+")[0]}')


if __name__ == '__main__':
    main()

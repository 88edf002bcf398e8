"""Residual networks for small images: the four-stage family of any width, and the three-stage one of [He 2016]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lossatlas.tasks.convnets import image_channels


def _projection(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    """A shortcut to another shape: 1 x 1 convolution with BatchNorm."""
    return nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels))


# Layers draw their initial weights in the order in which they are made: it belongs to the bits of every model, as
# the names belong to every file of weights.


class _BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm and a shortcut: 1 x 1 with BatchNorm where the shape changes."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = _projection(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class _Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (with the stride) and 1 x 1 convolution onto four times the channels; a shortcut as above."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        channels_out = self.expansion * channels
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = _projection(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


# The block of each depth, and how many of it there are in the four stages [He 2016].
_FAMILY: dict[int, tuple[type[_BasicBlock | _Bottleneck], tuple[int, int, int, int]]] = {
    18: (_BasicBlock, (2, 2, 2, 2)),
    34: (_BasicBlock, (3, 4, 6, 3)),
    50: (_Bottleneck, (3, 4, 6, 3)),
    101: (_Bottleneck, (3, 4, 23, 3)),
    152: (_Bottleneck, (3, 8, 36, 3)),
}


class _ResNet(nn.Module):
    """A 3 x 3 stem, the blocks, mean pooling, a linear layer; `blocks` are made when their turn comes."""

    def __init__(
        self, channels_in: int, classes: int, width: int, blocks: Iterator[nn.Module], features: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.blocks(F.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.linear(out.mean(dim=(2, 3)))
        return logits


def _four_stages(block: type[_BasicBlock | _Bottleneck], counts: Sequence[int], width: int) -> Iterator[nn.Module]:
    before = width
    for stage, count in enumerate(counts):
        channels = width * 2**stage
        for index in range(count):
            yield block(before, channels, stride=2 if stage > 0 and index == 0 else 1)
            before = block.expansion * channels


def resnet(*, input_shape: Sequence[int], classes: int, width: int, depth: int) -> nn.Module:
    """The ResNet of `depth` 18, 34, 50, 101 or 152 for 32 x 32 images: a 3 x 3 stem, no max-pooling [Yang2021].

    Four stages with channels k, 2k, 4k, 8k (k = `width`); from depth 50 on the blocks are bottlenecks that give
    four times as many, with the stride in their 3 x 3 convolution. Larger images may be given too. With k = 64,
    the usual width, and 10 classes the parameters number 11,173,962, 21,282,122, 23,520,842, 42,512,970 and
    58,156,618; ResNet18 with k = 8 has 176,402 and with k = 1 has 2,991.
    """
    block, counts = _FAMILY[depth]
    blocks = _four_stages(block, counts, width)
    return _ResNet(image_channels(input_shape), classes, width, blocks, 8 * width * block.expansion)


def resnet18(*, input_shape: Sequence[int], classes: int, width: int) -> nn.Module:
    """`resnet` of depth 18, the model of [Yang2021]."""
    return resnet(input_shape=input_shape, classes=classes, width=width, depth=18)


Shortcut = Literal["pad", "projection"]


class _Padding(nn.Module):
    """The shortcut without parameters: every second pixel, and channels of zeros."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self._channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self._channels))


class _CifarBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm, and a shortcut unless there is to be none."""

    def __init__(self, channels_in: int, channels: int, *, skip: bool, shortcut: Shortcut) -> None:
        super().__init__()
        stride = channels // channels_in
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module | None = nn.Identity() if skip else None
        if skip and stride != 1 and shortcut == "pad":
            self.shortcut = _Padding(channels - channels_in)
        elif skip and stride != 1:
            self.shortcut = _projection(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out if self.shortcut is None else out + self.shortcut(x))


def _three_stages(width: int, count: int, *, skip: bool, shortcut: Shortcut) -> Iterator[nn.Module]:
    for before, channels in ((width, width), (width, 2 * width), (2 * width, 4 * width)):
        for index in range(count):
            yield _CifarBlock(before if index == 0 else channels, channels, skip=skip, shortcut=shortcut)


def cifar_resnet(
    *,
    input_shape: Sequence[int],
    classes: int,
    depth: int,
    skip: bool,
    width: int = 16,
    shortcut: Shortcut = "pad",
) -> nn.Module:
    """The ResNet for 32 x 32 images of [He 2016], with 6n + 2 = `depth` layers, or the same without shortcuts.

    A 3 x 3 stem, three stages of n blocks with channels k, 2k, 4k (k = `width`), mean pooling, a linear layer. The
    shortcuts between stages skip pixels and add channels of zeros (`pad`, option A of [He 2016], which uses it
    throughout on CIFAR), or are 1 x 1 convolutions with BatchNorm (`projection`, option B). `pad` is the default
    because it has no parameters, so that shortcuts are the only difference to the networks without: with 10
    classes and k = 16 depths 32, 56 and 110 have 464,154, 853,018 and 1,727,962 parameters, with shortcuts and
    without [Xu2024; Li 2018]. Projections add 2,752.
    """
    blocks = _three_stages(width, (depth - 2) // 6, skip=skip, shortcut=shortcut)
    return _ResNet(image_channels(input_shape), classes, width, blocks, 4 * width)

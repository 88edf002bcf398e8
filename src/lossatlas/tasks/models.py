"""The models that come with lossatlas; each takes the shape of one input, the classes and its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossatlas import registry
from lossatlas.errors import UserError
from lossatlas.seeding import derive


def build(name: str, options: dict[str, Any], *, input_shape: Sequence[int], classes: int, seed: int) -> nn.Module:
    """The freshly initialised model of a seed; the global random state is put back.

    One's own `module:function` is called with its options, and with `input_shape` and `classes` if it takes them.
    Raises UserError when it does not return an nn.Module.
    """
    function = registry.resolve(name, registry.MODELS, "model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "initialisation"))
        with registry.blamed(f"model {name!r} with {options}"):
            model = function(**_accepted(function, input_shape=tuple(input_shape), classes=classes), **options)
    if not isinstance(model, nn.Module):
        raise UserError(f"model {name!r} returned a {type(model).__name__}; it must return a torch.nn.Module.")
    return model


def _accepted(function: Callable[..., Any], **offered: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return offered
    return {name: value for name, value in offered.items() if name in {p.name for p in parameters}}


def mlp(*, input_shape: Sequence[int], classes: int, width: int, depth: int = 1) -> nn.Module:
    """Flatten, then `depth` hidden ReLU layers of `width` units, then a linear layer onto the classes."""
    sizes = [int(torch.Size(input_shape).numel()), *[width] * depth]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def cnn(*, input_shape: Sequence[int], classes: int, width: int) -> nn.Module:
    """Two 3 x 3 convolutions with BatchNorm and ReLU (the second with stride 2), mean pooling, a linear layer."""
    channels = _channels(input_shape)
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, classes),
    )


class _BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm and a shortcut: 1 x 1 with BatchNorm where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class _ResNet18(nn.Module):
    def __init__(self, channels_in: int, classes: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        before = width
        for stage in range(4):
            channels = width * 2**stage
            for block in range(2):
                blocks.append(_BasicBlock(before, channels, stride=2 if stage > 0 and block == 0 else 1))
                before = channels
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.blocks(F.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.linear(out.mean(dim=(2, 3)))
        return logits


def resnet18(*, input_shape: Sequence[int], classes: int, width: int) -> nn.Module:
    """ResNet18 for 32 x 32 images [Yang2021]: channels k, 2k, 4k, 8k, a 3 x 3 stem, no max-pooling.

    Width k = 64 is the usual one with 11,173,962 parameters; k = 8 has 176,402 and k = 1 has 2,991 (10 classes).
    """
    return _ResNet18(_channels(input_shape), classes, width)


def _channels(input_shape: Sequence[int]) -> int:
    if len(input_shape) != 3:
        raise UserError(
            "This model takes images of shape (channels, height, width); the data have shape "
            f"{tuple(input_shape)}. Choose the model mlp, or data that are images."
        )
    return input_shape[0]

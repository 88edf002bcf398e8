"""The models that come with lossatlas; each takes the shape of one input, the classes and its options."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossatlas import registry
from lossatlas.errors import UserError
from lossatlas.seeding import derive

TORCHVISION = "torchvision:"


def build(
    name: str, options: dict[str, Any], *, input_shape: Sequence[int], classes: int | None, seed: int
) -> nn.Module:
    """The freshly initialised model of a seed; the global random state is put back.

    One's own `module:function` is called with its options, and with `input_shape` and `classes` if it takes them;
    `torchvision:NAME` is a classifier of torchvision, without weights. `classes` is None for regression, which
    takes a model of one's own. Raises UserError when what is called does not return an nn.Module.
    """
    if classes is None and not registry.is_custom(name.removeprefix(TORCHVISION)):
        raise UserError(
            f"model {name!r} is a classifier, and the targets of the data are no classes. Give a model of your "
            "own as module:function."
        )
    function = _torchvision(name) if name.startswith(TORCHVISION) else _named(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "initialisation"))
        with registry.blamed(f"model {name!r} with {options}"):
            model = function(**_accepted(function, input_shape=tuple(input_shape), classes=classes), **options)
    if not isinstance(model, nn.Module):
        raise UserError(f"model {name!r} returned a {type(model).__name__}; it must return a torch.nn.Module.")
    return model


def _named(name: str) -> Callable[..., Any]:
    function = registry.resolve(name, registry.MODELS, "model")
    return partial(function, **registry.MODELS[name].fixed) if name in registry.MODELS else function


def _torchvision(name: str) -> Callable[..., Any]:
    """The builder of a torchvision model; raises UserError where torchvision is missing or has no such model."""
    try:
        library = importlib.import_module("torchvision.models")
    except ImportError as error:
        raise UserError(f"model {name!r} needs the extra: pip install 'lossatlas[vision]'.") from error
    except RuntimeError as error:  # what a torchvision for another build of PyTorch says
        raise UserError(
            f"model {name!r}: torchvision does not fit the PyTorch that is installed ({error}). Install the pair "
            "that belongs together, see https://pytorch.org."
        ) from error
    short, known = name.removeprefix(TORCHVISION), library.list_models(module=library)
    if short not in known:
        close = difflib.get_close_matches(short, known, n=3)
        meant = f" Did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"torchvision has no classifier {short!r}; it has {len(known)}.{meant}")

    def built(*, input_shape: Sequence[int], classes: int, **options: Any) -> nn.Module:  # noqa: ARG001
        model: nn.Module = library.get_model(short, weights=None, num_classes=classes, **options)
        return model

    return built


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


class _CifarBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm; a shortcut to more channels skips pixels and adds zeros."""

    def __init__(self, channels_in: int, channels: int, *, skip: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=channels // channels_in, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self._skip, self._padding = skip, channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self._skip:
            shortcut = x if self._padding == 0 else F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self._padding))
            out = out + shortcut
        return F.relu(out)


class _CifarResNet(nn.Module):
    def __init__(self, channels_in: int, classes: int, width: int, blocks: int, *, skip: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages = ((width, width), (width, 2 * width), (2 * width, 4 * width))
        self.blocks = nn.Sequential(
            *(
                _CifarBlock(before if block == 0 else channels, channels, skip=skip)
                for before, channels in stages
                for block in range(blocks)
            )
        )
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.blocks(F.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.linear(out.mean(dim=(2, 3)))
        return logits


def cifar_resnet(
    *, input_shape: Sequence[int], classes: int, depth: int, skip: bool, width: int = 16
) -> nn.Module:
    """The ResNet for 32 x 32 images of [He 2016], with 6n + 2 = `depth` layers, or the same without shortcuts.

    A 3 x 3 stem, three stages of n blocks with channels k, 2k, 4k (k = `width`), mean pooling, a linear layer. The
    shortcuts have no parameters (option A), so that with 10 classes and k = 16 depths 32, 56 and 110 have 464,154,
    853,018 and 1,727,962 parameters, with shortcuts and without [Xu2024; Li 2018].
    """
    return _CifarResNet(_channels(input_shape), classes, width, (depth - 2) // 6, skip=skip)


def _channels(input_shape: Sequence[int]) -> int:
    if len(input_shape) != 3:
        raise UserError(
            "This model takes images of shape (channels, height, width); the data have shape "
            f"{tuple(input_shape)}. Choose the model mlp, or data that are images."
        )
    return input_shape[0]

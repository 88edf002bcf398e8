"""Convolutional networks without shortcuts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lossatlas.errors import UserError


def image_channels(input_shape: Sequence[int]) -> int:
    """The channels of images (channels, height, width); raises UserError for inputs of another shape."""
    if len(input_shape) != 3:
        raise UserError(
            "This model takes images of shape (channels, height, width); the data have shape "
            f"{tuple(input_shape)}. Choose the model mlp, or data that are images."
        )
    return input_shape[0]


def cnn(*, input_shape: Sequence[int], classes: int, width: int) -> nn.Module:
    """Two 3 x 3 convolutions with BatchNorm and ReLU (the second with stride 2), mean pooling, a linear layer."""
    channels = image_channels(input_shape)
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


# Channels in units of the width, and whether the image is halved afterwards.
VGG11 = ((1, True), (2, True), (4, False), (4, True), (8, False), (8, True), (8, False), (8, True))


def vgg11(*, input_shape: Sequence[int], classes: int, width: int) -> nn.Module:
    """VGG11 with BatchNorm for images of 32 x 32 pixels or more: channels k, 2k, 4k, 4k, 8k, 8k, 8k, 8k.

    3 x 3 convolutions, five max-poolings, mean pooling of what is left (one pixel of 32 x 32), and one linear
    layer onto the classes. k = `width` = 64 gives the usual network with 9,231,114 parameters (10 classes).
    [Yang2021] does not say how VGG11 is scaled: that all channels grow with k, as in its ResNet18, is our choice.

    The convolutions have biases, as in the usual code. BatchNorm takes them out again where it uses the statistics
    of the batch: the loss does not depend on them there.
    """
    before = image_channels(input_shape)
    if min(input_shape[1:]) < 32:
        raise UserError(
            f"vgg11 halves the image five times, which takes 32 x 32 pixels or more; the data have shape "
            f"{tuple(input_shape)}. Choose another model, such as cnn, or larger images."
        )
    layers: list[nn.Module] = []
    for factor, is_halved in VGG11:
        channels = factor * width
        layers += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
        if is_halved:
            layers.append(nn.MaxPool2d(2))
        before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))

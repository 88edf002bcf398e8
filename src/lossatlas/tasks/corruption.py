"""Subsets, label noise and image noise, drawn once per experiment and shared by all of its models [Yang2021]."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lossatlas.errors import UserError
from lossatlas.seeding import derive
from lossatlas.specs import Data
from lossatlas.specs.schema import ImageNoise
from lossatlas.tasks.data import IntArray, RawData

LEVELS = 255  # of the pixel of a usual image, in which magnitudes of noise are given
CHUNK = 64  # images whose noise is in memory at once; the draws follow each other, so it changes no bit

_DRAWS: Mapping[str, Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float64]]] = {
    "bernoulli": lambda generator, shape: np.where(generator.random(shape) < 0.5, -1.0, 1.0),
    "gaussian": lambda generator, shape: generator.standard_normal(shape),
    "uniform": lambda generator, shape: generator.uniform(-1.0, 1.0, shape),
    "positive_uniform": lambda generator, shape: generator.random(shape),
}


def corrupted(raw: RawData, settings: Data) -> RawData:
    """The data as the spec wants them: labels randomised, then the first `n_train` samples, then their pixels.

    Of the test samples the first `n_test`. The noise of a sample does not depend on either number, and a larger
    fraction randomises the same samples and more, as [Yang2021]'s code makes its subsets with noise. The test data
    stay clean unless `test_noise` asks for the same noise from streams of its own. Raises UserError when there are
    fewer training samples than asked for, when image noise is for other data than uint8 images whose `scale` is
    white, and when it is too weak to change them.
    """
    if raw.sequences and (settings.label_noise or settings.test_noise):
        raise UserError(f"Data {settings.name!r} are sequences of tokens, which have no label noise. Remove it.")
    labels = raw.train_targets
    if not raw.sequences:
        labels = noisy_labels(labels, raw.classes, settings.label_noise, settings.definition)
    n_train = settings.n_train if settings.n_train is not None else len(labels)
    if n_train > len(labels):
        raise UserError(
            f"n_train = {n_train} was given, but data {settings.name!r} have {len(labels)} training samples. "
            f"Give at most {len(labels)}."
        )
    noise, images = settings.image_noise, raw.train_inputs[:n_train]
    highest = LEVELS if noise is None else _highest(raw, noise, settings.name)
    if noise is not None:
        images = noisy_images(images, noise, highest=highest)
    return _with_test(replace(raw, train_inputs=images, train_targets=labels[:n_train]), settings, highest)


def _highest(raw: RawData, noise: ImageNoise, name: str) -> int:
    """The level of a white pixel; raises UserError where it is not known, or all noise would be rounded away."""
    both = raw.train_inputs, raw.test_inputs
    given = f"image_noise was given, but data {name!r} hold"
    if others := [images.dtype for images in both if images.dtype != np.uint8]:
        raise UserError(f"{given} {others[0]} numbers. It is for images as uint8; remove it.")
    highest = math.floor(min(raw.scale, LEVELS))
    largest = max(int(images.max()) for images in both) if highest < LEVELS else 0
    if largest > highest or highest < 1:
        raise UserError(
            f"{given} pixels up to {largest} at a scale of {raw.scale:g}, so it is not known what white is. "
            "Return a RawData whose scale is the level of a white pixel, 255 for usual images, or leave noise out."
        )
    least = LEVELS / (2 * highest)  # half a level
    if noise.kind != "gaussian" and noise.magnitude < least:
        raise UserError(
            f"image_noise of magnitude {noise.magnitude:g} was given, but data {name!r} hold levels from 0 to "
            f"{highest} only, and all of it would be rounded away. Give {math.ceil(least)} or more."
        )
    return highest


def _with_test(raw: RawData, settings: Data, highest: int) -> RawData:
    """The data with the first `n_test` test samples, and the noise on them."""
    images, labels = raw.test_inputs[: settings.n_test], raw.test_targets
    if settings.test_noise:
        stream = "test label noise"
        labels = noisy_labels(labels, raw.classes, settings.label_noise, settings.definition, stream=stream)
        noise = settings.image_noise
        images = noisy_images(images, noise, stream="test image noise", highest=highest) if noise else images
    return replace(raw, test_inputs=images, test_targets=labels[: settings.n_test])


def noisy_labels(
    labels: IntArray, classes: int, fraction: float, definition: str, seed: int = 0, *, stream: str = "label noise"
) -> IntArray:
    """Labels (N,), each replaced with probability `fraction`.

    `"incorrect"`: by one of the other classes, uniformly ([Yang2021]'s text); `"uniform"`: by any class, so that a
    fraction 1/C of the replaced labels stays right ([Yang2021]'s code).
    """
    labels = labels.astype(np.int64, copy=False)  # unsigned ones of 64 bits and int64 make floating-point numbers
    generator = np.random.default_rng(derive(seed, stream))
    replaced = generator.random(len(labels)) < fraction
    step = generator.integers(1, classes, len(labels))
    uniform = generator.integers(0, classes, len(labels))
    other = (labels + step) % classes if definition == "incorrect" else uniform
    return np.where(replaced, other, labels)


def noisy_images(
    images: NDArray[np.uint8],
    noise: ImageNoise,
    seed: int = 0,
    *,
    stream: str = "image noise",
    highest: int = LEVELS,
) -> NDArray[np.uint8]:
    """Images (N, ...) uint8, each noisy with probability `noise.fraction`: x + z, rounded, kept in [0, highest].

    `highest` is the level of a white pixel: 255, of the digits 16. z = magnitude (highest / 255) u with u of every
    pixel and channel independent: `bernoulli` -1 or 1, `gaussian` N(0, 1), `uniform` U(-1, 1), `positive_uniform`
    U(0, 1). With `mode = "replace"` z alone takes the place of the image.

    Kinds, modes and constants are those of [Yang2021]'s code (code/cifar10_data_subset.py of its first version),
    which makes all images noisy. There z is cut to an integer and the sum taken modulo 256, so that black turns
    white; here it is rounded and limited to what a pixel can be. Cost: one draw a pixel, whatever the fraction.
    """
    noisy = images.copy()
    chosen = np.random.default_rng(derive(seed, f"{stream}: which")).random(len(images)) < noise.fraction
    generator = np.random.default_rng(derive(seed, stream))
    magnitude = noise.magnitude * (highest / LEVELS)
    for start in range(0, len(images), CHUNK):
        part = slice(start, start + CHUNK)
        z: NDArray[Any] = magnitude * _DRAWS[noise.kind](generator, images[part].shape)
        levels = z if noise.mode == "replace" else images[part] + z
        noisy[part][chosen[part]] = np.clip(np.rint(levels), 0, highest)[chosen[part]]
    return noisy

"""Subsets and label noise, drawn once per experiment and shared by all of its models [Yang2021]."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lossatlas.errors import UserError
from lossatlas.seeding import derive
from lossatlas.specs import Data
from lossatlas.tasks.data import IntArray, RawData


def corrupted(raw: RawData, settings: Data) -> RawData:
    """The training data as the spec wants them: labels randomised, then the first `n_train` samples.

    The noise of a sample does not depend on `n_train`, and a larger fraction randomises the same samples and more.
    The test data stay clean. Raises UserError when there are fewer samples than asked for.
    """
    labels = noisy_labels(raw.train_targets, raw.classes, settings.label_noise, settings.definition)
    n_train = settings.n_train if settings.n_train is not None else len(labels)
    if n_train > len(labels):
        raise UserError(
            f"n_train = {n_train} was given, but data {settings.name!r} have {len(labels)} training samples. "
            f"Give at most {len(labels)}."
        )
    return replace(raw, train_inputs=raw.train_inputs[:n_train], train_targets=labels[:n_train])


def noisy_labels(labels: IntArray, classes: int, fraction: float, definition: str, seed: int = 0) -> IntArray:
    """Labels (N,), each replaced with probability `fraction`.

    `"incorrect"`: by one of the other classes, uniformly ([Yang2021]'s text); `"uniform"`: by any class, so that a
    fraction 1/C of the replaced labels stays right ([Yang2021]'s code).
    """
    generator = np.random.default_rng(derive(seed, "label noise"))
    replaced = generator.random(len(labels)) < fraction
    step = generator.integers(1, classes, len(labels))
    uniform = generator.integers(0, classes, len(labels))
    other = (labels + step) % classes if definition == "incorrect" else uniform
    return np.where(replaced, other, labels)

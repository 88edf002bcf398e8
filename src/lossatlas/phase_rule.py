"""The rule that makes a phase of four numbers: thresholds, sides, labels, and how near the next label is.

Arrays in, arrays out; `phases` names and describes them. An unknown metric is NaN and stays unknown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from lossatlas import transition
from lossatlas.errors import UserError
from lossatlas.summary import Floats

PHASES = ("", "I", "II", "III", "IV-A", "IV-B")
_GRID = "read off the published grid of [Yang2021] (ResNet18, CIFAR-10, learning-rate decay)"


@dataclass(frozen=True)
class Thresholds:
    """Where the four tests cut; `metadata["source"]` of each field tells where its default comes from."""

    ln_trace: float = field(default=5.5, metadata={"source": _GRID})
    train_loss: float = field(default=0.02, metadata={"source": f"{_GRID}; anything from 0.012 serves there"})
    mode_connectivity: float = field(default=-1.75, metadata={"source": f"{_GRID}; in a gap of only 0.13"})
    cka: float = field(default=0.70, metadata={"source": _GRID})

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise UserError(
                    f"The threshold of {name} is {value!r}; give a finite number, such as --set {name}=1."
                )


METRICS = tuple(each.name for each in fields(Thresholds))
SIDES = {  # what a test calls the cells that fail it and those that pass it
    "ln_trace": ("not sharp", "sharp"),
    "train_loss": ("not sharp", "sharp"),
    "mode_connectivity": ("not poorly connected", "poorly connected"),
    "cka": ("IV-A where it is IV", "IV-B where it is IV"),
}


@dataclass(frozen=True)
class Cutoff:
    """One threshold as it is applied; `forced` is the side of all cells where there is no transition."""

    threshold: float
    origin: str
    forced: bool | None = None
    evidence: transition.Cut | None = None


def passes(name: str, x: Floats, cutoff: Cutoff) -> Floats:
    """Tell where a test says sharp, poor or similar: 1, or 0 where not, NaN where the metric is unknown."""
    if cutoff.forced is not None:
        passed = np.full(x.shape, cutoff.forced)
    elif name == "mode_connectivity":
        passed = x < cutoff.threshold
    else:
        passed = x >= cutoff.threshold if name == "cka" else x > cutoff.threshold
    return np.where(np.isnan(x), np.nan, passed)


def sides(values: Mapping[str, Floats], cutoffs: Mapping[str, Cutoff]) -> tuple[Floats, Floats, Floats]:
    """Tell whether cells are sharp, poor and similar; either of trace and loss makes sharp, flat needs both."""
    trace, loss, poor, similar = (passes(name, values[name], cutoffs[name]) for name in METRICS)
    sharp = np.where((trace == 1) | (loss == 1), 1.0, trace + loss)  # 0 + 0, or NaN
    return sharp, poor, similar


def is_fourth(values: Mapping[str, Floats], cutoffs: Mapping[str, Cutoff]) -> NDArray[np.bool_]:
    """Tell which cells are flat and not poor, whatever their CKA."""
    sharp, poor, _ = sides(values, cutoffs)
    fourth: NDArray[np.bool_] = (sharp == 0) & (poor == 0)
    return fourth


def decide(values: Mapping[str, Floats], cutoffs: Mapping[str, Cutoff]) -> NDArray[np.int64]:
    """Decide on an index into PHASES; 0 where a metric that is needed is unknown."""
    sharp, poor, similar = sides(values, cutoffs)
    fourth = (sharp == 0) & (poor == 0)
    rules = [
        (sharp == 1) & (poor == 1),
        (sharp == 1) & (poor == 0),
        (sharp == 0) & (poor == 1),
        fourth & (similar == 0),
        fourth & (similar == 1),
    ]
    return np.select(rules, list(range(1, len(PHASES))), default=0)


def mad(x: Floats) -> float:
    """Median absolute deviation from the median, over the finite entries."""
    finite = x[np.isfinite(x)]
    return float(np.median(np.abs(finite - np.median(finite)))) if finite.size else math.nan


def margins(
    values: Mapping[str, Floats],
    cutoffs: Mapping[str, Cutoff],
    scales: Mapping[str, float],
    codes: NDArray[np.int64],
) -> Floats:
    """Least distance to a threshold over the tests that decide the label, in MADs (`scales`); NaN without one.

    Sharpness is one test with two quantities: the larger exceedance decides whether a cell is sharp, so with
    e = (x - threshold)/MAD its distance is |max(e_trace, e_loss)|, for a flat cell the smaller of the two gaps.
    """

    def distance(name: str) -> Floats:
        x, cutoff = values[name], cutoffs[name]
        if cutoff.forced is not None:  # decides nothing: it is as far away as can be
            return np.where(np.isnan(x), np.nan, math.inf if cutoff.forced else -math.inf)
        gap = x - cutoff.threshold
        return gap / scales[name] if scales[name] > 0 else np.where(gap == 0, 0.0, np.copysign(math.inf, gap))

    sharpness = np.abs(np.fmax(distance("ln_trace"), distance("train_loss")))
    least = np.minimum(sharpness, np.abs(distance("mode_connectivity")))
    in_fourth = codes >= PHASES.index("IV-A")
    least = np.where(in_fourth, np.minimum(least, np.abs(distance("cka"))), least)
    return np.where((codes > 0) & np.isfinite(least), least, np.nan)

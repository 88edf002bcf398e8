"""The shape of a curve: stationary points, the classes of [Xu2024], monotony.

Plain arithmetic on the values of a slice, without torch; arguments may be arrays, tensors or lists. Whatever a
label rests on is in the result: the points found, the tolerance, the errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lossatlas.errors import UserError
from lossatlas.landscape.result import Result

Array = np.ndarray[Any, np.dtype[np.float64]]
CurveKind = Literal["v-basin", "v-side", "w-basin", "w-peak", "vvv-basin", "other"]
Status = Literal["ok", "non-finite"]

# Where each class is looked for [Xu2024]: a, b, points. The step is 0.05, so 0 and 1 are grid points.
CURVE_GRIDS = {
    "v-basin": (-1.0, 1.0, 41),
    "v-side": (-1.0, 1.0, 41),
    "w-peak": (-1.0, 1.0, 41),
    "w-basin": (-1.0, 2.0, 61),
    "vvv-basin": (-1.0, 2.0, 61),
    "gmi": (-1.0, 1.0, 41),
    "mli": (-1.0, 0.0, 21),
}
STEP_SLACK = 1e-9  # relative: positions are rounded


@dataclass(frozen=True)
class Stationary:
    """A turning point of a curve."""

    index: int
    position: float
    value: float
    kind: Literal["minimum", "maximum"]


@dataclass(frozen=True)
class CurveShape(Result):
    """The class of a curve and the turning points that decide it."""

    kind: CurveKind
    stationary: tuple[Stationary, ...]
    below: int  # turning points below the loss of random guessing; 0 of both where that is not told
    above: int  # turning points at or above it
    tolerance: float | None
    status: Status = "ok"
    reason: str = ""

    def __repr__(self) -> str:
        return f"CurveShape({self.kind}, {self.reason or f'{self.count} stationary'})"

    @property
    def count(self) -> int:
        """The number of turning points."""
        return len(self.stationary)


@dataclass(frozen=True)
class Monotony(Result):
    """Whether a curve goes one way, and by how much."""

    holds: bool
    margin: float  # the smallest step the right way; if any goes the wrong way, minus the largest such climb
    change: float  # the net change the right way (of the weaker side)
    tolerance: float
    status: Status = "ok"
    reason: str = ""

    def __repr__(self) -> str:
        told = self.reason or f"{'holds' if self.holds else 'does not hold'}, margin {self.margin:.4g}"
        return f"Monotony({told})"


def turning_points(positions: Any, values: Any, *, tolerance: float | None = 0.0) -> tuple[Stationary, ...]:
    """The minima and maxima of a curve (T,), end points excluded, in order of position.

    With a `tolerance` a point counts if the curve moves away from it by more than that on both sides before it
    passes it again (its prominence), so that minima and maxima alternate; neighbours of equal value are one
    point, at their middle. `tolerance=None` is the printed definition, (y_t - y_t+1)(y_t - y_t-1) > 0 [Xu2024]:
    it differs from 0 only where neighbours are equal, which it never counts. Raises UserError for arrays that do
    not fit, a negative tolerance, or values that are not finite.
    """
    x, y = _curve(positions, values)
    if tolerance is not None and not tolerance >= 0:
        raise UserError(f"tolerance={tolerance} must be 0 or more, or None for the printed definition.")
    if not np.isfinite(y).all():
        raise UserError(
            "A curve with values that are not finite has no turning points. Cut it to its finite part."
        )
    if tolerance is None:
        inner = range(1, len(y) - 1)
        found = [i for i in inner if (y[i] - y[i + 1]) * (y[i] - y[i - 1]) > 0]
        kinds = [y[i] < y[i + 1] for i in found]
    else:
        found, kinds = _alternating(y, tolerance)
    return tuple(
        Stationary(i, float(x[i]), float(y[i]), "minimum" if is_low else "maximum")
        for i, is_low in zip(found, kinds, strict=True)
    )


def curve_shape(
    positions: Any, values: Any, *, at: float = 0.0, tolerance: float | None = 0.0, guessing: float = math.nan
) -> CurveShape:
    """The class of a loss curve (T,) with the model at position `at` [Xu2024].

    - v-basin: one minimum, and the model at it
    - v-side: no turning point, or one minimum with the model on the slope
    - w-basin: minimum, maximum, minimum, and the model in a valley: its loss is nearer to that of the bottom on
      its side than to that of the maximum, the barrier [Xu2024 draws the model in a valley and gives no bound]
    - w-peak: the model at a maximum, with at most one minimum on each side. [Xu2024] counts three turning points
      where both valleys lie in the window and one where neither does; here also two, where one does
    - vvv-basin: three minima, two maxima, wherever the model is
    - other: all else, with its count

    The model is *at* the turning point nearest to it if that is not further than one grid step; between two at the
    same distance it is on a slope (which may be that of a valley of a w-basin). The range and grid belong to the
    class: see `CURVE_GRIDS`. `tolerance` is that of `turning_points`; a value that is not finite gives no class.
    `guessing`, such as `Curve.guessing`, splits the count. Raises UserError where `at` is none of the positions.
    """
    x, y = _curve(positions, values)
    step = float(np.diff(x).max()) * (1 + STEP_SLACK)
    if np.abs(x - at).min() > STEP_SLACK * step:
        raise UserError(f"The model's position {at} is no point of the curve, which runs from {x[0]} to {x[-1]}.")
    if not np.isfinite(y).all():
        return CurveShape("other", (), 0, 0, tolerance, "non-finite", not_finite(y))
    points = turning_points(x, y, tolerance=tolerance)
    kinds = "".join("v" if p.kind == "minimum" else "^" for p in points)
    near = sorted((abs(p.position - at), i) for i, p in enumerate(points))
    model = ""  # on a slope
    if near and near[0][0] <= step and (len(near) == 1 or near[1][0] > near[0][0] * (1 + STEP_SLACK)):
        model = kinds[near[0][1]]
    in_valley = kinds == "v^v" and _in_valley(points, at, loss=float(y[np.abs(x - at).argmin()]))
    return CurveShape(
        kind=_curve_kind(kinds, model, in_valley=in_valley),
        stationary=points,
        below=sum(p.value < guessing for p in points),
        above=sum(p.value >= guessing for p in points),
        tolerance=tolerance,
    )


def mli(positions: Any, values: Any, *, tolerance: float = 0.0) -> Monotony:
    """Monotone linear interpolation: the loss falls from the initialisation (first point) to the solution (last).

    It holds if no later value exceeds an earlier one by more than `tolerance` [Lucas 2021], and the last lies
    below the first by more than it. Along theta + lambda (theta - theta_0) the range is [-1, 0].
    """
    _, y = _curve(positions, values)
    if not np.isfinite(y).all():
        return Monotony(False, math.nan, math.nan, tolerance, "non-finite", not_finite(y))
    return _descends(y, tolerance)


def gmi(positions: Any, values: Any, *, at: float = 0.0, tolerance: float = 0.0) -> Monotony:
    """Gaussian monotone increase: the loss rises monotonically from position `at` to both ends [Xu2024].

    Each side as for `mli`; the margin and the change are those of the weaker side.
    """
    x, y = _curve(positions, values)
    model = int(np.abs(x - at).argmin())
    if abs(x[model] - at) > STEP_SLACK * (x[-1] - x[0]) or model in (0, len(x) - 1):
        raise UserError(f"The model's position {at} is no inner point of the curve from {x[0]} to {x[-1]}.")
    if not np.isfinite(y).all():
        return Monotony(False, math.nan, math.nan, tolerance, "non-finite", not_finite(y))
    sides = [_descends(y[: model + 1], tolerance), _descends(y[model:][::-1], tolerance)]
    return Monotony(
        holds=all(side.holds for side in sides),
        margin=min(side.margin for side in sides),
        change=min(side.change for side in sides),
        tolerance=tolerance,
    )


def _in_valley(points: tuple[Stationary, ...], at: float, *, loss: float) -> bool:
    """Whether the model lies in the lower half of one of two valleys."""
    left, barrier, right = points
    bottom = left if at < barrier.position else right
    return loss < (bottom.value + barrier.value) / 2


def _curve_kind(kinds: str, model: str, *, in_valley: bool) -> CurveKind:
    """The class of a sequence of minima (v) and maxima (^), the model being at one of them or on a slope."""
    if model == "^" and kinds in ("^", "v^", "^v", "v^v"):
        return "w-peak"
    if kinds in ("", "v"):
        return "v-basin" if model else "v-side"
    if in_valley:
        return "w-basin"
    return "vvv-basin" if kinds == "v^v^v" else "other"


def _alternating(y: Array, tolerance: float) -> tuple[list[int], list[bool]]:
    """Indices of alternating minima and maxima that stand out by more than the tolerance, and which are minima.

    One pass: the lowest point since the last maximum is a minimum as soon as the curve is further above it.
    """
    found: list[int] = []
    kinds: list[bool] = []
    low = high = 0
    falling: bool | None = None  # not known before the first move
    for i in range(1, len(y)):
        low = i if y[i] < y[low] else low
        high = i if y[i] > y[high] else high
        if falling is not True and y[high] - y[i] > tolerance:
            if falling is False:
                found.append(_middle(y, high))
                kinds.append(False)
            falling, low = True, i
        elif falling is not False and y[i] - y[low] > tolerance:
            if falling is True:
                found.append(_middle(y, low))
                kinds.append(True)
            falling, high = False, i
    return found, kinds


def _middle(y: Array, first: int) -> int:
    """The middle of the run of equal values that starts at `first`."""
    last = first
    while y[last + 1] == y[first]:
        last += 1
    return (first + last) // 2


def _descends(y: Array, tolerance: float) -> Monotony:
    steps = y[:-1] - y[1:]
    climb = float((y - np.minimum.accumulate(y)).max())
    change = float(y[0] - y[-1])
    return Monotony(
        holds=climb <= tolerance and change > tolerance,
        margin=-climb if climb > 0 else float(steps.min()),
        change=change,
        tolerance=tolerance,
    )


def _curve(positions: Any, values: Any) -> tuple[Array, Array]:
    x, y = np.asarray(positions, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2 or not (np.diff(x) > 0).all():
        raise UserError(
            f"positions {x.shape} and values {y.shape} make no curve. Give two lists of one length, 2 or more, "
            "the positions in ascending order."
        )
    return x, y


def not_finite(y: Array) -> str:
    """The reason for the status of values that are not all finite."""
    return f"{int((~np.isfinite(y)).sum())} of {y.size} values are not finite"

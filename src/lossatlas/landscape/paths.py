"""Paths between two solutions: their shape, the loss along them, their barrier and connectivity.

A path is a matrix of control points (k+1, n), the first and last of which are its ends, and a kind: the line
(k = 1), the polygonal chain and the Bezier curve. gamma(t) = sum_i c_i(t) p_i with weights c(t) that sum to one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lossatlas.errors import UserError
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.result import Result, with_error

Kind = Literal["line", "chain", "bezier"]
Rule = Literal["inner", "published"]
KINDS = ("line", "chain", "bezier")
RULES = ("inner", "published")

QUADRATURE_NODES = 32  # a piece: exact to rounding for the smooth speed of a Bezier curve, 0.1% across a cusp
TIE = 1e-12  # relative: deviations that differ by less are rounding of the same number


@dataclass(frozen=True)
class PathValues(Result):
    """What was measured along a path; `samples` is empty where the objective has no Criterion."""

    ts: Tensor  # (T,) float64, ascending
    positions: Tensor  # (T,) arc length from t = 0
    values: Mapping[str, Tensor]  # the loss and every extra, each (T,) float64
    samples: Mapping[str, Tensor]  # the same for each of the N samples, each (T, N) float64
    kind: Kind
    batchnorm: str

    def __repr__(self) -> str:
        losses = self.values["loss"]
        return f"PathValues({self.kind}: {len(self.ts)} points, loss {losses.min():.4g} to {losses.max():.4g})"


@dataclass(frozen=True)
class Connectivity(Result):
    """Mode connectivity of one path, in the units of what was given (training error: percent)."""

    value: float  # < 0: a barrier; about 0: well connected; > 0: the ends did not reach a minimum
    stderr: float  # over samples, at the t* found; NaN where samples are not given
    t_star: float
    t_star_at_end: bool  # the largest deviation of all points stands at an end, and the ends differ
    ends: tuple[float, float]
    rule: Rule
    status: Literal["ok", "collapsed", "non-finite"] = "ok"
    reason: str = ""

    def __repr__(self) -> str:
        if self.status != "ok":
            return f"Connectivity({self.status}: {self.reason})"
        return f"Connectivity({with_error(self.value, self.stderr)} at t = {self.t_star:.4g})"


@dataclass(frozen=True)
class PathSummary(Result):
    """One quantity along a path in a few numbers."""

    min: float
    max: float
    t_max: float
    mean: float  # over the points, not over the length
    integral: float  # weighted by length; NaN for a path of length 0
    barrier: float  # the largest excess over the straight line between the values at the two ends
    length: float  # l2, in parameter space

    def __repr__(self) -> str:
        span = f"{self.min:.4g} to {self.max:.4g}, mean {self.mean:.4g}"
        return f"PathSummary(barrier {self.barrier:.4g}; {span}; length {self.length:.4g})"


def weights(kind: Kind, t: float, k: int) -> Tensor:
    """(k+1,) float64: the weights c_i(t) of the control points; exactly one-hot at t = 0 and 1.

    Bezier: Bernstein polynomials c_i = C(k, i) t^i (1-t)^(k-i). Chain: k segments of equal duration. Line: k = 1.
    """
    if kind not in KINDS:
        raise UserError(f"kind={kind!r} is no shape of a path. Allowed are {', '.join(KINDS)}.")
    if k < 1 or (kind == "line" and k != 1):
        raise UserError(f"A path of kind {kind!r} cannot have {k + 1} control points; a line has exactly 2.")
    if not 0.0 <= t <= 1.0:
        raise UserError(f"t={t} lies outside the path. Give a number from 0 to 1.")
    if kind == "bezier":
        bernstein = [math.comb(k, i) * t**i * (1 - t) ** (k - i) for i in range(k + 1)]
        return torch.tensor(bernstein, dtype=torch.float64)
    segment = min(int(t * k), k - 1)
    result = torch.zeros(k + 1, dtype=torch.float64)
    result[segment], result[segment + 1] = 1 - (t * k - segment), t * k - segment
    return result


def point(points: Tensor, t: float, *, kind: Kind = "bezier") -> Tensor:
    """(n,): gamma(t) for control points (k+1, n), a new tensor; bitwise an end point at t = 0 and 1."""
    coefficients = weights(kind, t, points.shape[0] - 1).tolist()
    # Points of weight zero are left out: 0 * inf is NaN, and adding 0 would turn -0 into +0.
    first, *rest = [(c, p) for c, p in zip(coefficients, points, strict=True) if c != 0]
    result: Tensor = first[1] * first[0]
    for c, p in rest:
        result = torch.add(result, p, alpha=c)
    return result


def bezier(points: Tensor, t: float) -> Tensor:
    """(n,): the Bezier curve of control points (k+1, n) at t, in Bernstein form."""
    return point(points, t, kind="bezier")


def chain(points: Tensor, t: float) -> Tensor:
    """(n,): the polygonal chain through control points (k+1, n) at t."""
    return point(points, t, kind="chain")


def line(points: Tensor, t: float) -> Tensor:
    """(n,): (1-t) p_0 + t p_1 for points (2, n)."""
    return point(points, t, kind="line")


def arc_length(points: Tensor, ts: Tensor | Sequence[float], *, kind: Kind = "bezier") -> Tensor:
    """(T,) float64: the length of the path of control points (k+1, n) from t = 0 to each of `ts` (T,), ascending.

    Exact for lines and chains. For Bezier curves the speed |gamma'(t)| = k |sum_i B_i,k-1(t) (p_i+1 - p_i)| is
    integrated by Gauss quadrature; it needs only the k x k inner products of the differences, so the cost is
    O(k^2 n) whatever T is. ([Yang2021]'s code adds up chords between the evaluated points, which is shorter.)
    """
    grid = _grid(ts).numpy()
    steps = points.double().diff(dim=0)  # (k, n)
    gram = (steps @ steps.T).cpu().numpy()
    k = gram.shape[0]
    if kind != "bezier":
        knots = np.concatenate([[0.0], np.cumsum(np.sqrt(gram.diagonal()))])
        return torch.from_numpy(np.interp(grid * k, np.arange(k + 1), knots))
    nodes, quadrature = np.polynomial.legendre.leggauss(QUADRATURE_NODES)
    starts = np.concatenate([[0.0], grid[:-1]])
    half = (grid - starts)[:, None] / 2  # (T, 1)
    at = (starts[:, None] + half * (1 + nodes)).ravel()
    basis = np.stack([math.comb(k - 1, i) * at**i * (1 - at) ** (k - 1 - i) for i in range(k)], axis=1)
    # A vanishing speed may come out as -1e-33.
    speed = k * np.sqrt(np.maximum(np.einsum("si,ij,sj->s", basis, gram, basis), 0))
    pieces = (half * quadrature * speed.reshape(len(grid), -1)).sum(1)
    return torch.from_numpy(np.cumsum(pieces))


def evaluate(
    objective: Objective, points: Tensor, ts: Tensor | Sequence[float], *, kind: Kind = "bezier"
) -> PathValues:
    """The loss and every extra of `objective` along the path of control points (k+1, n), at `ts` (T,), ascending.

    With a Criterion the values of all samples are kept (memory T x N), so that differences between points have
    paired standard errors. BatchNorm follows the objective's policy: `"recalibrate"` re-estimates at every t, the
    ends included. Cost: T passes over the data, 2 T with `"recalibrate"`. Raises UserError for points of another
    size than the objective's, or `ts` that do not ascend in [0, 1].
    """
    grid = _grid(ts)
    thetas = (point(points, t, kind=kind) for t in grid.tolist())
    if objective.criterion is None:
        rows = [objective.values(theta.unsqueeze(0)) for theta in thetas]
        values = {name: torch.cat([row[name] for row in rows]).cpu() for name in rows[0]}
        samples: dict[str, Tensor] = {}
    else:
        rows = [objective.samples(theta) for theta in thetas]
        samples = {name: torch.stack([row[name] for row in rows]).cpu().double() for name in rows[0]}
        values = {name: rows_of.mean(1) for name, rows_of in samples.items()}
    return PathValues(grid, arc_length(points, grid, kind=kind), values, samples, kind, str(objective.batchnorm))


def connectivity(
    errors: Tensor | Sequence[float],
    ts: Tensor | Sequence[float],
    *,
    rule: Rule = "inner",
    samples: Tensor | None = None,
    guessing: float | None = None,
) -> Connectivity:
    """Mode connectivity mc = h - E(t*), h = (E(0) + E(1)) / 2, t* = argmax_t |h - E(t)|; [Yang2021] eq. 4.

    `errors` (T,) are the values E along the path at `ts` (T,), which run from 0 to 1: the training error in
    percent for classification, else the training loss. `rule`:

    - `"inner"`: t* among the inner points. The two ends always deviate by +-(E(0) - E(1))/2, so where they hold
      the maximum its sign would mean nothing: `t_star_at_end` says so
    - `"published"`: the first maximum over all points, as the code of [Yang2021] does (with 5 points)

    Ties go to the first point. `samples` (T, N), the values of single samples, give the standard error of
    e_i(0)/2 + e_i(1)/2 - e_i(t*) paired over samples; it knows nothing of the search for t*, and more points
    can only enlarge |mc|. An end whose error reaches `guessing`, that of the best constant prediction, is
    `"collapsed"`: no value. Raises UserError for arguments that do not fit together.
    """
    grid, curve = _grid(ts), torch.as_tensor(errors, dtype=torch.float64).cpu()
    samples = samples if samples is None else samples.double().cpu()
    _check_curve(grid, curve, rule, samples)
    ends = (curve[0].item(), curve[-1].item())
    status, reason = _defect(curve, ends, guessing)
    if status != "ok":
        return Connectivity(math.nan, math.nan, math.nan, False, ends, rule, status, reason)
    deviation = (ends[0] + ends[1]) / 2 - curve
    overall = _first_maximum(deviation, curve)
    star = overall if rule == "published" else 1 + _first_maximum(deviation[1:-1], curve)
    stderr = math.nan
    if samples is not None and samples.shape[1] > 1:
        paired = (samples[0] + samples[-1]) / 2 - samples[star]
        stderr = (paired.std() / math.sqrt(paired.numel())).item()
    at_end = overall in (0, len(curve) - 1) and ends[0] != ends[1]
    return Connectivity(deviation[star].item(), stderr, grid[star].item(), at_end, ends, rule)


def guessing_error(targets: Tensor) -> float:
    """The error in percent of the best constant prediction of class targets (N,): 100 (1 - largest share)."""
    return 100 * (1 - int(targets.unique(return_counts=True)[1].max()) / targets.numel())


def summary(ts: Tensor | Sequence[float], values: Tensor, positions: Tensor) -> PathSummary:
    """Extremes, mean, integral over the length, and barrier of `values` (T,) at `ts` (T,), `positions` (T,).

    integral = sum_i (v_i + v_i+1)/2 (s_i+1 - s_i) / (s_T - s_1), the trapezoid rule over the arc length s, as in
    the code of [Yang2021]; barrier = max_t [v(t) - ((1-t) v(0) + t v(1))]. A value that is not finite shows in
    every number that it enters.
    """
    grid, values, positions = _grid(ts), values.double().cpu(), positions.double().cpu()
    if not grid.shape == values.shape == positions.shape:
        shapes = [tuple(x.shape) for x in (grid, values, positions)]
        raise UserError(f"ts, values and positions have the shapes {shapes}; they must be one and the same (T,).")
    length = positions[-1] - positions[0]
    fraction = (grid - grid[0]) / (grid[-1] - grid[0]) if len(grid) > 1 else torch.zeros(1)
    return PathSummary(
        min=values.min().item(),
        max=values.max().item(),
        t_max=grid[values.argmax()].item(),
        mean=values.mean().item(),
        integral=(torch.trapezoid(values, positions) / length).item(),  # 0/0 is NaN
        barrier=(values - ((1 - fraction) * values[0] + fraction * values[-1])).max().item(),
        length=length.item(),
    )


def _grid(ts: Tensor | Sequence[float]) -> Tensor:
    grid = torch.as_tensor(ts, dtype=torch.float64).cpu()
    inside = grid.dim() == 1 and grid.numel() > 0 and bool(((grid >= 0) & (grid <= 1)).all())
    if not inside or not bool((grid.diff() > 0).all()):
        raise UserError(f"ts={grid.tolist()} must be numbers from 0 to 1 in strictly ascending order.")
    return grid


def _check_curve(grid: Tensor, curve: Tensor, rule: str, samples: Tensor | None) -> None:
    """All that is wrong with the arguments of `connectivity`, together."""
    problems = []
    if rule not in RULES:
        problems.append(f"rule={rule!r} must be one of {', '.join(RULES)}")
    if curve.shape != grid.shape:
        problems.append(f"errors of shape {tuple(curve.shape)} do not match ts of shape {tuple(grid.shape)}")
    if len(grid) < 3 or grid[0] != 0 or grid[-1] != 1:
        problems.append(f"ts={grid.tolist()} must run from 0 to 1 with at least one point between")
    if samples is not None and (samples.dim() != 2 or samples.shape[0] != len(curve)):
        problems.append(f"samples of shape {tuple(samples.shape)} must be ({len(curve)}, N)")
    # 1e-5: the rounding of a float32 mean over many samples; other quantities differ by far more.
    elif samples is not None and not torch.allclose(samples.mean(1), curve, rtol=1e-5, atol=1e-5, equal_nan=True):
        problems.append("the means of samples are not the errors; give both for the same quantity")
    if problems:
        raise UserError("No connectivity can be told: " + "; ".join(problems) + ".")


def _defect(
    curve: Tensor, ends: tuple[float, float], guessing: float | None
) -> tuple[Literal["ok", "collapsed", "non-finite"], str]:
    if not bool(curve.isfinite().all()):
        return "non-finite", f"{int((~curve.isfinite()).sum())} of {len(curve)} values are not finite"
    if guessing is not None and max(ends) >= guessing * (1 - TIE):  # both are rounded
        return "collapsed", f"an end has an error of {max(ends):.6g}%, no better than guessing ({guessing:.6g}%)"
    return "ok", ""


def _first_maximum(deviation: Tensor, curve: Tensor) -> int:
    """The first index of the largest |deviation|; rounding of the curve's values does not break a tie."""
    size = deviation.abs()
    return int((size >= size.max() - TIE * curve.abs().max()).nonzero()[0])

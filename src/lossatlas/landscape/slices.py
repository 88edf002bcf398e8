"""Slices of a landscape: the loss along lines theta + lambda d, and on planes theta + alpha d1 + beta d2.

Positions are computed from the centre, one by one. Values are kept as they come: nothing is filled or clipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from lossatlas.errors import UserError
from lossatlas.landscape.angles import DEPENDENT, angle
from lossatlas.landscape.directions import Direction, DirectionInfo, given, vector_of
from lossatlas.landscape.first_layer import SplitFirstLayer, split_first_layer
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.random_state import preserved_rng
from lossatlas.landscape.result import Result

Method = Literal["direct", "split first layer"]
Index = tuple[int, int]
Values = Mapping[str, float]
Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Curve(Result):
    """The loss and every extra along one or several lines through one point."""

    positions: Tensor  # (T,) float64: lambda
    values: Mapping[str, Tensor]  # each (k, T) float64: direction, position
    center: Values  # at lambda = 0, by the same BatchNorm policy
    checkpoint: Values  # the model itself, with its own running statistics; empty where that is not known
    directions: tuple[DirectionInfo, ...]  # k
    guessing: float  # ln C, the cross entropy of random guessing; NaN where the classes were not told
    batchnorm: str
    method: Method

    def __repr__(self) -> str:
        names = ", ".join(d.name for d in self.directions)
        return f"Curve({names}: {len(self.positions)} points, {_headline(self)})"

    @property
    def distances(self) -> Tensor:
        """(k, T): |lambda| ||d|| / ||theta||."""
        return _column([d.relative for d in self.directions]) * self.positions.abs()

    @property
    def non_finite(self) -> int:
        """How many losses are not finite."""
        return int((~self.values["loss"].isfinite()).sum())


@dataclass(frozen=True, eq=False)
class Surface(Result):
    """The loss and every extra on a plane: `values["loss"][i, j]` is at alphas[i], betas[j]."""

    alphas: Tensor  # (A,) float64, along directions[0]
    betas: Tensor  # (B,) float64, along directions[1]
    values: Mapping[str, Tensor]  # each (A, B) float64
    center: Values  # at alpha = beta = 0, by the same BatchNorm policy
    checkpoint: Values  # the model itself, with its own running statistics; empty where that is not known
    directions: tuple[DirectionInfo, DirectionInfo]
    cosine: float  # between the directions
    guessing: float  # ln C, the cross entropy of random guessing; NaN where the classes were not told
    batchnorm: str
    method: Method

    def __repr__(self) -> str:
        names = " x ".join(d.name for d in self.directions)
        return f"Surface({names}: {len(self.alphas)} x {len(self.betas)} points, {_headline(self)})"

    @property
    def distances(self) -> Tensor:
        """(A, B): ||alpha d1 + beta d2|| / ||theta||."""
        a = self.alphas.unsqueeze(1) * self.directions[0].relative
        b = self.betas.unsqueeze(0) * self.directions[1].relative
        # A square may come out as -1e-33 where the two cancel.
        return (a**2 + 2 * self.cosine * a * b + b**2).clamp(min=0).sqrt()

    @property
    def non_finite(self) -> int:
        """How many losses are not finite."""
        return int((~self.values["loss"].isfinite()).sum())


def _headline(result: Curve | Surface) -> str:
    losses = result.values["loss"]
    finite = losses[losses.isfinite()]
    span = f"{finite.min():.4g} to {finite.max():.4g}" if len(finite) else "nowhere finite"
    bad = f", {result.non_finite} not finite" if result.non_finite else ""
    return f"loss {result.center['loss']:.4g} at the centre, {span}{bad}"


def evenly(a: float, b: float, points: int) -> Tensor:
    """(points,) float64: a + (b - a) i / (points - 1), each rounded once from the exact decimal value.

    So 0 and 1 are exactly on the grid wherever they belong to it, also for a = -0.1, b = 0.2.
    """
    if not (math.isfinite(a) and math.isfinite(b) and a < b and points >= 2):
        raise UserError(
            f"No grid runs from {a} to {b} in {points} points. Give finite a < b and 2 points or more."
        )
    low, high = Fraction(repr(float(a))), Fraction(repr(float(b)))
    exact = [low + (high - low) * i / (points - 1) for i in range(points)]
    return torch.tensor([float(x) for x in exact], dtype=torch.float64)


def line(
    objective: Objective,
    direction: Direction | Tensor | Sequence[Direction | Tensor],
    *,
    a: float = -1.0,
    b: float = 1.0,
    points: int = 41,
    theta: Tensor | None = None,
    classes: int | None = None,
    fast: bool = True,
    done: Mapping[Index, Values] | None = None,
    keep: Callable[[Index, Values], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Curve:
    """The loss and every extra at theta + lambda d for `points` lambdas from a to b, theta being the centre.

    The value at lambda is bitwise objective.values(theta + lambda * d), except where `fast` finds that linear
    layers on the inputs can be computed once (`first_layer`; then equal to rounding, and `method` says so).
    A tensor (n,) is a direction, too, as it is.
    `classes` = C marks the loss of random guessing, ln C. Cost: one pass over the data a point (two under
    `"recalibrate"`), and 1 to 6 more.

    `keep((i, j), values)` is called after each new point j of direction i; what it stored, given back as `done`,
    is not computed again (the caller sees to it that objective, directions and grid are the same).
    `progress(finished, total)` is called after each point.
    """
    single = isinstance(direction, Direction) or (isinstance(direction, Tensor) and direction.dim() == 1)
    several = _directions(objective, [direction] if single else direction, theta)  # type: ignore[list-item,arg-type]
    positions = evenly(a, b, points)
    spots = {
        (i, j): tuple(x if k == i else 0.0 for k in range(len(several)))
        for i in range(len(several))
        for j, x in enumerate(positions.tolist())
    }
    walk = _Walk(objective, several, theta, [max(abs(a), abs(b))] * len(several), fast=fast)
    found = walk.run(spots, done or {}, keep, progress)
    return Curve(
        positions=positions,
        values=_arrays(found, (len(several), points)),
        center=walk.center,
        checkpoint=walk.checkpoint,
        directions=tuple(d.info for d in several),
        guessing=math.nan if classes is None else math.log(classes),
        batchnorm=objective.batchnorm,
        method=walk.method,
    )


def surface(
    objective: Objective,
    first: Direction | Tensor,
    second: Direction | Tensor,
    *,
    extent: tuple[Interval, Interval] = ((-1.0, 1.0), (-1.0, 1.0)),
    grid: tuple[int, int] = (21, 21),
    theta: Tensor | None = None,
    classes: int | None = None,
    fast: bool = True,
    done: Mapping[Index, Values] | None = None,
    keep: Callable[[Index, Values], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Surface:
    """The loss and every extra at theta + alpha d1 + beta d2, alpha along `first` and beta along `second`.

    `extent` holds the ranges of alpha and beta, `grid` how many points each has. The directions are taken as they
    are; `cosine` says how far from orthogonal (`angles.orthogonalised` makes them so). All else is as for `line`.
    Raises UserError for parallel directions, which span no plane.
    """
    first, second = _directions(objective, [first, second], theta)
    between = angle(first, second)
    if not math.sin(math.radians(between.degrees)) > DEPENDENT:
        raise UserError(
            f"The directions {first.name} and {second.name} have the cosine {between.cosine:.8g}, so they span no "
            "plane. Give two that are independent."
        )
    alphas, betas = (evenly(*ends, count) for ends, count in zip(extent, grid, strict=True))
    spots = {
        (i, j): (alpha, beta)
        for (i, alpha), (j, beta) in product(enumerate(alphas.tolist()), enumerate(betas.tolist()))
    }
    walk = _Walk(objective, [first, second], theta, [max(map(abs, ends)) for ends in extent], fast=fast)
    found = walk.run(spots, done or {}, keep, progress)
    return Surface(
        alphas=alphas,
        betas=betas,
        values=_arrays(found, grid),
        center=walk.center,
        checkpoint=walk.checkpoint,
        directions=(first.info, second.info),
        cosine=between.cosine,
        guessing=math.nan if classes is None else math.log(classes),
        batchnorm=objective.batchnorm,
        method=walk.method,
    )


def _directions(
    objective: Objective, directions: Iterable[Direction | Tensor], theta: Tensor | None
) -> list[Direction]:
    """The directions, with names for those that are bare vectors."""
    return [
        d if isinstance(d, Direction) else given(objective, vector_of(d), name=f"direction {k}", theta=theta)
        for k, d in enumerate(directions, 1)
    ]


class _Walk:
    """The points of one slice, evaluated one by one around the centre."""

    def __init__(
        self,
        objective: Objective,
        directions: Sequence[Direction],
        theta: Tensor | None,
        scales: Sequence[float],
        *,
        fast: bool,
    ) -> None:
        size = (objective.layout.size,)
        if not directions or any(d.vector.shape != size for d in directions):
            shapes = [tuple(d.vector.shape) for d in directions]
            raise UserError(
                f"Directions of shapes {shapes} do not fit this objective. Give one or more of {size}."
            )
        self._objective = objective
        self._theta = objective.center if theta is None else theta.detach().to(objective.center)
        self._vectors = [d.vector.to(objective.center) for d in directions]
        self.center = self._direct([0.0] * len(directions))
        self.checkpoint = self._checkpoint()
        self._split: SplitFirstLayer | None = None
        if fast:
            self._split = split_first_layer(objective, self._theta, self._vectors, scales)
        self.method: Method = "direct" if self._split is None else "split first layer"

    def run(
        self,
        spots: Mapping[Index, Sequence[float]],
        done: Mapping[Index, Values],
        keep: Callable[[Index, Values], None] | None,
        progress: Callable[[int, int], None] | None,
    ) -> dict[Index, Values]:
        """The values at every spot: those of `done`, and the others computed."""
        if unknown := [index for index in done if index not in spots or done[index].keys() != self.center.keys()]:
            raise UserError(
                f"done holds {unknown[0]}, which is no point of this slice or has other quantities than "
                f"{', '.join(self.center)}. Start anew, or give the grid and loss that it was made with."
            )
        found: dict[Index, Values] = {}
        for finished, (index, coefficients) in enumerate(spots.items(), 1):
            if index in done:
                found[index] = done[index]
            else:
                found[index] = self._at(coefficients)
                if keep is not None:
                    keep(index, found[index])
            if progress is not None:
                progress(finished, len(spots))
        return found

    def _at(self, coefficients: Sequence[float]) -> Values:
        if not any(coefficients):
            return self.center
        return self._direct(coefficients) if self._split is None else self._split(coefficients)

    def _direct(self, coefficients: Sequence[float]) -> Values:
        point = self._theta
        for c, vector in zip(coefficients, self._vectors, strict=True):
            if c != 0:
                point = point + c * vector
        return {name: v.item() for name, v in self._objective.values(point.unsqueeze(0)).items()}

    def _checkpoint(self) -> Values:
        """The model's own loss, if theta is the model; of "batch" only the policy's own loss is known."""
        objective = self._objective
        if objective.batchnorm == "batch" or not torch.equal(self._theta, objective.center):
            return {}
        if objective.batchnorm == "eval":
            return self.center
        with torch.no_grad(), preserved_rng(objective.device):
            own = {n: b.clone() for n, b in objective.model.named_buffers()}
            means = objective.means(objective.unflatten(self._theta), own, objective.batches())
            return {name: mean.item() for name, mean in means.items()}


def _arrays(found: Mapping[Index, Values], shape: Index) -> dict[str, Tensor]:
    """One float64 array a quantity, `shape` being the number of rows and columns."""
    names = next(iter(found.values()))
    rows, columns = shape
    return {
        name: torch.tensor([[found[i, j][name] for j in range(columns)] for i in range(rows)], dtype=torch.float64)
        for name in names
    }


def _column(numbers: Sequence[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64).unsqueeze(1)

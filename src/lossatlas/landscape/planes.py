"""The plane through three models: a surface with the models, and the curve they span, at their exact places."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from lossatlas.errors import UserError
from lossatlas.landscape import paths, slices
from lossatlas.landscape.directions import Direction, given
from lossatlas.landscape.estimate import sample_mean
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.result import Result, with_error
from lossatlas.landscape.slices import Index, Interval, Surface, Values

CurveKind = Literal["bezier", "chain"]
Names = tuple[str, str, str]

RESOLVED = 64  # roundings of a model: a triangle that is lower has grid lines a few roundings apart
CURVE_POINTS = 101


@dataclass(frozen=True, eq=False)
class Plane(Result):
    """The loss and every extra on the plane through three models, and at the models themselves."""

    surface: Surface  # alpha and beta are l2 distances from the first model
    names: Names
    coordinates: Tensor  # (3, 2) float64: alpha, beta of each model
    values: Mapping[str, Tensor]  # each (3,) float64: at the models' own parameters, not at rounded a + s u + t v
    stderrs: Mapping[str, Tensor]  # the same: standard errors over the samples; empty without a Criterion
    curve: CurveKind | None  # from the first to the second model with the third as its bend

    def __repr__(self) -> str:
        at = ", ".join(f"{name} {told}" for name, told in zip(self.names, self._told(), strict=True))
        grid = f"{len(self.surface.alphas)} x {len(self.surface.betas)} points"
        bad = f", {self.surface.non_finite} not finite" if self.surface.non_finite else ""
        return f"Plane(loss {at}; {grid}{bad})"

    def path(self) -> tuple[Tensor, Tensor]:
        """Positions t (T,) and coordinates (T, 2) of the curve; T = 0 where there is none.

        Exact: gamma(t) = sum_i c_i(t) p_i with weights that sum to one, so its coordinates are the same sum of
        those of its control points.
        """
        if self.curve is None:
            return torch.empty(0, dtype=torch.float64), torch.empty(0, 2, dtype=torch.float64)
        ts = torch.linspace(0, 1, CURVE_POINTS, dtype=torch.float64)
        control = self.coordinates[[0, 2, 1]]  # end, bend, end
        return ts, torch.stack([paths.weights(self.curve, t, 2) for t in ts.tolist()]) @ control

    def _told(self) -> list[str]:
        losses, errors = self.values["loss"], self.stderrs.get("loss", torch.full((3,), torch.nan))
        return [with_error(loss, error) for loss, error in zip(losses.tolist(), errors.tolist(), strict=True)]


def plane(
    objective: Objective,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    margin: float = 0.2,
    grid: tuple[int, int] = (21, 21),
    curve: CurveKind | None = None,
    names: Names = ("A", "B", "C"),
    classes: int | None = None,
    fast: bool = True,
    done: Mapping[Index, Values] | None = None,
    keep: Callable[[Index, Values], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Plane:
    """The loss and every extra on the plane through three parameter vectors (n,) [Garipov 2018].

    P(s, t) = a + s u + t v with u = (b - a) / |b - a| and v = w / |w|, w = (c - a) - <c - a, u> u, computed in
    float64: u and v are orthogonal and of length 1, so s and t are l2 distances, and the models lie at (0, 0),
    (|b - a|, 0) and (<c - a, u>, |w|). The grid, of `grid` points along s and t, covers all three with a margin of
    `margin` times their extent on every side. (The code of [Garipov 2018] spans [-0.2, 1.2] |b - a| along s
    wherever c is; for c above the segment from a to b that is the same.)

    The models' own values are computed at their own parameters: bitwise objective.values of a, b, c. Under
    `"eval"` with BatchNorm the whole plane has the running statistics of the objective's model, so the values of
    models trained apart are not those they have alone: use `"recalibrate"`. Values that are not finite are kept.

    `curve` says that c is the bend of a Bezier curve or polygonal chain from a to b (`curve_fitting.fit` with one
    bend: its points are a, c, b); it lies in the plane, and `Plane.path` has its coordinates. `classes`, `fast`,
    `done`, `keep` and `progress` are as for `slices.surface`. Cost: as that, and 3 passes over the data, 6 with a
    Criterion. Raises UserError for models of another size, equal or collinear ones (a triangle lower than 64
    roundings of its largest model), parameters that are not finite, and a margin below 0.
    """
    models = _checked(objective, (a, b, c), names, margin, curve)
    eps = max(torch.finfo(x.dtype).eps for x in (a, b, c, models))
    first, second, coordinates = _axes(objective, models, names, eps)
    values = {name: column.cpu() for name, column in objective.values(models).items()}
    found = slices.surface(
        objective,
        first,
        second,
        extent=_extent(coordinates, margin),
        grid=grid,
        theta=models[0],
        classes=classes,
        fast=fast,
        done=done,
        keep=keep,
        progress=progress,
    )
    return Plane(found, names, coordinates, values, _stderrs(objective, models), curve)


def _checked(
    objective: Objective, given_: tuple[Tensor, ...], names: Names, margin: float, curve: str | None
) -> Tensor:
    """(3, n): the models as the objective sees them."""
    problems = []
    for name, model in zip(names, given_, strict=True):
        if model.shape != (objective.layout.size,) or not model.is_floating_point():
            problems.append(
                f"model {name} has shape {tuple(model.shape)} and dtype {model.dtype}; all three must be flat "
                f"vectors ({objective.layout.size},) of floating-point parameters"
            )
        elif not bool(model.isfinite().all()):
            bad = int((~model.isfinite()).sum())
            problems.append(f"{bad} of {model.numel()} parameters of model {name} are not finite")
    if len(set(names)) < 3:
        problems.append(f"the names {', '.join(names)} must be three different ones")
    if not 0 <= margin < float("inf"):
        problems.append(f"margin={margin} must be a finite number from 0, such as 0.2")
    if curve not in (None, "bezier", "chain"):
        problems.append(f"curve={curve!r} must be bezier, chain or None")
    if problems:
        raise UserError("No plane can be laid: " + "; ".join(problems) + ".")
    return torch.stack([model.detach().to(objective.center) for model in given_])


def _axes(objective: Objective, models: Tensor, names: Names, eps: float) -> tuple[Direction, Direction, Tensor]:
    """The unit directions u and v, and the coordinates (3, 2) of the models."""
    wide = models.double()
    resolution = RESOLVED * eps * wide.norm(dim=1).max().item()
    sides = {(i, j): (wide[i] - wide[j]).norm().item() for i, j in combinations(range(3), 2)}
    for (i, j), side in sides.items():
        if side <= resolution:
            raise UserError(
                f"The models {names[i]} and {names[j]} are equal up to rounding (their distance is {side:.3g}), "
                f"so the three ({', '.join(names)} in the order given) span no plane. Give three different ones."
            )
    width = sides[0, 1]
    u = (wide[1] - wide[0]) / width
    w = wide[2] - wide[0]
    s = (w @ u).item()
    w = w - s * u
    w -= (w @ u) * u  # once more: the first time leaves the rounding of the longer vector
    height = w.norm().item()
    if width * height / max(sides.values()) <= resolution:
        raise UserError(
            f"The models {', '.join(names)} lie on one straight line, up to rounding, so they span no plane. Give "
            "three that do not, or look along the line (lossatlas.line)."
        )
    first = given(objective, u, name=f"{names[0]} to {names[1]}", theta=models[0])
    second = given(objective, w / height, name=f"towards {names[2]}", theta=models[0])
    coordinates = torch.tensor([[0.0, 0.0], [width, 0.0], [s, height]], dtype=torch.float64)
    return first, second, coordinates


def _extent(coordinates: Tensor, margin: float) -> tuple[Interval, Interval]:
    """The ranges of alpha and beta that hold all models, with the margin."""
    ends = []
    for column in coordinates.T.tolist():
        low, high = min(column), max(column)
        reach = margin * (high - low)
        ends.append((low - reach, high + reach))
    return ends[0], ends[1]


def _stderrs(objective: Objective, models: Tensor) -> dict[str, Tensor]:
    if objective.criterion is None:
        return {}
    rows = [{name: sample_mean(x).stderr for name, x in objective.samples(model).items()} for model in models]
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}

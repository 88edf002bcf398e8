"""What a mined direction is worth: on other data, against the Hessian's eigenvectors, against other directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lossatlas.errors import UserError
from lossatlas.landscape.directions import Direction, vector_of
from lossatlas.landscape.estimate import Estimate, sample_mean
from lossatlas.landscape.expansion import checked_direction
from lossatlas.landscape.lanczos import Eigenpairs
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.result import Result, with_error

Status = Literal["survives", "mining-only", "no-fall", "non-finite"]

BLOCK = 1 << 20  # coordinates brought to float64 at a time


@dataclass(frozen=True, eq=False)
class Alignment(Result):
    """A direction among k eigenvectors of the Hessian; NaN throughout where a length is zero or not finite."""

    cosines: Tensor  # (k,) float64; the sign of an eigenvector is a convention
    eigenvalues: Tensor  # (k,)
    ambiguous: Tensor  # (k,) bool: the gap is not above the residual, so this vector alone means little
    projection: float  # length of the unit direction's projection on the span of all k
    positive: float  # the same for the span of those with an eigenvalue above its residual
    negative: float  # the same for those below minus their residual
    chance: float  # sqrt(k/n): root mean square of `projection` for a random direction

    def __repr__(self) -> str:
        rest = f"{len(self.cosines)} eigenvectors, chance {self.chance:.2g}"
        return f"Alignment(projection {self.projection:.4g} on {rest})"


@dataclass(frozen=True)
class Fall:
    """How far the loss falls from lambda = 0 on either side: L(0) - L(lambda), errors paired over samples."""

    lambdas: tuple[float, float]  # where: left, right
    left: Estimate  # standard error NaN where the objective has no Criterion
    right: Estimate

    def __str__(self) -> str:
        left, right = (with_error(side.value, side.stderr) for side in (self.left, self.right))
        return f"{left} at {self.lambdas[0]:g}, {right} at {self.lambdas[1]:g}"

    def on_both_sides(self, sigmas: float = 2.0) -> bool:
        """Whether both falls exceed `sigmas` standard errors (or zero where there are none)."""
        sides = (self.left, self.right)
        return all(s.value > (0 if math.isnan(s.stderr) else sigmas * s.stderr) for s in sides)


@dataclass(frozen=True, eq=False)
class Survival(Result):
    """The curve along a mined direction on the data of the mining, and on data that it has not seen."""

    lambdas: Tensor  # (L,) float64
    mining: Tensor  # (L,) float64: the loss
    held_out: Tensor
    mining_fall: Fall
    held_out_fall: Fall  # at the same two lambdas, chosen on the data of the mining
    status: Status
    batchnorm: tuple[str, str]

    def __repr__(self) -> str:
        return f"Survival({self.status}: fall {self.mining_fall}; held-out {self.held_out_fall})"


@dataclass(frozen=True, eq=False)
class Comparison(Result):
    """Two directions beside each other, both as long as the first at lambda = 1."""

    norm: float
    lambdas: Tensor  # (2S+1,) float64: -scales, 0, scales
    first: Tensor  # (2S+1,) float64: the loss
    second: Tensor
    first_fall: Fall  # at lambda = -1 and 1
    second_fall: Fall
    first_best: Fall  # each side at its own best scale: where this curve is lowest
    second_best: Fall
    advantage: Estimate  # second - first, mean of the two sides at lambda = -1 and 1: > 0 where the first is lower
    best_advantage: Estimate  # the same, each at its own best scales
    batchnorm: str

    def __repr__(self) -> str:
        equal, best = (with_error(e.value, e.stderr) for e in (self.advantage, self.best_advantage))
        return f"Comparison(advantage {equal} at length {self.norm:.4g}, {best} each at its best)"


def alignment(direction: Tensor | Direction, pairs: Eigenpairs) -> Alignment:
    """Cosines of `direction` (n,) with eigenvectors, and its projection on their span; [Xu2024] Fig. 9.

    The figure has the first ten at either end: `eigenpairs(hessian, 10, which="both", seed=...)`. Clustered small
    eigenvalues have ill-defined vectors, of which only the span means something: look at `projection` there, and
    at `ambiguous`. Projections solve with the Gram matrix of the vectors, in float64, so they need not be quite
    orthogonal. Raises UserError for vectors of another size.
    """
    direction, vectors = vector_of(direction), pairs.eigenvectors  # (n,), (n, k)
    if direction.shape != vectors.shape[:1]:
        raise UserError(
            f"The direction has shape {tuple(direction.shape)} and the eigenvectors {tuple(vectors.shape)}. "
            "Give eigenvectors of the same parameters."
        )
    columns = torch.cat([direction.detach().to(vectors).unsqueeze(1), vectors], dim=1)
    gram = torch.zeros(columns.shape[1], columns.shape[1], dtype=torch.float64)
    for part in columns.split(BLOCK):
        gram += (part.double().T @ part.double()).cpu()
    lengths = gram.diagonal().sqrt()
    gram = gram / lengths / lengths.unsqueeze(1)
    values, residuals = pairs.eigenvalues, pairs.residuals
    return Alignment(
        cosines=gram[0, 1:],
        eigenvalues=values,
        ambiguous=~(pairs.gaps > residuals),
        projection=_projection(gram, torch.ones_like(values, dtype=torch.bool)),
        positive=_projection(gram, values > residuals),
        negative=_projection(gram, values < -residuals),
        chance=math.sqrt(vectors.shape[1] / vectors.shape[0]),
    )


def survives(
    mining: Objective,
    held_out: Objective,
    direction: Tensor | Direction,
    lambdas: Tensor | Sequence[float],
    *,
    theta: Tensor | None = None,
    sigmas: float = 2.0,
) -> Survival:
    """Whether a w-peak found on the data of `mining` is one on the data of `held_out`, too.

    Both objectives are evaluated at theta + lambda d (theta: default the centre of `mining`) at `lambdas` (L,),
    ascending, on both sides of 0. On either side the lambda of the lowest loss is taken on the data of the mining,
    and both falls from lambda = 0 are told there: on held-out data nothing was chosen, so its standard errors are
    honest; those of the mining data know nothing of the search. "survives": the loss falls on both sides by more
    than `sigmas` standard errors on both data sets; "mining-only": on the first only; "no-fall": not on the
    first. Cost: L + 1 passes over both. Raises UserError for `lambdas` without two sides, or objectives of
    different sizes.
    """
    grid = _two_sided(lambdas)
    d = checked_direction(mining, direction)
    theta = mining.center if theta is None else theta
    curves = [_curve(objective, theta, d, grid) for objective in (mining, held_out)]
    origins = [_curve(objective, theta, d, torch.zeros(1))[0] for objective in (mining, held_out)]
    at = _lowest(grid, curves[0].mean(1))
    falls = [_fall(origin, curve, grid, at) for origin, curve in zip(origins, curves, strict=True)]
    here, there = (fall.on_both_sides(sigmas) for fall in falls)
    status: Status = "no-fall" if not here else "survives" if there else "mining-only"
    return Survival(
        lambdas=grid,
        mining=curves[0].mean(1),
        held_out=curves[1].mean(1),
        mining_fall=falls[0],
        held_out_fall=falls[1],
        status=status if all(bool(curve.isfinite().all()) for curve in curves + origins) else "non-finite",
        batchnorm=(str(mining.batchnorm), str(held_out.batchnorm)),
    )


def compare(
    objective: Objective,
    first: Tensor | Direction,
    second: Tensor | Direction,
    scales: Sequence[float],
    *,
    theta: Tensor | None = None,
) -> Comparison:
    """Two directions at equal length, and each at its own best scale, from theta (default: the centre).

    `second` (such as the eigenvector of the most negative eigenvalue) is scaled to the length of `first`; both
    curves are evaluated at 0 and at +-`scales` (S,), positive, ascending, 1 among them. The falls compare at
    lambda = +-1 and at the lowest point of each side of each curve; the differences between the two directions
    have standard errors paired over samples, which know nothing of the choice of the scales. Cost: 4 S + 2
    passes. Raises UserError for scales or directions that do not fit.
    """
    steps = torch.as_tensor(scales, dtype=torch.float64)
    if steps.numel() == 0 or not bool((steps > 0).all()) or 1.0 not in steps.tolist():
        raise UserError(
            f"scales={steps.tolist()} must be positive, in ascending order, and 1 must be one of them."
        )
    grid = _two_sided(torch.cat([-steps.flip(0), torch.zeros(1, dtype=torch.float64), steps]))
    theta = objective.center if theta is None else theta
    a, b = (checked_direction(objective, d) for d in (first, second))
    norms = [torch.linalg.vector_norm(d, dtype=torch.float64).item() for d in (a, b)]
    if 0 in norms:
        raise UserError("A direction of length zero has nothing to compare. Give two that are not zero.")
    curves = [_curve(objective, theta, d, grid) for d in (a, b * (norms[0] / norms[1]))]
    values = [curve.mean(1) for curve in curves]
    origin, unit = curves[0][len(steps)], (grid.tolist().index(-1.0), grid.tolist().index(1.0))
    best = [_lowest(grid, v) for v in values]
    return Comparison(
        norm=norms[0],
        lambdas=grid,
        first=values[0],
        second=values[1],
        first_fall=_fall(origin, curves[0], grid, unit),
        second_fall=_fall(origin, curves[1], grid, unit),
        first_best=_fall(origin, curves[0], grid, best[0]),
        second_best=_fall(origin, curves[1], grid, best[1]),
        advantage=_advantage(curves, [unit, unit]),
        best_advantage=_advantage(curves, best),
        batchnorm=str(objective.batchnorm),
    )


def _curve(objective: Objective, theta: Tensor, direction: Tensor, grid: Tensor) -> Tensor:
    """(L, N) float64: the loss of every sample along a direction; (L, 1), the mean, without a Criterion."""
    thetas = (theta.add(direction, alpha=lam) for lam in grid.tolist())
    if objective.criterion is None:
        return torch.stack([objective(w).cpu().double().reshape(1) for w in thetas])
    return torch.stack([objective.samples(w)["loss"].cpu().double() for w in thetas])


def _two_sided(lambdas: Tensor | Sequence[float]) -> Tensor:
    grid = torch.as_tensor(lambdas, dtype=torch.float64).cpu()
    if grid.dim() != 1 or not bool((grid.diff() > 0).all()) or not bool((grid < 0).any() & (grid > 0).any()):
        raise UserError(f"lambdas={grid.tolist()} must ascend, with values on either side of 0.")
    return grid


def _lowest(grid: Tensor, values: Tensor) -> tuple[int, int]:
    """The indices of the lowest value left and right of lambda = 0."""
    left, right = int((grid < 0).sum()), int((grid <= 0).sum())
    return int(values[:left].argmin()), right + int(values[right:].argmin())


def _fall(origin: Tensor, curve: Tensor, grid: Tensor, at: tuple[int, int]) -> Fall:
    left, right = (sample_mean(origin - curve[index]) for index in at)
    return Fall((grid[at[0]].item(), grid[at[1]].item()), left, right)


def _advantage(curves: list[Tensor], at: list[tuple[int, int]]) -> Estimate:
    first, second = (curve[list(sides)].mean(0) for curve, sides in zip(curves, at, strict=True))
    return sample_mean(second - first)


def _projection(gram: Tensor, chosen: Tensor) -> float:
    """From the Gram matrix of a unit direction and unit vectors: sqrt(c' G^-1 c) over the chosen vectors."""
    rows = 1 + chosen.nonzero().flatten()
    if not bool(gram.isfinite().all()):
        return math.nan
    if not len(rows):
        return 0.0
    share = gram[0, rows] @ torch.linalg.solve(gram[rows][:, rows], gram[rows, 0])
    return math.sqrt(share.item())

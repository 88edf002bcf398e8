"""Second-order expansion of the loss along a direction, and the law of its change along random ones ([Xu2024])."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lossatlas.errors import UserError
from lossatlas.landscape.descent import has_batchnorm
from lossatlas.landscape.directions import Direction, vector_of
from lossatlas.landscape.estimate import Estimate, sample_mean
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.operators import hessian
from lossatlas.landscape.result import Result, with_error

HALF_WIDTH = 0.05  # of a local piece, in units of the direction ([Xu2024] Fig. 14)


@dataclass(frozen=True)
class Expansion(Result):
    """L(theta + lambda d) = loss + lambda slope + lambda^2/2 curvature + O(lambda^3), for the d that was given."""

    loss: float
    slope: float  # d'g
    curvature: float  # d'Hd
    gradient_norm: float
    direction_norm: float
    batchnorm: str
    status: str = "ok"
    reason: str = ""

    def __repr__(self) -> str:
        told = "" if self.status == "ok" else f"; {self.status}: {self.reason}"
        return f"Expansion(slope {self.slope:.4g}, curvature {self.curvature:.4g} at loss {self.loss:.4g}{told})"

    def change(self, lambdas: Tensor | Sequence[float]) -> Tensor:
        """(L,) float64: lambda slope + lambda^2/2 curvature."""
        grid = torch.as_tensor(lambdas, dtype=torch.float64)
        return grid * self.slope + grid.square() / 2 * self.curvature


@dataclass(frozen=True, eq=False)
class LocalPieces(Result):
    """Quadratic pieces around points theta + lambda_i d of a curve, one a row."""

    positions: Tensor  # (P,) float64: lambda_i
    expansions: tuple[Expansion, ...]  # P of them
    lambdas: Tensor  # (P, K): lambda_i - half_width .. lambda_i + half_width
    values: Tensor  # (P, K): the expansion about lambda_i there

    def __repr__(self) -> str:
        curvatures = [e.curvature for e in self.expansions if e.status == "ok"]
        span = f"curvature {min(curvatures):.4g} to {max(curvatures):.4g}" if curvatures else "nowhere finite"
        bad = len(self.expansions) - len(curvatures)
        return f"LocalPieces({len(self.expansions)} pieces, {span}{f', {bad} not finite' if bad else ''})"


@dataclass(frozen=True)
class ChangeMoments(Result):
    """Mean and variance of the loss change over random directions, in second order."""

    mean: float
    variance: float

    def __repr__(self) -> str:
        return f"ChangeMoments({self.mean:.4g}, standard deviation {math.sqrt(self.variance):.4g})"


@dataclass(frozen=True, eq=False)
class SampledChanges(Result):
    """Measured changes of the loss along N random directions, the same for every scale."""

    lambdas: tuple[float, ...]
    changes: Tensor  # (L, N) float64
    means: tuple[Estimate, ...]  # one a scale
    variances: tuple[Estimate, ...]
    sigma: float | None  # of Gaussian directions; None with a radius
    radius: float | None  # of directions of one length
    seed: int
    batchnorm: str

    def __repr__(self) -> str:
        means = ", ".join(
            f"{with_error(mean.value, mean.stderr) if mean.status == 'ok' else mean.status} at {lam:g}"
            for lam, mean in zip(self.lambdas, self.means, strict=True)
        )
        return f"SampledChanges({self.changes.shape[1]} draws: {means})"


def expand(objective: Objective, direction: Tensor | Direction, *, theta: Tensor | None = None) -> Expansion:
    """The second-order expansion of the objective at theta (default: its centre) along `direction` (n,).

    dL(lambda) = lambda d'g + lambda^2/2 d'Hd; [Xu2024] eq. 1. The direction is taken as it is, not scaled. Cost:
    one pass over the data for the loss, one gradient, one Hessian-vector product.

    The derivatives are autograd's. It knows no curvature of ReLU kinks: a piecewise linear network's loss bends
    also where units switch, of which d'Hd has nothing, so it agrees with finite differences of a step that
    crosses kinks on smooth networks only. BatchNorm statistics are held fixed (`"eval"`) or differentiated
    through (`"batch"`); `"recalibrate"` is refused where the model has BatchNorm layers, since the slope at fixed
    statistics is not that of a curve along which they are re-estimated. What is not finite has the status
    "non-finite". Raises UserError for that policy, and a direction of another shape or not finite.
    """
    if objective.batchnorm == "recalibrate" and has_batchnorm(objective.model):
        raise UserError(
            "batchnorm='recalibrate' has no derivatives here: autograd would hold the BatchNorm statistics fixed, "
            "and the curve re-estimates them at every point. Build the Objective with batchnorm='eval' or 'batch'."
        )
    d = checked_direction(objective, direction)
    theta = objective.center if theta is None else theta
    loss, gradient = objective(theta).item(), objective.gradient(theta)
    curved = hessian(objective, theta, memory=0) @ d  # one product: graphs need not be kept
    numbers = (loss, _dot(d, gradient), _dot(d, curved), math.sqrt(_dot(gradient, gradient)))
    names = ("loss", "slope", "curvature", "gradient")
    bad = [name for name, number in zip(names, numbers, strict=True) if not math.isfinite(number)]
    return Expansion(
        *numbers,
        direction_norm=math.sqrt(_dot(d, d)),
        batchnorm=str(objective.batchnorm),
        status="non-finite" if bad else "ok",
        reason=f"not finite: {', '.join(bad)}" if bad else "",
    )


def local_pieces(
    objective: Objective,
    direction: Tensor | Direction,
    positions: Tensor | Sequence[float],
    *,
    theta: Tensor | None = None,
    half_width: float = HALF_WIDTH,
    points: int = 11,
) -> LocalPieces:
    """Quadratic pieces of half-width `half_width` about theta + lambda_i d at `positions` (P,); [Xu2024] Fig. 14.

    Each is `expand` at that point, drawn at `points` values of lambda. The figure has 11 positions of the curve
    from the initialisation to the solution. Cost: P times that of `expand`, whose errors it raises.
    """
    if not half_width > 0 or points < 2:
        raise UserError(f"half_width={half_width} must be positive and points={points} at least 2.")
    centers = torch.as_tensor(positions, dtype=torch.float64).reshape(-1)
    theta = objective.center if theta is None else theta
    d = checked_direction(objective, direction)
    expansions = tuple(expand(objective, d, theta=theta.add(d, alpha=at)) for at in centers.tolist())
    offsets = torch.linspace(-half_width, half_width, points, dtype=torch.float64)
    values = [expansion.loss + expansion.change(offsets) for expansion in expansions]
    return LocalPieces(centers, expansions, centers.unsqueeze(1) + offsets, torch.stack(values))


def gaussian_change(
    lam: float, *, gradient_norm: float, trace: float, trace_of_square: float, sigma: float = 1.0
) -> ChangeMoments:
    """Moments of lam d'g + lam^2/2 d'Hd over d ~ N(0, sigma^2 I); [Xu2024] eq. 4.

    Mean lam^2 sigma^2 tr(H)/2. Variance lam^2 sigma^2 ||g||^2 + lam^4 sigma^4 tr(H^2)/2: the two terms are
    uncorrelated (odd and even in d), and d'Hd has the variance 2 sigma^4 tr(H^2). (The paper prints other powers
    of lam and sigma.) The linear term is most of the spread as long as lam sigma < ||g|| sqrt(2 / tr(H^2)).

    With ReLU units autograd's traces leave the kinks out, which over many samples bend the loss like curvature:
    for an MLP 64-32-10 on digits the measured mean is 1.4 to 1.5 times this one, with tanh it agrees within 5%,
    the error of the estimated trace.
    """
    step = (lam * sigma) ** 2
    return ChangeMoments(step * trace / 2, step * gradient_norm**2 + step**2 * trace_of_square / 2)


def sphere_change(
    lam: float, *, size: int, radius: float, gradient_norm: float, trace: float, trace_of_square: float
) -> ChangeMoments:
    """Moments of lam d'g + lam^2/2 d'Hd over d uniform on the sphere of `radius` in n = `size` dimensions.

    That is a Gaussian direction scaled to one length. Mean lam^2 r^2 tr(H)/(2n), variance
    lam^2 r^2 ||g||^2/n + lam^4 r^4/(2 n (n+2)) (tr(H^2) - tr(H)^2/n): a multiple of the identity changes the loss
    by the same in every direction. Derived here, from the fourth moments of the sphere.
    """
    step = (lam * radius) ** 2 / size
    spread = (trace_of_square - trace**2 / size) * size / (size + 2)
    return ChangeMoments(step * trace / 2, step * gradient_norm**2 + step**2 * spread / 2)


def sample_changes(
    objective: Objective,
    lambdas: Sequence[float] = (0.001, 0.01),
    *,
    seed: int,
    draws: int = 100,
    sigma: float = 1.0,
    radius: float | None = None,
    theta: Tensor | None = None,
) -> SampledChanges:
    """L(theta + lambda d) - L(theta) for random directions d, measured; the scales and numbers of [Xu2024].

    d is Gaussian with `sigma`, or if `radius` is given Gaussian and then scaled to that length; the N = `draws`
    directions follow from `seed` and serve all `lambdas`. The standard error of a variance s^2 is
    sqrt((m4 - (N-3)/(N-1) s^4) / N), with m4 the fourth central moment. Nothing is expanded, so every BatchNorm
    policy will do, but `gaussian_change` and `sphere_change` speak of a loss with fixed statistics. Changes below
    the rounding of the loss are noise: take an Objective of dtype float64 for tiny lambdas. A change that is not
    finite gives Estimates of status "non-finite". Cost: 1 + N L passes over the data, one vector of memory.
    Raises UserError for fewer than 4 draws.
    """
    if draws < 4:
        raise UserError(f"draws={draws} is too few for the error of a variance. Give 4 or more.")
    theta = objective.center if theta is None else theta
    generator = torch.Generator().manual_seed(seed)
    base, columns = objective(theta), []
    for _ in range(draws):
        draw = torch.randn(objective.layout.size, generator=generator, dtype=torch.float64)
        scale = sigma if radius is None else radius / draw.norm().item()
        d = (draw * scale).to(objective.center)
        columns.append(torch.stack([objective(theta.add(d, alpha=lam)) - base for lam in lambdas]).cpu())
    changes = torch.stack(columns, dim=1)  # (L, N)
    means, variances = (tuple(map(of, changes)) for of in (sample_mean, _sample_variance))
    return SampledChanges(
        lambdas=tuple(lambdas),
        changes=changes,
        means=means,
        variances=variances,
        sigma=sigma if radius is None else None,
        radius=radius,
        seed=seed,
        batchnorm=str(objective.batchnorm),
    )


def checked_direction(objective: Objective, direction: Tensor | Direction) -> Tensor:
    """The vector (n,) in the objective's dtype, on its device; raises UserError where it does not fit."""
    direction = vector_of(direction)
    if direction.shape != (objective.layout.size,) or not bool(direction.isfinite().all()):
        raise UserError(
            f"A direction of shape {tuple(direction.shape)} was given, or one with entries that are not finite. "
            f"This objective takes finite vectors of shape ({objective.layout.size},)."
        )
    return direction.detach().to(objective.center)


def _sample_variance(samples: Tensor) -> Estimate:
    """The unbiased variance of samples (N,), with its standard error."""
    mean = sample_mean(samples)
    if mean.status != "ok":
        return mean
    count, variance = samples.numel(), samples.var().item()
    fourth = (samples - mean.value).pow(4).mean().item()
    # m4 >= m2^2 makes this at least 0, but for rounding where all samples are equal.
    excess = max(fourth - (count - 3) / (count - 1) * variance**2, 0.0)
    return Estimate(variance, math.sqrt(excess / count), count)


def _dot(a: Tensor, b: Tensor) -> float:
    return (a.double() @ b.double()).item()

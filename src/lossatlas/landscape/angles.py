"""How directions lie to one another: angles, orthogonalisation; a direction beside Gaussian ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lossatlas.errors import UserError
from lossatlas.landscape.directions import Direction, gaussian, vector_of
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.result import Result

DEPENDENT = 1e-6  # a remainder shorter than this share of its direction is not told from float32 rounding


@dataclass(frozen=True)
class Angle(Result):
    """The angle between two directions, and how far it is from what a Gaussian direction would have."""

    degrees: float
    cosine: float
    gaussian_sd: float  # degrees: 57.3 / sqrt(n), the standard deviation of a Gaussian's angle about 90

    def __repr__(self) -> str:
        return f"Angle({self.degrees:.4g} degrees, {self.deviation:.2g} sd of a Gaussian's from 90)"

    @property
    def deviation(self) -> float:
        """(degrees - 90) / gaussian_sd: about standard normal if one of the two is Gaussian."""
        return (self.degrees - 90) / self.gaussian_sd


@dataclass(frozen=True)
class Comparison(Result):
    """The loss after a step of one length along a direction, and along Gaussian ones [Xu2024, Figs. 5, 6]."""

    start: float  # the loss at theta
    value: float  # along the direction
    gaussians: Tensor  # (count,) float64, along each Gaussian
    distance: float  # of the step, in units of ||theta||
    seed: int

    def __repr__(self) -> str:
        rivals = f"{self.beaten_by} of {len(self.gaussians)} Gaussians lower, the best {self.best:.4g}"
        step = f"loss {self.value:.4g} after {self.distance:.4g} ||theta||, from {self.start:.4g}"
        return f"Comparison({step}; {rivals})"

    @property
    def best(self) -> float:
        """The lowest loss along a Gaussian."""
        return self.gaussians.min().item()

    @property
    def beaten_by(self) -> int:
        """How many Gaussians reach a lower loss than the direction."""
        return int((self.gaussians < self.value).sum())


def angle(first: Tensor | Direction, second: Tensor | Direction) -> Angle:
    """The angle between two vectors (n,) or directions, from 0 to 180 degrees, accurate at both ends [Kahan].

    The cosine of a Gaussian vector with any fixed one has mean 0 and variance 1/n exactly. NaN for a zero vector.
    In float64. Raises UserError for two of different sizes.
    """
    a, b = _unit(vector_of(first)), _unit(vector_of(second))
    if a.shape != b.shape:
        raise UserError(f"The two have shapes {tuple(a.shape)} and {tuple(b.shape)}. Give two of the same space.")
    radians = 2 * torch.atan2((a - b).norm(), (a + b).norm())
    return Angle(math.degrees(radians.item()), (a @ b).item(), math.degrees(1 / math.sqrt(a.numel())))


def cosines(directions: Sequence[Direction]) -> Tensor:
    """(k, k) float64: the cosines between directions."""
    rows = torch.stack([_unit(d.vector) for d in directions])
    return rows @ rows.T


def orthogonalised(directions: Sequence[Direction]) -> list[Direction]:
    """The directions made orthogonal one after another, each with the norm it had; the first stays as it is.

    Householder QR in float64 of the unit vectors (n, k), so all pairs are orthogonal up to the rounding of the
    directions' own dtype. Scaling per layer or filter does not survive: `details` says so, with the cosine
    between what was and what is. Raises UserError for directions that are linearly dependent.
    """
    units = torch.stack([_unit(d.vector) for d in directions], dim=1)
    q, r = torch.linalg.qr(units)
    remainders = r.diagonal()
    if not bool((remainders.abs() > DEPENDENT).all()):
        names = ", ".join(d.name for d in directions)
        raise UserError(f"The directions ({names}) are linearly dependent or zero. Give independent ones.")
    result = [directions[0]]
    for direction, column, remainder in zip(directions[1:], q.T[1:], remainders[1:], strict=True):
        vector = column * (remainder.sign() * direction.norm)
        details = dict(direction.details) | {"orthogonalised": remainder.abs().item()}
        result.append(replace(direction, vector=vector.to(direction.vector.dtype), details=details))
    return result


def log_density(vector: Tensor, *, sd: float = 1.0) -> float:
    """The density ln N(v; 0, sd^2 I) = -n/2 ln(2 pi sd^2) - ||v||^2 / (2 sd^2) of a vector (n,) [Xu2024, Fig. 5].

    It depends on the norm alone. The density is highest at 0, where draws never fall: they have norms of about
    sd sqrt(n) and ln N = -n/2 ln(2 pi e sd^2) +- sqrt(n/2), and at equal norm all directions are equally likely.
    """
    n, norm = vector.numel(), float(torch.linalg.vector_norm(vector, dtype=torch.float64))
    return -n / 2 * math.log(2 * math.pi * sd**2) - (norm / sd) ** 2 / 2


def against_gaussians(
    objective: Objective,
    direction: Direction,
    *,
    distance: float,
    count: int = 100,
    seed: int = 0,
    theta: Tensor | None = None,
) -> Comparison:
    """The loss after a step of `distance` ||theta|| along `direction` and along `count` Gaussians [Xu2024].

    The k-th Gaussian is `gaussian(seed=seed + k)`. Cost: count + 2 passes over the data.
    """
    if count < 1:
        raise UserError(f"count={count} Gaussians give no comparison. Give 1 or more.")
    theta = objective.center if theta is None else theta.to(objective.center)
    length = distance * torch.linalg.vector_norm(theta, dtype=torch.float64).item()

    def loss(along: Direction) -> float:
        return objective(theta + (length / along.norm) * along.vector).item()

    others = [loss(gaussian(objective, seed=seed + k, theta=theta, scaling="none")) for k in range(count)]
    return Comparison(
        start=objective(theta).item(),
        value=loss(direction),
        gaussians=torch.tensor(others, dtype=torch.float64),
        distance=distance,
        seed=seed,
    )


def _unit(vector: Tensor) -> Tensor:
    wide = vector.detach().double().cpu()
    unit: Tensor = wide / wide.norm()
    return unit

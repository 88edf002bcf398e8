"""Spectral density of a symmetric operator by stochastic Lanczos quadrature ([Lin 2016], [Ghorbani 2019])."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from lossatlas.errors import UserError
from lossatlas.landscape.estimate import Estimate, sample_mean
from lossatlas.landscape.krylov import Krylov
from lossatlas.landscape.operators import SymmetricOperator, checked_operator
from lossatlas.landscape.result import Result, with_error
from lossatlas.landscape.shares import Bracket, Mass, Signs, bracket

Probe = Literal["rademacher", "gaussian"]

LINEAR = 1e-4  # of the largest Ritz magnitude: where the logarithmic axis turns linear, unless told
POINTS_PER_WIDTH = 4  # of a smoothed curve, to one width of its kernel
ROUNDING = 100  # times the machine's eps and the largest Ritz magnitude: what a product may err by
REACH = 4.0  # widths that a smoothed curve goes on beyond the last Ritz value: 3e-5 of a kernel lie beyond


@dataclass(frozen=True)
class SymlogAxis:
    """The axis u(x) = x / t for |x| <= t, else sign(x) (1 + log10(|x| / t)): outside +-t, a unit is a decade."""

    threshold: float  # t > 0, in units of the eigenvalues

    def __post_init__(self) -> None:
        if not 0 < self.threshold < math.inf:
            raise UserError(f"threshold={self.threshold} must be positive and finite.")

    def forward(self, values: Tensor) -> Tensor:
        """Eigenvalues -> positions on the axis."""
        scaled = values.abs() / self.threshold
        return values.sign() * torch.where(scaled > 1, 1 + scaled.clamp_min(1).log10(), scaled)

    def inverse(self, positions: Tensor) -> Tensor:
        """Positions on the axis -> eigenvalues."""
        size = positions.abs()
        powers = torch.pow(10.0, size.clamp_min(1) - 1)
        return positions.sign() * self.threshold * torch.where(size > 1, powers, size)


@dataclass(frozen=True)
class Extreme:
    """An outermost Ritz value over all probes; an eigenvalue lies within `residual` of it."""

    value: float
    residual: float


@dataclass(frozen=True, eq=False)
class Histogram(Result):
    """Shares of the eigenvalues in bins [edge, next edge), the last one closed."""

    edges: Tensor  # (B + 1,) float64 ascending, in units of the eigenvalues
    share: Tensor  # (B,)
    stderr: Tensor  # (B,)
    axis: SymlogAxis

    def __repr__(self) -> str:
        return f"Histogram({_peak(self.share, self.stderr)} of {len(self.share)} bins)"


@dataclass(frozen=True, eq=False)
class SmoothDensity(Result):
    """The density per unit of the axis (outside the threshold: per decade), of integral 1 along it."""

    grid: Tensor  # (G,) float64 ascending, in units of the eigenvalues; evenly spaced on the axis
    density: Tensor  # (G,)
    stderr: Tensor  # (G,)
    width: float  # standard deviation of the Gaussian kernel, in units of the axis
    axis: SymlogAxis

    def __repr__(self) -> str:
        return f"SmoothDensity({_peak(self.density, self.stderr)} of {len(self.density)} points)"


@dataclass(frozen=True, eq=False)
class Density(Result):
    """The spectral density phi(x) = (1/n) sum_i delta(x - lambda_i) of a symmetric matrix of order n.

    Probe p estimates it by the measure sum_j weights[p][j] delta(x - ritz[p][j]), of mass 1. Whatever is read off
    is a mean over the probes with the standard error s / sqrt(P), NaN for a single probe. That error knows the
    draw of the probes; moments up to twice the steps have no other one, a share does (`Mass`). Without
    probes, and hence NaN, where `status` is "non-finite".
    """

    ritz: tuple[Tensor, ...]  # P times (m,) float64, ascending
    weights: tuple[Tensor, ...]  # P times (m,) float64, not negative
    residuals: tuple[Tensor, ...]  # P times (m,) float64, of the Ritz pairs
    size: int  # n
    matvecs: int
    steps: int  # asked for; m is smaller where the Krylov space of a probe was exhausted
    probe: Probe
    seed: int
    eps: float  # of the operator's numbers
    status: str = "ok"
    reason: str = ""

    def __repr__(self) -> str:
        if self.status != "ok":
            return f"Density({self.status}: {self.reason})"
        span = f"{self.smallest.value:.4g} to {self.largest.value:.4g}"
        return f"Density({self.signs()}, {span}; {len(self.ritz)} probes, {self.matvecs} products)"

    def moment(self, power: int) -> Estimate:
        """tr(A^power) of the matrix, for power < 2 steps."""
        if not 0 <= power < 2 * self.steps:
            raise UserError(f"power={power} must lie in 0 .. {2 * self.steps - 1}, twice the steps.")
        return _mean([self.size * (w @ x.pow(power)) for x, w in zip(self.ritz, self.weights, strict=True)])

    @property
    def trace(self) -> Estimate:
        """The trace, tr A."""
        return self.moment(1)

    @property
    def trace_of_square(self) -> Estimate:
        """The squared Frobenius norm, tr A^2."""
        return self.moment(2)

    def signs(self, threshold: float | None = None) -> Signs:
        """The shares of eigenvalues surely below -threshold, surely above it, and the rest, about 0.

        Each is the mean over the probes of the bound of `Mass`. `threshold` (default: 100 eps of the largest Ritz
        magnitude, what rounding may make of an eigenvalue 0) is in units of the eigenvalues. Raises UserError for
        one that is negative.
        """
        if threshold is None:
            threshold = ROUNDING * self.eps * self._magnitude
        if not threshold >= 0:
            raise UserError(f"threshold={threshold} must be 0 or more, in units of the eigenvalues.")
        pairs = list(zip(self._brackets(-threshold), self._brackets(threshold), strict=True))
        negative = [below.lower for below, _ in pairs]
        positive = [1 - above.upper for _, above in pairs]
        undecided = [1 - n - p for n, p in zip(negative, positive, strict=True)]
        return Signs(_mean(negative), _mean(undecided), _mean(positive), threshold)

    def mass_below(self, value: float) -> Mass:
        """The share of eigenvalues below `value`."""
        found = self._brackets(value)
        share, lower, upper = (_mean([probe[i] for probe in found]) for i in range(3))
        return Mass(share.value, share.stderr, lower, upper)

    @property
    def smallest(self) -> Extreme:
        """The smallest Ritz value: the smallest eigenvalue is at most this (but for rounding)."""
        return self._extreme(0)

    @property
    def largest(self) -> Extreme:
        """The largest Ritz value: the largest eigenvalue is at least this (but for rounding)."""
        return self._extreme(-1)

    def histogram(self, bins: int | Tensor = 60, *, threshold: float | None = None) -> Histogram:
        """The shares in bins, with their standard errors.

        `bins` are ascending edges in units of the eigenvalues (what lies outside is not counted), or a number of
        bins, even on the symmetric logarithmic axis from the smallest to the largest Ritz value. `threshold` is
        where that axis turns linear (default: 1e-4 of the largest Ritz magnitude).
        """
        axis = self.axis(threshold)
        edges = self._edges(bins, axis) if isinstance(bins, int) else bins.double().cpu()
        if edges.dim() != 1 or len(edges) < 2 or bool((edges.diff() <= 0).any()):
            raise UserError(f"bins={bins!r} must be a number from 1 on, or at least two ascending edges.")

        def share(ritz: Tensor, weights: Tensor) -> Tensor:
            return torch.histogram(ritz, edges, weight=weights).hist

        return Histogram(edges, *self._over_probes(share, len(edges) - 1), axis)

    def smoothed(self, *, width: float = 0.1, threshold: float | None = None) -> SmoothDensity:
        """The density along the axis, every Ritz value widened to a Gaussian of standard deviation `width` there.

        For plots: the heights depend on the width, in units of the axis. `threshold` as in `histogram`.
        """
        if not 0 < width < math.inf:
            raise UserError(f"width={width} must be positive: the kernel's standard deviation on the axis.")
        axis = self.axis(threshold)
        low, high = self._range(axis)
        margin = REACH * width
        count = 1 + math.ceil(POINTS_PER_WIDTH * (high - low + 2 * margin) / width) if self.ritz else 1
        positions = torch.linspace(low - margin, high + margin, count, dtype=torch.float64)

        def kernel(ritz: Tensor, weights: Tensor) -> Tensor:
            distances = (positions.unsqueeze(1) - axis.forward(ritz)) / width
            return torch.exp(-distances.square() / 2) @ weights / (width * math.sqrt(2 * math.pi))

        return SmoothDensity(axis.inverse(positions), *self._over_probes(kernel, count), width, axis)

    def axis(self, threshold: float | None = None) -> SymlogAxis:
        """The symmetric logarithmic axis with that threshold, or the default one."""
        if threshold is not None:
            return SymlogAxis(threshold)
        return SymlogAxis(LINEAR * self._magnitude if self._magnitude > 0 else 1.0)

    @property
    def _magnitude(self) -> float:
        return max((x.abs().max().item() for x in self.ritz), default=0.0)

    def _brackets(self, value: float) -> list[Bracket]:
        return [bracket(*probe, value) for probe in zip(self.ritz, self.weights, self.residuals, strict=True)]

    def _extreme(self, end: int) -> Extreme:
        pairs = [(x[end].item(), r[end].item()) for x, r in zip(self.ritz, self.residuals, strict=True)]
        if not pairs:
            return Extreme(math.nan, math.nan)
        return Extreme(*(min(pairs) if end == 0 else max(pairs)))

    def _range(self, axis: SymlogAxis) -> tuple[float, float]:
        """The smallest and largest Ritz value, as positions on the axis."""
        low, high = axis.forward(torch.tensor([self.smallest.value, self.largest.value], dtype=torch.float64))
        return low.item(), high.item()

    def _edges(self, bins: int, axis: SymlogAxis) -> Tensor:
        low, high = self._range(axis)
        if bins < 1 or not self.ritz:
            return torch.arange(max(bins, 0) + 1, dtype=torch.float64)  # refused, or nothing to be counted
        if low == high:  # one eigenvalue: a unit of the axis about it
            return axis.inverse(torch.linspace(low - 0.5, high + 0.5, bins + 1, dtype=torch.float64))
        edges = axis.inverse(torch.linspace(low, high, bins + 1, dtype=torch.float64))
        edges[0], edges[-1] = self.smallest.value, self.largest.value  # rounding must not lose the outermost ones
        return edges

    def _over_probes(self, function: Callable[[Tensor, Tensor], Tensor], length: int) -> tuple[Tensor, Tensor]:
        """Mean and standard error (length,) of a function of a probe's Ritz values and weights."""
        nan = torch.full((length,), math.nan, dtype=torch.float64)
        if not self.ritz:
            return nan, nan
        rows = torch.stack([function(x, w) for x, w in zip(self.ritz, self.weights, strict=True)])
        return rows.mean(0), rows.std(0) / math.sqrt(len(rows)) if len(rows) > 1 else nan


def density(
    op: SymmetricOperator, *, probes: int = 10, steps: int = 50, probe: Probe = "rademacher", seed: int
) -> Density:
    """The density of the eigenvalues of `op` by stochastic Lanczos quadrature, as [Xu2024] Fig. 13 shows it.

    For each of P = `probes` random vectors v (signs, or Gaussian), scaled to length 1, m = `steps` Lanczos steps
    with full orthogonalisation give the projection T_m. Its eigenvalues theta_j and the squares w_j of the *first*
    entries of its unit eigenvectors are the Gauss quadrature of the spectral measure of v:
    sum_j w_j theta_j^k = v'A^k v for k < 2m, and since E vv' = I/n, n sum_j w_j theta_j^k estimates tr A^k without
    bias. Bins and kernels are read off the result, see `Density`.

    Cost: P m products, and 4 n m^2 multiplications a probe beside them; memory (m + 1) n numbers. A space that
    is exhausted (an operator of order or rank below m) ends its probe sooner, and then exactly. A product that
    is not finite gives the status "non-finite". Raises UserError for numbers that make no sense.
    """
    checked_operator(op)
    if probes < 1 or steps < 1 or probe not in get_args(Probe):
        raise UserError(
            f"probes={probes} and steps={steps} must be at least 1, and probe={probe!r} one of "
            f"{', '.join(get_args(Probe))}."
        )
    generator = torch.Generator().manual_seed(seed)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    matvecs, failed = 0, False
    for _ in range(probes):
        space = Krylov(op, min(steps, op.size), _draw(probe, op.size, generator))
        while space.m < min(steps, op.size) and not space.is_exhausted and not failed:
            failed = not space.grow()
        matvecs += space.matvecs
        if failed:
            found = []
            break
        values, vectors, residuals = space.ritz()
        found.append((values, vectors[0].square(), residuals))
        del space  # its basis goes before that of the next probe comes
    return Density(
        ritz=tuple(values for values, _, _ in found),
        weights=tuple(weights for _, weights, _ in found),
        residuals=tuple(residuals for _, _, residuals in found),
        size=op.size,
        matvecs=matvecs,
        steps=steps,
        probe=probe,
        seed=seed,
        eps=torch.finfo(op.dtype).eps,
        status="non-finite" if failed else "ok",
        reason=f"product {matvecs} is not finite" if failed else "",
    )


def _peak(values: Tensor, errors: Tensor) -> str:
    """The largest value with its error, in words."""
    place = int(values.argmax())
    return f"largest {with_error(values[place].item(), errors[place].item())}"


def _draw(probe: Probe, n: int, generator: torch.Generator) -> Tensor:
    if probe == "gaussian":
        return torch.randn(n, generator=generator, dtype=torch.float64)
    return 2.0 * torch.randint(0, 2, (n,), generator=generator).double() - 1


def _mean(values: list[Tensor]) -> Estimate:
    if not values:
        return Estimate.failed("non-finite", "a product with the operator is not finite", 0)
    return sample_mean(torch.stack(values))

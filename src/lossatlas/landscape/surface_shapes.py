"""The shape of a surface around a point, from the polynomial that fits it there; without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lossatlas.errors import UserError
from lossatlas.landscape.result import Result, with_error
from lossatlas.landscape.shapes import Array, Status, not_finite

SurfaceKind = Literal["bowl", "gutter", "saddle", "wine-bottle", "peak", "other"]


@dataclass(frozen=True, eq=False)
class SurfaceShape(Result):
    """The class of a surface around one point, from f = c + g'x + x'Hx / 2 + ... fitted to the points near it."""

    kind: SurfaceKind
    eigenvalues: tuple[float, float]  # of H, ascending, per squared unit of length
    stderr: tuple[float, float]  # of scatter and truncation; 0 where f is the polynomial; NaN: not known
    eigenvectors: Array  # (2, 2): columns
    gradient: Array  # (2,) g, at the point, per unit of length
    anisotropy: float  # smallest / largest |eigenvalue|
    residual: float  # root mean square about the fit, m - p degrees of freedom
    points: int  # m, how many were fitted
    degree: int  # of the polynomial: 4 with p = 15 coefficients, or 2 with p = 6; 0 without a fit
    status: Status = "ok"
    reason: str = ""

    def __repr__(self) -> str:
        curvatures = " and ".join(map(with_error, self.eigenvalues, self.stderr))
        return f"SurfaceShape({self.kind}, {self.reason or f'curvatures {curvatures}'})"


def surface_shape(
    alphas: Any,
    betas: Any,
    values: Any,
    *,
    at: tuple[float, float] = (0.0, 0.0),
    inner: int = 2,
    lengths: tuple[float, float] = (1.0, 1.0),
    gutter: float = 0.05,
    sigmas: float = 3.0,
) -> SurfaceShape:
    """The class of a surface `values[i, j]` at alphas[i], betas[j] around the point `at`.

    A polynomial of total degree 4 is fitted by least squares to the (2 inner + 1)^2 points about the grid point
    nearest to `at` (at a border the window moves inwards), in coordinates times `lengths`: with the directions'
    lengths, and directions that are orthogonal, eigenvalues are curvatures in parameter space. With inner=1, or
    fewer than 5 points on an axis, it is a quadratic.

    The error is that of the curvature at the point: the root of the squares of the standard error by the scatter
    about the fit, and of the change |(H - H') q| to a second fit H' with a larger truncation error. That is the
    same degree in the window of inner + 1, whose error is more than 4 times as large (of a sixth power on 5 and 7
    points an axis, of a fourth on 3 and 5), or where the grid ends before, the quadratic in the same window. It
    needs terms that fall off from grid point to grid point, and holds no sampling noise; 3 points on an axis
    have no second fit: the error is NaN. Kinks (ReLU) bend the surface, and so H, where derivatives by
    autograd do not see them.

    An eigenvalue has a sign if it exceeds `sigmas` errors and is not smaller than `gutter` times the other in
    magnitude; the classes are

    - bowl: both positive; gutter: one positive, the other without a sign
    - saddle: one of each sign
    - wine-bottle, the bottom of a bottle of wine: both negative, and along each of the four half-axes from the
      point the loss falls and rises again within the window; peak: both negative without that rim
    - other: no eigenvalue, or only a negative one, has a sign

    Raises UserError for arrays that do not fit, fewer than 7 points, or points on one or two lines.
    """
    a, b, z = _surface(alphas, betas, values)
    i, j = int(np.abs(a - at[0]).argmin()), int(np.abs(b - at[1]).argmin())
    u, v = (a - a[i]) * lengths[0], (b - b[j]) * lengths[1]
    near, wide = ((_window(i, radius, len(a)), _window(j, radius, len(b))) for radius in (inner, inner + 1))
    values = z[near]
    if values.size < 7:
        raise UserError(
            f"{values.size} points cannot fix a quadratic and its error. Give inner >= 1, 3 x 3 points."
        )
    if not np.isfinite(values).all():
        return _without_fit(values)
    degree = 4 if min(values.shape) >= 5 else 2
    fit = _fit(u, v, z, near, degree)
    is_wider = all(more > less for more, less in zip(z[wide].shape, values.shape, strict=True))
    other = None
    if is_wider and np.isfinite(z[wide]).all():
        other = _fit(u, v, z, wide, degree)
    elif degree == 4:
        other = _fit(u, v, z, near, 2)
    eigenvalues, vectors = np.linalg.eigh(fit.hessian)
    # d lambda = q'dH q for the unit eigenvector q
    slopes = np.stack([vectors[0] ** 2, 2 * vectors[0] * vectors[1], vectors[1] ** 2])  # (3, 2)
    scatter = np.sqrt(np.einsum("ik,ij,jk->k", slopes, fit.covariance, slopes))
    # An eigenvalue of the other H lies within |(H - other H) q|, whatever q'(H - other H) q happens to be.
    change = fit.hessian - other.hessian if other else np.full((2, 2), math.nan)
    truncation = np.linalg.norm(change @ vectors, axis=0)
    stderr = np.hypot(scatter, truncation)
    size = np.abs(eigenvalues)
    clear = (size > sigmas * stderr) & (size > gutter * size.max())
    signs = sorted(int(s) for s in np.where(clear, np.sign(eigenvalues), 0))
    return SurfaceShape(
        kind=_surface_kind(signs, _has_rim(z, i, j)),
        eigenvalues=(float(eigenvalues[0]), float(eigenvalues[1])),
        stderr=(float(stderr[0]), float(stderr[1])),
        eigenvectors=vectors,
        gradient=fit.gradient,
        anisotropy=float(size.min() / size.max()) if size.max() > 0 else math.nan,
        residual=fit.residual,
        points=values.size,
        degree=degree,
        reason="" if other else "the grid is too small for an error of the curvatures; it takes 5 x 5 points",
    )


@dataclass(frozen=True)
class _Fit:
    """A polynomial about the origin."""

    gradient: Array  # (2,)
    hessian: Array  # (2, 2)
    covariance: Array  # (3, 3) of the hessian's entries uu, uv, vv
    residual: float


def _window(center: int, radius: int, length: int) -> slice:
    """The 2 radius + 1 points about the center, moved inwards where an end is near."""
    start = max(0, min(center - radius, length - 2 * radius - 1))
    return slice(start, start + 2 * radius + 1)


def _fit(u: Array, v: Array, z: Array, window: tuple[slice, slice], degree: int) -> _Fit:
    """Least squares over the window, in the terms u^k v^l / (k! l!), whose coefficients are the derivatives."""
    x, y = np.meshgrid(u[window[0]], v[window[1]], indexing="ij")
    values = z[window].ravel()
    # Columns of order one, whatever the coordinates' size, so that their powers cannot spoil the conditioning.
    su, sv = np.abs(x).max() or 1.0, np.abs(y).max() or 1.0
    powers = [(total - k, k) for total in range(degree + 1) for k in range(total + 1)]
    p, q = x.ravel() / su, y.ravel() / sv
    design = np.stack([p**k * q**m / (math.factorial(k) * math.factorial(m)) for k, m in powers], axis=1)
    orthogonal, triangle = np.linalg.qr(design)
    if np.abs(triangle.diagonal()).min() < 1e-10:  # a row or column of the grid, where nothing is curved
        raise UserError(
            "The points near the model lie on a line or two, which fix no quadratic. Give a finer grid."
        )
    inverse = np.linalg.inv(triangle)
    scale = np.array([1 / (su**k * sv**m) for k, m in powers])
    solution = inverse @ (orthogonal.T @ values)
    square = float(((values - design @ solution) ** 2).sum()) / (len(values) - len(powers))
    covariance = square * (inverse @ inverse.T) * np.outer(scale, scale)
    found = solution * scale
    return _Fit(found[1:3], np.array([found[[3, 4]], found[[4, 5]]]), covariance[3:6, 3:6], math.sqrt(square))


def _without_fit(near: Array) -> SurfaceShape:
    nan = math.nan
    return SurfaceShape(
        kind="other",
        eigenvalues=(nan, nan),
        stderr=(nan, nan),
        eigenvectors=np.full((2, 2), nan),
        gradient=np.full(2, nan),
        anisotropy=nan,
        residual=nan,
        points=near.size,
        degree=0,
        status="non-finite",
        reason=not_finite(near),
    )


def _surface_kind(signs: list[int], has_rim: bool) -> SurfaceKind:
    kinds: dict[tuple[int, ...], SurfaceKind] = {
        (1, 1): "bowl",
        (0, 1): "gutter",
        (-1, 1): "saddle",
        (-1, -1): "wine-bottle" if has_rim else "peak",
    }
    return kinds.get(tuple(signs), "other")


def _has_rim(z: Array, i: int, j: int) -> bool:
    """Along each half-axis from (i, j) the smallest value is neither at the point nor at the border."""
    rays = [z[i::-1, j], z[i:, j], z[i, j::-1], z[i, j:]]
    return all(0 < int(ray.argmin()) < len(ray) - 1 and not np.isnan(ray).any() for ray in rays)


def _surface(alphas: Any, betas: Any, values: Any) -> tuple[Array, Array, Array]:
    a, b, z = (np.asarray(x, dtype=np.float64) for x in (alphas, betas, values))
    if a.ndim != 1 or b.ndim != 1 or z.shape != (len(a), len(b)):
        raise UserError(
            f"values of shape {z.shape} do not lie over {a.shape} alphas and {b.shape} betas. "
            "Give values[i, j] at alphas[i], betas[j]."
        )
    return a, b, z

"""The shape of a surface around a point, from the quadratic that fits it there; without torch."""

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
    """The class of a surface around one point, from f = c + g'x + x'Hx / 2 fitted to the points near it."""

    kind: SurfaceKind
    eigenvalues: tuple[float, float]  # of H, ascending, per squared unit of length
    stderr: tuple[float, float]  # from the scatter about the fit, to first order; 0 for an exact quadratic
    eigenvectors: Array  # (2, 2): columns
    gradient: Array  # (2,) g, at the point
    anisotropy: float  # smallest / largest |eigenvalue|
    residual: float  # root mean square about the fit, m - 6 degrees of freedom
    points: int  # m, how many were fitted
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

    A quadratic is fitted by least squares to the (2 inner + 1)^2 points around the grid point nearest to `at`
    (those in the window), in coordinates times `lengths`: with the directions' lengths, and directions that are
    orthogonal, eigenvalues are curvatures in parameter space. An eigenvalue has a sign if it exceeds `sigmas`
    standard errors and is not smaller than `gutter` times the other in magnitude; the classes are

    - bowl: both positive; gutter: one positive, the other without a sign
    - saddle: one of each sign
    - wine-bottle, the bottom of a bottle of wine: both negative, and along each of the four half-axes from the
      point the loss falls and rises again within the window; peak: both negative without that rim
    - other: no eigenvalue, or only a negative one, has a sign

    The error says how far the surface is from quadratic and holds no sampling noise. Raises UserError for arrays
    that do not fit or fewer than 7 points.
    """
    a, b, z = _surface(alphas, betas, values)
    i, j = int(np.abs(a - at[0]).argmin()), int(np.abs(b - at[1]).argmin())
    rows = slice(max(0, i - inner), i + inner + 1)
    columns = slice(max(0, j - inner), j + inner + 1)
    u, v = np.meshgrid((a[rows] - a[i]) * lengths[0], (b[columns] - b[j]) * lengths[1], indexing="ij")
    near = z[rows, columns].ravel()
    if near.size < 7:
        raise UserError(
            f"{near.size} points cannot fix a quadratic and its error. Give inner >= 1 off the corners."
        )
    if not np.isfinite(near).all():
        return _without_fit(near)
    coefficients, covariance, residual = _least_squares(u.ravel(), v.ravel(), near)
    eigenvalues, vectors = np.linalg.eigh(np.array([coefficients[[3, 4]], coefficients[[4, 5]]]))
    # d lambda = q'dH q for the unit eigenvector q
    slopes = np.stack([vectors[0] ** 2, 2 * vectors[0] * vectors[1], vectors[1] ** 2])  # (3, 2)
    stderr = np.sqrt(np.einsum("ik,ij,jk->k", slopes, covariance[3:, 3:], slopes))
    size = np.abs(eigenvalues)
    clear = (size > sigmas * stderr) & (size > gutter * size.max())
    signs = sorted(int(s) for s in np.where(clear, np.sign(eigenvalues), 0))
    return SurfaceShape(
        kind=_surface_kind(signs, _has_rim(z, i, j)),
        eigenvalues=(float(eigenvalues[0]), float(eigenvalues[1])),
        stderr=(float(stderr[0]), float(stderr[1])),
        eigenvectors=vectors,
        gradient=coefficients[1:3],
        anisotropy=float(size.min() / size.max()) if size.max() > 0 else math.nan,
        residual=residual,
        points=near.size,
    )


def _least_squares(u: Array, v: Array, z: Array) -> tuple[Array, Array, float]:
    """Coefficients of 1, u, v, u^2/2, uv, v^2/2 (6,), their covariance (6, 6), and the scatter about the fit."""
    # Columns of order one, whatever the coordinates' size, so that their squares cannot spoil the conditioning.
    su, sv = np.abs(u).max() or 1.0, np.abs(v).max() or 1.0
    p, q = u / su, v / sv
    design = np.stack([np.ones_like(p), p, q, p**2 / 2, p * q, q**2 / 2], axis=1)
    orthogonal, triangle = np.linalg.qr(design)
    if np.abs(triangle.diagonal()).min() < 1e-10:  # a row or column of the grid, where nothing is curved
        raise UserError(
            "The points near the model lie on a line or two, which fix no quadratic. Give a finer grid."
        )
    inverse = np.linalg.inv(triangle)
    scale = 1 / np.array([1.0, su, sv, su**2, su * sv, sv**2])
    solution = inverse @ (orthogonal.T @ z)
    square = float(((z - design @ solution) ** 2).sum()) / (len(z) - 6)
    covariance = square * (inverse @ inverse.T) * np.outer(scale, scale)
    return solution * scale, covariance, math.sqrt(square)


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

"""Extremal eigenpairs of a symmetric operator: Lanczos with full orthogonalisation and thick restart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from lossatlas.errors import UserError
from lossatlas.landscape.krylov import Krylov
from lossatlas.landscape.operators import SymmetricOperator, checked_operator
from lossatlas.landscape.result import Result

Which = Literal["largest", "smallest", "both"]


@dataclass(frozen=True, eq=False)
class Eigenpairs(Result):
    """Eigenpairs with what they rest on; NaN throughout where a product was not finite.

    A residual is ||A v - lambda v|| of the unit vector v, from the recurrence, hence exact up to the rounding
    of the operator's type (some eps ||A||). An eigenvalue of A lies within the residual of each value, and
    within residual^2 / gap where the gap is larger; the angle of the vector is at most about residual / gap.
    """

    eigenvalues: Tensor  # (k,) float64; "both": (2k,), the k largest before the k smallest
    eigenvectors: Tensor  # (n, k), of unit length, the component of largest magnitude positive
    residuals: Tensor  # (k,) float64
    gaps: Tensor  # (k,) float64: distance to the nearest other Ritz value, infinite when there is none
    converged: Tensor  # (k,) bool: residual <= tol * largest magnitude of a Ritz value
    matvecs: int
    which: Which
    tol: float
    seed: int
    reason: str = ""  # empty when all have converged

    def __repr__(self) -> str:
        k = len(self.eigenvalues)
        ends = {0: self.which, k // 2: "smallest"} if self.which == "both" else {0: self.which}
        ends = {i: "largest" if name == "both" else name for i, name in ends.items()}
        shown = ", ".join(
            f"{name} {self.eigenvalues[i]:.4g} (residual {self.residuals[i]:.2g})" for i, name in ends.items()
        )
        return f"Eigenpairs({shown}; {int(self.converged.sum())} of {k} converged, {self.matvecs} products)"


def eigenpairs(
    op: SymmetricOperator,
    k: int = 1,
    *,
    which: Which = "largest",
    tol: float = 1e-3,
    max_matvecs: int = 200,
    max_basis: int | None = None,
    seed: int,
) -> Eigenpairs:
    """The k algebraically largest (descending) or smallest (ascending) eigenpairs of `op`, or k of each.

    Rayleigh-Ritz on the Krylov space of a random vector [Lanczos 1950], every new direction orthogonalised twice
    against the whole basis, the projected matrix in float64. Stops when for every wanted pair
    residual <= tol * max |Ritz value|, which estimates tol ||A||, or after `max_matvecs` products; failure to
    converge is reported, not raised. `max_basis` bounds the memory, (max_basis + 1) n numbers (default: as many as
    products): a full basis is compressed to its best Ritz vectors [Wu and Simon 2000]. Beside the products, the
    work is 4 n m multiplications for the m-th direction.

    When the Krylov space is exhausted (an invariant subspace), the search goes on from a new random direction
    until k spaces are, so that an eigenvalue repeated k times is found k times. Without that, an exactly
    repeated eigenvalue may be found once. Raises UserError for a k that does not fit the operator or the
    budgets.
    """
    checked_operator(op)
    wanted = 2 * k if which == "both" else k
    _check(op.size, k, wanted, which, max_matvecs, max_basis)
    capacity = min(op.size, max_matvecs, max_basis or op.size)
    generator, exhausted = torch.Generator().manual_seed(seed), 0  # invariant subspaces found
    space = Krylov(op, capacity, _direction(op.size, generator))
    reason = f"not converged to tol={tol:g} within max_matvecs={max_matvecs} products"
    for _ in range(max_matvecs):
        if not space.grow():
            return _failed(op, wanted, space.matvecs, which, tol, seed)
        values, vectors, residuals = space.ritz()
        chosen = _ranking(space.m, which)[:wanted]
        small = residuals[chosen] <= tol * values.abs().max()
        if space.is_exhausted and space.m < op.size:
            exhausted += 1
            space.start(_direction(op.size, generator))
        searched = exhausted == 0 or exhausted >= k
        if space.m >= wanted and ((bool(small.all()) and searched) or space.m == op.size):
            reason = ""
            break
        if space.m == capacity and space.matvecs < max_matvecs:
            keep = _ranking(space.m, which)[: wanted + (capacity - wanted) // 2]
            space.compress(values[keep], vectors[:, keep])
    if which == "both":
        chosen = chosen[0::2] + chosen[1::2]
    found = space.combine(vectors[:, chosen])
    residuals = residuals[chosen]
    converged = residuals <= tol * values.abs().max()
    return Eigenpairs(
        eigenvalues=values[chosen],
        eigenvectors=found,
        residuals=residuals,
        gaps=_gaps(values, chosen),
        converged=converged,
        matvecs=space.matvecs,
        which=which,
        tol=tol,
        seed=seed,
        reason="" if bool(converged.all()) else reason,
    )


def _direction(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, generator=generator, dtype=torch.float64)


def _ranking(m: int, which: Which) -> list[int]:
    """The indices of m ascending values from the wanted end (or from both ends in turn) on."""
    if which == "both":
        return [m - 1 - i // 2 if i % 2 == 0 else i // 2 for i in range(m)]
    return list(range(m)) if which == "smallest" else list(range(m - 1, -1, -1))


def _gaps(values: Tensor, chosen: list[int]) -> Tensor:
    distances = (values[chosen].unsqueeze(1) - values).abs()
    distances[torch.arange(len(chosen)), chosen] = math.inf
    return distances.min(1).values


def _failed(op: SymmetricOperator, wanted: int, matvecs: int, which: Which, tol: float, seed: int) -> Eigenpairs:
    nothing = torch.full((wanted,), math.nan, dtype=torch.float64)
    return Eigenpairs(
        eigenvalues=nothing,
        eigenvectors=torch.full((op.size, wanted), math.nan, dtype=op.dtype, device=op.device),
        residuals=nothing,
        gaps=nothing,
        converged=torch.zeros(wanted, dtype=torch.bool),
        matvecs=matvecs,
        which=which,
        tol=tol,
        seed=seed,
        reason=f"product {matvecs} is not finite",
    )


def _check(n: int, k: int, wanted: int, which: Which, max_matvecs: int, max_basis: int | None) -> None:
    if which not in get_args(Which):
        raise UserError(
            f"which={which!r} is not an end of the spectrum. Allowed are {', '.join(get_args(Which))}."
        )
    if not 1 <= k <= wanted <= n:
        raise UserError(
            f"k={k} ({which}) asks for {wanted} eigenvalues of an operator of order {n}. Give a k from 1 to "
            f"{n // 2 if which == 'both' else n}."
        )
    if max_matvecs < wanted:
        raise UserError(f"max_matvecs={max_matvecs} is too few for {wanted} eigenvalues. Give at least {wanted}.")
    if max_basis is not None and max_basis < min(wanted + 2, n):
        raise UserError(
            f"max_basis={max_basis} cannot hold {wanted} Ritz vectors and the search. Give {wanted + 2} or more."
        )

"""The Lanczos recurrence with full orthogonalisation: what eigenpairs and spectral densities are computed from."""

from __future__ import annotations

import torch
from torch import Tensor

from lossatlas.landscape.operators import SymmetricOperator

BLOCK = 1 << 16  # coordinates a partial dot product runs over in the operator's type before float64 takes over
MOST_PASSES = 3
ENOUGH = 0.7  # of its length must a vector keep in the last pass ("twice is enough")
BREAKDOWN_EPS = 32  # a next direction shorter than this many eps of the spectrum's size is rounding


class Krylov:
    """An orthonormal basis Q (m, n) with T = Q A Q', grown so that A Q' = Q' T + beta q e_m' all along.

    T is filled by the coefficients of the orthogonalisation rather than by its two diagonals, so the relation
    survives a restart: the coupling of the kept vectors to the next one comes out of the same products. Every
    direction is orthogonalised against the whole basis, after the last two vectors, which it mostly lies along,
    have been taken out. Memory: (capacity + 1) n numbers.
    """

    def __init__(self, op: SymmetricOperator, capacity: int, start: Tensor) -> None:
        self._op = op
        self.basis = torch.empty(capacity + 1, op.size, dtype=op.dtype, device=op.device)  # Q and the next q
        self.projected = torch.zeros(capacity, capacity, dtype=torch.float64)  # T
        self.m = 0
        self.beta = 0.0
        self.is_exhausted = False  # the basis spans an invariant subspace: there is no next direction
        self.matvecs = 0
        self._uncoupled = 0  # the next image is orthogonal to so many leading vectors, but for rounding
        self.start(start)

    def start(self, direction: Tensor) -> None:
        """Take the part of `direction` (n,) that is orthogonal to the basis as the next direction."""
        unit = (direction / direction.norm()).to(self.basis)
        _, rest = _orthogonalised(unit, self.basis[: self.m], 0)
        self.basis[self.m] = rest / _norm(rest)
        self.is_exhausted = False

    def grow(self) -> bool:
        """Take the next direction into the basis, at the cost of one product; False where that is not finite."""
        image = self._op @ self.basis[self.m]
        self.matvecs += 1
        if not bool(image.isfinite().all()):
            return False
        self.m += 1
        coefficients, rest = _orthogonalised(image, self.basis[: self.m], self._uncoupled)
        self._uncoupled = self.m - 1
        self.projected[: self.m, self.m - 1] = self.projected[self.m - 1, : self.m] = coefficients
        self.beta = _norm(rest)
        size = self.projected[: self.m, : self.m].abs().max().item()
        rounding = BREAKDOWN_EPS * torch.finfo(self._op.dtype).eps * size
        self.is_exhausted = self.m == self._op.size or self.beta <= rounding
        if not self.is_exhausted:
            self.basis[self.m] = rest / self.beta
        return True

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values (m,) ascending, coefficients (m, m) of their vectors, residuals (m,); float64 on the CPU."""
        values, vectors = torch.linalg.eigh(self.projected[: self.m, : self.m])
        return values, vectors, self.beta * vectors[-1].abs()

    def compress(self, values: Tensor, vectors: Tensor) -> None:
        """Thick restart: keep the Ritz vectors of `vectors` (m, p) as the basis, and the next direction."""
        kept = len(values)
        rotation = vectors.T.to(self.basis)  # (p, m)
        for start in range(0, self._op.size, BLOCK):  # in blocks, so that no second basis is needed
            self.basis[:kept, start : start + BLOCK] = rotation @ self.basis[: self.m, start : start + BLOCK]
        self.basis[kept] = self.basis[self.m]
        self.projected.zero_()
        self.projected[:kept, :kept] = torch.diag(values)
        self.m = kept
        self._uncoupled = 0

    def combine(self, vectors: Tensor) -> Tensor:
        """(n, p): the unit vectors with coefficients `vectors` (m, p) in the basis, their signs fixed."""
        found = self.basis[: self.m].T @ vectors.to(self.basis)
        largest = found.gather(0, found.abs().argmax(0, keepdim=True))
        unit: Tensor = found / (torch.linalg.vector_norm(found, dim=0) * torch.where(largest < 0, -1.0, 1.0))
        return unit


def _orthogonalised(vector: Tensor, basis: Tensor, uncoupled: int) -> tuple[Tensor, Tensor]:
    """Coefficients (m,) of a vector in an orthonormal basis (m, n), float64 on the CPU, and what remains of it.

    The first pass takes out the part along basis[uncoupled:]. Then come passes over the whole basis until one
    takes out next to nothing, which leaves rounding only [Parlett 1998, section 6.9].
    """
    total = torch.zeros(len(basis), dtype=torch.float64)
    first, vector = _pass(vector, basis[uncoupled:])
    total[uncoupled:] += first
    for _ in range(MOST_PASSES):
        before = _norm(vector)
        part, vector = _pass(vector, basis)
        total += part
        if _norm(vector) >= ENOUGH * before:
            break
    return total, vector


def _pass(vector: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The coefficients (m,) of a vector along the basis, float64 on the CPU, and the vector without them."""
    part = torch.zeros(len(basis), dtype=torch.float64, device=vector.device)
    for start in range(0, vector.numel(), BLOCK):
        part += (basis[:, start : start + BLOCK] @ vector[start : start + BLOCK]).double()
    return part.cpu(), vector - basis.T @ part.to(basis.dtype)


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))

"""The Lanczos recurrence with full orthogonalisation: what eigenpairs and spectral densities are computed from."""

from __future__ import annotations

import math

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
        _, rest, norm = _orthogonalised(unit, self.basis[: self.m], 0)
        self.basis[self.m] = rest / norm
        self.is_exhausted = False

    def grow(self) -> bool:
        """Take the next direction into the basis, at the cost of one product; False where that is not finite."""
        image = self._op @ self.basis[self.m]
        self.matvecs += 1
        grown = self.m + 1
        coefficients, rest, beta = _orthogonalised(image, self.basis[:grown], self._uncoupled)
        if not math.isfinite(beta):
            return False
        self.m, self.beta, self._uncoupled = grown, beta, grown - 1
        self.projected[:grown, grown - 1] = self.projected[grown - 1, :grown] = coefficients
        size = self.projected[:grown, :grown].abs().max().item()
        rounding = BREAKDOWN_EPS * torch.finfo(self._op.dtype).eps * size
        self.is_exhausted = grown == self._op.size or beta <= rounding
        if not self.is_exhausted:
            torch.div(rest, beta, out=self.basis[grown])
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
        found = vectors.T.to(self.basis) @ self.basis[: self.m]  # (p, n): rows, which are quick to run along
        largest = found.gather(1, found.abs().argmax(1, keepdim=True)).squeeze(1)
        length = torch.linalg.vector_norm(found, dim=1) * torch.where(largest < 0, -1.0, 1.0)
        unit: Tensor = found / length.unsqueeze(1)
        return unit.T


def _orthogonalised(vector: Tensor, basis: Tensor, uncoupled: int) -> tuple[Tensor, Tensor, float]:
    """Coefficients (m,) of a vector in an orthonormal basis (m, n), float64 on the CPU; what remains; its norm.

    The first pass takes out the part along basis[uncoupled:]. Then come passes over the whole basis until one
    takes out next to nothing, which leaves rounding only [Parlett 1998, section 6.9]. What a pass takes out and
    what remains are orthogonal, so their norms give that of the vector before it.
    """
    total = torch.zeros(len(basis), dtype=torch.float64)
    total[uncoupled:], vector = _pass(vector, basis[uncoupled:])
    norm = 0.0
    for _ in range(MOST_PASSES):
        part, vector = _pass(vector, basis)
        total += part
        norm = float(torch.linalg.vector_norm(vector, dtype=torch.float64))
        if norm >= ENOUGH * math.hypot(norm, float(part.norm())):
            break
    return total, vector, norm


def _pass(vector: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The coefficients (m,) of a vector along the basis, float64 on the CPU, and the vector without them."""
    part = torch.zeros(len(basis), dtype=torch.float64, device=vector.device)
    for start in range(0, vector.numel(), BLOCK):
        part += (basis[:, start : start + BLOCK] @ vector[start : start + BLOCK]).double()
    return part.cpu(), vector - basis.T @ part.to(basis.dtype)

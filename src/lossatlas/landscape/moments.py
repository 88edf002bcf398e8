"""The trace of the square of a symmetric operator, by random probes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lossatlas.landscape.hutchinson import MIN_PROBES, TraceEstimate, probe_mean
from lossatlas.landscape.operators import SymmetricOperator


@dataclass(frozen=True, repr=False)
class TraceOfSquare(TraceEstimate):
    """The trace of the square of an operator, in squared units of its own."""


def trace_of_square(
    op: SymmetricOperator,
    *,
    rel: float = 0.05,
    max_matvecs: int = 200,
    min_probes: int = MIN_PROBES,
    seed: int,
) -> TraceOfSquare:
    """tr(A^2) = ||A||_F^2 as the mean of ||A v||^2 over random signs v, with the standard error of that mean.

    Hutchinson's estimator for A^2 at the cost of one product a probe, since v' A^2 v = ||A v||^2; its variance is
    2 sum_{i != j} (A^2)_ij^2 a probe. Unbiased for a fixed number of probes; a stop at stderr <= rel mean (not
    before `min_probes`) favours a little the samples that underrate. A spectrum of one large eigenvalue needs
    some 2 / rel^2 probes. Raises UserError for impossible budgets.
    """

    def squared_norms(_signs: Tensor, images: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(images, dim=0, dtype=torch.float64)
        return norms.square()

    found = probe_mean(
        op,
        squared_norms,
        lambda values: values.var().item(),
        rel=rel,
        max_matvecs=max_matvecs,
        min_probes=min_probes,
        floor=0.0,
        known=0.0,
        seed=seed,
    )
    return TraceOfSquare(**vars(found))

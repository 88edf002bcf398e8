"""The trace of the square of a symmetric operator, by random probes."""

from __future__ import annotations

import math

import torch

from lossatlas.landscape.hutchinson import PROBES_AT_ONCE, TraceEstimate, check_budget
from lossatlas.landscape.operators import SymmetricOperator


def trace_of_square(
    op: SymmetricOperator,
    *,
    rel: float = 0.05,
    max_matvecs: int = 200,
    min_probes: int = 16,
    seed: int,
) -> TraceEstimate:
    """tr(A^2) = ||A||_F^2 as the mean of ||A v||^2 over random signs v, with the standard error of that mean.

    Hutchinson's estimator for A^2 at the cost of one product a probe, since v' A^2 v = ||A v||^2; its variance is
    2 sum_{i != j} (A^2)_ij^2 a probe. Unbiased for a fixed number of probes; a stop at stderr <= rel mean (not
    before `min_probes`) favours a little the samples that underrate. A spectrum of one large eigenvalue needs
    some 2 / rel^2 probes. Raises UserError for impossible budgets.
    """
    check_budget(rel=rel, floor=0.0, min_probes=min_probes, max_matvecs=max_matvecs)
    generator = torch.Generator().manual_seed(seed)
    squares = torch.empty(0, dtype=torch.float64)
    while True:
        count = min(PROBES_AT_ONCE, max_matvecs - len(squares))
        bits = torch.randint(0, 2, (count, op.size), generator=generator, dtype=torch.int8)
        images = op @ (2 * bits - 1).T.to(device=op.device, dtype=op.dtype)  # (n, count)
        norms = torch.linalg.vector_norm(images, dim=0, dtype=torch.float64).cpu()
        squares = torch.cat([squares, norms.square()])
        if len(squares) < min_probes:
            continue
        mean, stderr = squares.mean().item(), (squares.std() / math.sqrt(len(squares))).item()
        finite, converged = math.isfinite(mean), stderr <= rel * mean
        if converged or not finite or len(squares) == max_matvecs:
            break
    missed = "" if converged else f"the standard error missed its target within max_matvecs={max_matvecs} probes"
    return TraceEstimate(
        value=mean if finite else math.nan,
        stderr=stderr if finite else math.nan,
        data_stderr=math.nan,
        method="hutchinson",
        converged=converged,
        matvecs=len(squares),
        passes=0,
        rel=rel,
        floor=0.0,
        seed=seed,
        reason=missed if finite else "a product with the operator is not finite",
    )

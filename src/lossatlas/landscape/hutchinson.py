"""Hutchinson's estimator of a trace, stopped by its own standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lossatlas.errors import UserError
from lossatlas.landscape.operators import SymmetricOperator, checked_operator
from lossatlas.landscape.result import Result, with_error

MIN_PROBES = 16  # before a mean of probes may stop
PROBES_AT_ONCE = 4  # products taken together share the forward pass where graphs are not kept


@dataclass(frozen=True)
class TraceEstimate(Result):
    """A trace and what it rests on; the value is NaN where a product or gradient was not finite.

    `stderr` is the estimator's error (0 when exact). `data_stderr` = std of the samples' own traces / sqrt(m)
    is the error of their mean as a sample of a population: known when exact, else NaN.
    """

    value: float
    stderr: float
    data_stderr: float
    method: Literal["exact-ggn", "ggn-hutchinson", "hutchinson"]
    converged: bool
    matvecs: int  # products with the operator: probes
    passes: int  # backward passes over the data, for the trace of the GGN
    rel: float
    floor: float
    seed: int
    reason: str = ""  # why it did not converge, or else why it is not exact

    def __repr__(self) -> str:
        data = "" if math.isnan(self.data_stderr) else f", +- {self.data_stderr:.2g} over the data"
        missed = "" if self.converged else ", not converged"
        return f"{type(self).__name__}({with_error(self.value, self.stderr)} by {self.method}{data}{missed})"


def hutchinson(
    op: SymmetricOperator,
    *,
    rel: float = 0.05,
    max_matvecs: int = 200,
    min_probes: int = MIN_PROBES,
    floor: float = 1e-3,
    known: float = 0.0,
    seed: int,
) -> TraceEstimate:
    """The mean of v' A v over random signs v (Rademacher) [Hutchinson 1990], with the standard error of that mean.

    Its variance is 2 sum_{i != j} A_ij^2 a probe, twice the sum of the variances of the entries (v * A v)_i: the
    standard error is that of all of them, not that of their few sums v' A v, whose long tails (a matrix of low
    rank) make a sample of 16 underrate it where it is to stop. `known` is added: the trace of a part that A lacks.
    Stops when stderr <= max(rel |value|, floor), not before `min_probes` probes, or after `max_matvecs`. Memory:
    a vector in float64. Raises UserError for impossible budgets.
    """
    spread = _Spread()

    def forms(signs: Tensor, images: Tensor) -> Tensor:
        entries = (signs * images).double()
        spread.add(entries)
        return entries.sum(0)

    return probe_mean(
        op,
        forms,
        lambda _: 2 * spread.variance,
        rel=rel,
        max_matvecs=max_matvecs,
        min_probes=min_probes,
        floor=floor,
        known=known,
        seed=seed,
    )


class _Spread:
    """The sum over the entries of vectors of their sample variances, as the vectors come [Chan 1979]."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.squares = 0.0  # summed over vectors and entries, about the mean

    def add(self, columns: Tensor) -> None:
        """Take (n, c) further vectors in."""
        fresh = columns.shape[1]
        mean = columns.mean(1)
        change = mean - self.mean
        weight = self.count * fresh / (self.count + fresh)
        within = (columns - mean.unsqueeze(1)).square().sum()
        self.squares += (within + weight * change.square().sum()).item()
        self.count += fresh
        self.mean = self.mean + change * (fresh / self.count)

    @property
    def variance(self) -> float:
        """The sum of the variances of the entries of one vector."""
        return self.squares / (self.count - 1)


def probe_mean(
    op: SymmetricOperator,
    read: Callable[[Tensor, Tensor], Tensor],
    variance: Callable[[Tensor], float],
    *,
    rel: float,
    max_matvecs: int,
    min_probes: int,
    floor: float,
    known: float,
    seed: int,
) -> TraceEstimate:
    """The mean of `read(v, A v)` over random signs v, (n, c) -> (c,) in float64, stopped as `hutchinson` says.

    `variance` of what was read so far, (N,), is that of one probe.
    """
    checked_operator(op)
    check_budget(rel=rel, floor=floor, min_probes=min_probes, max_matvecs=max_matvecs)
    stream = _probes(op, read, max_matvecs, seed)
    forms: list[float] = []
    while True:
        while len(forms) < min_probes:
            forms += next(stream)
        values = torch.tensor(forms, dtype=torch.float64)
        mean, stderr = known + values.mean().item(), math.sqrt(variance(values) / len(forms))
        converged = stderr <= max(rel * abs(mean), floor)
        finite = math.isfinite(mean)
        if converged or not finite or len(forms) == max_matvecs:
            break
        forms += next(stream)
    reason = "" if converged else f"the standard error missed its target within max_matvecs={max_matvecs} probes"
    return TraceEstimate(
        value=mean if finite else math.nan,
        stderr=stderr if finite else math.nan,
        data_stderr=math.nan,
        method="hutchinson",
        converged=converged,
        matvecs=len(forms),
        passes=0,
        rel=rel,
        floor=floor,
        seed=seed,
        reason=reason if finite else "a product with the operator is not finite",
    )


def check_budget(*, rel: float, floor: float, min_probes: int, max_matvecs: int) -> None:
    """Raise UserError for targets or budgets that no estimate can meet."""
    if not (rel > 0 or floor > 0) or rel < 0 or floor < 0:
        raise UserError(f"rel={rel} and floor={floor} set no target. Give at least one above 0, and none below.")
    if not 2 <= min_probes <= max_matvecs:
        raise UserError(
            f"min_probes={min_probes} and max_matvecs={max_matvecs} do not fit. A standard error takes 2 probes "
            "at least, and the budget must hold the least number of probes."
        )


def _probes(
    op: SymmetricOperator, read: Callable[[Tensor, Tensor], Tensor], budget: int, seed: int
) -> Iterator[list[float]]:
    """Yield what is read of a few new random sign vectors, as often as the budget allows."""
    generator = torch.Generator().manual_seed(seed)
    for done in range(0, budget, PROBES_AT_ONCE):
        count = min(PROBES_AT_ONCE, budget - done)
        bits = torch.randint(0, 2, (count, op.size), generator=generator, dtype=torch.int8)
        signs = (2 * bits - 1).T.to(device=op.device, dtype=op.dtype)  # (n, count)
        yield read(signs, op @ signs).tolist()

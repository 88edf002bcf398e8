"""A number that was estimated from samples, with its standard error: what the measures hand back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lossatlas.landscape.result import Result, with_error


@dataclass(frozen=True)
class Estimate(Result):
    """A value, its standard error, and how many samples it rests on; NaN where `status` is not "ok"."""

    value: float
    stderr: float  # NaN where a single sample gives none
    count: int
    status: str = "ok"
    reason: str = ""

    def __repr__(self) -> str:
        shown = with_error(self.value, self.stderr) if self.status == "ok" else f"{self.status}: {self.reason}"
        return f"Estimate({shown}, {self.count} samples)"

    @classmethod
    def failed(cls, status: str, reason: str, count: int) -> Estimate:
        """No value: what went wrong stands in `status` and `reason`."""
        return cls(math.nan, math.nan, count, status, reason)


def sample_mean(samples: Tensor) -> Estimate:
    """The mean of independent samples (N,) and its standard error s / sqrt(N), s with N - 1; in float64."""
    samples, count = samples.double(), samples.numel()
    if not bool(samples.isfinite().all()):
        bad = int((~samples.isfinite()).sum())
        return Estimate.failed("non-finite", f"{bad} of {count} samples are not finite", count)
    stderr = (samples.std() / math.sqrt(count)).item() if count > 1 else math.nan
    return Estimate(torch.mean(samples).item(), stderr, count)

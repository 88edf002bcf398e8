"""Yes, no or undecided: what a margin with its standard error allows one to say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from lossatlas.summary import Floats

Verdict = Literal["yes", "no", "undecided", "not measured"]

Z = 2.0  # standard errors; with five seeds |t| > 2 happens by chance in 12 % of cases, with three in 18 %


class NotMeasured(Exception):
    """The results lack what a question needs; the text says what."""


def verdict(margin: float, error: float, *, z: float = Z) -> Verdict:
    """`yes` where the margin exceeds z standard errors, `no` where it falls below -z of them, else `undecided`.

    Without a standard error nothing can be told from noise, so that is undecided too; a margin of NaN is not
    measured.
    """
    if math.isnan(margin):
        return "not measured"
    if math.isnan(error) or abs(margin) <= z * error:
        return "undecided"
    return "yes" if margin > 0 else "no"


def mean_and_error(samples: Floats) -> tuple[float, float]:
    """Mean over the finite samples and its standard error s / sqrt(n); NaN without one or two of them."""
    finite = samples[np.isfinite(samples)]
    n = len(finite)
    mean = float(finite.mean()) if n else math.nan
    return mean, float(finite.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan


def difference(a: Floats, b: Floats) -> tuple[float, float]:
    """Mean of a - b over the seeds that both have, with the paired standard error: (s,) and (s,).

    Where they share fewer than two seeds, the difference of the two means with independent errors.
    """
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() > 1:
        return mean_and_error((a - b)[both])
    (mean_a, error_a), (mean_b, error_b) = mean_and_error(a), mean_and_error(b)
    return mean_a - mean_b, math.hypot(error_a, error_b)


def jackknife_error(without: Sequence[float]) -> float:
    """Standard error from the values without each of n seeds: sqrt((n-1)/n sum (x_i - mean)^2); NaN below two."""
    n = len(without)
    if n < 2:
        return math.nan
    values = np.asarray(without, dtype=np.float64)
    return float(np.sqrt((n - 1) / n * ((values - values.mean()) ** 2).sum()))

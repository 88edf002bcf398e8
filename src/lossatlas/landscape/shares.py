"""Shares of a spectrum on either side of a value, and what a quadrature leaves open about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lossatlas.landscape.estimate import Estimate
from lossatlas.landscape.result import with_error


@dataclass(frozen=True)
class Mass:
    """The share of the eigenvalues in a half-line, with both of its errors.

    `stderr` is that of the draw of probes. `lower` and `upper` bracket what a quadrature with few steps may err
    by: the true spectral measure of every probe lies within one Ritz value of its quadrature (inequalities of
    Chebyshev, Markov and Stieltjes), and closer where Ritz pairs have converged; these are the means of those
    bounds over the probes. A broad bracket asks for more steps; more probes do not narrow it.
    """

    value: float
    stderr: float
    lower: Estimate
    upper: Estimate


@dataclass(frozen=True)
class Signs:
    """How many eigenvalues are surely below -threshold, surely above it, and neither: shares that sum to 1.

    The share of negative eigenvalues lies between `negative` and `negative + undecided`, up to the standard errors
    of the draw of probes. `undecided` holds the eigenvalues at 0 (a singular Hessian has many, whose computed
    signs are noise), and those so near that the quadrature does not part them from 0; more steps part more.
    """

    negative: Estimate
    undecided: Estimate
    positive: Estimate
    threshold: float  # in units of the eigenvalues: the rounding of the products

    def __str__(self) -> str:
        named = (("below 0", self.negative), ("undecided near 0", self.undecided))
        return ", ".join(f"{with_error(share.value, share.stderr)} {where}" for where, share in named)


class Bracket(NamedTuple):
    """The mass of one probe below a value, () each: by quadrature, and what it is at least and at most."""

    share: Tensor
    lower: Tensor
    upper: Tensor


def bracket(ritz: Tensor, weights: Tensor, residuals: Tensor, value: float) -> Bracket:
    """Two pairs of bounds on ||P v||^2, P the projector on the eigenvectors below `value`; the narrower each side.

    Chebyshev, Markov and Stieltjes: one Ritz value more or less. And v = sum_j s_j y_j with s_j^2 = w_j and Ritz
    vectors y_j, of which at most r_j / |theta_j - value| is on the other side, so that P v differs from the sum
    over theta_j < value by at most d = sum_j |s_j| min(1, r_j / |theta_j - value|).
    """
    sums = torch.cat([weights.new_zeros(1), weights.cumsum(0)])  # of the first j weights
    below = int((ritz < value).sum())
    share, lower, upper = sums[below], sums[max(below - 1, 0)], sums[min(below + 1, len(ritz))]
    distances = (ritz - value).abs()
    astray = torch.where(residuals < distances, residuals / distances, torch.ones_like(distances))
    length, error = share.sqrt(), weights.sqrt() @ astray
    return Bracket(
        share,
        torch.maximum(lower, (length - error).clamp_min(0).square()),
        torch.minimum(upper, (length + error).square()),
    )

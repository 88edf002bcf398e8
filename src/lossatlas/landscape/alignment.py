"""Centred kernel alignment (CKA) of what two models make of the same samples [Kornblith 2019].

With the HSIC of two m x m kernel matrices K and L, whose rows sum to k and l,

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))
    HSIC(K, L) = <K, L> - (2/m) <k, l> + (sum k)(sum l) / m^2

or without bias [Song 2012, eq. 5; Nguyen 2021], of K and L freed of their diagonals,

    HSIC(K, L) = <K, L> - (2/(m-2)) <k, l> + (sum k)(sum l) / ((m-1)(m-2))

Factors that cancel are left out. Arithmetic is in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor

from lossatlas.errors import UserError
from lossatlas.landscape.estimate import Estimate

Kernel = Literal["linear", "rbf"]
KERNELS = ("linear", "rbf")

BLOCKS = 20  # of samples, that the jackknife leaves out one by one
COLUMNS = 1 << 22  # numbers of a feature map that are held in float64 at a time
LEAST = 4  # samples that the unbiased HSIC needs
_PAIRS = ((0, 1), (0, 0), (1, 1))  # of the two kernel matrices


def cka(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Kernel = "linear",
    bandwidth: float = 1.0,
    debiased: bool = False,
    positions: bool = False,
    blocks: int = BLOCKS,
) -> Estimate:
    """CKA of features x (m, ...) and y (m, ...) of m samples; between 0 and 1, at least -1 if `debiased`.

    `kernel`: linear, |Yc'Xc|_F^2 / (|Xc'Xc|_F |Yc'Yc|_F) with centred columns [Yang2021 eq. 3]; or `rbf`,
    exp(-|x_i - x_j|^2 / (2 s^2)), where s is `bandwidth` times the median distance of two different samples
    ([Kornblith 2019] take 0.2, 0.4 and 0.8 times). `debiased`: by the unbiased HSIC, which is 0 in the mean of
    independent features, where the other is about p/m. Feature maps are flattened, or with `positions` every
    position of maps (m, c, h, w) counts as a sample of c features.

    The standard error is a jackknife that leaves out one of `blocks` runs of consecutive samples at a time (at
    most m), the bandwidth kept. Of mixup images they must be those that share a lambda (`similarity.mixup_runs`),
    or the error is too small. Samples sorted by class are no such runs: shuffle them.

    Costs O(m p q) if there are at most m features, else O(m^2 (p + q)) through m x m matrices; the same but for
    rounding. A constant output (up to the rounding of its dtype) gives 0/0: status `"degenerate"`. Raises
    UserError for features that do not fit together, too few samples, and options that do not exist.
    """
    m, blocks = _sizes(x, y, blocks, debiased=debiased)
    _check_kernel(kernel, bandwidth, positions=positions)
    if (failure := non_finite(x, y)) is not None:
        return failure
    a, b = (_rows(features, positions=positions) for features in (x, y))
    if len(a) != len(b):
        raise UserError(
            f"Maps of {len(a) // m} and {len(b) // m} positions a sample cannot be compared by position."
        )
    for name, rows in (("first", a), ("second", b)):
        spread = (rows - rows[:1]).abs().max()
        if spread <= 4 * torch.finfo(rows.dtype).eps * rows.abs().max():
            return Estimate.failed("degenerate", f"the {name} model's output is the same for all samples", m)
    runs = [len(a) // m * len(run) for run in torch.arange(m).tensor_split(blocks)]
    bounds = list(accumulate(runs, initial=0))
    if kernel == "linear" and max(a.shape[1], b.shape[1]) <= len(a):
        found = _by_features(a, b, bounds, debiased=debiased)
    else:
        grams = []
        for name, rows in (("first", a), ("second", b)):
            gram = _gram(rows, bandwidth if kernel == "rbf" else None)
            if gram is None:
                return Estimate.failed("degenerate", f"half of the {name} model's outputs are the same", m)
            grams.append(gram)
        found = _by_samples(grams, bounds, debiased=debiased)
    value, *without = found
    if not bool(value.isfinite()):
        return Estimate.failed("degenerate", "the HSIC of a model with itself is 0", m)
    left_out = torch.stack(without)
    variance = (len(left_out) - 1) * left_out.var(correction=0)
    return Estimate(value.item(), variance.sqrt().item(), m)


def unlike(a: Tensor, b: Tensor) -> str:
    """The sentence that refuses outputs that do not fit together."""
    return (
        f"Outputs of shapes {tuple(a.shape)}, {tuple(b.shape)} and dtypes {a.dtype}, {b.dtype} cannot be "
        "compared. Give floating-point outputs (N, C) of both models on the same samples."
    )


def non_finite(*outputs: Tensor) -> Estimate | None:
    """The status of outputs with numbers that are not finite; None where all are."""
    for number, output in enumerate(outputs, 1):
        if bad := int((~output.isfinite()).sum()):
            reason = f"{bad} of {output.numel()} numbers of model {number} are not finite"
            return Estimate.failed("non-finite", reason, len(output))
    return None


def _sizes(x: Tensor, y: Tensor, blocks: int, *, debiased: bool) -> tuple[int, int]:
    """The numbers of samples and of runs."""
    fits = min(x.dim(), y.dim()) >= 2 and len(x) == len(y) and min(x.numel(), y.numel()) > 0
    if not fits or not (x.is_floating_point() and y.is_floating_point()):
        raise UserError(unlike(x, y))
    m = len(x)
    if m < 2 or blocks < 2:
        raise UserError(f"CKA needs at least 2 samples and 2 blocks; {m} samples and blocks={blocks} were given.")
    runs = min(blocks, m)
    if debiased and m - math.ceil(m / runs) < LEAST:
        raise UserError(
            f"Debiased CKA needs {LEAST} samples beside each of the {runs} blocks; {m} samples were given."
        )
    return m, runs


def _check_kernel(kernel: str, bandwidth: float, *, positions: bool) -> None:
    if kernel not in KERNELS:
        raise UserError(f"kernel={kernel!r} is unknown. Allowed are {', '.join(KERNELS)}.")
    if not bandwidth > 0:
        raise UserError(f"bandwidth={bandwidth} was given; allowed are numbers above 0.")
    if kernel == "rbf" and positions:
        raise UserError("positions=True is for the linear kernel; the rbf kernel takes flattened maps.")


def _rows(features: Tensor, *, positions: bool) -> Tensor:
    """(rows, p): samples with their features flattened, or the positions of samples one after another."""
    if not positions:
        return features.reshape(len(features), -1)
    if features.dim() != 4:
        raise UserError(
            f"Features of shape {tuple(features.shape)} have no positions; allowed are maps (m, c, h, w)."
        )
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def _by_features(a: Tensor, b: Tensor, bounds: list[int], *, debiased: bool) -> Iterator[Tensor]:
    """Linear CKA of rows (n, p), (n, q) through p x q products: of all, then without the rows of each run."""
    n = len(a)
    xc, yc = a.double() - a.double().mean(0), b.double() - b.double().mean(0)
    xy, xx, yy = xc.T @ yc, xc.T @ xc, yc.T @ yc
    yield _unbiased(xy, xx, yy, xc, yc) if debiased else _alignment(xy, xx, yy)
    for start, stop in pairwise(bounds):
        xb, yb = xc[start:stop], yc[start:stop]
        # The rows left sum to minus the sum of those left out, so their products are centred by one outer product.
        rest, sx, sy = n - len(xb), xb.sum(0), yb.sum(0)
        products = (
            xy - xb.T @ yb - torch.outer(sx, sy) / rest,
            xx - xb.T @ xb - torch.outer(sx, sx) / rest,
            yy - yb.T @ yb - torch.outer(sy, sy) / rest,
        )
        if debiased:
            kept = [torch.cat([c[:start], c[stop:]]) + s / rest for c, s in ((xc, sx), (yc, sy))]
            yield _unbiased(*products, *kept)
        else:
            yield _alignment(*products)


def _alignment(xy: Tensor, xx: Tensor, yy: Tensor) -> Tensor:
    alignment: Tensor = xy.square().sum() / (xx.norm() * yy.norm())
    return alignment


def _unbiased(xy: Tensor, xx: Tensor, yy: Tensor, xc: Tensor, yc: Tensor) -> Tensor:
    """The same by the unbiased HSIC; rows of a kernel matrix of centred features sum to 0 with its diagonal."""
    diagonals = [c.square().sum(1) for c in (xc, yc)]
    products = [
        product.square().sum() - diagonals[i] @ diagonals[j]
        for product, (i, j) in zip((xy, xx, yy), _PAIRS, strict=True)
    ]
    return _ratio(products, [-diagonal for diagonal in diagonals], debiased=True)


def _gram(rows: Tensor, bandwidth: float | None) -> Tensor | None:
    """The kernel matrix (m, m), centred: linear, or RBF with this bandwidth, None if its median distance is 0."""
    m = len(rows)
    gram = torch.zeros(m, m, dtype=torch.float64, device=rows.device)
    for part in rows.split(max(1, COLUMNS // m), dim=1):
        wide = part.double()
        wide = wide - wide.mean(0)
        gram.addmm_(wide, wide.T)
    if bandwidth is None:
        return gram
    norms = gram.diagonal()
    squares = (norms[:, None] + norms[None, :] - 2 * gram).fill_diagonal_(0.0)
    upper = torch.triu_indices(m, m, 1, device=rows.device)
    median = squares[upper[0], upper[1]].median()
    if median <= 0:
        return None
    kernel = torch.exp(-squares / (2 * bandwidth**2 * median))
    means = kernel.mean(0)
    return kernel - means - means[:, None] + means.mean()


def _by_samples(grams: Sequence[Tensor], bounds: list[int], *, debiased: bool) -> Iterator[Tensor]:
    """CKA of two kernel matrices (m, m): of all samples, then without those of each run."""
    if debiased:
        grams = [gram.clone().fill_diagonal_(0.0) for gram in grams]
    products = [(grams[i] * grams[j]).sum() for i, j in _PAIRS]
    sums = [gram.sum(0) for gram in grams]
    yield _ratio(products, sums, debiased=debiased)
    for start, stop in pairwise(bounds):
        runs = [gram[start:stop] for gram in grams]
        rest = [
            product - 2 * (runs[i] * runs[j]).sum() + (runs[i] * runs[j])[:, start:stop].sum()
            for product, (i, j) in zip(products, _PAIRS, strict=True)
        ]
        kept = [row - run.sum(0) for row, run in zip(sums, runs, strict=True)]
        yield _ratio(rest, [torch.cat([row[:start], row[stop:]]) for row in kept], debiased=debiased)


def _ratio(products: Sequence[Tensor], sums: Sequence[Tensor], *, debiased: bool) -> Tensor:
    """CKA from <K, L>, <K, K>, <L, L> and the sums of the rows of K and L, each (n,)."""
    n = len(sums[0])
    a, b = (n - 2, (n - 1) * (n - 2)) if debiased else (n, n * n)
    hsic = [
        product - 2 / a * (sums[i] @ sums[j]) + sums[i].sum() * sums[j].sum() / b
        for product, (i, j) in zip(products, _PAIRS, strict=True)
    ]
    return hsic[0] / (hsic[1] * hsic[2]).sqrt()

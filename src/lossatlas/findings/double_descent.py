"""Double descent: a test error that falls, rises and falls again along a slice, by more than noise does.

Along a load the slice runs upwards, along a temperature from hot to cold: both ways training fits more.

*Statistic.* T = max over a < b < c < d of min(t_ab, t_cb, t_cd), where t_ij = (y_i - y_j) / sqrt(s_i^2 + s_j^2)
of the means y over the seeds and their standard errors s: the least of a fall a -> b, a rise b -> c and a fall
c -> d.

*Selection.* The four cells are picked by the data, so T exceeds 2 by chance far more often than a single
difference does. It is calibrated by a parametric bootstrap: seeds are drawn anew, as many as there are,
from normal laws with the cells' own standard deviations about the best fit that has *no* double descent, and T is
computed anew with its own standard errors. That null holds every curve that rises, falls and rises at most
(monotone, one valley, one peak): the least-squares fit is three isotonic regressions with the two turning points
searched.

*Rule.* Found if T >= z and p <= alpha; for all slices of a grid the p values are Holm's. Cells count as
independent, as separately trained models are.

*Rates* by simulation, 12 cells. Noise about curves without double descent is called one in at most 4 % of slices
(3 or 5 seeds, alpha 0.03), and in 3 % of grids of eight slices. The bootstrap alone is a little liberal where a
plateau follows a rise (7 % at 0.05), so alpha is smaller than the 5 % that it stands for; T >= 2 alone would be
wrong in up to 67 %. A peak of one cell on a plateau is found with 5 seeds in 49, 74 and 98 % of slices when it is
1.5, 2 and 3 standard deviations of a seed high; with 3 seeds in 26, 51 and 74 % at 2, 3 and 4.
With 6 cells noise is called one in at most 5 % with 5 seeds and 3 % with 3; a peak of 3 such deviations after a
fall of 2 is found in 78 and 34 %, and in fewer slices where the cells before it spread most.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from scipy.optimize import isotonic_regression

from lossatlas.findings.columns import Place, axes, is_cold_to_hot, of_seeds, parted, places
from lossatlas.findings.verdicts import Verdict, Z
from lossatlas.results import axes_of
from lossatlas.summary import Floats

ALPHA = 0.03  # keeps the measured rate of false alarms below 5 %
DRAWS = 1999
BLOCK = 10**6  # numbers in one array of the bootstrap
LEAST = 4  # cells: a start, a valley, a peak, an end
INTERPOLATES = 0.5  # percent of training error below which the data count as fitted, as in [Zhou2024]


@dataclass(frozen=True)
class Pattern:
    """The clearest fall, rise and second fall of a curve, and how often noise shows one as clear."""

    statistic: float  # T: the least of the three steps, in standard errors
    p_value: float
    cells: tuple[int, int, int, int]  # start, valley, peak, end
    sizes: tuple[float, float, float]  # fall, rise and second fall, all positive for a double descent
    size_errors: tuple[float, float, float]  # their standard errors

    def is_found(self, z: float = Z, alpha: float = ALPHA) -> bool:
        """Whether every step exceeds z standard errors and noise rarely does as well."""
        return self.statistic >= z and self.p_value <= alpha


@dataclass(frozen=True)
class Descent:
    """The answer for one slice: along `axis` at the values `at`, `order` saying which way."""

    axis: str
    order: str
    at: Place
    found: Verdict
    n_cells: int
    statistic: float = math.nan
    p_value: float = math.nan
    p_adjusted: float = math.nan  # Holm, over all slices of the grid
    start: float = math.nan  # values of the axis
    valley: float = math.nan
    peak: float = math.nan
    end: float = math.nan
    fall: float = math.nan  # percent
    fall_se: float = math.nan
    rise: float = math.nan
    rise_se: float = math.nan
    second_fall: float = math.nan
    second_fall_se: float = math.nan
    from_boundary: float = math.nan  # grid steps from the nearest edge between I/II and III/IV to the peak
    from_interpolation: float = math.nan  # the same from where the training error falls below INTERPOLATES
    reason: str = ""


def pattern(samples: Floats, *, draws: int = DRAWS, seed: int = 0) -> Pattern:
    """The clearest fall, rise and fall in the test errors (cells, seeds), NaN where not measured.

    Every cell needs two seeds, and there have to be four cells. Cost: about cells^2 isotonic fits and `draws`
    arrays of cells^2 numbers.
    """
    means, errors = _means(samples[None])
    statistic, cells = _statistic(means, errors)
    chance = _by_chance(samples, fit_without(means[0], errors[0]), draws, seed)
    p_value = (1 + int((chance >= statistic[0]).sum())) / (1 + draws)
    a, b, c, d = (int(k) for k in cells[0])
    y = means[0]
    s = errors[0]
    sizes = (float(y[a] - y[b]), float(y[c] - y[b]), float(y[c] - y[d]))
    size_errors = (math.hypot(s[a], s[b]), math.hypot(s[b], s[c]), math.hypot(s[c], s[d]))
    return Pattern(float(statistic[0]), p_value, (a, b, c, d), sizes, size_errors)


def _by_chance(samples: Floats, centre: Floats, draws: int, seed: int) -> Floats:
    """T of seeds drawn anew about `centre`, (draws,), in blocks whose arrays of cells^2 stay small."""
    rng = np.random.default_rng(seed)
    spread = np.nanstd(samples, axis=1, ddof=1)[:, None]
    block = max(1, BLOCK // len(samples) ** 2)
    found = []
    for start in range(0, draws, block):
        noise = rng.standard_normal((min(block, draws - start), *samples.shape))
        again = np.where(np.isfinite(samples), centre[:, None] + spread * noise, np.nan)
        found.append(_statistic(*_means(again))[0])
    return np.concatenate(found)


def fit_without(means: Floats, errors: Floats) -> Floats:
    """The weighted least-squares fit (n,) that rises, falls and rises at most.

    Two neighbouring monotone pieces may meet at any step, so they are fitted apart: every split into a rising, a
    falling and a rising piece (each may be empty) is tried.
    """
    n = len(means)
    # A cell whose seeds agree exactly has no finite weight; a hundredth of the usual error makes it dominate.
    usual = float(np.median(errors[errors > 0])) if (errors > 0).any() else 1.0
    weights = 1.0 / np.maximum(errors, 0.01 * usual) ** 2

    def fitted(start: int, end: int, *, rising: bool) -> tuple[float, Floats]:
        if start == end:
            return 0.0, means[:0]
        y, w = means[start:end], weights[start:end]
        x = isotonic_regression(y, weights=w, increasing=rising).x
        return float((w * (y - x) ** 2).sum()), x

    firsts = [fitted(0, k, rising=True) for k in range(n + 1)]
    lasts = [fitted(k, n, rising=True) for k in range(n + 1)]
    best: tuple[float, Floats] = (math.inf, means)
    for p in range(n + 1):
        for q in range(p, n + 1):
            middle = fitted(p, q, rising=False)
            loss = firsts[p][0] + middle[0] + lasts[q][0]
            if loss < best[0]:
                best = (loss, np.concatenate([firsts[p][1], middle[1], lasts[q][1]]))
    return best[1]


def search(
    tree: xr.DataTree,
    labels: xr.Dataset,
    *,
    z: float = Z,
    alpha: float = ALPHA,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Descent]:
    """Look for double descent along every axis of more than one value, at all values of the others."""
    errors = of_seeds(tree, "test_error")
    fits = of_seeds(tree, "train_error")
    found = [
        _along(axis, at, errors, fits, labels, draws, seed)
        for axis in axes(labels)
        if labels.sizes[axis] > 1
        for at in places(labels, axis)
    ]
    measured = [k for k, each in enumerate(found) if each.found != "not measured"]
    adjusted = holm([found[k].p_value for k in measured])
    for k, p in zip(measured, adjusted, strict=True):
        is_there = found[k].statistic >= z and p <= alpha
        found[k] = replace(found[k], found="yes" if is_there else "no", p_adjusted=p)
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values: those at most alpha may be called found, wrongly any of them with chance alpha."""
    order = np.argsort(p_values)
    n, worst, adjusted = len(p_values), 0.0, [math.nan] * len(p_values)
    for rank, k in enumerate(order):
        worst = max(worst, min(1.0, (n - rank) * p_values[k]))
        adjusted[k] = worst
    return adjusted


def _along(
    axis: str,
    at: Place,
    errors: xr.DataArray | None,
    fits: xr.DataArray | None,
    labels: xr.Dataset,
    draws: int,
    seed: int,
) -> Descent:
    """One slice; its verdict stands open until the p values of all slices are known."""
    is_temperature = axis in axes_of(labels)[1]
    downwards = is_temperature and is_cold_to_hot(axis)
    order = "hot to cold" if is_temperature else "upwards"
    if errors is None:
        return Descent(axis, order, at, "not measured", 0, reason="no test errors")
    values = np.sort(labels[axis].values)[:: -1 if downwards else 1]
    samples = errors.sel(at).transpose(axis, "seed").sel({axis: values}).values
    usable = np.isfinite(samples).sum(axis=1) > 1
    n = int(usable.sum())
    if n < LEAST:
        lacking = f"{n} cells with two seeds or more; {LEAST} are needed"
        return Descent(axis, order, at, "not measured", n, reason=lacking)
    seen = pattern(samples[usable], draws=draws, seed=seed)
    kept = np.flatnonzero(usable)[list(seen.cells)]
    start, valley, peak, end = (float(values[k]) for k in kept)
    (fall, rise, second_fall), (fall_se, rise_se, second_fall_se) = seen.sizes, seen.size_errors
    phases = labels["phase"].sel(at).sel({axis: values}).values.astype(str)
    first = None if fits is None else first_fitted(fits.sel(at).sel({axis: values}).mean("seed").values)
    return Descent(
        axis,
        order,
        at,
        "undecided",
        n,
        statistic=seen.statistic,
        p_value=seen.p_value,
        start=start,
        valley=valley,
        peak=peak,
        end=end,
        fall=fall,
        fall_se=fall_se,
        rise=rise,
        rise_se=rise_se,
        second_fall=second_fall,
        second_fall_se=second_fall_se,
        from_boundary=_from_edge(int(kept[2]), np.flatnonzero(parted(phases)) + 1),
        from_interpolation=_from_edge(int(kept[2]), [] if first is None else [first]),
    )


def first_fitted(errors: Floats) -> int | None:
    """The first cell whose training error is below INTERPOLATES; None if none, or the first of all, is."""
    fitted = np.flatnonzero(errors < INTERPOLATES)
    return int(fitted[0]) if len(fitted) and fitted[0] > 0 else None


def _from_edge(peak: int, firsts: Iterable[int]) -> float:
    """Grid steps to the peak from the nearest edge, each just before one of the cells `firsts`; NaN without."""
    return min((peak - (float(first) - 0.5) for first in firsts), key=abs, default=math.nan)


def _means(samples: Floats) -> tuple[Floats, Floats]:
    """Means over the seeds and their standard errors: (r, cells, seeds) -> (r, cells) twice."""
    counts = np.isfinite(samples).sum(axis=-1)
    return np.nanmean(samples, axis=-1), np.nanstd(samples, axis=-1, ddof=1) / np.sqrt(counts)


def _statistic(means: Floats, errors: Floats) -> tuple[Floats, np.ndarray]:
    """T of every row, (r,), and its cells a < b < c < d, (r, 4): means and errors (r, n)."""
    gaps = means[:, :, None] - means[:, None, :]
    scale = np.sqrt(errors[:, :, None] ** 2 + errors[:, None, :] ** 2)
    exact = np.where(gaps == 0, 0.0, np.copysign(np.inf, gaps))  # where seeds agree exactly any gap is certain
    t = np.divide(gaps, scale, out=exact, where=scale > 0)
    later = np.triu(np.ones(t.shape[1:], dtype=bool), 1)
    falls = np.where(later, t, -np.inf)
    first, second = falls.max(axis=1), falls.max(axis=2)  # the clearest fall to b, and from c
    least = np.minimum(np.where(later, -t, -np.inf), np.minimum(first[:, :, None], second[:, None, :]))
    flat = least.reshape(len(t), -1)
    best = flat.argmax(axis=1)
    rows = np.arange(len(t))
    b, c = np.divmod(best, t.shape[1])
    cells = np.stack([falls[rows, :, b].argmax(axis=1), b, c, falls[rows, c].argmax(axis=1)], axis=1)
    return flat[rows, best], cells

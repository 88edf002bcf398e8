"""Does a quantity fall into two levels over the grid, and where is the cut? The answer may be no.

Otsu's threshold alone cannot tell: it explains 75 % of the variance of uniform noise and 64 % of Gaussian noise.
So a cut counts as a transition only if all of these hold:

- *it is stable*: when the cells are resampled with replacement, at most 15 % of them change sides on average;
- *it beats one class*: the two sides form regions. Fewer neighbouring cells than chance would have it lie on
  different sides (join count, permutation of the cells, p < 0.01). That is exact under exchangeable noise, so
  this test alone lets noise pass at most once in a hundred grids;
- *no ramp does clearly better*: a plane in the positions of the cells must not explain so much more of the
  variance than two levels do that the difference in BIC exceeds 6 ("strong evidence" [Kass and Raftery 1995]). A
  pure ramp has no boundary of its own: its cut would lie where the ends of the axes happen to put it. A gradient
  as noisy as it is steep cannot be told from a blurred step, and may count.

The bounds on stability and on the ramp are judgement. On the published grid [Yang2021], CKA within Phase IV is
nearly a ramp (two levels explain 61 %, a plane 62 %) and changes 12 % of its cells: it passes, barely. The other
quantities pass by far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_CHANGED = 0.15
MAX_P_VALUE = 0.01
MAX_RAMP_EVIDENCE = 6.0
RESAMPLES = 200
PERMUTATIONS = 999


@dataclass(frozen=True)
class Cut:
    """Otsu's threshold of a grid and the evidence for it; all NaN where there are no two values."""

    threshold: float
    explained: float  # share of the variance that two levels explain
    ramp: float  # share that a plane in the positions explains
    ramp_evidence: float  # BIC of two levels minus BIC of the plane: positive favours the plane
    changed: float  # mean share of cells on another side when cells are resampled
    p_value: float  # of as few neighbours on different sides, under permutation

    @property
    def is_transition(self) -> bool:
        """Whether the cut is stable, beats one class, and no ramp does clearly better."""
        stable = self.changed <= MAX_CHANGED
        return stable and self.p_value < MAX_P_VALUE and self.ramp_evidence <= MAX_RAMP_EVIDENCE


def otsu(samples: Floats) -> tuple[Floats, Floats]:
    """Otsu's threshold of every row of (r, n), and the share of the row's variance between its two classes.

    The threshold lies midway between the two values it parts; NaN for a row of equal values. Cost O(r n log n).
    """
    n = samples.shape[1]
    nan = np.full(len(samples), np.nan)
    if n < 2:
        return nan, nan
    ordered = np.sort(samples - samples[:, :1], axis=1)  # the shift keeps the sums below from cancelling
    below = np.arange(1, n)
    sums = np.cumsum(ordered, axis=1)
    gap = sums[:, :-1] / below - (sums[:, -1:] - sums[:, :-1]) / (n - below)
    between = np.where(ordered[:, 1:] > ordered[:, :-1], below * (n - below) / n**2 * gap**2, 0.0)
    best = between.argmax(axis=1)[:, None]
    middle = (np.take_along_axis(ordered, best, 1) + np.take_along_axis(ordered, best + 1, 1))[:, 0] / 2
    constant = ordered[:, 0] == ordered[:, -1]
    share = np.take_along_axis(between, best, 1)[:, 0] / np.where(constant, 1.0, ordered.var(axis=1))
    return np.where(constant, nan, middle + samples[:, 0]), np.where(constant, nan, share)


def find_cut(grid: Floats, *, seed: int = 0) -> Cut:
    """Otsu's threshold over the finite cells of a grid (any number of axes), with the evidence for and against it.

    `seed` serves the resampling (200) and the permutations (999) of the cells.
    """
    there = np.isfinite(grid)
    values = grid[there]
    rng = np.random.default_rng(seed)
    nothing = Cut(*[math.nan] * 6)
    if values.size < 2:
        return nothing
    thresholds, explained = otsu(values[None])
    if np.isnan(thresholds[0]):
        return nothing
    sides = values > thresholds[0]
    resampled, _ = otsu(rng.choice(values, size=(RESAMPLES, values.size)))
    moved = (
        values > resampled[:, None]
    ) != sides  # a resample of equal values has no cut: all cells count as moved
    changed = np.where(np.isnan(resampled), 1.0, moved.mean(axis=1)).mean()
    ramp, evidence = _ramp(grid, float(explained[0]))
    return Cut(
        threshold=float(thresholds[0]),
        explained=float(explained[0]),
        ramp=ramp,
        ramp_evidence=evidence,
        changed=float(changed),
        p_value=_join_count_p_value(there, sides, rng),
    )


def _ramp(grid: Floats, explained: float) -> tuple[float, float]:
    """R^2 of the plane a + sum_k b_k i_k (i_k the index along axis k), and BIC(two levels) - BIC(plane).

    Two levels and a cut are 3 parameters, the plane has one and one an axis.
    """
    there = np.isfinite(grid)
    values, positions = grid[there], np.argwhere(there).astype(np.float64)
    design = np.column_stack([np.ones(len(positions)), positions])
    plane, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    share = float(1.0 - np.mean((values - design @ plane) ** 2) / values.var())
    # Below the rounding of the fit a model is perfect; its evidence is infinite, not a ratio of rounding errors.
    rest_cut, rest_plane = (0.0 if rest < 1e-12 else rest for rest in (1.0 - explained, 1.0 - share))
    if rest_cut == 0.0 or rest_plane == 0.0:
        return share, math.inf if rest_cut > 0.0 else -math.inf
    return share, values.size * math.log(rest_cut / rest_plane) + (3 - int(rank)) * math.log(values.size)


def _join_count_p_value(there: NDArray[np.bool_], sides: NDArray[np.bool_], rng: np.random.Generator) -> float:
    """P(as few or fewer neighbours on different sides | sides shuffled over the cells); NaN without neighbours."""
    index = np.full(there.shape, -1)
    index[there] = np.arange(sides.size)
    joins = []
    for axis in range(there.ndim):
        first, second = (np.moveaxis(index, axis, 0)[part].ravel() for part in (slice(None, -1), slice(1, None)))
        joins.append(np.stack([first, second])[:, (first >= 0) & (second >= 0)])
    a, b = np.concatenate(joins, axis=1)
    if a.size == 0:
        return float("nan")
    shuffled = rng.permuted(np.tile(sides, (PERMUTATIONS, 1)), axis=1)
    counts = (shuffled[:, a] != shuffled[:, b]).sum(axis=1)
    observed = (sides[a] != sides[b]).sum()
    return float((1 + (counts <= observed).sum()) / (1 + PERMUTATIONS))

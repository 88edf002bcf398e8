"""The eigenvalue densities of a grid as shares in bins that the seeds of a cell have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.scale import SymmetricalLogTransform
from numpy.typing import NDArray

from lossatlas.report.arrays import Arrays

Floats = NDArray[np.float64]

BINS = 40  # of a cell: the nodes of a few probes fill no more
LINEAR = 1e-4  # of the largest Ritz magnitude: where the axis turns linear, as in landscape.density
DECADE = 0.9  # of matplotlib's scale: the linear part is then as long as a decade


def content(tree: xr.DataTree, order: list[str], arrays: Arrays) -> dict[str, Any]:
    """Put the bins of every cell and the shares of its seeds into `arrays`, the latter in single precision."""
    if "densities" not in tree.children:
        return {"bins": 0}
    found = tree["densities"].to_dataset().sortby(order)
    dims = [*order, "seed", "probe", "node"]
    ritz, weights = (found[name].transpose(*dims).values for name in ("ritz_value", "ritz_weight"))
    grid, seeds = ritz.shape[: len(order)], ritz.shape[len(order)]
    edges = np.full((*grid, BINS + 1), np.nan)
    shares, errors = np.full((2, *grid, seeds, BINS), np.nan)
    for cell in np.ndindex(grid):
        edges[cell], shares[cell], errors[cell] = histograms(ritz[cell], weights[cell], BINS)
    arrays.add("density.edges", edges)
    arrays.add("density.share", shares, "<f4")
    arrays.add("density.share_se", errors, "<f4")
    return {"bins": BINS}


def histograms(ritz: Floats, weights: Floats, bins: int) -> tuple[Floats, Floats, Floats]:
    """Edges (bins + 1,), and the shares of the eigenvalues between them with standard errors, (models, bins) each.

    `ritz` and `weights` (models, probes, nodes) are quadratures, NaN where a probe has no more nodes. Bins are
    even on a symmetric logarithmic axis from the smallest to the largest Ritz value of all models; of a single
    model they and the shares are those of `Density.histogram`. NaN for a model without a quadrature.
    """
    known = np.isfinite(ritz)
    if not known.any():
        none = np.full((len(ritz), bins), np.nan)
        return np.full(bins + 1, np.nan), none, none
    edges = _edges(ritz[known].min(), ritz[known].max(), bins)
    place = np.searchsorted(edges[1:-1], ritz, side="right")  # so that the last bin is closed
    mass = np.zeros((*ritz.shape[:2], bins))
    model, probe, _ = np.ix_(*map(np.arange, ritz.shape))
    np.add.at(mass, (model, probe, place), np.where(known, weights, 0.0))
    mass[~known.any(axis=-1)] = np.nan
    return edges, mass.mean(axis=1), mass.std(axis=1, ddof=1) / np.sqrt(mass.shape[1])


def _edges(low: float, high: float, bins: int) -> Floats:
    largest = max(abs(low), abs(high))
    threshold = LINEAR * largest if largest > 0 else 1.0
    axis = SymmetricalLogTransform(10, threshold, DECADE)
    start, end = axis.transform(np.array([low, high]))
    if low == high:  # one eigenvalue: a unit of the axis about it
        return np.asarray(
            axis.inverted().transform(np.linspace(start - threshold / 2, end + threshold / 2, bins + 1))
        )
    edges = np.asarray(axis.inverted().transform(np.linspace(start, end, bins + 1)))
    edges[0], edges[-1] = low, high  # rounding must not lose the outermost ones
    return edges

"""What the variants of a measure find, and how alike they order the cells: means and rank correlations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from lossatlas.findings.evidence import Evidence
from lossatlas.findings.tables import Table
from lossatlas.findings.verdicts import jackknife_error

LEAST_CELLS = 3  # that a rank correlation needs to say anything


@dataclass(frozen=True)
class Ranked:
    """A quantity in one variant: its mean and Spearman's rho over the cells, with jackknife errors over the seeds.

    A rho is NaN below three cells and where all cells have the same value, an error where leaving out a seed
    leaves no pair.
    """

    variant: str
    quantity: str
    cells: int  # that have the quantity and an accuracy
    mean: float  # over these cells
    mean_error: float
    accuracy: float  # rho with the test accuracy
    accuracy_error: float
    first: float  # rho with the first variant, over the cells that both have
    first_error: float


def ranked(trees: Mapping[str, xr.DataTree], quantity: str) -> list[Ranked]:
    """The variants by their names, each with its results; the first one is compared with."""
    grids = {name: _Grids(tree, quantity) for name, tree in trees.items()}
    first = next(iter(grids.values()))
    found = []
    for name, each in grids.items():
        whole = each.whole
        both = np.isfinite(whole[quantity].values) & np.isfinite(whole["test_accuracy"].values)
        found.append(
            Ranked(
                name,
                quantity,
                int(both.sum()),
                *_jackknifed(lambda a, _: _mean(a[quantity], a["test_accuracy"]), each, each),
                *_jackknifed(lambda a, b: spearman(a[quantity], b["test_accuracy"]), each, each),
                *_jackknifed(lambda a, b: spearman(a[quantity], b[quantity]), each, first),
            )
        )
    return found


def _mean(values: xr.DataArray, accuracy: xr.DataArray) -> float:
    """Over the cells that have both."""
    found = values.values[np.isfinite(values.values) & np.isfinite(accuracy.values)]
    return float(found.mean()) if found.size else math.nan


def spearman(a: xr.DataArray, b: xr.DataArray) -> float:
    """The correlation of the ranks over the cells where both are finite, ties sharing a mean rank; else NaN."""
    x, y = (each.values.ravel() for each in xr.align(a, b, join="inner"))
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < LEAST_CELLS:
        return math.nan
    x, y = rankdata(x[both]), rankdata(y[both])
    if x.std() == 0 or y.std() == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def table(rows: Sequence[Ranked]) -> Table:
    """One line a variant and quantity, numbers to four digits, NaN empty."""
    header = ["variant", "quantity", "cells"]
    header += [name + end for name in ("mean", "rho_accuracy", "rho_first") for end in ("", "_se")]
    body = [
        [
            row.variant,
            row.quantity,
            str(row.cells),
            *map(
                _number,
                (row.mean, row.mean_error, row.accuracy, row.accuracy_error, row.first, row.first_error),
            ),
        ]
        for row in rows
    ]
    return header, body


class _Grids:
    """The cells of a variant, and the same without each seed; what was not measured is NaN."""

    def __init__(self, tree: xr.DataTree, quantity: str) -> None:
        evidence = Evidence(tree, xr.Dataset())
        self.whole = _with(evidence.cells, quantity)
        self.without = [_with(cells, quantity) for cells in evidence.without]


def _with(cells: xr.Dataset, quantity: str) -> xr.Dataset:
    lacking = [name for name in (quantity, "test_accuracy") if name not in cells]
    return cells.assign({name: xr.full_like(cells["n_ok"], np.nan, dtype=np.float64) for name in lacking})


def _jackknifed(statistic: Callable[[xr.Dataset, xr.Dataset], float], a: _Grids, b: _Grids) -> tuple[float, float]:
    """A statistic of two grids and its standard error over the seeds, each left out in both at once."""
    without = [statistic(*pair) for pair in zip(a.without, b.without, strict=True)]
    return statistic(a.whole, b.whole), jackknife_error(without)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"

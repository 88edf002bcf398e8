"""Where a grid crosses from one phase to the next, and how sure that is, over the slices along an axis."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

from lossatlas.figures.boundaries import excess_of, largest_of, thresholds
from lossatlas.figures.grid import Scale, scale_of
from lossatlas.findings.columns import axes
from lossatlas.findings.evidence import Evidence
from lossatlas.findings.verdicts import jackknife_error
from lossatlas.results import axes_of
from lossatlas.summary import Floats

SOURCES = {"ln_trace": "ln_hessian_trace"}  # as the summary calls it
FOURTH = ("IV-A", "IV-B")
TESTS = {"sharp": ("ln_trace", "train_loss"), "mode_connectivity": ("mode_connectivity",), "cka": ("cka",)}
PASSED = {"sharp": ("I", "II"), "mode_connectivity": ("I", "III"), "cka": ("IV-B",)}  # the phases on one side


@dataclass(frozen=True)
class Transition:
    """Where one test changes along `axis`: the median over the slices that cross once, with its error.

    The error is the jackknife over the seeds of that median, thresholds and slices held fixed; NaN with one seed.
    """

    test: str  # sharp, mode_connectivity, cka
    axis: Scale
    at: float  # in the values of the axis
    error: float
    least: float
    most: float
    is_first_below: bool | None  # whether sharp, poor, dissimilar lie below; None where slices differ
    crossing: int  # slices that cross once
    slices: int


def transitions(evidence: Evidence) -> list[Transition]:
    """All tests that change somewhere; each along the axis that more slices cross exactly once.

    Between two neighbouring cells the excess over the threshold is interpolated linearly in the logarithm of the
    axis (as the boundaries of the map are). CKA counts among the cells of Phase IV alone.
    """
    found = (_along_better(test, evidence) for test in TESTS)
    return [each for each in found if each is not None]


def _along_better(test: str, evidence: Evidence) -> Transition | None:
    load, temperature = axes_of(evidence.labels)
    every = axes(evidence.labels)
    usual = temperature if test == "sharp" else load
    candidates = [_along(test, name, evidence) for name in sorted(every, key=lambda name: name not in usual)]
    return max((each for each in candidates if each), key=lambda each: each.crossing, default=None)


def _along(test: str, axis: str, evidence: Evidence) -> Transition | None:
    scale = scale_of(evidence.labels[axis])
    field = _field(test, evidence.cells, evidence.labels, axis)
    positions = crossings(field, scale.u)
    once = [k for k, each in enumerate(positions) if len(each) == 1]
    if not once:
        return None
    u = np.array([positions[k][0] for k in once])

    def middle(cells: xr.Dataset) -> float:
        again = crossings(_field(test, cells, evidence.labels, axis), scale.u)
        kept = [again[k][0] for k in once if len(again[k])]
        return float(np.median(kept)) if kept else math.nan

    starts = {bool(field[k][np.isfinite(field[k])][0] > 0) for k in once}
    error = jackknife_error([middle(cells) for cells in evidence.without])
    at = float(scale.from_u(np.median(u)))
    least, most = (float(scale.from_u(np.array(edge))) for edge in (u.min(), u.max()))
    return Transition(
        test,
        scale,
        at,
        at * error if scale.is_log else error,
        least,
        most,
        starts.pop() if len(starts) == 1 else None,
        len(once),
        len(positions),
    )


def crossings(field: Floats, u: Floats) -> list[Floats]:
    """Where each row of `field` (slices, n) changes its sign along `u` (n,), between neighbours that have values.

    Zero is not above, as a threshold that is met is not exceeded.
    """
    above = field > 0
    rows = []
    for values, side in zip(field, above, strict=True):
        k = np.flatnonzero((side[1:] != side[:-1]) & np.isfinite(values[1:]) & np.isfinite(values[:-1]))
        share = values[k] / (values[k] - values[k + 1])
        rows.append(u[k] + share * (u[k + 1] - u[k]))
    return rows


def _field(test: str, cells: xr.Dataset, labels: xr.Dataset, axis: str) -> Floats:
    """The excess of a test over its threshold, (slices, values of the axis) in ascending order."""
    order = [name for name in axes(labels) if name != axis] + [axis]
    placed = cells.sortby(axis).transpose(*order, ...)
    phases = labels["phase"].sortby(axis).transpose(*order).values.astype(str)
    parts = [
        excess_of(name, placed[source].values.astype(np.float64), limit)
        for name in TESTS[test]
        if (limit := thresholds(labels)[name]) is not None and (source := SOURCES.get(name, name)) in placed
    ]
    if not parts or not {True, False} <= {phase in PASSED[test] for phase in phases.flat if phase}:
        return np.full((1, phases.shape[-1]), np.nan)
    field = largest_of(parts) if test == "sharp" else -parts[0]
    if test == "cka":
        field = np.where(np.isin(phases, FOURTH), field, np.nan)
    return field.reshape(-1, field.shape[-1])

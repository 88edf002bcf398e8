"""How the claims of [Yang2021] about every slice along an axis are measured: margins positive where one holds."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import xarray as xr

from lossatlas.findings.columns import coldest, place_text
from lossatlas.findings.evidence import SAME, Evidence, Measured
from lossatlas.summary import Floats

TENFOLD = math.log(10.0)


def batch_sharpens(evidence: Evidence) -> Measured:
    """Slope of ln trace per doubling of the batch among the cells of IV, mean over slices."""
    evidence.axis("batch_size")
    evidence.needs("ln_hessian_trace")
    inside = evidence.phase("IV-A", "IV-B")
    return _trend(evidence, "batch_size", "ln_hessian_trace", where=inside)


def data_sharpens(evidence: Evidence) -> Measured:
    """Slope of ln trace per doubling of the training samples, mean over slices."""
    return _trend(evidence, "n_train", "ln_hessian_trace")


def data_aligns(evidence: Evidence) -> Measured:
    """Slope of CKA per doubling of the training samples, mean over slices."""
    return _trend(evidence, "n_train", "cka")


def data_disconnects(evidence: Evidence) -> Measured:
    """Fall of mode connectivity per doubling of the training samples, mean over slices."""
    return _trend(evidence, "n_train", "mode_connectivity", sign=-1.0)


def decay_flattens(evidence: Evidence) -> Measured:
    """Largest ln trace of a slice less that of the smallest weight decay, less ln 10, mean over slices."""
    evidence.axis("weight_decay")
    evidence.needs("ln_hessian_trace")

    def room(cells: xr.Dataset) -> Floats:
        lines = [
            cells["ln_hessian_trace"].sel(at).sortby("weight_decay") for at in evidence.slices("weight_decay")
        ]
        return np.array([_room(line.values) for line in lines])

    return Measured(*evidence.over_slices(room))


def _room(traces: Floats) -> float:
    """Largest ln trace less the first, less ln 10; NaN without the first or without any other."""
    others = np.isfinite(traces[1:])
    return float(np.nanmax(traces) - traces[0]) - TENFOLD if others.any() else math.nan


def noise_spares_trace(evidence: Evidence) -> Measured:
    """Ln 2 less the size of the change of ln trace by label noise, mean over slices."""
    return _noise(evidence, "ln_hessian_trace", lambda change: SAME - np.abs(change))


def noise_disconnects(evidence: Evidence) -> Measured:
    """Fall of mode connectivity by label noise, mean over slices."""
    return _noise(evidence, "mode_connectivity", np.negative)


def noise_parts(evidence: Evidence) -> Measured:
    """Fall of CKA by label noise, mean over slices."""
    return _noise(evidence, "cka", np.negative)


def _noise(evidence: Evidence, name: str, margin: Callable[[Floats], Floats]) -> Measured:
    """The margin made of the change from the least to the most label noise, at the lowest temperature."""
    evidence.axis("label_noise")
    evidence.needs(name)
    cold = coldest(evidence.labels)

    def changes(cells: xr.Dataset) -> Floats:
        lines = [
            cells[name].sel(at).sortby("label_noise")
            for at in evidence.slices("label_noise")
            if cold.items() <= at.items()
        ]
        return margin(np.array([float(line[-1] - line[0]) for line in lines]))

    value, error, rests_on = evidence.over_slices(changes)
    return Measured(value, error, f"at {place_text(cold)}; {rests_on}")


def _trend(
    evidence: Evidence, axis: str, name: str, *, where: xr.DataArray | None = None, sign: float = 1.0
) -> Measured:
    """Mean over the slices along an axis of `sign` times a quantity's least-squares slope per doubling."""
    evidence.axis(axis)
    evidence.needs(name)

    def slopes(cells: xr.Dataset) -> Floats:
        values = cells[name] if where is None else cells[name].where(where)
        return np.array([sign * _slope(values.sel(at), axis) for at in evidence.slices(axis)])

    nominal = slopes(evidence.cells)
    value, error, rests_on = evidence.over_slices(slopes)
    way = "rises" if sign > 0 else "falls"
    count = int(np.isfinite(nominal).sum())
    return Measured(value, error, f"{way} in {int((nominal > 0).sum())} of {count} slices; {rests_on}")


def _slope(line: xr.DataArray, axis: str) -> float:
    """Least-squares slope per doubling; NaN with fewer than two values."""
    known = np.isfinite(line.values)
    if known.sum() < 2:
        return math.nan
    return float(np.polyfit(np.log2(line[axis].values[known]), line.values[known], 1)[0])

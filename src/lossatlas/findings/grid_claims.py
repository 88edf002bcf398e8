"""How the claims of [Yang2021] about a whole grid are measured: margins that are positive where a claim holds."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from lossatlas.findings.columns import FLAT, SHARP, Place, best_cell, of_seeds, place_text, places
from lossatlas.findings.counterparts import shared_cells, trained
from lossatlas.findings.evidence import SAME, Evidence, Measured, schedule
from lossatlas.findings.verdicts import NotMeasured, mean_and_error

LEAST_CELLS = 5  # for a rank correlation


def loss_falls(evidence: Evidence) -> Measured:
    """Decades between the geometric means of the training loss in I and II and in III and IV, less one."""
    evidence.needs("train_loss")
    sharp, flat = (evidence.phase(*side, having="train_loss") for side in (SHARP, FLAT))

    def decades(cells: xr.Dataset) -> float:
        loss = xr.ufuncs.log10(cells["train_loss"].where(cells["train_loss"] > 0))
        return float(loss.where(sharp).mean() - loss.where(flat).mean()) - 1.0

    return Measured(*evidence.jackknife(decades), f"{_count(sharp)} in I/II, {_count(flat)} in III/IV")


def best_in_fourth(evidence: Evidence) -> Measured:
    """Best test accuracy in IV-B less the best elsewhere."""
    evidence.needs("test_accuracy")
    inside = evidence.phase("IV-B")
    outside = evidence.phase("I", "II", "III", "IV-A")
    accuracies = _accuracies(evidence.tree)
    best, rival = best_cell(accuracies, inside), best_cell(accuracies, outside)
    if best is None or rival is None:
        raise NotMeasured("no test accuracy on one side of IV-B")
    phase = evidence.labels["phase"].sel(rival).item()
    where = f"{place_text(best)} in IV-B, {place_text(rival)} in {phase}"
    return Measured(*evidence.jackknife(lambda cells: _difference(cells, best, rival)), where)


def third_is_as_flat(evidence: Evidence) -> Measured:
    """Ln 2 less the distance of the mean ln traces of III and IV-A."""
    evidence.needs("ln_hessian_trace")
    third, fourth = (evidence.phase(name, having="ln_hessian_trace") for name in ("III", "IV-A"))

    def room(cells: xr.Dataset) -> float:
        trace = cells["ln_hessian_trace"]
        return SAME - abs(float(trace.where(third).mean() - trace.where(fourth).mean()))

    return Measured(*evidence.jackknife(room), f"{_count(third)} in III, {_count(fourth)} in IV-A")


def third_is_worse(evidence: Evidence) -> Measured:
    """Mean test accuracy of IV-A less that of III."""
    evidence.needs("test_accuracy")
    third, fourth = (evidence.phase(name, having="test_accuracy") for name in ("III", "IV-A"))

    def gap(cells: xr.Dataset) -> float:
        accuracy = cells["test_accuracy"]
        return float(accuracy.where(fourth).mean() - accuracy.where(third).mean())

    return Measured(*evidence.jackknife(gap), f"{_count(third)} in III, {_count(fourth)} in IV-A")


def cka_beats_distance(evidence: Evidence) -> Measured:
    """Spearman's rho of CKA and test accuracy over the cells, less |rho| of l2 distance and test accuracy."""
    names = ["test_accuracy", "cka", "distance"]
    evidence.needs(*names)
    used = evidence.cells[names].to_array().notnull().all("variable")
    if used.sum() < LEAST_CELLS:
        raise NotMeasured(f"{_count(used)} with accuracy, CKA and l2; {LEAST_CELLS} are needed")

    def correlations(cells: xr.Dataset) -> tuple[float, float]:
        rho = cells[names].where(used).to_dataframe()[names].rank().corr()["test_accuracy"]
        return float(rho["cka"]), float(rho["distance"])

    def advantage(cells: xr.Dataset) -> float:
        cka, distance = correlations(cells)
        return cka - abs(distance)

    cka, distance = correlations(evidence.cells)
    if math.isnan(cka + distance):
        raise NotMeasured("accuracy, CKA or l2 is the same in all cells")
    rests_on = f"rho {cka:.2f} of CKA, {distance:.2f} of l2 over {_count(used)}"
    return Measured(*evidence.jackknife(advantage), rests_on)


def zero_loss_costs(evidence: Evidence) -> Measured:
    """Best accuracy in I and II less the best in III and IV, mean over the columns with a cell in III."""
    evidence.needs("test_accuracy")
    evidence.phase("III")
    accuracies, phases = _accuracies(evidence.tree), evidence.labels["phase"]
    pairs = []
    for at in places(evidence.labels, *evidence.temperatures):
        here = phases.sel(at)
        sharp, flat = (best_cell(accuracies.sel(at), here.isin(side)) for side in (SHARP, FLAT))
        if here.isin(["III"]).any() and sharp is not None and flat is not None:
            pairs.append(({**at, **sharp}, {**at, **flat}))
    if not pairs:
        raise NotMeasured("no column has cells in III and in I or II")

    def gains(cells: xr.Dataset) -> list[float]:
        return [_difference(cells, sharp, flat) for sharp, flat in pairs]

    ahead = sum(gain > 0 for gain in gains(evidence.cells))
    return Measured(
        *evidence.jackknife(lambda cells: float(np.mean(gains(cells)))),
        f"best in I/II in {ahead} of {len(pairs)} columns through III",
    )


def decay_helps(evidence: Evidence) -> Measured:
    """Best test accuracy with a decayed learning rate less that with a constant one, each of its own best cell.

    Of the cells that both runs have; they must be of the same task over the same axes.
    """
    if evidence.against is None:
        raise NotMeasured("needs the same grid with the other learning-rate schedule (--against)")
    both = (evidence.tree, evidence.against)
    runs = {schedule(tree): tree for tree in both}
    if set(runs) != {"constant", "decayed"}:
        found = " and ".join(schedule(tree) or "unknown" for tree in both)
        raise NotMeasured(f"needs one run with decay and one without; the schedules are {found}")
    shared = shared_cells(*both)
    best = {}
    for name, tree in runs.items():
        accuracies = _accuracies(tree)
        cell = best_cell(accuracies, shared)
        if cell is None:
            raise NotMeasured(f"no test accuracy of the {name} run")
        best[name] = (cell, *mean_and_error(accuracies.sel(cell).values))
    (there, high, error), (here, low, other) = best["decayed"], best["constant"]
    where = f"{high:.2f} % at {place_text(there)} decayed, {low:.2f} % at {place_text(here)} constant"
    if any(trained(tree).sum() > shared.sum() for tree in both):
        where += f"; of {_count(shared)} in both"
    return Measured(high - low, math.hypot(error, other), where)


def _accuracies(tree: xr.DataTree) -> xr.DataArray:
    errors = of_seeds(tree, "test_error")
    if errors is None:
        raise NotMeasured("no cell has test_accuracy")
    return 100.0 - errors


def _difference(cells: xr.Dataset, first: Place, second: Place) -> float:
    """Test accuracy of one cell less that of another."""
    accuracy = cells["test_accuracy"]
    return float(accuracy.sel(first) - accuracy.sel(second))


def _count(where: xr.DataArray) -> str:
    n = int(where.sum())
    return f"{n} cell{'s' if n > 1 else ''}"

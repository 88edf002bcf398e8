"""Slices of the grid: all metrics along one axis, the best temperature at every load, and what zero loss pays."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from lossatlas import registry, summary
from lossatlas.errors import UserError
from lossatlas.findings.verdicts import Verdict, Z, difference, mean_and_error, verdict
from lossatlas.phase_rule import PHASES
from lossatlas.results import axes_of
from lossatlas.summary import Floats

Place = dict[str, float]  # values of some axes

SHARP = ("I", "II")  # training has not reached zero loss
FLAT = ("III", "IV-A", "IV-B")
assert {"", *SHARP, *FLAT} == set(PHASES)

COLDER_WITH_VALUE = ("batch_size",)  # a large batch averages the noise away; any other temperature rises with it


@dataclass(frozen=True)
class Column:
    """The cells of one load: the best test accuracy over the temperatures, and whether training to zero loss pays.

    `difference` is the best accuracy of the phases III and IV less the best of I and II, in percent, paired over
    the seeds that the two cells share. Both cells are picked by the same data, which favours the side with more
    cells by up to the largest of so many errors; differences of a few standard errors should be read with that.
    """

    at: Place
    best: Place  # the temperature
    phase: str
    accuracy: float
    accuracy_error: float
    best_sharp: Place  # empty where there is none
    best_flat: Place
    difference: float
    difference_error: float
    pays: Verdict
    reason: str


def axes(labels: xr.Dataset) -> list[str]:
    """All axes along which there are cells, those of the load first."""
    load, temperature = axes_of(labels)
    return [name for name in (*load, *temperature) if name in labels.dims]


def places(labels: xr.Dataset, *free: str) -> list[Place]:
    """Every combination of values of the axes that are not `free`."""
    fixed = [name for name in axes(labels) if name not in free]
    points = itertools.product(*(np.sort(labels[name].values).tolist() for name in fixed))
    return [dict(zip(fixed, point, strict=True)) for point in points]


def cut(cells: xr.Dataset, labels: xr.Dataset, at: Mapping[str, float]) -> xr.Dataset:
    """One slice: every metric along the axis that `at` leaves free, with standard errors, and `phase`.

    `cells` is what `summary.cells` returns, `labels` what `phases.label` does. A column fixes the load, a row the
    temperature. Raises UserError for an unknown axis or value, or where not exactly one axis is left free.
    """
    every = axes(labels)
    chosen = {}
    for name, value in at.items():
        if name not in every:
            raise UserError(f"There is no axis {name!r} in these results. Axes are {', '.join(every)}.")
        values = labels[name].values.tolist()
        if value not in values:
            allowed = ", ".join(f"{v:g}" for v in sorted(values))
            raise UserError(f"{name} = {value:g} is no value of this axis. Values are {allowed}.")
        chosen[name] = value
    free = [name for name in every if name not in chosen]
    if len(free) != 1:
        left = f"leaves {', '.join(free)} free" if free else "leaves no axis free"
        given = ",".join(f"{name}={value:g}" for name, value in chosen.items()) or "nothing"
        raise UserError(
            f"A slice runs along one axis; {given} {left}. "
            f"Fix all but one of {', '.join(every)}, as in {','.join(f'{n}=VALUE' for n in every[:-1])}."
        )
    phase = labels["phase"].sel(chosen)
    return cells.sel(chosen).assign(phase=phase).sortby(free[0])


def parted(phases: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Whether the neighbours k and k + 1 lie on either side of I/II and III/IV; not where one has no phase."""
    is_sharp, is_known = np.isin(phases, SHARP), phases != ""
    edges: NDArray[np.bool_] = (is_sharp[:-1] != is_sharp[1:]) & is_known[:-1] & is_known[1:]
    return edges


def is_cold_to_hot(name: str) -> bool:
    """Whether the ascending values of a temperature axis run from cold to hot."""
    return name not in COLDER_WITH_VALUE


def coldest(labels: xr.Dataset) -> Place:
    """The lowest temperature of every temperature axis."""
    names = axes_of(labels)[1]
    return {name: float(labels[name].min() if is_cold_to_hot(name) else labels[name].max()) for name in names}


def of_seeds(tree: xr.DataTree, name: str) -> xr.DataArray | None:
    """A quantity of the ok models over the axes and `seed`, else NaN; None where it was not measured."""
    held = summary.ok_values(tree)
    if name not in held.models:
        return None
    models = tree["models"].to_dataset()
    coords = {dim: models[dim] for dim in (*held.dims, "seed")}
    return xr.DataArray(held.models[name], dims=(*held.dims, "seed"), coords=coords)


def wrong_labels(tree: xr.DataTree, at: Mapping[str, float]) -> float:
    """The expected share of wrong training labels, by the slice's label noise p or else the spec's.

    It is p, or p (1 - 1/C) where p of the labels are drawn from all C classes (`definition = "uniform"`); NaN
    where C is not known without the data, as with those of one's own.
    """
    data = json.loads(tree.attrs.get("spec", "{}")).get("task", {}).get("data", {})
    share = float(at.get("label_noise", data.get("label_noise", 0.0)))
    if not share or data.get("definition", "incorrect") == "incorrect":
        return share
    entry = registry.DATA.get(data.get("name", ""))
    return share * (1 - 1 / entry.facts.classes) if entry and entry.facts else math.nan


def best_of_columns(tree: xr.DataTree, labels: xr.Dataset, *, z: float = Z) -> list[Column]:
    """The best cell of every load and what training to zero loss pays there; empty without test errors."""
    errors = of_seeds(tree, "test_error")
    if errors is None:
        return []
    free = axes_of(labels)[1]
    accuracies = 100.0 - errors
    columns = []
    for at in places(labels, *free):
        column = _column(at, accuracies.sel(at), labels["phase"].sel(at), free, z)
        if column is not None:
            columns.append(column)
    return columns


def best_cell(accuracies: xr.DataArray, where: xr.DataArray | None = None) -> Place | None:
    """The cell of the largest mean over `seed`, among the cells `where`; None if no cell has one."""
    free = [str(dim) for dim in accuracies.dims if dim != "seed"]
    means = accuracies.mean("seed", skipna=True)
    if where is not None:
        means = means.where(where)
    if not np.isfinite(means).any():
        return None
    ordered = means.transpose(*free)
    index = np.unravel_index(int(np.nanargmax(ordered.values)), ordered.shape)
    return {name: _plain(ordered[name].values[k]) for name, k in zip(free, index, strict=True)}


def _column(at: Place, accuracies: xr.DataArray, phases: xr.DataArray, free: list[str], z: float) -> Column | None:
    best = best_cell(accuracies)
    if best is None:
        return None
    accuracy, error = mean_and_error(_seeds(accuracies, best))
    sharp, flat = (best_cell(accuracies, phases.isin(side)) for side in (SHARP, FLAT))
    gain, gain_error, reason = math.nan, math.nan, ""
    if sharp is None or flat is None:
        lacking = " or ".join(text for text, cell in (("I or II", sharp), ("III or IV", flat)) if cell is None)
        reason = f"no cell of this column is in Phase {lacking}"
    else:
        gain, gain_error = difference(_seeds(accuracies, flat), _seeds(accuracies, sharp))
        reason = "no standard error: fewer than two seeds" if math.isnan(gain_error) else ""
    return Column(
        at=at,
        best={name: best[name] for name in free},
        phase=str(phases.sel(best).item()),
        accuracy=accuracy,
        accuracy_error=error,
        best_sharp=sharp or {},
        best_flat=flat or {},
        difference=gain,
        difference_error=gain_error,
        pays=verdict(gain, gain_error, z=z),
        reason=reason,
    )


def _seeds(accuracies: xr.DataArray, cell: Place) -> Floats:
    return accuracies.sel(cell).values.astype(np.float64)


def _plain(value: Any) -> float:
    return value.item() if hasattr(value, "item") else float(value)


def place_text(place: Mapping[str, float]) -> str:
    """`width=16 batch_size=128`."""
    return " ".join(f"{name}={value:g}" for name, value in place.items())


def place_suffix(place: Mapping[str, float]) -> str:
    """`-width-16-batch_size-128`, for the names of files."""
    return "".join(f"-{name}-{value:g}" for name, value in place.items())

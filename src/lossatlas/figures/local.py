"""The figure of any local result: which function draws what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import xarray as xr
from matplotlib.figure import Figure

from lossatlas import local_results
from lossatlas.errors import UserError
from lossatlas.figures.curves import line
from lossatlas.figures.expansions import expansion, loss_change, quadratic
from lossatlas.figures.probes import against_gaussians, angles, cosines, mined
from lossatlas.figures.relations import comparison, connection
from lossatlas.figures.spectra import density, smooth_density, spectrum
from lossatlas.figures.surfaces import surface
from lossatlas.figures.tracks import path, search, trajectory

KINDS: dict[str, Callable[[xr.Dataset], Figure]] = {
    "line": line,
    "surface": surface,
    "spectrum": spectrum,
    "density": density,
    "smooth-density": smooth_density,
    "mined": mined,
    "cosines": cosines,
    "expansion": expansion,
    "quadratic": quadratic,
    "loss-change": loss_change,
    "angles": angles,
    "against-gaussians": against_gaussians,
    "connection": connection,
    "comparison": comparison,
    "path": path,
    "search": search,
    "trajectory": trajectory,
    "plane": surface,
}
_SLICES = {"curve": "line", "surface": "surface"}  # what slice_results calls them
_BY_VARIABLE = {  # and one of its dimensions; without `kind`, since these are merged into other datasets
    ("eigenvalue", "rank"): "spectrum",
    ("eigenvalue_min", "rank_min"): "spectrum",
    ("density", "bin"): "density",
    ("smooth_density", "eigenvalue_at"): "smooth-density",
    ("cosine", "eigenvector"): "cosines",
    ("mining_loss", "epoch"): "search",
    ("fit_loss", "epoch"): "search",
    ("trajectory_alpha", "step"): "trajectory",
}


def plot(result: Any) -> Figure:
    """The figure of a local result: an object that `local_results.to_dataset` knows, or a dataset.

    What it is stands in the dataset's attribute `kind`, one of `KINDS`; curves, surfaces, mined curves, spectra,
    densities, searches and trajectories are known without it. The figure of `local_results.load` of a file is that
    of the object saved. Raises UserError for what has no figure, such as a trace or an angle: single numbers.
    """
    dataset = result if isinstance(result, xr.Dataset) else local_results.to_dataset(result)
    kind = kind_of(dataset)
    if kind is None and dataset is not result:
        raise UserError(
            f"A {type(result).__name__} holds single numbers, of which there is no figure: {result!r}. Draw what "
            "it was computed from, or take the numbers by to_dataset()."
        )
    if kind is None:
        raise UserError(
            f"A dataset of kind {dataset.attrs.get('kind')!r} with the variables {', '.join(map(str, dataset))} "
            f"has no figure. Give one whose attribute kind is one of {', '.join(KINDS)}."
        )
    return KINDS[kind](dataset)


def kind_of(dataset: xr.Dataset) -> str | None:
    """The key of `KINDS` that a dataset is drawn by: its attribute `kind`, else told by its variables."""
    if dataset.attrs.get("kind") in KINDS:
        return str(dataset.attrs["kind"])
    if "loss" in dataset and "data" in dataset["loss"].dims:
        return "mined"
    if dataset.attrs.get("slice") in _SLICES:
        return _SLICES[dataset.attrs["slice"]]
    found = (kind for (name, dim), kind in _BY_VARIABLE.items() if name in dataset and dim in dataset[name].dims)
    return next(found, None)

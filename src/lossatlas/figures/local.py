"""The figure of any local result: which function draws what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import xarray as xr
from matplotlib.figure import Figure

from lossatlas import local_results
from lossatlas.errors import UserError
from lossatlas.figures.curves import line
from lossatlas.figures.expansions import expansion, loss_change
from lossatlas.figures.probes import against_gaussians, angles, mined
from lossatlas.figures.relations import comparison, connection
from lossatlas.figures.spectra import density, spectrum
from lossatlas.figures.surfaces import surface

KINDS: dict[str, Callable[[xr.Dataset], Figure]] = {
    "line": line,
    "surface": surface,
    "spectrum": spectrum,
    "density": density,
    "mined": mined,
    "expansion": expansion,
    "loss-change": loss_change,
    "angles": angles,
    "against-gaussians": against_gaussians,
    "connection": connection,
    "comparison": comparison,
}
_SLICES = {"curve": "line", "surface": "surface"}  # what slice_results calls them
_BY_VARIABLE = {"eigenvalue": "spectrum", "eigenvalue_min": "spectrum", "density": "density"}


def plot(result: Any) -> Figure:
    """The figure of a local result: an object that `local_results.to_dataset` knows, or a dataset.

    What it is stands in the dataset's attribute `kind`, one of `KINDS`; curves, surfaces, mined curves, spectra
    and densities are known without it. Raises UserError for what has no figure.
    """
    dataset = result if isinstance(result, xr.Dataset) else local_results.to_dataset(result)
    kind = _kind(dataset)
    if kind is None:
        raise UserError(
            f"A dataset of kind {dataset.attrs.get('kind')!r} with the variables {', '.join(map(str, dataset))} "
            f"has no figure. Give one whose attribute kind is one of {', '.join(KINDS)}."
        )
    return KINDS[kind](dataset)


def _kind(dataset: xr.Dataset) -> str | None:
    if dataset.attrs.get("kind") in KINDS:
        return str(dataset.attrs["kind"])
    if "loss" in dataset and "data" in dataset["loss"].dims:
        return "mined"
    if dataset.attrs.get("slice") in _SLICES:
        return _SLICES[dataset.attrs["slice"]]
    return next((kind for name, kind in _BY_VARIABLE.items() if name in dataset), None)

"""The Hessian's spectrum: both ends with their errors, and its density; [Xu2024] Fig. 13."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import NDArray

from lossatlas.errors import UserError
from lossatlas.figures.style import LINE_COLOURS, SMALL, plain, styled, with_error

Floats = NDArray[np.float64]

_ENDS = (("eigenvalue", "rank", "Largest"), ("eigenvalue_min", "rank_min", "Smallest"))
_LINEAR = 1e-4  # of the largest magnitude: where the logarithmic axis turns linear, unless the dataset says so
_POSITIVE, _NEGATIVE = LINE_COLOURS[0], LINE_COLOURS[1]
_BELOW, _BAND = "#e9eff3", "#e8b97c"  # below the density, and its error


@styled
def spectrum(dataset: xr.Dataset) -> Figure:
    """The largest and the smallest eigenvalues of the Hessian by rank, with their residuals as error bars.

    `dataset` holds `eigenvalue`, `eigenvalue_residual`, `eigenvalue_converged` over `rank`, and the same with
    `_min` over `rank_min`; either end may be missing. A pair that has not converged is hollow. The title has the
    `trace` with its standard error `trace_se` (or if that is 0 `trace_data_se`), where they are known. Raises
    UserError if there is neither end.
    """
    ends = [end for end in _ENDS if end[0] in dataset]
    if not ends:
        raise UserError("This dataset holds no eigenvalue. Give the spectrum of a Hessian.")
    figure = Figure(figsize=(0.9 + 2.1 * len(ends), 2.1), layout="constrained")
    panes = figure.subplots(1, len(ends), squeeze=False)[0]
    for axes, (name, rank, title) in zip(panes, ends, strict=True):
        _draw_end(axes, dataset, name, rank)
        axes.set_title(f"{title} eigenvalues")
        axes.set_xlabel("Rank")
    panes[0].set_ylabel("Eigenvalue of the Hessian (nat)")
    handles = {
        label: handle for axes in panes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if len(handles) > 1:
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2)
    if "trace" in dataset:
        figure.suptitle(f"tr H = {measured(dataset, 'trace', 'nat')}", size=SMALL + 1)
    return figure


@styled
def density(dataset: xr.Dataset) -> Figure:
    """The density of the Hessian's eigenvalues on a symmetric logarithmic axis; [Xu2024] Fig. 13.

    `dataset` holds `density` and `density_se` over `bin`, whose coordinates `bin_left` and `bin_right` are in
    units of the eigenvalues. The dark band is one standard error; a bin without mass has no line. The title has
    the share of eigenvalues that are surely negative (`negative_share`, `negative_share_se`), and the share whose
    sign rounding and a quadrature of few steps leave open (`undecided_share`). Triangles mark the smallest and
    largest eigenvalue: of `eigenvalue_min` and `eigenvalue` where the dataset has them, else the outermost edges.
    The axis turns linear at the attribute `linear_threshold`, or at 1e-4 of the largest edge. Raises UserError for
    a dataset without density, or without any mass.
    """
    missing = {"density", "bin_left", "bin_right"} - set(map(str, dataset.variables))
    if missing:
        raise UserError(f"This dataset holds no {', '.join(sorted(missing))}. Give a spectral density over bins.")
    left, right = (dataset[name].values.astype(np.float64) for name in ("bin_left", "bin_right"))
    values = dataset["density"].values.astype(np.float64)
    if not (values > 0).any():
        raise UserError("The spectral density has no mass in any bin. Look at its status.")
    errors = (
        dataset["density_se"].values.astype(np.float64)
        if "density_se" in dataset
        else np.full_like(values, np.nan)
    )
    figure = Figure(figsize=(3.6, 2.5), layout="constrained")
    axes = figure.add_subplot()
    reach = max(abs(left[0]), abs(right[-1]))
    axes.set_xscale("symlog", linthresh=float(dataset.attrs.get("linear_threshold", _LINEAR * reach)))
    axes.set_yscale("log")
    _draw_steps(axes, left, right, values, errors)
    _mark_extremes(axes, dataset, (left[0], right[-1]))
    axes.set_xlabel("Eigenvalue λ of the Hessian (nat; linear about 0)")
    units = dataset["density"].attrs.get("units", "1")
    axes.set_ylabel("Share of eigenvalues" if units == "1" else f"Density ({units})")
    axes.xaxis.set_major_locator(_sparse_ticks(axes, left[0], right[-1]))
    if "negative_share" in dataset:
        surely = f"share of eigenvalues surely below 0: {measured(dataset, 'negative_share')}"
        axes.set_title(f"{surely}\nso near 0 that the sign is open: {measured(dataset, 'undecided_share')}")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@styled
def smooth_density(dataset: xr.Dataset) -> Figure:
    """The smoothed density on the axis of `density`, with a band of one standard error.

    `dataset` has `smooth_density` and `smooth_density_se` over `eigenvalue_at`, and the attribute
    `linear_threshold` (`Density.smoothed`). Raises UserError for a dataset without a finite density.
    """
    if "smooth_density" not in dataset or not np.isfinite(dataset["smooth_density"].values).any():
        raise UserError("This dataset holds no finite smooth_density. Give a smoothed spectral density.")
    names = ("eigenvalue_at", "smooth_density", "smooth_density_se")
    x, values, errors = (dataset[name].values.astype(np.float64) for name in names)
    figure = Figure(figsize=(3.6, 2.3), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("symlog", linthresh=float(dataset.attrs["linear_threshold"]))
    axes.plot(x, values, color=_POSITIVE, linewidth=0.9, gid="density")
    if np.isfinite(errors).any():
        low, high = np.maximum(values - errors, 0), values + errors
        axes.fill_between(x, low, high, color=_POSITIVE, alpha=0.35, linewidth=0, gid="band")
    axes.set(
        xlabel="Eigenvalue λ of the Hessian (nat; linear about 0)", ylabel="Density per decade", ylim=(0, None)
    )
    axes.xaxis.set_major_locator(_sparse_ticks(axes, x[0], x[-1]))
    return figure


def _draw_end(axes: Axes, dataset: xr.Dataset, name: str, rank: str) -> None:
    values = dataset[name].values.astype(np.float64)
    ranks = dataset[rank].values if rank in dataset.coords else np.arange(1, len(values) + 1)
    residuals = dataset[f"{name}_residual"].values.astype(np.float64)
    converged = dataset[f"{name}_converged"].values.astype(bool)
    colours = np.where(values < 0, _NEGATIVE, _POSITIVE)
    axes.axhline(0.0, color="#808080", linewidth=0.5, zorder=1)
    style: dict[str, Any] = {"fmt": "none", "ecolor": "#808080", "elinewidth": 0.7, "capsize": 1.5}
    bars = axes.errorbar(ranks, values, residuals, **style)
    bars[2][0].set_gid(f"{name}_residual")
    for chosen, gid, label in (
        (converged, "converged", "converged"),
        (~converged, "unconverged", "not converged"),
    ):
        if chosen.any():
            face = colours[chosen] if gid == "converged" else "white"
            axes.scatter(
                ranks[chosen],
                values[chosen],
                s=11,
                facecolors=face,
                edgecolors=colours[chosen],
                linewidths=0.8,
                label=label,
                gid=f"{name}-{gid}",
                zorder=3,
            )
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _draw_steps(axes: Axes, left: Floats, right: Floats, values: Floats, errors: Floats) -> None:
    """Each bin with mass as a level, and its error band."""
    heights = np.where(values > 0, values, np.nan)
    edges = np.append(left, right[-1])
    bottom = float(values[values > 0].min()) / 3
    # A baseline within the axes: filling down to 0 has no place on a logarithmic axis.
    filled = np.where(values > 0, values, bottom)
    axes.stairs(filled, edges, baseline=bottom, fill=True, color=_BELOW, linewidth=0)
    axes.stairs(
        heights,
        edges,
        baseline=None,
        color=_POSITIVE,
        linewidth=1.0,
        gid="density",
        label="share in a bin",
        zorder=3,
    )
    band = np.isfinite(heights) & np.isfinite(errors)
    low, high = np.maximum(values - errors, bottom), values + errors
    for i, k in enumerate(np.flatnonzero(band)):
        label = None if i else "± 1 standard error"
        axes.fill_between(edges[k : k + 2], low[k], high[k], color=_BAND, linewidth=0, gid="band", label=label)
    axes.set_ylim(bottom, float(np.nanmax(np.where(band, high, values))) * 2)


def _mark_extremes(axes: Axes, dataset: xr.Dataset, edges: tuple[float, float]) -> None:
    smallest = float(dataset["eigenvalue_min"].min()) if "eigenvalue_min" in dataset else float(edges[0])
    largest = float(dataset["eigenvalue"].max()) if "eigenvalue" in dataset else float(edges[1])
    for value, gid, colour in ((smallest, "smallest", _NEGATIVE), (largest, "largest", _POSITIVE)):
        axes.plot(
            [value],
            [0.03],
            "^",
            transform=axes.get_xaxis_transform(),
            color=colour,
            markersize=4.0,
            gid=gid,
            label=f"{gid} eigenvalue {plain(value)} nat",
            clip_on=False,
            linestyle="none",
        )


def _sparse_ticks(axes: Axes, low: float, high: float) -> FixedLocator:
    """Zero and powers of ten on either side, at most three each, from the outermost on."""
    threshold = axes.xaxis.get_transform().linthresh  # type: ignore[attr-defined]
    ticks = [0.0]
    for sign, end in ((-1.0, -low), (1.0, high)):
        if end > threshold:
            decades = range(math.floor(math.log10(end)), math.ceil(math.log10(threshold)), -1)
            ticks += [sign * 10.0**k for k in decades[:: max(1, math.ceil(len(decades) / 3))]]
    return FixedLocator(sorted(ticks))


def measured(dataset: xr.Dataset, name: str, unit: str = "") -> str:
    """A number of a dataset with its standard error, of an exact one that over the samples where it is known."""
    value = float(dataset[name])
    error = float(dataset[f"{name}_se"]) if f"{name}_se" in dataset else math.nan
    samples = float(dataset[f"{name}_data_se"]) if f"{name}_data_se" in dataset else math.nan
    if error == 0 and math.isfinite(samples):
        return f"{with_error(value, samples, unit)} (exact; the error is over the samples)"
    return with_error(value, error, unit)

"""What happened step by step: searches by epoch, losses by the position on a path, checkpoints on a plane."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lossatlas.errors import UserError
from lossatlas.figures.style import LINE_COLOURS, styled

_SEARCHES = {"mining_loss": "Loss of the search (nat)", "fit_loss": "Loss along the curve (nat)"}
_QUANTITIES = {"loss": "Loss (nat)", "error": "Error (%)"}
_DOTS: dict[str, Any] = {"marker": "o", "markersize": 2.5, "linewidth": 1.0}
_STATUS = ("status", "search_status")


@styled
def search(dataset: xr.Dataset) -> Figure:
    """What a search minimised, by epoch: of a mined direction, or of the bends of a curve.

    `dataset` has `mining_loss` or `fit_loss` over `epoch`. A status other than ok is the title. Raises UserError
    for a dataset without them.
    """
    found = [name for name in _SEARCHES if name in dataset]
    if not found:
        raise UserError(f"A search is drawn from {' or '.join(_SEARCHES)} over epoch; this dataset has neither.")
    figure = Figure(figsize=(3.5, 2.2), layout="constrained")
    axes = figure.add_subplot()
    losses = dataset[found[0]].values.astype(np.float64)
    shown = np.where(np.isfinite(losses), losses, np.nan)
    axes.plot(dataset["epoch"].values, shown, color=LINE_COLOURS[0], gid="search", **_DOTS)
    axes.set(xlabel="Epoch", ylabel=_SEARCHES[found[0]])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    status = next((dataset.attrs[name] for name in _STATUS if name in dataset.attrs), "ok")
    axes.set_title("" if status == "ok" else str(status))
    return figure


@styled
def path(dataset: xr.Dataset) -> Figure:
    """Loss and error along one path by its position t, with a band of one standard error where it is known.

    `dataset` has `loss` over `t`, and maybe `error` and their `_se` (`paths.evaluate`). Paths of several pairs of
    models are drawn by `connection`. Raises UserError for a dataset without a loss over t.
    """
    names = [name for name in _QUANTITIES if name in dataset and dataset[name].dims == ("t",)]
    if "loss" not in names:
        raise UserError(f"A path is drawn from loss over t; this dataset has dimensions {dict(dataset.sizes)}.")
    figure = Figure(figsize=(3.5, 0.6 + 1.5 * len(names)), layout="constrained")
    panes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    x = dataset["t"].values
    for i, (axes, name) in enumerate(zip(panes, names, strict=True)):
        values = dataset[name].values.astype(np.float64)
        axes.plot(x, values, gid=name, linewidth=1.0, color=LINE_COLOURS[i])
        if f"{name}_se" in dataset:
            error = dataset[f"{name}_se"].values
            axes.fill_between(x, values - error, values + error, color=LINE_COLOURS[i], alpha=0.25, gid="band")
        axes.set_ylabel(_QUANTITIES[name])
    panes[-1].set_xlabel("Position t on the path")
    panes[0].set_title(str(dataset.attrs.get("path", "")))
    return figure


@styled
def trajectory(dataset: xr.Dataset) -> Figure:
    """Checkpoints on a plane, and beside it their loss with that of their projections.

    `dataset` has `trajectory_alpha`, `trajectory_beta`, `trajectory_loss` and `trajectory_plane_loss` over `step`,
    and the attribute `trajectory_share` (`trajectories.project`); merged into a surface, `surface` draws it. Where
    the two losses part, the plane hides what the training did. Raises UserError for a dataset without them.
    """
    needed = [f"trajectory_{name}" for name in ("alpha", "beta", "loss", "plane_loss")]
    missing = [name for name in needed if name not in dataset]
    if missing:
        raise UserError(f"This dataset lacks {', '.join(missing)}, which the figure is drawn from.")
    alpha, beta, loss, plane_loss = (dataset[name].values.astype(np.float64) for name in needed)
    figure = Figure(figsize=(6.2, 2.6), layout="constrained")
    plane, by_step = figure.subplots(1, 2)
    plane.plot(alpha, beta, color=LINE_COLOURS[1], gid="trajectory", **_DOTS)
    plane.set(xlabel="α", ylabel="β", title=f"{100 * float(dataset.attrs['trajectory_share']):.1f}% in the plane")
    steps = np.arange(len(loss))
    for i, (values, label) in enumerate(((loss, "checkpoint"), (plane_loss, "its projection"))):
        by_step.plot(steps, values, label=label, gid=label, color=LINE_COLOURS[i], **_DOTS)
    by_step.set(xlabel="Step", ylabel="Loss (nat)")
    by_step.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    by_step.legend()
    return figure

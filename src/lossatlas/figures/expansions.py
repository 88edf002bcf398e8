"""The second-order expansion beside the loss itself; [Xu2024] Fig. 14 and the second row of Fig. 13."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lossatlas.errors import UserError
from lossatlas.figures.curves import check_curve, draw_curves, values_of
from lossatlas.figures.style import LINE_COLOURS, number, plain, styled
from lossatlas.landscape.shapes import STEP_SLACK, gmi, mli

Floats = NDArray[np.float64]

_PIECE: dict[str, Any] = {"color": LINE_COLOURS[1], "linewidth": 0.9}
_CURVE_WIDTH = 2.6  # the pieces lie upon the curve
_ALONG = "Position λ along the direction"
_HEADROOM, _MEAN_HEIGHT = 1.15, 0.94  # of the axis above a histogram, and where in it the mean stands


@styled
def expansion(dataset: xr.Dataset, *, tolerance: float = 0.0) -> Figure:
    """Local quadratic pieces, over a curve where there is one; [Xu2024] Fig. 14.

    `dataset` holds `piece_lambda` and `piece_loss` over (piece, offset) and `piece_center` over piece
    (`expansion.local_pieces`), alone or merged into one of `line` with one direction. Over a curve the title says
    whether the loss falls monotonically to the model where the model is the last point (MLI), or rises on both its
    sides (GMI), each with its margin in nats (`shapes.mli`, `shapes.gmi`). Raises UserError for a dataset without
    a piece, or with the curves of several directions.
    """
    missing = [name for name in ("piece_lambda", "piece_loss", "piece_center") if name not in dataset]
    has_curve = "loss" in dataset
    if has_curve:
        check_curve(dataset)
    if missing or (has_curve and dataset.sizes["direction"] != 1):
        lacks = f"lacks {', '.join(missing)}" if missing else f"has {dataset.sizes['direction']} directions"
        raise UserError(f"Local pieces are drawn over the curve of one direction; this dataset {lacks}.")
    figure = Figure(figsize=(3.5, 2.6), layout="constrained")
    axes = figure.add_subplot()
    if has_curve:
        draw_curves(axes, dataset, "loss", width=_CURVE_WIDTH)
    centers = dataset["piece_center"].values.astype(np.float64)
    pieces = [dataset[f"piece_{name}"].transpose("piece", "offset").values for name in ("lambda", "loss")]
    for k, (x, y) in enumerate(zip(*pieces, strict=True)):
        axes.plot(x, y, label="local quadratic" if k == 0 else None, gid="piece", zorder=3, **_PIECE)
        middle = float(np.interp(centers[k], x, y))
        axes.plot([centers[k]], [middle], ".", color=_PIECE["color"], markersize=3.5, gid="piece-center", zorder=3)
    if has_curve:
        x = dataset["lambda"].values.astype(np.float64)
        axes.set_xlim(min(x[0], pieces[0].min()), max(x[-1], pieces[0].max()))
        axes.set_title(monotony(dataset, tolerance))
    axes.set_xlabel(_ALONG)
    axes.set_ylabel("Loss (nat)")
    axes.legend()
    return figure


@styled
def quadratic(dataset: xr.Dataset, *, reach: float = 1.0) -> Figure:
    """The second-order expansion along a direction for lambda in [-reach, reach], and its tangent; [Xu2024] eq. 1.

    `dataset` holds the scalars `loss`, `slope` and `curvature` (`expansion.expand`). Raises UserError for a
    dataset without them, or where they are not finite.
    """
    names = ("loss", "slope", "curvature")
    missing = [name for name in names if name not in dataset]
    if missing:
        raise UserError(f"This dataset lacks {', '.join(missing)}, which the figure is drawn from.")
    loss, slope, curvature = (float(dataset[name]) for name in names)
    if not math.isfinite(loss + slope + curvature):
        raise UserError(f"The expansion has no figure: {dataset.attrs.get('reason', 'it is not finite')}.")
    x = np.linspace(-reach, reach, 101)
    figure = Figure(figsize=(3.5, 2.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(x, loss + x * slope, color="#808080", linewidth=0.7, linestyle="--", gid="tangent", label="tangent")
    axes.plot(x, loss + x * slope + x**2 / 2 * curvature, gid="quadratic", label="local quadratic", **_PIECE)
    axes.plot([0.0], [loss], "o", color="black", markersize=3.5, gid="centre", label="model")
    axes.set(
        xlabel=_ALONG, ylabel="Loss (nat)", title=f"slope {plain(slope)} nat, curvature {plain(curvature)} nat"
    )
    axes.legend()
    return figure


@styled
def loss_change(dataset: xr.Dataset) -> Figure:
    """The change of the loss along random directions beside its predicted law; [Xu2024] Fig. 13, second row.

    `dataset` has `change` over (scale, draw) and may have `predicted_mean` and `predicted_variance` over `scale`
    (`probe_results.sampled_changes`, `probe_results.beside_law`). One panel a scale: the histogram, above it the
    measured mean with two standard errors, and where it is predicted the normal law of those moments with its mean
    (dashed). Draws that are not finite are left out and counted in the title. Raises UserError for a dataset
    without changes.
    """
    if "change" not in dataset:
        raise UserError("This dataset lacks change, which the figure is drawn from.")
    is_predicted = {"predicted_mean", "predicted_variance"} <= set(dataset.data_vars)
    changes = dataset["change"].transpose("scale", "draw").values.astype(np.float64)
    figure = Figure(figsize=(0.3 + 2.4 * len(changes), 2.5), layout="constrained")
    panes = figure.subplots(1, len(changes), squeeze=False)[0]
    for i, axes in enumerate(panes):
        finite = changes[i][np.isfinite(changes[i])]
        _draw_changes(axes, finite, lost=len(changes[i]) - len(finite), of=len(changes[i]))
        if is_predicted:
            mean, variance = (float(dataset[f"predicted_{name}"][i]) for name in ("mean", "variance"))
            _draw_law(axes, finite, mean, math.sqrt(variance))
        axes.set_ylim(0, _HEADROOM * axes.get_ylim()[1])
        axes.set_title(f"λ = {number(float(dataset['scale'][i]))}{axes.get_title()}")
        axes.set_xlabel("Change of the loss (nat)")
    panes[0].set_ylabel("Density (1/nat)")
    figure.legend(*panes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(changes))
    return figure


def _draw_changes(axes: Axes, finite: Floats, *, lost: int, of: int) -> None:
    """The histogram of the finite draws and their mean; `lost` draws `of` all are told."""
    if lost:
        axes.set_title(f", {lost} of {of} not finite")
    if len(finite) > 1:
        axes.hist(
            finite, bins="auto", density=True, color=LINE_COLOURS[0], alpha=0.45, gid="changes", label="measured"
        )
        error = 2 * float(finite.std(ddof=1)) / math.sqrt(len(finite))
        bar = axes.errorbar(
            [finite.mean()],
            [_MEAN_HEIGHT],
            xerr=[error],
            transform=axes.get_xaxis_transform(),  # above the histogram, where it hides nothing
            fmt="o",
            color=LINE_COLOURS[0],
            markersize=3.0,
            elinewidth=0.9,
            capsize=2.0,
            label="measured mean ± 2 standard errors",
        )
        bar[2][0].set_gid("mean")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.ticklabel_format(style="sci", scilimits=(-2, 3), axis="both")


def _draw_law(axes: Axes, finite: Floats, mean: float, sd: float) -> None:
    ends = np.append(finite, [mean - 3.5 * sd, mean + 3.5 * sd])
    x = np.linspace(ends.min(), ends.max(), 300)
    law = np.exp(-(((x - mean) / sd) ** 2) / 2) / (sd * math.sqrt(2 * math.pi))
    axes.plot(x, law, color=LINE_COLOURS[1], linewidth=1.0, gid="law", label="predicted law")
    axes.axvline(
        mean, color=LINE_COLOURS[1], linewidth=0.9, linestyle="--", gid="predicted-mean", label="predicted mean"
    )


def monotony(dataset: xr.Dataset, tolerance: float = 0.0) -> str:
    """The verdict that fits where the model lies on the curve of a dataset; empty where none does."""
    x, y = dataset["lambda"].values.astype(np.float64), values_of(dataset, "loss")[0]
    slack = STEP_SLACK * (x[-1] - x[0])
    if abs(x[-1]) <= slack:
        name, found = "MLI", mli(x, y, tolerance=tolerance)
    elif x[0] < -slack and x[-1] > slack and np.abs(x).min() <= slack:
        name, found = "GMI", gmi(x, y, tolerance=tolerance)
    else:
        return ""
    if found.status != "ok":
        return f"{name}: {found.reason}"
    return f"{name} {'holds' if found.holds else 'does not hold'}, margin {plain(found.margin, 2)} nat"

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
from lossatlas.figures.curves import check_curve, draw_curves, label_of, values_of
from lossatlas.figures.style import LINE_COLOURS, number, plain, styled
from lossatlas.landscape.shapes import STEP_SLACK, gmi, mli

Floats = NDArray[np.float64]

_PIECE: dict[str, Any] = {"color": LINE_COLOURS[1], "linewidth": 0.9}
_CURVE_WIDTH = 2.6  # the pieces lie upon the curve


@styled
def expansion(dataset: xr.Dataset, *, tolerance: float = 0.0) -> Figure:
    """Local quadratic pieces over a curve; [Xu2024] Fig. 14.

    `dataset` is one of `line` with one direction, to which `piece_lambda` and `piece_loss` over (piece, offset)
    and `piece_center` over piece are added (`expansion.local_pieces`). The title says whether the loss falls
    monotonically to the model where the model is the last point (MLI), or rises on both its sides (GMI), each with
    its margin (`shapes.mli`, `shapes.gmi`). Raises UserError for a dataset without a piece.
    """
    check_curve(dataset)
    missing = [name for name in ("piece_lambda", "piece_loss", "piece_center") if name not in dataset]
    if missing or dataset.sizes["direction"] != 1:
        lacks = f"lacks {', '.join(missing)}" if missing else f"has {dataset.sizes['direction']} directions"
        raise UserError(f"Local pieces are drawn over the curve of one direction; this dataset {lacks}.")
    figure = Figure(figsize=(3.5, 2.6), layout="constrained")
    axes = figure.add_subplot()
    draw_curves(axes, dataset, "loss", width=_CURVE_WIDTH)
    centers = dataset["piece_center"].values.astype(np.float64)
    pieces = [dataset[f"piece_{name}"].transpose("piece", "offset").values for name in ("lambda", "loss")]
    for k, (x, y) in enumerate(zip(*pieces, strict=True)):
        axes.plot(x, y, label="local quadratic" if k == 0 else None, gid="piece", zorder=3, **_PIECE)
        middle = float(np.interp(centers[k], x, y))
        axes.plot([centers[k]], [middle], ".", color=_PIECE["color"], markersize=3.5, gid="piece-center", zorder=3)
    x = dataset["lambda"].values.astype(np.float64)
    axes.set_xlim(min(x[0], pieces[0].min()), max(x[-1], pieces[0].max()))
    axes.set_xlabel("Position λ along the direction")
    axes.set_ylabel(label_of(dataset, "loss"))
    axes.set_title(_monotony(x, values_of(dataset, "loss")[0], tolerance))
    axes.legend()
    return figure


@styled
def loss_change(dataset: xr.Dataset) -> Figure:
    """The change of the loss along random directions beside its predicted law; [Xu2024] Fig. 13, second row.

    `dataset` has `change` over (scale, draw) and `predicted_mean` and `predicted_variance` over `scale`
    (`expansion.sample_changes`, `expansion.gaussian_change`). One panel a scale: the histogram, the normal law of
    the predicted moments, the predicted mean (dashed) and the measured one with two standard errors. Draws that
    are not finite are left out and counted in the title. Raises UserError for a dataset without them.
    """
    missing = [name for name in ("change", "predicted_mean", "predicted_variance") if name not in dataset]
    if missing:
        raise UserError(f"This dataset lacks {', '.join(missing)}, which the figure is drawn from.")
    changes = dataset["change"].transpose("scale", "draw").values.astype(np.float64)
    figure = Figure(figsize=(0.3 + 2.4 * len(changes), 2.4), layout="constrained")
    panes = figure.subplots(1, len(changes), squeeze=False)[0]
    for i, axes in enumerate(panes):
        moments = tuple(float(dataset[f"predicted_{name}"][i]) for name in ("mean", "variance"))
        _draw_changes(axes, changes[i], *moments)
        axes.set_title(f"λ = {number(float(dataset['scale'][i]))}{axes.get_title()}")
        axes.set_xlabel("Change of the loss")
    panes[0].set_ylabel("Density")
    figure.legend(*panes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _draw_changes(axes: Axes, draws: Floats, mean: float, variance: float) -> None:
    finite = draws[np.isfinite(draws)]
    lost = len(draws) - len(finite)
    if lost:
        axes.set_title(f", {lost} of {len(draws)} not finite")
    if len(finite) > 1:
        axes.hist(
            finite, bins="auto", density=True, color=LINE_COLOURS[0], alpha=0.45, gid="changes", label="measured"
        )
        error = 2 * float(finite.std(ddof=1)) / math.sqrt(len(finite))
        axes.axvspan(
            finite.mean() - error,
            finite.mean() + error,
            color=LINE_COLOURS[0],
            alpha=0.6,
            linewidth=0,
            gid="mean",
            label="its mean ± 2 se",
        )
    sd = math.sqrt(variance)
    ends = np.append(finite, [mean - 3.5 * sd, mean + 3.5 * sd])
    x = np.linspace(ends.min(), ends.max(), 300)
    law = np.exp(-(((x - mean) / sd) ** 2) / 2) / (sd * math.sqrt(2 * math.pi))
    axes.plot(x, law, color=LINE_COLOURS[1], linewidth=1.0, gid="law", label="predicted law")
    axes.axvline(
        mean, color=LINE_COLOURS[1], linewidth=0.9, linestyle="--", gid="predicted-mean", label="its mean"
    )
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.ticklabel_format(style="sci", scilimits=(-2, 3), axis="both")


def _monotony(x: Floats, y: Floats, tolerance: float) -> str:
    """The verdict that fits where the model lies on the curve."""
    slack = STEP_SLACK * (x[-1] - x[0])
    if abs(x[-1]) <= slack:
        name, found = "MLI", mli(x, y, tolerance=tolerance)
    elif x[0] < -slack and x[-1] > slack and np.abs(x).min() <= slack:
        name, found = "GMI", gmi(x, y, tolerance=tolerance)
    else:
        return ""
    if found.status != "ok":
        return f"{name}: {found.reason}"
    return f"{name} {'holds' if found.holds else 'does not hold'}, margin {plain(found.margin, 2)}"

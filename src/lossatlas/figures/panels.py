"""Every metric over the grid of load and temperature, as in figures 2 and 3 of [Yang2021]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from lossatlas.errors import UserError
from lossatlas.figures.grid import Grid, grid_of, hatch_cells, prepare
from lossatlas.figures.style import DECADES, FONT, SMALL, TITLE, entitle, in_units, no_value_key, styled

Floats = NDArray[np.float64]
Limits = Literal["data", "published"]


@dataclass(frozen=True)
class Metric:
    """One panel: what it shows, how its colour bar is called, its colours and the limits of [Yang2021]."""

    name: str
    title: str
    bar: str
    colours: str
    published: tuple[float, float] | None
    kind: Literal["linear", "centred", "decades"] = "linear"


METRICS = (
    Metric("test_accuracy", "Test accuracy", "accuracy (%)", "viridis", (56.0, 91.0)),
    Metric("train_loss", "Training loss", "cross entropy (nat)", "magma", (0.0, 3.0), "decades"),
    Metric("ln_hessian_eig", "Hessian eigenvalue", r"$\ln \lambda_{\max}(H)$", "magma", (0.0, 6.0)),
    Metric("ln_hessian_trace", "Hessian trace", r"$\ln \mathrm{tr}(H)$", "magma", (3.0, 8.0)),
    Metric("mode_connectivity", "Mode connectivity", "mc (%)", "RdBu", (-30.0, 30.0), "centred"),
    Metric("cka", "CKA similarity", "CKA", "viridis", (0.3, 0.8)),
    Metric("distance", r"$\ell_2$ distance", r"$\Vert\theta-\theta'\Vert_2$", "viridis", (0.0, 100.0)),
)
_BLEU = Metric("bleu", "BLEU", "BLEU", "viridis", None)
_SIZE = (7.2, 3.6)  # inches: a two-column figure


@styled
def panels(
    cells: xr.Dataset, *, limits: Limits = "data", title: str = "", over: xr.Dataset | None = None
) -> Figure:
    """The seven metrics of [Yang2021], figures 2 and 3, over load (rightwards) and temperature (upwards).

    Of translations the first is BLEU, where it was measured, as in appendix D.4, else the test accuracy.

    `cells` is what `summary.cells` returns, over one load and one temperature axis. `limits` of the colours: those
    of the `data` (mode connectivity symmetric about 0; a training loss that spans more than a factor 30 on a
    logarithmic scale), or the ones `published` in [Yang2021], where a colour bar is pointed at an end that values
    exceed. `over` are further cells, such as those of all values of a second load axis, whose values set the
    limits together with these. A cell without a value is hatched; a metric that was not asked for is called "not
    measured", one that no cell has "no value"; nothing is interpolated. `title` stands above all panels.

    Raises UserError if the cells have another number of axes, or `limits` is neither.
    """
    if limits not in ("data", "published"):
        raise UserError(f'limits={limits!r} is not known. Use "data" or "published".')
    grid = grid_of(cells)
    height = _SIZE[1] + (TITLE if title else 0.0)
    figure = Figure(figsize=(_SIZE[0], height))
    frame = {"left": 0.07, "right": 0.93, "bottom": 0.36 / height, "top": 3.402 / height}
    entitle(figure, title)
    layout = figure.add_gridspec(2, 4, **frame, wspace=0.58, hspace=0.29)
    any_hatched = False
    for place, metric in enumerate(metrics_of(cells if over is None else over)):
        row, column = divmod(place, 4)
        axes = figure.add_subplot(layout[row, column])
        # The last column has no panel below it, so its upper panel carries the numbers of the load.
        prepare(axes, grid, x_numbers=row == 1 or column == 3, y_numbers=column == 0)
        axes.set_title(f"({'abcdefg'[place]}) {metric.title}", loc="left")
        values = grid.floats(cells, metric.name)
        hatch_cells(axes, grid, ~np.isfinite(values))
        any_hatched |= not np.isfinite(values).all()
        if np.isfinite(values).any():
            everywhere = values if over is None else np.append(values, over[metric.name].values)
            bar = in_units(metric.bar, cells, metric.name)
            _draw(axes, grid, metric, bar, values, colour_limits(metric, everywhere, limits))
        else:
            _say(axes, "no value" if metric.name in cells else "not measured")
    load, temperature = grid.names
    # One name for all panels, centred below the lower three and beside the two rows.
    centre = (frame["left"] + layout[1, 2].get_position(figure).x1) / 2
    figure.supxlabel(load, x=centre, y=0.01, size=FONT)
    figure.supylabel(temperature, x=0.004, y=(frame["bottom"] + frame["top"]) / 2, size=FONT)
    if any_hatched:
        corner = (layout[1, 3].get_position(figure).x0, frame["bottom"])
        figure.legend(handles=[no_value_key("no value")], loc="lower left", bbox_to_anchor=corner, borderaxespad=0)
    return figure


def metrics_of(cells: xr.Dataset) -> tuple[Metric, ...]:
    """The seven of these cells: how good models are is told by BLEU where it was measured, else by accuracy."""
    return (_BLEU, *METRICS[1:]) if has_bleu(cells) else METRICS


def has_bleu(cells: xr.Dataset) -> bool:
    """Whether BLEU was measured of any cell."""
    return "bleu" in cells and bool(np.isfinite(cells["bleu"]).any())


def best_cell(cells: xr.Dataset) -> tuple[dict[str, float] | None, str]:
    """The cell of the best test accuracy, or BLEU where it was measured (None if no cell has one), and which."""
    first = metrics_of(cells)[0]
    named = "BLEU" if first is _BLEU else "test accuracy"
    if first.name not in cells or not np.isfinite(cells[first.name]).any():
        return None, named
    there = cells[first.name].argmax(...)
    assert isinstance(there, dict)
    return {str(dim): float(cells[dim].values[int(k)]) for dim, k in there.items()}, named


def _draw(axes: Axes, grid: Grid, metric: Metric, label: str, values: Floats, norm: Normalize) -> None:
    mesh = axes.pcolormesh(
        grid.load.edges,
        grid.temperature.edges,
        np.ma.masked_invalid(values),
        norm=norm,
        cmap=metric.colours,
        edgecolors="face",  # without it viewers show hairlines between the cells of a PDF
        linewidth=0.1,
        gid=metric.name,
    )
    figure, box = axes.figure, axes.get_position()
    place = figure.add_axes((box.x1 + 0.008, box.y0, 0.010, box.height))
    finite = values[np.isfinite(values)]
    below, above = bool(finite.min() < norm.vmin), bool(finite.max() > norm.vmax)
    extend: Literal["both", "min", "max", "neither"] = (
        ("both" if above else "min") if below else ("max" if above else "neither")
    )
    bar = Colorbar(place, mesh, extend=extend)
    bar.set_label(label, fontsize=SMALL, labelpad=2.0)
    bar.outline.set_linewidth(0.4)
    if isinstance(norm, LogNorm):
        bar.ax.yaxis.set_major_locator(LogLocator(numticks=5))
    else:
        bar.ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_minor_formatter(NullFormatter())


def colour_limits(metric: Metric, values: Floats, limits: Limits) -> Normalize:
    """Where the colours of a metric begin and end."""
    if limits == "published" and metric.published is not None:
        return Normalize(*metric.published)
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    if metric.kind == "centred":
        reach = max(abs(low), abs(high)) or 1.0
        return Normalize(-reach, reach)
    if metric.kind == "decades" and low > 0 and high > DECADES * low:
        return LogNorm(low, high)
    if low == high:  # one value has no range: a band about it keeps its colour bar readable
        half = 0.05 * abs(low) or 1.0
        return Normalize(low - half, high + half)
    return Normalize(low, high)


def _say(axes: Axes, text: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", bbox=box)

"""Loss and error along the curves that connect the models of a cell, for cells spread over the grid."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from lossatlas.errors import UserError
from lossatlas.figures.captions import explained
from lossatlas.figures.grid import Grid, grid_of, picked
from lossatlas.figures.style import SMALL, TITLE, entitle, number, plain, styled

Floats = NDArray[np.float64]

_LINES: dict[str, dict[str, Any]] = {
    "train": {"color": "#2b6f97", "linestyle": "-", "linewidth": 0.8},
    "test": {"color": "#b5454d", "linestyle": (0, (3, 1.2)), "linewidth": 0.8},
}
_PANE = (1.25, 0.85)  # inches: one cell, with its gap
_WORDS = {"error": "Error (%)", "loss": "Cross entropy (nat)"}


@styled
def connectivity(
    tree: xr.DataTree,
    *,
    quantity: Literal["error", "loss"] = "error",
    max_panels: int = 5,
    title: str = "",
) -> Figure:
    """Training and test error (or loss) along the connectivity curves, t from one model (0) to the other (1).

    At most `max_panels` x `max_panels` cells are shown, evenly picked in each axis with both ends, load rightwards
    and temperature upwards, one thin line a pair, all over the same range. `mc` is the mean mode connectivity
    [Yang2021, eq. 4] over the cell's measured pairs; it is left out where none is. `title` stands above all.

    Raises UserError if the tree has no curves, other than one load and one temperature axis, or `quantity` or
    `max_panels` is not allowed.
    """
    if quantity not in _WORDS:
        raise UserError(f'quantity={quantity!r} is not known. Use "error" or "loss".')
    if max_panels < 2:
        raise UserError(f"max_panels={max_panels} leaves out the corners of the grid. Give 2 or more.")
    if "curves" not in tree.children:
        raise UserError(
            "These results hold no curves. Run with `[measures] connectivity = {}`, or leave this figure out."
        )
    curves = tree["curves"].to_dataset()
    grid = grid_of(curves)
    columns = picked(len(grid.load.values), max_panels)
    rows = picked(len(grid.temperature.values), max_panels)
    rows = rows if grid.temperature.is_inverted else rows[::-1]  # the hottest first: it is drawn on top
    barriers, unit = _mean_connectivity(tree, grid)
    along = {name: _curves_of(curves, grid, f"{name}_{quantity}") for name in _LINES}
    strip = TITLE if title else 0.0
    height = 1.12 + strip + _PANE[1] * len(rows)
    figure = Figure(figsize=(0.90 + _PANE[0] * len(columns), height))
    entitle(figure, title)
    panes = _panes(figure, len(rows), len(columns), strip)
    for (i, j), axes in np.ndenumerate(panes):
        cell = (rows[i], columns[j])
        _draw(axes, curves["t"].values.astype(np.float64), {name: lines[cell] for name, lines in along.items()})
        axes.set_gid(f"cell-{cell[0]}-{cell[1]}")
        if np.isfinite(barriers[cell]):
            text = f"mc {_told(float(barriers[cell]), unit)}"
            axes.text(0.5, 0.95, text, transform=axes.transAxes, ha="center", va="top", size=SMALL, gid="mc")
    _set_range(panes[0, 0], [lines[np.ix_(rows, columns)] for lines in along.values()])
    _describe(figure, panes, grid, rows, columns, _WORDS[quantity], strip)
    of = "loss" if unit == "nat" else "error"
    mean = f"mc: mode connectivity of the {of}, mean over these pairs." if np.isfinite(barriers).any() else ""
    return explained(figure, "One line for each pair of seeds.", mean)


def _mean_connectivity(tree: xr.DataTree, grid: Grid) -> tuple[Floats, str]:
    """Mean mode connectivity over the measured pairs (temperature, load), NaN where there is none; its unit."""
    pairs = tree["pairs"].to_dataset() if "pairs" in tree.children else xr.Dataset()
    if "mode_connectivity" not in pairs:
        return np.full((len(grid.temperature.values), len(grid.load.values)), np.nan), ""
    means = grid.floats(pairs[["mode_connectivity"]].mean(("seed", "seed_b")), "mode_connectivity")
    return means, "nat" if pairs["mode_connectivity"].attrs.get("units") == "nat" else "%"


def _told(mc: float, unit: str) -> str:
    """Percent to a decimal, nats, which are small numbers, to two digits."""
    text = plain(mc, 2) if unit == "nat" else f"{round(mc, 1) + 0.0:.1f}"  # adding 0 turns -0.0 into 0.0
    return f"{text} {unit}".replace("-", "−")


def _curves_of(curves: xr.Dataset, grid: Grid, name: str) -> Floats:
    """A quantity along all curves: (temperature, load, pair, t); no pair where it is missing."""
    names = (grid.temperature.name, grid.load.name)
    if name not in curves:
        return np.empty((len(grid.temperature.values), len(grid.load.values), 0, curves.sizes["t"]))
    ordered = curves[name].sortby(list(names)).transpose(*names, "seed", "seed_b", "t").values
    return ordered.astype(np.float64).reshape(*ordered.shape[:2], -1, ordered.shape[-1])


def _panes(figure: Figure, rows: int, columns: int, strip: float) -> NDArray[Any]:  # of Axes
    width, height = figure.get_size_inches()
    margins = {"left": 0.42 / width, "right": 1 - 0.48 / width}
    margins |= {"bottom": 0.60 / height, "top": 1 - (0.38 + strip) / height}
    panes: NDArray[Any] = figure.subplots(
        rows,
        columns,
        squeeze=False,
        sharex=True,
        sharey=True,
        gridspec_kw=margins | {"wspace": 0.08, "hspace": 0.1},
    )
    return panes


def _draw(axes: Axes, t: Floats, lines: dict[str, Floats]) -> None:
    """One line a pair, broken where a value is missing."""
    measured = False
    for name, values in lines.items():
        for line in values[np.isfinite(values).any(axis=-1)]:
            axes.plot(t, line, gid=name, **_LINES[name])
            measured = True
    if not measured:
        axes.set_facecolor("#ebebeb")
        axes.text(0.5, 0.5, "no value", transform=axes.transAxes, ha="center", va="center", size=SMALL)


def _set_range(axes: Axes, values: list[Floats]) -> None:
    """One range for all: from 0 to the largest value, with room for mc above and for a line at 0 below."""
    finite = np.concatenate([each[np.isfinite(each)] for each in values])
    axes.set_xlim(0.0, 1.0)
    top = float(finite.max(initial=0.0)) or 1.0
    axes.set_ylim(-0.06 * top, 1.25 * top)
    axes.set_xticks([0.0, 0.5, 1.0], ["0", "½", "1"])


def _describe(
    figure: Figure,
    panes: NDArray[Any],
    grid: Grid,
    rows: list[int],
    columns: list[int],
    quantity: str,
    strip: float,
) -> None:
    """Values of the axes above the columns and beside the rows, names at the rims."""
    for axes, column in zip(panes[0], columns, strict=True):
        axes.set_title(number(grid.load.values[column]), pad=2.5)
    for axes, row in zip(panes[:, -1], rows, strict=True):
        axes.yaxis.set_label_position("right")
        axes.set_ylabel(number(grid.temperature.values[row]), rotation=0, ha="left", va="center")
    width, height = figure.get_size_inches()
    across = (panes[0, 0].get_position().x0 + panes[0, -1].get_position().x1) / 2
    upward = (panes[0, 0].get_position().y1 + panes[-1, 0].get_position().y0) / 2
    rim: dict[str, Any] = {"ha": "center", "va": "center"}
    figure.text(across, 1 - (0.10 + strip) / height, grid.names[0], **rim)
    figure.text(1 - 0.09 / width, upward, f"{grid.temperature.label} (← hotter)", rotation=270, **rim)
    figure.text(0.09 / width, upward, quantity, rotation=90, **rim)
    figure.text(across, 0.32 / height, "Position t on the curve", **rim)
    handles = [
        Line2D([], [], label=f"{name}ing" if name == "train" else name, **style) for name, style in _LINES.items()
    ]
    figure.legend(handles=handles, loc="center", bbox_to_anchor=(across, 0.12 / height), ncols=2, borderaxespad=0)

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
from lossatlas.figures.grid import Grid, Scale, grid_of
from lossatlas.figures.style import SMALL, number, styled

Floats = NDArray[np.float64]

_LINES: dict[str, dict[str, Any]] = {
    "train": {"color": "#2b6f97", "linestyle": "-", "linewidth": 0.8},
    "test": {"color": "#b5454d", "linestyle": (0, (3, 1.2)), "linewidth": 0.8},
}
_WORDS = {"error": "Error (%)", "loss": "Cross entropy (nat)"}


@styled
def connectivity(
    tree: xr.DataTree, *, quantity: Literal["error", "loss"] = "error", max_panels: int = 5
) -> Figure:
    """Training and test error (or loss) along the connectivity curves, t from one model (0) to the other (1).

    At most `max_panels` x `max_panels` cells are shown, evenly picked in each axis with both ends, load rightwards
    and temperature upwards, one thin line a pair, all over the same range. `mc` is the mean mode connectivity
    [Yang2021, eq. 4] over the cell's measured pairs; it is left out where none is.

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
    columns = _picked(grid.load, max_panels)
    rows = _picked(grid.temperature, max_panels)
    rows = rows if grid.temperature.is_inverted else rows[::-1]  # the hottest first: it is drawn on top
    barriers = _mean_connectivity(tree, grid)
    along = {name: _curves_of(curves, grid, f"{name}_{quantity}") for name in _LINES}
    size = (0.75 + 1.27 * len(columns), 0.82 + 0.92 * len(rows))
    figure = Figure(figsize=size)
    panes = figure.subplots(
        len(rows),
        len(columns),
        squeeze=False,
        sharex=True,
        sharey=True,
        gridspec_kw={
            "left": 0.44 / size[0],
            "right": 1 - 0.31 / size[0],
            "bottom": 0.58 / size[1],
            "top": 1 - 0.24 / size[1],
            "wspace": 0.08,
            "hspace": 0.10,
        },
    )
    for (i, row), (j, column) in np.ndindex_pairs(rows, columns):
        pass
    return figure

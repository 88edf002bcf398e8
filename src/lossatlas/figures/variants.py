"""The variants of one quantity side by side: a small map each, on common axes and with common colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lossatlas.errors import UserError
from lossatlas.figures.grid import Grid, grid_of, hatch_cells, prepare
from lossatlas.figures.panels import METRICS, Metric, colour_limits
from lossatlas.figures.style import FONT, SMALL, TITLE, entitle, in_units, no_value_key, styled

_COLUMNS = 4  # which fill two columns of a paper
_MAP = (1.42, 1.12)  # inches
_STEP = (1.53, 1.56)  # inches from one map to the next: upwards with two lines of text
_LEFT, _BOTTOM = 0.52, 0.4  # inches
_BAR = 0.5  # inches: a colour bar with its numbers
_LINE = 0.13  # inches: a line of small text


@dataclass(frozen=True)
class _Shown:
    """A variant: its values (temperature, load) and their units."""

    name: str
    grid: Grid
    values: NDArray[np.float64]
    unit: str


@styled
def variants(
    cells: Mapping[str, xr.Dataset],
    quantity: str,
    *,
    notes: Mapping[str, str] | None = None,
    key: str = "",
    title: str = "",
) -> Figure:
    """A quantity over load (rightwards) and temperature (upwards), one map a variant in their order.

    `cells` are what `summary.cells` returns, by the names of the variants, over one load and one temperature axis.
    Variants in the same units share their colours and their bar. A cell without a value is hatched. `notes` stand
    below the names, and `key`, which explains them, at the bottom. Raises UserError if there is no variant, or the
    cells have another number of axes.
    """
    if not cells:
        raise UserError("There is no variant to draw. Give at least one.")
    shown = [_shown(name, each, quantity) for name, each in cells.items()]
    scales = _scales(shown, quantity, cells)
    rows, columns = math.ceil(len(shown) / _COLUMNS), min(_COLUMNS, len(shown))
    low = _BOTTOM + (_LINE if key else 0.0)
    top = low + (rows - 1) * _STEP[1] + _MAP[1]
    right = _LEFT + (columns - 1) * _STEP[0] + _MAP[0]
    width = right + 0.1 + _BAR * max(1, len(scales))
    height = top + _STEP[1] - _MAP[1] - 0.1 + (TITLE if title else 0.0)
    figure = Figure(figsize=(width, height))
    entitle(figure, title)
    for place, each in enumerate(shown):
        row, column = divmod(place, _COLUMNS)
        axes = _axes(figure, _LEFT + column * _STEP[0], low + (rows - 1 - row) * _STEP[1], *_MAP)
        prepare(axes, each.grid, x_numbers=place + _COLUMNS >= len(shown), y_numbers=column == 0)
        _entitle(axes, each.name, (notes or {}).get(each.name, ""))
        _draw(axes, each, scales.get(each.unit))
    for k, (metric, norm) in enumerate(scales.values()):
        place_of_bar = _axes(figure, right + 0.08 + k * _BAR, low, 0.08, top - low)
        bar = Colorbar(place_of_bar, ScalarMappable(norm, metric.colours))
        bar.set_label(metric.bar, fontsize=SMALL, labelpad=2.0)
        bar.outline.set_linewidth(0.4)
        bar.ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    load, temperature = shown[0].grid.names
    figure.supxlabel(load, x=(_LEFT + right) / 2 / width, y=(low - _BOTTOM + 0.04) / height, size=FONT)
    figure.supylabel(temperature, x=0.03 / width, y=(low + top) / 2 / height, size=FONT)
    figure.text(_LEFT / width, 0.03 / height, key, size=SMALL, va="bottom", gid="key")
    if any(not np.isfinite(each.values).all() for each in shown):
        figure.legend(handles=[no_value_key("no value")], loc="lower right", borderaxespad=0.3)
    return figure


def _shown(name: str, cells: xr.Dataset, quantity: str) -> _Shown:
    grid = grid_of(cells)
    unit = str(cells[quantity].attrs.get("units", "1")) if quantity in cells else ""
    return _Shown(name, grid, grid.floats(cells, quantity), unit)


def _scales(
    shown: Sequence[_Shown], quantity: str, cells: Mapping[str, xr.Dataset]
) -> dict[str, tuple[Metric, Normalize]]:
    """The colours of each unit, those without a value left out."""
    found = {}
    for each in shown:
        everywhere = np.concatenate([other.values.ravel() for other in shown if other.unit == each.unit])
        if each.unit not in found and np.isfinite(everywhere).any():
            metric = _metric(quantity, cells[each.name])
            found[each.unit] = metric, colour_limits(metric, everywhere, "data")
    return found


def _metric(quantity: str, cells: xr.Dataset) -> Metric:
    """How the quantity is called and coloured, in the units of these cells."""
    attrs = cells[quantity].attrs
    label = f"{attrs.get('long_name', quantity)} ({attrs.get('units', '1')})".removesuffix(" (1)")
    known = {metric.name: metric for metric in METRICS}
    default = Metric(quantity, label, label, "viridis", (0.0, 1.0))
    metric = known.get(quantity, default)
    return Metric(
        metric.name,
        metric.title,
        in_units(metric.bar, cells, quantity),
        metric.colours,
        metric.published,
        metric.kind,
    )


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _entitle(axes: Axes, name: str, note: str) -> None:
    lines = ((name, FONT, 1.0 + (0.115 if note else 0.02)), (note, SMALL, 1.02))
    for text, size, y in lines:
        axes.text(
            0, y, text, transform=axes.transAxes, size=size, va="bottom", gid="name" if text == name else "note"
        )


def _draw(axes: Axes, each: _Shown, scale: tuple[Metric, Normalize] | None) -> None:
    hatch_cells(axes, each.grid, ~np.isfinite(each.values))
    if scale is None:
        return
    metric, norm = scale
    axes.pcolormesh(
        each.grid.load.edges,
        each.grid.temperature.edges,
        np.ma.masked_invalid(each.values),
        norm=norm,
        cmap=metric.colours,
        edgecolors="face",  # without it viewers show hairlines between the cells of a PDF
        linewidth=0.1,
        gid=each.name,
    )

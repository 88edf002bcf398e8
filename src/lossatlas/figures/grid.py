"""Load by temperature: where the cells of a grid lie in a plot, and drawing over them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from numpy.typing import NDArray

from lossatlas.errors import UserError
from lossatlas.figures.style import INCH, SMALL, no_value_style, number, plain
from lossatlas.findings.columns import COLDER_WITH_VALUE

Floats = NDArray[np.float64]

_DIGIT = 0.64 * SMALL / INCH  # inches: the width of a digit of DejaVu Sans
_LINE = 1.15 * SMALL / INCH  # inches: the height that a tick label needs
_SHARE = "fraction of "


@dataclass(frozen=True)
class Scale:
    """One axis of the plot.

    With positive values it is logarithmic and `centres` are the values; a zero has no logarithm, so then the
    values stand side by side and `centres` are their ranks. `u` is the coordinate in which lengths on paper are
    proportional: log(centre) or the rank.
    """

    name: str
    label: str
    values: tuple[float, ...]
    is_inverted: bool

    @property
    def is_log(self) -> bool:
        """Whether the plot's axis is logarithmic."""
        return min(self.values) > 0

    @property
    def centres(self) -> Floats:
        """Where the cells lie: their values or their ranks."""
        return self.from_u(self.u)

    @property
    def u(self) -> Floats:
        """The same in the coordinate that paper shows evenly."""
        return np.log(self.values) if self.is_log else np.arange(len(self.values), dtype=np.float64)

    @property
    def u_edges(self) -> Floats:
        """Midpoints, so geometric means on a logarithmic axis; the outer cells are symmetric about their value."""
        u = self.u
        if len(u) == 1:
            half = np.log(2.0) / 2 if self.is_log else 0.5
            return np.array([u[0] - half, u[0] + half])
        middle = (u[:-1] + u[1:]) / 2
        return np.concatenate([[2 * u[0] - middle[0]], middle, [2 * u[-1] - middle[-1]]])

    @property
    def edges(self) -> Floats:
        """Where the cells end."""
        return self.from_u(self.u_edges)

    def from_u(self, u: Floats) -> Floats:
        """The plot's own coordinate of `u`."""
        return np.exp(u) if self.is_log else u


@dataclass(frozen=True)
class Grid:
    """The load axis to the right, the temperature axis upwards; arrays are (temperature, load)."""

    load: Scale
    temperature: Scale

    @property
    def names(self) -> tuple[str, str]:
        """What the axes are called, with the direction in which load and temperature rise."""
        return f"{self.load.label} (load →)", f"{self.temperature.label} (hotter →)"

    def array(self, dataset: xr.Dataset, name: str) -> NDArray[Any]:
        """A variable as an array (temperature, load), in ascending order of both."""
        ordered = dataset[name].sortby([self.temperature.name, self.load.name])
        return ordered.transpose(self.temperature.name, self.load.name).values

    def floats(self, dataset: xr.Dataset, name: str) -> Floats:
        """Such an array in float64; all NaN where the dataset has no such variable."""
        if name not in dataset:
            return np.full((len(self.temperature.values), len(self.load.values)), np.nan)
        return self.array(dataset, name).astype(np.float64)


def grid_of(dataset: xr.Dataset) -> Grid:
    """The plane of a dataset over one load and one temperature axis.

    Raises UserError where it has another number of either.
    """
    names: dict[str, list[str]] = {"load": [], "temperature": []}
    for name in dataset.dims:
        role = dataset[name].attrs.get("role") if name in dataset.coords else None
        if role in names:
            names[role].append(str(name))
    for role, found in names.items():
        if len(found) != 1:
            many = f"{len(found)} ({', '.join(found)})" if found else "none"
            raise UserError(
                f"A map needs one {role} axis, these results have {many}. Give results with one {role} axis, or "
                "choose one value of the others first, as in cells.sel(panel=1)."
            )
    return Grid(scale_of(dataset[names["load"][0]]), scale_of(dataset[names["temperature"][0]]))


def scale_of(coordinate: xr.DataArray) -> Scale:
    """An axis of the results: its values, its label, and whether large ones are cold."""
    name = str(coordinate.name)
    label = str(coordinate.attrs.get("long_name", name.replace("_", " ")))
    units = coordinate.attrs.get("units", "1")
    label = label[:1].upper() + label[1:] + ("" if units == "1" else f" ({units})")
    values = tuple(sorted(float(value) for value in coordinate.values))
    return Scale(name, label, values, name in COLDER_WITH_VALUE)


def place_title(place: Mapping[str, float], dataset: xr.Dataset) -> str:
    """A place for people, from the names of the dataset's axes: `Batch size 64`, `5,000 training samples`."""
    text = ", ".join(_named(dataset[name], value) for name, value in place.items())
    return text[:1].upper() + text[1:]


def _named(coordinate: xr.DataArray, value: float) -> str:
    name = str(coordinate.attrs.get("long_name", str(coordinate.name).replace("_", " ")))
    if name.startswith(_SHARE):
        return f"{plain(100 * value)} % {name.removeprefix(_SHARE)}"
    return f"{value:,.0f} {name}" if coordinate.name == "n_train" else f"{name} {number(value)}"


def picked(count: int, most: int) -> list[int]:
    """Indices of at most `most` of so many, evenly spread, with both ends."""
    return [int(i) for i in np.unique(np.round(np.linspace(0, count - 1, min(count, most))))]


def prepare(axes: Axes, grid: Grid, *, x_numbers: bool = True, y_numbers: bool = True) -> None:
    """Scales, limits and ticks: a tick at every grid value, the hottest row on top, no label upon another."""
    _prepare_axis(axes, grid.load, is_x=True, numbers=x_numbers, is_inverted=grid.load.is_inverted)
    _prepare_axis(axes, grid.temperature, is_x=False, numbers=y_numbers, is_inverted=grid.temperature.is_inverted)


def prepare_x(axes: Axes, scale: Scale, *, numbers: bool) -> None:
    """The same of a horizontal axis alone, with ascending values whatever they mean."""
    _prepare_axis(axes, scale, is_x=True, numbers=numbers, is_inverted=False)


def _prepare_axis(axes: Axes, scale: Scale, *, is_x: bool, numbers: bool, is_inverted: bool) -> None:
    axis = axes.xaxis if is_x else axes.yaxis
    (axes.set_xscale if is_x else axes.set_yscale)("log" if scale.is_log else "linear")
    low, high = scale.edges[[0, -1]]
    (axes.set_xlim if is_x else axes.set_ylim)(*((high, low) if is_inverted else (low, high)))
    axis.set_major_locator(FixedLocator(scale.centres.tolist()))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FixedFormatter(_tick_texts(axes, scale, is_x) if numbers else []))


def _tick_texts(axes: Axes, scale: Scale, is_x: bool) -> list[str]:
    """The label of every tick, empty where it would touch another: the ends choose first, then powers of two."""
    edges = scale.u_edges
    places = (scale.u - edges[0]) / (edges[-1] - edges[0]) * inches_of(axes)[0 if is_x else 1]
    texts = [number(value) for value in scale.values]
    halves = [(len(text) + 0.4) * _DIGIT / 2 if is_x else _LINE / 2 for text in texts]
    chosen: list[int] = []
    ends = (0, len(texts) - 1)
    for i in sorted(range(len(texts)), key=lambda i: (i not in ends, not _is_power_of_two(scale.values[i]))):
        if all(abs(places[i] - places[j]) >= halves[i] + halves[j] for j in chosen):
            chosen.append(i)
    return [text if i in chosen else "" for i, text in enumerate(texts)]


def _is_power_of_two(value: float) -> bool:
    return value > 0 and math.frexp(value)[0] == 0.5


def inches_of(axes: Axes) -> tuple[float, float]:
    """Width and height of the axes on paper."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    box = axes.get_position()
    width, height = figure.get_size_inches()
    return float(box.width * width), float(box.height * height)


def hatch_cells(axes: Axes, grid: Grid, where: NDArray[np.bool_]) -> None:
    """Fill the cells (temperature, load) in `where` as having no value."""
    x, y = grid.load.edges, grid.temperature.edges
    corners: Sequence[Floats] = [
        np.array([(x[j], y[i]), (x[j + 1], y[i]), (x[j + 1], y[i + 1]), (x[j], y[i + 1])])
        for i, j in np.argwhere(where)
    ]
    if corners:
        axes.add_collection(PolyCollection(corners, gid="no-value", **no_value_style()), autolim=False)

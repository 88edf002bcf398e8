"""The phase diagram: cells coloured by phase, the boundaries that the thresholds draw, and what is doubtful."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy import ndimage

from lossatlas.errors import UserError
from lossatlas.figures.boundaries import Boundaries, boundaries
from lossatlas.figures.grid import Grid, Scale, grid_of, hatch_cells, inches_of, prepare
from lossatlas.figures.style import FONT, INCH, PHASE_COLOURS, SMALL, TITLE, entitle, no_value_key, number, styled

_SIZE = (3.5, 3.0)  # inches: one column
_ROW = 0.125  # inches: one row of the legend
LINES: dict[str, Any] = {"sharp": "-", "mode_connectivity": (0, (4, 1.5)), "cka": (0, (1, 1.2))}
_LINE_WIDTH = 1.3
_MARKS: dict[str, dict[str, Any]] = {
    "uncertain": {"marker": "o", "markersize": 3.0, "markerfacecolor": "none", "markeredgewidth": 0.5},
    "not-ok": {"marker": "x", "markersize": 2.6, "markeredgewidth": 0.6},
    "best": {"marker": "*", "markersize": 8.0, "markerfacecolor": "white", "markeredgewidth": 0.7},
}
_RASTER = 240  # pixels along an axis when the middle of a region is sought


@styled
def phase_map(
    labels: xr.Dataset,
    *,
    best: Mapping[str, float] | None = None,
    min_probability: float = 0.9,
    min_margin: float = 0.1,
    best_of: str = "test accuracy",
    title: str = "",
) -> Figure:
    """The phases of [Yang2021] over load (rightwards) and temperature (upwards).

    `labels` is what `phases.label` returns. Every region is named at its pole of inaccessibility. Lines are the
    level sets of the metrics at their thresholds (see `boundaries`); where all cells lie on one side, or a metric
    has no transition, there is no line and a sentence says so. `title` stands above the map. Circles mark labels
    in doubt: a probability below `min_probability`, or a margin below `min_margin` (in MADs; the margin also
    covers what the probability holds fixed). Crosses mark cells with a status other than ok, hatching cells
    without a phase, a star the cell `best` ({axis: value}), which is the best in `best_of`.

    Raises UserError if the labels have another number of axes, or `best` is no cell of theirs.
    """
    grid = grid_of(labels)
    phases = grid.array(labels, "phase").astype(str)
    lines = boundaries(labels, grid)
    is_doubtful = (grid.floats(labels, "probability") < min_probability) | (
        grid.floats(labels, "margin") < min_margin
    )
    status = grid.array(labels, "status").astype(str)
    marks = {
        "uncertain": _corners(grid, is_doubtful & (phases != ""), across=0.82),
        "not-ok": _corners(grid, (status != "ok") & (status != "missing"), across=0.18),
        "best": star(grid, best),
    }
    doubt = f"probability < {number(min_probability)} or margin < {number(min_margin)}"
    has_holes = bool((phases == "").any())
    key = _key(lines, marks, doubt=doubt, best_of=best_of, has_holes=has_holes)
    height = _SIZE[1] + (TITLE if title else 0.0)
    figure = Figure(figsize=(_SIZE[0], height))
    sentences = _ROW * len(lines.sentences)
    below = 0.35 + _ROW * math.ceil(len(key) / 2) + sentences
    axes = figure.add_axes((0.145, below / height, 0.83, (_SIZE[1] - below - 0.07) / height))
    entitle(figure, title, x=0.56)
    prepare(axes, grid)
    axes.set_xlabel(grid.names[0])
    axes.set_ylabel(grid.names[1])
    fill_phases(axes, grid, phases)
    draw_boundaries(axes, lines)
    for name, points in marks.items():
        draw_marks(axes, name, points)
    for region in regions(phases, grid, inches_of(axes), marks["best"]):
        if region.is_largest or region.depth >= 0.75 * FONT / INCH:
            draw_name(axes, region, FONT + 1 if region.is_largest else SMALL)
    figure.legend(
        handles=key,
        loc="lower center",
        bbox_to_anchor=(0.5, sentences / height),
        ncols=2,
        borderaxespad=0.2,
        labelspacing=0.3,
        columnspacing=1.2,
    )
    for k, sentence in enumerate(reversed(lines.sentences)):
        figure.text(
            0.5, (0.03 + k * _ROW) / height, sentence, ha="center", va="bottom", size=SMALL, gid="sentence"
        )
    return figure


def fill_phases(axes: Axes, grid: Grid, phases: NDArray[Any]) -> None:
    """Cells in the colours of their phases, hatched where there is none."""
    names = list(PHASE_COLOURS)
    codes = np.array([[names.index(p) if p in names else -1 for p in row] for row in phases])
    axes.pcolormesh(
        grid.load.edges,
        grid.temperature.edges,
        np.ma.masked_less(codes, 0),
        cmap=ListedColormap(list(PHASE_COLOURS.values())),
        vmin=-0.5,
        vmax=len(names) - 0.5,
        edgecolors="white",
        linewidth=0.25,
        gid="phases",
    )
    hatch_cells(axes, grid, codes < 0)


def draw_boundaries(axes: Axes, lines: Boundaries) -> None:
    """A line a boundary, in the style of its name."""
    for boundary in lines.found:
        drawn = axes.contour(
            lines.x,
            lines.y,
            np.ma.masked_invalid(boundary.rising),
            levels=[0.0],
            colors="black",
            linewidths=_LINE_WIDTH,
            linestyles=[LINES[boundary.name]],
        )
        drawn.set_gid(boundary.name)


def draw_marks(axes: Axes, name: str, points: NDArray[np.float64], *, size: float | None = None) -> None:
    """Marks of this name at these places (n, 2), of their own size in points unless told."""
    style = _MARKS[name] | ({} if size is None else {"markersize": size})
    if len(points):
        axes.plot(*points.T, linestyle="none", color="black", zorder=4, gid=name, **style)


def _corners(grid: Grid, where: NDArray[np.bool_], *, across: float) -> NDArray[np.float64]:
    """A place (n, 2) near the lower edge of every cell in `where`: names stand in the middle of cells."""
    rows, columns = np.nonzero(where)
    x, y = grid.load.u_edges, grid.temperature.u_edges
    up = 0.8 if grid.temperature.is_inverted else 0.2
    u, v = x[columns] + across * np.diff(x)[columns], y[rows] + up * np.diff(y)[rows]
    return np.column_stack([grid.load.from_u(u), grid.temperature.from_u(v)])


def star(grid: Grid, best: Mapping[str, float] | None) -> NDArray[np.float64]:
    """The place of the cell that is named by its values, (1, 2); (0, 2) if none is."""
    if best is None:
        return np.empty((0, 2))
    try:
        row, column = (s.values.index(float(best[s.name])) for s in (grid.temperature, grid.load))
    except (KeyError, ValueError):
        axes = "; ".join(f"{s.name}: {', '.join(map(number, s.values))}" for s in (grid.load, grid.temperature))
        raise UserError(
            f"best={dict(best)} is no cell of these labels. Give one value of each axis ({axes})."
        ) from None
    return np.array([[grid.load.centres[column], grid.temperature.centres[row]]])


def _key(
    lines: Boundaries,
    marks: Mapping[str, NDArray[np.float64]],
    *,
    doubt: str,
    best_of: str,
    has_holes: bool,
) -> list[Artist]:
    """The entries of the legend: the lines that are drawn, with their thresholds, then the marks that occur."""
    entries: list[Artist] = [line_key(boundary.name, boundary.text) for boundary in lines.found]
    texts = {"uncertain": doubt, "not-ok": "a seed or pair not ok", "best": f"best {best_of}"}
    entries += [mark_key(name, texts[name]) for name, points in marks.items() if len(points)]
    return [*entries, no_value_key("no phase")] if has_holes else entries


def line_key(name: str, text: str) -> Line2D:
    """The legend's entry for the boundaries of this name."""
    return Line2D([], [], color="black", linestyle=LINES[name], linewidth=_LINE_WIDTH, label=text)


def mark_key(name: str, text: str) -> Line2D:
    """The legend's entry for the marks of this name."""
    style = {**_MARKS[name], "markersize": min(_MARKS[name]["markersize"], SMALL)}
    return Line2D([], [], linestyle="none", color="black", label=text, **style)


@dataclass(frozen=True)
class Region:
    """A connected region of a phase, and where its name has most room."""

    phase: str
    x: float
    y: float
    depth: float  # inches: how far that place is from its rim
    is_largest: bool  # of its phase


def draw_name(axes: Axes, region: Region, size: float) -> None:
    """The name of a region, readable on every colour."""
    halo = [withStroke(linewidth=1.6, foreground="white")]
    place: dict[str, Any] = {"ha": "center", "va": "center", "gid": "name"}
    axes.text(region.x, region.y, region.phase, weight="bold", size=size, path_effects=halo, **place)


def regions(
    phases: NDArray[Any], grid: Grid, inches: tuple[float, float], avoid: NDArray[np.float64]
) -> Iterator[Region]:
    """The regions of every phase, on axes of so many inches, the largest first.

    Their place is the pole of inaccessibility: the point farthest, on paper, from the rim and from the points
    `avoid`.
    """
    columns, xs = _raster(grid.load)
    rows, ys = _raster(grid.temperature)
    pixel = (inches[1] / _RASTER, inches[0] / _RASTER)
    free = np.ones((_RASTER, _RASTER), dtype=bool)
    for x, y in avoid:
        free[np.abs(ys - y).argmin(), np.abs(xs - x).argmin()] = False
    for phase in PHASE_COLOURS:
        numbered, count = ndimage.label(phases == phase)
        shapes = [numbered[np.ix_(rows, columns)] == k for k in range(1, count + 1)]
        shapes.sort(key=lambda shape: -int(shape.sum()))
        for k, shape in enumerate(shapes):
            depth = ndimage.distance_transform_edt(np.pad(shape & free, 1), sampling=pixel)[1:-1, 1:-1]
            row, column = _pole(depth, shape)
            yield Region(phase, float(xs[column]), float(ys[row]), float(depth.max()), k == 0)


def _raster(scale: Scale) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The cell and the plot coordinate of every pixel along an axis."""
    edges = scale.u_edges
    u = edges[0] + (np.arange(_RASTER) + 0.5) / _RASTER * (edges[-1] - edges[0])
    return np.searchsorted(edges, u) - 1, scale.from_u(u)


def _pole(depth: NDArray[np.float64], shape: NDArray[np.bool_]) -> tuple[int, int]:
    """The pixel farthest from the rim; of many such (in a strip) the one nearest the centre of the region."""
    deepest = np.argwhere(depth > 0.97 * depth.max())
    centre = np.argwhere(shape).mean(axis=0)
    row, column = deepest[((deepest - centre) ** 2).sum(axis=1).argmin()]
    return int(row), int(column)

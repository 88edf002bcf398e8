"""The loss on a plane through a model: as filled contours and as a surface; [Xu2024] Figs. 11 and 12."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from lossatlas import local_results
from lossatlas.figures.curves import center_of, label_of
from lossatlas.figures.models import draw_models, draw_models_3d, has_models
from lossatlas.figures.planes import (
    axis_label,
    check_surface,
    direction_names,
    grid_of,
    height_over_width,
    norm_of,
    shape_of,
    title_of,
)
from lossatlas.figures.style import SMALL, no_value_key, no_value_style, plain, styled

Floats = NDArray[np.float64]

_COLOURS = "viridis"
_LEVELS = 21
_PANE = (2.4, 2.0)  # inches: one of several panels
_LEGEND_LINE = 0.13  # inches
_HALO = [withStroke(linewidth=1.6, foreground="white")]
_GUESSING: dict[str, Any] = {
    "color": "white",
    "linewidth": 0.9,
    "linestyle": "--",
    "path_effects": [withStroke(linewidth=1.7, foreground="#606060")],  # seen on bright colours
}
_ON_COLOUR = [withStroke(linewidth=5.0, foreground="#33638d", dashes={"dash_offset": 0, "dash_list": None})]
_CENTRE: dict[str, Any] = {"marker": "o", "color": "white", "markeredgecolor": "black", "markersize": 4.0}
_WIDE = 3.0  # inches: a figure with room for its legend in one row


@styled
def surface(dataset: xr.Dataset, trajectory: Any = None, *, quantity: str = "loss") -> Figure:
    """Filled contours of a quantity on the plane theta + alpha d1 + beta d2.

    `dataset` is what `slice_results.to_dataset` makes of a surface: variables over (alpha, beta). Levels are
    logarithmic where values are positive and span more than a factor 30; a dashed line is the level of random
    guessing, a dot the model. Where a corner of a cell of the grid is not finite, the cell is hatched. Lengths on
    paper are those of parameter space, unless the sides of the plane differ by more than a factor 3. The title has
    the class of the surface at the model with its curvatures (`surface_shapes.surface_shape`), the cosine between
    the directions where it exceeds 0.01, and the share of a trajectory's variance that the plane holds.
    `trajectory` is what `trajectories.project` returns, or a dataset of it (`trajectory_alpha` and
    `trajectory_beta` over `step`, attribute `trajectory_share`); by default the one that `dataset` holds, if any.

    On a plane through three models (`slice_results.plane_to_dataset`) the axes are l2 distances, the models are
    marked with their own values in the legend, and the curve they span is drawn; there is no class in the title.

    Raises UserError for a dataset without that quantity over (alpha, beta), or without a finite value.
    """
    check_surface(dataset, quantity)
    ratio = height_over_width(dataset)
    # The longer side is 2.4 in; beside it there is room for the bar and the titles.
    figure = Figure(figsize=(1.4 + 2.4 * min(1, 1 / ratio), 1.0 + 2.4 * min(1, ratio)), layout="constrained")
    axes = figure.add_subplot()
    drawn = _contours(axes, dataset, quantity)
    keys: list[Any] = list(draw_models(axes, dataset, quantity)) if has_models(dataset) else []
    keys += _keys(axes, dataset)
    path = _path(dataset if trajectory is None else trajectory)
    if path is not None:
        _draw_path(axes, path)
    axes.set_box_aspect(ratio)
    for axis, name in zip("xy", ("alpha", "beta"), strict=True):
        axes.set(**{f"{axis}label": axis_label(dataset, name)})
    axes.set_title("\n".join(title_of(dataset, quantity, path)))
    _draw_bar(axes, drawn, label_of(dataset, quantity))
    if keys:
        columns = len(keys) if figure.get_figwidth() > _WIDE and not has_models(dataset) else 1
        figure.legend(handles=keys, loc="outside lower center", ncols=columns)
        figure.set_figheight(figure.get_figheight() + _LEGEND_LINE * -(-len(keys) // columns))
    return figure


@styled
def surfaces(rows: Sequence[Mapping[str, xr.Dataset]]) -> Figure:
    """Many surfaces side by side, as contours of the loss with their classes: [Xu2024] Fig. 12.

    Each of `rows` holds datasets as for `surface` by the title of their panel; each panel has its own levels. The
    legend holds the marks of all panels.
    """
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(_PANE[0] * columns, _PANE[1] * len(rows)), layout="constrained")
    panes = figure.subplots(len(rows), columns, squeeze=False)
    keys: dict[object, Any] = {}
    for axes in panes.flat:
        axes.set_visible(False)
    for pane_row, row in zip(panes, rows, strict=True):
        for axes, (title, dataset) in zip(pane_row, row.items(), strict=False):
            check_surface(dataset, "loss")
            axes.set_visible(True)
            axes.set_gid(title)
            _draw_bar(axes, _contours(axes, dataset, "loss"), label_of(dataset, "loss"))
            keys |= {key.get_label(): key for key in _keys(axes, dataset)}
            axes.set_box_aspect(1)
            axes.set_title(f"{title}\n{shape_of(dataset).kind}", size=SMALL)
            for axis, name in zip("xy", ("alpha", "beta"), strict=True):
                axes.set(**{f"{axis}label": axis_label(dataset, name)})
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.yaxis.set_major_locator(MaxNLocator(3))
    figure.legend(handles=list(keys.values()), loc="outside upper center", ncols=len(keys))
    return figure


@styled
def surface_3d(
    dataset: xr.Dataset, *, quantity: str = "loss", elevation: float = 30.0, azimuth: float = -60.0
) -> Figure:
    """A quantity on the plane theta + alpha d1 + beta d2 as a surface in space.

    The height is logarithmic where `surface` has logarithmic levels. Cells with a corner that is not finite are
    holes, and their number stands in the title. The dot is the model; three models stand at their own values.
    `elevation` and `azimuth` are the angles of view in degrees. Raises UserError as `surface` does.
    """
    check_surface(dataset, quantity)
    alphas, betas, z = grid_of(dataset, quantity)
    norm = norm_of(z)
    is_log = isinstance(norm, LogNorm)
    height = np.log10(z) if is_log else z
    figure = Figure(figsize=(3.9, 3.5))
    axes: Any = figure.add_axes((0.0, 0.0, 0.92, 0.9), projection="3d")
    x, y = np.meshgrid(alphas, betas, indexing="ij")
    axes.plot_surface(
        x,
        y,
        np.where(np.isfinite(height), height, np.nan),
        cmap=_COLOURS,
        rcount=len(alphas),
        ccount=len(betas),
        linewidth=0.15,
        edgecolor=(0.1, 0.1, 0.1, 0.5),
        antialiased=True,
        gid="surface",
    )
    center = center_of(dataset).get(quantity, math.nan)
    if has_models(dataset):
        figure.legend(handles=draw_models_3d(axes, dataset, quantity, is_log=is_log), loc="upper left")
    elif math.isfinite(center):
        place = math.log10(center) if is_log else center
        axes.plot([0], [0], [place], "o", color="black", markersize=3.5, zorder=10, gid="centre")
    axes.view_init(elev=elevation, azim=azimuth)
    units = r" ($\ell_2$)" if has_models(dataset) else ""
    names = [name + units for name in direction_names(dataset)]
    axes.set_xlabel(names[0], labelpad=-4)
    axes.set_ylabel(names[1], labelpad=-4)
    axes.set_zlabel(label_of(dataset, quantity), labelpad=-4)
    axes.tick_params(pad=-2)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_major_locator(MaxNLocator(5, integer=is_log and axis is axes.zaxis))
    if is_log:
        _decade_ticks(axes, height)
    missing = int((~np.isfinite(z)).sum())
    title = title_of(dataset, quantity, None)
    title += [f"{missing} of {z.size} values not finite"] if missing else []
    axes.set_title("\n".join(title), y=1.0, loc="right" if has_models(dataset) else "center")  # beside the legend
    return figure


def _contours(axes: Axes, dataset: xr.Dataset, quantity: str) -> QuadContourSet:
    """Filled contours with all marks but the trajectory."""
    alphas, betas, z = grid_of(dataset, quantity)
    norm = norm_of(z)
    spaced = np.geomspace if isinstance(norm, LogNorm) else np.linspace
    levels = spaced(float(norm.vmin or 0), float(norm.vmax or 0), _LEVELS)
    # The rounding of the outermost levels must not cut off the extreme values.
    levels[0], levels[-1] = norm.vmin, norm.vmax
    masked = np.ma.masked_invalid(z.T)
    drawn = axes.contourf(alphas, betas, masked, levels=levels, norm=norm, cmap=_COLOURS, corner_mask=False)
    drawn.set_gid(quantity)
    drawn.set_edgecolor("face")  # without it viewers show hairlines between the levels of a PDF
    if np.nanmin(masked) < np.nanmax(masked):
        thin = axes.contour(
            alphas,
            betas,
            masked,
            levels=levels[2:-1:2],
            colors="black",
            linewidths=0.25,
            alpha=0.5,
            corner_mask=False,
        )
        thin.set_gid("levels")
        _draw_guessing(axes, dataset, quantity, (alphas, betas, masked))
    holes = _holes(alphas, betas, z)
    if holes:
        axes.add_collection(PolyCollection(holes, gid="non-finite", **no_value_style()), autolim=False)
    if not has_models(dataset) and alphas[0] <= 0 <= alphas[-1] and betas[0] <= 0 <= betas[-1]:
        axes.plot([0], [0], linestyle="none", gid="centre", label="model", zorder=5, **_CENTRE)
    axes.set_xlim(alphas[0], alphas[-1])
    axes.set_ylim(betas[0], betas[-1])
    return drawn


def _draw_bar(axes: Axes, drawn: QuadContourSet, label: str) -> None:
    """The colour bar beside a panel, as high as it is."""
    bar = axes.get_figure(root=True).colorbar(drawn, cax=axes.inset_axes((1.04, 0.0, 0.05, 1.0)), label=label)  # type: ignore[union-attr]
    bar.outline.set_linewidth(0.4)
    bar.set_ticks(_bar_ticks(drawn.norm))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: plain(v, 6)))
    bar.ax.yaxis.set_minor_locator(NullLocator())


def _keys(axes: Axes, dataset: xr.Dataset) -> list[Any]:
    """The legend's entries for the marks that `_contours` has drawn."""
    drawn = {artist.get_gid(): artist for artist in axes.get_children()}
    keys: list[Any] = [drawn["centre"]] if "centre" in drawn else []
    if "guessing" in drawn:
        label = f"random guessing, {plain(float(dataset.attrs['guessing']))} nat"
        keys.append(Line2D([], [], label=label, **_GUESSING | {"path_effects": _ON_COLOUR}))
    return keys + ([no_value_key("not finite")] if "non-finite" in drawn else [])


def _draw_guessing(axes: Axes, dataset: xr.Dataset, quantity: str, grid: tuple[Floats, Floats, Any]) -> None:
    level = float(dataset.attrs.get("guessing", math.nan))
    if quantity == "loss" and np.nanmin(grid[2]) < level < np.nanmax(grid[2]):
        style = {"colors": _GUESSING["color"], "linewidths": _GUESSING["linewidth"], "linestyles": "--"}
        drawn = axes.contour(*grid, levels=[level], corner_mask=False, **style)
        drawn.set(gid="guessing", path_effects=_GUESSING["path_effects"])


def _holes(alphas: Floats, betas: Floats, z: Floats) -> list[Floats]:
    """The cells of the grid with a corner that is not finite, each (4, 2)."""
    bad = ~np.isfinite(z)
    cells = bad[:-1, :-1] | bad[1:, :-1] | bad[:-1, 1:] | bad[1:, 1:]
    a, b = alphas, betas
    return [
        np.array([(a[i], b[j]), (a[i + 1], b[j]), (a[i + 1], b[j + 1]), (a[i], b[j + 1])])
        for i, j in np.argwhere(cells)
    ]


def _path(source: Any) -> xr.Dataset | None:
    """The dataset of a trajectory, None where `source` is a dataset without one."""
    dataset = source if isinstance(source, xr.Dataset) else local_results.to_dataset(source)
    return dataset if "trajectory_alpha" in dataset else None


def _draw_path(axes: Axes, path: xr.Dataset) -> None:
    axes.plot(
        path["trajectory_alpha"].values,
        path["trajectory_beta"].values,
        color="#b5454d",
        linewidth=1.0,
        marker="o",
        markersize=2.2,
        path_effects=_HALO,
        gid="trajectory",
        zorder=4,
        clip_on=True,
    )


def _bar_ticks(norm: Any) -> list[float]:
    """Round numbers between the ends: 1, 2, 5 times powers of ten on a logarithmic bar, at most some seven."""
    low, high = norm.vmin, norm.vmax
    if not isinstance(norm, LogNorm):
        found = np.asarray(MaxNLocator(6).tick_values(low, high))
        return [float(t) for t in found if low <= t <= high]
    for leading in ((1, 2, 5), (1, 3), (1,)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = np.array([m * 10.0**k for k in decades for m in leading])
        found = found[(found >= low) & (found <= high)]
        if len(found) <= 7:
            break
    return [float(t) for t in found]


def _decade_ticks(axes: Any, height: Floats) -> None:
    """Powers of ten on a height that is a logarithm."""
    finite = height[np.isfinite(height)]
    if finite.max() - finite.min() < 2:  # less than two decades: the numbers themselves
        axes.zaxis.set_major_locator(MaxNLocator(5))
        axes.zaxis.set_major_formatter(FuncFormatter(lambda v, _: plain(10**v, 2)))
    else:
        axes.zaxis.set_major_formatter(FuncFormatter(lambda v, _: f"$10^{{{v:g}}}$"))

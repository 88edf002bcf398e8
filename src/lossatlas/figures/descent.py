"""Test and training error along one axis: where a double descent falls, rises and falls again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D, ScaledTranslation, Transform

from lossatlas.figures.captions import explained
from lossatlas.figures.columns import axis_of, draw_strip, of_means, peak_style, place_on
from lossatlas.figures.grid import Scale, prepare_x
from lossatlas.figures.style import INCH, LINE_COLOURS, SMALL, entitle, plain, styled
from lossatlas.findings.double_descent import INTERPOLATES, Descent, first_fitted

_WIDTH, _UPPER, _LOWER, _STRIP, _STEPS = 3.5, 1.5, 0.9, 0.16, 0.31  # inches
_GREY = "#606060"
_BRACKET: dict[str, Any] = {
    "arrowstyle": "|-|,widthA=0.2,widthB=0.2",
    "linewidth": 0.6,
    "shrinkA": 1,
    "shrinkB": 1,
}


@styled
def descent(cells: xr.Dataset, found: Descent, *, wrong_labels: float = 0.0, title: str = "") -> Figure:
    """Test error (above) and training error (below) along the axis of `found`; bars are one standard error.

    `cells` is one slice as `findings.columns.cut` returns it. If a double descent was found, its three steps stand
    above the panels with their sizes, and a dashed line marks the peak; else there are the curves alone. A dotted
    line parts the cells that fit their data (`first_fitted`) from those before. `wrong_labels` is the share of
    training labels that are wrong: a model that has learnt all the right ones and none of the wrong ones has that
    training error, and where it is 0 or NaN no line is drawn. The strip of phases is there if any cell has one.
    What the marks mean stands below.

    Raises UserError if the cells lie along no axis or several.
    """
    scale = axis_of(cells)
    cells = cells.sortby(scale.name)
    phases = cells["phase"].values.astype(str)
    strip = _STRIP if (phases != "").any() else 0.0
    steps = _STEPS if found.found == "yes" else 0.0
    top, bottom = 0.08 + (0.12 if title else 0.0) + steps, 0.33
    height = top + strip + _UPPER + _LOWER + bottom
    figure = Figure(figsize=(_WIDTH, height))
    entitle(figure, title)
    layout = figure.add_gridspec(
        3 if strip else 2,
        1,
        left=0.125,
        right=0.975,
        bottom=bottom / height,
        top=1 - top / height,
        hspace=0.08,
        height_ratios=[strip, _UPPER, _LOWER][0 if strip else 1 :],
    )
    highest = figure.add_subplot(layout[0])
    if strip:
        prepare_x(highest, scale, numbers=False)
        draw_strip(highest, scale, phases)
    test = figure.add_subplot(layout[1]) if strip else highest
    train = figure.add_subplot(layout[-1])
    for axes, name, label, colour in (
        (test, "test_error", "Test error (%)", LINE_COLOURS[0]),
        (train, "train_error", "Training error (%)", LINE_COLOURS[1]),
    ):
        prepare_x(axes, scale, numbers=axes is train)
        axes.set_ylabel(label)
        axes.yaxis.set_label_coords(-0.095, 0.5)
        _draw_error(axes, scale, cells, name, colour)
        _mark(axes, scale, cells, found)
    _draw_notes(train, float(cells["train_error"][0]), wrong_labels)
    train.set_xlabel(scale.label)
    if found.found == "yes":
        _draw_steps(highest, scale, found)
    return explained(
        figure,
        of_means(cells, {"test_error": "test error", "train_error": "training error"}, "bars"),
        f"Dotted: where the training error falls below {INTERPOLATES:g} %." if _fitted(train) else "",
        "Dashed, upright: the peak." if found.found == "yes" else "",
        "Dashed, level: the share of wrong training labels." if wrong_labels > 0 else "",
        "Hatched: no phase." if strip and (phases == "").any() else "",
    )


def _draw_error(axes: Axes, scale: Scale, cells: xr.Dataset, name: str, colour: str) -> None:
    """Means with bars of one standard error; a cell with one seed has no bar."""
    values, errors = cells[name].values, cells[f"{name}_se"].values
    drawn = axes.errorbar(
        scale.centres,
        values,
        yerr=np.where(np.isfinite(errors), errors, 0.0),
        color=colour,
        marker="o",
        markersize=2.8,
        linewidth=1.0,
        elinewidth=0.9,
        capsize=1.8,
        capthick=0.9,
    )
    drawn.lines[0].set_gid(name)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _mark(axes: Axes, scale: Scale, cells: xr.Dataset, found: Descent) -> None:
    """The peak, and where the data begin to be fitted."""
    if found.found == "yes":
        axes.axvline(place_on(scale, found.peak), gid="peak", **peak_style())
    turn = -1 if found.order == "hot to cold" and not scale.is_inverted else 1
    first = first_fitted(cells["train_error"].values[::turn])
    if first is not None:
        edge = float(scale.edges[::turn][first])
        axes.axvline(edge, color=_GREY, linewidth=0.7, linestyle=(0, (1, 1.5)), zorder=1, gid="fitted")


def _fitted(axes: Axes) -> list[Line2D]:
    """The line where the data begin to be fitted, if there is one."""
    return [line for line in axes.lines if line.get_gid() == "fitted"]


def _draw_notes(axes: Axes, leftmost: float, wrong_labels: float) -> None:
    """What the lines in the panel of the training error mean, off its curve, which starts at `leftmost`."""
    style: dict[str, Any] = {"textcoords": "offset points", "size": SMALL, "color": _GREY}
    for line in _fitted(axes):
        edge = float(np.asarray(line.get_xdata())[0])
        text, coords = f"< {INTERPOLATES:g} %", ("data", "axes fraction")
        axes.annotate(text, (edge, 0.96), (-1.5, 0), xycoords=coords, ha="right", va="top", rotation=90, **style)
    if wrong_labels > 0:
        level = 100 * wrong_labels
        axes.axhline(level, color=_GREY, linewidth=0.7, linestyle=(0, (4, 1.5)), zorder=1, gid="wrong labels")
        side, lift = ("top", -1.5) if leftmost > level else ("bottom", 1.5)
        text, coords = f"{plain(level)} % wrong labels", ("axes fraction", "data")
        axes.annotate(text, (0.012, level), (0, lift), xycoords=coords, ha="left", va=side, **style)


def _draw_steps(axes: Axes, scale: Scale, found: Descent) -> None:
    """A bracket over each of the three steps, and in one line above their sizes with one standard error."""
    places = [place_on(scale, end) for end in (found.start, found.valley, found.peak, found.end)]
    for a, b, name in zip(places[:-1], places[1:], ("fall", "rise", "fall"), strict=True):
        axes.annotate("", (a, 0), (b, 0), xycoords=_above(axes, 5.0), arrowprops=_BRACKET, annotation_clip=False)
        middle = math.sqrt(a * b) if scale.is_log else (a + b) / 2
        axes.text(middle, 0, name, transform=_above(axes, 7.5), ha="center", size=SMALL, gid="step")
    steps = (
        f"falls {found.fall:.2f} ± {found.fall_se:.2f}",
        f"rises {found.rise:.2f} ± {found.rise_se:.2f}",
        f"falls {found.second_fall:.2f} ± {found.second_fall_se:.2f}",
    )
    middle = float(scale.from_u(scale.u_edges[[0, -1]].mean()))
    text = f"Test error {', '.join(steps)} %"
    axes.text(middle, 0, text, transform=_above(axes, 16.0), ha="center", size=SMALL, gid="sizes")


def _above(axes: Axes, points: float) -> Transform:
    """Horizontally the data, vertically so many points above the axes (for y = 0)."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    lift = ScaledTranslation(0, points / INCH, figure.dpi_scale_trans)
    return Affine2D().translate(0, 1) + axes.get_xaxis_transform() + lift

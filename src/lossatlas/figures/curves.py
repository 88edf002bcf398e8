"""Loss and error along lines through a model, in the manner of [Xu2024] Figs. 1 to 4, 7 and 14 to 17."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from lossatlas.errors import UserError
from lossatlas.figures.style import FONT, SMALL, line_style, plain, styled
from lossatlas.landscape.shapes import CurveShape, curve_shape

Floats = NDArray[np.float64]
Scale = Literal["auto", "linear", "log"]

_LABELS = {"loss": "Loss", "error": "Error"}
_UNITS = {"%": " (%)", "nat": " (nat)"}
_WIDE_RANGE = 100.0  # a loss that spans more than this is drawn on a logarithmic axis
_PANE = (1.85, 1.6)  # inches: one of several panels
_MARKS: dict[str, dict[str, Any]] = {
    "centre": {"marker": "o", "markersize": 3.5, "color": "black"},
    "checkpoint": {"marker": "D", "markersize": 3.5, "color": "black", "markerfacecolor": "none"},
}
_GUESSING: dict[str, Any] = {"color": "#808080", "linewidth": 0.7, "linestyle": (0, (5, 2))}
_SMALL_LEGEND: dict[str, Any] = {
    "fontsize": SMALL - 1.5,
    "handlelength": 1.2,
    "labelspacing": 0.15,
    "borderaxespad": 0.2,
}
_LINE_CHARACTERS, _HANDLE_CHARACTERS = 66, 6  # of the legend below a figure of 3.5 inches
_LEGEND_ROW, _LEGEND_ROWS = 0.14, 3  # inches a row, and the rows for which the figure has room
_FAR = 1.5  # spans of the values: a level farther from them would flatten the curves
SAME = 1e-6  # relative: distances that differ by less are those of one length


@styled
def line(dataset: xr.Dataset, *, tolerance: float | None = None, scale: Scale = "auto") -> Figure:
    """Loss along lines through a model, one for each direction, and below it the error where there is one.

    `dataset` is what `slice_results.to_dataset` makes of a curve: variables over (direction, lambda). A dot marks
    the model under the curve's BatchNorm policy, a diamond its own value where that differs; the dashed level is
    that of random guessing, ln C and 100 (1 - 1/C) %, told at the rim where it lies far from all values. A value
    that is not finite breaks its line and is a cross above it. The title has the class of [Xu2024]
    (`shapes.curve_shape` with `tolerance`, by default that of the dataset, else 0) with the number of stationary
    points, of several curves how often each class occurs and the mean number. The upper axis is the distance in
    units of ||theta||; where the directions differ in length, their lengths stand in the legend. The loss is
    logarithmic if told so, or for "auto" if it is positive and spans more than a factor 100.

    Raises UserError for a dataset without loss over (direction, lambda), or a logarithmic `scale` of a loss that
    is not positive.
    """
    check_curve(dataset)
    quantities = [name for name in _LABELS if name in dataset]
    figure = Figure(figsize=(3.5, 1.5 + 1.15 * len(quantities)), layout="constrained")
    ratios = [1.6, 1.0][: len(quantities)]
    panes = figure.subplots(len(quantities), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios})
    for axes, name in zip(panes[:, 0], quantities, strict=True):
        draw_curves(axes, dataset, name, scale=scale if name == "loss" else "linear")
        axes.set_ylabel(label_of(dataset, name))
    panes[-1, 0].set_xlabel("Position λ along the direction")
    _distance_axis(panes[0, 0], relative_lengths(dataset))
    panes[0, 0].set_title(describe(shapes_of(dataset, tolerance), has_guessing="guessing" in dataset.attrs))
    handles, labels = panes[0, 0].get_legend_handles_labels()
    longest = max((len(label) for label in labels), default=0)
    columns = max(1, min(2 if len(labels) < 9 else 3, _LINE_CHARACTERS // (longest + _HANDLE_CHARACTERS)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + _LEGEND_ROW * max(0, rows - _LEGEND_ROWS))
    return figure


@styled
def lines(
    rows: Sequence[Mapping[str, xr.Dataset]], *, tolerance: float | None = None, scale: Scale = "auto"
) -> Figure:
    """Many curves side by side: each of `rows` holds datasets as for `line` by the title of their panel.

    Only the loss is drawn. Each panel has its own range, and in its title the classes of its curves with their
    mean number of stationary points ([Xu2024] Fig. 2), or of up to two curves the class and number of each. The
    legend holds what all panels share; other names of directions stand in their panel, if it has several.
    """
    for row in rows:
        for dataset in row.values():
            check_curve(dataset)
    columns = max(len(row) for row in rows)
    size = (0.3 + _PANE[0] * columns, 0.4 + _PANE[1] * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    panes = figure.subplots(len(rows), columns, squeeze=False)
    share_names = len({tuple(_names(dataset)) for row in rows for dataset in row.values()}) == 1
    for axes in panes.flat:
        axes.set_visible(False)
    key: dict[str, Any] = {}
    for pane_row, row in zip(panes, rows, strict=True):
        for axes, (title, dataset) in zip(pane_row, row.items(), strict=False):
            axes.set_visible(True)
            axes.set_gid(title)
            draw_curves(axes, dataset, "loss", scale=scale, width=0.8, lengths=not share_names)
            axes.set_title(f"{title}\n{_pane_classes(dataset, tolerance)}", size=SMALL)
            handles, labels = axes.get_legend_handles_labels()
            own = 0 if share_names else dataset.sizes["direction"]  # the curves come first
            key |= dict(zip(labels[own:], handles[own:], strict=True))
            if own > 1:
                axes.legend(handles[:own], labels[:own], **_SMALL_LEGEND)
    figure.supxlabel("Position λ along the direction", size=FONT)
    figure.supylabel(label_of(next(iter(rows[0].values())), "loss"), size=FONT)
    figure.legend(list(key.values()), list(key), loc="outside upper center", ncols=max(1, int(size[0])))
    return figure


def check_curve(dataset: xr.Dataset) -> None:
    """Raise UserError for a dataset without loss over directions and positions."""
    if "loss" not in dataset or set(dataset["loss"].dims) != {"direction", "lambda"}:
        has = ", ".join(f"{name} {array.dims}" for name, array in dataset.data_vars.items())
        raise UserError(
            f"A curve is drawn from the variable loss over (direction, lambda); this dataset has {has or 'none'}. "
            "Give what slice_results.to_dataset makes of a curve."
        )


def draw_curves(
    axes: Axes, dataset: xr.Dataset, name: str, *, scale: Scale = "auto", width: float = 1.0, lengths: bool = True
) -> None:
    """One quantity along all directions, with the marks that `line` describes; `lengths` are for the legend."""
    x = dataset["lambda"].values.astype(np.float64)
    y = values_of(dataset, name)
    distances = relative_lengths(dataset)
    lengths = lengths and not _all_same(distances)
    for i, direction in enumerate(_names(dataset)):
        label = f"{direction} ({plain(distances[i], 2)} ‖θ‖)" if lengths else direction
        axes.plot(
            x,
            np.where(np.isfinite(y[i]), y[i], np.nan),
            label=label,
            gid="curve",
            linewidth=width,
            **line_style(i),
        )
    set_scale(axes, y, scale)
    _draw_guessing(axes, dataset, name)
    _draw_model(axes, dataset, name)
    _draw_not_finite(axes, x, y)
    axes.set_xlim(x[0], x[-1])


def values_of(dataset: xr.Dataset, name: str) -> Floats:
    """(k, T): a quantity over direction and position."""
    return dataset[name].transpose("direction", "lambda").values.astype(np.float64)


def set_scale(axes: Axes, values: Floats, scale: Scale) -> None:
    """A linear or logarithmic vertical axis, as `line` says."""
    finite = values[np.isfinite(values)]
    if scale == "log" and not (finite > 0).all():
        raise UserError('scale="log" needs a loss that is positive throughout. Use "auto" or "linear".')
    wide = finite.size > 0 and finite.min() > 0 and finite.max() > _WIDE_RANGE * finite.min()
    if scale == "log" or (scale == "auto" and wide):
        axes.set_yscale("log")


def label_of(dataset: xr.Dataset, name: str) -> str:
    """What a quantity is called on an axis, with its units."""
    return _LABELS.get(name, name) + _UNITS.get(dataset[name].attrs.get("units", ""), "")


def shapes_of(dataset: xr.Dataset, tolerance: float | None = None) -> list[CurveShape]:
    """The class of the loss along every direction; empty where the model's place is no point of the grid.

    `tolerance` (nat) None: that of the dataset, as `lossatlas line` and `mine` write it, else 0.
    """
    if tolerance is None:
        tolerance = float(dataset.attrs.get("tolerance", 0.0))
    x = dataset["lambda"].values.astype(np.float64)
    if np.abs(x).min() > 1e-9:
        return []
    guessing = float(dataset.attrs.get("guessing", math.nan))
    return [curve_shape(x, y, tolerance=tolerance, guessing=guessing) for y in values_of(dataset, "loss")]


def describe(shapes: Sequence[CurveShape], *, has_guessing: bool = True) -> str:
    """The classes of curves in words: class and count of one, how often each and the mean count of several."""
    if len(shapes) != 1:
        return "; ".join(_short(shapes))
    (shape,) = shapes
    if shape.status != "ok":
        return f"No class: {shape.reason}"
    split = f" ({shape.below} below ln C, {shape.above} above)" if has_guessing and shape.count else ""
    return f"{_one(shape)}{split if shape.below + shape.above else ''}"


def relative_lengths(dataset: xr.Dataset) -> Floats:
    """(k,): the length of every direction in units of ||theta||; NaN where the dataset holds no distances."""
    if "distance" not in dataset:
        return np.full(dataset.sizes["direction"], np.nan)
    x = dataset["lambda"].values.astype(np.float64)
    outermost = int(np.abs(x).argmax())
    lengths: Floats = values_of(dataset, "distance")[:, outermost] / abs(x[outermost])
    return lengths


def center_of(dataset: xr.Dataset, which: str = "center") -> dict[str, float]:
    """The model's own values by quantity; empty where the dataset does not know them."""
    found: dict[str, float] = json.loads(dataset.attrs.get(which, "{}"))
    return found


def _names(dataset: xr.Dataset) -> list[str]:
    return [str(name) for name in dataset["direction"].values]


def _all_same(lengths: Floats) -> bool:
    """Whether all lengths are one, or unknown."""
    return bool(np.isnan(lengths).all() or np.ptp(lengths) <= SAME * lengths.max())


def _pane_classes(dataset: xr.Dataset, tolerance: float | None) -> str:
    shapes = shapes_of(dataset, tolerance)
    if not shapes or len(shapes) > 2 or any(shape.status != "ok" for shape in shapes):
        return "\n".join(_short(shapes))
    if len(shapes) == 1:
        return _one(shapes[0])
    return "\n".join(f"{name}: {_one(shape)}" for name, shape in zip(_names(dataset), shapes, strict=True))


def _one(shape: CurveShape) -> str:
    return f"{shape.kind}, {shape.count} stationary point{'' if shape.count == 1 else 's'}"


def _short(shapes: Sequence[CurveShape]) -> list[str]:
    """Classes with their numbers, and the mean number of stationary points over the finite curves."""
    if not shapes:
        return ["the model lies off the grid"]
    kinds = Counter(shape.kind if shape.status == "ok" else "not finite" for shape in shapes)
    names = ", ".join(kind if len(shapes) == 1 else f"{n} {kind}" for kind, n in kinds.most_common())
    counts = [shape.count for shape in shapes if shape.status == "ok"]
    return [names, *([f"{np.mean(counts):.1f} stationary points on average"] if counts else [])]


def _distance_axis(axes: Axes, lengths: Floats) -> None:
    """The upper axis, where one length holds for all directions."""
    if not _all_same(lengths) or not 0 < lengths[0] < math.inf:
        return
    length = float(lengths[0])
    there: Any = lambda x: np.asarray(x) * length  # noqa: E731
    back: Any = lambda d: np.asarray(d) / length  # noqa: E731
    upper = axes.secondary_xaxis("top", functions=(there, back))
    upper.set_xlabel("Distance (‖θ‖)", size=SMALL)
    upper.xaxis.set_major_formatter(FuncFormatter(lambda d, _: f"{abs(d):g}"))
    upper.set_gid("distance")


def _draw_guessing(axes: Axes, dataset: xr.Dataset, name: str) -> None:
    guessing = float(dataset.attrs.get("guessing", math.nan))
    if not math.isfinite(guessing):
        return
    level = guessing if name == "loss" else 100 * (1 - math.exp(-guessing))
    values = values_of(dataset, name)
    seen = values[np.isfinite(values)] if np.isfinite(values).any() else np.array([level])
    onto = np.log if axes.get_yscale() == "log" else np.positive
    low, high, place = (float(onto(v)) for v in (seen.min(), seen.max(), level))
    reach = _FAR * (high - low)
    if low - reach <= place <= high + reach:
        axes.axhline(level, gid="guessing", label="random guessing", zorder=1, **_GUESSING)
        return
    axes.margins(y=0.16)  # room for the words
    unit = {"%": " %", "nat": " nat"}.get(dataset[name].attrs.get("units", ""), "")
    side, arrow = (0.97, "↑") if place > high else (0.03, "↓")
    axes.text(
        0.5,
        side,
        f"random guessing {plain(level)}{unit} {arrow}",
        transform=axes.transAxes,
        ha="center",
        va="top" if place > high else "bottom",
        size=SMALL - 1,
        color=_GUESSING["color"],
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        gid="guessing",
    )


def _draw_model(axes: Axes, dataset: xr.Dataset, name: str) -> None:
    """The model by the curve's own policy, and by its own statistics where that is something else."""
    values = {mark: center_of(dataset, key).get(name) for mark, key in (("centre", "center"), ("checkpoint",) * 2)}
    if values["checkpoint"] == values["centre"]:
        values["checkpoint"] = None
    texts = {"centre": "model", "checkpoint": "model, own statistics"}
    for mark, value in values.items():
        if value is not None and math.isfinite(value):
            axes.plot([0.0], [value], linestyle="none", gid=mark, label=texts[mark], zorder=4, **_MARKS[mark])


def _draw_not_finite(axes: Axes, x: Floats, y: Floats) -> None:
    """A cross at the upper rim where a direction has no finite value."""
    broken = [(i, x[~np.isfinite(line)]) for i, line in enumerate(y) if not np.isfinite(line).all()]
    for k, (i, places) in enumerate(broken):
        axes.plot(
            places,
            np.full(len(places), 0.97),
            transform=axes.get_xaxis_transform(),
            linestyle="none",
            marker="x",
            markersize=3.5,
            color=line_style(i)["color"],
            label="not finite" if k == 0 else None,
            gid="non-finite",
        )

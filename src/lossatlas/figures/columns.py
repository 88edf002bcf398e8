"""One slice of the grid with its phases, and the Hessian trace against the temperature ([Yang2021] Fig. 7e)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from lossatlas.errors import UserError
from lossatlas.figures.captions import explained
from lossatlas.figures.grid import Scale, grid_of, inches_of, prepare_x, scale_of
from lossatlas.figures.panels import has_bleu
from lossatlas.figures.style import (
    DECADES,
    INCH,
    LINE_COLOURS,
    PHASE_COLOURS,
    SMALL,
    TITLE,
    entitle,
    in_units,
    no_value_style,
    number,
    styled,
)
from lossatlas.findings.columns import SHARP, Place, parted, places
from lossatlas.results import axes_of

Floats = NDArray[np.float64]

PANELS = (  # variable, its name on the axis
    ("test_error", "Test error (%)"),
    ("train_loss", "Training loss (nat)"),
    ("ln_hessian_trace", r"$\ln \mathrm{tr}(H)$"),
    ("mode_connectivity", "mc (%)"),
    ("cka", "CKA"),
)
_BLEU = ("bleu", "BLEU")  # of translation, in the place of the test error, as in [Yang2021] appendix D.4
_WIDTH, _PANEL, _STRIP = 3.5, 0.95, 0.16  # inches
_LEGEND_LETTERS = 12  # of the name of the load, in a line
_MARKERS = ("o", "s", "^", "D", "v", "P")


@styled
def column(cells: xr.Dataset, *, peak: float | None = None, title: str = "") -> Figure:
    """Test error, training loss, ln trace, mode connectivity and CKA along one axis, with its phases.

    `cells` is one slice as `findings.columns.cut` returns it: metrics over one axis, their `_se`, and `phase`.
    Bands are one standard error to either side; where there is none (one seed, one curve) there is no band. The
    strip on top has the colour and the name of every cell's phase, and dotted lines mark the edges between I/II
    and III/IV. `peak` is the value of the axis at a double-descent peak: a dashed line through all panels. A
    metric without values is called "not measured"; where BLEU was measured it stands in the place of the test
    error. What the marks mean stands below.

    Raises UserError if the cells lie along no axis or several, or `peak` is no value of it.
    """
    scale = axis_of(cells)
    cells = cells.sortby(scale.name)
    if peak is not None and float(peak) not in scale.values:
        raise UserError(f"peak={peak:g} is no value of {scale.name}: {', '.join(map(number, scale.values))}.")
    top = 0.1 + (0.1 if title else 0.0) + (0.1 if title and peak is not None else 0.0)
    height = top + _STRIP + len(PANELS) * _PANEL + 0.34
    panels = (_BLEU, *PANELS[1:]) if has_bleu(cells) else PANELS
    figure = Figure(figsize=(_WIDTH, height))
    layout = figure.add_gridspec(
        len(PANELS) + 1,
        1,
        left=0.155,
        right=0.975,
        bottom=0.32 / height,
        top=1 - top / height,
        hspace=0.12,
        height_ratios=[_STRIP, *[_PANEL] * len(PANELS)],
    )
    entitle(figure, title)
    phases = cells["phase"].values.astype(str)
    strip = figure.add_subplot(layout[0])
    prepare_x(strip, scale, numbers=False)
    draw_strip(strip, scale, phases)
    edges = _edges(scale, phases)
    for place, (name, label) in enumerate(panels):
        axes = figure.add_subplot(layout[place + 1])
        prepare_x(axes, scale, numbers=place == len(PANELS) - 1)
        axes.set_ylabel(in_units(label, cells, name))
        axes.yaxis.set_label_coords(-0.115, 0.5)
        for edge in edges:
            axes.axvline(edge, color="#808080", linewidth=0.6, linestyle=(0, (1, 1.5)), zorder=1, gid="edge")
        if peak is not None:
            axes.axvline(place_on(scale, peak), gid="peak", **peak_style())
        _draw_metric(axes, scale, cells, name, LINE_COLOURS[place])
    axes.set_xlabel(scale.label)
    if peak is not None:
        strip.annotate(
            "peak",
            (place_on(scale, peak), 1.0),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            size=SMALL - 1,
            color=peak_style()["color"],
        )
    return explained(
        figure,
        of_means(cells, {name: label.removesuffix(" (%)").removesuffix(" (nat)") for name, label in panels}),
        "Dotted: where I or II meets III or IV." if edges else "",
        "Dashed: the peak of the double descent." if peak is not None else "",
        "Hatched: no phase." if (phases == "").any() else "",
        "mc: mode connectivity.",
    )


@styled
def trace_lines(cells: xr.Dataset, *, title: str = "") -> Figure:
    """The ln Hessian trace against the temperature, one line for each load, as in [Yang2021] Fig. 7e.

    `cells` is what `summary.cells` returns, over one load and one temperature axis. Bands are one standard error
    to either side; colours run from the smallest load (dark) to the largest (light), and markers change from line
    to line. A cell without a trace leaves a gap. What the bands mean stands below.

    Raises UserError if the cells have another number of axes, or no trace.
    """
    grid = grid_of(cells)
    values = grid.floats(cells, "ln_hessian_trace").T
    if not np.isfinite(values).any():
        raise UserError("These results hold no Hessian trace. Add hessian to the [measures] of the spec.")
    errors = grid.floats(cells, "ln_hessian_trace_se").T
    height = 2.6 + (TITLE if title else 0.0)
    figure = Figure(figsize=(_WIDTH, height))
    entitle(figure, title)
    left, bottom, right, top = 0.42, 0.32, 2.72, 2.53  # inches
    axes = figure.add_axes((left / _WIDTH, bottom / height, (right - left) / _WIDTH, (top - bottom) / height))
    prepare_x(axes, grid.temperature, numbers=True)
    colours = _ramp(grid.load)
    for k, load in enumerate(grid.load.values):
        _line(axes, grid.temperature, values[k], errors[k], colours[k], _MARKERS[k % len(_MARKERS)], number(load))
    axes.set_xlabel(grid.temperature.label)
    axes.set_ylabel(r"$\ln \mathrm{tr}(H)$")
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    figure.legend(
        title=textwrap.fill(grid.load.label, _LEGEND_LETTERS),
        title_fontsize=SMALL,
        loc="upper left",
        bbox_to_anchor=(right / _WIDTH, top / height),
        labelspacing=0.25,
        borderaxespad=0.3,
    )
    return explained(figure, of_means(cells, {"ln_hessian_trace": r"$\ln \mathrm{tr}(H)$"}))


def has_trace_lines(cells: xr.Dataset) -> bool:
    """Whether two loads and two temperatures or more have a Hessian trace."""
    known = np.isfinite(grid_of(cells).floats(cells, "ln_hessian_trace"))
    return all(int(known.any(axis=axis).sum()) > 1 for axis in (0, 1))


def through_third(labels: xr.Dataset) -> list[Place]:
    """The columns with cells of Phase III and cells of I or II, those with most cells of III first.

    They tell whether training to zero loss pays in Phase III ([Yang2021] Fig. 4).
    """
    phases = labels["phase"]
    columns = [(at, phases.sel(at)) for at in places(labels, *axes_of(labels)[1])]
    through = [(at, int((one == "III").sum())) for at, one in columns if one.isin(SHARP).any()]
    return [at for at, count in sorted(through, key=lambda each: -each[1]) if count]


def of_means(cells: xr.Dataset, names: Mapping[str, str], marks: str = "bands") -> str:
    """What the values of a figure are, and what its `marks` are; `names` are the quantities and their labels."""
    seeds = int(cells["n_ok"].max())
    if seeds < 2:
        return "One seed, so no standard errors." if seeds else ""
    same = int(cells["n_ok"].min()) == seeds
    single = [
        label
        for name, label in names.items()
        if np.isfinite(_floats(cells, name)).any() and not np.isfinite(_floats(cells, f"{name}_se")).any()
    ]
    without = f" (none of {' and '.join(single)}: a single value a cell)" if single else ""
    return (
        f"Means over {'' if same else 'up to '}{seeds} seeds; {marks}: one standard error to either side{without}."
    )


def place_on(scale: Scale, value: float) -> float:
    """Where a value of the axis lies in the plot: the value itself, or its rank."""
    return float(value) if scale.is_log else float(scale.values.index(float(value)))


def axis_of(cells: xr.Dataset) -> Scale:
    """The one axis of a slice; raises UserError where there is none, or several."""
    free = [str(dim) for dim in cells.dims]
    if len(free) != 1 or "role" not in cells[free[0]].attrs:
        raise UserError(
            f"A slice lies along one axis, these cells along {', '.join(free) or 'none'}. "
            "Give what findings.columns.cut returns."
        )
    return scale_of(cells[free[0]])


def draw_strip(axes: Axes, scale: Scale, phases: NDArray[np.str_]) -> None:
    """The phase of every cell by its colour; each run of cells is named where there is room."""
    edges = scale.edges
    span = scale.u_edges[-1] - scale.u_edges[0]
    for k, phase in enumerate(phases):
        style: dict[str, Any] = {"facecolor": PHASE_COLOURS[phase]} if phase in PHASE_COLOURS else no_value_style()
        axes.axvspan(edges[k], edges[k + 1], gid=f"phase {phase}", **{"linewidth": 0.0, **style})
    starts = [0, *np.flatnonzero(phases[1:] != phases[:-1]) + 1]
    for start, end in zip(starts, [*starts[1:], len(phases)], strict=True):
        low, high = scale.u_edges[start], scale.u_edges[end]
        if (high - low) / span * inches_of(axes)[0] * INCH > 0.57 * SMALL * len(phases[start]) + 1:  # bold letters
            middle = scale.from_u(np.array([(low + high) / 2]))[0]
            axes.text(middle, 0.5, phases[start], ha="center", va="center", size=SMALL, weight="bold", gid="name")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_locator(NullLocator())
    axes.tick_params(bottom=False)


def _edges(scale: Scale, phases: NDArray[np.str_]) -> list[float]:
    """Where I/II meets III/IV."""
    return [float(edge) for edge in scale.edges[1:-1][parted(phases)]]


def _draw_metric(axes: Axes, scale: Scale, cells: xr.Dataset, name: str, colour: str) -> None:
    values = _floats(cells, name)
    finite = values[np.isfinite(values)]
    if not len(finite):
        axes.yaxis.set_major_locator(NullLocator())
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center")
        return
    if name == "train_loss" and finite.min() > 0 and finite.max() > DECADES * finite.min():
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    if name == "mode_connectivity":
        axes.axhline(0.0, color="#c0c0c0", linewidth=0.5, zorder=0)
    _line(axes, scale, values, _floats(cells, f"{name}_se"), colour, "o", None).set_gid(name)


def _line(
    axes: Axes, scale: Scale, values: Floats, errors: Floats, colour: Any, marker: str, label: str | None
) -> Line2D:
    """Values with a band of one standard error; a logarithmic axis cannot show a band that reaches zero."""
    low, high = values - errors, values + errors
    if axes.get_yscale() == "log":
        low = np.where(low > 0, low, np.nan)
    axes.fill_between(
        scale.centres, low, high, color=colour, alpha=0.22, linewidth=0.0, where=np.isfinite(low), gid="band"
    )
    (line,) = axes.plot(
        scale.centres, values, color=colour, marker=marker, markersize=2.6, linewidth=1.0, label=label, gid="line"
    )
    return line


def _floats(cells: xr.Dataset, name: str) -> Floats:
    if name not in cells:
        return np.full(tuple(cells.sizes.values()), np.nan)
    return cells[name].values.astype(np.float64)


def _ramp(scale: Scale) -> list[tuple[float, ...]]:
    """Colours of viridis up to 90 %, whose end is too light on white, in the order of the values."""
    norm: Normalize = Normalize(scale.u.min(), scale.u.max() if len(scale.u) > 1 else scale.u.min() + 1)
    return [mpl.colormaps["viridis"](0.9 * float(norm(u))) for u in scale.u]


def peak_style() -> dict[str, Any]:
    """The line at the peak of a double descent."""
    return {"color": "#000000", "linewidth": 0.9, "linestyle": (0, (4, 1.5)), "zorder": 3}

"""What the figures look like: one style, the colours of the phases, marks that mean the same everywhere."""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.patches import Patch

SMALL = 6.0  # points: tick labels and legends
FONT = 7.0  # points: everything else
INCH = 72.0  # points
DECADES = 30.0  # a loss that spans more than this factor is drawn on a logarithmic scale
LETTER = 0.58  # of its size is a letter wide, on average
TITLE = 0.17  # inches: the strip that a title adds at the top of a figure

# DejaVu Sans comes with matplotlib, so a figure looks the same, to the byte, on every machine.
STYLE: Any = {  # Any: matplotlib's own type lists every key, and another list in every version
    "font.family": "DejaVu Sans",
    "font.size": FONT,
    "axes.titlesize": FONT,
    "axes.labelsize": FONT,
    "axes.linewidth": 0.6,
    "axes.titlepad": 3.0,
    "axes.labelpad": 2.0,
    "axes.unicode_minus": True,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.size": 2.0,
    "ytick.major.size": 2.0,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "hatch.linewidth": 0.4,
    "pdf.fonttype": 42,  # text stays text: journals refuse Type 3 fonts
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}

# Warm is sharp, cool is flat. CIE L* is 48, 72, 93, 85, 58, so they differ in grey too; any two are at least 24
# apart (CIE 1976 colour difference), also as a protan, deutan or tritan eye sees them (Machado 2009, severity 1).
PHASE_COLOURS = {
    "I": "#b5545c",
    "II": "#ee9d5e",
    "III": "#f7edb5",
    "IV-A": "#b3d9ec",
    "IV-B": "#4f93b8",
}
# Lines side by side: CIE L* 44, 48, 64, 57, 45, 38 and different hues; with more lines the dashes change.
LINE_COLOURS = ("#2b6f97", "#b5454d", "#cf8a2e", "#4f9a6f", "#7a5aa6", "#5a5a5a")
_NO_VALUE: dict[str, Any] = {"facecolor": "#ebebeb", "edgecolor": "#a0a0a0", "hatch": "//////", "linewidth": 0.0}

_MOST_DECIMALS = 6  # of a number with its error

_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)))

styled = mpl.rc_context(STYLE)  # a decorator: the style holds inside the function and nowhere else


def line_style(place: int) -> dict[str, Any]:
    """The colour and dashes of the line number `place` of several."""
    turn, colour = divmod(place, len(LINE_COLOURS))
    return {"color": LINE_COLOURS[colour], "linestyle": _DASHES[turn % len(_DASHES)]}


def no_value_style() -> dict[str, Any]:
    """How a cell without a value is filled: grey and hatched, unlike every colour of a map."""
    return dict(_NO_VALUE)


def entitle(figure: Figure, title: str, x: float = 0.5) -> None:
    """Put a title into the strip TITLE above all panels, smaller where it is longer than the figure is wide."""
    if not title:
        return
    width, height = figure.get_size_inches()
    fits = width * INCH / (LETTER * len(title))
    centre = x if fits > FONT else 0.5
    figure.suptitle(title, x=centre, y=1 - 0.04 / height, va="top", size=min(FONT, fits))


def in_units(label: str, cells: xr.Dataset, name: str) -> str:
    """A label that says (%), in nats where the variable is: mode connectivity may be that of the loss."""
    is_loss = name in cells and cells[name].attrs.get("units") == "nat"
    return label.replace("(%)", "(nat)") if is_loss else label


def no_value_key(text: str) -> Patch:
    """The legend's entry for such cells."""
    return Patch(**_NO_VALUE, label=text)


def plain(value: float, digits: int = 3) -> str:
    """A measured number in a text, with a true minus sign: −0.123, 4.2e−5."""
    return f"{value:.{digits}g}".replace("-", "−").replace("e−0", "e−").replace("e+0", "e").replace("e+", "e")


def with_error(value: float, error: float, unit: str = "") -> str:
    """`86.26 ± 0.13 %`: the error with two digits and the value with as many decimals; else four digits.

    Where that takes more than six decimals, a power of ten stands for both: `(−3.10 ± 0.12)e−8`; an error below a
    millionth of the value, as of rounding, leaves the value its four digits.
    """
    if math.isnan(value):
        return "not measured"
    tail = f" {unit}" if unit else ""
    if not math.isfinite(value) or not math.isfinite(error) or error <= 0:
        return f"{plain(value, 4)}{' ± 0' if error == 0 else ''}{tail}"
    decimals, power = _decimals(error), 0
    if decimals > _MOST_DECIMALS:
        if error < 10.0**-_MOST_DECIMALS * abs(value):
            return f"{plain(value, 4)} ± {plain(error, 2)}{tail}"
        power = min(0, math.floor(math.log10(max(abs(value), error))))
        value, error = value * 10.0**-power, error * 10.0**-power
        decimals = _decimals(error)
    text = f"{value:.{decimals}f} ± {error:.{decimals}f}"
    return (f"({text})e{power}" if power else text).replace("-", "−") + tail


def _decimals(error: float) -> int:
    """Those that show two digits of an error."""
    return max(0, 1 - math.floor(math.log10(error)))


def number(value: float) -> str:
    """A short name for a number: 1024, 0.05, 5e-4."""
    text = f"{value:.0e}" if 0 < abs(value) < 1e-3 and float(f"{value:.0e}") == value else f"{value:g}"
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa

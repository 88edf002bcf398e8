"""The models on a plane through three of them, and the curve they span: marks for surfaces."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from lossatlas.figures.style import FONT, plain

_MARKERS = ("o", "s", "^")  # shapes, so that no colour has to tell them apart
_MODEL: dict[str, Any] = {
    "gid": "model",
    "linestyle": "none",
    "color": "white",
    "markeredgecolor": "black",
    "markeredgewidth": 0.8,
    "markersize": 5.0,
    "zorder": 6,
}
_CURVE: dict[str, Any] = {"color": "white", "linewidth": 1.2, "zorder": 4, "gid": "curve"}
_AWAY = 8.0  # points: from a mark to its name
_HALO = [withStroke(linewidth=2.4, foreground="black")]
_LETTER = [withStroke(linewidth=1.8, foreground="white")]


def has_models(dataset: xr.Dataset) -> bool:
    """Whether the surface is a plane through models."""
    return {"model_alpha", "model_beta"} <= set(dataset)


def draw_models(axes: Any, dataset: xr.Dataset, quantity: str) -> list[Line2D]:
    """Marks, names and the curve on contours; what the legend shows: every model with its own value."""
    handles = []
    if "curve_alpha" in dataset:
        ways = (dataset["curve_alpha"].values, dataset["curve_beta"].values)
        handles += axes.plot(*ways, label=_curve_name(dataset), path_effects=_HALO, **_CURVE)
    spans = [np.ptp(dataset[name].values) for name in ("alpha", "beta")]
    middle = np.mean([place for _, *place in _places(dataset)], axis=0)
    for k, (name, *place) in enumerate(_places(dataset)):
        handles += axes.plot(*place, marker=_MARKERS[k], label=_told(dataset, quantity, k), **_MODEL)
        outward = (np.array(place) - middle) / spans  # away from the other two, where no curve runs
        offset = _AWAY * outward / np.hypot(*outward)
        letter = {"ha": "center", "va": "center", "weight": "bold", "size": FONT, "zorder": 7}
        axes.annotate(name, place, offset, textcoords="offset points", path_effects=_LETTER, **letter)
    return handles


def draw_models_3d(axes: Any, dataset: xr.Dataset, quantity: str, *, is_log: bool) -> list[Line2D]:
    """The models at their own values, each under a pin with its name, as hills may stand before them.

    A model without a finite value stands only in the legend.
    """
    handles = []
    values = dataset[f"model_{quantity}"].values if f"model_{quantity}" in dataset else np.full(3, np.nan)
    top = axes.get_zlim()[1]
    for k, (name, *place) in enumerate(_places(dataset)):
        height = values[k]
        if is_log:
            height = math.log10(height) if height > 0 else math.nan
        style = _MODEL | {"marker": _MARKERS[k], "label": _told(dataset, quantity, k), "zorder": 20}
        if math.isfinite(height):
            ends = ([x, x] for x in place)
            axes.plot(*ends, [height, top], color="black", linewidth=0.7, zorder=19, gid="pin")
            handles += axes.plot(*([x] for x in (*place, height)), **style)
            letter = {"ha": "center", "va": "bottom", "weight": "bold", "size": FONT, "zorder": 21}
            axes.text(*place, top, name, path_effects=_LETTER, **letter)
        else:
            handles.append(Line2D([], [], **style))
    return handles


def _places(dataset: xr.Dataset) -> list[tuple[str, float, float]]:
    columns = (dataset[name].values.tolist() for name in ("model", "model_alpha", "model_beta"))
    return list(zip(*columns, strict=True))


def _told(dataset: xr.Dataset, quantity: str, place: int) -> str:
    """`A: loss 0.123 ± 0.004 nat`."""
    name = str(dataset["model"].values[place])
    if f"model_{quantity}" not in dataset:
        return name
    value = dataset[f"model_{quantity}"][place]
    if not math.isfinite(value.item()):
        return f"{name}: {quantity} not finite"
    error = dataset[f"model_{quantity}_se"][place].item() if f"model_{quantity}_se" in dataset else math.nan
    spread = f" ± {plain(error, 2)}" if math.isfinite(error) else ""
    units = value.attrs.get("units", "1")
    return f"{name}: {quantity} {plain(value.item())}{spread}{'' if units == '1' else f' {units}'}"


def _curve_name(dataset: xr.Dataset) -> str:
    kind = {"bezier": "Bézier curve", "chain": "polygonal chain"}[dataset.attrs["curve"]]
    ends = dataset["model"].values
    return f"{kind} {ends[0]} – {ends[1]}, bend {ends[2]}"

"""How models relate: loss and error along the paths between them, and matrices of how alike they are."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lossatlas.errors import UserError
from lossatlas.figures.style import SMALL, line_style, styled, with_error
from lossatlas.pair_results import COMPARED

_PER_ROW = 4  # panels
_LABELS = {"loss": "Loss (nat)", "error": "Error (%)"}


@styled
def connection(dataset: xr.Dataset) -> Figure:
    """Loss and error along every path of every pair of models.

    `dataset` is what `pair_results.connections` makes: variables over (pair, path, t). A panel's title has the
    mode connectivity of each path with its standard error. Raises UserError for another dataset.
    """
    names = [name for name in _LABELS if name in dataset and {"pair", "path", "t"} <= set(dataset[name].dims)]
    if not names:
        raise UserError("A connection is drawn from loss or error over (pair, path, t); this dataset has neither.")
    pairs = dataset["pair"].values.tolist()
    columns = min(_PER_ROW, len(pairs))
    blocks = math.ceil(len(pairs) / columns)
    size = (0.7 + 1.9 * columns, 0.5 + 1.3 * len(names) * blocks)
    figure = Figure(figsize=size, layout="constrained")
    panes = figure.subplots(len(names) * blocks, columns, sharex=True, squeeze=False)
    for axes in panes.flat:
        axes.set_visible(False)
    for place, pair in enumerate(pairs):
        block, column = divmod(place, columns)
        here = dataset.sel(pair=pair)
        for row, name in enumerate(names, block * len(names)):
            axes = panes[row, column]
            axes.set_visible(True)
            for i, path in enumerate(here["path"].values.tolist()):
                values = here[name].sel(path=path).values
                axes.plot(here["t"].values, values, gid=f"{name} {pair} {path}", label=path, **line_style(i))
            axes.set_ylabel(_LABELS[name] if column == 0 else "")
        panes[block * len(names), column].set_title(f"models {pair}\n{_connectivity(here)}", size=SMALL)
        panes[(block + 1) * len(names) - 1, column].set_xlabel("Position t on the path")
    figure.legend(*panes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@styled
def comparison(dataset: xr.Dataset) -> Figure:
    """Every measure between all pairs of models as a matrix with its numbers and standard errors.

    `dataset` is what `pair_results.comparison` makes: variables over (model, model_b). Raises UserError for
    another dataset.
    """
    names = [name for name in COMPARED if name in dataset and dataset[name].dims == ("model", "model_b")]
    if not names:
        raise UserError(f"A comparison is drawn from {', '.join(COMPARED)} over (model, model_b).")
    models = dataset["model"].values.tolist()
    side = 0.5 * len(models) + 0.6
    figure = Figure(figsize=(0.4 + 3 * max(side, 1.7), 0.4 + 2 * side), layout="constrained")
    for axes, name in zip(figure.subplots(2, 3).flat, names, strict=False):
        values, errors = dataset[name].values, dataset[f"{name}_se"].values
        both = np.where(np.isnan(values), values.T, values)
        axes.imshow(both, cmap="Blues", alpha=0.6, gid=name)
        for i, j in zip(*np.nonzero(np.isfinite(values)), strict=True):
            text = with_error(float(values[i, j]), float(errors[i, j])).replace(" ± ", "\n± ")
            axes.text(j, i, text, ha="center", va="center", size=SMALL - 1)
        units = dataset[name].attrs["units"]
        axes.set_title(name.replace("_", " ") + ("" if units == "1" else f" ({units})"))
        axes.set_xticks(range(len(models)), models)
        axes.set_yticks(range(len(models)), models)
    return figure


def _connectivity(here: xr.Dataset) -> str:
    parts = []
    for path in here["path"].values.tolist():
        found = here.sel(path=path)
        value, error = found["mode_connectivity"].item(), found["mode_connectivity_se"].item()
        told = f"mc {with_error(value, error, '%')}" if math.isfinite(value) else found["status"].item()
        parts.append(f"{path}: {told}")
    return "\n".join(parts)

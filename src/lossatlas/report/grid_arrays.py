"""The numbers of a grid as arrays of the page: cells, seeds, pairs, curves, training histories, densities.

Everything lies over (further axes ..., temperature, load) with ascending values, then what it has of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.colors import LogNorm, to_hex
from numpy.typing import NDArray

from lossatlas import phases, summary
from lossatlas.figures.grid import scale_of
from lossatlas.figures.panels import METRICS, colour_limits, metrics_of
from lossatlas.figures.style import LINE_COLOURS, PHASE_COLOURS, number
from lossatlas.phase_rule import METRICS as RULED
from lossatlas.phase_rule import PHASES
from lossatlas.report import densities
from lossatlas.report.arrays import Arrays
from lossatlas.results import axes_of

Floats = NDArray[np.float64]

NO_AXIS = "none"  # stands for the load or the temperature of a grid that has none
BARS = {  # colour bars without TeX, in few letters
    "test_accuracy": "%",
    "bleu": "",
    "train_loss": "nat",
    "mode_connectivity": "%",
    "cka": "",
    "ln_hessian_eig": "ln λₘₐₓ(H)",
    "ln_hessian_trace": "ln tr(H)",
    "distance": "‖θ − θ′‖₂",
}
TITLES = {"distance": "ℓ₂ distance"}
CURVES = ("train_error", "test_error", "train_loss", "test_loss")
HISTORY = ("running_loss", "running_error", "running_lr")


def content(tree: xr.DataTree, cells: xr.Dataset, labels: xr.Dataset, arrays: Arrays) -> dict[str, Any]:
    """Put all numbers into `arrays`; returns the names, units and texts that belong to them."""
    order = order_of(labels)
    return {
        **frame(labels),
        "cells": _cells(tree, cells, labels.sortby(order), order, arrays),
        "panels": _panels(cells),
        "seeds": _seeds(tree, order, arrays),
        "pairs": _pairs(tree, order, arrays),
        "histories": _group(tree, "history", HISTORY, "epoch", [*order, "seed", "epoch"], arrays),
        "densities": densities.content(tree, order, arrays),
    }


def order_of(labels: xr.Dataset) -> list[str]:
    """The axes as the page has them: further ones, the temperature, the load."""
    load, temperature = axes_of(labels)
    return [*load[1:], *temperature[1:], *temperature[:1], *load[:1]]


def frame(labels: xr.Dataset) -> dict[str, Any]:
    """What every map needs: the axes with their values and places, the phases, the colours."""
    load, temperature = axes_of(labels)
    order = order_of(labels)
    return {
        "axes": [_axis(labels[name]) for name in order],
        "further": order[: len(order) - len(load[:1]) - len(temperature[:1])],
        "load": load[0] if load else NO_AXIS,
        "temperature": temperature[0] if temperature else NO_AXIS,
        "phases": list(PHASES),
        "colours": {
            "phases": PHASE_COLOURS,
            "lines": list(LINE_COLOURS),
            "maps": colour_maps(sorted({metric.colours for metric in METRICS})),
        },
    }


def _axis(coordinate: xr.DataArray) -> dict[str, Any]:
    scale = scale_of(coordinate)
    return {
        "name": scale.name,
        "label": scale.label,
        "role": coordinate.attrs["role"],
        "values": list(scale.values),
        "texts": [number(value) for value in scale.values],
        "u": scale.u.tolist(),
        "edges": scale.u_edges.tolist(),
        "is_log": scale.is_log,
        "is_inverted": scale.is_inverted,
    }


def colour_maps(names: Iterable[str]) -> dict[str, list[str]]:
    """256 colours of each map of matplotlib, from its lower end to its upper one."""
    places = np.linspace(0, 1, 256)
    return {name: [to_hex(colour) for colour in mpl.colormaps[name](places)] for name in names}


def _cells(
    tree: xr.DataTree, cells: xr.Dataset, labels: xr.Dataset, order: list[str], arrays: Arrays
) -> dict[str, Any]:
    """Every metric with its standard error, and the labels."""
    every = cells.sortby(order)
    if "cells" in tree.children:
        extra = tree["cells"].to_dataset().reindex({name: every[name] for name in order})
        every = every.merge(extra[[name for name in extra.data_vars if name not in every]])
    named = [str(name) for name in every.data_vars if f"{name}_se" in every]
    for name in named:
        for each in (name, f"{name}_se"):
            arrays.add(f"cell.{each}", every[each].transpose(*order).values)
    for name in RULED:
        arrays.add(f"rule.{name}", labels[name].transpose(*order).values)
    arrays.add("cell.n_ok", labels["n_ok"].transpose(*order).values, "<f8")
    add_labels(labels, order, arrays, "label")
    texts = {
        name: arrays.add_texts(f"label.{name}", labels[name].transpose(*order).values)
        for name in ("status", "reason")
    }
    return {"metrics": [described(every[name]) for name in named], "texts": texts}


def add_labels(labels: xr.Dataset, order: list[str], arrays: Arrays, prefix: str) -> None:
    """Keep phases (their places in PHASES), margins and probabilities under names with this prefix."""
    codes = np.vectorize(PHASES.index, otypes=[np.uint8])(labels["phase"].transpose(*order).values.astype(str))
    arrays.add(f"{prefix}.phase", codes, "|u1")
    for name in ("margin", "probability"):
        arrays.add(f"{prefix}.{name}", labels[name].transpose(*order).values)


def _panels(cells: xr.Dataset) -> list[dict[str, Any]]:
    """The seven maps, and BLEU where it was measured, with colours and limits (none where no cell has a value)."""
    found = []
    for metric in dict.fromkeys((*METRICS, *metrics_of(cells))):
        values = cells[metric.name].values if metric.name in cells else np.array([np.nan])
        panel: dict[str, Any] = {
            "name": metric.name,
            "title": TITLES.get(metric.name, metric.title),
            "bar": BARS.get(metric.name, metric.bar),
            "colours": metric.colours,
            "measured": metric.name in cells,
        }
        if metric.name in cells and cells[metric.name].attrs.get("units") == "nat":
            panel["bar"] = panel["bar"].replace("%", "nat")
        if np.isfinite(values).any():
            limits = colour_limits(metric, values, "data")
            panel |= {"low": limits.vmin, "high": limits.vmax, "is_log": isinstance(limits, LogNorm)}
        found.append(panel)
    return found


def _seeds(tree: xr.DataTree, order: list[str], arrays: Arrays) -> dict[str, Any]:
    """Everything that was measured of each model; and the resamplings of so many seeds."""
    models = tree["models"].to_dataset().sortby(order)
    dims = [*order, "seed"]
    named = [str(n) for n, v in models.data_vars.items() if set(v.dims) == set(dims) and v.dtype.kind in "biuf"]
    for name in named:
        arrays.add(f"seed.{name}", models[name].transpose(*dims).values)
    has_ranks = bool(_with("rank", models, ["hessian_eigs"]))
    if has_ranks:
        arrays.add("seed.hessian_eigs", models["hessian_eigs"].transpose(*dims, "rank").values)
    texts = {
        name: arrays.add_texts(f"seed.{name}", models[name].transpose(*dims).values)
        for name in ("status", "reason")
        if name in models
    }
    held = summary.ok_values(tree)
    for n in sorted({int(n) for n in held.ok.sum(axis=-1).flat if n > 1}):
        counts, shares = phases.resamplings(n, draws=phases.DRAWS, seed=0)
        arrays.add(f"resampling.{n}.counts", counts, "|u1")
        arrays.add(f"resampling.{n}.shares", shares)
    return {
        "values": [int(seed) for seed in models["seed"].values],
        "usable": list(summary.USABLE),
        "metrics": [described(models[name]) for name in named],
        "ranks": int(models.sizes["rank"]) if has_ranks else 0,
        "texts": texts,
    }


def _pairs(tree: xr.DataTree, order: list[str], arrays: Arrays) -> dict[str, Any]:
    """What was measured of each pair seed < seed_b, over one dimension `pair`; and the curves between them."""
    if "pairs" not in tree.children:
        return {"values": [], "metrics": [], "curves": [], "t": [], "texts": {}}
    models = tree["models"].to_dataset().sortby(order)
    dims = [*order, "seed", "seed_b"]
    places = {name: models[name] for name in order} | {
        "seed": models["seed"].values,
        "seed_b": models["seed"].values,
    }
    seeds = models["seed"].values
    first, second = np.triu_indices(len(seeds), 1)
    pairs = tree["pairs"].to_dataset()
    texts = {
        name: arrays.add_texts(
            f"pair.{name}",
            pairs[name].reindex(places, fill_value="").transpose(*dims).values[..., first, second],
        )
        for name in ("status", "reason")
        if name in pairs
    }
    pairs = pairs.drop_vars(("status", "reason"), errors="ignore").reindex(places)
    named = [str(n) for n, v in pairs.data_vars.items() if set(v.dims) == set(dims) and v.dtype.kind in "biuf"]
    for name in named:
        arrays.add(f"pair.{name}", pairs[name].transpose(*dims).values[..., first, second])
    found: dict[str, Any] = {"curves": [], "t": []}
    if "curves" in tree.children:
        curves = tree["curves"].to_dataset()
        t = curves["t"].values.tolist()
        curves = curves[_with("t", curves, CURVES)].reindex(places)
        for curve, values in curves.data_vars.items():
            arrays.add(f"curve.{curve}", values.transpose(*dims, "t").values[..., first, second, :], "<f4")
        found = {"curves": [described(v) for v in curves.data_vars.values()], "t": t}
    listed = [[int(seeds[a]), int(seeds[b])] for a, b in zip(first, second, strict=True)]
    return {"values": listed, "metrics": [described(pairs[name]) for name in named], "texts": texts, **found}


def _with(dim: str, dataset: xr.Dataset, names: Iterable[str]) -> list[str]:
    """The variables that have a dimension: where not one model or pair has a record, they are without it."""
    return [name for name in names if name in dataset and dim in dataset[name].dims]


def _group(
    tree: xr.DataTree, group: str, names: tuple[str, ...], along: str, dims: list[str], arrays: Arrays
) -> dict[str, Any]:
    """Some variables of a group in single precision: they are drawn, not computed with."""
    if group not in tree.children:
        return {"metrics": [], along: []}
    dataset = tree[group].to_dataset().sortby(dims[:-2])
    kept = _with(along, dataset, names)
    for name in kept:
        arrays.add(f"{group}.{name}", dataset[name].transpose(*dims).values, "<f4")
    return {"metrics": [described(dataset[name]) for name in kept], along: dataset[along].values.tolist()}


def described(variable: xr.DataArray) -> dict[str, str]:
    """The name of a variable, and what people and units call it."""
    attrs = variable.attrs
    return {
        "name": str(variable.name),
        "long_name": str(attrs.get("long_name", variable.name)),
        "units": str(attrs.get("units", "1")),
        "estimator": str(attrs.get("estimator", "")),
    }

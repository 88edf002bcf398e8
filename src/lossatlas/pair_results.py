"""How two or more models relate, with names and units: paths between them, and how alike they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from lossatlas.results import Quantity, put, put_with_error
from lossatlas.slice_results import SCHEMA_VERSION

if TYPE_CHECKING:
    from lossatlas.landscape.curve_fitting import CurveFit
    from lossatlas.landscape.estimate import Estimate
    from lossatlas.landscape.paths import Connectivity, PathSummary, PathValues

Pair = tuple[int, int]  # numbers of models, from 1

_MEAN = "mean over the samples"
_SE = "s / sqrt(N) over the samples"
_UNITS = {"loss": "nat", "error": "%"}
_T = {"long_name": "position along the path", "units": "1"}
_ARC_LENGTH = Quantity("arc_length", "1", "length of the path from t = 0", "exact")

COMPARED = {
    "distance": ("1", "l2 distance of the parameters", "exact"),
    "disagreement": ("%", "different predictions", _MEAN),
    "jensen_shannon": ("nat", "Jensen-Shannon divergence of the predictions", _MEAN),
    "output_cosine": ("1", "cosine of the outputs", _MEAN),
    "cka": ("1", "linear CKA of the softmax outputs", "jackknife over 20 runs of samples"),
    "linear_barrier": ("nat", "barrier of the loss on the straight line", "paired over the samples"),
}


@dataclass(frozen=True, eq=False)
class Connection:
    """A path between two models: what was measured along it, and its connectivity."""

    models: Pair
    path: str  # line, bezier or chain
    values: PathValues
    connectivity: Connectivity


def curve_fit(fit: CurveFit) -> xr.Dataset:
    """How the fit of a path went, over `epoch`."""
    dataset = xr.Dataset(coords={"epoch": np.arange(len(fit.losses))})
    quantity = Quantity("fit_loss", "nat", "mean loss along the curve", "mean over random t")
    put(dataset, quantity, fit.losses, "epoch")
    attrs = {"path": fit.kind, "epochs": fit.epochs, "seed": fit.seed}
    return dataset.assign_attrs(attrs, status=fit.status, reason=fit.reason)


def path_values(found: PathValues) -> xr.Dataset:
    """Loss and every extra over `t`, with standard errors where the values of the samples are known."""
    dataset = xr.Dataset(coords={"t": np.asarray(found.ts)})
    dataset["t"].attrs = dict(_T)
    for name, values in found.values.items():
        quantity = Quantity(name, _UNITS.get(name, "1"), name, _MEAN)
        samples = np.asarray(found.samples.get(name, np.empty((len(found.ts), 0))))  # (T, N)
        if samples.shape[1] > 1:
            errors = samples.std(axis=1, ddof=1) / np.sqrt(samples.shape[1])
            put_with_error(dataset, quantity, values, errors, "t", how=_SE)
        else:
            put(dataset, quantity, values, "t")
    put(dataset, _ARC_LENGTH, found.positions, "t")
    return dataset.assign_attrs(kind="path", path=found.kind, batchnorm=found.batchnorm)


def path_summary(found: PathSummary) -> xr.Dataset:
    """One quantity along a path in a few numbers, in its own units; scalars."""
    dataset = xr.Dataset()
    own = "that of the quantity"
    columns = (
        ("min", own, "smallest value", found.min),
        ("max", own, "largest value", found.max),
        ("t_max", "1", "where it is largest", found.t_max),
        ("mean", own, "mean over the points", found.mean),
        ("integral", own, "mean over the length", found.integral),
        ("barrier", own, "largest excess over the line between the ends", found.barrier),
        ("length", "1", "l2 length of the path", found.length),
    )
    for name, units, people, value in columns:
        put(dataset, Quantity(name, units, people, "over the points of the path"), value)
    return dataset


def connectivity(found: Connectivity) -> xr.Dataset:
    """The mode connectivity of one path; scalars."""
    dataset = xr.Dataset()
    estimator = f"rule {found.rule}"
    quantity = Quantity("mode_connectivity", "%", "mode connectivity", estimator)
    put_with_error(dataset, quantity, found.value, found.stderr, how="paired over the samples")
    put(dataset, Quantity("t_star", "1", "where the curve deviates most", estimator), found.t_star)
    at_end = float(found.t_star_at_end)
    put(dataset, Quantity("t_star_at_end", "1", "1: an end deviates more", estimator), at_end)
    for name, value in zip(("first_end", "second_end"), found.ends, strict=True):
        put(dataset, Quantity(name, "%", f"value at the {name.replace('_', ' ')}", _MEAN), value)
    return dataset.assign_attrs(status=found.status, reason=found.reason)


def connections(found: Sequence[Connection]) -> xr.Dataset:
    """Loss and error over (pair, path, t), and the numbers of every path over (pair, path).

    The barrier of a quantity is its largest excess over the straight line between its values at the two ends.
    """
    pairs = list(dict.fromkeys(connection.models for connection in found))
    kinds = list(dict.fromkeys(connection.path for connection in found))
    by_place = {(connection.models, connection.path): connection for connection in found}
    rows = [[by_place[pair, kind] for kind in kinds] for pair in pairs]
    ts = np.asarray(found[0].values.ts)
    coords = {"pair": [f"{a} - {b}" for a, b in pairs], "path": kinds, "t": ts}
    dataset = xr.Dataset(coords=coords)
    dataset["t"].attrs = dict(_T)
    for name in found[0].values.values:
        units = _UNITS.get(name, "1")
        values = np.array([[np.asarray(c.values.values[name]) for c in row] for row in rows])
        put(dataset, Quantity(name, units, name, _MEAN), values, "pair", "path", "t")
        straight = values[..., :1] + (values[..., -1:] - values[..., :1]) * ts
        barrier = Quantity(f"{name}_barrier", units, f"barrier of the {name}", "largest excess over the line")
        put(dataset, barrier, (values - straight).max(-1), "pair", "path")
    lengths = [[np.asarray(c.values.positions) for c in row] for row in rows]
    put(dataset, _ARC_LENGTH, lengths, "pair", "path", "t")
    numbers = (
        ("mode_connectivity", "%", "mode connectivity", "value"),
        ("mode_connectivity_se", "%", "standard error of the mode connectivity", "stderr"),
        ("t_star", "1", "where the error deviates most from the mean of the ends", "t_star"),
        ("t_star_at_end", "1", "1: an end deviates more", "t_star_at_end"),
    )
    for name, units, people, attribute in numbers:
        column = [[float(getattr(c.connectivity, attribute)) for c in row] for row in rows]
        put(dataset, Quantity(name, units, people, "largest inner deviation"), column, "pair", "path")
    for name in ("status", "reason"):
        texts = np.array([[getattr(c.connectivity, name) for c in row] for row in rows], dtype=object)
        put(dataset, Quantity(name, "1", name, "ok, or what went wrong"), texts, "pair", "path")
    return dataset.assign_attrs(schema_version=SCHEMA_VERSION, kind="connection")


def comparison(
    models: Sequence[Mapping[str, Estimate]], found: Mapping[Pair, Mapping[str, Estimate]], ensemble: Estimate
) -> xr.Dataset:
    """Loss and error over `model`, and every measure over (model, model_b): NaN unless model < model_b."""
    numbers = np.arange(1, len(models) + 1)
    dataset = xr.Dataset(coords={"model": numbers, "model_b": numbers})
    for name in models[0]:
        units = _UNITS.get(name, "1")
        own = [[getattr(m[name], part) for m in models] for part in ("value", "stderr")]
        put_with_error(dataset, Quantity(name, units, name, _MEAN), own[0], own[1], "model", how=_SE)
    for name, (units, people, estimator) in COMPARED.items():
        values, errors = (np.full((len(models), len(models)), np.nan) for _ in range(2))
        for (a, b), estimates in found.items():
            values[a - 1, b - 1] = estimates[name].value
            errors[a - 1, b - 1] = estimates[name].stderr
        quantity = Quantity(name, units, people, estimator)
        put_with_error(dataset, quantity, values, errors, "model", "model_b", how=_SE)
    averaged = Quantity("ensemble_error", "%", "error of the averaged predictions", _MEAN)
    put_with_error(dataset, averaged, ensemble.value, ensemble.stderr, how=_SE)
    return dataset.assign_attrs(schema_version=SCHEMA_VERSION, kind="comparison")

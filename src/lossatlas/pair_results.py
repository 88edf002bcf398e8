"""How two or more models relate, with names and units: paths between them, and how alike they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from lossatlas.local_results import SCHEMA_VERSION, put
from lossatlas.results import Quantity

if TYPE_CHECKING:
    from lossatlas.landscape.estimate import Estimate
    from lossatlas.landscape.paths import Connectivity, PathValues

Pair = tuple[int, int]  # numbers of models, from 1

_MEAN = "mean over the samples"
_SE = "s / sqrt(N) over the samples"
_UNITS = {"loss": "nat", "error": "%"}

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
    dataset["t"].attrs = {"long_name": "position along the path", "units": "1"}
    for name in found[0].values.values:
        units = _UNITS.get(name, "1")
        values = np.array([[np.asarray(c.values.values[name]) for c in row] for row in rows])
        put(dataset, Quantity(name, units, name, _MEAN), values, "pair", "path", "t")
        straight = values[..., :1] + (values[..., -1:] - values[..., :1]) * ts
        barrier = Quantity(f"{name}_barrier", units, f"barrier of the {name}", "largest excess over the line")
        put(dataset, barrier, (values - straight).max(-1), "pair", "path")
    lengths = [[np.asarray(c.values.positions) for c in row] for row in rows]
    put(
        dataset,
        Quantity("arc_length", "1", "length of the path from t = 0", "exact"),
        lengths,
        "pair",
        "path",
        "t",
    )
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
        put(dataset, Quantity(name, units, name, _MEAN), [m[name].value for m in models], "model")
        error = Quantity(f"{name}_se", units, f"standard error of the {name}", _SE)
        put(dataset, error, [m[name].stderr for m in models], "model")
    for name, (units, people, estimator) in COMPARED.items():
        values, errors = (np.full((len(models), len(models)), np.nan) for _ in range(2))
        for (a, b), estimates in found.items():
            values[a - 1, b - 1] = estimates[name].value
            errors[a - 1, b - 1] = estimates[name].stderr
        put(dataset, Quantity(name, units, people, estimator), values, "model", "model_b")
        error = Quantity(f"{name}_se", units, f"standard error of the {people}", _SE)
        put(dataset, error, errors, "model", "model_b")
    put(dataset, Quantity("ensemble_error", "%", "error of the averaged predictions", _MEAN), ensemble.value)
    put(dataset, Quantity("ensemble_error_se", "%", "its standard error", _SE), ensemble.stderr)
    return dataset.assign_attrs(schema_version=SCHEMA_VERSION, kind="comparison")

"""Curves and surfaces with names, units and provenance: the seam between their numbers and xarray."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from lossatlas.errors import FileError
from lossatlas.results import Quantity

if TYPE_CHECKING:
    from lossatlas.landscape.slices import Curve, Surface

SCHEMA_VERSION = 1

_ESTIMATOR = "mean over the samples at every point"
_AXES = {
    "lambda": ("position along the direction", "1"),
    "alpha": ("position along the first direction", "1"),
    "beta": ("position along the second direction", "1"),
    "direction": ("direction", "1"),
}
_KNOWN = {"loss": ("nat", "loss"), "error": ("%", "error")}
_DISTANCE = Quantity("distance", "||theta||", "distance from the centre", "exact")


def to_dataset(result: Curve | Surface, *, units: Mapping[str, str] | None = None) -> xr.Dataset:
    """The dataset of a slice: every quantity over (direction, lambda) or (alpha, beta), and the distance.

    `units` names those of extras other than the loss (nat) and the error (%), or of a loss in other units. What
    the slice knows beside its numbers stands in the attributes; the directions, centre and checkpoint as JSON.
    """
    is_curve = hasattr(result, "positions")
    coords: dict[str, Any] = (
        {"direction": [d.name for d in result.directions], "lambda": np.asarray(result.positions)}  # type: ignore[union-attr]
        if is_curve
        else {"alpha": np.asarray(result.alphas), "beta": np.asarray(result.betas)}  # type: ignore[union-attr]
    )
    dims = tuple(coords)
    dataset = xr.Dataset(coords=coords)
    for name, values in result.values.items():
        known_units, long_name = _KNOWN.get(name, ("1", name))
        quantity = Quantity(name, (units or {}).get(name, known_units), long_name, _ESTIMATOR)
        dataset[name] = (dims, np.asarray(values), quantity.attrs())
    dataset[_DISTANCE.name] = (dims, np.asarray(result.distances), _DISTANCE.attrs())
    for name in dims:
        long_name, unit = _AXES[name]
        dataset[name].attrs = {"long_name": long_name, "units": unit}
    dataset.attrs = {
        "schema_version": SCHEMA_VERSION,
        "slice": "curve" if is_curve else "surface",
        "directions": json.dumps([dataclasses.asdict(d) for d in result.directions], sort_keys=True),
        "center": json.dumps(dict(result.center)),
        "checkpoint": json.dumps(dict(result.checkpoint)),
        "guessing": result.guessing,
        "non_finite": result.non_finite,
        "batchnorm": result.batchnorm,
        "method": result.method,
    }
    if not is_curve:
        dataset.attrs["cosine"] = result.cosine  # type: ignore[union-attr]
    return dataset


def from_dataset(dataset: xr.Dataset) -> Curve | Surface:
    """The slice of a dataset that `to_dataset` made; raises FileError for another one."""
    attrs = dataset.attrs
    if attrs.get("schema_version") != SCHEMA_VERSION or attrs.get("slice") not in ("curve", "surface"):
        raise FileError(
            f"The dataset is no curve or surface of schema version {SCHEMA_VERSION} (it says "
            f"slice={attrs.get('slice')!r}, schema_version={attrs.get('schema_version')!r}). Compute it again."
        )
    import torch

    from lossatlas.landscape.directions import DirectionInfo
    from lossatlas.landscape.slices import Curve, Surface

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(np.array(dataset[name].values, dtype=np.float64))

    directions = tuple(DirectionInfo(**info) for info in json.loads(attrs["directions"]))
    method: Literal["direct", "split first layer"] = attrs["method"]
    common: dict[str, Any] = {
        "values": {str(name): tensor(str(name)) for name in dataset.data_vars if name != _DISTANCE.name},
        "center": json.loads(attrs["center"]),
        "checkpoint": json.loads(attrs["checkpoint"]),
        "directions": directions,
        "guessing": float(attrs["guessing"]),
        "batchnorm": attrs["batchnorm"],
        "method": method,
    }
    if attrs["slice"] == "curve":
        return Curve(positions=tensor("lambda"), **common)
    return Surface(alphas=tensor("alpha"), betas=tensor("beta"), cosine=float(attrs["cosine"]), **common)

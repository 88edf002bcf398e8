"""Curves and surfaces with names, units and provenance, what lies on them, and their shapes; without torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from lossatlas.errors import FileError
from lossatlas.results import Quantity, put, put_with_error

if TYPE_CHECKING:
    from lossatlas.landscape.planes import Plane
    from lossatlas.landscape.shapes import CurveShape, Monotony
    from lossatlas.landscape.slices import Curve, Surface
    from lossatlas.landscape.surface_shapes import SurfaceShape
    from lossatlas.landscape.trajectories import Trajectory

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
_OWN = "mean over the samples at the model's own parameters"


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


def plane_to_dataset(plane: Plane) -> xr.Dataset:
    """The dataset of a plane through three models: that of its surface, and the models over `model`.

    `model_alpha` and `model_beta` are the places, `model_loss` and so on the values at the models' own parameters
    with `_se`, their standard errors; `curve_alpha`, `curve_beta` over `t` the curve with the third model as bend.
    """
    dataset = to_dataset(plane.surface).assign_coords(model=list(plane.names))
    dataset["model"].attrs = {"long_name": "model", "units": "1"}
    for name, people in (("alpha", f"towards {plane.names[1]}"), ("beta", "perpendicular to it")):
        dataset[name].attrs["long_name"] = f"l2 distance from {plane.names[0]}, {people}"
    places = dict(zip(("alpha", "beta"), plane.coordinates.T, strict=True))
    columns = [(f"model_{axis}", "1", f"{axis} of the model", places[axis], "exact") for axis in places]
    for name, values in plane.values.items():
        units, people = _KNOWN.get(name, ("1", name))
        columns.append((f"model_{name}", units, f"{people} of the model", values, _OWN))
        if name in plane.stderrs:
            se = (
                f"standard error of the {people} of the model",
                plane.stderrs[name],
                "s / sqrt(N) over the samples",
            )
            columns.append((f"model_{name}_se", units, *se))
    for name, units, people, values, estimator in columns:
        dataset[name] = ("model", np.asarray(values), Quantity(name, units, people, estimator).attrs())
    if plane.curve is not None:
        ts, way = plane.path()
        dataset = dataset.assign_coords(t=np.asarray(ts))
        dataset["t"].attrs = {"long_name": "position along the curve", "units": "1"}
        for name, values in zip(("curve_alpha", "curve_beta"), way.T, strict=True):
            quantity = Quantity(name, "1", f"{name[6:]} of the curve", "exact")
            dataset[name] = ("t", np.asarray(values), quantity.attrs())
    return dataset.assign_attrs(kind="plane", curve=plane.curve or "none")


def trajectory(found: Trajectory) -> xr.Dataset:
    """Checkpoints on a plane over `step`; `merge` it into the dataset of the surface."""
    dataset = xr.Dataset()
    columns = (
        ("alpha", "1", "first coordinate on the plane", found.coordinates[:, 0], "least squares"),
        ("beta", "1", "second coordinate on the plane", found.coordinates[:, 1], "least squares"),
        ("share", "1", "share of its squared distance in the plane", found.shares, "least squares"),
        ("loss", "nat", "loss of the checkpoint", found.loss, "mean over the samples"),
        ("plane_loss", "nat", "loss at its projection", found.plane_loss, "mean over the samples"),
    )
    for name, units, people, values, estimator in columns:
        put(dataset, Quantity(f"trajectory_{name}", units, people, estimator), values, "step")
    return dataset.assign_attrs(trajectory_share=found.share, batchnorm=found.batchnorm)


def curve_shape(found: CurveShape) -> xr.Dataset:
    """The class of a curve in the attribute `shape`, and its turning points over `stationary`."""
    dataset = xr.Dataset()
    columns = (
        ("position", "1", "position of the turning point", [p.position for p in found.stationary]),
        ("value", "nat", "loss at the turning point", [p.value for p in found.stationary]),
        ("is_minimum", "1", "1: a minimum, 0: a maximum", [float(p.kind == "minimum") for p in found.stationary]),
    )
    for name, units, people, values in columns:
        put(dataset, Quantity(f"stationary_{name}", units, people, "grid points"), values, "stationary")
    for name, count in (("below", found.below), ("above", found.above)):
        people = f"turning points {name} the loss of random guessing"
        put(dataset, Quantity(name, "1", people, "count"), float(count))
    told = {} if found.tolerance is None else {"tolerance": found.tolerance}  # None: the printed definition
    return dataset.assign_attrs(told, shape=found.kind, status=found.status, reason=found.reason)


def monotony(found: Monotony) -> xr.Dataset:
    """Whether a curve goes one way, and by how much; scalars."""
    dataset = xr.Dataset()
    columns = (
        ("holds", "1", "1: monotone within the tolerance", float(found.holds)),
        ("margin", "nat", "smallest step the right way, or minus the largest climb", found.margin),
        ("change", "nat", "net change the right way", found.change),
    )
    for name, units, people, value in columns:
        put(dataset, Quantity(name, units, people, "grid points"), value)
    return dataset.assign_attrs(tolerance=found.tolerance, status=found.status, reason=found.reason)


def surface_shape(found: SurfaceShape) -> xr.Dataset:
    """The class of a surface in the attribute `shape`, and the derivatives that decide it, per unit of length."""
    dataset = xr.Dataset(coords={"axis": ["alpha", "beta"]})
    fit = "least squares"
    curvature = Quantity("curvature", "nat / length^2", "principal curvatures", fit)
    put_with_error(dataset, curvature, found.eigenvalues, found.stderr, "principal", how="scatter and truncation")
    directions = Quantity("principal_direction", "1", "unit direction of the curvature", fit)
    put(dataset, directions, found.eigenvectors, "axis", "principal")
    put(dataset, Quantity("gradient", "nat / length", "gradient", fit), found.gradient, "axis")
    ratio = Quantity("anisotropy", "1", "smallest over largest magnitude of the curvatures", fit)
    put(dataset, ratio, found.anisotropy)
    put(dataset, Quantity("residual", "nat", "root mean square about the fit", fit), found.residual)
    attrs = {"shape": found.kind, "points": found.points, "degree": found.degree}
    return dataset.assign_attrs(attrs, status=found.status, reason=found.reason)


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

    # Not what stands beside them: a trajectory over `step`, models over `model`.
    quantities = [name for name, array in dataset.items() if array.dims == dataset[_DISTANCE.name].dims]
    directions = tuple(DirectionInfo(**info) for info in json.loads(attrs["directions"]))
    method: Literal["direct", "split first layer"] = attrs["method"]
    common: dict[str, Any] = {
        "values": {str(name): tensor(str(name)) for name in quantities if name != _DISTANCE.name},
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

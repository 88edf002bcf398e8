"""The results schema: arrays with names, dimensions, units, estimators and provenance, in one NetCDF file.

Groups of the tree (dimensions are the names of the axes, then those given here):

- `models` (seed): what was measured of every trained model, with `status` and `reason`
- `pairs` (seed, seed_b): what was measured of every pair, NaN unless seed < seed_b
- `curves` (seed, seed_b, t): loss and error along every connectivity curve, and its summaries
- `history` (seed, epoch): the training curves
- `densities` (seed, probe, node): the quadratures that the density of the Hessian's eigenvalues is read off
- `phases`: the label of every cell and what it rests on (written by `phases.py`)

Every group repeats its own coordinates, an axis carries `role = "load" | "temperature"`, and every variable
`units`, `long_name`, `estimator`. No wall time, host or date stands in a variable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py  # type: ignore[import-untyped]
import numpy as np
import xarray as xr

from lossatlas import files
from lossatlas.errors import FileError

SCHEMA_VERSION = 1
DIGEST = "content_sha256"  # the attribute of the root that tells a changed file

Role = Literal["load", "temperature"]
Value = float | int | str
Cell = tuple[float | int, ...]  # one value an axis, in the order of the axes

AXIS_NAMES = {
    "width": ("width", "1"),
    "n_train": ("training samples", "1"),
    "label_noise": ("fraction of randomised labels", "1"),
    "embed_dim": ("embedding dimension", "1"),
    "batch_size": ("batch size", "1"),
    "lr": ("learning rate", "1"),
    "weight_decay": ("weight decay", "1"),
    "panel": ("panel", "1"),
}


@dataclass(frozen=True)
class Axis:
    """One swept quantity: its name, its values in ascending order, and what it does to the landscape."""

    name: str
    values: tuple[float | int, ...]
    role: Role


@dataclass(frozen=True)
class Quantity:
    """The description that a variable carries: its name, units, name for people, and how it was estimated."""

    name: str
    units: str
    long_name: str
    estimator: str

    def attrs(self) -> dict[str, str]:
        """The attributes of the variable."""
        return {"units": self.units, "long_name": self.long_name, "estimator": self.estimator}


STATUS = Quantity("status", "1", "status", "ok, or what went wrong; missing: not measured (yet)")
REASON = Quantity("reason", "1", "reason", "why the status is not ok; empty where it is")


def group(
    axes: Sequence[Axis],
    extra: Mapping[str, Sequence[Value]],
    records: Mapping[tuple[Value, ...], Mapping[str, Value | Sequence[float]]],
    quantities: Iterable[Quantity],
    *,
    along: str | None = None,
) -> xr.Dataset:
    """Lay records out as a dataset over `axes` and the dimensions in `extra`.

    A record's key holds one value a dimension; a quantity that it lacks is NaN (text: `missing` for `status`,
    else empty). A value that is a sequence lies along the dimension `along`, which the key then leaves out.
    """
    dims = [axis.name for axis in axes] + [name for name in extra if name != along]
    coords: dict[str, Any] = {axis.name: list(axis.values) for axis in axes}
    coords |= {name: list(values) for name, values in extra.items()}
    index = [{value: i for i, value in enumerate(coords[name])} for name in dims]
    dataset = xr.Dataset(coords=coords)
    for quantity in quantities:
        values = {
            tuple(where[k] for where, k in zip(index, key, strict=True)): record[quantity.name]
            for key, record in records.items()
            if quantity.name in record
        }
        lies_along = along is not None and any(not isinstance(v, int | float | str) for v in values.values())
        over = [*dims, along] if lies_along and along else dims
        array = _filled(quantity.name, values, tuple(len(coords[name]) for name in over))
        dataset[quantity.name] = (tuple(over), array, quantity.attrs())
    for axis in axes:
        long_name, units = AXIS_NAMES.get(axis.name, (axis.name, "1"))
        dataset[axis.name].attrs = {"role": axis.role, "long_name": long_name, "units": units}
    return dataset


def _filled(name: str, values: Mapping[tuple[int, ...], Any], shape: tuple[int, ...]) -> Any:
    """An array with the values at their indices; a sequence fills the front of the last dimension."""
    array: Any = np.full(shape, np.nan)
    if name in (STATUS.name, REASON.name):
        array = np.full(shape, "missing" if name == STATUS.name else "", dtype=object)
    for where, value in values.items():
        if len(where) < len(shape):
            array[(*where, slice(0, len(value)))] = value
        else:
            array[where] = value
    return array


def tree(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any]) -> xr.DataTree:
    """The results tree: the groups, and attributes that are text, numbers or JSON."""
    root = xr.DataTree.from_dict({f"/{name}": dataset for name, dataset in groups.items()})
    root.attrs = {"schema_version": SCHEMA_VERSION, **{key: plain(value) for key, value in attrs.items()}}
    return root


def plain(value: Any) -> str | int | float:
    """What an attribute can be: text and numbers as they are, all else as JSON."""
    return value if isinstance(value, str | int | float) else json.dumps(value, sort_keys=True)


def put(dataset: xr.Dataset, quantity: Quantity, values: Any, *dims: str) -> None:
    """Add a variable with its description."""
    dataset[quantity.name] = (dims, np.asarray(values), quantity.attrs())


def put_with_error(
    dataset: xr.Dataset, quantity: Quantity, values: Any, errors: Any, *dims: str, how: str = "s / sqrt(N)"
) -> None:
    """Add a variable and its standard error `<name>_se`, which was estimated as `how` says."""
    put(dataset, quantity, values, *dims)
    people = f"standard error of the {quantity.long_name}"
    put(dataset, Quantity(f"{quantity.name}_se", quantity.units, people, how), errors, *dims)


def axes_of(dataset: xr.Dataset | xr.DataTree) -> tuple[list[str], list[str]]:
    """The names of the load axes and of the temperature axes of a group, in its order."""
    roles: dict[str, list[str]] = {"load": [], "temperature": []}
    for name, coord in dataset.coords.items():
        if "role" in coord.attrs:
            roles[coord.attrs["role"]].append(str(name))
    return roles["load"], roles["temperature"]


def digest(results: xr.DataTree) -> str:
    """SHA-256 over all that a tree says: names, dimensions, numbers and texts, attributes; in no order.

    The same before saving and after loading. The attribute `content_sha256` of the root is left out: it holds it.
    """
    total = hashlib.sha256()
    for node in sorted(results.subtree, key=lambda node: node.path):
        dataset = node.to_dataset(inherit=False)
        attrs = {key: value for key, value in dataset.attrs.items() if key != DIGEST}
        total.update(_text([node.path, sorted(map(str, dataset.coords)), attrs]))
        for name in sorted(dataset.variables, key=str):
            variable = dataset.variables[name]
            values = variable.to_numpy()
            is_text = values.dtype.kind not in "biufc"
            kind = "text" if is_text else values.dtype.newbyteorder("<").str
            total.update(_text([name, variable.dims, variable.shape, kind, variable.attrs]))
            total.update(_text(values) if is_text else values.astype(kind).tobytes())
    return total.hexdigest()


def _text(content: Any) -> bytes:
    """Plain data, NumPy's included, as one text that says where it ends."""
    return (json.dumps(content, sort_keys=True, default=lambda value: value.tolist()) + "\n").encode()


def save(results: xr.DataTree, path: Path) -> None:
    """Write the tree to one NetCDF file, atomically; raises FileError when it cannot be written.

    Arrays of numbers carry HDF5's own check sums (fletcher32; it has none for texts), which every reader compares,
    and the root carries the `digest` of everything.
    """
    sealed = results.copy()
    sealed.attrs[DIGEST] = digest(results)
    encoding = {node.path: _summed(node.to_dataset(inherit=False)) for node in sealed.subtree}
    files.write_file(path, bytes(sealed.to_netcdf(engine="h5netcdf", encoding=encoding)))


def _summed(dataset: xr.Dataset) -> dict[Any, dict[str, bool]]:
    arrays = {name: v for name, v in dataset.variables.items() if v.dims and v.size and v.dtype.kind in "biuf"}
    return {name: {"fletcher32": True} for name in arrays}


def load(path: Path) -> xr.DataTree:
    """Read a results file into memory; raises FileError if it is missing, damaged or of another schema."""
    if not path.is_file():
        raise FileError(f"{path} does not exist or is no file. Give a results.nc that `lossatlas run` wrote.")
    try:
        with h5py.File(path) as probed:
            dict(probed.attrs)  # a NetCDF file that fails half-open would complain once more when it is forgotten
        with xr.open_datatree(path, engine="h5netcdf") as opened:
            results = opened.load()
    except Exception as error:  # the libraries raise all sorts of things on damaged files
        raise FileError(
            f"{path} cannot be read as a results file ({error}). It is damaged, or was not written by lossatlas; "
            "`lossatlas run` on its folder writes it again."
        ) from error
    version = results.attrs.get("schema_version")
    if version != SCHEMA_VERSION:
        raise FileError(
            f"{path} has schema version {version}; this lossatlas reads version {SCHEMA_VERSION}. "
            "Run `lossatlas run` on its folder to write it again, or use the lossatlas that made it."
        )
    if results.attrs.get(DIGEST) != digest(results):
        raise FileError(
            f"{path} is damaged, or was changed after lossatlas wrote it: what it holds does not match its "
            f"{DIGEST}. `lossatlas run` on its folder writes it again; change one with `lossatlas.results.save`."
        )
    return results

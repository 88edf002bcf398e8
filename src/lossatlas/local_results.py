"""What was found around one model, or between several, with names, units and provenance; and its file.

`slice_results` does the same for curves and surfaces alone. Datasets, by their dimensions:

- spectrum: `rank` (largest eigenvalues, descending), `rank_min` (smallest, ascending), `bin` (density), and the
  quadrature itself over `probe`, `node`; traces are scalars
- mined: a curve with `data` = mining, held-out, and `eigenvector` (cosines)
- connection, comparison: see `pair_results`
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py  # type: ignore[import-untyped]
import numpy as np
import xarray as xr

from lossatlas import files, slice_results
from lossatlas.errors import FileError, UserError
from lossatlas.results import Quantity

if TYPE_CHECKING:
    from lossatlas.landscape.curve_fitting import CurveFit
    from lossatlas.landscape.density import Density
    from lossatlas.landscape.hutchinson import TraceEstimate
    from lossatlas.landscape.lanczos import Eigenpairs
    from lossatlas.landscape.mining import MinedDirection
    from lossatlas.landscape.mining_checks import Alignment
    from lossatlas.landscape.paths import Connectivity
    from lossatlas.landscape.trajectories import Trajectory

SCHEMA_VERSION = 1
BINS = 60  # of the density, over its whole axis

_LANCZOS = "Lanczos with full reorthogonalisation"
_SLQ = "stochastic Lanczos quadrature"


def to_dataset(result: Any) -> xr.Dataset:
    """The dataset of a result object: eigenpairs, a trace, a density, a curve, a surface, a connectivity, ...

    Raises UserError for an object that has none.
    """
    name = type(result).__name__
    if name not in _MAKERS:
        raise UserError(f"A {name} has no dataset. Allowed are {', '.join(_MAKERS)}.")
    dataset: xr.Dataset = _MAKERS[name](result)
    return dataset.assign_attrs(schema_version=SCHEMA_VERSION)


def save(result: Any, path: Path, *, attrs: Mapping[str, Any] | None = None) -> xr.Dataset:
    """Write a result object or a dataset to one NetCDF file, atomically; returns what was written.

    `attrs` are added to its attributes: text and numbers as they are, all else as JSON. Raises FileError when the
    file cannot be written.
    """
    dataset = result if isinstance(result, xr.Dataset) else to_dataset(result)
    dataset = dataset.assign_attrs({name: _plain(value) for name, value in (attrs or {}).items()})
    files.write_file(path, bytes(dataset.to_netcdf(engine="h5netcdf")))
    return dataset


def load(path: Path) -> xr.Dataset:
    """Read such a file into memory; raises FileError if it is missing, damaged or of another schema."""
    if not path.is_file():
        raise FileError(f"{path} does not exist or is no file. Give a file that a lossatlas command wrote.")
    try:
        with h5py.File(path) as probed:
            dict(probed.attrs)  # a NetCDF file that fails half-open would complain once more when it is forgotten
        dataset = xr.load_dataset(path, engine="h5netcdf")
    except Exception as error:  # the libraries raise all sorts of things on damaged files
        raise FileError(f"{path} cannot be read ({error}). It is damaged, or not of lossatlas.") from error
    if dataset.attrs.get("schema_version") != SCHEMA_VERSION:
        raise FileError(
            f"{path} has schema version {dataset.attrs.get('schema_version')}; this lossatlas reads version "
            f"{SCHEMA_VERSION}. Compute it again, or use the lossatlas that made it."
        )
    return dataset


def spectrum(
    pairs: Eigenpairs,
    trace: TraceEstimate | None = None,
    square: TraceEstimate | None = None,
    density: Density | None = None,
) -> xr.Dataset:
    """One dataset of all that is known of a spectrum."""
    parts = [_eigenpairs(pairs)]
    parts += [_trace(trace)] if trace is not None else []
    parts += [_trace(square, name="trace_of_square")] if square is not None else []
    parts += [_density(density)] if density is not None else []
    merged = xr.merge(parts, combine_attrs="no_conflicts")
    return merged.assign_attrs(schema_version=SCHEMA_VERSION)


def put(dataset: xr.Dataset, quantity: Quantity, values: Any, *dims: str) -> None:
    """Add a variable with its description."""
    dataset[quantity.name] = (dims, np.asarray(values), quantity.attrs())


def _eigenpairs(pairs: Eigenpairs) -> xr.Dataset:
    k = len(pairs.eigenvalues) // 2 if pairs.which == "both" else len(pairs.eigenvalues)
    ends = {"both": ("largest", "smallest")}.get(pairs.which, (pairs.which,))
    dataset = xr.Dataset()
    for i, end in enumerate(ends):
        part = slice(i * k, (i + 1) * k)
        suffix, dim = ("", "rank") if end == "largest" else ("_min", "rank_min")
        dataset = dataset.assign_coords({dim: np.arange(1, k + 1)})
        dataset[dim].attrs = {"long_name": f"rank from the {end} eigenvalue", "units": "1"}
        columns = (
            ("", "nat", f"{end} Hessian eigenvalues", pairs.eigenvalues),
            ("_residual", "nat", "residual |Hv - ev|", pairs.residuals),
            ("_gap", "nat", "distance to the nearest other Ritz value", pairs.gaps),
            ("_converged", "1", "1: the residual met its tolerance", pairs.converged.double()),
        )
        for ending, units, people, values in columns:
            put(dataset, Quantity(f"eigenvalue{suffix}{ending}", units, people, _LANCZOS), values[part], dim)
    dataset.attrs = {"matvecs": pairs.matvecs, "tol": pairs.tol, "eigenvalues_reason": pairs.reason}
    return dataset


def _trace(trace: TraceEstimate, name: str = "trace") -> xr.Dataset:
    units, people = ("nat", "Hessian trace") if name == "trace" else ("nat^2", "trace of the squared Hessian")
    dataset = xr.Dataset()
    columns = (
        ("", units, people, trace.value, trace.method),
        ("_se", units, "standard error of the estimator", trace.stderr, "0: exact; else over probes"),
        ("_data_se", units, "standard error over the samples", trace.data_stderr, "s / sqrt(m), if exact"),
        ("_exact", "1", "1: no estimator error", float(trace.method == "exact-ggn"), "tr H = tr GGN detected"),
        ("_converged", "1", "1: met its relative error", float(trace.converged), "standard error <= rel |trace|"),
        ("_matvecs", "1", "products spent", float(trace.matvecs), "count"),
    )
    for ending, unit, text, value, estimator in columns:
        if name == "trace" or ending not in ("_data_se", "_exact"):  # which only the trace itself can have
            put(dataset, Quantity(f"{name}{ending}", unit, text, estimator), value)
    dataset.attrs = {f"{name}_method": trace.method, f"{name}_reason": trace.reason}
    return dataset


def _density(density: Density) -> xr.Dataset:
    histogram = density.histogram(BINS)
    edges, negative = np.asarray(histogram.edges), density.negative
    dataset = xr.Dataset(coords={"bin_left": ("bin", edges[:-1]), "bin_right": ("bin", edges[1:])})
    for name in ("bin_left", "bin_right"):
        dataset[name].attrs = {"long_name": f"{name.removeprefix('bin_')} edge of the bin", "units": "nat"}
    share = "share of the eigenvalues"
    put(dataset, Quantity("density", "1", f"{share} in the bin", _SLQ), histogram.share, "bin")
    put(dataset, Quantity("density_se", "1", "standard error over probes", _SLQ), histogram.stderr, "bin")
    masses = (("", negative.value), ("_se", negative.stderr))
    bounds = (("_lower", negative.lower.value), ("_upper", negative.upper.value))
    for ending, value in (*masses, *bounds):
        put(dataset, Quantity(f"negative_mass{ending}", "1", f"{share} below 0{ending}", _SLQ), value)
    length = max((len(ritz) for ritz in density.ritz), default=0)
    for name, rows in (("ritz_value", density.ritz), ("ritz_weight", density.weights)):
        padded = np.full((len(rows), length), np.nan)  # a probe whose space was exhausted has fewer
        for row, values in zip(padded, rows, strict=True):
            row[: len(values)] = values
        units = "nat" if name == "ritz_value" else "1"
        put(dataset, Quantity(name, units, name.replace("_", " "), _SLQ), padded, "probe", "node")
    dataset.attrs = {
        "density_matvecs": density.matvecs,
        "density_probe": density.probe,
        "density_steps": density.steps,
        "linear_threshold": histogram.axis.threshold,  # of the symmetric logarithmic axis of the bins
        "density_reason": density.reason,
    }
    return dataset


def _curve_fit(fit: CurveFit) -> xr.Dataset:
    dataset = xr.Dataset(coords={"epoch": np.arange(len(fit.losses))})
    put(
        dataset,
        Quantity("fit_loss", "nat", "mean loss along the curve", "mean over random t"),
        fit.losses,
        "epoch",
    )
    return dataset.assign_attrs(kind=fit.kind, seed=fit.seed, status=fit.status, reason=fit.reason)


def _connectivity(found: Connectivity) -> xr.Dataset:
    dataset = xr.Dataset()
    estimator = f"rule {found.rule}"
    name = "mode_connectivity"
    put(dataset, Quantity(name, "%", "mode connectivity", estimator), found.value)
    put(dataset, Quantity(f"{name}_se", "%", "its standard error", "paired over the samples"), found.stderr)
    put(dataset, Quantity("t_star", "1", "where the curve deviates most", estimator), found.t_star)
    at_end = float(found.t_star_at_end)
    put(dataset, Quantity("t_star_at_end", "1", "1: an end deviates more", estimator), at_end)
    return dataset.assign_attrs(status=found.status, reason=found.reason)


def _mined(mined: MinedDirection) -> xr.Dataset:
    dataset = xr.Dataset(coords={"epoch": np.arange(len(mined.losses))})
    put(
        dataset, Quantity("mining_loss", "nat", "what was minimised", "mean over the epoch"), mined.losses, "epoch"
    )
    attrs = {"algorithm": mined.algorithm, "mining": json.dumps(dict(mined.settings), sort_keys=True)}
    return dataset.assign_attrs(attrs, search_status=mined.status, search_reason=mined.reason)


def _alignment(found: Alignment) -> xr.Dataset:
    dataset = xr.Dataset()
    gram = "inner products in float64"
    put(dataset, Quantity("eigenvalue", "nat", "Hessian eigenvalue", _LANCZOS), found.eigenvalues, "eigenvector")
    cosine = Quantity("cosine", "1", "cosine of the direction with the eigenvector", gram)
    put(dataset, cosine, found.cosines, "eigenvector")
    ambiguous = Quantity("ambiguous", "1", "1: the gap is not above the residual", _LANCZOS)
    put(dataset, ambiguous, found.ambiguous.double(), "eigenvector")
    lengths = (("", found.projection), ("_positive", found.positive), ("_negative", found.negative))
    for ending, value in (*lengths, ("_chance", found.chance)):
        people = f"length of the unit direction's projection on the eigenvectors{ending.replace('_', ', ')}"
        put(dataset, Quantity(f"projection{ending}", "1", people, gram), value)
    return dataset


def _trajectory(found: Trajectory) -> xr.Dataset:
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
    return dataset.assign_attrs(trajectory_share=found.share)


def _plain(value: Any) -> str | int | float:
    return value if isinstance(value, str | int | float) else json.dumps(value, sort_keys=True)


_MAKERS: dict[str, Any] = {  # by name, so that nothing is loaded to look it up
    "Eigenpairs": _eigenpairs,
    "TraceEstimate": _trace,
    "Density": _density,
    "Curve": slice_results.to_dataset,
    "Surface": slice_results.to_dataset,
    "Trajectory": _trajectory,
    "MinedDirection": _mined,
    "Alignment": _alignment,
    "CurveFit": _curve_fit,
    "Connectivity": _connectivity,
}

"""Any result as a dataset with names, units and provenance, and its file: `to_dataset`, `save`, `load`.

The functions that make the datasets stand by their subject in `slice_results`, `spectrum_results`,
`probe_results` and `pair_results`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py  # type: ignore[import-untyped]
import xarray as xr

from lossatlas import files, pair_results, probe_results, slice_results, spectrum_results
from lossatlas.errors import FileError, UserError
from lossatlas.results import Quantity, plain, put_with_error
from lossatlas.slice_results import SCHEMA_VERSION

if TYPE_CHECKING:
    from lossatlas.landscape.density import Density
    from lossatlas.landscape.estimate import Estimate
    from lossatlas.landscape.hutchinson import TraceEstimate
    from lossatlas.landscape.lanczos import Eigenpairs


def to_dataset(result: Any) -> xr.Dataset:
    """The dataset of a result object: eigenpairs, a trace, a density, a curve, a surface, a connectivity, ...

    Raises UserError for an object that has none.
    """
    kind = type(result)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("lossatlas.landscape.")
    if name not in MAKERS:
        allowed = ", ".join(known.rpartition(".")[2] for known in MAKERS)
        raise UserError(f"A {kind.__name__} has no dataset. Allowed are {allowed}.")
    return MAKERS[name](result).assign_attrs(schema_version=SCHEMA_VERSION)


def save(result: Any, path: str | PathLike[str], *, attrs: Mapping[str, Any] | None = None) -> xr.Dataset:
    """Write a result object or a dataset to one NetCDF file, atomically; returns what was written.

    `attrs` are added to its attributes: text and numbers as they are, all else as JSON. Raises FileError when the
    file cannot be written.
    """
    dataset = result if isinstance(result, xr.Dataset) else to_dataset(result)
    own = {"schema_version": SCHEMA_VERSION} | {name: plain(value) for name, value in (attrs or {}).items()}
    dataset = dataset.assign_attrs(own)
    files.write_file(Path(path), bytes(dataset.to_netcdf(engine="h5netcdf")))
    return dataset


def load(path: str | PathLike[str]) -> xr.Dataset:
    """Read such a file into memory; raises FileError if it is missing, damaged or of another schema."""
    path = Path(path)
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
    parts = [spectrum_results.eigenpairs(pairs)]
    parts += [spectrum_results.trace(trace)] if trace is not None else []
    parts += [spectrum_results.trace_of_square(square)] if square is not None else []
    parts += [spectrum_results.density(density)] if density is not None else []
    merged = xr.merge(parts, combine_attrs="no_conflicts")
    return merged.assign_attrs(schema_version=SCHEMA_VERSION)


def _estimate(found: Estimate) -> xr.Dataset:
    dataset = xr.Dataset()
    quantity = Quantity("value", "that of the quantity", "value", "over the samples")  # an Estimate is of anything
    put_with_error(dataset, quantity, found.value, found.stderr, how="over the samples")
    return dataset.assign_attrs(count=found.count, status=found.status, reason=found.reason)


# By the name of the class, below `lossatlas.landscape`, so that nothing is loaded to look it up.
MAKERS: dict[str, Callable[[Any], xr.Dataset]] = {
    "lanczos.Eigenpairs": spectrum_results.eigenpairs,
    "hutchinson.TraceEstimate": spectrum_results.trace,
    "moments.TraceOfSquare": spectrum_results.trace_of_square,
    "density.Density": spectrum_results.density,
    "density.Histogram": spectrum_results.histogram,
    "density.SmoothDensity": spectrum_results.smooth_density,
    "slices.Curve": slice_results.to_dataset,
    "slices.Surface": slice_results.to_dataset,
    "planes.Plane": slice_results.plane_to_dataset,
    "trajectories.Trajectory": slice_results.trajectory,
    "shapes.CurveShape": slice_results.curve_shape,
    "shapes.Monotony": slice_results.monotony,
    "surface_shapes.SurfaceShape": slice_results.surface_shape,
    "angles.Angle": probe_results.angle,
    "angles.Comparison": probe_results.against_gaussians,
    "mining.MinedDirection": probe_results.mined,
    "mining_checks.Alignment": probe_results.alignment,
    "mining_checks.Survival": probe_results.survival,
    "mining_checks.Comparison": probe_results.rivals,
    "expansion.Expansion": probe_results.expansion,
    "expansion.LocalPieces": probe_results.local_pieces,
    "expansion.ChangeMoments": probe_results.change_moments,
    "expansion.SampledChanges": probe_results.sampled_changes,
    "curve_fitting.CurveFit": pair_results.curve_fit,
    "paths.PathValues": pair_results.path_values,
    "paths.PathSummary": pair_results.path_summary,
    "paths.Connectivity": pair_results.connectivity,
    "estimate.Estimate": _estimate,
}

"""What was found of a spectrum, with names, units and provenance: eigenpairs, traces, densities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from lossatlas.results import Quantity, put, put_with_error

if TYPE_CHECKING:
    from lossatlas.landscape.density import Density, Histogram, SmoothDensity
    from lossatlas.landscape.hutchinson import TraceEstimate
    from lossatlas.landscape.lanczos import Eigenpairs

BINS = 60  # of the density, over its whole axis

_LANCZOS = "Lanczos with full reorthogonalisation"
_SLQ = "stochastic Lanczos quadrature"


def eigenpairs(pairs: Eigenpairs) -> xr.Dataset:
    """The largest eigenvalues over `rank`, the smallest over `rank_min`, with what they rest on."""
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
    attrs = {"matvecs": pairs.matvecs, "tol": pairs.tol, "eigenvalues_reason": pairs.reason}
    return dataset.assign_attrs(attrs, eigenvalues_seed=pairs.seed)


def trace(found: TraceEstimate) -> xr.Dataset:
    """The trace with both its errors."""
    dataset = _trace(found, "trace", "nat", "Hessian trace")
    over_samples = Quantity("trace_data_se", "nat", "standard error over the samples", "s / sqrt(m), if exact")
    put(dataset, over_samples, found.data_stderr)
    exact = Quantity("trace_exact", "1", "1: no estimator error", "tr H = tr GGN detected")
    put(dataset, exact, float(found.method == "exact-ggn"))
    return dataset


def trace_of_square(found: TraceEstimate) -> xr.Dataset:
    """The trace of the squared Hessian with its error."""
    return _trace(found, "trace_of_square", "nat^2", "trace of the squared Hessian")


def _trace(found: TraceEstimate, name: str, units: str, people: str) -> xr.Dataset:
    dataset = xr.Dataset()
    columns = (
        ("", units, people, found.value, found.method),
        ("_se", units, "standard error of the estimator", found.stderr, "0: exact; else over probes"),
        ("_converged", "1", "1: met its relative error", float(found.converged), "standard error <= rel |trace|"),
        ("_matvecs", "1", "products spent", float(found.matvecs), "count"),
    )
    for ending, unit, text, value, estimator in columns:
        put(dataset, Quantity(f"{name}{ending}", unit, text, estimator), value)
    attrs = {"method": found.method, "reason": found.reason, "seed": found.seed}
    return dataset.assign_attrs({f"{name}_{key}": value for key, value in attrs.items()})


def density(found: Density) -> xr.Dataset:
    """The histogram over `bin`, the shares by sign, both ends, and the quadrature over `probe` and `node`."""
    dataset = histogram(found.histogram(BINS))
    signs, bounds = found.signs(), "bounds on stochastic Lanczos quadrature"
    for name, people, share in (
        ("negative_share", "share of the eigenvalues surely below -threshold", signs.negative),
        ("undecided_share", "share of the eigenvalues whose sign is not decided", signs.undecided),
        ("positive_share", "share of the eigenvalues surely above the threshold", signs.positive),
    ):
        quantity = Quantity(name, "1", people, bounds)
        put_with_error(dataset, quantity, share.value, share.stderr, how="s / sqrt(probes)")
    put(dataset, Quantity("sign_threshold", "nat", "what rounding may make of 0", "100 eps"), signs.threshold)
    for end, extreme in (("smallest", found.smallest), ("largest", found.largest)):
        put(dataset, Quantity(f"ritz_{end}", "nat", f"{end} Ritz value over all probes", _SLQ), extreme.value)
        bound = Quantity(f"ritz_{end}_residual", "nat", "an eigenvalue lies within it", _SLQ)
        put(dataset, bound, extreme.residual)
    length = max((len(ritz) for ritz in found.ritz), default=0)
    rows = {"value": ("nat", found.ritz), "weight": ("1", found.weights), "residual": ("nat", found.residuals)}
    for name, (units, probes) in rows.items():
        padded = np.full((len(probes), length), np.nan)  # a probe whose space was exhausted has fewer
        for row, values in zip(padded, probes, strict=True):
            row[: len(values)] = values
        put(dataset, Quantity(f"ritz_{name}", units, f"Ritz {name}", _SLQ), padded, "probe", "node")
    attrs = {
        "matvecs": found.matvecs,
        "probe": found.probe,
        "steps": found.steps,
        "size": found.size,
        "seed": found.seed,
        "reason": found.reason,
    }
    return dataset.assign_attrs({f"density_{key}": value for key, value in attrs.items()})


def histogram(found: Histogram) -> xr.Dataset:
    """The shares over `bin`, of edges `bin_left` and `bin_right`."""
    edges = np.asarray(found.edges)
    dataset = xr.Dataset(coords={"bin_left": ("bin", edges[:-1]), "bin_right": ("bin", edges[1:])})
    for name in ("bin_left", "bin_right"):
        dataset[name].attrs = {"long_name": f"{name.removeprefix('bin_')} edge of the bin", "units": "nat"}
    put(dataset, Quantity("density", "1", "share of the eigenvalues in the bin", _SLQ), found.share, "bin")
    put(dataset, Quantity("density_se", "1", "standard error over probes", _SLQ), found.stderr, "bin")
    # of the symmetric logarithmic axis of the bins
    return dataset.assign_attrs(linear_threshold=found.axis.threshold)


def smooth_density(found: SmoothDensity) -> xr.Dataset:
    """The density over `eigenvalue_at`, per unit of an axis that is logarithmic beyond `linear_threshold`."""
    dataset = xr.Dataset(coords={"eigenvalue_at": np.asarray(found.grid)})
    dataset["eigenvalue_at"].attrs = {"long_name": "eigenvalue", "units": "nat"}
    people = "spectral density per unit of the axis, which beyond the threshold is a decade"
    put(dataset, Quantity("smooth_density", "1", people, _SLQ), found.density, "eigenvalue_at")
    errors = Quantity("smooth_density_se", "1", "standard error over probes", _SLQ)
    put(dataset, errors, found.stderr, "eigenvalue_at")
    return dataset.assign_attrs(linear_threshold=found.axis.threshold, kernel_width=found.width)

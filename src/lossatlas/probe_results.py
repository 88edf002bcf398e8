"""What was found along single directions, with names, units and provenance: expansions, searches, comparisons."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from lossatlas.errors import UserError
from lossatlas.results import Quantity, put, put_with_error

if TYPE_CHECKING:
    from lossatlas.landscape import angles, mining_checks
    from lossatlas.landscape.expansion import ChangeMoments, Expansion, LocalPieces, SampledChanges
    from lossatlas.landscape.mining import MinedDirection

_MEAN = "mean over the samples"
_AUTOGRAD = "automatic differentiation"
_GRAM = "inner products in float64"
_DRAWS = "over random directions"
_SECOND_ORDER = "second-order expansion"
_LAMBDA = {"long_name": "position along the direction", "units": "1"}


def angle(found: angles.Angle) -> xr.Dataset:
    """The angle between two directions; all are scalars."""
    dataset = xr.Dataset()
    put(dataset, Quantity("angle", "degree", "angle between the directions", _GRAM), found.degrees)
    put(dataset, Quantity("cosine", "1", "cosine between the directions", _GRAM), found.cosine)
    people = "standard deviation of the angle to a Gaussian direction"
    put(dataset, Quantity("gaussian_sd", "degree", people, "57.3 / sqrt(n)"), found.gaussian_sd)
    return dataset


def against_gaussians(found: angles.Comparison) -> xr.Dataset:
    """The loss after a step of one length; `xr.concat` along `distance` joins several ([Xu2024] Fig. 6)."""
    dataset = xr.Dataset(coords={"distance": [found.distance]})
    dataset["distance"].attrs = {"long_name": "length of the step", "units": "||theta||"}
    put(dataset, Quantity("loss", "nat", "loss after the step", _MEAN), [found.value], "distance")
    people = "loss after a step along a Gaussian direction"
    draws = np.asarray(found.gaussians)[None]
    put(dataset, Quantity("gaussian_loss", "nat", people, _MEAN), draws, "distance", "draw")
    return dataset.assign_attrs(kind="against-gaussians", start=found.start, seed=found.seed)


def mined(found: MinedDirection) -> xr.Dataset:
    """How the search went, over `epoch`."""
    dataset = xr.Dataset(coords={"epoch": np.arange(len(found.losses))})
    put(
        dataset, Quantity("mining_loss", "nat", "what was minimised", "mean over the epoch"), found.losses, "epoch"
    )
    length = float(np.linalg.norm(np.asarray(found.vector.detach().cpu(), dtype=np.float64)))
    put(dataset, Quantity("mined_norm", "1", "l2 length of the mined direction", "exact"), length)
    attrs = {"algorithm": found.algorithm, "mining": json.dumps(dict(found.settings), sort_keys=True)}
    budget = {"mining_epochs": found.epochs, "mining_seed": found.seed, "mining_batchnorm": found.batchnorm}
    return dataset.assign_attrs(attrs | budget, search_status=found.status, search_reason=found.reason)


def alignment(found: mining_checks.Alignment) -> xr.Dataset:
    """Cosines over `eigenvector`, and the projections on their spans."""
    dataset = xr.Dataset()
    lanczos = "Lanczos with full reorthogonalisation"
    put(dataset, Quantity("eigenvalue", "nat", "Hessian eigenvalue", lanczos), found.eigenvalues, "eigenvector")
    cosine = Quantity("cosine", "1", "cosine of the direction with the eigenvector", _GRAM)
    put(dataset, cosine, found.cosines, "eigenvector")
    ambiguous = Quantity("ambiguous", "1", "1: the gap is not above the residual", lanczos)
    put(dataset, ambiguous, found.ambiguous.double(), "eigenvector")
    lengths = (("", found.projection), ("_positive", found.positive), ("_negative", found.negative))
    for ending, value in (*lengths, ("_chance", found.chance)):
        people = f"length of the unit direction's projection on the eigenvectors{ending.replace('_', ', ')}"
        put(dataset, Quantity(f"projection{ending}", "1", people, _GRAM), value)
    return dataset


def survival(found: mining_checks.Survival) -> xr.Dataset:
    """The loss over (data, lambda), and how far it falls over (data, side)."""
    curves = {"mining": found.mining, "held-out": found.held_out}
    dataset = _losses("data", curves, found.lambdas)
    _put_falls(dataset, "fall", "data", [found.mining_fall, found.held_out_fall])
    here, there = found.batchnorm
    return dataset.assign_attrs(status=found.status, batchnorm=here, batchnorm_held_out=there)


def rivals(found: mining_checks.Comparison) -> xr.Dataset:
    """Two directions of one length: the loss over (direction, lambda), the falls, and who is lower by how much."""
    dataset = _losses("direction", {"first": found.first, "second": found.second}, found.lambdas)
    _put_falls(dataset, "fall", "direction", [found.first_fall, found.second_fall])
    _put_falls(dataset, "best_fall", "direction", [found.first_best, found.second_best])
    put_advantages(dataset, found, "loss along the second - loss along the first, mean of both sides")
    center = float(found.first[found.lambdas == 0])
    attrs = {"kind": "line", "norm": found.norm, "batchnorm": found.batchnorm}
    return dataset.assign_attrs(attrs, center=json.dumps({"loss": center}))


def expansion(found: Expansion) -> xr.Dataset:
    """The numbers of L(theta + lambda d) = loss + lambda slope + lambda^2/2 curvature."""
    dataset = xr.Dataset()
    columns = (
        ("loss", "nat", "loss at the centre", found.loss, _MEAN),
        ("slope", "nat", "slope d'g", found.slope, _AUTOGRAD),
        ("curvature", "nat", "curvature d'Hd", found.curvature, _AUTOGRAD),
        ("gradient_norm", "nat", "l2 norm of the gradient", found.gradient_norm, _AUTOGRAD),
        ("direction_norm", "1", "l2 norm of the direction", found.direction_norm, "exact"),
    )
    for name, units, people, value, estimator in columns:
        put(dataset, Quantity(name, units, people, estimator), value)
    attrs = {"kind": "quadratic", "batchnorm": found.batchnorm}
    return dataset.assign_attrs(attrs, status=found.status, reason=found.reason)


def local_pieces(found: LocalPieces) -> xr.Dataset:
    """Quadratic pieces over (piece, offset) and what they rest on; `merge` it into the dataset of their curve."""
    dataset, parts = xr.Dataset(), found.expansions
    columns = (
        ("center", "1", "position of the piece's centre", "exact", found.positions),
        ("slope", "nat", "slope d'g", _AUTOGRAD, [e.slope for e in parts]),
        ("curvature", "nat", "curvature d'Hd", _AUTOGRAD, [e.curvature for e in parts]),
        ("gradient_norm", "nat", "l2 norm of the gradient", _AUTOGRAD, [e.gradient_norm for e in parts]),
        ("status", "1", "status", "ok, or what went wrong", _texts(e.status for e in parts)),
        ("reason", "1", "reason", "why the status is not ok", _texts(e.reason for e in parts)),
    )
    for name, units, people, estimator, values in columns:
        put(dataset, Quantity(f"piece_{name}", units, people, estimator), values, "piece")
    for name, units, people, lines in (
        ("lambda", "1", "position along the direction", found.lambdas),
        ("loss", "nat", "loss by the expansion about the centre", found.values),
    ):
        put(dataset, Quantity(f"piece_{name}", units, people, _SECOND_ORDER), lines, "piece", "offset")
    attrs: dict[str, str] = {"kind": "expansion"}
    if parts:
        attrs["batchnorm"] = parts[0].batchnorm
    return dataset.assign_attrs(attrs)


def change_moments(law: ChangeMoments) -> xr.Dataset:
    """Mean and variance of the predicted change; scalars."""
    dataset = xr.Dataset()
    _put_laws(dataset, [law.mean], [law.variance])
    return dataset.squeeze("scale")


def sampled_changes(found: SampledChanges) -> xr.Dataset:
    """The measured changes over (scale, draw) with their mean and variance over `scale`."""
    dataset = xr.Dataset(coords={"scale": list(found.lambdas)})
    dataset["scale"].attrs = dict(_LAMBDA)
    people = "change of the loss along random directions"
    put(dataset, Quantity("change", "nat", people, _MEAN), found.changes, "scale", "draw")
    for name, units, moments in (("mean", "nat", found.means), ("variance", "nat^2", found.variances)):
        quantity = Quantity(f"change_{name}", units, f"{name} of the change of the loss", _DRAWS)
        values, errors = ([getattr(m, part) for m in moments] for part in ("value", "stderr"))
        put_with_error(dataset, quantity, values, errors, "scale", how=_DRAWS)
    for name, people in (("status", "ok, or what went wrong"), ("reason", "why the status is not ok")):
        texts = _texts(getattr(mean, name) for mean in found.means)
        put(dataset, Quantity(name, "1", name, people), texts, "scale")
    spread = {"sigma": found.sigma} if found.radius is None else {"radius": found.radius}
    return dataset.assign_attrs(spread, kind="loss-change", seed=found.seed, batchnorm=found.batchnorm)


def beside_law(found: SampledChanges, laws: Sequence[ChangeMoments]) -> xr.Dataset:
    """`sampled_changes` with the predicted mean and variance of every scale; [Xu2024] Fig. 13, second row.

    `laws` are those of `expansion.gaussian_change` or `sphere_change`, one a scale. Raises UserError for another
    number of them.
    """
    if len(laws) != len(found.lambdas):
        raise UserError(f"{len(laws)} laws were given for {len(found.lambdas)} scales. Give one for each scale.")
    dataset = sampled_changes(found)
    _put_laws(dataset, [law.mean for law in laws], [law.variance for law in laws])
    return dataset


def _put_laws(dataset: xr.Dataset, means: list[float], variances: list[float]) -> None:
    for name, units, values in (("mean", "nat", means), ("variance", "nat^2", variances)):
        quantity = Quantity(f"predicted_{name}", units, f"predicted {name} of the change", _SECOND_ORDER)
        put(dataset, quantity, values, "scale")


def put_advantages(dataset: xr.Dataset, found: mining_checks.Comparison, estimator: str) -> None:
    """By how much the first direction is lower than the second, at equal length and each at its best scale."""
    for name, people, estimate in (
        ("advantage", "advantage at equal length", found.advantage),
        ("best_advantage", "advantage, each at its best scale", found.best_advantage),
    ):
        quantity = Quantity(name, "nat", people, estimator)
        put_with_error(dataset, quantity, estimate.value, estimate.stderr, how="paired over the samples")


def _losses(dim: str, curves: Mapping[str, Any], lambdas: Any) -> xr.Dataset:
    """Losses over (dim, lambda), named."""
    dataset = xr.Dataset(coords={dim: list(curves), "lambda": np.asarray(lambdas)})
    dataset[dim].attrs = {"long_name": dim, "units": "1"}
    values = np.stack([np.asarray(curve) for curve in curves.values()])
    put(dataset, Quantity("loss", "nat", "loss along the direction", _MEAN), values, dim, "lambda")
    return dataset


def _put_falls(dataset: xr.Dataset, name: str, dim: str, falls: Sequence[mining_checks.Fall]) -> None:
    """How far the loss falls on either side, over (dim, side), and where."""
    dataset["side"] = ("side", ["left", "right"], {"long_name": "side of lambda = 0", "units": "1"})
    sides = [(fall.left, fall.right) for fall in falls]
    values, errors = ([[getattr(e, part) for e in row] for row in sides] for part in ("value", "stderr"))
    quantity = Quantity(name, "nat", "loss at lambda = 0 - loss at the side", "mean of paired differences")
    put_with_error(dataset, quantity, values, errors, dim, "side", how="paired over the samples")
    where = Quantity(f"{name}_lambda", "1", "position of the side", "lowest point of a curve, or given")
    put(dataset, where, [fall.lambdas for fall in falls], dim, "side")


def _texts(values: Iterable[str]) -> NDArray[np.object_]:
    return np.array(list(values), dtype=object)

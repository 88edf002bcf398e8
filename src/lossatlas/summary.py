"""One value a cell: means over the seeds and pairs of a results tree, with standard errors and a status.

The numerical half takes arrays (`weighted_means`, `pair_means`, `log_means`) and knows no names; `cells`
names, describes and judges. A seed's weight is its multiplicity: resampled seeds are a matrix of weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from lossatlas.errors import FileError
from lossatlas.results import REASON, STATUS, Quantity

Floats = NDArray[np.float64]

# Worst first. A status that is not listed here ranks as bad as "failed".
SEVERITY = (
    "missing",
    "failed",
    "diverged",
    "non-finite",
    "collapsed",
    "partial",
    "unconverged",
    "degenerate",
    "ok",
)
# Models whose values count: what has not converged carries its residual or error, what is partial lacks some.
USABLE = ("ok", "unconverged", "partial")
LOGGED = ("hessian_eig", "hessian_trace")  # [Yang2021] plots the natural log of their mean over seeds
# Variables that tell how another one was estimated, not something of the landscape.
_ANCILLARY = ("_se", "_residual", "_matvecs", "_probes", "_converged", "_at_end", "_n", "_seed")


@dataclass(frozen=True)
class OkValues:
    """What the means of the cells rest on; NaN where nothing was measured or something is not ok."""

    dims: tuple[str, ...]  # the axes
    ok: NDArray[np.bool_]  # (..., s)
    models: Mapping[str, Floats]  # each (..., s)
    pairs: Mapping[str, Floats]  # each (..., s, s), upper triangle


def cells(tree: xr.DataTree, *, weights: Mapping[int, float] | None = None) -> xr.Dataset:
    """Summarise every cell of a results tree over its seeds and pairs.

    A model's quantity becomes its mean over the seeds with status `ok`, SE = std(ddof=1)/sqrt(n).
    `hessian_eig` and `hessian_trace` become `ln_` = ln(mean), SE = SE(mean)/mean (delta method), NaN with the
    status `degenerate` where the mean is not positive. A pair's quantity becomes its mean over the measured
    pairs seed < seed_b of ok models, SE by the jackknife over seeds, since pairs share seeds (NaN where leaving
    out one seed leaves no pair). `test_accuracy` is 100 - `test_error`. What is not finite counts as not measured.

    `weights` gives seeds a multiplicity (0 where one is not named): a pair weighs w_a w_b, so no seed is paired
    with itself. A resampled mean has no standard error of its own, so the `_se` are left out then.

    Returns a dataset over the axes: those means, `<name>_se`, `<name>_n` (pairs behind a pair's mean), `n_ok`
    (ok models), `n_pairs` (pairs of which anything was measured), `status` (the worst of `SEVERITY` that any
    model, pair or logarithm of the cell has; `missing` where it has no model) and `reason`. Raises FileError if
    the tree has no group `models`.
    """
    found = ok_values(tree)
    models = tree["models"].to_dataset()
    dims, multiplicities = found.dims, _multiplicities(models["seed"].values, weights)
    summary = xr.Dataset(coords={dim: models[dim] for dim in dims})
    degenerate: dict[str, NDArray[np.bool_]] = {}
    for name, values in found.models.items():
        mean, error = _model_means(values, multiplicities)
        if name in LOGGED:
            degenerate[name] = mean <= 0
            mean, error = log_means(mean, error)
        _add(
            summary,
            dims,
            _described(models[name], logged=name in LOGGED),
            mean,
            error if weights is None else None,
        )
    if "test_error" in summary:
        _add_accuracy(summary)
    measured = np.zeros((*found.ok.shape, found.ok.shape[-1]), dtype=bool)
    for name, values in found.pairs.items():
        measured |= np.isfinite(values)
        _add_pairs(summary, dims, tree["pairs"].dataset[name], values, multiplicities, with_error=weights is None)
    counts = {"n_ok": found.ok.sum(axis=-1), "n_pairs": measured.sum(axis=(-2, -1))}
    for count, of in (("n_ok", "models with status ok"), ("n_pairs", "pairs of which anything was measured")):
        summary[count] = (dims, counts[count], Quantity(count, "1", f"number of {of}", "count").attrs())
    status, reason = _verdicts(dims, models, tree, degenerate)
    summary["status"] = (dims, status, STATUS.attrs())
    summary["reason"] = (dims, reason, REASON.attrs())
    return summary


def ok_values(tree: xr.DataTree) -> OkValues:
    """Take the numbers that count: of models with status `ok`, and of pairs seed < seed_b of two such models.

    Raises FileError if the tree has no group `models`.
    """
    if "models" not in tree.children:
        raise FileError("The results have no group `models`, so there is nothing to summarise.")
    models = tree["models"].to_dataset()
    dims = tuple(str(dim) for dim in models["status"].dims if dim != "seed")
    ok = np.isin(models["status"].transpose(*dims, "seed").values.astype(str), USABLE)
    of_models = {name: np.where(ok, values, np.nan) for name, values in _numeric(models, (*dims, "seed"))}
    of_pairs: dict[str, Floats] = {}
    if "pairs" in tree.children:
        seeds = models["seed"].values
        places = {dim: models[dim].values for dim in dims} | {"seed": seeds, "seed_b": seeds}
        both = ok[..., :, None] & ok[..., None, :] & (seeds[:, None] < seeds[None, :])
        pairs = tree["pairs"].to_dataset().drop_vars(("status", "reason"), errors="ignore").reindex(places)
        found = _numeric(pairs, (*dims, "seed", "seed_b"))
        of_pairs = {name: np.where(both, values, np.nan) for name, values in found}
    return OkValues(dims, ok, of_models, of_pairs)


def weighted_means(values: Floats, weights: Floats) -> Floats:
    """Means over the finite entries: (..., k), weights (r, k) -> (..., r); NaN where no weight is left."""
    finite = np.isfinite(values)
    total = np.where(finite, values, 0.0) @ weights.T
    mass = finite.astype(np.float64) @ weights.T
    means = np.full(total.shape, np.nan)
    np.divide(total, mass, out=means, where=mass > 0)
    return means


def pair_means(values: Floats, weights: Floats) -> Floats:
    """Means over the pairs a < b, each weighing w_a w_b: values (..., s, s), weights (r, s) -> (..., r)."""
    first, second = np.triu_indices(values.shape[-1], 1)
    return weighted_means(values[..., first, second], weights[:, first] * weights[:, second])


def pair_errors(values: Floats) -> Floats:
    """Jackknife standard error over seeds of the mean over pairs: (..., s, s) -> (...).

    SE^2 = (n - 1)/n sum_s (m_s - mean m)^2, m_s the mean without seed s, over the n seeds with a measured pair;
    NaN where leaving out one of them leaves no pair. Treating pairs as independent would understate it.
    """
    size = values.shape[-1]
    upper = np.isfinite(values) & np.triu(np.ones((size, size), dtype=bool), 1)
    taking_part = upper.any(axis=-1) | upper.any(axis=-2)
    without = pair_means(values, 1.0 - np.eye(size))
    n = taking_part.sum(axis=-1)
    undefined = (n < 3) | (taking_part & np.isnan(without)).any(axis=-1)
    kept = np.where(taking_part & ~undefined[..., None], without, 0.0)
    centre = kept.sum(axis=-1) / np.maximum(n, 1)
    squares = np.where(taking_part, (kept - centre[..., None]) ** 2, 0.0).sum(axis=-1)
    return np.where(undefined, np.nan, np.sqrt(squares * (n - 1) / np.maximum(n, 1)))


def log_means(mean: Floats, error: Floats) -> tuple[Floats, Floats]:
    """ln(mean) and its delta-method standard error; both NaN where the mean is not positive."""
    positive = mean > 0
    safe = np.where(positive, mean, 1.0)
    return np.where(positive, np.log(safe), np.nan), np.where(positive, error / safe, np.nan)


def _model_means(data: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Mean over seeds and its standard error: (..., s) and (1, s) -> (...) twice."""
    mean = weighted_means(data, weights)[..., 0]
    finite = np.isfinite(data)
    n = finite.sum(axis=-1)
    plain = np.where(finite, data, 0.0).sum(axis=-1) / np.maximum(n, 1)
    squares = np.where(finite, data - plain[..., None], 0.0) ** 2
    variance = squares.sum(axis=-1) / np.maximum(n - 1, 1)
    return mean, np.where(n > 1, np.sqrt(variance / np.maximum(n, 1)), np.nan)


def _multiplicities(seeds: NDArray[Any], weights: Mapping[int, float] | None) -> Floats:
    if weights is None:
        return np.ones((1, len(seeds)))
    return np.array([[weights.get(int(seed), 0.0) for seed in seeds]], dtype=np.float64)


def _numeric(dataset: xr.Dataset, dims: tuple[str, ...]) -> Iterator[tuple[str, Floats]]:
    """Quantities of a group that lie over exactly `dims`, in that order, as float64."""
    for name, variable in dataset.data_vars.items():
        numeric = np.issubdtype(variable.dtype, np.number) and set(variable.dims) == set(dims)
        if numeric and not str(name).endswith(_ANCILLARY):
            yield str(name), variable.transpose(*dims).values.astype(np.float64)


def _described(variable: xr.DataArray, *, logged: bool = False, over: str = "ok seeds") -> Quantity:
    """Name and describe the mean of a variable after the attributes of the variable."""
    name, attrs = str(variable.name), variable.attrs
    long_name, units = attrs.get("long_name", name.replace("_", " ")), attrs.get("units", "1")
    given = f": {attrs['estimator']}" if attrs.get("estimator") else ""
    if logged:
        return Quantity(f"ln_{name}", "1", f"ln {long_name}", f"natural log of the mean over {over}{given}")
    return Quantity(name, units, long_name, f"mean over {over}{given}")


def _add(
    summary: xr.Dataset, dims: tuple[str, ...], quantity: Quantity, mean: Floats, error: Floats | None
) -> None:
    """Put a mean into the summary, with its standard error if it has one."""
    summary[quantity.name] = (dims, mean, quantity.attrs())
    if error is not None:
        paired = quantity.estimator.startswith("mean over measured pairs")
        rule = "jackknife over seeds" if paired else "std(ddof=1)/sqrt(n) over ok seeds"
        rule += ", delta method" if quantity.name.startswith("ln_") else ""
        described = Quantity("", quantity.units, f"standard error of {quantity.long_name}", rule)
        summary[f"{quantity.name}_se"] = (dims, error, described.attrs())


def _add_accuracy(summary: xr.Dataset) -> None:
    quantity = Quantity("test_accuracy", "%", "test accuracy", "100 - test_error")
    summary["test_accuracy"] = (100.0 - summary["test_error"]).assign_attrs(quantity.attrs())
    if "test_error_se" in summary:
        described = {"long_name": "standard error of test accuracy", "estimator": "that of test_error"}
        summary["test_accuracy_se"] = summary["test_error_se"].assign_attrs(units="%", **described)


def _add_pairs(
    summary: xr.Dataset,
    dims: tuple[str, ...],
    variable: xr.DataArray,
    values: Floats,
    multiplicities: Floats,
    *,
    with_error: bool,
) -> None:
    """Add the mean of a quantity over pairs, and the number of pairs behind it."""
    mean = pair_means(values, multiplicities)[..., 0]
    quantity = _described(variable, over="measured pairs")
    _add(summary, dims, quantity, mean, pair_errors(values) if with_error else None)
    count = Quantity("", "1", f"pairs behind {quantity.long_name}", "number of pairs where it is finite")
    summary[f"{quantity.name}_n"] = (dims, np.isfinite(values).sum(axis=(-2, -1)), count.attrs())


def _verdicts(
    dims: tuple[str, ...], models: xr.Dataset, tree: xr.DataTree, degenerate: Mapping[str, NDArray[np.bool_]]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Find the worst status of every cell, and one sentence for everything in it that is not ok."""
    shape = tuple(models.sizes[dim] for dim in dims)
    per_cell = [_texts(models, (*dims, "seed"), shape, "model")]
    if "pairs" in tree.children:
        pairs = tree["pairs"].to_dataset().reindex({dim: models[dim] for dim in dims}, fill_value="missing")
        per_cell.append(_texts(pairs, (*dims, "seed", "seed_b"), shape, "pair"))
    status, reason = np.full(shape, "ok", dtype=object), np.full(shape, "", dtype=object)
    for cell in np.ndindex(shape):
        if all(state == "missing" for state, *_ in per_cell[0][cell]):
            status[cell], reason[cell] = "missing", "the cell has no model"
            continue
        found = Counter(e for texts in per_cell for e in texts[cell] if e[0] not in ("ok", "missing"))
        for name, where in degenerate.items():
            if where[cell]:
                text = f"the mean of {name} over the seeds is not positive, so it has no logarithm"
                found["degenerate", text, "cell"] += 1
        ranked = sorted(found, key=lambda entry: (severity(entry[0]), entry))
        if ranked:
            status[cell] = ranked[0][0]
            reason[cell] = "; ".join(_sentence(entry, found[entry]) for entry in ranked)
    return status, reason


def _texts(
    dataset: xr.Dataset, dims: tuple[str, ...], shape: tuple[int, ...], noun: str
) -> NDArray[Any]:  # of lists of (status, reason, noun)
    """Statuses and reasons of the members of every cell."""
    lists = np.empty(shape, dtype=object)
    if "status" not in dataset:
        for cell in np.ndindex(shape):
            lists[cell] = []
        return lists
    states = dataset["status"].transpose(*dims).values.astype(str).reshape(*shape, -1)
    reasons = np.full(states.shape, "", dtype=object)
    if "reason" in dataset:
        reasons = dataset["reason"].transpose(*dims).values.astype(str).reshape(*shape, -1)
    for cell in np.ndindex(shape):
        lists[cell] = [(str(s), str(r), noun) for s, r in zip(states[cell], reasons[cell], strict=True)]
    return lists


def severity(status: str) -> int:
    """The rank of a status in `SEVERITY`, the worst first."""
    return SEVERITY.index(status) if status in SEVERITY else SEVERITY.index("failed")


def _sentence(entry: tuple[str, str, str], count: int) -> str:
    status, reason, noun = entry
    if noun == "cell":
        return f"{status}: {reason}"
    return f"{status} ({count} {noun}{'s' if count > 1 else ''})" + (f": {reason}" if reason else "")

"""Phases of a grid of training runs: labels from explicit thresholds, with margins and probabilities.

The rule, after [Yang2021]: a cell is *sharp* if ln(Hessian trace) > 5.5 or the training loss > 0.02 nat, *poorly
connected* if its mode connectivity < -1.75 percent; I is sharp and poor, II sharp and not poor, III flat and poor,
IV flat and not poor: IV-B where CKA >= 0.70, else IV-A. The default thresholds are read off the published grid
(ResNet18, CIFAR-10, learning-rate decay) and belong to its protocol.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from lossatlas import results, summary, transition
from lossatlas.errors import UserError
from lossatlas.phase_rule import (
    METRICS,
    PHASES,
    SIDES,
    Cutoff,
    Thresholds,
    decide,
    is_fourth,
    mad,
    margins,
    passes,
)
from lossatlas.results import REASON, STATUS, Quantity
from lossatlas.summary import Floats

__all__ = ["PHASES", "Thresholds", "label", "table", "to_csv"]

MAX_EXACT_SEEDS = 6  # 462 multisets; above, the bootstrap is sampled
DRAWS = 2000

_SOURCES = {"ln_trace": "ln_hessian_trace"}  # where the summary calls a metric otherwise
# Otsu's scales: logs for what is positive; mode connectivity has both signs over decades, so asinh of percent.
_SCALES = {"train_loss": (np.log, math.exp), "mode_connectivity": (np.arcsinh, math.sinh)}

_QUANTITIES = (
    Quantity("ln_trace", "1", "ln Hessian trace", "natural log of the mean over ok seeds"),
    Quantity("train_loss", "nat", "training loss", "mean over ok seeds"),
    Quantity("mode_connectivity", "%", "mode connectivity", "mean over measured pairs"),
    Quantity("cka", "1", "CKA similarity", "mean over measured pairs"),
)
_PHASE = Quantity("phase", "1", "phase", "I, II, III, IV-A or IV-B by the thresholds in the attributes")
_MARGIN = Quantity("margin", "1", "margin", "least |x - threshold| of the deciding cutoffs, in MADs over the grid")
_PROBABILITY = Quantity("probability", "1", "probability", "share of resamplings of the seeds that keep the phase")


def label(
    tree: xr.DataTree,
    *,
    thresholds: Thresholds | Mapping[str, float] | None = None,
    auto: bool = False,
    seed: int = 0,
    draws: int = DRAWS,
) -> xr.Dataset:
    """Label every cell of a results tree with its phase.

    `margin` is the least |x - threshold| over the tests that decide the label, each divided by that metric's
    median absolute deviation over the grid. Sharpness is one test with two quantities: a sharp cell's margin is
    the larger of the two exceedances; a flat cell's, where both must hold, the smaller gap. CKA decides in IV
    only. A metric that hardly varies (MAD 0) is infinitely far; NaN where no test has a finite margin.

    `probability` is the share of resamplings of a cell's ok seeds that keep its label at the same thresholds: the
    bootstrap, exact for up to 6 seeds, else `draws` draws from `seed`; without self-pairs, so given at least two
    different seeds, and given that a label can be decided. A pair metric with one measured pair is held fixed,
    which the attribute `held_fixed` tells (with two seeds, both are). NaN with fewer than two ok seeds.

    `thresholds` holds those that are given, as a mapping from the metrics' names; of a `Thresholds`, those count
    as given that differ from the defaults. `auto` derives the others from the grid: Otsu on ln trace, ln loss,
    asinh of mode connectivity, and CKA among the cells of IV, the only ones it decides. A metric without a
    transition (see `transition`) puts all cells on the side of its median with regard to its default. The
    attributes tell thresholds, their origin and the evidence as JSON. Raises FileError if the tree has no models,
    UserError if a threshold is no finite number or there is no such metric.
    """
    cells = summary.cells(tree)
    dims = tuple(str(dim) for dim in cells["n_ok"].dims)
    nothing = np.full(cells["n_ok"].shape, np.nan)
    values = {
        name: cells[source].values if (source := _SOURCES.get(name, name)) in cells else nothing
        for name in METRICS
    }
    cutoffs = _cutoffs(values, thresholds, auto=auto, seed=seed)
    codes = decide(values, cutoffs)
    scales = {name: mad(values[name]) for name in METRICS}
    held = summary.ok_values(tree)
    probability = _probability(held, values, codes, cutoffs, draws=draws, seed=seed)
    status, reason = _explain(cells, values, cutoffs, codes)

    labels = xr.Dataset(coords={dim: cells[dim] for dim in dims})
    labels["phase"] = (dims, np.array(PHASES, dtype=object)[codes], _PHASE.attrs())
    labels["margin"] = (dims, margins(values, cutoffs, scales, codes), _MARGIN.attrs())
    labels["probability"] = (dims, probability, _PROBABILITY.attrs())
    for quantity in _QUANTITIES:
        source = _SOURCES.get(quantity.name, quantity.name)
        units = cells[source].attrs["units"] if source in cells else quantity.units  # mc: percent, or nats
        labels[quantity.name] = (dims, values[quantity.name], {**quantity.attrs(), "units": units})
    labels["n_ok"] = cells["n_ok"]
    labels["status"] = (dims, status, STATUS.attrs())
    labels["reason"] = (dims, reason, REASON.attrs())
    labels.attrs = _attributes(cutoffs, scales, held)
    return labels


def table(labels: xr.Dataset) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one column an axis (load, then temperature), `phase`, `margin`, `probability`.

    Numbers have up to six significant digits, integers no `.0`, NaN is empty.
    """
    load, temperature = results.axes_of(labels)
    axes, columns = [*load, *temperature], ["phase", "margin", "probability"]
    ordered = labels.transpose(*axes)
    arrays = [ordered[name].values for name in columns]
    rows = []
    for where in np.ndindex(*(labels.sizes[axis] for axis in axes)):
        place = [labels[axis].values[k] for axis, k in zip(axes, where, strict=True)]
        rows.append([_text(value) for value in (*place, *(array[where] for array in arrays))])
    return [*axes, *columns], rows


def to_csv(labels: xr.Dataset) -> str:
    """Write the table as comma-separated text."""
    header, rows = table(labels)
    return "".join(",".join(row) + "\n" for row in (header, *rows))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    number = float(value)
    if math.isnan(number):
        return ""
    return str(int(number)) if number.is_integer() else f"{number:.6g}"


def _cutoffs(
    values: Mapping[str, Floats], thresholds: Thresholds | Mapping[str, float] | None, *, auto: bool, seed: int
) -> dict[str, Cutoff]:
    """Fix every threshold: one that is given always wins, the others are defaults or come from the grid."""
    usual = asdict(Thresholds())
    given = _given(thresholds, usual)
    cutoffs = {
        name: Cutoff(given.get(name, default), "given" if name in given else "default")
        for name, default in usual.items()
    }
    for name in METRICS if auto else ():  # CKA comes last: its cells depend on the other cuts
        if name not in given:
            grid = values[name]
            if name == "cka":
                grid = np.where(is_fourth(values, cutoffs), grid, np.nan)
            cutoffs[name] = _from_grid(name, grid, usual[name], seed=seed)
    return cutoffs


def _given(thresholds: Thresholds | Mapping[str, float] | None, usual: Mapping[str, float]) -> dict[str, float]:
    if isinstance(thresholds, Thresholds):
        return {name: x for name, x in asdict(thresholds).items() if x != usual[name]}
    given = dict(thresholds or {})
    if unknown := given.keys() - usual.keys():
        raise UserError(
            f"There is no threshold of {', '.join(sorted(unknown))}. There is one of {', '.join(usual)}."
        )
    Thresholds(**given)  # refuses what is no finite number
    return given


def _from_grid(name: str, grid: Floats, reference: float, *, seed: int) -> Cutoff:
    """Find the cut of one metric, or the side on which all cells are if there is none."""
    scale, inverse = _SCALES.get(name, (np.asarray, float))
    defined = np.isfinite(grid) & ((grid > 0) | (name != "train_loss"))
    scaled = np.full(grid.shape, np.nan)
    scaled[defined] = scale(grid[defined])
    cut = transition.find_cut(scaled, seed=seed)
    if cut.is_transition:
        return Cutoff(inverse(cut.threshold), "auto", evidence=cut)
    middle = float(np.median(grid[np.isfinite(grid)])) if np.isfinite(grid).any() else math.nan
    side = bool(passes(name, np.array(middle), Cutoff(reference, "")) == 1.0)
    return Cutoff(reference, "no transition", forced=side, evidence=cut)


def resamplings(n: int, *, draws: int, seed: int) -> tuple[Floats, Floats]:
    """Multiplicities of n seeds in a bootstrap (r, n), two different ones at least if n > 2, and shares (r,)."""
    if n <= MAX_EXACT_SEEDS:
        chosen = itertools.combinations_with_replacement(range(n), n)
        counts = np.array([np.bincount(each, minlength=n) for each in chosen], dtype=np.float64)
        ways = np.array([math.factorial(n) / math.prod(math.factorial(int(k)) for k in row) for row in counts])
    else:
        counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
        ways = np.ones(draws)
    # Two seeds have one pair, which is held fixed, so one seed twice is as good a resampling as any.
    kept = (counts > 0).sum(axis=1) > (1 if n > 2 else 0)
    return counts[kept], ways[kept] / ways[kept].sum()


def _probability(
    held: summary.OkValues,
    nominal: Mapping[str, Floats],
    codes: NDArray[np.int64],
    cutoffs: Mapping[str, Cutoff],
    *,
    draws: int,
    seed: int,
) -> Floats:
    """Share of the resamplings of the seeds, of those that can be decided, in which a cell keeps its label."""
    probability = np.full(codes.shape, np.nan)
    for alive in np.unique(held.ok.reshape(-1, held.ok.shape[-1]), axis=0):
        if alive.sum() < 2:
            continue
        here = (held.ok == alive).all(axis=-1) & (codes > 0)
        counts, shares = resamplings(int(alive.sum()), draws=draws, seed=seed)
        weights = np.zeros((len(counts), alive.size))
        weights[:, alive] = counts
        again = decide(_resampled(held, nominal, here, weights), cutoffs)
        decided = (again > 0) @ shares
        kept = (again == codes[here][:, None]) @ shares
        probability[here] = np.divide(kept, decided, out=np.full(decided.shape, np.nan), where=decided > 0)
    return probability


def _resampled(
    held: summary.OkValues, nominal: Mapping[str, Floats], here: NDArray[np.bool_], weights: Floats
) -> dict[str, Floats]:
    """The metrics of the cells `here` for every row of weights: each (cells, r)."""
    again = dict.fromkeys(METRICS, np.full((int(here.sum()), len(weights)), np.nan))
    if "hessian_trace" in held.models:
        means = summary.weighted_means(held.models["hessian_trace"][here], weights)
        again["ln_trace"], _ = summary.log_means(means, means)
    if "train_loss" in held.models:
        again["train_loss"] = summary.weighted_means(held.models["train_loss"][here], weights)
    for name in ("mode_connectivity", "cka"):
        if name in held.pairs:
            pairs = held.pairs[name][here]
            single = (np.isfinite(pairs).sum(axis=(-2, -1)) == 1)[:, None]
            again[name] = np.where(single, nominal[name][here][:, None], summary.pair_means(pairs, weights))
    return again


def _explain(
    cells: xr.Dataset, values: Mapping[str, Floats], cutoffs: Mapping[str, Cutoff], codes: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Status and reason of every cell: the summary's, and what a cell without a label lacks."""
    status, reason = cells["status"].values.astype(object), cells["reason"].values.astype(object)
    fourth = is_fourth(values, cutoffs)
    for where in zip(*np.nonzero(codes == 0), strict=True):
        if cells["n_ok"].values[where] == 0:
            continue
        needed = METRICS if fourth[where] else METRICS[:3]
        lacking = ", ".join(name for name in needed if np.isnan(values[name][where]))
        status[where] = "missing" if status[where] == "ok" else status[where]
        reason[where] = "; ".join(filter(None, [reason[where], f"no phase without {lacking}"]))
    return status, reason


def _attributes(
    cutoffs: Mapping[str, Cutoff], scales: Mapping[str, float], held: summary.OkValues
) -> dict[str, str]:
    """What the labels rest on, as text and JSON."""
    fixed = []
    for name, noun in (("mode_connectivity", "curve"), ("cka", "pair")):
        counts = np.isfinite(held.pairs[name]).sum(axis=(-2, -1)) if name in held.pairs else np.zeros(1)
        single, measured = int((counts == 1).sum()), int((counts > 0).sum())
        if single:
            part = "" if single == measured else f" in {single} of {measured} cells"
            fixed.append(f"{name} held fixed: one {noun}{part}")
    evidence = {
        name: {key: _json_number(value) for key, value in asdict(cutoff.evidence).items()}
        for name, cutoff in cutoffs.items()
        if cutoff.evidence is not None
    }
    return {
        "thresholds": json.dumps({name: cutoff.threshold for name, cutoff in cutoffs.items()}),
        "origin": json.dumps({name: cutoff.origin for name, cutoff in cutoffs.items()}),
        "sides": json.dumps({k: SIDES[k][c.forced] for k, c in cutoffs.items() if c.forced is not None}),
        "threshold_sources": json.dumps({each.name: each.metadata["source"] for each in fields(Thresholds)}),
        "evidence": json.dumps(evidence),
        "margin_scales": json.dumps({name: _json_number(scale) for name, scale in scales.items()}),
        "held_fixed": "; ".join(fixed),
        "resampling": "bootstrap of the ok seeds without self-pairs, at these thresholds",
    }


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None

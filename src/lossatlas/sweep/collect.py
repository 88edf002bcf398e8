"""From the plan and the store to the results tree; what is not in the store yet is `missing`."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import xarray as xr

from lossatlas import results
from lossatlas.measures import STEPS, section_of
from lossatlas.measures.models import NODE_QUANTITIES, OPERATOR_QUANTITIES
from lossatlas.results import REASON, STATUS, Quantity
from lossatlas.specs import Spec
from lossatlas.summary import USABLE, severity
from lossatlas.sweep.plan import CellPlan, Step
from lossatlas.sweep.store import Record, Store

TRAINING_QUANTITIES = (
    Quantity("epochs", "1", "epochs trained", "count"),
    Quantity("best_epoch", "1", "epoch of the lowest running training loss", "argmin"),
    Quantity("early_stopped_epoch", "1", "epoch at which the stop rule came true", "[Yang2021]"),
)
_RUNNING = "running mean over the epoch, train mode"
HISTORY_QUANTITIES = (
    Quantity("running_loss", "nat", "running training loss", _RUNNING),
    Quantity("running_error", "%", "running training error", _RUNNING),
    Quantity("running_lr", "1", "learning rate", "exact"),
)
MAKING = ("train", "evaluation")  # the steps that tell whether there is a model worth measuring
VERSIONED = ("torch", "numpy", "scipy", "xarray", "safetensors")

Values = dict[str, Any]
Records = dict[tuple[Any, ...], Values]


def collect(
    spec: Spec, cells: Sequence[CellPlan], store: Store, *, fingerprint: str, failures: Mapping[str, str]
) -> xr.DataTree:
    """The results of all steps that the store holds, as a tree of named arrays.

    `failures` are the reasons of steps that raised, by their keys. The status of a pair or a cell is the worst of
    its steps, and its reason names the steps that are not ok. So it is with a model, but one that is well trained
    and lacks a measure is `partial`: its other values count.
    """
    groups: dict[str, Records] = defaultdict(lambda: defaultdict(dict))
    reasons: dict[tuple[str, Any], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        for step in cell.steps:
            record = store.read(step.name, step.key)
            if record is None and step.key in failures:
                record = Record({}, "failed", failures[step.key])
            if record is None:
                continue
            group = _group_of(step.name)
            place = cell.cell if group == "cells" else (*cell.cell, *step.seeds)
            target = groups[group][place]
            status = min(target.get("status", "ok"), _status(step, record), key=severity)
            target |= {**record.values, "status": status}
            if record.status != "ok":
                reasons[group, place][record.reason].append(step.name)
            if step.name == "connectivity" and record.values:
                groups["curves"][place] = record.values
            if step.name == "density" and record.values:
                groups["densities"][place] = record.values
            if step.name == "train":
                groups["history"][place] = record.values
    for (group, place), named in reasons.items():
        groups[group][place]["reason"] = "; ".join(f"{', '.join(steps)}: {why}" for why, steps in named.items())
    return results.tree(_datasets(spec, groups), _attrs(spec, fingerprint))


def _group_of(step: str) -> str:
    scopes: dict[str, str] = {measure.name: measure.scope for measure in STEPS}
    return {"model": "models", "pair": "pairs", "cell": "cells"}[scopes.get(step, "model")]


def _status(step: Step, record: Record) -> str:
    """What a step makes of the status of its model, pair or cell."""
    of_model = step.measure is not None and step.measure.scope == "model"
    spares_the_rest = of_model and step.name not in MAKING and record.status not in USABLE
    return "partial" if spares_the_rest else record.status


def _datasets(spec: Spec, groups: Mapping[str, Records]) -> dict[str, xr.Dataset]:
    quantities = _quantities(spec)
    seeds: dict[str, Sequence[Any]] = {"seed": list(spec.seeds)}
    pair_seeds = {**seeds, "seed_b": list(spec.seeds)}
    largest = _counted(groups["models"], "hessian_eigs")
    ranks: dict[str, Sequence[Any]] = {"rank": largest} if largest else {}
    ts = {"t": _ts(groups["curves"])}
    longest = len(_counted(groups["history"], "running_loss"))  # more than `epochs` on fewer samples than `n_ref`
    epochs = {"epoch": list(range(1, max(spec.train.epochs, longest) + 1))}
    datasets = {
        "models": results.group(
            spec.axes, {**seeds, **ranks}, groups["models"], quantities["models"], along="rank"
        ),
        "history": results.group(
            spec.axes, {**seeds, **epochs}, groups["history"], HISTORY_QUANTITIES, along="epoch"
        ),
    }
    if groups["densities"]:
        datasets["densities"] = _densities(spec, groups["densities"])
    if groups["pairs"]:
        datasets["pairs"] = results.group(spec.axes, pair_seeds, groups["pairs"], quantities["pairs"])
    if groups["curves"]:
        extra = {**pair_seeds, **ts}
        datasets["curves"] = results.group(spec.axes, extra, groups["curves"], quantities["curves"], along="t")
    if groups["cells"]:
        datasets["cells"] = results.group(spec.axes, {}, groups["cells"], quantities["cells"])
    return datasets


def _densities(spec: Spec, records: Records) -> xr.Dataset:
    """The quadratures of all probes; one whose Krylov space was exhausted has fewer nodes."""
    probes: Records = {}
    for place, record in records.items():
        ends = itertools.accumulate(record["ritz_nodes"], initial=0)
        for probe, (start, end) in enumerate(itertools.pairwise(ends), 1):
            probes[*place, probe] = {each.name: record[each.name][start:end] for each in NODE_QUANTITIES}
    seeds: dict[str, Sequence[Any]] = {"seed": list(spec.seeds)}
    extra = {**seeds, "probe": _counted(records, "ritz_nodes"), "node": _counted(probes, "ritz_value")}
    nodes = results.group(spec.axes, extra, probes, NODE_QUANTITIES, along="node")
    return nodes.assign(results.group(spec.axes, seeds, records, OPERATOR_QUANTITIES).data_vars)


def _quantities(spec: Spec) -> dict[str, list[Quantity]]:
    """The variables of each group that the spec asks for."""
    asked = {name: settings for name, settings in spec.measured() if settings is not None}
    quantities: dict[str, list[Quantity]] = {"models": [*TRAINING_QUANTITIES]}
    for measure in STEPS:
        settings = measure.settings() if measure.always else asked.get(section_of(measure))
        if settings is not None:
            for group, named in measure.described(settings).items():
                quantities.setdefault(group, []).extend(named)
    for group in ("models", "pairs", "cells"):
        quantities.setdefault(group, []).extend([STATUS, REASON])
    return quantities


def _counted(records: Records, name: str) -> list[int]:
    longest = max((len(r[name]) for r in records.values() if name in r), default=0)
    return list(range(1, longest + 1))


def _ts(records: Records) -> list[float]:
    points = max((len(r["train_error"]) for r in records.values() if "train_error" in r), default=0)
    return [i / (points - 1) for i in range(points)]


def given(spec: Spec) -> dict[str, Any]:
    """A spec as it was given, so that it can be run again; where it ran is no part of the results."""
    return spec.model_dump(mode="json", exclude_unset=True, exclude={"slurm"})


def _attrs(spec: Spec, fingerprint: str) -> dict[str, Any]:
    connectivity = getattr(spec.measures, "connectivity", None)
    return {
        "lossatlas_version": version("lossatlas"),
        "name": spec.name,
        "spec": given(spec),
        "data_fingerprint": fingerprint,
        "batchnorm": {"models": "eval", "curves": "recalibrate"},
        "connectivity_rule": connectivity.rule if connectivity else "",
        "threads": 1,
        "versions": {name: version(name) for name in VERSIONED},
    }

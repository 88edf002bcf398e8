"""What finished steps took, and what that says about those that are left. Loads no torch."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lossatlas import files
from lossatlas.files import Damaged
from lossatlas.sweep.plan import Plan, Step
from lossatlas.sweep.store import Store

MOST_MEASURED = 2_000  # finished steps whose times are read before a run goes on
LEAST = 1e-3  # s: writing the files of a step takes as much, and meta.json tells no less


@dataclass(frozen=True)
class Finished:
    """How a finished step ended, how long it took and when."""

    step: Step
    index: int  # of its cell
    status: str
    seconds: float
    ended: float  # s since the epoch, by the clock of the machine that did it


@dataclass(frozen=True)
class Broken:
    """A step that is there and cannot be used."""

    step: Step
    problem: str


def look(store: Store, index: int, step: Step) -> Finished | Broken | None:
    """A finished step, from two small files; None if it is not there. Changes nothing."""
    try:
        record = store.look(step.name, step.key)
        if record is None:
            return None
        meta = json.loads(files.read_checked(store.folder(step.name, step.key), "meta.json"))
    except Damaged as error:
        return Broken(step, str(error))
    seconds = float(meta["seconds"])
    return Finished(step, index, record.status, seconds, float(meta["started"]) + seconds)


def refined(plan: Plan, seconds: NDArray[np.float64], finished: Iterable[Finished]) -> NDArray[np.float64]:
    """Predicted seconds (cells, kinds), scaled by what finished steps took over what was predicted for them.

    The factor of a kind of step and a model is sum(measured) / sum(predicted) over their finished steps; a model
    that has none takes the factor of the kind over all models, and a kind that has none stays as it was predicted.
    Steps of diverged models are left out: that they ended early says nothing about the others. No step takes less
    than LEAST, so that no factor is 0 or undefined.
    """
    column = plan.columns()
    models = _models(plan)
    scaled = np.maximum(seconds, LEAST)
    sums: dict[tuple[int, int], NDArray[np.float64]] = defaultdict(lambda: np.zeros(2))  # by kind and model
    for one in finished:
        if one.status != "diverged":
            kind = column[one.step.name]
            sums[kind, int(models[one.index])] += max(one.seconds, LEAST), scaled[one.index, kind]
    for kind in {kind for kind, _ in sums}:
        by_model = {model: total for (k, model), total in sums.items() if k == kind}
        measured, predicted = np.sum(list(by_model.values()), axis=0)
        factors = np.full(models.max() + 1, measured / predicted)
        for model, (took, expected) in by_model.items():
            factors[model] = took / expected
        scaled[:, kind] *= factors[models]
    return scaled


def _models(plan: Plan) -> NDArray[np.int64]:
    """The number of the model of every cell: equal numbers, equal models."""
    numbers: dict[str, int] = {}
    by_task: dict[int, int] = {}  # tasks are kept by the plan, so that their identity tells them apart
    found = []
    for cell in plan.cells:
        task = plan.task(cell)
        if id(task) not in by_task:
            by_task[id(task)] = numbers.setdefault(task.model.model_dump_json(), len(numbers))
        found.append(by_task[id(task)])
    return np.array(found, dtype=np.int64)

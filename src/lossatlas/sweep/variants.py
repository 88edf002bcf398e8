"""The plans of the variants of one spec: they share the steps that have the same key, above all the trainings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lossatlas import specs
from lossatlas.sweep.plan import Plan, Step
from lossatlas.sweep.remaining import per_cell
from lossatlas.sweep.run import open_folder, saved_plan, saved_spec
from lossatlas.sweep.store import Store

ALL = ""  # the distinct steps of all variants, beside the names of these
Seconds = NDArray[np.float64]  # (cells, kinds), as in `cost.Estimate`


def distinct(plans: Sequence[Plan]) -> Iterator[tuple[int, int, Step]]:
    """Every step of plans over the same cells once: the first plan that has it, its cell's index, the step."""
    for index, cell in enumerate(plans[0].cells):
        seen: set[str] = set()
        for number, plan in enumerate(plans):
            for step in plan.steps(cell):
                if step.key not in seen:
                    seen.add(step.key)
                    yield number, index, step


def together(plans: Sequence[Plan], seconds: Sequence[Seconds]) -> tuple[dict[str, int], float]:
    """How many steps of each kind they have, and the seconds of all; what they share is counted once."""
    if len(plans) == 1:  # by sums, since a large plan has millions of steps
        return plans[0].counts(), float((seconds[0] @ per_cell(plans[0])).sum())
    columns = [plan.columns() for plan in plans]
    counts: Counter[str] = Counter()
    total = 0.0
    for number, index, step in distinct(plans):
        counts[step.name] += 1
        total += float(seconds[number][index, columns[number][step.name]])
    return dict(counts), total


@dataclass(frozen=True)
class Progress:
    """Steps that are done, and all."""

    done: int
    total: int


def progress(root: Path) -> dict[str, Progress]:
    """How far each variant of a folder is by its name, and under ALL their distinct steps. Loads no torch.

    A variant that was not begun is planned on the data of one that was. Raises FileError for damaged files.
    """
    every = specs.variants(saved_spec(root))
    begun = {name: saved_plan(root / name).plan for name in every if (root / name / "plan.json").is_file()}
    known = next(iter(begun.values()), None)
    data = ("", 0) if known is None else (known.fingerprint, known.n_train)
    plans = {name: begun.get(name) or Plan(spec, *data) for name, spec in every.items()}
    store = open_folder(root / next(iter(begun)), None).store if begun else Store(root / "store")
    finished = {kind: store.finished(kind) for plan in plans.values() for kind in plan.counts()}

    def counted(steps: Iterable[Step]) -> Progress:
        are_done = [step.key in finished[step.name] for step in steps]
        return Progress(sum(are_done), len(are_done))

    found = {name: counted(step for _, _, step in distinct([plan])) for name, plan in plans.items()}
    return {**found, ALL: counted(step for _, _, step in distinct([*plans.values()]))}

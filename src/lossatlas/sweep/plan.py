"""From a spec to the list of steps, each with the key of its result. A pure function of spec and data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lossatlas.measures import STEPS, Measure, section_of
from lossatlas.results import Cell
from lossatlas.settings import Settings, content_key
from lossatlas.specs import Spec, Task, Train

TRAIN_VERSION = 1  # to be raised by hand whenever training the same spec gives other weights


@dataclass(frozen=True)
class Step:
    """One committed piece of work: train one seed, or one measure of one model, pair or cell."""

    name: str
    cell: Cell
    seeds: tuple[int, ...]
    content: dict[str, Any]
    inputs: tuple[str, ...] = ()  # keys of the training steps of `seeds`, in their order
    arrays: tuple[tuple[str, str], ...] = ()  # (step, key) of the steps whose arrays it takes
    measure: Measure | None = None
    settings: Settings | None = None

    @property
    def key(self) -> str:
        """The key of the result."""
        return content_key(self.content)


@dataclass(frozen=True)
class CellPlan:
    """One cell: its task and training, and its steps in an order that respects their inputs."""

    cell: Cell
    task: Task
    train: Train
    steps: tuple[Step, ...] = field(repr=False)


def plan(spec: Spec, fingerprint: str) -> list[CellPlan]:
    """The plan of a spec on the data with this fingerprint."""
    return [_cell_plan(spec, cell, fingerprint) for cell in spec.cells()]


def _cell_plan(spec: Spec, cell: Cell, fingerprint: str) -> CellPlan:
    task, train = spec.at(cell)
    trained = {seed: _train_step(cell, task, train, fingerprint, seed) for seed in spec.seeds}
    steps = [*trained.values()]
    for measure in STEPS:
        steps += _measure_steps(spec, cell, measure, trained, steps)
    return CellPlan(cell, task, train, tuple(steps))


def _train_step(cell: Cell, task: Task, train: Train, fingerprint: str, seed: int) -> Step:
    data = {k: v for k, v in task.data.content().items() if k in ("n_train", "label_noise", "definition")}
    model = {"name": task.model.name, **task.model.options}
    content = {
        "step": "train",
        "version": TRAIN_VERSION,
        "data": {"fingerprint": fingerprint, **data},
        "model": model,
        "loss": task.loss,
        "train": train.content(),
        "seed": seed,
    }
    return Step("train", cell, (seed,), content)


def _measure_steps(
    spec: Spec, cell: Cell, measure: Measure, trained: dict[int, Step], before: Sequence[Step]
) -> Iterator[Step]:
    settings = measure.settings() if measure.always else getattr(spec.measures, section_of(measure))
    if settings is None:
        return
    for seeds in _groups(measure, settings, spec.seeds):
        inputs = tuple(trained[seed].key for seed in seeds)
        arrays = tuple(
            (step.name, step.key) for step in before if step.name in measure.after and step.seeds == seeds
        )
        content = {
            "step": measure.name,
            "version": measure.version,
            "settings": measure.content(settings),
            "weights": spec.weights,
            "inputs": list(inputs),
            "arrays": [key for _, key in arrays],
        }
        yield Step(measure.name, cell, seeds, content, inputs, arrays, measure, settings)


def _groups(measure: Measure, settings: Settings, seeds: Sequence[int]) -> list[tuple[int, ...]]:
    if measure.scope == "model":
        return [(seed,) for seed in seeds]
    if measure.scope == "pair":
        return list(measure.pairs(settings, seeds))
    return [tuple(sorted(seeds))] if len(seeds) > 1 else []

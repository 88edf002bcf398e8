"""From a spec to the list of steps, each with the key of its result. A pure function of spec and data."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

from lossatlas.measures import STEPS, Measure, section_of
from lossatlas.results import Cell
from lossatlas.settings import Settings, canonical, text_key
from lossatlas.specs import Spec, Task, Train

T = TypeVar("T")

TRAIN_VERSION = 2  # to be raised by hand whenever training the same spec gives other weights

# The settings of `[task.data]` that say what is done to data once they are loaded; a fingerprint tells the rest.
DATA_KEYS = ("n_train", "label_noise", "definition", "image_noise")
TEST_KEYS = ("n_test", "test_noise")  # of them, those that only measures on test samples hang on


@dataclass(frozen=True, slots=True)
class Step:
    """One committed piece of work: train one seed, or one measure of one model, pair or cell."""

    name: str
    cell: Cell
    seeds: tuple[int, ...]
    key: str  # of the result
    text: str = field(repr=False)  # what determines the result, as the canonical text that the key is the hash of
    inputs: tuple[str, ...] = ()  # keys of the training steps of `seeds`, in their order
    arrays: tuple[tuple[str, str], ...] = ()  # (step, key) of the steps whose arrays it takes
    measure: Measure | None = None
    settings: Settings | None = None

    @property
    def content(self) -> dict[str, Any]:
        """What determines the result."""
        content: dict[str, Any] = json.loads(self.text)
        return content


@dataclass(frozen=True)
class CellPlan:
    """One cell: its task and training, and its steps in an order that respects their inputs."""

    cell: Cell
    task: Task
    train: Train
    steps: tuple[Step, ...] = field(repr=False)


class Plan(Sequence[CellPlan]):
    """The cells of a spec on the data with this fingerprint; the steps of a cell are derived when it is asked for.

    `n_train` is how many training samples the data have (0: not known): a subset of so many is none.
    A key costs a few microseconds, because the canonical text of a task or a training is made once for all cells
    that share it: a grid of 100,000 cells is walked in seconds and never held in memory as a whole.
    """

    def __init__(self, spec: Spec, fingerprint: str, n_train: int = 0) -> None:
        self.spec = spec
        self.fingerprint = fingerprint
        self.n_train = n_train
        self.cells = spec.cells()
        self._loads = len(spec.load)  # a cell is its values on the load axes, then those on the temperature axes
        self._tasks: dict[Cell, tuple[Task, str, str]] = {}
        self._trains: dict[Cell, tuple[Train, str]] = {}
        self._measures = [
            (measure, settings, canonical(measure.content(settings)), _groups(measure, settings, spec.seeds))
            for measure in STEPS
            if (settings := _settings(spec, measure)) is not None
        ]
        test = {k: v for k, v in spec.task.data.content().items() if k in TEST_KEYS}
        self._test = {name: canonical(value) for name, value in test.items()}
        self._loss, self._weights = canonical(spec.task.loss), canonical(spec.weights)

    def __len__(self) -> int:
        return len(self.cells)

    @overload
    def __getitem__(self, index: int) -> CellPlan: ...
    @overload
    def __getitem__(self, index: slice) -> list[CellPlan]: ...
    def __getitem__(self, index: int | slice) -> CellPlan | list[CellPlan]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        cell = self.cells[index]
        return CellPlan(cell, self.task(cell), self.train(cell), self.steps(cell))

    def task(self, cell: Cell) -> Task:
        """The task of a cell."""
        return self._task(cell)[0]

    def train(self, cell: Cell) -> Train:
        """The training of a cell."""
        return self._train(cell)[0]

    def steps(self, cell: Cell) -> tuple[Step, ...]:
        """The steps of a cell, in an order that respects their inputs."""
        trained = {seed: self._train_step(cell, seed) for seed in self.spec.seeds}
        steps = [*trained.values()]
        for measure, settings, text, groups in self._measures:
            before = [step for step in steps if step.name in measure.after]
            steps += [
                self._measure_step(cell, measure, settings, text, [trained[s] for s in group], before)
                for group in groups
            ]
        return tuple(steps)

    def kinds(self) -> list[tuple[str, Settings | None]]:
        """The name and the settings of every kind of step, in the order of a cell's steps."""
        return [
            ("train", None),
            *((measure.name, settings) for measure, settings, _, groups in self._measures if groups),
        ]

    def columns(self) -> dict[str, int]:
        """The place of every kind of step in this order, by its name: the columns of arrays (cells, kinds)."""
        return {name: k for k, (name, _) in enumerate(self.kinds())}

    def counts(self) -> dict[str, int]:
        """How many steps of each kind the whole plan has."""
        counts = {"train": len(self.spec.seeds)}
        counts |= {measure.name: len(groups) for measure, _, _, groups in self._measures if groups}
        return {name: count * len(self) for name, count in counts.items()}

    def _task(self, cell: Cell) -> tuple[Task, str, str]:
        """The task, and the texts of its data and its model."""

        def made() -> tuple[Task, str, str]:
            task = self.spec.at(cell)[0]
            given = {k: v for k, v in task.data.content().items() if k in DATA_KEYS}
            # What makes no difference is no part of a key, so that grids share what they have in common.
            if given.get("n_train") == self.n_train:
                del given["n_train"]
            if "label_noise" not in given:
                given.pop("definition", None)
            data = canonical({"fingerprint": self.fingerprint, **given})
            return task, data, canonical(task.model.content())

        return _kept(self._tasks, cell[: self._loads], made)

    def _train(self, cell: Cell) -> tuple[Train, str]:
        def made() -> tuple[Train, str]:
            train = self.spec.at(cell)[1]
            return train, canonical(train.content())

        return _kept(self._trains, cell[self._loads :], made)

    def _train_step(self, cell: Cell, seed: int) -> Step:
        _, data, model = self._task(cell)
        text = _joined(
            data=data,
            loss=self._loss,
            model=model,
            seed=str(seed),
            step='"train"',
            train=self._train(cell)[1],
            version=str(TRAIN_VERSION),
        )
        return Step("train", cell, (seed,), text_key(text), text)

    def _measure_step(
        self,
        cell: Cell,
        measure: Measure,
        settings: Settings,
        settings_text: str,
        trained: Sequence[Step],
        before: Sequence[Step],
    ) -> Step:
        seeds = tuple(step.seeds[0] for step in trained)
        inputs = tuple(step.key for step in trained)
        arrays = tuple((step.name, step.key) for step in before if step.seeds == seeds)
        test = self._test if measure.takes_test(settings) else {}
        text = _joined(
            arrays=_listed([key for _, key in arrays]),
            inputs=_listed(inputs),
            **test,
            settings=settings_text,
            step=f'"{measure.name}"',
            version=str(measure.version),
            weights=self._weights,
        )
        return Step(measure.name, cell, seeds, text_key(text), text, inputs, arrays, measure, settings)


def _settings(spec: Spec, measure: Measure) -> Settings | None:
    if measure.always:
        return measure.settings()
    settings: Settings | None = getattr(spec.measures, section_of(measure))
    return settings


def _groups(measure: Measure, settings: Settings, seeds: Sequence[int]) -> list[tuple[int, ...]]:
    if measure.scope == "model":
        return [(seed,) for seed in seeds]
    if measure.scope == "pair":
        return list(measure.pairs(settings, seeds))
    return [tuple(sorted(seeds))] if len(seeds) > 1 else []


def _kept(known: dict[Cell, T], key: Cell, made: Callable[[], T]) -> T:
    if key not in known:
        known[key] = made()
    return known[key]


def _joined(**parts: str) -> str:
    """The canonical text of a table whose values are canonical texts."""
    return "{" + ",".join(f'"{name}":{text}' for name, text in sorted(parts.items())) + "}"


def _listed(keys: Sequence[str]) -> str:
    """The canonical text of a list of keys, which are hexadecimal."""
    return "[" + ",".join(f'"{key}"' for key in keys) + "]"

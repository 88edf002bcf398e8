"""The sections of a spec: frozen, typed, hashable data."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, create_model

from lossatlas import measures, registry
from lossatlas.results import Axis, Cell
from lossatlas.settings import Count, Finite, Fraction, NonNegative, Positive, Settings
from lossatlas.specs.slurm import Slurm

# Which section and key of the spec an axis varies, and what its values may be.
AXES: dict[str, tuple[str, str, Literal["count", "fraction", "positive", "non-negative"]]] = {
    "width": ("model", "width", "count"),
    "embed_dim": ("model", "embed_dim", "count"),
    "n_train": ("data", "n_train", "count"),
    "label_noise": ("data", "label_noise", "fraction"),
    "batch_size": ("train", "batch_size", "count"),
    "lr": ("optimizer", "lr", "positive"),
    "weight_decay": ("optimizer", "weight_decay", "non-negative"),
}
LOADS = ("width", "embed_dim", "n_train", "label_noise")
TEMPERATURES = ("batch_size", "lr", "weight_decay")


class Data(Settings):
    """Which data, how many of them, and what was done to their labels."""

    name: str
    path: str | None = None  # where the files are; the content counts for the key, not the place
    n_train: Count | None = None  # the first n of a fixed order; None: all
    label_noise: Fraction = 0.0  # each training label is replaced with this probability
    definition: Literal["incorrect", "uniform"] = (
        "incorrect"  # by another class ([Yang2021]'s text), or any (its code)
    )


class Model(Settings, extra="allow"):
    """Which model; its options stand beside the name."""

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Everything beside the name."""
        return dict(self.__pydantic_extra__ or {})


class Task(Settings):
    """What is learnt, by what."""

    data: Data
    model: Model
    loss: str = "cross_entropy"


class Optimizer(Settings):
    """SGD: v <- momentum v + g + weight_decay theta, theta <- theta - lr v."""

    name: Literal["sgd"] = "sgd"
    lr: Positive = 0.05
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: NonNegative = 5e-4


class Schedule(Settings):
    """A constant rate, or one that is multiplied by `factor` once the fraction `at` of the epochs is over."""

    name: Literal["constant", "step"] = "constant"
    factor: float = Field(default=0.1, gt=0, le=1)
    at: float = Field(default=0.75, gt=0, lt=1)


class EarlyStop(Settings):
    """[Yang2021]: the running training loss moved less than `tolerance` for `patience` epochs, from `start` on."""

    tolerance: Positive = 1e-4
    patience: Count = 5
    start: Count = 30


class Train(Settings):
    """The training recipe."""

    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    batch_size: Count = 128
    epochs: Count
    early_stop: EarlyStop = EarlyStop()
    keep: tuple[int, ...] = ()  # epochs whose weights are kept as well; 0: the initialisation


_SECTIONS: dict[str, Any] = {row.name: (row.settings | None, None) for row in measures.TABLE if not row.always}
Measures = create_model("Measures", __base__=Settings, **_SECTIONS)


class Phases(Settings):
    """Where one phase ends and the next begins: `auto`, or thresholds (those not given are the defaults)."""

    auto: bool = False  # derived from the grid at hand
    ln_trace: Finite | None = None
    train_loss: Finite | None = None
    mode_connectivity: Finite | None = None
    cka: Finite | None = None


class Spec(Settings):
    """A whole run: the grid, its seeds, the task, the training and the measures.

    Every section is valid by itself; that they fit together is checked by `validate`.
    """

    name: str = Field(min_length=1, max_length=200)
    seeds: tuple[int, ...]
    load: dict[str, tuple[float, ...]]
    temperature: dict[str, tuple[float, ...]]
    task: Task
    train: Train
    weights: Literal["best", "early-stopped", "final"] = (
        "best"  # what is measured; early-stopped falls back to best
    )
    measures: Measures = Measures()
    phases: Phases = Phases()
    slurm: Slurm = Slurm()

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The load axes and the temperature axis, their values ascending."""
        return tuple(
            Axis(name, tuple(sorted(_typed(name, values))), role)  # type: ignore[arg-type]
            for role, group in (("load", self.load), ("temperature", self.temperature))
            for name, values in group.items()
        )

    def cells(self) -> list[Cell]:
        """Every point of the grid, one value an axis."""
        return list(itertools.product(*(axis.values for axis in self.axes)))

    def at(self, cell: Cell) -> tuple[Task, Train]:
        """The task and the training of one cell: the axes' values put in their places."""
        task, train = self.task.model_dump(), self.train.model_dump()
        sections = {"model": task["model"], "data": task["data"], "train": train, "optimizer": train["optimizer"]}
        for axis, value in zip(self.axes, cell, strict=True):
            section, key, _ = AXES[axis.name]
            sections[section][key] = value
        entry = registry.MODELS.get(task["model"]["name"])
        if entry:  # spelled out, so that a key does not hang on a default
            task["model"] = {**entry.options, **task["model"]}
        return Task.model_validate(task), Train.model_validate(train)

    def measured(self) -> list[tuple[str, Settings | None]]:
        """The measures' names and settings; None where the spec does not ask for one."""
        return [(name, getattr(self.measures, name)) for name in type(self.measures).model_fields]


def _typed(axis: str, values: Sequence[float]) -> tuple[float | int, ...]:
    return tuple(int(v) for v in values) if AXES[axis][2] == "count" else tuple(values)

"""What to run: a spec read from TOML into frozen, validated, hashable data. Builds nothing.

All problems of a spec are reported at once, each with its key, what was given and what is allowed.
"""

from __future__ import annotations

import difflib
import itertools
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, Field, ValidationError, create_model, model_validator
from pydantic_core import ErrorDetails

from lossatlas import measures, registry
from lossatlas.errors import FileError, SpecError
from lossatlas.results import Axis, Cell
from lossatlas.settings import Count, Finite, Fraction, NonNegative, Positive, Settings

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
    """A whole run: the grid, its seeds, the task, the training and the measures."""

    name: str = Field(min_length=1, max_length=200)
    seeds: tuple[int, ...] = Field(min_length=1)
    load: dict[str, tuple[float, ...]] = Field(min_length=1)
    temperature: dict[str, tuple[float, ...]] = Field(min_length=1, max_length=1)
    task: Task
    train: Train
    weights: Literal["best", "early-stopped", "final"] = (
        "best"  # what is measured; early-stopped falls back to best
    )
    measures: Measures = Measures()
    phases: Phases = Phases()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [*_seed_problems(self.seeds), *_axis_problems(self), *_name_problems(self)]
        problems += measures.problems({name: s for name, s in self.measured() if s}, self.seeds)
        if problems:
            raise ValueError("\n".join(problems))
        return self

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


def _seed_problems(seeds: tuple[int, ...]) -> list[str]:
    problems = [f"seeds: {seed} is negative; allowed are integers from 0 on" for seed in seeds if seed < 0]
    if len(set(seeds)) < len(seeds):
        problems.append(f"seeds: {list(seeds)} holds a seed twice; give each once")
    return problems


def _axis_problems(spec: Spec) -> list[str]:
    problems = []
    given = {
        "model": set(spec.task.model.options),
        "data": spec.task.data.model_fields_set,
        "train": spec.train.model_fields_set,
        "optimizer": spec.train.optimizer.model_fields_set,
    }
    places = {"model": "task.model", "data": "task.data", "train": "train", "optimizer": "train.optimizer"}
    for role, group, allowed in (("load", spec.load, LOADS), ("temperature", spec.temperature, TEMPERATURES)):
        for name, values in group.items():
            where = f"{role}.{name}"
            if name not in allowed:
                problems.append(
                    f"{where}: no such {role} axis; allowed are {', '.join(allowed)}{_hint(name, allowed)}"
                )
                continue
            section, key, kind = AXES[name]
            problems += _value_problems(where, values, kind)
            if key in given[section]:
                problems.append(
                    f"{places[section]}.{key}: given although {where} varies it; remove one of the two"
                )
    return problems


def _value_problems(where: str, values: Sequence[float], kind: str) -> list[str]:
    if not values:
        return [f"{where}: the axis is empty; give at least one value"]
    tests: dict[str, tuple[Callable[[float], bool], str]] = {
        "count": (lambda v: v >= 1 and float(v).is_integer(), "integers from 1 on"),
        "fraction": (lambda v: 0 <= v <= 1, "numbers from 0 to 1"),
        "positive": (lambda v: 0 < v < float("inf"), "numbers above 0"),
        "non-negative": (lambda v: 0 <= v < float("inf"), "numbers from 0 on"),
    }
    allowed, text = tests[kind]
    problems = [f"{where}: {value:g} was given; allowed are {text}" for value in values if not allowed(value)]
    if len(set(values)) < len(values):
        problems.append(f"{where}: a value stands there twice; give each once")
    return problems


def _name_problems(spec: Spec) -> list[str]:
    problems = []
    tables = (
        ("task.data.name", spec.task.data.name, registry.DATA),
        ("task.model.name", spec.task.model.name, registry.MODELS),
        ("task.loss", spec.task.loss, registry.LOSSES),
    )
    for where, name, table in tables:
        if name not in table and not registry.is_custom(name):
            allowed = ", ".join(table)
            problems.append(
                f"{where}: {name!r} does not exist; allowed are {allowed}, or your own as module:function"
                f"{_hint(name, list(table))}"
            )
    entry = registry.MODELS.get(spec.task.model.name)
    return problems + (_option_problems(spec, entry) if entry else [])


def _option_problems(spec: Spec, entry: registry.Entry) -> list[str]:
    name = spec.task.model.name
    swept = {AXES[axis][1] for axis in spec.load if axis in AXES and AXES[axis][0] == "model"}
    problems = []
    for option, value in spec.task.model.options.items():
        if option not in entry.options:
            problems.append(
                f"task.model.{option}: {name} has no such option; allowed are {', '.join(entry.options)}"
                f"{_hint(option, list(entry.options))}"
            )
        elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
            problems.append(f"task.model.{option}: {value!r} was given; allowed are integers from 1 on")
    for option in sorted(swept - set(entry.options)):
        problems.append(f"load.{option}: {name} has no option {option}; it has {', '.join(entry.options)}")
    for option, default in entry.options.items():
        if default is None and option not in spec.task.model.options and option not in swept:
            problems.append(f"task.model.{option}: missing; {name} needs it here or as a load axis")
    return problems


def _hint(given: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, allowed, n=1)
    return f". Did you mean {close[0]}?" if close else ""


def read(path: Path, overrides: Mapping[str, Any] | None = None) -> Spec:
    """Read a TOML file into a Spec; raises FileError or SpecError (all problems at once)."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(
            f"The spec {path} cannot be read ({getattr(error, 'strerror', None) or error}). Give a TOML file, the name "
            "of a preset (see `lossatlas presets`) or a run folder."
        ) from error
    return parse(text, str(path), overrides)


def parse(text: str, source: str, overrides: Mapping[str, Any] | None = None) -> Spec:
    """A Spec from TOML text; `overrides` maps dotted keys to values that replace or add to it."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(source, [f"it is not valid TOML: {error}"]) from error
    return validate(overridden(raw, overrides or {}), source)


def overridden(raw: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The plain data of a spec with the values at these dotted keys replaced or added, in place."""
    for key, value in overrides.items():
        _put(raw, key.split("."), value)
    return raw


def _put(raw: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = raw.get(key)
        if not isinstance(inner, dict):
            inner = raw[key] = {}
        raw = inner
    raw[keys[-1]] = value


def validate(raw: Mapping[str, Any], source: str) -> Spec:
    """A Spec from plain data; raises SpecError with every problem."""
    try:
        # Through JSON, where strict mode takes an array for a tuple but still no text for a number.
        return Spec.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise SpecError(source, [line for e in error.errors() for line in _sentences(e)]) from None


def _sentences(error: ErrorDetails) -> list[str]:
    where = ".".join(str(part) for part in error["loc"]) or "the spec"
    given = error["input"]
    if error["type"] == "extra_forbidden":
        allowed = _keys_at(error["loc"][:-1])
        return [f"{where}: unknown key; allowed are {', '.join(allowed)}{_hint(str(error['loc'][-1]), allowed)}"]
    if error["type"] == "missing":
        return [f"{where}: missing; it must be given"]
    if error["type"] == "value_error":
        text = str(error["ctx"]["error"])
        return text.split("\n") if not error["loc"] else [f"{where}: {line}" for line in text.split("\n")]
    message = error["msg"][0].lower() + error["msg"][1:]
    shown = given if isinstance(given, str | int | float | bool) or given is None else type(given).__name__
    return [f"{where}: {shown!r} was given; {message}"]


def _keys_at(loc: Sequence[str | int]) -> list[str]:
    """The keys that the section at `loc` of a spec may have."""
    section: Any = Spec
    for part in loc:
        field = section.model_fields.get(part) if isinstance(part, str) else None
        if field is None:
            break
        inner = [t for t in (field.annotation, *get_args(field.annotation)) if _is_section(t)]
        if not inner:
            break
        section = inner[0]
    return list(section.model_fields)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def scaled(spec: Spec, scale: float) -> Spec:
    """The same experiment, smaller: about `scale` of the values of each axis (its ends stay), of the seeds and epochs.

    At least two values an axis (where it has them), two seeds and one epoch stay. Raises SpecError unless
    0 < scale <= 1.
    """
    if not 0 < scale <= 1:
        raise SpecError("--scale", [f"{scale:g} was given; allowed are numbers above 0 up to 1"])

    def some(values: Sequence[Any]) -> list[Any]:
        ordered = sorted(values)
        keep = min(len(ordered), max(2, round(scale * len(ordered))))
        return [ordered[round(i * (len(ordered) - 1) / max(1, keep - 1))] for i in range(keep)]

    raw = spec.model_dump(mode="json", exclude_unset=True)
    for role in ("load", "temperature"):
        raw[role] = {name: some(values) for name, values in raw[role].items()}
    raw["seeds"] = list(spec.seeds)[: max(2, round(scale * len(spec.seeds)))]
    raw["train"]["epochs"] = max(1, round(scale * spec.train.epochs))
    connectivity = raw.get("measures", {}).get("connectivity")
    if connectivity and "epochs" in connectivity:
        connectivity["epochs"] = max(1, round(scale * connectivity["epochs"]))
    return validate(raw, f"{spec.name} scaled by {scale:g}")

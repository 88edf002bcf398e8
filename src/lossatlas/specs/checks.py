"""Whether the sections of a spec fit together: every problem as a line `key: what was given; what is allowed`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lossatlas import measures, registry
from lossatlas.specs.schema import AXES, LOADS, TEMPERATURES, Spec, Train

LARGEST_SEED = 2**63 - 1  # the results keep seeds as 64-bit integers


def problems(spec: Spec) -> list[str]:
    """All that is wrong with a spec whose sections are valid one by one."""
    asked = {name: settings for name, settings in spec.measured() if settings is not None}
    return [
        *_seed_problems(spec.seeds),
        *_keep_problems(spec.train),
        *_axis_problems(spec),
        *_name_problems(spec),
        *(measures.problems(asked, spec.seeds) if spec.seeds else []),
    ]


def hint(given: str, allowed: Sequence[str]) -> str:
    """The end of a sentence: which allowed name was probably meant, if one is close."""
    close = difflib.get_close_matches(given, allowed, n=1)
    return f". Did you mean {close[0]}?" if close else ""


def _seed_problems(seeds: tuple[int, ...]) -> list[str]:
    allowed = f"allowed are integers from 0 to {LARGEST_SEED}"
    problems = [f"seeds: {seed} was given; {allowed}" for seed in seeds if not 0 <= seed <= LARGEST_SEED]
    if not seeds:
        problems.append("seeds: none was given; give at least one, two for measures of pairs")
    if len(set(seeds)) < len(seeds):
        problems.append(f"seeds: {list(seeds)} was given; allowed is each seed once")
    return problems


def _keep_problems(train: Train) -> list[str]:
    allowed = f"allowed are epochs from 0 (the initialisation) to {train.epochs}, each once"
    wrong = [epoch for epoch in train.keep if not 0 <= epoch <= train.epochs]
    twice = len(set(train.keep)) < len(train.keep)
    return [f"train.keep: {list(train.keep)} was given; {allowed}"] if wrong or twice else []


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
        if not group:
            problems.append(f"{role}: no axis was given; allowed are {', '.join(allowed)}")
        for name, values in group.items():
            where = f"{role}.{name}"
            if name not in allowed:
                problems.append(
                    f"{where}: there is no such {role} axis; allowed are {', '.join(allowed)}{hint(name, allowed)}"
                )
                continue
            section, key, kind = AXES[name]
            problems += _value_problems(where, values, kind)
            if key in given[section]:
                problems.append(
                    f"{places[section]}.{key}: given although {where} varies it; remove one of the two"
                )
    if len(spec.temperature) > 1:
        problems.append(f"temperature: {', '.join(spec.temperature)} were given; allowed is one axis")
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
        shown = ", ".join(f"{value:g}" for value in values)
        problems.append(f"{where}: {shown} was given; allowed is each value once")
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
                f"{hint(name, list(table))}"
            )
    entry = registry.MODELS.get(spec.task.model.name)
    return problems + (_model_problems(spec, entry) if entry else [])


def _model_problems(spec: Spec, entry: registry.Entry) -> list[str]:
    name, options = spec.task.model.name, spec.task.model.options
    swept = {AXES[axis][1] for axis in spec.load if axis in AXES and AXES[axis][0] == "model"}
    problems = option_problems(name, options, "task.model.")
    for option in sorted(swept - set(entry.options)):
        problems.append(f"load.{option}: {name} has no option {option}; it has {', '.join(entry.options)}")
    for option in missing_options(name, options) if spec.load else ():
        if option not in swept:
            problems.append(f"task.model.{option}: missing; {name} needs it here or as a load axis")
    return problems


def option_problems(name: str, options: Mapping[str, Any], prefix: str) -> list[str]:
    """What is wrong with the options of a model that comes with lossatlas; nothing is known of other models."""
    if name not in registry.MODELS:
        return []
    known = registry.MODELS[name].options
    problems = []
    for option, value in options.items():
        if option not in known:
            problems.append(
                f"{prefix}{option}: {name} has no such option; allowed are {', '.join(known)}"
                f"{hint(option, list(known))}"
            )
        elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
            problems.append(f"{prefix}{option}: {value!r} was given; allowed are integers from 1 on")
    return problems


def missing_options(name: str, options: Mapping[str, Any]) -> list[str]:
    """The options that a model that comes with lossatlas must be given and was not."""
    known = registry.MODELS[name].options if name in registry.MODELS else {}
    return [option for option, default in known.items() if default is None and option not in options]

"""Whether the sections of a spec fit together: every problem as a line `key: what was given; what is allowed`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lossatlas import measures, registry
from lossatlas.specs.schema import AXES, LOADS, TEMPERATURES, Optimizer, Schedule, Spec, Train

# The measures that variants may differ in, and what of each is set side by side.
ABLATED: Mapping[str, str] = {
    "cka": "cka",
    "connectivity": "mode_connectivity",
    "hessian": "ln_hessian_trace",
    "disagreement": "disagreement",
    "bleu": "bleu",
}
_FOLDERS = ("store", "figures", "failed", "logs", "running", "slurm")  # of a run, beside those of its variants
_FOLDER = re.compile(r"[A-Za-z0-9][\w.+-]*")

LARGEST_SEED = 2**63 - 1  # the results keep seeds as 64-bit integers


def problems(spec: Spec) -> list[str]:
    """All that is wrong with a spec whose sections are valid one by one."""
    asked = {name: settings for name, settings in spec.measured() if settings is not None}
    return [
        *_seed_problems(spec.seeds),
        *_train_problems(spec.train),
        *_optimizer_problems(spec),
        *_schedule_problems(spec.train),
        *_axis_problems(spec),
        *_name_problems(spec),
        *_data_problems(spec),
        *_text_problems(spec),
        *_variant_problems(spec),
        *(measures.problems(asked, spec.seeds, text=_is_text(spec)) if spec.seeds else []),
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


def _variant_problems(spec: Spec) -> list[str]:
    """What is wrong with the names and the keys of variants; that each is a valid spec is checked one by one."""
    problems = []
    for name, changes in spec.variants.items():
        where = f"variants.{name}"
        if not _FOLDER.fullmatch(name) or name in _FOLDERS:
            problems.append(
                f"{where}: its name is that of a folder; allowed are letters, digits and . _ + -, and none of "
                f"{', '.join(_FOLDERS)}"
            )
        for key in changes:
            parts = key.split(".")
            if len(parts) < 3 or parts[0] != "measures" or parts[1] not in ABLATED:
                allowed = ", ".join(f"measures.{section}" for section in ABLATED)
                problems.append(f"{where}: {key} was given; variants differ in keys of {allowed}")
    return problems


def _train_problems(train: Train) -> list[str]:
    # With n_ref a training has as many epochs as its samples ask for: one that it does not reach is not kept.
    last = train.epochs if train.n_ref is None else max(train.keep, default=0)
    to = f"to {train.epochs}" if train.n_ref is None else "on"
    wrong = any(not 0 <= epoch <= last for epoch in train.keep)
    problems = []
    if wrong or len(set(train.keep)) < len(train.keep):
        allowed = f"allowed are epochs from 0 (the initialisation) {to}, each once"
        problems.append(f"train.keep: {list(train.keep)} was given; {allowed}")
    if train.init_sha256 is not None and train.init is None:
        problems.append("train.init_sha256: given without weights; give their file as train.init, or remove it")
    return problems


# The settings that only some optimisers or schedules have.
OWN: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "train.optimizer": {
        "momentum": ("sgd",),
        "nesterov": ("sgd",),
        "betas": ("adam", "adamw"),
        "eps": ("adam", "adamw"),
    },
    "train.schedule": {"factor": ("step",), "at": ("step",), "final": ("cosine",)},
}


def _optimizer_problems(spec: Spec) -> list[str]:
    optimizer = spec.train.optimizer
    problems = _foreign_problems("train.optimizer", optimizer)
    given = optimizer.model_fields_set
    if optimizer.name != "sgd" and "lr" not in given and "lr" not in spec.temperature:
        problems.append(
            f"train.optimizer.lr: missing; {optimizer.name} must be given one, the default is that of sgd"
        )
    if optimizer.name == "sgd" and optimizer.nesterov and not optimizer.momentum:
        problems.append("train.optimizer.nesterov: true was given; it needs a momentum above 0")
    return problems


def _schedule_problems(train: Train) -> list[str]:
    schedule = train.schedule
    problems = _foreign_problems("train.schedule", schedule)
    if schedule.warmup_epochs and schedule.warmup_steps:
        problems.append(
            f"train.schedule.warmup_steps: {schedule.warmup_steps} was given beside warmup_epochs; remove one of "
            "the two"
        )
    if schedule.name == "inverse-sqrt" and not (schedule.warmup_epochs or schedule.warmup_steps):
        problems.append(
            "train.schedule.name: inverse-sqrt was given without a warm-up, which sets its scale; give "
            "warmup_steps or warmup_epochs"
        )
    if train.n_ref is None and schedule.warmup_epochs >= train.epochs:
        problems.append(
            f"train.schedule.warmup_epochs: {schedule.warmup_epochs:g} was given; allowed are less than "
            f"{train.epochs}, the epochs"
        )
    return problems


def _foreign_problems(where: str, section: Optimizer | Schedule) -> list[str]:
    """What is given although what the section names does not have it."""
    return [
        f"{where}.{key}: given although {section.name} has none; it is for {' and '.join(owners)}"
        for key, owners in OWN[where].items()
        if key in section.model_fields_set and section.name not in owners
    ]


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
        if name in table or registry.is_custom(name) or (table is registry.MODELS and registry.is_library(name)):
            continue
        others = "torchvision:NAME, hf:PATH, " if table is registry.MODELS else ""
        problems.append(
            f"{where}: {name!r} does not exist; allowed are {', '.join(table)}, {others}or your own as "
            f"module:function{hint(name, list(table))}"
        )
    return problems + _model_problems(spec)


def _data_problems(spec: Spec) -> list[str]:
    data = spec.task.data
    if data.test_noise and not (data.label_noise or data.image_noise or "label_noise" in spec.load):
        return ["task.data.test_noise: true was given and no noise; give label_noise or image_noise, or remove it"]
    return []


def _is_text(spec: Spec) -> bool | None:
    """Whether the data are sentences and their translations; None where nothing is known of them."""
    entry = registry.DATA.get(spec.task.data.name)
    return entry.text if entry else None


def _text_problems(spec: Spec) -> list[str]:
    """What of the task takes text where the data are none, or the other way round."""
    data, is_text = spec.task.data, _is_text(spec)
    problems = []
    for where, name, table in (
        ("task.model.name", spec.task.model.name, registry.MODELS),
        ("task.loss", spec.task.loss, registry.LOSSES),
    ):
        if is_text is not None and name in table and table[name].text != is_text:
            allowed = ", ".join(other for other, entry in table.items() if entry.text == is_text)
            kind = "text" if is_text else "no text"
            problems.append(
                f"{where}: {name} was given, and the data {data.name} are {kind}; allowed are {allowed}"
            )
    if is_text and (data.label_noise or "label_noise" in spec.load):
        where = "task.data.label_noise" if data.label_noise else "load.label_noise"
        problems.append(f"{where}: the tokens of a text have no label noise; remove it")
    connectivity = dict(spec.measured()).get("connectivity")
    by_loss = getattr(connectivity, "on", "error") == "loss"
    if by_loss and spec.phases.mode_connectivity is None and not spec.phases.auto:
        problems.append(
            "phases.mode_connectivity: missing; the default is in percent of error, and measures.connectivity.on "
            '= "loss" measures in nats. Give it, or phases.auto = true'
        )
    return problems


def _model_problems(spec: Spec) -> list[str]:
    name, options = spec.task.model.name, spec.task.model.options
    swept = {AXES[axis][1] for axis in spec.load if axis in AXES and AXES[axis][0] == "model"}
    problems = option_problems(name, options, "task.model.")
    if name in registry.MODELS or name.startswith(registry.HF):
        known = registry.MODELS[name].options if name in registry.MODELS else {}
        for option in sorted(swept - set(known)):
            has = f"it has {', '.join(known)}" if known else "its size is that of the checkpoint"
            problems.append(f"load.{option}: {name} has no option {option}; {has}")
    for option in missing_options(name, options) if spec.load else ():
        if option not in swept:
            problems.append(f"task.model.{option}: missing; {name} needs it here or as a load axis")
    return problems


def option_problems(name: str, options: Mapping[str, Any], prefix: str) -> list[str]:
    """What is wrong with the options of a model; of one's own model nothing is known, of torchvision's little."""
    if name in registry.MODELS:
        entry = registry.MODELS[name]
        found = {option: _own_option_problem(name, entry, option, value) for option, value in options.items()}
    else:
        found = {option: _library_option_problem(name, option, value) for option, value in options.items()}
    return [f"{prefix}{option}: {problem}" for option, problem in found.items() if problem]


def _own_option_problem(name: str, entry: registry.Entry, option: str, value: Any) -> str:
    """What is wrong with an option of a model that comes with lossatlas; empty if nothing is."""
    if option in entry.options and isinstance(entry.options[option], float):
        is_fraction = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
        return "" if is_fraction else f"{value!r} was given; allowed are numbers from 0 to 1"
    if option in entry.options:
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        return "" if is_count else f"{value!r} was given; allowed are integers from 1 on"
    if option in entry.choices:
        words = entry.choices[option]
        allowed = f"allowed are {', '.join(words)}{hint(str(value), words)}"
        return "" if value in words else f"{value!r} was given; {allowed}"
    known = [*entry.options, *entry.choices]
    return f"{name} has no such option; allowed are {', '.join(known)}{hint(option, known)}"


def _library_option_problem(name: str, option: str, value: Any) -> str:
    """What is wrong with an option of another library's model, as far as can be told without it."""
    if name.startswith(registry.HF) and option != "fingerprint":
        return f"a checkpoint has no such option; allowed is fingerprint{hint(option, ['fingerprint'])}"
    if name.startswith(registry.HF):
        is_fingerprint = isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{32}", value))
        return "" if is_fingerprint else f"{value!r} was given; allowed are 32 hexadecimal digits"
    if name.startswith(registry.TORCHVISION) and option == "weights" and not isinstance(value, str):
        return f"{value!r} was given; allowed are DEFAULT and the other names that torchvision has"
    return ""


def missing_options(name: str, options: Mapping[str, Any]) -> list[str]:
    """The options that a model that comes with lossatlas must be given and was not."""
    known = registry.MODELS[name].options if name in registry.MODELS else {}
    return [option for option, default in known.items() if default is None and option not in options]

"""A spec from TOML, with every problem told at once; and the same experiment, smaller."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lossatlas import registry
from lossatlas.errors import FileError, SpecError
from lossatlas.specs import checks
from lossatlas.specs.schema import AXES, Spec
from lossatlas.specs.slurm import Slurm

MODEL_SIZES = {key for section, key, _ in AXES.values() if section == "model"}
LEAST_TESTED = 1000  # test samples that a smaller experiment keeps
LONGEST_SHOWN = 60  # characters of a wrong value in a message


def read(path: Path, overrides: Mapping[str, Any] | None = None) -> Spec:
    """Read a TOML file into a Spec; raises FileError or SpecError (all problems at once)."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(
            f"The spec {path} cannot be read ({getattr(error, 'strerror', None) or error}). Give a TOML file, the "
            "name of a preset (see `lossatlas presets`) or a run folder."
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
    # Through JSON, where strict mode takes an array for a tuple but still no text for a number.
    text = json.dumps(raw, default=str)
    try:
        spec = Spec.model_validate_json(text)
    except ValidationError as error:
        found = error.errors()
        lines = [_sentence(e) for e in found] + _further_problems(json.loads(text), [e["loc"] for e in found])
        raise SpecError(source, lines) from None
    problems = checks.problems(spec)
    if problems:
        raise SpecError(source, problems)
    variants(spec, source)
    return spec


def variants(spec: Spec, source: str = "") -> dict[str, Spec]:
    """The spec of every variant by its name, an ordinary one; empty for a spec without variants.

    Raises SpecError with every problem of every variant.
    """
    found, problems = {}, []
    for name, changes in spec.variants.items():
        raw = spec.model_dump(mode="json", exclude_unset=True, exclude={"variants"})
        try:
            found[name] = validate(overridden({**raw, "name": f"{spec.name}/{name}"}, changes), name)
        except SpecError as error:
            problems += [f"variants.{name}: {line}" for line in error.problems]
    if problems:
        raise SpecError(source or spec.name, problems)
    return found


def slurm_section(raw: Mapping[str, Any], source: str) -> Slurm:
    """The section `slurm` by itself, from plain data; raises SpecError with every problem."""
    try:
        return Spec.model_validate_json(json.dumps({**_NEUTRAL, "slurm": raw}, default=str)).slurm
    except ValidationError as error:
        raise SpecError(source, [_sentence(e) for e in error.errors()]) from None


# Completes a spec that lacks required keys without giving the checks anything to complain about.
_NEUTRAL: dict[str, Any] = {
    "name": "-",
    "seeds": [],
    "load": {},
    "temperature": {},
    "task": {"data": {"name": "a:b"}, "model": {"name": "a:b"}},
    "train": {"epochs": 1},
}


def _further_problems(raw: dict[str, Any], places: Sequence[tuple[str | int, ...]]) -> list[str]:
    """What the checks across sections find in a spec with wrong values, once these are taken out."""
    # Backwards: what is taken out of a list must not shift what is yet to be taken out of it.
    reported = [_take_out(raw, place) for place in reversed(places)]
    try:
        spec = Spec.model_validate_json(json.dumps(_completed(raw, _NEUTRAL)))
    except ValidationError:
        return []
    return [
        line
        for line in checks.problems(spec)
        if not any(_same_or_within(line.split(":")[0], key) for key in reported)
    ]


def _take_out(raw: dict[str, Any], place: tuple[str | int, ...]) -> str:
    """Remove what stands at `place`, and the list or section that it leaves empty; returns the key gone."""
    holder: Any = raw
    for part in place[:-1]:
        inside = part in holder if isinstance(holder, dict) else isinstance(holder, list)
        holder = holder[part] if inside else None
    if isinstance(holder, dict):
        holder.pop(place[-1], None)
    elif isinstance(holder, list):
        del holder[int(place[-1])]
    return _take_out(raw, place[:-1]) if holder == [] or (holder == {} and len(place) > 1) else _key(place)


def _completed(raw: Mapping[str, Any], neutral: Mapping[str, Any]) -> dict[str, Any]:
    """`raw` with the keys of `neutral` that it lacks, at every level."""
    sections = {key: value for key, value in neutral.items() if isinstance(value, dict) and key in raw}
    return {**neutral, **raw, **{key: _completed(raw[key], value) for key, value in sections.items()}}


def _same_or_within(key: str, reported: str) -> bool:
    return f"{key}.".startswith(f"{reported}.")


def _key(place: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in place)


def _sentence(error: ErrorDetails) -> str:
    where = _key(error["loc"]) or "the spec"
    if error["type"] == "extra_forbidden":
        allowed = _keys_at(error["loc"][:-1])
        return (
            f"{where}: unknown key; allowed are {', '.join(allowed)}{checks.hint(str(error['loc'][-1]), allowed)}"
        )
    if error["type"] == "missing":
        return f"{where}: missing; it must be given"
    shown = shortened(json.dumps(error["input"]))
    if error["type"] == "value_error":
        return f"{where}: {shown} was given; {error['ctx']['error']}"
    return f"{where}: {shown} was given; {error['msg'][0].lower()}{error['msg'][1:]}"


def shortened(given: str) -> str:
    """A value as it stands in a message."""
    return given if len(given) <= LONGEST_SHOWN else given[: LONGEST_SHOWN - 4] + " ..."


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


def check_scale(scale: float) -> None:
    """Raise SpecError unless 0 < scale <= 1."""
    if not 0 < scale <= 1:
        raise SpecError("--scale", [f"{scale:g} was given; allowed are numbers above 0 up to 1"])


def scaled(spec: Spec, scale: float) -> Spec:
    """The same experiment, smaller: about `scale` of each axis's values, of seeds, epochs and training samples.

    Of the sizes of a model the smallest values stay, since the largest take most of the time, and one that is no
    axis shrinks, too; of other axes the ends stay, of batch sizes those up to `scale` of the largest, so that an
    epoch of fewer samples has as many steps. At least two values an axis (where it has them), two seeds and one
    epoch are left. Samples are fewer where the number of all is known, but those of training never fewer than a
    batch, and those of the test never fewer than 1,000, whose error has a standard error of 1.6 % at most.
    `reduced` tells what is less. Raises SpecError unless 0 < scale <= 1.
    """
    check_scale(scale)
    if scale == 1:
        return spec
    raw = spec.model_dump(mode="json", exclude_unset=True)
    for role in ("load", "temperature"):
        raw[role] = {name: _some(name, values, scale) for name, values in raw[role].items()}
    for size in MODEL_SIZES & raw["task"]["model"].keys():
        raw["task"]["model"][size] = max(1, round(scale * raw["task"]["model"][size]))
    raw["seeds"] = list(spec.seeds)[: max(2, round(scale * len(spec.seeds)))]
    raw["train"]["epochs"] = max(1, round(scale * spec.train.epochs))
    schedule = raw["train"].get("schedule", {})
    if "warmup_epochs" in schedule:
        schedule["warmup_epochs"] = scale * spec.train.schedule.warmup_epochs
    if "warmup_steps" in schedule:  # fewer epochs of fewer batches
        schedule["warmup_steps"] = round(scale**2 * spec.train.schedule.warmup_steps)
    if spec.train.keep:
        raw["train"]["keep"] = sorted({min(epoch, raw["train"]["epochs"]) for epoch in spec.train.keep})
    connectivity = raw.get("measures", {}).get("connectivity")
    if connectivity is not None:
        connectivity["epochs"] = spec.measures.model_dump()["connectivity"]["epochs"]
        _scale_curve(connectivity, scale, raw["seeds"])
    for changes in raw.get("variants", {}).values():
        _scale_curve(changes, scale, raw["seeds"], "measures.connectivity.")
    if "n_ref" in raw["train"]:
        raw["train"]["n_ref"] = max(1, round(scale * raw["train"]["n_ref"]))
    _take_fewer_samples(raw, spec, scale)
    n_test = _test_samples(spec) or 0
    if n_test > (fewer := max(LEAST_TESTED, round(scale * n_test))):
        raw["task"]["data"]["n_test"] = fewer
    small = validate(raw, f"{spec.name} scaled by {scale:g}")
    return small.model_copy(update={"reduced": _told(spec, small, scale)})


def _scale_curve(settings: dict[str, Any], scale: float, seeds: Sequence[int], prefix: str = "") -> None:
    """Shorten the training of a curve in place, of which these are given; fewer seeds have fewer pairs."""
    for key in ("epochs", "n_ref"):
        if prefix + key in settings:
            settings[prefix + key] = max(1, round(scale * settings[prefix + key]))
    if isinstance(settings.get(prefix + "pairs"), int | list):
        settings[prefix + "pairs"] = _pairs_left(settings[prefix + "pairs"], seeds)


def _some(axis: str, values: Sequence[Any], scale: float) -> list[Any]:
    """About `scale` of the values of an axis."""
    ordered = sorted(values)
    keep = min(len(ordered), max(2, round(scale * len(ordered))))
    if axis in MODEL_SIZES:
        return ordered[:keep]
    if axis == "batch_size":
        ordered = [size for k, size in enumerate(ordered) if k < keep or size <= scale * ordered[-1]]
    return [ordered[round(i * (len(ordered) - 1) / max(1, keep - 1))] for i in range(keep)]


def _take_fewer_samples(raw: dict[str, Any], spec: Spec, scale: float) -> None:
    """Scale the numbers of training samples in place, where they are known; the largest batches that fit stay."""
    axis = raw["load"].get("n_train")
    everything = _samples(spec)
    if everything is None and axis is None:
        return
    batches = raw["temperature"].get("batch_size", [spec.train.batch_size])
    least = int(min(batches))
    if axis is not None:
        raw["load"]["n_train"] = sorted({max(least, round(scale * n)) for n in axis})
        fewest = raw["load"]["n_train"][0]
    else:
        fewest = raw["task"]["data"]["n_train"] = max(least, round(scale * (everything or 0)))
    if "batch_size" in raw["temperature"]:
        raw["temperature"]["batch_size"] = [size for size in batches if size <= fewest]


def _samples(spec: Spec) -> int | None:
    """The training samples of a spec without an axis of them; None where they are not known without the data."""
    entry = registry.DATA.get(spec.task.data.name)
    if spec.task.data.n_train is not None or entry is None or entry.facts is None:
        return spec.task.data.n_train
    return entry.facts.limited(spec.task.data.limit).n_train


def _test_samples(spec: Spec) -> int | None:
    """The test samples of a spec; None where they are not known without the data."""
    entry, asked = registry.DATA.get(spec.task.data.name), spec.task.data.n_test
    if entry is None or entry.facts is None:
        return asked
    there = entry.facts.limited(spec.task.data.limit).n_test
    return there if asked is None else min(asked, there)


def _told(full: Spec, small: Spec, scale: float) -> str:
    """What a scaled spec has less of, for captions."""
    parts = [
        f"{few.name.replace('_', ' ')} {len(few.values)}/{len(many.values)}"
        for many, few in zip(full.axes, small.axes, strict=True)
        if len(few.values) < len(many.values)
    ]
    parts += [
        f"{what} {few}/{many}"
        for what, many, few in (
            ("seeds", len(full.seeds), len(small.seeds)),
            ("epochs", full.train.epochs, small.train.epochs),
            ("curve epochs", _curve_epochs(full), _curve_epochs(small)),
            ("samples", _most_samples(full), _most_samples(small)),
            ("test samples", _test_samples(full), _test_samples(small)),
            *(
                (size, full.task.model.options.get(size), small.task.model.options.get(size))
                for size in sorted(MODEL_SIZES)
            ),
        )
        if many is not None and few is not None and few < many
    ]
    return f"scaled by {scale:g} ({', '.join(parts)})" if parts else ""


def _curve_epochs(spec: Spec) -> int | None:
    connectivity = spec.measures.model_dump()["connectivity"]
    return None if connectivity is None else int(connectivity["epochs"])


def _most_samples(spec: Spec) -> int | None:
    """The training samples of the cells that have most of them."""
    return int(max(spec.load["n_train"])) if "n_train" in spec.load else _samples(spec)


def _pairs_left(pairs: int | list[list[int]], seeds: Sequence[int]) -> int | list[list[int]]:
    """The pairs that fewer seeds leave: as many as there are, or those listed that are whole, else one."""
    if isinstance(pairs, int):
        return min(pairs, max(1, len(seeds) * (len(seeds) - 1) // 2))
    return [pair for pair in pairs if set(pair) <= set(seeds)] or 1

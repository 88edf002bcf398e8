"""A spec from TOML, with every problem told at once."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lossatlas.errors import FileError, SpecError
from lossatlas.specs import checks
from lossatlas.specs.schema import Spec
from lossatlas.specs.slurm import Slurm

LONGEST_SHOWN = 60  # characters of a wrong value in a message


def read(path: Path, overrides: Mapping[str, Any] | None = None) -> Spec:
    """Read a TOML file, or the spec.json of a run folder, into a Spec.

    Raises FileError or SpecError (all problems at once).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(
            f"The spec {path} cannot be read ({getattr(error, 'strerror', None) or error}). Give a TOML file, the "
            "name of a preset (see `lossatlas presets`) or a run folder."
        ) from error
    if path.suffix != ".json":
        return parse(text, str(path), overrides)
    return validate(overridden(_from_json(text, str(path)), overrides or {}), str(path))


def _from_json(text: str, source: str) -> dict[str, Any]:
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise SpecError(source, [f"it is not valid JSON: {error}"]) from error
    if not isinstance(raw, dict):
        raise SpecError(source, ["it holds no table of keys"])
    return raw


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
        lines = sentences(found, _sentence) + _further_problems(json.loads(text), [e["loc"] for e in found])
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
        raise SpecError(source, sentences(error.errors(), _sentence)) from None


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
    where = _key(error["loc"])
    if error["type"] == "extra_forbidden" and error["loc"] == ("data",):
        of_grids = "of the spec of a grid it is task.data, as in task.data.path"
        return f"data: unknown key; {of_grids} (data.NAME.path is of a study)"
    if error["type"] == "extra_forbidden":
        allowed = _keys_at(error["loc"][:-1])
        return (
            f"{where}: unknown key; allowed are {', '.join(allowed)}{checks.hint(str(error['loc'][-1]), allowed)}"
        )
    return f"{where or 'the spec'}: {said(error)}"


def sentences(errors: Sequence[ErrorDetails], sentence: Callable[[ErrorDetails], str]) -> list[str]:
    """What is wrong with a section, a sentence each; of a list that is too short one, whatever it lacks."""
    told: dict[Any, str] = {}
    for error in errors:
        if error["type"] == "missing" and isinstance(error["loc"][-1], int):
            *place, last = error["loc"]
            error = {**error, "type": "too_short", "loc": tuple(place), "ctx": {"min_length": int(last) + 1}}
        told[error["loc"], error["type"]] = sentence(error)
    return list(told.values())


def said(error: ErrorDetails) -> str:
    """What is wrong with a value, in plain words, without the key."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return "missing; it must be given"
    if kind in ("too_short", "too_long"):
        count, bound = (context["min_length"], "least") if kind == "too_short" else (context["max_length"], "most")
        allowed = f"give at {bound} {count} value{'s' * (count > 1)}"
    elif kind in ("tuple_type", "list_type"):
        is_text = isinstance(error["input"], str) and error["input"].startswith("[")
        quoted = """ whose texts stand in double quotes, in a shell as '["a", "b"]'""" if is_text else ""
        allowed = f"input should be a list{quoted or ', such as [1, 2]'}"
    elif kind == "value_error":
        allowed = str(context["error"])
    else:
        allowed = f"{error['msg'][0].lower()}{error['msg'][1:]}"
    return f"{shortened(json.dumps(error['input']))} was given; {allowed}"


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

"""A spec from TOML, with every problem told at once; and the same experiment, smaller."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lossatlas.errors import FileError, SpecError
from lossatlas.specs import checks
from lossatlas.specs.schema import Spec

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

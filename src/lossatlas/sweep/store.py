"""The content-addressed store: a finished step is a folder that exists, and nothing else is true of it.

    STORE/<step>/<k0k1>/<key>/{spec,meta,result}.json, *.safetensors

`spec.json` is what the key was made of, `result.json` the values and the status, `meta.json` how and when it was
made (never part of a result).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from lossatlas import files
from lossatlas.settings import content_key

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Record:
    """What a finished step left: its values, its status and why it is not ok."""

    values: dict[str, Any]
    status: str
    reason: str


class Store:
    """A folder of finished steps; safe to share between runs and workers."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, step: str, key: str) -> Path:
        """Where the step with this key is, or will be."""
        return self.root / step / key[:2] / key

    def has(self, step: str, key: str) -> bool:
        """Whether the step is finished."""
        return self.folder(step, key).is_dir()

    def read(self, step: str, key: str) -> Record | None:
        """The record of a finished step; None if there is none, or if it was damaged (it is then set aside)."""
        path = self.folder(step, key) / "result.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return Record(_decoded(content["values"]), content["status"], content["reason"])
        except FileNotFoundError:
            if not self.has(step, key):
                return None
        except (ValueError, KeyError, TypeError, UnicodeDecodeError):
            pass
        self.set_aside(step, key)
        return None

    def arrays(self, step: str, key: str, name: str) -> dict[str, NDArray[Any]] | None:
        """The arrays of one file of a finished step; None if it is missing or was damaged (it is then set aside)."""
        path = self.folder(step, key) / f"{name}.safetensors"
        try:
            return safetensors.numpy.load(path.read_bytes())
        except (OSError, safetensors.SafetensorError):
            if self.has(step, key):
                self.set_aside(step, key)
            return None

    def set_aside(self, step: str, key: str) -> Path:
        """Move a damaged step out of the way, to be looked at; it will be made again."""
        folder = self.folder(step, key)
        aside = self.root / "damaged" / files.temporary_name(f"{step}-{key}").removeprefix(files.TEMPORARY)
        aside.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(aside)
        return aside

    def commit(
        self,
        step: str,
        content: Mapping[str, Any],
        record: Record,
        *,
        meta: Mapping[str, Any],
        arrays: Mapping[str, Arrays] | None = None,
    ) -> None:
        """Keep a finished step under the key of `content`, all at once; raises FileError if it cannot be written."""
        key = content_key(content)
        result = {"values": _encoded(record.values), "status": record.status, "reason": record.reason}
        parts = {"spec.json": _json(content), "meta.json": _json(meta), "result.json": _json(result)}
        for name, named in (arrays or {}).items():
            contiguous = {k: np.ascontiguousarray(v) for k, v in named.items()}
            parts[f"{name}.safetensors"] = safetensors.numpy.save(contiguous)
        files.commit_folder(self.folder(step, key), parts, scratch=self.root)


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _encoded(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN or infinity: they are kept as the texts that float() reads."""
    return {name: _encode(value) for name, value in values.items()}


def _encode(value: Any) -> Any:
    if isinstance(value, list):
        return [_encode(item) for item in value]
    return {"float": repr(value)} if isinstance(value, float) and not np.isfinite(value) else value


def _decoded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _decode(value) for name, value in values.items()}


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return float(value["float"]) if isinstance(value, dict) else value

"""The content-addressed store: a finished step is a folder that exists, and nothing else is true of it.

    STORE/<step>/<k0k1>/<key>/{spec,meta,result}.json, *.safetensors

`spec.json` is what the key was made of, `result.json` the values, the status and the check sums of the arrays,
`meta.json` how and when it was made (never part of a result).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from lossatlas import files
from lossatlas.errors import FileError
from lossatlas.settings import content_key

T = TypeVar("T")
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
        self.damaged: list[Path] = []  # where the damaged steps that were met have been put

    def folder(self, step: str, key: str) -> Path:
        """Where the step with this key is, or will be."""
        return self.root / step / key[:2] / key

    def has(self, step: str, key: str) -> bool:
        """Whether the step is finished."""
        return self.folder(step, key).is_dir()

    def read(self, step: str, key: str) -> Record | None:
        """The record of a finished step; None if there is none, or if it was damaged (it is then set aside)."""

        def read() -> Record:
            result = self._result(step, key)
            return Record(_decoded(result["values"]), result["status"], result["reason"])

        return self._undamaged(step, key, read)

    def arrays(self, step: str, key: str, name: str) -> dict[str, NDArray[Any]] | None:
        """The arrays of one file of a finished step; None if there are none, or if it was damaged (see `read`)."""

        def read() -> dict[str, NDArray[Any]]:
            content = (self.folder(step, key) / f"{name}.safetensors").read_bytes()
            if hashlib.sha256(content).hexdigest() != self._result(step, key)["sha256"][name]:
                raise ValueError("the check sum differs")
            return safetensors.numpy.load(content)

        return self._undamaged(step, key, read)

    def set_aside(self, step: str, key: str) -> None:
        """Move a damaged step out of the way, to be looked at; it will be made again."""
        aside = self.root / "damaged" / files.temporary_name(f"{step}-{key}").removeprefix(files.TEMPORARY)
        files.set_aside(self.folder(step, key), aside)
        self.damaged.append(aside)

    def _undamaged(self, step: str, key: str, read: Callable[[], T]) -> T | None:
        if not self.has(step, key):
            return None
        try:
            return read()
        except (
            FileNotFoundError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ):  # whatever a damaged file gives
            self.set_aside(step, key)
            return None
        except OSError as error:
            folder = self.folder(step, key)
            raise FileError(
                f"{folder} cannot be read: {error.strerror}. Mend that; nothing was changed."
            ) from error

    def _result(self, step: str, key: str) -> dict[str, Any]:
        result: dict[str, Any] = json.loads((self.folder(step, key) / "result.json").read_bytes())
        return result

    def commit(
        self,
        step: str,
        content: Mapping[str, Any],
        record: Record,
        *,
        meta: Mapping[str, Any],
        arrays: Mapping[str, Arrays] | None = None,
    ) -> None:
        """Keep a finished step under the key of `content`, all at once; raises FileError if it cannot be."""
        key = content_key(content)
        saved = {
            name: safetensors.numpy.save({k: np.asarray(v, order="C") for k, v in named.items()})
            for name, named in (arrays or {}).items()
        }
        result = {"values": _encoded(record.values), "status": record.status, "reason": record.reason}
        result["sha256"] = {name: hashlib.sha256(part).hexdigest() for name, part in saved.items()}
        parts = {"spec.json": _json(content), "meta.json": _json(meta), "result.json": _json(result)}
        parts |= {f"{name}.safetensors": part for name, part in saved.items()}
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

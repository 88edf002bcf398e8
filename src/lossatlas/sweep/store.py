"""The content-addressed store: a finished step is a folder that exists, and nothing else is true of it.

    STORE/<step>/<k0k1>/<key>/{spec,meta,result}.json, *.safetensors, SHA256SUMS
    STORE/unfinished/<step>-<key>.safetensors    the checkpoint of a long step (unfinished.py)
    STORE/damaged/                               what was damaged, to be looked at

`spec.json` is what the key was made of, `result.json` the values and the status, `meta.json` how and when it was
made (never part of a result), `SHA256SUMS` the check sums of all of these, compared whenever a file is read.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from lossatlas import files
from lossatlas.errors import FileError
from lossatlas.files import Damaged
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

    def finished(self, step: str) -> set[str]:
        """The keys of all finished steps of this name, by listing folders: a few microseconds each."""
        keys: set[str] = set()
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root / step) as groups:
            for group in groups:
                keys.update(entry.name for entry in os.scandir(group))
        return keys

    def read(self, step: str, key: str) -> Record | None:
        """The record of a finished step; None if there is none, or if it was damaged (it is then set aside)."""
        return self._undamaged(step, key, self.look)

    def look(self, step: str, key: str) -> Record | None:
        """As `read`, but nothing is changed: raises Damaged where the record is."""
        if not self.has(step, key):
            return None
        result = _content(self.folder(step, key), "result.json")
        return Record(_decoded(result["values"]), result["status"], result["reason"])

    def arrays(self, step: str, key: str, name: str) -> dict[str, NDArray[Any]] | None:
        """The arrays of one file of a finished step; None if there are none, or if it was damaged (see `read`)."""

        def load(step: str, key: str) -> dict[str, NDArray[Any]] | None:
            if not self.has(step, key):
                return None
            return safetensors.numpy.load(files.read_checked(self.folder(step, key), f"{name}.safetensors"))

        return self._undamaged(step, key, load)

    def verify(self, step: str, key: str) -> list[str]:
        """What is wrong with a finished step, one sentence a file, after reading all of it; changes nothing."""
        folder = self.folder(step, key)
        if not folder.is_dir():
            return []
        with _explained(folder):
            try:
                sums = files.saved_sums(folder)
            except Damaged as error:
                return [str(error)]
            found = {path.name for path in folder.iterdir()} - {files.SUMS}
            problems = [f"{folder / name} is not in {files.SUMS}" for name in sorted(found - sums.keys())]
            for name in sums:
                try:
                    files.read_checked(folder, name)
                except Damaged as error:
                    problems.append(str(error))
            if not problems and content_key(_content(folder, "spec.json")) != key:
                problems.append(f"{folder} is not where its spec.json belongs")
            return problems

    def set_aside(self, step: str, key: str) -> None:
        """Move a damaged step out of the way, to be looked at; it will be made again."""
        self._set_aside(self.folder(step, key), f"{step}-{key}")

    def aside(self) -> set[Path]:
        """All that was ever set aside, by whomever, and not removed since."""
        return set((self.root / "damaged").glob("*"))

    def _set_aside(self, path: Path, name: str) -> None:
        aside = self.root / "damaged" / files.unique_name(name)
        if files.set_aside(path, aside):
            self.damaged.append(aside)

    def _undamaged(self, step: str, key: str, read: Callable[[str, str], T]) -> T | None:
        with _explained(self.folder(step, key)):
            try:
                return read(step, key)
            except Damaged:
                self.set_aside(step, key)
                return None

    def unfinished(self, step: str, key: str) -> Path:
        """Where the checkpoint of a step that is not finished is, or will be."""
        return self.root / "unfinished" / f"{step}-{key}.safetensors"

    def checkpoints(self) -> dict[tuple[str, str], Path]:
        """The checkpoints of unfinished steps, by step and key."""
        found = {}
        for path in (self.root / "unfinished").glob("*.safetensors"):
            step, _, key = path.stem.rpartition("-")
            found[step, key] = path
        return found

    def checkpoint_times(self) -> dict[tuple[str, str], int]:
        """When they were written, in ns."""
        found = {}
        for place, path in self.checkpoints().items():
            with contextlib.suppress(FileNotFoundError):
                found[place] = path.stat().st_mtime_ns
        return found

    def set_unfinished_aside(self, step: str, key: str) -> None:
        """Move a checkpoint that cannot be continued from out of the way; the step will be started anew."""
        self._set_aside(self.unfinished(step, key), f"unfinished-{step}-{key}")

    def tidy(self) -> None:
        """Remove what died between a commit and the end of its checkpoint, and temporaries of dead writers."""
        for folder in (self.root, self.root / "unfinished"):
            files.remove_dead_temporaries(folder)
        for (step, key), path in self.checkpoints().items():
            if self.has(step, key):
                files.remove(path)

    def commit(
        self,
        step: str,
        content: Mapping[str, Any],
        record: Record,
        *,
        meta: Mapping[str, Any],
        arrays: Mapping[str, Arrays] | None = None,
        others: Mapping[str, bytes] | None = None,
    ) -> None:
        """Keep a finished step under the key of `content`, all at once, and remove its checkpoint.

        `others` are further files by their names. Raises FileError if it cannot be written.
        """
        key = content_key(content)
        saved = {
            name: safetensors.numpy.save({k: np.asarray(v, order="C") for k, v in named.items()})
            for name, named in (arrays or {}).items()
        }
        result = {"values": _encoded(record.values), "status": record.status, "reason": record.reason}
        parts = {"spec.json": _json(content), "meta.json": _json(meta), "result.json": _json(result)}
        parts |= {f"{name}.safetensors": part for name, part in saved.items()} | dict(others or {})
        parts[files.SUMS] = files.check_sums(parts)
        files.commit_folder(self.folder(step, key), parts, scratch=self.root)
        files.remove(self.unfinished(step, key))


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn the operating system's refusal to read into a sentence."""
    try:
        yield
    except OSError as error:
        raise FileError(f"{folder} cannot be read: {error.strerror}. Mend that; nothing was changed.") from error


def _content(folder: Path, name: str) -> Any:
    return json.loads(files.read_checked(folder, name))


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

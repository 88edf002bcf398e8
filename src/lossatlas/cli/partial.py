"""The finished points of a slice on disk, so that a command that was stopped goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lossatlas import files

INTERVAL = 10.0  # s between writings

Index = tuple[int, int]


class Partial:
    """Points by their index; written now and then and when the work is broken off, removed when it is done.

    Points of other work (another checkpoint, grid, seed, version of PyTorch ...: `content`) do not count.
    """

    def __init__(self, path: Path, content: Any) -> None:
        self._path = path
        self._content = json.loads(json.dumps(content))
        self._written = time.monotonic()
        self.done: dict[Index, Mapping[str, float]] = {}
        self.dropped = 0  # points of other work, which this work will write over
        try:
            kept = json.loads(path.read_bytes())
            if kept["content"] == self._content:
                self.done = {(i, j): values for i, j, values in kept["points"]}
            else:
                self.dropped = len(kept["points"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none yet, or damaged: the points are computed again

    def keep(self, index: Index, values: Mapping[str, float]) -> None:
        """A point is finished."""
        self.done[index] = values
        if time.monotonic() - self._written > INTERVAL:
            self._write()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._path.unlink(missing_ok=True)
        elif self.done:
            self._write()

    def _write(self) -> None:
        points = [[*index, dict(values)] for index, values in self.done.items()]
        files.write_file(self._path, json.dumps({"content": self._content, "points": points}).encode())
        self._written = time.monotonic()

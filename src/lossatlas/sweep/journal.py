"""What a worker tells while it works: lines for its log, and a note that says what it has in hand.

The note is `DIR/running/<host>-<pid>.json`; `status` reads it. It is removed when the worker leaves; one whose
writer no longer lives is not believed, and removed by the next run. Whether a writer on another host lives cannot
be known: such a note is believed, and the next run removes it when it is a day old. A worker that lives all the
same writes another with its next step. What cannot be written is left out: neither a log nor a note is worth a
step.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lossatlas import files
from lossatlas.errors import FileError
from lossatlas.sweep.plan import Step

PULSE = 10.0  # s between two notes on one step, at least
STALE = 86_400.0  # s after which a note is removed by the next run, whoever wrote it

# What a note has at least, by type.
_TEXTS, _NUMBERS, _LISTS = ("worker", "host", "job", "step"), ("pid", "since", "at", "fraction"), ("cell", "seeds")


class Journal:
    """A listener that writes the log of a worker to standard error, and its note."""

    def __init__(self, folder: Path, worker: str) -> None:
        self._note = folder / "running" / f"{_host()}-{os.getpid()}.json"
        self._about = {
            "worker": worker,
            "host": _host(),
            "pid": os.getpid(),
            "job": _job(),
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        }
        self._step: Step | None = None
        self._started = self._last = 0.0

    @property
    def where(self) -> str:
        """Where Slurm has put the worker, for its log; empty outside."""
        node, gpus = os.environ.get("SLURMD_NODENAME"), self._about["gpus"]
        return f" in job {self._about['job']} on {node}" + f" with GPU {gpus}" * bool(gpus) if node else ""

    def begins(self, step: Step) -> None:
        """A step is begun."""
        self._step, self._started = step, time.time()
        self._write(0.0)

    def finished(self, step: Step, status: str) -> None:
        """A step was done and committed."""
        self.line(f"{_named(step)}: {status}, {time.time() - self._started:.1f} s")

    def skipped(self, step: Step) -> None:
        """A step was already in the store."""

    def advanced(self, step: Step, epoch: int, epochs: int, loss: float) -> None:
        """An epoch of a long step is done."""
        self.line(f"{_named(step)}: epoch {epoch} of {epochs}, loss {loss:.6g}")
        if time.time() - self._last >= PULSE:
            self._write(epoch / epochs)

    def line(self, text: str) -> None:
        """A line of the log, with the time."""
        with contextlib.suppress(OSError):
            print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=sys.stderr, flush=True)  # noqa: T201  # the log

    def leaves(self) -> None:
        """The worker leaves: nothing is in hand any more."""
        files.remove(self._note)

    def _write(self, fraction: float) -> None:
        assert self._step is not None
        now = self._last = time.time()
        step = {"step": self._step.name, "cell": list(self._step.cell), "seeds": list(self._step.seeds)}
        times = {"since": round(self._started, 1), "at": round(now, 1)}
        note = {**self._about, **step, **times, "fraction": round(fraction, 4)}
        with contextlib.suppress(FileError):
            files.write_file(self._note, json.dumps(note).encode(), durable=False)


def running(folder: Path) -> list[dict[str, Any]]:
    """The notes of the workers of a run folder that may be at work; those known to be dead are left out."""
    return [note for _, note in _notes(folder) if _may_live(note)]


def tidy(folder: Path) -> None:
    """Remove from the notes of a run folder what dead workers of this host have left, and what is STALE."""
    files.remove_dead_temporaries(folder / "running")
    dead = {path for path, note in _notes(folder) if not _may_live(note)}
    for path in (folder / "running").glob("*"):
        if path in dead or _age(path) > STALE:
            files.remove(path)


def _notes(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every note with its file; what is no whole note is left out."""
    for path in sorted((folder / "running").glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            note = json.loads(path.read_text(encoding="utf-8"))
            if _is_whole(note):
                yield path, note


def _is_whole(note: Any) -> bool:
    return (
        isinstance(note, dict)
        and all(isinstance(note.get(name), str) for name in _TEXTS)
        and all(_is_number(note.get(name)) for name in _NUMBERS)
        and all(isinstance(note.get(name), list) and all(map(_is_number, note[name])) for name in _LISTS)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _may_live(note: dict[str, Any]) -> bool:
    return note["host"] != _host() or files.lives(int(note["pid"]))


def _age(path: Path) -> float:
    """Seconds since a file was written; 0 if it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _named(step: Step) -> str:
    return f"cell {' '.join(f'{v:.12g}' for v in step.cell)}, {step.name} of seed {' '.join(map(str, step.seeds))}"


def _host() -> str:
    return socket.gethostname()


def _job() -> str:
    """The Slurm job that the worker is in, as squeue and scancel name it; empty outside."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID", "")

"""What a worker tells while it works: lines for its log, and a note that says what it has in hand.

The note is `DIR/running/<host>-<pid>.json`; `status` reads it. It is removed when the worker leaves, and one whose
writer no longer lives is not believed.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from lossatlas import files
from lossatlas.sweep.plan import Step

PULSE = 10.0  # s between two notes, at least


class Journal:
    """A listener that writes the log of a worker to standard error, and its note."""

    def __init__(self, folder: Path, worker: str) -> None:
        self._note = folder / "running" / f"{_host()}-{os.getpid()}.json"
        self._about = {"worker": worker, "host": _host(), "pid": os.getpid(), "job": _job()}
        self._step: Step | None = None
        self._started = self._last = 0.0

    def begins(self, step: Step) -> None:
        """A step is begun."""
        self._step, self._started = step, time.time()
        self._pulse(0.0, force=self._started - self._last > PULSE)

    def finished(self, step: Step, status: str) -> None:
        """A step was done and committed."""
        self.line(f"{_named(step)}: {status}, {time.time() - self._started:.1f} s")

    def skipped(self, step: Step) -> None:
        """A step was already in the store."""

    def advanced(self, step: Step, epoch: int, epochs: int, loss: float) -> None:
        """An epoch of a long step is done."""
        self.line(f"{_named(step)}: epoch {epoch} of {epochs}, loss {loss:.6g}")
        self._pulse(epoch / epochs)

    def line(self, text: str) -> None:
        """A line of the log, with the time."""
        print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=sys.stderr, flush=True)  # noqa: T201  # the log

    def leaves(self) -> None:
        """The worker leaves: nothing is in hand any more."""
        self._note.unlink(missing_ok=True)

    def _pulse(self, fraction: float, *, force: bool = False) -> None:
        now = time.time()
        if self._step is None or (now - self._last < PULSE and not force):
            return
        self._last = now
        step = {"step": self._step.name, "cell": list(self._step.cell), "seeds": list(self._step.seeds)}
        times = {"since": round(self._started, 1), "at": round(now, 1)}
        note = {**self._about, **step, **times, "fraction": round(fraction, 4)}
        files.write_file(self._note, json.dumps(note).encode())


def running(folder: Path) -> list[dict[str, Any]]:
    """The notes of the workers of a run folder that may be at work; those known to be dead are left out."""
    found = []
    for path in sorted((folder / "running").glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            note: dict[str, Any] = json.loads(path.read_text())
            if note["host"] != _host() or files.lives(int(note["pid"])):
                found.append(note)
    return found


def _named(step: Step) -> str:
    return f"cell {' '.join(f'{v:g}' for v in step.cell)}, {step.name} of seed {' '.join(map(str, step.seeds))}"


def _host() -> str:
    return socket.gethostname()


def _job() -> str:
    """The Slurm job that the worker is in, as squeue and scancel name it; empty outside."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID", "")

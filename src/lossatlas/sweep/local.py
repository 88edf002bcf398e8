"""Workers as processes of this machine: they are handed one cell at a time through a pipe, the longest first.

A worker is `lossatlas worker DIR --pipe`: it reads the numbers of cells from its standard input and answers with
one JSON object a line on its standard output. It is in the driver's process group, so that Ctrl-C reaches it, and
it leaves at the next good place when its input ends, so that a driver that was killed leaves no orphan.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lossatlas.errors import UserError

ATTEMPTS = 3  # of a cell whose worker dies
GRACE = 600.0  # s that a worker has to leave after it was asked to: long enough for a step that cannot be left
TAIL = 12  # lines of a dead worker's log that are kept with the reason

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Slot:
    """One place for a worker: its number and what its environment adds."""

    number: int
    environment: Mapping[str, str] = field(default_factory=dict)


def slots(workers: int, gpus: Sequence[str] = (), per_gpu: int = 1) -> list[Slot]:
    """The places for workers: `per_gpu` on each of `gpus`, else `workers` with one thread each."""
    quiet = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    if not gpus:
        return [Slot(k, quiet) for k in range(workers)]
    places = [gpu for _ in range(per_gpu) for gpu in gpus]
    return [Slot(k, {**quiet, "CUDA_VISIBLE_DEVICES": gpu}) for k, gpu in enumerate(places)]


class _Process:
    """A worker process, the cell it has in hand, and its log."""

    def __init__(self, slot: Slot, command: Sequence[str], log: Path) -> None:
        self.slot = slot
        self.cell: int | None = None
        self.ready = False
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env={**os.environ, **slot.environment},
            )
        self._rest = b""

    @property
    def output(self) -> IO[bytes]:
        assert self.popen.stdout is not None
        return self.popen.stdout

    def give(self, cell: int) -> None:
        """Hand over a cell; a worker that has died is noticed by its output."""
        self.cell = cell
        self._write(f"{cell}\n".encode())

    def close(self) -> None:
        """No more cells."""
        assert self.popen.stdin is not None
        with contextlib.suppress(OSError):
            self.popen.stdin.close()

    def events(self) -> list[Event] | None:
        """What the worker said since the last call; None when it has closed its output."""
        chunk = os.read(self.output.fileno(), 1 << 16)
        if not chunk:
            return None
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [json.loads(line) for line in lines if line.startswith(b"{")]

    def end(self) -> str:
        """How the process ended, with the tail of its log."""
        code = self.popen.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        with contextlib.suppress(OSError):
            tail = self.log.read_text(errors="replace").splitlines()[-TAIL:]
            return "\n".join([f"its worker ended with {how}; the end of {self.log.name}:", *tail])
        return f"its worker ended with {how}"

    def _write(self, content: bytes) -> None:
        assert self.popen.stdin is not None
        with contextlib.suppress(OSError):
            self.popen.stdin.write(content)
            self.popen.stdin.flush()


class LocalEngine:
    """Hands cells to worker processes, replaces those that die, and gives up a cell that kills three of them."""

    def __init__(self, folder: Path, places: Sequence[Slot], device: str, hear: Callable[[Event], None]) -> None:
        self._command = [sys.executable, "-m", "lossatlas", "worker", str(folder), "--pipe", "--device", device]
        self._folder = folder
        self._places = places
        self._hear = hear
        self._selector = selectors.DefaultSelector()
        self._processes: list[_Process] = []
        self._queue: deque[int] = deque()
        self._deaths: Counter[int] = Counter()
        self._stillborn = 0  # workers in a row that died before they were ready
        self.given_up: dict[int, str] = {}  # cells, and why
        self.failures: dict[str, str] = {}  # keys of steps that raised, and why

    def run(self, cells: Sequence[int]) -> None:
        """Do the cells, in their order; returns when all are done, failed or given up.

        Raises UserError when workers die before they can start. Whatever ends it, no worker outlives it.
        """
        self._queue = deque(cells)
        try:
            for slot in self._places[: len(self._queue)]:
                self._start(slot)
            while self._processes:
                for key, _ in self._selector.select():
                    self._attend(key.data)
            self._leave()
        except BaseException:
            self._leave()
            raise

    def _start(self, slot: Slot) -> None:
        log = self._folder / "logs" / f"worker-{slot.number}.log"
        process = _Process(slot, self._command, log)
        self._processes.append(process)
        self._selector.register(process.output, selectors.EVENT_READ, process)

    def _attend(self, process: _Process) -> None:
        events = process.events()
        if events is None:
            self._bury(process)
            return
        for event in events:
            if event["event"] in ("ready", "cell"):
                self._stillborn = 0
                process.ready, process.cell = True, None
                self.failures |= event.get("failures", {})
                if self._queue:
                    process.give(self._queue.popleft())
                else:
                    process.close()
            self._hear({**event, "worker": process.slot.number})

    def _bury(self, process: _Process) -> None:
        self._selector.unregister(process.output)
        process.output.close()
        process.close()
        self._processes.remove(process)
        reason = process.end()
        if process.cell is None and process.ready:
            return  # it had nothing in hand
        if not process.ready:
            self._stillborn += 1
            if self._stillborn >= ATTEMPTS:
                raise UserError(f"The workers cannot start: {reason}")
        else:
            assert process.cell is not None
            self._hear({"event": "died", "worker": process.slot.number, "cell": process.cell, "reason": reason})
            self._deaths[process.cell] += 1
            if self._deaths[process.cell] < ATTEMPTS:
                self._queue.appendleft(process.cell)
            else:
                self.given_up[process.cell] = f"given up after {ATTEMPTS} attempts: {reason}"
        if self._queue:
            self._start(process.slot)

    def _leave(self) -> None:
        """Ask the workers to leave, wait, and end those that do not."""
        for process in self._processes:
            process.close()
            with contextlib.suppress(ProcessLookupError):
                process.popen.terminate()
        end = time.monotonic() + GRACE
        try:
            for process in self._processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.popen.wait(max(0.0, end - time.monotonic()))
        finally:  # also when a second Ctrl-C ends the wait
            for process in self._processes:
                process.popen.kill()
                process.popen.wait()
                process.output.close()
            self._processes.clear()
            self._selector.close()

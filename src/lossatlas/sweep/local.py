"""Workers as processes of this machine: they are handed one cell at a time through a pipe, the longest first.

A worker reads the numbers of cells from its standard input, a line each, and answers on its standard output with
JSON objects, a line each, whose `event` is

    ready                       it is up and waits for a cell
    finished, advanced          how far it is with a cell (see cli.progress)
    cell {cell, failures}       the cell is done; `failures`: the reasons of steps that raised, by their keys
    left                        it was told to leave, by a signal or the end of its input, and has kept what it had
    error {reason}              a mistake that no other worker would be spared: the run ends with this reason

A worker that ends with a cell in hand and has not said `left` has died. Workers are in the driver's process group,
so that Ctrl-C reaches them, and leave when their input ends, so that a driver that was killed leaves no orphan.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lossatlas.errors import UserError

ATTEMPTS = 3  # of a cell whose worker dies, and of workers in a row to start
GRACE = 600.0  # s that workers have to leave after they were asked to: long enough for a step that cannot be left
ENDING = 10.0  # s between the end of a worker's output and that of its process
PULSE = 1.0  # s between two looks for workers that ended while a process of theirs holds their output open
TAIL = 12  # lines of a dead worker's log that are kept with the reason
TAIL_BYTES = 1 << 14

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Slot:
    """One place for a worker: its number and what its environment adds."""

    number: int
    environment: Mapping[str, str] = field(default_factory=dict)


def slots(workers: int | None, cores: int, gpus: Sequence[str] = (), per_gpu: int = 1) -> list[Slot]:
    """The places for workers, one thread each: `workers` of them, else one a core, or `per_gpu` on each of `gpus`.

    Those of GPUs go round the GPUs, so that no number of workers burdens one by two more than another.
    """
    quiet = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    if not gpus:
        return [Slot(k, quiet) for k in range(workers or cores)]
    count = workers or per_gpu * len(gpus)
    return [Slot(k, {**quiet, "CUDA_VISIBLE_DEVICES": gpus[k % len(gpus)]}) for k in range(count)]


def visible_gpus(setting: str | None, count: int) -> list[str]:
    """The `count` GPUs that a process sees, as its CUDA_VISIBLE_DEVICES, which may be unset, names them."""
    return (
        [str(k) for k in range(count)]
        if setting is None
        else [name.strip() for name in setting.split(",")][:count]
    )


class _Process:
    """A worker process, the cell it has in hand, and its log."""

    def __init__(self, slot: Slot, command: Sequence[str], log: Path) -> None:
        self.slot = slot
        self.cell: int | None = None
        self.ready = self.left = False
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                bufsize=0,
                env={**os.environ, **slot.environment},
            )
        self._rest = b""

    @property
    def output(self) -> IO[bytes]:
        assert self.popen.stdout is not None
        return self.popen.stdout

    def give(self, cell: int) -> None:
        """Hand over a cell; a worker that has died is noticed by its end."""
        assert self.popen.stdin is not None
        self.cell = cell
        with contextlib.suppress(OSError):
            self.popen.stdin.write(f"{cell}\n".encode())

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
        return [json.loads(line) for line in lines]

    def end(self) -> str:
        """How the process ended, with the tail of its log."""
        try:
            code = self.popen.wait(ENDING)
        except subprocess.TimeoutExpired:  # hangs where it should leave
            self.popen.kill()
            code = self.popen.wait()
        self.close()
        self.output.close()
        how = f"signal {_signal_name(-code)}" if code < 0 else f"exit code {code}"
        return "\n".join([f"its worker ended with {how}; the end of {self.log}:", *tail(self.log)])


class LocalEngine:
    """Hands cells to worker processes, replaces those that die, and gives up a cell that three have died with."""

    def __init__(
        self, command: Sequence[str], logs: Path, places: Sequence[Slot], hear: Callable[[Event], None]
    ) -> None:
        self._command, self._logs, self._places, self._hear = command, logs, places, hear
        self._selector = selectors.DefaultSelector()
        self._processes: list[_Process] = []
        self._queue: deque[int] = deque()
        self._deaths: Counter[int] = Counter()
        self._stillborn = 0  # workers in a row that ended before they were ready
        self._leaving = False
        self.given_up: dict[int, str] = {}  # cells, and why
        self.failures: dict[str, str] = {}  # keys of steps that raised, and why

    def run(self, cells: Sequence[int]) -> None:
        """Do the cells, in their order; returns when all are done, failed or given up.

        Raises UserError when workers cannot start, or meet what no other would be spared (a full disk). Whatever
        ends it, no worker outlives it: they are asked to leave, and another exception meanwhile kills them.
        """
        self._queue = deque(cells)
        try:
            for slot in self._places[: len(self._queue)]:
                self._start(slot)
            while self._processes:
                self._listen(PULSE)
        finally:
            self._leave()

    def _start(self, slot: Slot) -> None:
        process = _Process(slot, self._command, self._logs / f"worker-{slot.number}.log")
        self._processes.append(process)
        self._selector.register(process.output, selectors.EVENT_READ, process)

    def _listen(self, seconds: float) -> None:
        """Attend to what workers say, and to their ends, for which to wait at most so long."""
        ended = [process for process in self._processes if process.popen.poll() is not None]
        heard = [key.data for key, _ in self._selector.select(0.0 if ended else seconds)]
        for process in heard:
            self._attend(process)
        for process in ended:
            if process not in heard:  # all it said was heard, yet a process that it started holds its output
                self._bury(process)

    def _attend(self, process: _Process) -> None:
        events = process.events()
        if events is None:
            self._bury(process)
            return
        for event in events:
            kind = event["event"]
            if kind in ("ready", "cell"):
                self._stillborn = 0
                process.ready, process.cell = True, None
                self.failures |= event.get("failures", {})
                if self._queue:
                    process.give(self._queue.popleft())
                else:
                    process.close()
            elif kind == "left":
                process.left = True
            elif kind == "error" and not self._leaving:
                raise UserError(event["reason"])
            self._hear({**event, "worker": process.slot.number})

    def _bury(self, process: _Process) -> None:
        self._selector.unregister(process.output)
        self._processes.remove(process)
        reason = process.end()
        if self._leaving:
            return
        if process.cell is not None:
            self._hand_on(process, process.cell, reason)
        elif not (process.ready or process.left):
            self._stillborn += 1
            if self._stillborn >= ATTEMPTS:
                raise UserError(f"The workers cannot start: {reason}")
        if self._queue:
            self._start(process.slot)

    def _hand_on(self, process: _Process, cell: int, reason: str) -> None:
        """What becomes of the cell that a worker had in hand when it ended."""
        if not process.left:
            self._deaths[cell] += 1
        again = self._deaths[cell] < ATTEMPTS
        if again:
            self._queue.appendleft(cell)
        else:
            self.given_up[cell] = f"given up after {ATTEMPTS} attempts: {reason}"
        told = {"died": not process.left, "again": again, "reason": reason}
        self._hear({"event": "handed on", "worker": process.slot.number, "cell": cell, **told})

    def _leave(self) -> None:
        """Ask the workers to leave, wait, and end those that do not; all at once when this is interrupted."""
        self._leaving = True
        try:
            self._queue.clear()
            if self._processes:
                self._hear({"event": "leaving"})
            for process in self._processes:
                process.close()
                process.popen.terminate()
            end = time.monotonic() + GRACE
            while self._processes and time.monotonic() < end:
                self._listen(PULSE)
        finally:
            for process in self._processes:
                process.popen.kill()
            for process in self._processes:
                process.end()
            self._processes.clear()
            self._selector.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return str(number)


def tail(log: Path) -> list[str]:
    """The last lines of a file that may be long or gone."""
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - TAIL_BYTES))
            return stream.read().decode(errors="replace").splitlines()[-TAIL:]
    except OSError:
        return []

"""What `lossatlas worker` does: cells of a run folder, one after another, until it is told to leave."""

from __future__ import annotations

import faulthandler
import json
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lossatlas.cli.engines import places, worker_command
from lossatlas.cli.output import note
from lossatlas.cli.running import chosen_device, load_data
from lossatlas.errors import UserError
from lossatlas.landscape.checkpoints import StopFlag, Stopped
from lossatlas.sweep.engine import Engine
from lossatlas.sweep.journal import Journal
from lossatlas.sweep.local import LocalEngine
from lossatlas.sweep.plan import Plan, Step
from lossatlas.sweep.remaining import longest_first
from lossatlas.sweep.run import open_folder, saved_plan
from lossatlas.sweep.slurm_files import numbers, places_of, read_shards
from lossatlas.sweep.worker import Worker, note_given_up

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def from_pipe(folder: Path, device: str) -> None:
    """Do the cells that a driver hands over, as sweep.local describes it; raises Stopped when a step is left.

    The end of the input asks for a stop as a signal does: whoever gave the cells has gone.
    """
    pipe = _Pipe()
    _heed_signals(pipe.leave)
    try:
        with _at_work(folder, device, _Teller(folder, pipe.tell), pipe.stop) as (worker, plan):
            pipe.tell(event="ready")
            while (index := pipe.next()) is not None:
                failures = worker.run([plan[index]])
                pipe.tell(event="cell", cell=index, failures=failures)
    except UserError as error:
        pipe.tell(event="error", reason=str(error))
        raise
    finally:
        if pipe.stop.asked:
            pipe.tell(event="left")


def of_shard(folder: Path, device: str, name: str, cells: Sequence[int]) -> dict[str, str]:
    """Do the cells with these numbers, in their order; returns the reasons of the steps that failed by their keys.

    Raises Stopped when a signal asks it to leave.
    """
    stop = StopFlag()

    def leave() -> None:
        stop.asked = True

    _heed_signals(leave)
    with _at_work(folder, device, Journal(folder, name), stop) as (worker, plan):
        return worker.run(plan[index] for index in cells)


def shard(folder: Path, number: int, of: int) -> list[int]:
    """The cells of shard `number` of `of`: all cells, the longest first, are dealt to the shards in turn."""
    saved = saved_plan(folder)
    return longest_first(range(len(saved.plan)), saved.plan, saved.seconds)[number::of]


def dealt(folder: Path, file: Path, number: int) -> list[int]:
    """The cells of a shard in a file of shards (sweep.slurm_files); raises UserError if it has no such shard."""
    shards = read_shards(folder / file)
    if number >= len(shards):
        raise UserError(f"--shard {number} is not in {file}. Allowed are 0 to {len(shards) - 1}.")
    return numbers(shards[number], places_of(saved_plan(folder).plan.cells))


def shared(folder: Path, device: str, name: str, cells: Sequence[int], workers: int) -> dict[str, str]:
    """As `of_shard`, by several worker processes, which share the GPUs that this one sees."""
    stop = StopFlag()

    def leave() -> None:
        if not stop.asked:  # a second signal would have the workers killed
            stop.asked = True
            raise Stopped

    def hear(event: Mapping[str, Any]) -> None:
        if event["event"] == "handed on":
            note(f"Worker {event['worker']}: {event['reason']}")

    slots = places(Engine("processes", workers, device=device), chosen_device(device))[: len(cells)]
    note(f"{len(slots)} workers, whose logs are in {folder / 'logs' / name}")
    local = LocalEngine(worker_command(folder, device), folder / "logs" / name, slots, hear)
    _heed_signals(leave)
    local.run(cells)
    given_up = note_given_up(
        folder / "failed", saved_plan(folder).plan, open_folder(folder, None).store, local.given_up
    )
    return {**local.failures, **given_up}


def _heed_signals(leave: Callable[[], None]) -> None:
    """Let signals ask to leave, but those that are ignored (by nohup); a second Ctrl-C leaves at once.

    A batch script ignores SIGUSR1 so that it does no harm before this; here it is heeded all the same.
    """
    got: list[int] = []

    def ask(number: int, _frame: object) -> None:
        if number == signal.SIGINT and number in got:
            raise KeyboardInterrupt
        got.append(number)
        leave()

    for number in SIGNALS:
        if number == signal.SIGUSR1 or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, ask)


@contextmanager
def _at_work(folder: Path, device: str, journal: Journal, stop: StopFlag) -> Iterator[tuple[Worker, Plan]]:
    faulthandler.enable()  # a crash of a library leaves its place in the log
    saved, opened = saved_plan(folder), open_folder(folder, None)
    raw = load_data(saved.plan, opened)
    worker = Worker(
        opened.store, raw, saved.plan.spec.weights, folder / "failed", journal, chosen_device(device), stop
    )
    journal.line(f"begins on {worker.device}{journal.where}")
    try:
        yield worker, saved.plan
    finally:
        journal.line("leaves")
        journal.leaves()


class _Pipe:
    """The pipe to the driver, out of the reach of what a model of one's own reads and prints."""

    def __init__(self) -> None:
        self.stop = StopFlag()
        self._asked: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._input, self._output = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)  # what is printed goes to the log
        threading.Thread(target=self._read, daemon=True).start()

    def leave(self) -> None:
        """Ask for a stop, and for no further cell."""
        self.stop.asked = True
        self._asked.put(None)

    def next(self) -> int | None:
        """Wait for the number of a cell; None when it is time to leave."""
        return self._asked.get()

    def tell(self, **event: Any) -> None:
        """Tell the driver, one JSON object a line."""
        line = memoryview(json.dumps(event).encode() + b"\n")
        try:
            while line:
                line = line[os.write(self._output, line) :]
        except BrokenPipeError:  # nobody listens any more
            self.leave()

    def _read(self) -> None:
        rest = b""
        while chunk := os.read(self._input, 1 << 12):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._asked.put(int(line))
        self.leave()


class _Teller(Journal):
    """A journal that tells the driver too."""

    def __init__(self, folder: Path, tell: Callable[..., None]) -> None:
        super().__init__(folder, "pipe")
        self._tell = tell

    def finished(self, step: Step, status: str) -> None:
        super().finished(step, status)
        self._tell(event="finished", step=step.name, cell=step.cell, seeds=step.seeds, status=status)

    def advanced(self, step: Step, epoch: int, epochs: int, loss: float) -> None:
        super().advanced(step, epoch, epochs, loss)
        self._tell(event="advanced", step=step.name, cell=step.cell, fraction=epoch / epochs)

"""What `lossatlas worker` does: cells of a run folder, one after another, until it is told to leave."""

from __future__ import annotations

import json
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lossatlas.cli.running import chosen_device, load_data
from lossatlas.landscape.checkpoints import StopFlag
from lossatlas.sweep.journal import Journal
from lossatlas.sweep.plan import Plan, Step
from lossatlas.sweep.remaining import longest_first
from lossatlas.sweep.run import open_folder, saved_plan
from lossatlas.sweep.worker import Worker

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def from_pipe(folder: Path, device: str) -> None:
    """Do the cells whose numbers come on standard input; tell of them on standard output, one JSON object a line.

    The end of the input asks for a stop: whoever gave the cells has gone. Raises Stopped when a step is left.
    """
    asked: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    stop = StopFlag()

    def leave() -> None:
        stop.asked = True
        asked.put(None)

    def read() -> None:
        for line in sys.stdin:
            asked.put(int(line))
        leave()

    with _at_work(folder, device, _Teller(folder, "pipe"), stop) as (worker, plan):
        for number in SIGNALS:
            signal.signal(number, lambda _signal, _frame: leave())
        threading.Thread(target=read, daemon=True).start()
        _tell(event="ready")
        while (index := asked.get()) is not None:
            failures = worker.run([plan[index]])
            _tell(event="cell", cell=index, failures=failures)


def of_shard(folder: Path, device: str, name: str, cells: Sequence[int]) -> dict[str, str]:
    """Do the cells with these numbers, in their order; returns the reasons of the steps that failed by their keys.

    Raises Stopped when a signal asks it to leave.
    """
    stop = StopFlag()

    def ask(_signal: int, _frame: object) -> None:
        stop.asked = True

    for number in SIGNALS:
        signal.signal(number, ask)
    with _at_work(folder, device, Journal(folder, name), stop) as (worker, plan):
        return worker.run(plan[index] for index in cells)


def shard(folder: Path, number: int, of: int) -> list[int]:
    """The cells of shard `number` of `of`: all cells, the longest first, are dealt to the shards in turn."""
    saved = saved_plan(folder)
    return longest_first(range(len(saved.plan)), saved.plan, saved.seconds)[number::of]


@contextmanager
def _at_work(folder: Path, device: str, journal: Journal, stop: StopFlag) -> Iterator[tuple[Worker, Plan]]:
    saved, opened = saved_plan(folder), open_folder(folder, None)
    raw = load_data(saved.plan, opened)
    worker = Worker(
        opened.store, raw, saved.plan.spec.weights, folder / "failed", journal, chosen_device(device), stop
    )
    journal.line(f"begins on {worker.device}")
    try:
        yield worker, saved.plan
    finally:
        journal.line("leaves")
        journal.leaves()


class _Teller(Journal):
    """A journal that tells the driver too."""

    def finished(self, step: Step, status: str) -> None:
        super().finished(step, status)
        _tell(event="finished", step=step.name, cell=step.cell, seeds=step.seeds, status=status)

    def advanced(self, step: Step, epoch: int, epochs: int, loss: float) -> None:
        super().advanced(step, epoch, epochs, loss)
        _tell(event="advanced", step=step.name, cell=step.cell, fraction=epoch / epochs)


def _tell(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()

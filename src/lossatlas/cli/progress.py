"""The progress of a run: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from lossatlas.cli.output import duration, note

if TYPE_CHECKING:
    from lossatlas.results import Cell
    from lossatlas.sweep.plan import Step
    from lossatlas.sweep.remaining import Remaining
    from lossatlas.sweep.slurm import Task

PLAIN_INTERVAL = 15.0  # s between lines when nobody watches a bar
STOPPING = "Stopping as soon as the step in hand is done or can be continued later; once more to leave at once."


class _Barred:
    """Shows a bar while it is entered, where somebody watches."""

    def __init__(self, *columns: ProgressColumn) -> None:
        self._bar = Progress(*columns, console=Console(stderr=True)) if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()


class Stages(_Barred):
    """The progress of a command that does one thing after another: a bar each, or a line now and then."""

    def __init__(self) -> None:
        super().__init__(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        )

    def stage(self, name: str) -> Callable[[int, int], None]:
        """A function that is told how many steps of this stage are done, and of how many at most."""
        task = self._bar.add_task(name, total=None) if self._bar else None
        start = last_line = time.monotonic()

        def advanced(done: int, total: int) -> None:
            nonlocal last_line
            now = time.monotonic()
            if self._bar and task is not None:
                self._bar.update(task, completed=done, total=total)
            elif now - last_line > PLAIN_INTERVAL:
                last_line = now
                left = duration((now - start) * (total - done) / done)
                note(f"{name}: {done} of {total} done, about {left} left")

        return advanced


class RunProgress(_Barred):
    """Hears of finished steps and shows how much of the predicted work is done.

    The time left is the predicted work that is left, times how much slower or faster than predicted the work of
    this run went so far.
    """

    def __init__(self, predicted: Callable[[str, Cell], float], left: Remaining) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._predicted = predicted  # seconds of a step by its name and cell
        self._parts: dict[int, float] = {}  # predicted seconds of what each worker has done of the step in hand
        self._left = left.seconds
        self._earned = 0.0  # predicted seconds of what was done in this run
        self._steps, self._of = sum(left.done.values()), sum(left.total.values())
        self._where = ""  # what there is to say of the jobs
        self._start = self._last_line = time.monotonic()
        if self._bar:
            self._task = self._bar.add_task("training and measuring", total=self._of, left="")

    def begins(self, step: Step) -> None:
        """A step is begun."""

    def skipped(self, step: Step) -> None:
        """A step was there already, and is counted."""

    def finished(self, step: Step, status: str) -> None:
        """A step was done."""
        self._done(0, step.name, step.cell, step.seeds, status)

    def advanced(self, step: Step, epoch: int, epochs: int, _loss: float) -> None:
        """A part of a step was done."""
        self._part(0, step.name, step.cell, epoch / epochs)

    def hear(self, event: Mapping[str, Any]) -> None:
        """What a worker process says, or is said of it (see sweep.local)."""
        worker = event.get("worker", -1)
        if event["event"] == "finished":
            self._done(worker, event["step"], tuple(event["cell"]), event["seeds"], event["status"])
        elif event["event"] == "advanced":
            self._part(worker, event["step"], tuple(event["cell"]), event["fraction"])
        elif event["event"] == "handed on":
            self._parts.pop(worker, None)
            what = "another goes on with its cell" if event["again"] else "its cell is given up"
            how = f"died; {what}: {event['reason']}" if event["died"] else f"left; {what}."
            note(f"Worker {worker} {how}")
        elif event["event"] == "leaving":
            note(STOPPING)

    def looked(self, left: Remaining, tasks: Sequence[Task]) -> None:
        """What is left, and the tasks in Slurm's queue (see sweep.slurm_driver)."""
        self._steps, self._earned = sum(left.done.values()), self._left - left.seconds
        states = Counter(task.state.lower() for task in tasks)
        reasons = Counter(task.reason for task in tasks if task.state == "PENDING")
        self._where = (
            ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "no jobs in Slurm"
        )
        if reasons:
            self._where += f" ({', '.join(sorted(reasons))})"
        self._show()

    def _done(self, worker: int, name: str, cell: Cell, seeds: Sequence[int], status: str) -> None:
        self._parts.pop(worker, None)
        self._earned += self._predicted(name, cell)
        self._steps = min(self._steps + 1, self._of)  # a damaged step is done twice
        if status == "diverged" and name == "train":
            note(f"diverged: cell {cell}, seed {seeds[0]}")
        self._show()

    def _part(self, worker: int, name: str, cell: Cell, fraction: float) -> None:
        self._parts[worker] = fraction * self._predicted(name, cell)
        self._show()

    def _show(self) -> None:
        earned = self._earned + sum(self._parts.values())
        now = time.monotonic()
        left = max(0.0, self._left - earned) * (now - self._start) / earned if earned > 0 else 0.0
        told = [f"about {duration(left)} left"] if earned > 0 else []
        told += [self._where] if self._where else []
        if self._bar:
            self._bar.update(self._task, completed=self._steps, left=", ".join(told))
        elif now - self._last_line > PLAIN_INTERVAL:
            self._last_line = now
            note(", ".join([f"{self._steps} of {self._of} steps done", *told]))

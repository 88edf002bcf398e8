"""Slurm as the engine of a run: what is missing and not in the queue is submitted, until nothing is missing.

The driver knows nothing that is not in the run folder, the store and the queue: it may die at any time, and
another goes on. A task may end in any way; what counts is which cells lack a step once it has left the queue.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lossatlas.errors import UserError
from lossatlas.landscape.checkpoints import Stopped
from lossatlas.specs import Slurm
from lossatlas.sweep import slurm
from lossatlas.sweep.local import ATTEMPTS, tail
from lossatlas.sweep.plan import Plan, Step
from lossatlas.sweep.remaining import Remaining, remaining
from lossatlas.sweep.slurm import Full, Limits, NotNow, Task
from lossatlas.sweep.slurm_files import LARGEST_ARRAY, Attempt, attempts, deal, job_name, numbers, write_attempt
from lossatlas.sweep.store import Store

SLOWEST = 15  # times the first interval between two looks at the queue: they become rarer while nothing changes
GRACE = 5  # times that interval: how long files of a task that has left may take to be seen through a network
SHARE = 10  # at least so many times longer than a look takes is the time until the next
ROOM = 0.25  # of the tasks allowed in the queue: as long as fewer have left, the rest of a large plan waits

Key = tuple[int, int]  # of a task: the number of its attempt and its own in the array
Steps = dict[int, list[Step]]  # missing steps by cell
State = dict[int, tuple[tuple[str, int], ...]]  # by cell: missing steps, each with the time of its checkpoint


@dataclass
class _Watched:
    """A task that is, or was, in the queue."""

    cells: list[int]
    before: State
    log: Path
    left: float | None = None  # when it was first missed in the queue


@dataclass(frozen=True)
class Work:
    """What is to be done, and where."""

    root: Path  # of the run, absolute
    plan: Plan
    store: Store
    seconds: NDArray[np.float64]  # (cells, kinds), as in `cost.Estimate`
    settings: Slurm
    device: str


class SlurmEngine:
    """Keeps what a run lacks in Slurm's queue; gives up a cell that three tasks have left as it was.

    `hear` gets what is left and the tasks of this run in the queue at every look, `say` a sentence now and then.
    """

    def __init__(
        self,
        work: Work,
        hear: Callable[[Remaining, Sequence[Task]], None] = lambda _left, _tasks: None,
        say: Callable[[str], None] = lambda _text: None,
        interval: float = 2.0,
    ) -> None:
        self._work, self._hear, self._say, self._interval = work, hear, say, interval
        self._watched: dict[Key, _Watched] = {}
        self._tries: Counter[int] = Counter()  # of cells, since they last came on
        self._idle = 0  # rounds in a row in which tasks have left and nothing had come on
        self._moved = False  # whether anything has come on since this driver began
        self._last = ""  # what the last of them has left in its log
        self._limits = Limits()
        self._notes = set(_notes(work.root))  # of failures, that are told already
        self._silent = False  # the controller, at the last look
        self.given_up: dict[int, str] = {}  # cells, and why
        self.failures: dict[str, str] = {}  # keys of steps that raised, and why

    def run(self) -> None:
        """Return when all is done, failed or given up.

        Raises UserError when Slurm refuses the jobs or they end without doing anything, Stopped when they are
        cancelled by `cancel`. Tasks stay in the queue whatever ends it.
        """
        self._limits = slurm.limits()
        wait = self._interval
        while True:
            began, known = time.monotonic(), len(self._watched)
            try:
                if self._round():
                    return
                self._silent = False
            except NotNow as error:
                if not self._silent:
                    self._say(f"Slurm does not answer ({error}); waiting for it.")
                self._silent = True
            changed = len(self._watched) != known
            wait = self._interval if changed else min(1.5 * wait, SLOWEST * self._interval)
            time.sleep(max(wait, SHARE * (time.monotonic() - began)))

    def write(self) -> list[Attempt]:
        """Write the attempts for all that is missing and not in the queue, and submit none."""
        self._limits = slurm.limits()
        try:
            self._adopt(slurm.by_name(slurm.queue()))
        except NotNow:
            self._say("Slurm's queue is not known here: what it may hold already is written once more.")
        left = remaining(self._work.plan, self._work.store, self._work.seconds)
        shards, seconds = self._dealt(_missing(self._work, [c for c in left.cells if c not in self._busy()]))
        return [self._written(part, seconds) for part in self._arrays(shards)]

    def _round(self) -> bool:
        """Look at the queue and the store, and submit what is missing; returns whether nothing is left to do."""
        work = self._work
        found = slurm.by_name(slurm.queue())
        self._adopt(found)
        if any(Attempt(work.root, number).cancelled for number in {number for number, _ in self._watched}):
            raise Stopped
        left = remaining(work.plan, work.store, work.seconds)
        self._hear(left, [found[key] for key in self._names() if key in found])
        self._note_failures()
        self._bury(found.keys(), left)
        undone = [cell for cell in left.cells if cell not in self.given_up]
        if self.failures:
            undone = [cell for cell, steps in _missing(work, undone).items() if not self._failed(steps)]
        busy = self._busy()
        todo = [cell for cell in undone if cell not in busy]
        if self._idle >= ATTEMPTS and (todo or (len(self._tries) > 1 and not self._moved)):
            raise UserError(f"{ATTEMPTS} times jobs have left the queue with nothing done. {self._last}")
        if todo:
            self._submit(_missing(work, todo), len(found))
        return not undone

    def _adopt(self, found: Mapping[tuple[str, int], Task]) -> None:
        """Watch what another driver, or a user, has submitted, and what this one does not know to be accepted."""
        unknown = found.keys() - self._names().keys()
        tasks: dict[Key, Task] = {}
        for attempt in attempts(self._work.root):
            indices = [index for name, index in unknown if name == attempt.name]
            if indices and not attempt.cancelled:
                tasks |= {(attempt.number, index): found[attempt.name, index] for index in indices}
        shards = {number: Attempt(self._work.root, number).shards() for number in {number for number, _ in tasks}}
        cells = {
            key: numbers(shards[key[0]][key[1]], self._work.plan.cells)
            for key in tasks
            if key[1] < len(shards[key[0]])
        }
        state = _state(
            _missing(self._work, {cell for shard in cells.values() for cell in shard}), self._work.store
        )
        for key, shard in cells.items():
            self._watch(key, shard, state, tasks[key].id)

    def _watch(self, key: Key, cells: list[int], state: State, task: str) -> None:
        before = {cell: state[cell] for cell in cells if cell in state}
        self._watched[key] = _Watched(cells, before, self._work.root / "logs" / f"slurm-{task}.log")

    def _names(self) -> dict[tuple[str, int], Key]:
        """The tasks watched, by what they are called in the queue."""
        return {(job_name(self._work.root, number), index): (number, index) for number, index in self._watched}

    def _busy(self) -> set[int]:
        return {cell for watched in self._watched.values() for cell in watched.cells}

    def _bury(self, found: Collection[tuple[str, int]], left: Remaining) -> None:
        """Draw the conclusions from tasks that have left the queue long enough ago, or have done all they had."""
        lacking, now = set(left.cells), time.monotonic()
        gone = []
        for name, key in self._names().items():
            watched = self._watched[key]
            watched.left = None if name in found else watched.left or now
            if watched.left and (
                now - watched.left >= GRACE * self._interval or lacking.isdisjoint(watched.cells)
            ):
                gone.append(self._watched.pop(key))
        if gone:
            missing = _missing(self._work, {cell for watched in gone for cell in watched.cells})
            state = _state(missing, self._work.store)
            moved = [self._buried(watched, missing, state) for watched in gone]
            self._idle = 0 if any(moved) else self._idle + 1
            self._moved = self._moved or any(moved)

    def _buried(self, watched: _Watched, missing: Steps, state: State) -> bool:
        """Whether any of its cells has come on; a cell that it had in hand and that has not is held against it.

        A task walks its cells in order: in hand were the first that lack a step for another reason than a failure.
        """
        undone = [cell for cell in watched.cells if cell in missing and not self._failed(missing[cell])]
        how = "\n".join([f"Its job left the queue; the end of {watched.log}:", *tail(watched.log)])
        self._last = how
        for cell in undone[: self._work.settings.per_task]:
            self._tries[cell] = self._tries[cell] + 1 if state[cell] == watched.before.get(cell) else 0
            if self._tries[cell] >= ATTEMPTS:
                self.given_up[cell] = f"given up after {ATTEMPTS} attempts without any progress. {how}"
        return any(state.get(cell) != watched.before.get(cell) for cell in watched.cells)

    def _note_failures(self) -> None:
        """Hear of steps that raised since this driver began."""
        for path in _notes(self._work.root) - self._notes:
            self._notes.add(path)
            self.failures[path.name.rsplit("-", 1)[0]] = str(json.loads(path.read_text())["reason"])

    def _failed(self, missing: Sequence[Step]) -> bool:
        """Whether nothing more can be had of a cell: each step that it lacks has failed, or needs one that has."""
        for step in missing if self.failures else ():
            needed = [key for key in (*step.inputs, *(key for _, key in step.arrays)) if key in self.failures]
            if needed and step.key not in self.failures:
                self.failures[step.key] = self.failures[needed[0]]
        return all(step.key in self.failures for step in missing)

    def _submit(self, todo: Steps, queued: int) -> None:
        """Submit as many tasks as there is room for in the queue; the rest when more of them have left it."""
        most = min(self._work.settings.max_shards, self._limits.jobs)
        shards, seconds = self._dealt(todo)
        room = most - queued
        if room < min(len(shards), max(1, ROOM * most)):
            return
        state = _state(todo, self._work.store)
        for part in self._arrays(shards[:room]):
            attempt = self._written(part, seconds)
            try:
                array = slurm.submit(attempt, waiting=bool(queued))
            except Full as error:
                self._say(f"The queue takes no more ({error}); the rest waits until jobs have left it.")
                self._limits = replace(self._limits, jobs=queued)
                return
            queued += len(part)
            for index, cells in enumerate(part):
                self._watch((attempt.number, index), cells, state, f"{array}_{index}")

    def _arrays(self, shards: list[list[int]]) -> list[list[list[int]]]:
        """The shards of each array: as many as the cluster takes in one."""
        size = min(self._limits.array, LARGEST_ARRAY)
        return [shards[start : start + size] for start in range(0, len(shards), size)]

    def _dealt(self, todo: Steps) -> tuple[list[list[int]], dict[int, float]]:
        """The shards of cells, and the predicted seconds of what each cell lacks."""
        column = self._work.plan.columns()
        seconds = {
            cell: float(sum(self._work.seconds[cell, column[step.name]] for step in steps))
            for cell, steps in todo.items()
        }
        # What was tried in vain comes last, so that it cannot take the others down with it again.
        order = sorted(todo, key=lambda cell: (self._tries[cell], -seconds[cell]))
        return deal(order, seconds, self._work.settings), seconds

    def _written(self, shards: Sequence[Sequence[int]], seconds: dict[int, float]) -> Attempt:
        work = self._work
        cells = [[work.plan.cells[index] for index in shard] for shard in shards]
        took = [sum(seconds[index] for index in shard) for shard in shards]
        return write_attempt(work.root, cells, work.settings, work.device, took)


def _missing(work: Work, cells: Iterable[int]) -> Steps:
    """The steps that cells lack, of those that lack any."""
    finished = {name: work.store.finished(name) for name in work.plan.counts()}
    found = {
        cell: [step for step in work.plan.steps(work.plan.cells[cell]) if step.key not in finished[step.name]]
        for cell in cells
    }
    return {cell: steps for cell, steps in found.items() if steps}


def _state(missing: Steps, store: Store) -> State:
    times = store.checkpoint_times()
    return {
        cell: tuple((step.key, times.get((step.name, step.key), 0)) for step in steps)
        for cell, steps in missing.items()
    }


def _notes(root: Path) -> set[Path]:
    return set((root / "failed").glob("*.json"))

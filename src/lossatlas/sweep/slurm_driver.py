"""Slurm as the engine of a run: what is missing and not in the queue is submitted, until nothing is missing.

The driver knows nothing that is not in the run folder, the store and the queue: it may die at any time, and
another goes on. A task may end in any way; what counts is which cells lack a step once it has left the queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from lossatlas.errors import FileError, UserError
from lossatlas.landscape.checkpoints import Stopped
from lossatlas.sweep import slurm
from lossatlas.sweep.local import ATTEMPTS
from lossatlas.sweep.remaining import Remaining, remaining
from lossatlas.sweep.slurm import Full, Limits, NotNow, Task
from lossatlas.sweep.slurm_files import (
    LARGEST_ARRAY,
    Attempt,
    Key,
    cancelled,
    deal,
    numbers,
    places_of,
    write_attempt,
)
from lossatlas.sweep.slurm_tasks import State, Steps, Tasks, Work

SLOWEST = 15  # times the first interval between two looks at the queue: they become rarer while nothing changes
GRACE = 5  # times that interval: how long files of a task that has left may take to be seen through a network
SHARE = 10  # at least so many times longer than a look takes is the time until the next
LONGEST = 120.0  # s between two looks, however long one takes
ROOM = 0.25  # of the tasks allowed in the queue: as long as fewer have left, the rest of a large plan waits


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
        self._places = places_of(work.plan.cells)
        self._tasks = Tasks(work, GRACE * interval)
        self._limits = Limits()
        self._room: int | None = None  # how many jobs of this user the queue takes, once it has refused some
        self._cancels = cancelled(work.root).times
        self._said: set[str] = set()  # what is said once
        self._silent = False  # the controller, at the last look

    @property
    def given_up(self) -> Mapping[int, str]:
        """The cells that were given up, and why."""
        return self._tasks.given_up

    @property
    def failures(self) -> dict[str, str]:
        """The keys of steps that have raised and that the store lacks, and why."""
        return self._tasks.failures.reasons

    def run(self) -> None:
        """Return when all is done, failed or given up.

        Raises UserError when Slurm refuses the jobs or none of them begins, Stopped when they are cancelled by
        `cancel`. Tasks stay in the queue whatever ends it.
        """
        self._limits = slurm.limits()
        wait = self._interval
        while True:
            began, known = time.monotonic(), self._known()
            try:
                if self._round():
                    return
                self._silent = False
            except NotNow as error:
                if not self._silent:
                    self._say(f"Slurm does not answer ({error}); waiting for it.")
                self._silent = True
            wait = self._interval if self._known() != known else min(1.5 * wait, SLOWEST * self._interval)
            time.sleep(max(wait, min(LONGEST, SHARE * (time.monotonic() - began))))

    def write(self) -> list[Attempt]:
        """Write the attempts for all that is missing and not in the queue, and submit none."""
        self._limits = slurm.limits()
        try:
            self._adopt(_in_queue(slurm.of_run(self._work.root, slurm.queue())))
        except NotNow:
            self._say("Slurm's queue is not known here: what it may hold already is written once more.")
        left = remaining(self._work.plan, self._work.store, self._work.seconds)
        busy = self._tasks.busy
        shards, seconds = self._dealt(self._work.missing(cell for cell in left.cells if cell not in busy))
        return [self._written(part, seconds) for part in self._arrays(shards)]

    def _round(self) -> bool:
        """Look at the queue and the store, and submit what is missing; returns whether nothing is left to do."""
        work, tasks = self._work, self._tasks
        self._heed_cancel()
        jobs = slurm.queue()
        found = slurm.of_run(work.root, jobs)
        queued = _in_queue(found)
        self._adopt(queued)
        left = remaining(work.plan, work.store, work.seconds)
        self._hear(left, [queued[key] for key in tasks.watched if key in queued])
        tasks.look(found, left.cells)
        undone = self._undone(left)
        busy = tasks.busy
        todo = [cell for cell in undone if cell not in busy]
        if todo and tasks.stillborn >= ATTEMPTS:
            self._none_begins(todo, bool(queued))
        elif todo:
            self._submit(work.missing(todo), len(queued), sum(not job.ended for job in jobs))
        return not undone

    def _undone(self, left: Remaining) -> list[int]:
        """The cells that lack a step and are neither failed nor given up."""
        cells = [cell for cell in left.cells if cell not in self.given_up]
        if not self.failures:
            return cells
        return [
            cell for cell, steps in self._work.missing(cells).items() if not self._tasks.failures.all_of(steps)
        ]

    def _none_begins(self, todo: Sequence[int], queued: bool) -> None:
        """What to do when tasks have ended before they began, three times in a row: wait for those in the queue.

        When none is left there, the rest is given up. Raises UserError if no task has ever begun.
        """
        tasks = self._tasks
        if queued:
            self._say_once(
                "begin", f"Tasks end before they begin; no more are submitted until one begins. {tasks.last}"
            )
        elif tasks.ever_begun:
            tasks.give_up(todo)
        else:
            raise UserError(f"{ATTEMPTS} times jobs have left the queue with nothing done. {tasks.last}")

    def _heed_cancel(self) -> None:
        if cancelled(self._work.root).times > self._cancels:
            raise Stopped

    def _adopt(self, queued: Mapping[Key, Task]) -> None:
        """Watch what another driver, or a user, has submitted, and what this one does not know to be accepted."""
        ended = cancelled(self._work.root).tasks
        unknown = {
            key: task for key, task in queued.items() if key not in self._tasks.watched and task.id not in ended
        }
        shards = {number: self._shards(number) for number in {number for number, _ in unknown}}
        cells = {key: shards[key[0]][key[1]] for key in unknown if key[1] < len(shards[key[0]])}
        state = self._work.state(self._work.missing({cell for shard in cells.values() for cell in shard}))
        for key, shard in cells.items():
            self._tasks.watch(key, shard, state, unknown[key])

    def _shards(self, number: int) -> list[list[int]]:
        """The cells of each task of an attempt; none if they cannot be read, which is said."""
        try:
            shards = Attempt(self._work.root, number).shards()
        except FileError as error:
            self._say_once(f"shards {number}", f"{error} Those jobs are passed over, their cells submitted again.")
            return []
        return [numbers(shard, self._places) for shard in shards]

    def _submit(self, todo: Steps, own: int, queued: int) -> None:
        """Submit as many tasks as there is room for; the rest when more have left the queue.

        `own`: the tasks of this run in the queue; `queued`: all jobs of this user.
        """
        most = min(self._work.settings.max_shards, self._limits.jobs)
        room = most - own
        if self._room is not None:
            most, room = min(most, self._room), min(room, self._room - queued)
        shards, seconds = self._dealt(todo)
        if room < min(len(shards), max(1, ROOM * most)):
            self._say_once(
                "room",
                f"{own} tasks of this run are in the queue, which takes {most} (max_shards, or the limits of the "
                f"cluster); the other {len(shards)} wait until some have left it.",
            )
            return
        state = self._work.state(todo)
        for part in self._arrays(shards[:room]):
            if not self._accepted(part, seconds, state, queued):
                return
            queued += len(part)
        if self._room is not None and len(shards) > room:
            self._room += max(1, self._room // 4)  # the limit may be higher now

    def _accepted(self, part: list[list[int]], seconds: dict[int, float], state: State, queued: int) -> bool:
        """Whether Slurm takes an array; if there are too many tasks, half as many are tried next."""
        self._heed_cancel()
        attempt = self._written(part, seconds)
        try:
            array = slurm.submit(attempt, alone=len(part) == 1 and not queued)
        except Full as error:
            self._room = max(1, queued + len(part) // 2)
            self._say_once("full", f"The queue takes no more tasks ({error}); fewer are tried, the rest later.")
            return False
        tasks = [Task(attempt.name, array, index, "PENDING") for index in range(len(part))]
        if cancelled(self._work.root).times > self._cancels:
            slurm.end(self._work.root, tasks)
            raise Stopped
        for task, cells in zip(tasks, part, strict=True):
            self._tasks.watch((attempt.number, task.index), cells, state, task)
        return True

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
        order = sorted(todo, key=lambda cell: (self._tasks.tries[cell], -seconds[cell]))
        return deal(order, seconds, self._work.settings), seconds

    def _written(self, shards: Sequence[Sequence[int]], seconds: dict[int, float]) -> Attempt:
        work, bad = self._work, self._tasks.nodes.bad()
        for node, how in bad.items():
            self._say_once(f"node {node}", f"{node} is left out: tasks end there before they begin. {how}")
        cells = [[work.plan.cells[index] for index in shard] for shard in shards]
        took = [sum(seconds[index] for index in shard) for shard in shards]
        return write_attempt(work.root, cells, work.settings.without(bad), work.device, took)

    def _known(self) -> tuple[int, int | None]:
        """What changes with every array that is accepted or refused, and every task that has left."""
        return len(self._tasks.watched), self._room

    def _say_once(self, about: str, text: str) -> None:
        if about not in self._said:
            self._said.add(about)
            self._say(text)


def _in_queue(found: Mapping[Key, Task]) -> dict[Key, Task]:
    return {key: task for key, task in found.items() if not task.ended}

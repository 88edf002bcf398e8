"""The tasks of a Slurm driver: their cells, how they have left the queue, and on which nodes they begin."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lossatlas.specs import Slurm
from lossatlas.sweep.local import ATTEMPTS, tail
from lossatlas.sweep.plan import Plan, Step
from lossatlas.sweep.slurm import Task
from lossatlas.sweep.slurm_files import Key
from lossatlas.sweep.store import Store

BEGINS = re.compile(r" begins on \S+(?: in job \S+ on (\S+))?")  # as journal.Journal writes it

Steps = dict[int, list[Step]]  # missing steps by cell
State = dict[int, tuple[tuple[str, int], ...]]  # by cell: missing steps, each with the time of its checkpoint


@dataclass(frozen=True)
class Work:
    """What is to be done, and where."""

    root: Path  # of the run, absolute
    plan: Plan
    store: Store
    seconds: NDArray[np.float64]  # (cells, kinds), as in `cost.Estimate`
    settings: Slurm
    device: str

    def missing(self, cells: Iterable[int]) -> Steps:
        """The steps that cells lack, of those that lack any."""
        finished = {name: self.store.finished(name) for name in self.plan.counts()}
        found = {
            cell: [step for step in self.plan.steps(self.plan.cells[cell]) if step.key not in finished[step.name]]
            for cell in cells
        }
        return {cell: steps for cell, steps in found.items() if steps}

    def state(self, missing: Steps) -> State:
        """What changes when anything comes on."""
        times = self.store.checkpoint_times()
        return {
            cell: tuple((step.key, times.get((step.name, step.key), 0)) for step in steps)
            for cell, steps in missing.items()
        }


@dataclass
class Watched:
    """A task that is, or was, in the queue."""

    root: Path  # of the run
    key: Key
    cells: list[int]
    before: State
    task: Task  # as it was last seen
    left: float | None = None  # when it was first missed in the queue
    known_to_begin: bool = False

    @property
    def log(self) -> Path:
        """What Slurm keeps of its output."""
        return self.root / "logs" / f"slurm-{self.task.id}.log"

    def begun(self) -> str | None:
        """The node on which a worker of it has begun; None if none has, as far as their logs tell."""
        several = self.root / "logs" / f"{self.key[0]:03d}-{self.key[1]}"  # of workers that share the task
        for log in (self.log, *several.glob("*.log")):
            if (node := _begun(log)) is not None:
                return self.task.node or node
        return None

    def how(self) -> str:
        """How it has left the queue, with the end of its log."""
        state = f" ({', '.join(filter(None, (self.task.state, self.task.node)))})" if self.task.ended else ""
        return "\n".join(
            [f"Its job {self.task.id} left the queue{state}; the end of {self.log}:", *tail(self.log)]
        )


def _begun(log: Path) -> str | None:
    try:
        with log.open(encoding="utf-8", errors="replace") as lines:
            found = next((found for line in lines if (found := BEGINS.search(line))), None)
    except OSError:
        return None
    return (found[1] or "") if found else None


class Nodes:
    """On which nodes tasks end before they begin, while others begin elsewhere."""

    def __init__(self) -> None:
        self._failed: dict[str, list[str]] = {}  # how tasks have left that have not begun, those in a row
        self._begun: set[str] = set()  # where the last one has

    def began(self, node: str) -> None:
        """Note that a task has begun on a node, which may be unknown: empty."""
        self._begun.add(node)
        self._failed.pop(node, None)

    def failed(self, node: str, how: str) -> None:
        """Note how a task has left a node on which it has not begun."""
        self._begun.discard(node)
        self._failed.setdefault(node, []).append(how)

    def bad(self) -> dict[str, str]:
        """The nodes to be left out, and how the last task has left them; none when tasks begin nowhere."""
        found = {node: hows[-1] for node, hows in self._failed.items() if node and len(hows) >= ATTEMPTS}
        return dict(sorted(found.items())) if self._begun else {}


@dataclass(frozen=True)
class _Raised:
    """A step that has raised."""

    name: str
    reason: str


class Failures:
    """The steps of a run that have raised since this began, and that the store does not have."""

    def __init__(self, root: Path, store: Store) -> None:
        self._folder, self._store = root / "failed", store
        self._known = set(self._folder.glob("*.json"))
        self._raised: dict[str, _Raised] = {}
        self.reasons: dict[str, str] = {}  # by the keys of the steps, those that need one that has raised included

    def look(self) -> None:
        """Hear of new ones, and forget those that have succeeded since."""
        for path in set(self._folder.glob("*.json")) - self._known:
            self._known.add(path)
            note = json.loads(path.read_text(encoding="utf-8"))
            self._raised[path.name.rsplit("-", 1)[0]] = _Raised(note["step"], str(note["reason"]))
        self._raised = {key: it for key, it in self._raised.items() if not self._store.has(it.name, key)}
        self.reasons = {key: it.reason for key, it in self._raised.items()}

    def all_of(self, missing: Sequence[Step]) -> bool:
        """Whether nothing more can be had of a cell: each step that it lacks has failed, or needs one that has."""
        for step in missing if self.reasons else ():
            needed = [key for key in (*step.inputs, *(key for _, key in step.arrays)) if key in self.reasons]
            if needed and step.key not in self.reasons:
                self.reasons[step.key] = self.reasons[needed[0]]
        return all(step.key in self.reasons for step in missing)


class Tasks:
    """The tasks that a driver waits for, and what it has learnt from those that have left the queue.

    A cell is given up when three tasks that had begun have left it as it was; a task that has not begun tells
    something of its node, and nothing of its cells.
    """

    def __init__(self, work: Work, grace: float) -> None:
        self._work, self._grace = work, grace
        self.tries: Counter[int] = Counter()  # of cells, since they last came on
        self.ever_begun = False  # whether a task has, since the driver began
        self.watched: dict[Key, Watched] = {}
        self.nodes = Nodes()
        self.failures = Failures(work.root, work.store)
        self.stillborn = 0  # times in a row that tasks have left and none had begun
        self.last = ""  # how the last of these left
        self.given_up: dict[int, str] = {}  # cells, and why

    @property
    def busy(self) -> set[int]:
        """The cells of all tasks."""
        return {cell for watched in self.watched.values() for cell in watched.cells}

    def watch(self, key: Key, cells: list[int], state: State, task: Task) -> None:
        """Wait for a task."""
        before = {cell: state[cell] for cell in cells if cell in state}
        self.watched[key] = Watched(self._work.root, key, cells, before, task)

    def look(self, found: Mapping[Key, Task], lacking: Iterable[int]) -> None:
        """Draw the conclusions from tasks that have left the queue long enough ago, or have done all they had.

        `found`: the tasks of the run, as Slurm tells them; `lacking`: the cells that lack a step.
        """
        self.failures.look()
        undone, now = set(lacking), time.monotonic()
        gone = []
        for key, watched in self.watched.items():
            watched.task = found.get(key, watched.task)
            watched.left = watched.left or now if key not in found or found[key].ended else None
            if watched.left and (now - watched.left >= self._grace or undone.isdisjoint(watched.cells)):
                gone.append(key)
        if gone:
            self._bury([self.watched.pop(key) for key in gone])
        if self.stillborn:
            self._look_at_others()

    def give_up(self, cells: Iterable[int]) -> None:
        """Give up cells whose tasks no longer begin."""
        for cell in cells:
            self.given_up[cell] = (
                f"given up, since {ATTEMPTS} times tasks have ended before they began. {self.last}"
            )

    def _bury(self, gone: Sequence[Watched]) -> None:
        missing = self._work.missing({cell for watched in gone for cell in watched.cells})
        state = self._work.state(missing)
        alive = [self._alive(watched, missing, state) for watched in gone]
        self.stillborn = 0 if any(alive) else self.stillborn + 1
        self.ever_begun = self.ever_begun or any(alive)

    def _alive(self, watched: Watched, missing: Steps, state: State) -> bool:
        """Whether a task that has left had begun; what it had in hand and has not come on counts a try.

        A task walks its cells in order: in hand were the first that lack a step for another reason than a failure.
        """
        moved = any(state.get(cell) != watched.before.get(cell) for cell in watched.cells)
        node = watched.begun()
        if node is None and not moved:
            self.last = watched.how()
            self.nodes.failed(watched.task.node, self.last)
            return False
        if node is not None:  # else others have done its work
            self.nodes.began(node)
        undone = [cell for cell in watched.cells if cell in missing and not self.failures.all_of(missing[cell])]
        for cell in undone[: self._work.settings.per_task]:
            self.tries[cell] = self.tries[cell] + 1 if state[cell] == watched.before.get(cell) else 0
            if self.tries[cell] >= ATTEMPTS:
                self.given_up[cell] = f"given up after {ATTEMPTS} attempts without any progress. {watched.how()}"
        return True

    def _look_at_others(self) -> None:
        """While tasks end before they begin, hear of those that begin elsewhere."""
        for watched in self.watched.values():
            if not watched.known_to_begin and watched.task.node and (node := watched.begun()) is not None:
                watched.known_to_begin = self.ever_begun = True
                self.nodes.began(node)
                self.stillborn = 0

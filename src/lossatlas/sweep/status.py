"""How far a run is, from the files of its folder alone: reads, changes nothing, loads no torch."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lossatlas.sweep.journal import running
from lossatlas.sweep.measured import Broken, Finished, look, refined
from lossatlas.sweep.plan import Plan, Step
from lossatlas.sweep.remaining import Remaining, per_cell, remaining
from lossatlas.sweep.run import open_folder, saved_plan
from lossatlas.sweep.store import Store

MOST_READ = 10_000  # finished steps whose records are opened
RATE_WINDOW = 600.0  # s over which the rate is counted
SILENT = 300.0  # s without a word, and three times what the step should take: then a worker is not counted


@dataclass(frozen=True)
class Status:
    """The facts about a run; times in seconds."""

    name: str
    left: Remaining
    statuses: dict[str, Counter[str]]  # by kind of step: how those that were looked at ended
    looked_at: int
    damaged: tuple[Broken, ...]
    share: float  # of the predicted work that is done
    seconds_left: float  # of one process, at the speed of the steps done so far
    per_minute: float | None  # steps done in the last minutes; None if there were none
    at_work: tuple[dict[str, Any], ...]  # the notes of the workers (sweep/journal.py)
    silent: tuple[dict[str, Any], ...]  # the notes of those not heard of for too long
    failed: tuple[dict[str, Any], ...]  # what failed and has not been done since, each with its last reason
    is_over: bool  # nothing is missing, or all that is has failed since the last start and nobody is at work

    @property
    def seconds_to_go(self) -> float:
        """The time left with the workers that are at work."""
        return self.seconds_left / max(1, len(self.at_work))

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, as `lossatlas status --json` prints them."""
        left, done = self.left, self.left.done
        return {
            "name": self.name,
            "steps": {
                name: {"done": done[name], "total": total, "status": dict(self.statuses.get(name, {}))}
                for name, total in left.total.items()
            },
            "looked_at": self.looked_at,
            "over": self.is_over,
            "cells": {"done": len(left.missing) - len(left.cells), "total": len(left.missing)},
            "share_done": round(self.share, 4),
            "workers": len(self.at_work),
            "seconds_left": round(self.seconds_to_go, 1),
            "predicted_seconds_left": round(self.seconds_left, 1),
            "steps_per_minute": self.per_minute,
            "at_work": list(self.at_work),
            "silent": list(self.silent),
            "failed": list(self.failed),
            "damaged": [{**_named(broken.step), "problem": broken.problem} for broken in self.damaged],
        }


@dataclass
class Observer:
    """Looks at a run folder, and remembers the finished steps it has read: they do not change."""

    folder: Path
    _known: dict[str, Finished] = field(default_factory=dict)

    def look(self) -> Status:
        """The facts of now; raises FileError when the folder holds no run, or cannot be read."""
        saved, store = saved_plan(self.folder), open_folder(self.folder, None).store
        left = remaining(saved.plan, store, saved.seconds, sample=MOST_READ)
        finished, damaged = self._read(store, left)
        scaled = refined(saved.plan, saved.seconds, finished)
        left = left.taking(scaled)
        statuses: dict[str, Counter[str]] = {}
        for one in finished:
            statuses.setdefault(one.step.name, Counter())[one.status] += 1
        total = float((scaled @ per_cell(saved.plan)).sum())
        at_work, silent = _heard(self.folder, saved.plan, scaled)
        return Status(
            name=saved.plan.spec.name,
            left=left,
            statuses=statuses,
            looked_at=len(finished) + len(damaged),
            damaged=tuple(damaged),
            share=1.0 if not left.steps else 1.0 - left.seconds / total,
            seconds_left=left.seconds,
            per_minute=_rate(finished, sum(left.done.values())),
            at_work=tuple(at_work),
            silent=tuple(silent),
            failed=tuple(failures(self.folder / "failed", store)),
            is_over=not left.steps or (not at_work and self._is_given_up(saved.plan, store, left.cells)),
        )

    def _is_given_up(self, plan: Plan, store: Store, cells: Iterable[int]) -> bool:
        """Whether each step that the cells lack has failed since the run was last started, or needs one that has.

        Every start writes plan.json: what failed before it may be tried again.
        """
        failed = _failed_since(self.folder / "failed", (self.folder / "plan.json").stat().st_mtime_ns)
        return bool(failed) and all(_is_lost(plan.steps(plan.cells[index]), store, failed) for index in cells)

    def _read(self, store: Store, left: Remaining) -> tuple[list[Finished], list[Broken]]:
        finished, damaged = [], []
        for index, step in left.sample:
            found = self._known.get(step.key) or look(store, index, step)
            if isinstance(found, Finished):
                self._known[step.key] = found
                finished.append(found)
            elif found is not None:
                damaged.append(found)
        return finished, damaged


def failures(folder: Path, store: Store) -> list[dict[str, Any]]:
    """The steps that failed and are still missing: step, key, cell, seeds, last reason, and number of attempts."""
    notes: dict[str, list[Path]] = {}
    for path in folder.glob("*-*.json"):
        notes.setdefault(path.stem.rpartition("-")[0], []).append(path)
    found = []
    for key, paths in sorted(notes.items()):
        last = max(paths, key=lambda path: int(path.stem.rpartition("-")[2]))
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads(last.read_text(encoding="utf-8"))
            if not store.has(note["step"], key):
                place = {"cell": note.get("cell"), "seeds": note.get("seeds")}
                found.append(
                    {"step": note["step"], "key": key, **place, "reason": note["reason"], "attempts": len(paths)}
                )
    return found


def _failed_since(folder: Path, moment: int) -> set[str]:
    """The keys of steps with a note of a failure that was written at this moment, in ns, or later."""
    keys = set()
    for path in folder.glob("*-*.json"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime_ns >= moment:
                keys.add(path.stem.rpartition("-")[0])
    return keys


def _is_lost(steps: Iterable[Step], store: Store, failed: Collection[str]) -> bool:
    """Whether each step of a cell that is missing has failed, or needs one that has."""
    lost: set[str] = set()
    for step in steps:  # in an order that respects their inputs
        if store.has(step.name, step.key):
            continue
        if step.key not in failed and lost.isdisjoint((*step.inputs, *(key for _, key in step.arrays))):
            return False
        lost.add(step.key)
    return True


def _heard(
    folder: Path, plan: Plan, seconds: NDArray[np.float64]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The notes of workers at work, and of those not heard of for much longer than their step should take."""
    row = {cell: i for i, cell in enumerate(plan.cells)}
    column = plan.columns()
    at_work: list[dict[str, Any]] = []
    silent: list[dict[str, Any]] = []
    now = time.time()
    for note in running(folder):
        index, kind = row.get(tuple(note["cell"])), column.get(note["step"])
        expected = 0.0 if index is None or kind is None else float(seconds[index, kind])
        (silent if now - note["at"] > max(SILENT, 3 * expected) else at_work).append(note)
    return at_work, silent


def _rate(finished: list[Finished], done: int) -> float | None:
    """Steps a minute over the last minutes, from the steps looked at, of `done`; None if none ended then."""
    now = time.time()
    recent = [one for one in finished if 0 <= now - one.ended < RATE_WINDOW]
    if not recent:
        return None
    span = min(RATE_WINDOW, now - min(one.ended - one.seconds for one in recent))
    return round(len(recent) * done / len(finished) * 60 / max(1.0, span), 2)


def _named(step: Step) -> dict[str, Any]:
    return {"step": step.name, "key": step.key, "cell": list(step.cell), "seeds": list(step.seeds)}

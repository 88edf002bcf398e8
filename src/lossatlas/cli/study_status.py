"""`status` and `verify` of the folder of a study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lossatlas.cli.output import note, say, strict_json, table
from lossatlas.studies import reading, work
from lossatlas.sweep.store import Store


def state(folder: Path) -> dict[str, Any]:
    """How many trainings and results there are, and of how many."""
    store = _store(folder)
    done: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for step, key in _steps(folder, store):
        total[step] += 1
        done[step] += store.has(step, key)
    steps = {step: {"done": done[step], "total": total[step]} for step in total}
    return {"study": reading.saved(folder).name, "steps": steps}


def counted(found: dict[str, Any]) -> tuple[int, int]:
    """The trainings and results that are done, and all."""
    steps = found["steps"].values()
    return sum(each["done"] for each in steps), sum(each["total"] for each in steps)


def is_over(_folder: Path) -> bool:
    """Nobody tells: a study keeps no notes of who is at work."""
    return False


def status(folder: Path, *, as_json: bool) -> None:
    """Print how many trainings and results there are, and of how many."""
    found = state(folder)
    if as_json:
        say(strict_json(found, indent=1))
        return
    done, total = counted(found)
    table(["step", "done", "of"], [[step, str(n["done"]), str(n["total"])] for step, n in found["steps"].items()])
    note(f"{done} of {total} steps done." + (f" `lossatlas run {folder}` continues." if done < total else ""))


def verify(folder: Path, *, repair: bool) -> int:
    """Read all that a study has stored; print what is damaged, and return how much that is."""
    store, read, damaged = _store(folder), 0, 0
    for step, key in _steps(folder, store):
        read += store.has(step, key)
        problems = store.verify(step, key)
        for problem in problems:
            say(f"{step}: {problem}")
        damaged += bool(problems)
        if problems and repair:
            store.set_aside(step, key)
    note(f"{read} steps read, {damaged or 'nothing'} damaged.")
    if damaged:
        way = "made again" if repair else f"set aside by `lossatlas verify {folder} --repair` and made again"
        note(f"What is damaged is {way} by `lossatlas run {folder}`.")
    return damaged


def _store(folder: Path) -> Store:
    return Store(Path(reading.saved_store(folder) or folder / "store"))


def _steps(folder: Path, store: Store) -> Iterator[tuple[str, str]]:
    """The name and the key of every training and every result."""
    study = reading.saved(folder)
    known, device = reading.saved_data(folder), torch.device("cpu")
    for subject in work.subjects(study, work.Sources(study), known, store, device):
        yield from ((step.name, step.key) for step in subject.training)
        yield from ((item.step, item.key) for item in work.items(work.pictures(study, subject)))

"""All that a run folder stores, read and compared with its check sums; what is damaged can be set aside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lossatlas import results
from lossatlas.errors import FileError
from lossatlas.files import Damaged
from lossatlas.sweep import data_cache
from lossatlas.sweep.plan import Plan
from lossatlas.sweep.run import RunFolder, open_folder, saved_plan
from lossatlas.sweep.store import Store
from lossatlas.sweep.unfinished import unpacked

Progress = Callable[[int, int], None]  # of the cells, done and all


@dataclass(frozen=True)
class Damage:
    """What is wrong with one stored thing, a sentence each, and how it is moved out of the way."""

    what: str
    problems: tuple[str, ...]
    set_aside: Callable[[], None] | None = None  # None: `lossatlas run` writes it again, or says what to do


@dataclass
class Checked:
    """How much was read."""

    steps: int = 0
    checkpoints: int = 0


def verify(root: Path, checked: Checked, progress: Progress) -> Iterator[Damage]:
    """Read everything that a run stores and yield what is damaged; changes nothing.

    That is spec.json, plan.json, results.nc, and of the store the steps and checkpoints of the plan, and its data.
    Raises FileError where a file cannot be read at all. Costs one pass over all bytes. Without a plan that can be
    trusted nobody knows which steps there should be, and they are not read.
    """
    opened, plan = None, None
    try:
        plan, opened = saved_plan(root).plan, open_folder(root, None)
    except FileError as error:
        if not (root / "spec.json").is_file():
            raise
        yield Damage("the plan", (str(error), "Without it the steps are not known, and were not looked at."))
    yield from _results(root / "results.nc")
    if opened is not None and plan is not None:
        yield from _data(opened, plan)
        yield from _steps(opened.store, plan, checked, progress)


def _results(path: Path) -> Iterator[Damage]:
    if path.is_file():
        try:
            results.load(path)
        except FileError as error:
            yield Damage("the results", (str(error),))


def _data(opened: RunFolder, plan: Plan) -> Iterator[Damage]:
    store = opened.store.root
    try:
        damaged = data_cache.is_damaged(store, plan.fingerprint)
    except PermissionError as error:
        raise FileError(f"{error.filename} cannot be read: {error.strerror}.") from error
    if damaged:
        where = data_cache.folder(store, plan.fingerprint)
        yield Damage(
            "the decoded data",
            (f"{where} is damaged: it does not give the fingerprint of the data",),
            lambda: data_cache.set_aside(store, plan.fingerprint),
        )


def _steps(store: Store, plan: Plan, checked: Checked, progress: Progress) -> Iterator[Damage]:
    finished = {name: store.finished(name) for name in plan.counts()}
    unfinished = store.checkpoints()
    for index, cell in enumerate(plan.cells):
        for step in plan.steps(cell):
            name, key = step.name, step.key
            if key in finished[name]:
                checked.steps += 1
                if problems := store.verify(name, key):
                    what = f"{name} of cell {step.cell}, seeds {list(step.seeds)}"
                    yield Damage(what, tuple(problems), lambda name=name, key=key: store.set_aside(name, key))  # type: ignore[misc]
            if (name, key) in unfinished:
                checked.checkpoints += 1
                yield from _checkpoint(store, name, key)
        progress(index + 1, len(plan))


def _checkpoint(store: Store, name: str, key: str) -> Iterator[Damage]:
    path = store.unfinished(name, key)
    try:
        unpacked(path.read_bytes(), name, key)
    except FileNotFoundError:
        return  # its step was finished in the meantime
    except Damaged as error:
        yield Damage(
            f"the checkpoint of a step {name}",
            (f"{path}: {error}",),
            lambda: store.set_unfinished_aside(name, key),
        )
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}.") from error

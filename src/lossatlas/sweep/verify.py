"""All that a run folder stores, read and compared with its check sums; what is damaged can be set aside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lossatlas import results
from lossatlas.errors import FileError, UserError
from lossatlas.files import Damaged
from lossatlas.sweep import data_cache, engine, slurm_files
from lossatlas.sweep.plan import Plan
from lossatlas.sweep.run import RunFolder, is_begun, open_folder, saved_plan, variant_folders
from lossatlas.sweep.store import Store
from lossatlas.sweep.unfinished import unpacked

# How a whole picture begins and ends.
ENDS = {".png": (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"), ".pdf": (b"%PDF-", b"%%EOF")}

Progress = Callable[[int, int], None]  # of the cells, done and all


@dataclass(frozen=True)
class Damage:
    """What is wrong with one stored thing, a sentence each, and how it is moved out of the way."""

    what: str
    problems: tuple[str, ...]
    set_aside: Callable[[], None] | None = None  # None: the problems say what to do


@dataclass
class Checked:
    """What was read: the keys of steps and checkpoints, and the folders of data."""

    steps: set[str] = field(default_factory=set)
    checkpoints: set[str] = field(default_factory=set)
    data: set[Path] = field(default_factory=set)


def verify(root: Path, checked: Checked, stage: Callable[[str], Progress]) -> Iterator[Damage]:
    """Read everything that a run stores, or a run with all its variants, and yield what is damaged.

    `stage(name)` gives what is told of the progress. Steps that variants share are read once. Raises FileError
    where a file cannot be read at all. Changes nothing. Costs one pass over all bytes.
    """
    try:
        variants = variant_folders(root)
    except FileError as error:
        yield Damage("the spec", (str(error),))
        return
    if not variants:
        yield from _run(root, checked, stage("reading cells"))
        return
    for name, folder in variants.items():
        try:
            if is_begun(folder):
                yield from _run(folder, checked, stage(f"reading cells of {name}"))
            elif (root / "variants.csv").is_file():  # all were done once
                yield Damage(name, (f"{folder} is missing. `lossatlas run {root}` makes it again.",))
        except FileError as error:  # the others are read all the same
            yield Damage(name, (str(error),))
    yield from _engine(root)
    yield from _figures(root)


def _run(root: Path, checked: Checked, progress: Progress) -> Iterator[Damage]:
    """What is damaged of one run.

    That is spec.json, plan.json, results.nc, and of the store the steps and checkpoints of the plan, and its data.
    Of what has no check sum, engine.json, the files of Slurm's attempts and the figures, only this: whether it is
    there and whole. Without a plan that can be trusted nobody knows which steps there should be, and they are not
    read.
    """
    opened, plan = None, None
    try:
        plan, opened = saved_plan(root).plan, open_folder(root, None)
    except FileError as error:
        if not (root / "spec.json").is_file():
            raise
        yield Damage("the plan", (str(error), "Without it the steps are not known, and were not looked at."))
    yield from _results(root)
    yield from _engine(root)
    yield from _jobs(root)
    yield from _figures(root)
    if opened is not None and plan is not None:
        yield from _data(opened, plan, checked)
        yield from _steps(opened.store, plan, checked, progress)


def _results(root: Path) -> Iterator[Damage]:
    path = root / "results.nc"
    if path.is_file():
        try:
            results.load(path)
        except FileError as error:
            yield Damage("the results", (str(error),))


def _engine(root: Path) -> Iterator[Damage]:
    try:
        engine.chosen(root, {})
    except UserError as error:
        yield Damage("the engine", (str(error),))


def _jobs(root: Path) -> Iterator[Damage]:
    for folder in sorted(path for path in (root / "slurm").glob("*") if path.name.isdigit()):
        problems = []
        try:
            slurm_files.read_shards(folder / "shards.json")
        except FileError as error:
            problems.append(str(error))
        script = folder / "job.sbatch"
        if not (script.is_file() and script.stat().st_size):
            problems.append(f"{script} is missing or empty.")
        if problems:
            way_out = f"When none of its jobs is in the queue, remove {folder}; `lossatlas run` needs it no more."
            yield Damage(f"the jobs of attempt {folder.name}", (*problems, way_out))


def _figures(root: Path) -> Iterator[Damage]:
    """A PDF and a PNG of every figure, neither cut short."""
    pictures = {path for path in (root / "figures").glob("[!.]*") if path.suffix in ENDS}
    pictures |= {path.with_suffix(suffix) for path in pictures for suffix in ENDS}
    problems = [f"{path} {problem}" for path in sorted(pictures) if (problem := _picture_problem(path))]
    if not pictures and (root / "results.nc").is_file():
        problems.append(f"{root / 'figures'} holds no figure.")
    if problems:
        yield Damage("the figures", (*problems, f"`lossatlas run {root}` draws them again."))


def _picture_problem(path: Path) -> str:
    """Empty if nothing is wrong, as far as its beginning and its end tell."""
    if not path.is_file():
        return "is missing."
    content = path.read_bytes()
    begins, ends = ENDS[path.suffix]
    return "" if content.startswith(begins) and content.rstrip().endswith(ends) else "is damaged: it is cut short."


def _data(opened: RunFolder, plan: Plan, checked: Checked) -> Iterator[Damage]:
    store = opened.store.root.resolve()
    where = data_cache.folder(store, plan.fingerprint)
    if where in checked.data:
        return
    checked.data.add(where)
    try:
        damaged = data_cache.is_damaged(store, plan.fingerprint)
    except PermissionError as error:
        raise FileError(f"{error.filename} cannot be read: {error.strerror}.") from error
    if damaged:
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
            if key in finished[name] and key not in checked.steps:
                checked.steps.add(key)
                if problems := store.verify(name, key):
                    what = f"{name} of cell {step.cell}, seeds {list(step.seeds)}"
                    yield Damage(what, tuple(problems), lambda name=name, key=key: store.set_aside(name, key))  # type: ignore[misc]
            if (name, key) in unfinished and key not in checked.checkpoints:
                checked.checkpoints.add(key)
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

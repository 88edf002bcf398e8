"""A run folder: what it holds, and what may be changed in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lossatlas import files, json_files
from lossatlas.errors import FileError, SpecError
from lossatlas.files import Damaged
from lossatlas.settings import content_key
from lossatlas.specs import Spec, validate
from lossatlas.sweep.plan import Plan
from lossatlas.sweep.store import Store

if TYPE_CHECKING:
    from lossatlas.sweep.cost import Estimate

FIXED = ("task", "train")  # what a run folder's spec may not change
OPEN = ("data.path", "init", "data.n_test")  # but these: places are no content, and no training hangs on the last


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its spec, plan, results and (unless shared) store."""

    root: Path
    store: Store

    @property
    def spec_file(self) -> Path:
        """The resolved spec."""
        return self.root / "spec.json"

    @property
    def plan_file(self) -> Path:
        """The steps and their keys."""
        return self.root / "plan.json"

    @property
    def results_file(self) -> Path:
        """The results of all finished steps."""
        return self.root / "results.nc"

    @property
    def failed(self) -> Path:
        """Notes of steps that raised, and of cells that were given up."""
        return self.root / "failed"


def default_folder(name: str) -> Path:
    """`runs/<name>`, with everything but letters, digits, dots and dashes as a dash."""
    slug = re.sub(r"[^\w.\-]+", "-", name).strip("-.") or "run"
    return Path("runs") / slug


def open_folder(root: Path, store: Path | None) -> RunFolder:
    """The run folder at `root`; its store is `store`, the one it was started with, or `root`/store.

    A plan that is missing or damaged is no matter, since a run writes it anew, unless it alone told where the
    store is: then it raises FileError.
    """
    folder = RunFolder(root, Store(store or root / "store"))
    if store is not None:
        return folder
    try:
        plan = json_files.read_sealed(folder.plan_file) if folder.plan_file.is_file() else {}
        known = "store" in plan
    except Damaged:
        plan, known = {}, False
    if not known and folder.spec_file.is_file() and not folder.store.root.is_dir():
        raise FileError(
            f"{folder.plan_file} is missing or damaged, and the store is not in {root}. "
            "Name the store with --store, or a new folder with --out."
        )
    return RunFolder(root, Store(root / plan["store"])) if plan.get("store") else folder


def saved_spec(root: Path) -> Spec:
    """The spec of an existing run folder; raises FileError when there is none, or it is damaged."""
    path = root / "spec.json"
    if not path.is_file():
        raise FileError(
            f"{root} is no run folder: it holds no spec.json. Give a folder that `lossatlas run` made."
        )
    try:
        raw = json_files.read(path)
    except Damaged as error:
        raise FileError(f"{path} {error}. {_anew(root)}") from error
    try:
        return validate(raw, str(path))
    except SpecError as error:
        raise FileError(f"{path} is damaged or of another version. {error}\n{_anew(root)}") from error


def _anew(root: Path) -> str:
    """What helps where spec.json is not what it was."""
    return f"Remove spec.json and give the spec again: `lossatlas run SPEC --out {root}` keeps what is finished."


def variant_folders(root: Path) -> dict[str, Path]:
    """The run folder of every variant, by its name, of a folder of variants; empty for any other folder."""
    if not (root / "spec.json").is_file() or (root / "plan.json").is_file():
        return {}
    return {name: root / name for name in saved_spec(root).variants}


def run_folders(root: Path) -> list[Path]:
    """A run folder itself; of a folder of variants the run folders of those that were begun."""
    variants = variant_folders(root)
    return [folder for folder in variants.values() if is_begun(folder)] if variants else [root]


def is_begun(folder: Path) -> bool:
    """Whether a folder holds a run, even if one of its two files is lost."""
    return (folder / "spec.json").is_file() or (folder / "plan.json").is_file()


def check_ordinary(root: Path) -> None:
    """Raise FileError, with the folders to choose from, if this one holds the runs of variants."""
    if variant_folders(root):
        begun = ", ".join(map(str, run_folders(root)))
        choice = (
            f"Give one of them: {begun}." if begun else f"None is begun yet; `lossatlas run {root}` does them."
        )
        raise FileError(f"{root} holds variants of a run, each in a folder of its own. {choice}")


def check_same_experiment(folder: RunFolder, spec: Spec) -> None:
    """Raise SpecError if the folder holds another task, training or other axes; more of the same is welcome."""
    if not folder.spec_file.is_file():
        if folder.root.is_dir() and not folder.plan_file.exists() and any(map(_is_foreign, folder.root.iterdir())):
            raise FileError(
                f"{folder.root} is not empty and holds no run. Give another folder with --out, or remove it."
            )
        return
    before, now = _resolved(saved_spec(folder.root)), _resolved(spec)
    problems = []
    for section in FIXED:
        problems += [
            f"{section}.{key}: the folder has {old!r}, the spec {new!r}"
            for key, old, new in differences(before[section], now[section])
            if key not in OPEN
        ]
    if bool(before["variants"]) != bool(now["variants"]):
        held, given = (
            f"variants {', '.join(each['variants'])}" if each["variants"] else "none" for each in (before, now)
        )
        problems.append(f"variants: the folder has {held}, the spec {given}")
    for role in ("load", "temperature"):
        if list(before[role]) != list(now[role]):
            problems.append(
                f"{role}: the folder varies {', '.join(before[role])}, the spec {', '.join(now[role])}"
            )
    if problems:
        raise SpecError(
            f"The folder {folder.root} holds another experiment: the spec",
            problems,
            "Choose another folder with --out, or give the spec that the folder was made with.",
        )


def left_out(folder: RunFolder, spec: Spec) -> list[str]:
    """What the folder's spec asked for and this one no longer does: seeds, axis values, measures."""
    if not folder.spec_file.is_file():
        return []
    before = saved_spec(folder.root)
    values: dict[str, tuple[Sequence[float], Sequence[float]]] = {"seed": (before.seeds, spec.seeds)}
    values |= {old.name: (old.values, new.values) for old, new in zip(before.axes, spec.axes, strict=True)}
    asked = [[name for name, settings in each.measured() if settings is not None] for each in (before, spec)]
    gone = [
        f"{name} {', '.join(str(value) for value in old if value not in new)}"
        for name, (old, new) in values.items()
        if set(old) - set(new)
    ]
    return [*gone, *(f"measure {name}" for name in asked[0] if name not in asked[1])]


def _resolved(spec: Spec) -> dict[str, Any]:
    """A spec as plain data with every default spelled out, and its model as keys hold it."""
    content = spec.model_dump(mode="json")
    content["task"]["model"] = spec.task.model.content()
    return content


def _is_foreign(path: Path) -> bool:
    """Whether a file is none of those that a run leaves that was killed before it wrote its spec."""
    return path.name != "store" and not path.name.startswith(files.TEMPORARY)


def differences(a: Any, b: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """The dotted keys at which two tables differ, each with both values; None where a table lacks it."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = []
        for key in sorted({*a, *b}):
            found += differences(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    return [] if a == b else [(prefix, a, b)]


def write_spec(root: Path, spec: Spec) -> None:
    """Keep the spec of a folder."""
    files.write_file(root / "spec.json", json_files.encoded(_given(spec)))


def write_plan(folder: RunFolder, plan: Plan, estimate: Estimate) -> None:
    """Keep the spec, and beside it what its plan hangs on: the data, and the predicted seconds."""
    content = {
        "store": _place(folder),
        "spec": content_key(_given(plan.spec)),
        "fingerprint": plan.fingerprint,
        "n_train": plan.n_train,
        "names": list(estimate.names),
        "seconds": [[round(value, 4) for value in row] for row in estimate.seconds.tolist()],
    }
    write_spec(folder.root, plan.spec)
    files.write_file(folder.plan_file, json_files.sealed(content, indent=None))


def _place(folder: RunFolder) -> str:
    """Where the store is, seen from the folder: empty inside it, and beside it as that of variants is."""
    store = folder.store.root.resolve()
    beside = Path("..") / "store"
    known = {folder.root.resolve() / "store": "", (folder.root / beside).resolve(): str(beside)}
    return known.get(store, str(store))


@dataclass(frozen=True)
class SavedPlan:
    """The plan of a run folder, with the seconds that each kind of step takes in each cell."""

    plan: Plan
    seconds: NDArray[np.float64]  # (cells, kinds), as in `cost.Estimate`


def saved_plan(root: Path) -> SavedPlan:
    """The plan of a run folder; raises FileError when there is none, or it is damaged."""
    path = root / "plan.json"
    if not path.is_file():
        if (root / "spec.json").is_file():
            check_ordinary(root)
            raise FileError(f"{path} is missing. `lossatlas run {root}` writes it again.")
        raise FileError(
            f"{root} is no run folder: it holds no plan.json. Give a folder that `lossatlas run` made."
        )
    spec = saved_spec(root)
    try:
        content = json_files.read_sealed(path)
        plan = Plan(spec, str(content["fingerprint"]), int(content["n_train"]))
        seconds = np.array(content["seconds"], dtype=np.float64)
        fits = (len(plan), len(plan.kinds())) == seconds.shape and content["spec"] == content_key(_given(spec))
    except (KeyError, TypeError, ValueError) as error:  # damaged, or of another version
        raise FileError(f"{path} is damaged. `lossatlas run {root}` writes it again.") from error
    if not fits:
        raise FileError(
            f"{path} belongs to another spec.json. If you have changed that, `lossatlas run {root}` goes by it "
            f"and writes the plan again. If not, it is damaged. {_anew(root)}"
        )
    return SavedPlan(plan, seconds)


def _given(spec: Spec) -> dict[str, Any]:
    return spec.model_dump(mode="json", exclude_unset=True)

"""A run folder: what it holds, and what may be changed in it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossatlas import files
from lossatlas.errors import FileError, SpecError, UserError
from lossatlas.specs import Spec, validate
from lossatlas.sweep.plan import CellPlan
from lossatlas.sweep.store import Store

FIXED = ("task", "train")  # what a run folder's spec may not change


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


def default_folder(name: str) -> Path:
    """`runs/<name>`, with everything but letters, digits, dots and dashes as a dash."""
    slug = re.sub(r"[^\w.\-]+", "-", name).strip("-.") or "run"
    return Path("runs") / slug


def open_folder(root: Path, store: Path | None) -> RunFolder:
    """The run folder at `root`; its store is `store`, the one it was started with, or `root`/store."""
    plan = _read_json(root / "plan.json") if (root / "plan.json").is_file() else {}
    place = store or (Path(plan["store"]) if plan.get("store") else root / "store")
    return RunFolder(root, Store(place))


def saved_spec(root: Path) -> Spec:
    """The spec of an existing run folder; raises FileError when there is none, or it is damaged."""
    path = root / "spec.json"
    if not path.is_file():
        raise FileError(
            f"{root} is no run folder: it holds no spec.json. Give a folder that `lossatlas run` made."
        )
    raw = _read_json(path)
    try:
        return validate(raw, str(path))
    except SpecError as error:
        raise FileError(f"{path} is damaged or of another version. {error}") from error


def check_same_experiment(folder: RunFolder, spec: Spec) -> None:
    """Raise SpecError if the folder holds another task, training or other axes; more of the same is welcome."""
    if not folder.spec_file.is_file():
        if folder.root.is_dir() and not folder.plan_file.exists() and any(map(_is_foreign, folder.root.iterdir())):
            raise FileError(
                f"{folder.root} is not empty and holds no run. Give another folder with --out, or remove it."
            )
        return
    before, now = saved_spec(folder.root).model_dump(mode="json"), spec.model_dump(mode="json")
    problems = []
    for section in FIXED:
        problems += [
            f"{section}.{key}: the folder has {old!r}, the spec {new!r}"
            for key, old, new in _differences(before[section], now[section])
            if key != "data.path"
        ]
    for role in ("load", "temperature"):
        if list(before[role]) != list(now[role]):
            problems.append(
                f"{role}: the folder varies {', '.join(before[role])}, the spec {', '.join(now[role])}"
            )
    if problems:
        problems.append("choose another folder with --out, or give the spec that the folder was made with")
        raise SpecError(f"The folder {folder.root} holds another experiment; it", problems)


def _is_foreign(path: Path) -> bool:
    """Whether a file is none of those that a run leaves that was killed before it wrote its spec."""
    return path.name != "store" and not path.name.startswith(files.TEMPORARY)


def _differences(a: Any, b: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        found = []
        for key in sorted({*a, *b}):
            found += _differences(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    return [] if a == b else [(prefix, a, b)]


def write_plan(folder: RunFolder, spec: Spec, cells: Sequence[CellPlan], costs: Sequence[float]) -> None:
    """Keep the spec and the plan: the steps of every cell with their keys and predicted seconds."""
    steps = iter(costs)
    plan = {
        "store": "" if folder.store.root == folder.root / "store" else str(folder.store.root.resolve()),
        "axes": [axis.name for axis in spec.axes],
        "cells": [
            {
                "cell": list(cell.cell),
                "steps": [[s.name, list(s.seeds), s.key, round(next(steps), 4)] for s in cell.steps],
            }
            for cell in cells
        ],
    }
    files.write_file(folder.spec_file, _json(spec.model_dump(mode="json", exclude_unset=True)))
    files.write_file(folder.plan_file, _json(plan))


def saved_plan(root: Path) -> dict[str, Any]:
    """The plan of a run folder; raises FileError when there is none."""
    path = root / "plan.json"
    if not path.is_file():
        raise FileError(
            f"{root} is no run folder: it holds no plan.json. Give a folder that `lossatlas run` made."
        )
    plan = _read_json(path)
    try:
        for cell in plan["cells"]:
            for name, seeds, key, seconds in cell["steps"]:
                _ = (str(name), list(seeds), str(key), float(seconds))
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path} is damaged. `lossatlas run {root}` writes it again.") from error
    return plan


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(
            f"{path} cannot be read ({error}). Restore it, or start a new folder with --out."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no table. Restore it, or start a new folder with --out.")
    return content


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=False) + "\n").encode()

"""`status` of a folder of variants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lossatlas.cli.output import note, say, strict_json, table
from lossatlas.sweep.run import open_folder, variant_folders
from lossatlas.sweep.status import Observer, failures
from lossatlas.sweep.variants import ALL, progress


def state(folder: Path) -> dict[str, Any]:
    """How far each variant is, and all of them, what they share counted once."""
    steps = {name: {"done": each.done, "total": each.total} for name, each in progress(folder).items()}
    return {"together": steps.pop(ALL), "variants": steps}


def counted(found: dict[str, Any]) -> tuple[int, int]:
    """The steps of all variants that are done, and all."""
    return found["together"]["done"], found["together"]["total"]


def is_over(folder: Path) -> bool:
    """Whether all variants were begun, and what each lacks has failed and nobody is at work."""
    folders = variant_folders(folder).values()
    return all((each / "plan.json").is_file() and Observer(each).look().is_over for each in folders)


def status(folder: Path, *, as_json: bool) -> None:
    """Print how far the variants are, and how many steps have failed."""
    found = state(folder)
    if as_json:
        say(strict_json(found, indent=1))
        return
    done, total = counted(found)
    failed = {name: _failed(folder / name) for name in found["variants"]}
    rows = [[name, str(n["done"]), str(n["total"]), str(failed[name])] for name, n in found["variants"].items()]
    table(["variant", "done", "of", "failed"], rows)
    example = next((name for name, count in failed.items() if count), next(iter(found["variants"])))
    left = f" `lossatlas run {folder}` continues." if done < total else ""
    note(
        f"{done} of {total} steps done, those that variants share counted once.{left} "
        f"`lossatlas status {folder / example}` tells more of one."
    )


def _failed(folder: Path) -> int:
    if not (folder / "plan.json").is_file():
        return 0
    opened = open_folder(folder, None)
    return len(failures(opened.failed, opened.store))

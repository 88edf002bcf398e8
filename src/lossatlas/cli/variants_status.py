"""`status` of a folder of variants."""

from __future__ import annotations

from pathlib import Path

from lossatlas.cli.output import note, say, strict_json, table
from lossatlas.sweep.variants import ALL, progress


def counted(folder: Path) -> tuple[int, int]:
    """How many steps of all variants are done, those that they share counted once, and of how many."""
    whole = progress(folder)[ALL]
    return whole.done, whole.total


def status(folder: Path, *, as_json: bool) -> None:
    """Print how far each variant is, and all of them, what they share counted once."""
    found = progress(folder)
    if as_json:
        steps = {name: {"done": each.done, "total": each.total} for name, each in found.items()}
        say(strict_json({"together": steps.pop(ALL), "variants": steps}, indent=1))
        return
    whole = found[ALL]
    rows = [[name, str(each.done), str(each.total)] for name, each in found.items() if name != ALL]
    table(["variant", "done", "of"], rows)
    first = next(iter(found))
    left = f" `lossatlas run {folder}` continues." if whole.done < whole.total else ""
    note(
        f"{whole.done} of {whole.total} steps done, those that variants share counted once.{left} "
        f"`lossatlas status {folder / first}` tells more of one."
    )

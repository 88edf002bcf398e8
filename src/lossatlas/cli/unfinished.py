"""The results of a run that is not finished, for those who want to see them before; changes nothing of the run."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from lossatlas import results
from lossatlas.cli.output import note
from lossatlas.errors import FileError
from lossatlas.files import Damaged
from lossatlas.sweep.collect import collect, given
from lossatlas.sweep.run import open_folder, saved_plan, saved_spec
from lossatlas.sweep.status import failures
from lossatlas.sweep.store import Record, Store


class _Untouched(Store):
    """A store that leaves damaged steps where they are; they count as missing."""

    passed_over = 0

    def read(self, step: str, key: str) -> Record | None:
        try:
            return self.look(step, key)
        except Damaged:
            self.passed_over += 1
            return None


def results_of(folder: Path) -> xr.DataTree:
    """The results of a run; if they lack something of its spec, what is there so far, with a note.

    Raises FileError if no model is there yet, or files are damaged.
    """
    path = folder / "results.nc"
    if path.is_file():
        tree = results.load(path)
        if not _has_grown(folder, tree):
            return tree
    tree = so_far(folder)
    if "unfinished" in tree.attrs:
        note(f"{folder} is not finished: this is what is there, {tree.attrs['unfinished']}.")
        note(f"`lossatlas run {folder}` continues.")
    return tree


def _has_grown(folder: Path, tree: xr.DataTree) -> bool:
    """Whether a run was begun with another spec after these results were written."""
    try:
        return tree.attrs.get("spec") != results.plain(given(saved_spec(folder)))
    except FileError:
        return False  # results need no other file


def so_far(folder: Path) -> xr.DataTree:
    """The results of the steps that are finished; the others are missing, or failed for the reasons noted.

    If some are missing, the attribute `unfinished` tells how many there are.

    Raises FileError if there is no model yet.
    """
    plan, opened = saved_plan(folder).plan, open_folder(folder, None)
    store = _Untouched(opened.store.root)
    failed = {each["key"]: each["reason"] for each in failures(opened.failed, store)}
    tree = collect(plan.spec, plan, store, fingerprint=plan.fingerprint, failures=failed)
    if (tree["models"]["status"] == "missing").all():
        raise FileError(f"{folder} has no trained model yet. `lossatlas status {folder}` tells how far it is.")
    total = sum(plan.counts().values())
    done = sum(store.has(step.name, step.key) for cell in plan for step in cell.steps) - store.passed_over
    if done < total:
        left_out = f", {store.passed_over} more damaged" if store.passed_over else ""
        tree.attrs["unfinished"] = f"{done} of {total} steps{left_out}"
    return tree

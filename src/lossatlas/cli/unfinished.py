"""The results of a run that is not finished, for those who want to see them before; changes nothing of the run."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from lossatlas.errors import FileError
from lossatlas.files import Damaged
from lossatlas.sweep.collect import collect
from lossatlas.sweep.run import open_folder, saved_plan
from lossatlas.sweep.status import failures
from lossatlas.sweep.store import Record, Store


class _Untouched(Store):
    """A store that leaves damaged steps where they are; they count as missing."""

    def read(self, step: str, key: str) -> Record | None:
        try:
            return self.look(step, key)
        except Damaged:
            return None


def so_far(folder: Path) -> xr.DataTree:
    """The results of the steps that are finished; the others are missing, or failed for the reasons noted.

    Raises FileError if no model is there yet.
    """
    plan, opened = saved_plan(folder).plan, open_folder(folder, None)
    store = _Untouched(opened.store.root)
    failed = {each["key"]: each["reason"] for each in failures(opened.failed, store)}
    tree = collect(plan.spec, plan, store, fingerprint=plan.fingerprint, failures=failed)
    if (tree["models"]["status"] == "missing").all():
        raise FileError(f"{folder} has no trained model yet. `lossatlas status {folder}` tells how far it is.")
    return tree

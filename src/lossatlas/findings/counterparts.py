"""Whether two results can be set side by side: the same task, learnt over the same axes."""

from __future__ import annotations

import json
from typing import Any

import xarray as xr
from pydantic import ValidationError

from lossatlas.findings.verdicts import NotMeasured
from lossatlas.specs import Task

# Settings of the data that their fingerprint tells for: which they are, and what of them is loaded.
_CONTENT = {f"data.{name}" for name in ("name", "limit", "vocabulary", "max_length")}


def trained(tree: xr.DataTree) -> xr.DataArray:
    """Which cells were trained, whatever came of it."""
    return (tree["models"].dataset["status"].astype(str) != "missing").any("seed")


def shared_cells(first: xr.DataTree, second: xr.DataTree) -> xr.DataArray:
    """The cells trained in both, over the values of the axes that both have.

    Raises NotMeasured, saying why, where the tasks or the names of the axes differ, or no cell is shared.
    """
    differing = differences(first, second)
    if differing:
        raise NotMeasured(f"needs two runs of one task; {'; '.join(differing)}")
    a, b = trained(first), trained(second)
    if set(a.dims) != set(b.dims):
        names = " and ".join(", ".join(map(str, each.dims)) for each in (a, b))
        raise NotMeasured(f"needs two runs over the same axes; they are {names}")
    shared = xr.DataArray(a & b)  # joined by the values of the axes
    if not shared.any():
        raise NotMeasured("the two runs have no cell in common")
    return shared


def differences(first: xr.DataTree, second: xr.DataTree) -> list[str]:
    """What the tasks of two results differ in, one text a setting; empty where they agree, or neither says.

    The task is model, data with what was done to them, and loss; not how it was trained. Where both have the
    fingerprint of their data, it counts and not their name.
    """
    a, b = task(first), task(second)
    if a.keys().isdisjoint(b) and (a or b):
        return ["one of the two does not say its task as a spec does"]
    prints = {str(tree.attrs.get("data_fingerprint", "")) for tree in (first, second)}
    unequal = {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}
    if "" not in prints and len(prints) == 1:
        unequal -= _CONTENT
    found = [f"{key} is {_plain(a.get(key))} and {_plain(b.get(key))}" for key in sorted(unequal)]
    if "" not in prints and len(prints) == 2 and not unequal & _CONTENT:
        found.append("the data are not the same")
    return found


def task(tree: xr.DataTree) -> dict[str, Any]:
    """What was learnt by what, by keys such as `data.name`, defaults spelled out; empty where it is not said.

    Raises NotMeasured where the spec is none that this version reads.
    """
    spec = json.loads(tree.attrs.get("spec", "{}"))
    if "task" not in spec:
        # A published archive names in its folders what part of the data it took.
        folders, found, _ = str(spec.get("name", "")).partition("/bs_")
        return {"published set": folders} if found else {}
    try:
        given = Task.model_validate_json(json.dumps(spec["task"]))
    except ValidationError as error:
        raise NotMeasured("the spec in the results is of another version of lossatlas") from error
    noisy = given.data.label_noise or "label_noise" in spec.get("load", {})
    without = {"path"} if noisy else {"path", "definition"}
    data = given.data.model_dump(mode="json", exclude=without)
    sections = {"data": data, "model": given.model.content()}
    return {"loss": given.loss} | {
        f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()
    }


def _plain(value: Any) -> str:
    return "not given" if value is None else str(value)

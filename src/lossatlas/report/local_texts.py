"""The texts of the page of single models: what was measured of what, the numbers in words, what to beware of."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from lossatlas.errors import UserError
from lossatlas.figures.curves import describe, shapes_of
from lossatlas.figures.local import kind_of
from lossatlas.figures.planes import title_of as plane_words
from lossatlas.figures.style import plain
from lossatlas.report.markup import Markup, join, table, tag
from lossatlas.report.page import section
from lossatlas.report.words import counted, listed, with_error

HEADINGS = {
    "line": "The loss along directions",
    "surface": "The loss on a plane",
    "plane": "The loss on the plane through three models",
    "spectrum": "The Hessian spectrum",
    "density": "The Hessian spectrum",
    "mined": "A mined direction",
    "connection": "Paths between models",
    "comparison": "How alike the models are",
}
FINE = ("ok", "survives", "", "none")
LITTLE = 0.5  # a plane that holds less of a trajectory shows little of it


def title_of(dataset: xr.Dataset, names: list[str]) -> str:
    """`mlp on digits`, from the attributes that the commands write."""
    model = _loaded(dataset.attrs.get("model"))
    named = model.get("name") if isinstance(model, dict) else model
    texts = [str(each) for each in (named, dataset.attrs.get("data")) if each]
    return " on ".join(texts) or listed(names)


def header(title: str, datasets: Mapping[str, xr.Dataset]) -> Markup:
    """What was measured, of which weights, on which data."""
    attrs = next(iter(datasets.values())).attrs
    weights = [str(each.get("file", "")) for each in _loaded(attrs.get("weights")) or []]
    parts = [
        f"weights {listed(weights)}" if weights else "",
        f"{attrs['images']} {attrs.get('part', '')} images" if "images" in attrs else "",
        f"BatchNorm: {attrs['batchnorm']}" if "batchnorm" in attrs else "",
        f"seed {attrs['seed']}" if "seed" in attrs else "",
        str(attrs.get("dtype", "")),
    ]
    every = sum(len(warnings(each)) for each in datasets.values())
    state = f"{counted(every, 'warning')}, below." if every else "Everything converged, and every value is finite."
    return tag(
        "header",
        tag("p", "lossatlas", class_="overline"),
        tag("h1", title),
        tag("p", _capital("; ".join(filter(None, parts))) + ".", class_="lead") if any(parts) else "",
        tag("p", state, class_="complete"),
    )


def heading(dataset: xr.Dataset, name: str) -> str:
    """What a file shows, and its name."""
    return f"{HEADINGS.get(kind_of(dataset) or '', 'Numbers')} ({name})"


def sentences(dataset: xr.Dataset) -> list[str]:
    """The numbers of a file that matter, in sentences."""
    kind = kind_of(dataset)
    if kind in ("spectrum", "density"):
        return _spectrum(dataset)
    if kind == "line":
        return [f"Class: {describe(shapes_of(dataset))}."] if shapes_of(dataset) else []
    if kind in ("surface", "plane"):
        return _surface(dataset)
    if kind == "mined":
        status = str(dataset.attrs.get("status", ""))
        return [f"The search ended with: {status or 'no verdict'}.", *_advantage(dataset)]
    return []


def _spectrum(dataset: xr.Dataset) -> list[str]:
    parts = []
    for name, residual, people in (
        ("eigenvalue", "eigenvalue_residual", "largest"),
        ("eigenvalue_min", "eigenvalue_min_residual", "smallest"),
    ):
        if name in dataset:
            first = float(dataset[name].values[0]), float(dataset[residual].values[0])
            parts.append(f"the {people} eigenvalue is {with_error(*first)} (± residual)")
    if "trace" in dataset:
        exact = bool(dataset["trace_exact"]) if "trace_exact" in dataset else False
        error = 0.0 if exact else float(dataset["trace_se"])
        over = float(dataset["trace_data_se"]) if "trace_data_se" in dataset else math.nan
        told = f"the trace is {with_error(float(dataset['trace']), math.nan if exact else error)}"
        told += " (exact" if exact else " (± estimator"
        parts.append(told + (f"; ± {plain(over, 2)} over the samples)" if math.isfinite(over) else ")"))
    if "negative_share" in dataset:
        low = 100 * float(dataset["negative_share"])
        high = low + 100 * float(dataset["undecided_share"])
        parts.append(f"between {plain(low, 3)} and {plain(high, 3)} % of the eigenvalues are negative")
    return [f"{_capital('; '.join(parts))}."] if parts else []


def _surface(dataset: xr.Dataset) -> list[str]:
    path = dataset if "trajectory_alpha" in dataset and "trajectory_share" in dataset.attrs else None
    try:
        told = plane_words(dataset, "loss", path)
    except UserError as problem:
        return [str(problem)]
    has_class = len(told) > 1 and told[1].startswith("curvatures")
    if has_class:
        told[0] = f"class {told[0]}"
    return [f"{_capital('; '.join(told))}."] if told else []


def _advantage(dataset: xr.Dataset) -> list[str]:
    if "advantage" not in dataset:
        return []
    gain = with_error(float(dataset["advantage"]), float(dataset["advantage_se"]), "nat")
    return [f"Its advantage over the most negative eigenvector is {gain}."]


def classes(dataset: xr.Dataset) -> list[str]:
    """The class of each curve of a line."""
    if kind_of(dataset) != "line":
        return []
    return [shape.kind if shape.status == "ok" else shape.reason for shape in shapes_of(dataset)]


def warnings(dataset: xr.Dataset) -> list[str]:
    """Whatever did not converge, is not finite, or has a status of its own."""
    return [*_unconverged(dataset), *_not_finite(dataset), *_statuses(dataset), *_little_held(dataset)]


def _unconverged(dataset: xr.Dataset) -> list[str]:
    found = []
    for name in map(str, dataset.data_vars):
        if not name.endswith("_converged"):
            continue
        values = np.atleast_1d(dataset[name].values)
        failed = int((values == 0).sum())
        if failed:
            of = name.removesuffix("_converged")
            people = str(dataset[of].attrs.get("long_name", of)) if of in dataset else of
            reason = next(
                (
                    str(dataset.attrs[key])
                    for key in (f"{of}_reason", "eigenvalues_reason")
                    if dataset.attrs.get(key)
                ),
                "",
            )
            text = (
                f"{people}: {failed} of {values.size} did not converge"
                if values.size > 1
                else f"{people}: not converged"
            )
            found.append(f"{_capital(text)}{f' ({reason})' if reason else ''}.")
    return found


def _not_finite(dataset: xr.Dataset) -> list[str]:
    found = []
    for name in ("loss", "error"):
        if name in dataset and dataset[name].size:
            broken = int((~np.isfinite(dataset[name].values)).sum())
            if broken:
                found.append(f"{broken} of {counted(dataset[name].size, 'value')} of the {name} are not finite.")
    return found


def _statuses(dataset: xr.Dataset) -> list[str]:
    found = []
    for name, value in dataset.attrs.items():
        if str(name).endswith("status") and str(value) not in FINE:
            reason = dataset.attrs.get(str(name).replace("status", "reason"), "")
            found.append(f"{_capital(str(name).replace('_', ' '))}: {value}{f' ({reason})' if reason else ''}.")
    if "status" in dataset:
        counts = Counter(str(each) for each in dataset["status"].values.ravel())
        found += [f"{counted(n, 'path')}: {status}." for status, n in counts.items() if status not in FINE]
    return found


def _little_held(dataset: xr.Dataset) -> list[str]:
    share = float(dataset.attrs.get("trajectory_share", 1.0))
    if share >= LITTLE:
        return []
    return [f"The plane holds only {100 * share:.1f} % of the trajectory: most of it happens elsewhere."]


def scalars(dataset: xr.Dataset) -> Markup:
    """All single numbers of a file as a table that can be opened."""
    rows = []
    for name in map(str, dataset.data_vars):
        if dataset[name].ndim or name.endswith("_se") or dataset[name].dtype.kind not in "biuf":
            continue
        error = float(dataset[f"{name}_se"]) if f"{name}_se" in dataset else math.nan
        units = str(dataset[name].attrs.get("units", "1"))
        value = with_error(float(dataset[name]), error, "" if units == "1" else units)
        rows.append([str(dataset[name].attrs.get("long_name", name)), value])
    if not rows:
        return Markup("")
    return tag("details", tag("summary", "All single numbers"), _wide(table(["what", "value"], rows)))


def origin(datasets: Mapping[str, xr.Dataset]) -> Markup:
    """The attributes of every file."""
    parts = []
    for name, dataset in datasets.items():
        rows = [[str(key), str(value)] for key, value in dataset.attrs.items()]
        parts.append(tag("details", tag("summary", name), _wide(table(["name", "value"], rows))))
    return section("origin", "Where these numbers come from", join(*parts))


def _wide(content: Markup) -> Markup:
    return tag("div", content, class_="wide", tabindex="0")


def _loaded(text: Any) -> Any:
    """JSON as what it stands for, other text as it is."""
    try:
        return json.loads(text) if isinstance(text, str) else text
    except json.JSONDecodeError:
        return text


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

"""The page of two runs on the same axes: where their phases differ, and what the second has more of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from lossatlas import summary
from lossatlas.errors import UserError
from lossatlas.figures.panels import METRICS
from lossatlas.figures.style import plain
from lossatlas.findings.columns import best_cell, of_seeds
from lossatlas.findings.verdicts import Z, mean_and_error
from lossatlas.report import grid, grid_arrays, grid_texts
from lossatlas.report.arrays import Arrays
from lossatlas.report.markup import Markup, join, table, tag
from lossatlas.report.page import Page, section
from lossatlas.report.sentences import Sentence, place
from lossatlas.report.words import counted, with_error
from lossatlas.results import axes_of
from lossatlas.settings import without_nan

SCRIPTS = ("base.js", "numbers.js", "tables.js", "figure.js", "map.js", "compare.js")
SIDES = ("a", "b")
SURE = 0.9  # labels with a larger probability under resampling count as sure


@dataclass(frozen=True)
class Run:
    """One of the two: what it is called, its results and its labels."""

    name: str
    tree: xr.DataTree
    labels: xr.Dataset


def page(first: Run, second: Run) -> Page:
    """The page of two runs over the cells that both have; raises UserError if they share none."""
    shared = common(first, second)
    runs = [_on(run, shared) for run in (first, second)]
    order = grid_arrays.order_of(runs[0].labels)
    every = [summary.cells(run.tree) for run in runs]
    arrays = Arrays()
    names = [str(n) for n in every[0].data_vars if f"{n}_se" in every[0] and f"{n}_se" in every[1]]
    for side, cells, run in zip(SIDES, every, runs, strict=True):
        placed = cells.sortby(order)
        for name in names:
            for each in (name, f"{name}_se"):
                arrays.add(f"{side}.{each}", placed[each].transpose(*order).values)
        grid_arrays.add_labels(run.labels.sortby(order), order, arrays, side)
    content = {
        "kind": "compare",
        "name": f"{first.name}-{second.name}",
        "names": [first.name, second.name],
        **grid_arrays.frame(runs[0].labels),
        "metrics": [grid_arrays.described(every[0][name]) for name in names],
        "panels": [_panel(metric.name, metric.title, every) for metric in METRICS if metric.name in names],
        "z": Z,
    }
    return Page(
        title=f"{first.name} and {second.name} – lossatlas",
        body=_body(runs, every, order),
        content=without_nan(content),
        arrays=arrays,
        scripts=SCRIPTS,
    )


def common(first: Run, second: Run) -> dict[str, list[float]]:
    """The values of every axis that both runs have; raises UserError where the axes differ or share no value."""
    axes = [[name for names in axes_of(run.labels) for name in names] for run in (first, second)]
    if set(axes[0]) != set(axes[1]):
        raise UserError(
            f"{first.name} lies over {', '.join(axes[0])} and {second.name} over {', '.join(axes[1])}. "
            "Two runs are compared on the same axes."
        )
    shared = {}
    for name in axes[0]:
        values = [set(run.labels[name].values.tolist()) for run in (first, second)]
        shared[name] = sorted(values[0] & values[1])
        if not shared[name]:
            raise UserError(f"{first.name} and {second.name} have no value of {name} in common.")
    return shared


def _on(run: Run, shared: dict[str, list[float]]) -> Run:
    tree = run.tree.map_over_datasets(lambda each: each.sel({k: v for k, v in shared.items() if k in each.dims}))
    return Run(run.name, tree, run.labels.sel(shared))


def _panel(name: str, title: str, every: Sequence[xr.Dataset]) -> dict[str, Any]:
    """The map of a difference: symmetric colours; no limits where no cell has one."""
    gap = every[1][name] - every[0][name]
    reach = float(np.abs(gap.where(np.isfinite(gap))).max())
    units = every[0][name].attrs.get("units", "1")
    known = {} if math.isnan(reach) else {"low": -(reach or 1.0), "high": reach or 1.0, "is_log": False}
    title = grid_arrays.TITLES.get(name, title)
    return {"name": name, "title": title, "bar": "" if units == "1" else units, "colours": "RdBu", **known}


def _body(runs: Sequence[Run], every: Sequence[xr.Dataset], order: Sequence[str]) -> Markup:
    first, second = (run.name for run in runs)
    told = [_moved(runs), _best(runs), _changed(runs, every)]
    return join(
        tag(
            "header",
            tag("p", "lossatlas", class_="overline"),
            tag("h1", f"{first} and {second}"),
            tag("p", tag("strong", "A: "), grid_texts.what_was_run(runs[0].tree, runs[0].labels), class_="lead"),
            tag("p", tag("strong", "B: "), grid_texts.what_was_run(runs[1].tree, runs[1].labels), class_="lead"),
            tag(
                "p",
                f"Compared on the {counted(runs[0].labels['phase'].size, 'cell')} that both have.",
                class_="complete",
            ),
        ),
        tag(
            "main",
            tag("section", grid_texts.findings_of(told), id="answers", class_="single"),
            section("phases", "Phases"),
            section("metrics", "B less A"),
            section("numbers-of", "Cells whose phase differs", _differing(runs, order)),
            section("origin", "Thresholds", *(_thresholds(run) for run in runs)),
        ),
        tag("aside", id="story", aria_label="One cell", tabindex="-1", hidden=""),
    )


def _moved(runs: Sequence[Run]) -> Sentence:
    """How many cells have another phase, and how many of these surely."""
    question = "In how many cells does the phase differ?"
    a, b = (run.labels["phase"] for run in runs)
    known = (a != "") & (b != "")
    differs = known & (a != b)
    sure = differs & (runs[0].labels["probability"] > SURE) & (runs[1].labels["probability"] > SURE)
    n, total = int(differs.sum()), int(known.sum())
    if not total:
        return Sentence(question, "No cell has a phase in both runs.")
    answer = (
        f"In {n} of the {counted(total, 'cell')} that have a phase in both; "
        f"in {int(sure.sum())} of them both labels are sure."
    )
    because = f"Sure: a probability above {SURE:g} under resampling of the seeds, in both runs."
    first, second = (grid.rule_of(run.labels)["thresholds"] for run in runs)
    if first != second:
        because += " Their thresholds differ, which alone can change a phase: --set gives both the same."
    return Sentence(question, answer, because)


def _best(runs: Sequence[Run]) -> Sentence:
    """The best cell of each, and their difference with independent errors."""
    question = "Which reaches the better test accuracy?"
    found = []
    for run in runs:
        errors = of_seeds(run.tree, "test_error")
        cell = None if errors is None else best_cell(100.0 - errors)
        if errors is None or cell is None:
            return Sentence(question, f"{run.name} has no test error.")
        found.append((cell, *mean_and_error(100.0 - errors.sel(cell).values)))
    (here, low, error), (there, high, other) = found
    gap, gap_error = high - low, math.hypot(error, other)
    if math.isnan(gap_error) or abs(gap) <= Z * gap_error:
        opening = "They cannot be told apart"
    else:
        opening = "B does" if gap > 0 else "A does"
    answer = f"{opening}: the best cell of B less that of A is {with_error(gap, gap_error, '%')}."
    because = (
        f"A: {with_error(low, error, '%')} at {place(here, runs[0].labels)}. "
        f"B: {with_error(high, other, '%')} at {place(there, runs[1].labels)}."
    )
    return Sentence(question, answer, because)


def _changed(runs: Sequence[Run], every: Sequence[xr.Dataset]) -> Sentence:
    """In how many cells each metric changes by more than two errors, up or down."""
    question = "What else changes?"
    texts = []
    for metric in METRICS:
        if any(f"{metric.name}_se" not in cells for cells in every):
            continue
        gap = every[1][metric.name] - every[0][metric.name]
        error = np.hypot(every[0][f"{metric.name}_se"], every[1][f"{metric.name}_se"])
        up, down = int((gap > Z * error).sum()), int((gap < -Z * error).sum())
        if up or down:
            name = str(every[0][metric.name].attrs.get("long_name", metric.name))
            ways = [f"{way} in {n}" for way, n in (("rises", up), ("falls", down)) if n]
            texts.append(f"{name} {' and '.join(ways)}")
    told = "; ".join(texts) or "Nothing does, beyond its errors"
    cells = counted(runs[0].labels["phase"].size, "cell")
    because = f"Cells in which the difference exceeds {Z:g} standard errors, of {cells}."
    return Sentence(question, f"{told[:1].upper()}{told[1:]}.", because)


def _differing(runs: Sequence[Run], order: Sequence[str]) -> Markup:
    a, b = (run.labels.sortby(list(order)).transpose(*order) for run in runs)
    where = np.argwhere(a["phase"].values.astype(str) != b["phase"].values.astype(str))
    rows = []
    for index in map(tuple, where):
        at = [f"{float(a[name].values[k]):g}" for name, k in zip(order, index, strict=True)]
        told = [f"{float(labels['probability'].values[index]):.2f}".replace("nan", "") for labels in (a, b)]
        rows.append([*at, str(a["phase"].values[index]), str(b["phase"].values[index]), *told])
    if not rows:
        return tag("p", "None: all cells have the same phase.")
    header = [*order, "A", "B", "probability in A", "probability in B"]
    return tag("div", table(header, rows), class_="wide", tabindex="0")


def _thresholds(run: Run) -> Markup:
    rule = grid.rule_of(run.labels)
    texts = [
        f"{grid_texts.METRIC_WORDS[name]} {plain(value, 6)} ({rule['origin'][name]})"
        for name, value in rule["thresholds"].items()
    ]
    return tag("p", f"{run.name}: {'; '.join(texts)}.", class_="because")

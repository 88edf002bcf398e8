"""The page of a grid of results: its numbers as arrays, and the texts around them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import xarray as xr

from lossatlas.findings import advice, claims, columns, double_descent
from lossatlas.findings.evidence import Evidence
from lossatlas.report import grid_arrays, grid_texts
from lossatlas.report.arrays import Arrays
from lossatlas.report.markup import Markup, join
from lossatlas.report.page import Page, plotly_source
from lossatlas.settings import without_nan

SCRIPTS = (
    "base.js",
    "numbers.js",
    "tables.js",
    "figure.js",
    "rule.js",
    "boundaries.js",
    "map.js",
    "cells.js",
    "charts.js",
    "matrix.js",
    "story.js",
    "slices.js",
    "thresholds.js",
    "phases.js",
    "panels.js",
    "grid.js",
)


def page(tree: xr.DataTree, labels: xr.Dataset, *, source: str) -> Page:
    """The page of results with their labels; `source` is how the reader names them."""
    evidence = Evidence(tree, labels)
    found = claims.check(evidence)
    best = columns.best_of_columns(tree, labels)
    descents = double_descent.search(tree, labels)
    advised = advice.advise(labels)
    arrays = Arrays()
    content: dict[str, Any] = {
        "kind": "grid",
        "name": grid_texts.name_of(tree),
        "source": source,
        "spec": spec_of(tree),
        "rule": rule_of(labels),
        "rules": rules_of_advice(),
        "descents": [asdict(each) for each in descents if each.found == "yes"],
        **grid_arrays.content(tree, evidence.cells, labels, arrays),
    }
    body = grid_texts.body(evidence, found, best, descents, advised)
    return Page(
        title=f"{grid_texts.name_of(tree)} – lossatlas",
        body=join(Markup(body)),
        content=without_nan(content),
        arrays=arrays,
        scripts=SCRIPTS,
        plotly=plotly_source(),
    )


def spec_of(tree: xr.DataTree) -> dict[str, Any]:
    """The spec of a run as plain data; empty where the results do not hold one that can be run."""
    spec: dict[str, Any] = json.loads(tree.attrs.get("spec", "{}"))
    return spec if "task" in spec and "train" in spec else {}


def rule_of(labels: xr.Dataset) -> dict[str, Any]:
    """What the labels rest on: thresholds, where they come from, forced sides, scales of the margins."""
    names = ("thresholds", "origin", "sides", "threshold_sources", "margin_scales")
    return {name: json.loads(labels.attrs[name]) for name in names} | {"held_fixed": labels.attrs["held_fixed"]}


def rules_of_advice() -> dict[str, Any]:
    """The rules of advice as a table: which fire in a phase, with a mode connectivity above zero or not."""
    limit = {"mode_connectivity": -1.0}
    fired: Mapping[str, list[list[str]]] = {
        phase: [
            [rule.name for rule in advice.RULES if rule.fires(phase, {"mode_connectivity": x}, limit)]
            for x in (0.0, 2.0)
        ]
        for phase in ("I", "II", "III", "IV-A", "IV-B")
    }
    return {"fired": fired, "words": {rule.name: rule.words for rule in advice.RULES}}

"""The page of results of single models: spectra, curves, surfaces, mined directions, connections, comparisons."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import xarray as xr

from lossatlas.figures.local import KINDS, kind_of
from lossatlas.figures.style import LINE_COLOURS, STYLE
from lossatlas.report import local_texts
from lossatlas.report.arrays import Arrays
from lossatlas.report.grid_arrays import colour_maps, described
from lossatlas.report.markup import Markup, join, tag
from lossatlas.report.page import Page, plotly_source
from lossatlas.settings import without_nan

SCRIPTS = ("base.js", "numbers.js", "tables.js", "figure.js", "charts.js", "matrix.js", "local.js")
DRAWN = ("line", "surface", "plane", "spectrum", "density", "mined", "connection", "comparison")  # by the page


def page(datasets: Mapping[str, xr.Dataset]) -> Page:
    """The page of results by the names of their files."""
    arrays = Arrays()
    results = [_content(k, name, dataset, arrays) for k, (name, dataset) in enumerate(datasets.items())]
    sections = [_section(k, name, dataset) for k, (name, dataset) in enumerate(datasets.items())]
    first = next(iter(datasets.values()))
    title = local_texts.title_of(first, list(datasets))
    content = {
        "kind": "local",
        "name": title,
        "results": results,
        "colours": {"lines": list(LINE_COLOURS), "maps": colour_maps(("viridis", "magma"))},
    }
    return Page(
        title=f"{title} – lossatlas",
        body=join(local_texts.header(title, datasets), tag("main", *sections, local_texts.origin(datasets))),
        content=without_nan(content),
        arrays=arrays,
        scripts=SCRIPTS,
        plotly=plotly_source(),
    )


def _content(place: int, name: str, dataset: xr.Dataset, arrays: Arrays) -> dict[str, Any]:
    """The numbers of one file go to `arrays`; its texts, names and units are returned."""
    variables: dict[str, Any] = {}
    for key, variable in dataset.variables.items():
        entry: dict[str, Any] = {
            **described(dataset[key]),
            "dims": list(variable.dims),
            "shape": list(variable.shape),
        }
        if variable.dtype.kind in "biuf":
            arrays.add(f"{place}.{key}", variable.values, "<f8")
        else:
            entry["texts"] = [str(text) for text in variable.values.ravel()]
        variables[str(key)] = entry
    return {
        "file": name,
        "kind": drawn_as(dataset),
        "variables": variables,
        "guessing": _number(dataset.attrs.get("guessing")),
        "center": json.loads(dataset.attrs.get("center", "{}")),
        "directions": json.loads(dataset.attrs.get("directions", "[]")),
        "shapes": local_texts.classes(dataset),
    }


def drawn_as(dataset: xr.Dataset) -> str:
    """What the page draws; empty where it shows the figure of `lossatlas.figures.plot`."""
    kind = kind_of(dataset) or ""
    if kind == "density":
        kind = "spectrum"
    return kind if kind in DRAWN else ""


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _section(place: int, name: str, dataset: xr.Dataset) -> Markup:
    parts: list[str] = [tag("p", line) for line in local_texts.sentences(dataset)]
    warnings = local_texts.warnings(dataset)
    if warnings:
        parts.append(tag("ul", *(tag("li", each) for each in warnings), class_="trouble"))
    parts.append(tag("div", id=f"result-{place}", class_="result"))
    if not drawn_as(dataset):
        parts.append(_picture(dataset))
    parts.append(local_texts.scalars(dataset))
    return tag("section", tag("h2", local_texts.heading(dataset, name)), *parts, id=f"section-{place}")


def _picture(dataset: xr.Dataset) -> Markup:
    """The figure of the package as an image inside the page; a sentence where it has none."""
    if kind_of(dataset) is None:
        return tag("p", "There is no figure of these numbers.")
    figure = KINDS[str(kind_of(dataset))](dataset)
    stream = io.BytesIO()
    with mpl.rc_context({**STYLE, "svg.fonttype": "none", "svg.hashsalt": "lossatlas"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": "lossatlas"})
    source = "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()
    return tag("p", Markup(f'<img class="picture" alt="" src="{source}">'))

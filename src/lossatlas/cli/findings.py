"""`findings`, `advise`: what results say, as tables, files and figures; reads files only, without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lossatlas.cli.explore import (
    AutoOption,
    OutOption,
    SetOption,
    Source,
    labelled,
    lacking,
    note_rule,
    opened,
    slices_through_third,
)
from lossatlas.cli.output import guarded, note, say, strict_json, table
from lossatlas.errors import UserError

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from lossatlas.findings.claims import Finding
    from lossatlas.findings.columns import Column, Place
    from lossatlas.findings.double_descent import Descent
    from lossatlas.findings.tables import Table


@guarded
def findings(
    source: Source,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Results of the same grid with the other learning-rate schedule.",
            metavar="SOURCE",
            readable=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A folder for the full tables (CSV, JSON) and the figures.")
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            help="Show this slice as well, such as width=16, or width=16,n_train=5000 with three axes; "
            "may be repeated.",
            metavar="AXIS=VALUE",
        ),
    ] = None,
    settings: SetOption = None,
    auto: AutoOption = None,
) -> None:
    """Check the claims of [Yang2021], whether zero loss pays at every load, and look for double descent."""
    from lossatlas.findings import claims, columns, double_descent, tables
    from lossatlas.findings.evidence import Evidence

    tree = opened(source)
    labels = labelled(tree, settings, auto=auto)
    evidence = Evidence(tree, labels, against=None if against is None else opened(against))
    asked = [_place(text) for text in at or []]
    slices = [columns.cut(evidence.cells, labels, place) for place in asked]
    checked = claims.check(evidence)
    best = columns.best_of_columns(tree, labels)
    descents = double_descent.search(tree, labels)
    table(*_rounded(tables.overview(checked, best, descents)))
    for cells in slices:
        say()
        table(*tables.of_cells(cells, cells[["phase"]]))
    note_rule(labels)
    if out is not None:
        _write_tables(out, evidence.cells, labels, checked, best, descents, lacks=lacking(tree))
        _draw(out, evidence.cells, labels, descents, asked, tree)
        note(f"written: {out}")


@guarded
def advise(
    source: Source,
    out: OutOption = None,
    settings: SetOption = None,
    auto: AutoOption = None,
) -> None:
    """Say for every cell what would help: more data, a larger model, another temperature, better convergence."""
    from lossatlas import files
    from lossatlas.findings import advice, tables

    labels = labelled(opened(source), settings, auto=auto)
    found = tables.of_advice(advice.advise(labels))
    if out is not None:
        files.write_file(out, tables.to_csv(found).encode())
    table(*found)
    note_rule(labels)
    if out is not None:
        note(f"written: {out}")


def _rounded(found: Table) -> Table:
    """The overview with four significant digits of margins and errors; the files have more."""
    header, rows = found
    numbers = [header.index(name) for name in ("margin", "error")]
    for row in rows:
        for k in numbers:
            row[k] = row[k] and f"{float(f'{float(row[k]):.4g}'):g}"
    return header, rows


def _place(text: str) -> Place:
    """`width=16,n_train=5000` as values by axis."""
    place: Place = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        try:
            place[name] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise UserError(f"--at {text!r} names no slice. Write --at AXIS=VALUE, such as --at width=16.")
    return place


def _write_tables(
    folder: Path,
    cells: xr.Dataset,
    labels: xr.Dataset,
    checked: Sequence[Finding],
    best: Sequence[Column],
    descents: Sequence[Descent],
    *,
    lacks: str,
) -> None:
    from lossatlas import files
    from lossatlas.findings import tables

    contents = {
        "claims": tables.of_claims(checked),
        "columns": tables.of_columns(best),
        "double_descent": tables.of_descents(descents),
        "cells": tables.of_cells(cells, labels),
    }
    for name, content in contents.items():
        files.write_file(folder / f"{name}.csv", tables.to_csv(content).encode())
    everything = {
        "lacks": lacks,
        "thresholds": json.loads(labels.attrs["thresholds"]),
        "origin": json.loads(labels.attrs["origin"]),
        "claims": [
            {
                "claim": each.claim.name,
                "sentence": each.claim.sentence,
                "figure": each.claim.figure,
                "unit": each.claim.unit,
                "holds": each.holds,
                "margin": each.margin,
                "error": each.error,
                "rests_on": each.rests_on,
            }
            for each in checked
        ],
        "columns": [asdict(each) for each in best],
        "double_descent": [asdict(each) for each in descents],
    }
    files.write_file(folder / "findings.json", (strict_json(everything, indent=1) + "\n").encode())


def _draw(
    folder: Path,
    cells: xr.Dataset,
    labels: xr.Dataset,
    descents: Sequence[Descent],
    asked: Sequence[Place],
    tree: xr.DataTree,
) -> None:
    """The traces against the temperature, the slices asked for, and those with double descent or Phase III."""
    from lossatlas import figures
    from lossatlas.figures.columns import has_trace_lines
    from lossatlas.figures.grid import place_title
    from lossatlas.findings import columns
    from lossatlas.results import axes_of

    load, temperature = axes_of(labels)
    for at in columns.places(labels, load[0], *temperature):
        part = cells.sel(at)
        if has_trace_lines(part):
            figure = figures.trace_lines(part, title=place_title(at, labels))
            _save(figure, tree, folder / f"trace_lines{columns.place_suffix(at)}")
    with_descent = [each.at for each in descents if each.found == "yes"]
    drawn: list[Place] = []
    for at in (*asked, *with_descent, *slices_through_third(labels)):
        if at not in drawn:
            drawn.append(at)
            _draw_slice(folder, columns.cut(cells, labels, at), at, descents, tree)


def _draw_slice(
    folder: Path, cells: xr.Dataset, at: Place, descents: Sequence[Descent], tree: xr.DataTree
) -> None:
    """All metrics of a slice, and where it was searched for double descent its errors."""
    from lossatlas import figures
    from lossatlas.figures.grid import place_title
    from lossatlas.findings import columns

    title, suffix = place_title(at, cells), columns.place_suffix(at)
    searched = next((each for each in descents if each.at == at), None)
    peak = searched.peak if searched and searched.found == "yes" else None
    figure = figures.column(cells, peak=peak, title=title)
    _save(figure, tree, folder / f"slice{suffix}")
    if searched and searched.found != "not measured" and "train_error" in cells:
        wrong = columns.wrong_labels(tree, at)
        figure = figures.descent(cells, searched, wrong_labels=wrong, title=title)
        _save(figure, tree, folder / f"descent{suffix}")


def _save(figure: Figure, tree: xr.DataTree, path: Path) -> None:
    """Write a figure; below it stands what its run lacks."""
    from lossatlas import figures
    from lossatlas.figures.captions import captioned

    lacks = lacking(tree)
    figures.save(captioned(figure, lacks) if lacks else figure, path)

"""Findings as rows of text: one short table of all of them, and one full table of each kind."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from lossatlas.findings.advice import Advice
from lossatlas.findings.claims import Finding
from lossatlas.findings.columns import Column, axes, place_text
from lossatlas.findings.double_descent import Descent
from lossatlas.findings.verdicts import Z
from lossatlas.results import axes_of

Table = tuple[list[str], list[list[str]]]  # header and rows


def overview(findings: Sequence[Finding], columns: Sequence[Column], descents: Sequence[Descent]) -> Table:
    """Every question in one line: its name and figure, the answer, the margin with its error, what it rests on.

    The margin of a double descent is that of its least step beyond two standard errors.
    """
    rows = []
    for each in findings:
        numbers = _numbers(each.margin, each.error)
        rows.append([each.claim.name, each.claim.figure, each.holds, *numbers, each.claim.unit, each.rests_on])
    for column in columns:
        name = f"zero-loss-pays {place_text(column.at)}"
        best = f"best {column.accuracy:.2f} % at {place_text(column.best)} in {column.phase or 'no phase'}"
        rests_on = "; ".join(filter(None, [best, column.reason]))
        numbers = _numbers(column.difference, column.difference_error)
        rows.append([name, "4", column.pays, *numbers, "% accuracy of III/IV over I/II", rests_on])
    for descent in descents:
        name = f"double-descent {' '.join(filter(None, [descent.axis, place_text(descent.at)]))}"
        margin = _numbers(descent.statistic - Z, math.nan)
        rows.append([name, "4", descent.found, *margin, "standard errors beyond two", _story(descent)])
    return ["finding", "figure", "answer", "margin", "error", "unit", "rests on"], rows


def _story(descent: Descent) -> str:
    if descent.found != "yes":
        return descent.reason or f"p = {descent.p_adjusted:.3g} (Holm)"
    steps = f"{descent.valley:g} to {descent.peak:g}"
    where = [
        f"{steps_:+g} steps from {what}"
        for steps_, what in (
            (descent.from_boundary, "the edge of I/II and III/IV"),
            (descent.from_interpolation, "interpolation"),
        )
        if not math.isnan(steps_)
    ]
    return "; ".join([f"rises {descent.rise:.2f} % from {steps}", *where, f"p = {descent.p_adjusted:.3g} (Holm)"])


def of_claims(findings: Sequence[Finding]) -> Table:
    """The claims with their sentences and figures."""
    header = ["claim", "sentence", "figure", "holds", "margin", "error", "unit", "rests_on"]
    rows = [
        [
            each.claim.name,
            each.claim.sentence,
            each.claim.figure,
            each.holds,
            *_numbers(each.margin, each.error),
            each.claim.unit,
            each.rests_on,
        ]
        for each in findings
    ]
    return header, rows


def of_columns(columns: Sequence[Column]) -> Table:
    """The best cell of every load, and what training to zero loss pays."""
    header = ["load", "best", "phase", "accuracy", "accuracy_se", "best_in_I_II", "best_in_III_IV"]
    header += ["difference", "difference_se", "zero_loss_pays", "reason"]
    rows = [
        [
            place_text(each.at),
            place_text(each.best),
            each.phase,
            *_numbers(each.accuracy, each.accuracy_error),
            place_text(each.best_sharp),
            place_text(each.best_flat),
            *_numbers(each.difference, each.difference_error),
            each.pays,
            each.reason,
        ]
        for each in columns
    ]
    return header, rows


def of_descents(descents: Sequence[Descent]) -> Table:
    """The search for double descent along every slice."""
    numbers = ["n_cells", "statistic", "p_value", "p_adjusted", "start", "valley", "peak", "end"]
    numbers += ["fall", "fall_se", "rise", "rise_se", "second_fall", "second_fall_se"]
    numbers += ["from_boundary", "from_interpolation"]
    rows = [
        [
            each.axis,
            each.order,
            place_text(each.at),
            each.found,
            *_numbers(*(getattr(each, name) for name in numbers)),
            each.reason,
        ]
        for each in descents
    ]
    return ["along", "order", "at", "found", *numbers, "reason"], rows


def of_cells(cells: xr.Dataset, labels: xr.Dataset) -> Table:
    """Every metric of every cell with its standard error, and its phase: the slices, one after another.

    The axes come first; of a slice, those that are fixed before the one that it runs along.
    """
    names = [str(name) for name in cells.data_vars if f"{name}_se" in cells]
    wanted = [each for name in names for each in (name, f"{name}_se")]
    along = axes(labels)
    fixed = [name for names in axes_of(labels) for name in names if name not in along]
    ordered = cells[wanted].assign(phase=labels["phase"]).sortby(along).transpose(*along)
    arrays = [ordered[name].values for name in wanted]
    rows = []
    for where in np.ndindex(*(ordered.sizes[name] for name in along)):
        place = [float(ordered[name]) for name in fixed]
        place += [ordered[name].values[k] for name, k in zip(along, where, strict=True)]
        phase = str(ordered["phase"].values[where])
        rows.append([*_numbers(*place), phase, *_numbers(*(array[where] for array in arrays))])
    return [*fixed, *along, "phase", *wanted], rows


def of_advice(advice: Sequence[Advice]) -> Table:
    """One row a cell: what to do first, in words, the rule with its numbers, and what else fired."""
    names = list(advice[0].at) if advice else []
    rows = []
    for each in advice:
        first = each.rules[0] if each.rules else None
        further = [
            f"{rule.advice} ({rule.name}: {why})"
            for rule, why in zip(each.rules[1:], each.because[1:], strict=True)
        ]
        rows.append(
            [
                *_numbers(*each.at.values()),
                each.phase,
                each.advice,
                first.words if first else "",
                first.name if first else "",
                each.because[0] if first else each.reason,
                "; ".join(further),
            ]
        )
    return [*names, "phase", "advice", "in_words", "rule", "because", "further"], rows


def to_csv(table: Table) -> str:
    """Comma-separated text, quoted where needed."""
    header, rows = table
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([header, *rows])
    return stream.getvalue()


def _numbers(*values: Any) -> list[str]:
    """Up to six significant digits, integers without `.0`, NaN empty."""
    return [_number(float(value)) for value in values]


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if value.is_integer() else f"{value:.6g}"

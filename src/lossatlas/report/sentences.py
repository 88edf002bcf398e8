"""The three findings of a grid in sentences, each made of its numbers and their errors; and what is advised."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from lossatlas.figures.boundaries import boundaries
from lossatlas.figures.grid import Scale, grid_of, scale_of
from lossatlas.figures.style import number, plain
from lossatlas.findings.advice import Advice
from lossatlas.findings.claims import Finding
from lossatlas.findings.columns import Column, axes, best_cell, of_seeds
from lossatlas.findings.evidence import Evidence
from lossatlas.findings.verdicts import Z, difference, mean_and_error
from lossatlas.report.transitions import Transition
from lossatlas.report.words import counted, listed, with_error

_MOST_NAMED = 6  # columns in one sentence
_WITHOUT = ": no transition"  # how `boundaries` ends its sentence on a metric
_TURNS = {  # test -> what the two sides are called
    "sharp": ("sharp", "flat"),
    "mode_connectivity": ("poorly connected", "well connected"),
    "cka": ("models not alike (IV-A)", "alike (IV-B)"),
}


@dataclass(frozen=True)
class Sentence:
    """One finding: its question, the short answer (a line each), and what it rests on."""

    question: str
    answer: str
    because: str = ""


def best(evidence: Evidence) -> Sentence:
    """The cell of the best test accuracy, its phase, and by how much it beats the other phases."""
    question = "Which cell is best, and in which phase?"
    errors = of_seeds(evidence.tree, "test_error")
    accuracies = None if errors is None else 100.0 - errors
    cell = None if accuracies is None else best_cell(accuracies)
    if accuracies is None or cell is None:
        told = "The test error was not measured of any model that is ok, so no cell can be called the best."
        return Sentence(question, told)
    labels = evidence.labels
    phase = str(labels["phase"].sel(cell).item())
    value, error = mean_and_error(accuracies.sel(cell).values)
    sure = float(labels["probability"].sel(cell))
    named = f"Phase {phase}" if phase else "no phase that could be told"
    chance = (
        "" if math.isnan(sure) or not phase else f" (with probability {sure:.2f} under resampling of the seeds)"
    )
    answer = (
        f"The best test accuracy, {with_error(value, error, '%')}, is that of {place(cell, labels)}, "
        f"in {named}{chance}."
    )
    because = [_ties(accuracies, cell), _outside(accuracies, labels, cell)]
    return Sentence(question, answer, " ".join(filter(None, because)))


def _ties(accuracies: xr.DataArray, cell: Mapping[str, float]) -> str:
    """How many other cells cannot be told from the best one."""
    order = [str(dim) for dim in accuracies.dims if dim != "seed"]
    samples = accuracies.transpose(*order, "seed").values.reshape(-1, accuracies.sizes["seed"])
    gaps = [difference(accuracies.sel(cell).values, each) for each in samples if np.isfinite(each).any()]
    close = sum(1 for gap, error in gaps if not math.isnan(error) and gap <= Z * error) - 1
    if all(math.isnan(error) for _, error in gaps):
        return "With one seed there is no error to compare it by."
    if close <= 0:
        return f"No other cell comes within {Z:g} standard errors of it."
    return f"{counted(close, 'other cell')} {'is' if close == 1 else 'are'} within {Z:g} standard errors of it."


def _outside(accuracies: xr.DataArray, labels: xr.Dataset, cell: Mapping[str, float]) -> str:
    """By how much the best cell beats that of any other phase."""
    phases = labels["phase"]
    phase = str(phases.sel(cell).item())
    rival = best_cell(accuracies, (phases != phase) & (phases != ""))
    if rival is None or not phase:
        return ""
    gap, error = difference(accuracies.sel(cell).values, accuracies.sel(rival).values)
    other = str(phases.sel(rival).item())
    there = place(rival, labels)
    return f"The best cell of any other phase ({there}, {other}) is {with_error(gap, error, '%')} below it."


def where(evidence: Evidence, found: Sequence[Transition]) -> Sentence:
    """Where the transitions lie, along which axis, in how many slices."""
    question = "Where are the transitions?"
    texts = [_capital(_transition(each)) for each in found]
    if len(axes(evidence.labels)) == 2 and not texts:
        texts = _one_sided(evidence)
    if not texts:
        return Sentence(question, "No test changes anywhere in this grid: there is no transition to locate.")
    errors = "Errors are those of the seeds (jackknife) at these thresholds; positions are interpolated."
    if any(math.isnan(each.error) for each in found):
        errors += " Without an error: one curve a cell, which cannot be resampled."
    if all(math.isnan(each.error) for each in found):
        errors = "There is no error: with one seed, nothing can be resampled. Positions are interpolated."
    return Sentence(question, "\n".join(texts), errors if found else "")


def _transition(each: Transition) -> str:
    first, second = _TURNS[each.test]
    at = f"{_lower(each.axis.label)} {with_error(each.at, each.error)}"
    if each.is_first_below is None:
        turn = f"{first} turns into {second} at {at}"
    else:
        below, above = (first, second) if each.is_first_below else (second, first)
        turn = f"{below} below and {above} above {at}"
    if each.crossing == 1:
        return f"{turn} (in one of {counted(each.slices, 'slice')})."
    return (
        f"{turn} (median over {each.crossing} of {each.slices} slices, {plain(each.least)} to {plain(each.most)})."
    )


def _one_sided(evidence: Evidence) -> list[str]:
    """On which side of a threshold all cells lie, and which metrics show no transition to derive one from."""
    told = boundaries(evidence.labels, grid_of(evidence.labels)).sentences
    without = [each.removesuffix(_WITHOUT) for each in told if each.endswith(_WITHOUT)]
    texts = [f"{_capital(each)}." for each in told if not each.endswith(_WITHOUT)]
    return [*texts, f"No transition in this grid in {listed(without)}."] if without else texts


def zero_loss(columns: Sequence[Column], finding: Finding, labels: xr.Dataset) -> Sentence:
    """Whether training to zero loss pays where models are poorly connected, and where they are not."""
    question = "Does training to zero loss pay where models are poorly connected?"
    phases = labels["phase"]
    poor = [each for each in columns if _has(phases, each, "III") and not math.isnan(each.difference)]
    well = [each for each in columns if each not in poor and not math.isnan(each.difference)]
    rest = _elsewhere(well)
    if not poor:
        return Sentence(
            question, "No column has cells of Phase III beside cells of I or II, so it cannot be told.", rest
        )
    verdicts = Counter(each.pays for each in poor)
    if verdicts["no"] == len(poor):
        opening = "No: it costs accuracy"
    elif verdicts["yes"] == len(poor):
        opening = "Yes: it pays"
    else:
        opening = "It depends" if verdicts["yes"] or verdicts["no"] else "It cannot be told from noise"
    named = [_gain(each, labels) for each in poor[:_MOST_NAMED]]
    more = len(poor) - len(named)
    told = listed(named) if not more else f"{', '.join(named)}, and {more} more"
    answer = f"{opening} in {_those(len(poor))} through Phase III: test accuracy changes by {told}."
    mean = ""
    if not math.isnan(finding.margin):
        mean = f"On average the cells short of zero loss are {_ahead(finding)} there."
    return Sentence(question, answer, " ".join(filter(None, [mean, rest])))


def _those(n: int) -> str:
    return "the one column" if n == 1 else f"the {n} columns"


def _ahead(finding: Finding) -> str:
    size = with_error(abs(finding.margin), finding.error, "%")
    return f"{size} {'ahead' if finding.margin > 0 else 'behind'}"


def _gain(column: Column, labels: xr.Dataset) -> str:
    size = with_error(column.difference, column.difference_error, "%")
    sign = "+" if column.difference > 0 else ""
    return f"{sign}{size} at {place(column.at, labels)}"


def _elsewhere(columns: Sequence[Column]) -> str:
    if not columns:
        return ""
    gains = [each.difference for each in columns]
    pays = sum(each.pays == "yes" for each in columns)
    least, most = plain(min(gains), 2), plain(max(gains), 2)
    size = f"by {least} %" if least == most else f"by {least} to {most} %"
    return (
        f"In {counted(len(columns), 'column')} without Phase III it changes accuracy {size}, and pays in {pays}."
    )


def _has(phases: xr.DataArray, column: Column, phase: str) -> bool:
    return bool((phases.sel(column.at) == phase).any())


def advised(advice: Sequence[Advice]) -> list[tuple[str, str, str]]:
    """What is advised first, for how many cells, and why: one line an advice, the most frequent first."""
    first = [each.rules[0] for each in advice if each.rules]
    lines = []
    for rule, count in Counter(first).most_common():
        phases = sorted({each.phase for each in advice if each.rules and each.rules[0] is rule})
        lines.append((rule.words, f"{counted(count, 'cell')} in {listed(phases)}", _WHY[rule.name]))
    return lines


_WHY = {
    "poorly-connected": "mode connectivity is below its threshold: a barrier parts the models",
    "zero-loss-costs": "flat and yet poorly connected",
    "sharp": "the training loss or the Hessian trace is above its threshold: training has not converged",
    "ends-not-minima": "mode connectivity is clearly above zero: the models themselves are no minima",
    "dissimilar": "flat and connected, and yet the models of different seeds are not alike",
}


def place(at: Mapping[str, float], labels: xr.Dataset) -> str:
    """`width 16, batch size 128`."""
    return ", ".join(f"{_lower(scale_of(labels[name]).label)} {number(value)}" for name, value in at.items())


def axis_name(scale: Scale) -> str:
    """The name of an axis inside a sentence."""
    return _lower(scale.label)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]

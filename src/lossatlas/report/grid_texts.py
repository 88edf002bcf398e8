"""The texts of a grid's page: what was run, how complete it is, the findings, the tables, where it comes from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from lossatlas.figures.grid import scale_of
from lossatlas.figures.style import number, plain
from lossatlas.findings import tables
from lossatlas.findings.advice import Advice
from lossatlas.findings.claims import Finding
from lossatlas.findings.columns import Column
from lossatlas.findings.double_descent import Descent
from lossatlas.findings.evidence import Evidence
from lossatlas.report.markup import Markup, join, table, tag
from lossatlas.report.page import section
from lossatlas.report.sentences import Sentence, advised, axis_name, best, where, zero_loss
from lossatlas.report.transitions import transitions
from lossatlas.report.words import counted, listed, with_error
from lossatlas.results import axes_of

METRIC_WORDS = {
    "ln_trace": "ln Hessian trace",
    "train_loss": "training loss",
    "mode_connectivity": "mode connectivity",
    "cka": "CKA similarity",
}


def body(
    evidence: Evidence,
    found: Sequence[Finding],
    best_of: Sequence[Column],
    descents: Sequence[Descent],
    advice: Sequence[Advice],
) -> Markup:
    """Everything between `<body>` and `</body>`; the figures are drawn into the empty parts."""
    return join(
        header(evidence.tree, evidence.labels),
        tag(
            "main",
            tag("section", _findings(evidence, found, best_of), _advice(advice), id="answers"),
            section("phases", "Phases"),
            section("metrics", "Seven metrics on the same axes"),
            section("slices", "Slices"),
            _claims(found, best_of, descents),
            _origin(evidence.tree, evidence.labels),
        ),
        tag("aside", id="story", aria_label="One cell", tabindex="-1", hidden=""),
    )


def name_of(tree: xr.DataTree) -> str:
    """What a run is called: its name, or else its task."""
    return str(tree.attrs.get("name") or _task(tree))


def header(tree: xr.DataTree, labels: xr.Dataset) -> Markup:
    """The name, one sentence on what was run, one on how complete it is."""
    return tag(
        "header",
        tag("p", "lossatlas", class_="overline"),
        tag("h1", name_of(tree)),
        tag("p", what_was_run(tree, labels), class_="lead"),
        tag("p", *completeness(tree), class_="complete"),
    )


def what_was_run(tree: xr.DataTree, labels: xr.Dataset) -> str:
    """Task, model, axes and seeds in a sentence."""
    load, temperature = axes_of(labels)
    axes = [
        f"{counted(len(labels[name]), 'value')} of {axis_name(scale_of(labels[name]))} "
        f"({role}, {_range(labels[name])})"
        for role, names in (("load", load), ("temperature", temperature))
        for name in names
    ]
    n = tree["models"].sizes["seed"]
    reduced = _spec(tree).get("reduced", "")
    what = str(tree.attrs["source"]) if "source" in tree.attrs else _task(tree)
    text = f"{what}: {listed(axes)}, {counted(n, 'seed')} a cell"
    return f"{text}; {reduced}." if reduced else f"{text}."


def _task(tree: xr.DataTree) -> str:
    spec = _spec(tree)
    if "task" in spec:
        task = spec["task"]
        return f"{task['model']['name']} on {task['data']['name']}"
    named = [str(spec[key]) for key in ("model", "data") if key in spec]
    return " on ".join(named) or "A grid of models"


def _range(coordinate: xr.DataArray) -> str:
    values = np.sort(coordinate.values)
    return number(values[0]) if len(values) == 1 else f"{number(values[0])} to {number(values[-1])}"


def completeness(tree: xr.DataTree) -> list[str]:
    """How many of the planned models and pairs are there, and what went wrong with the others."""
    models = _statuses(tree, "models")
    total = sum(models.values())
    there = total - models["missing"]
    texts = [_share(there, total, "model"), *_not_ok(models)]
    if "pairs" in tree.children:
        pairs = _statuses(tree, "pairs")
        told = f"{counted(sum(pairs.values()) - pairs['missing'], 'pair')} of seeds"
        texts.append(f"{told} ({', '.join(_not_ok(pairs))})" if _not_ok(pairs) else told)
    steps = str(tree.attrs.get("unfinished", ""))
    texts += [steps] if steps else []
    is_whole = there == total and not steps
    has_failures = models["failed"] + models["partial"] > 0
    opening = "Unfinished: " if not is_whole else "With failures: " if has_failures else "Complete: "
    return [tag("strong", opening), f"{texts[0]}; {', '.join(texts[1:])}." if texts[1:] else f"{texts[0]}."]


def _share(there: int, total: int, noun: str) -> str:
    if there == total:
        return f"all {counted(total, noun)}"
    return f"{there:,} of {counted(total, noun)} ({100 * there / total:.0f} %)"


def _not_ok(statuses: Counter[str]) -> list[str]:
    """`3 diverged`, the most frequent first."""
    return [f"{count:,} {status}" for status, count in statuses.most_common() if status not in ("ok", "missing")]


def _statuses(tree: xr.DataTree, group: str) -> Counter[str]:
    return Counter(map(str, tree[group].to_dataset()["status"].values.ravel()))


def _findings(evidence: Evidence, found: Sequence[Finding], columns: Sequence[Column]) -> Markup:
    zero = next(each for each in found if each.claim.name == "zero-loss-costs")
    return findings_of(
        [
            best(evidence),
            where(evidence, transitions(evidence)),
            zero_loss(columns, zero, evidence.labels),
        ]
    )


def findings_of(told: Sequence[Sentence]) -> Markup:
    """Findings as a numbered list."""
    return tag("ol", *(_finding(each) for each in told), class_="findings")


def _finding(sentence: Sentence) -> Markup:
    return tag(
        "li",
        tag("h2", sentence.question),
        *(tag("p", line) for line in sentence.answer.splitlines()),
        tag("p", sentence.because, class_="because") if sentence.because else "",
    )


def _advice(advice: Sequence[Advice]) -> Markup:
    lines = advised(advice)
    well = sum(1 for each in advice if not each.rules and each.phase)
    items = [
        tag("li", tag("strong", words[:1].upper() + words[1:]), tag("span", f" – {cells}: {why}."))
        for words, cells, why in lines
    ]
    if well:
        items.append(tag("li", tag("strong", "Nothing"), tag("span", f" – {counted(well, 'cell')} in IV-B.")))
    if not items:
        nothing = tag("p", "No cell has a phase, so nothing can be advised.", class_="because")
        return tag("div", tag("h2", "What would help?"), nothing, class_="advised")
    source = (
        "The conclusions of Yang et al. (2021) where their conditions hold; no prediction. "
        "Each cell's own advice is in its story."
    )
    return tag(
        "div",
        tag("h2", "What would help?"),
        tag("ul", *items, class_="advice"),
        tag("p", source, class_="because"),
        class_="advised",
    )


def _claims(found: Sequence[Finding], columns: Sequence[Column], descents: Sequence[Descent]) -> Markup:
    known = [each for each in found if each.holds != "not measured"]
    names = ["claim", "holds", "margin ± error", "of what", "rests on"]
    rows = [
        [each.claim.sentence, each.holds, with_error(each.margin, each.error), each.claim.unit, each.rests_on]
        for each in known
    ]
    left_out = [[each.claim.sentence, each.rests_on] for each in found if each.holds == "not measured"]
    return section(
        "claims",
        "The claims of Yang et al. (2021) on this grid",
        _wide(table(names, rows)) if rows else tag("p", "None can be measured."),
        _folded("Claims that this grid cannot tell", (["claim", "why not"], left_out)) if left_out else "",
        _folded("Every column: the best temperature, and what zero loss pays", tables.of_columns(columns)),
        _folded("Double descent: every slice", tables.of_descents(descents)),
    )


def _folded(title: str, content: tables.Table) -> Markup:
    return tag("details", tag("summary", title), _wide(table(*content)))


def _wide(content: Markup) -> Markup:
    return tag("div", content, class_="wide", tabindex="0")


def _origin(tree: xr.DataTree, labels: xr.Dataset) -> Markup:
    """Thresholds and where they come from, how probabilities are made, versions, the spec."""
    limits, origins, sources = (json.loads(labels.attrs[n]) for n in ("thresholds", "origin", "threshold_sources"))
    meanings = {"auto": "derived from this grid", "given": "given", "no transition": "no transition in this grid"}
    rows = [
        [METRIC_WORDS[name], plain(value, 6), meanings.get(origins[name], f"default: {sources[name]}")]
        for name, value in limits.items()
    ]
    fixed = labels.attrs["held_fixed"] or "nothing is held fixed"
    how = (
        "Probabilities are shares of resamplings of the seeds that keep the label at the same thresholds; "
        f"{fixed}. Margins are in median absolute deviations over the grid."
    )
    attrs = [[str(name), str(value)] for name, value in tree.attrs.items() if name not in ("spec", "name")]
    return section(
        "origin",
        "Where these numbers come from",
        _wide(table(["metric", "threshold", "origin"], rows)),
        tag("p", how, class_="because"),
        tag("details", tag("summary", "Versions and fingerprints"), _wide(table(["name", "value"], attrs))),
        tag(
            "details",
            tag("summary", "The spec"),
            tag("pre", json.dumps(_spec(tree), indent=2, ensure_ascii=False), tabindex="0"),
        ),
    )


def _spec(tree: xr.DataTree) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(tree.attrs.get("spec", "{}"))
    return spec

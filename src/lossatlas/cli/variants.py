"""A spec with variants: the same models measured in several ways, a run folder each, and all of them compared.

    DIR/spec.json                    the spec with its variants
    DIR/<variant>/                   an ordinary run folder
    DIR/store/                       what they share
    DIR/variants.csv figures/variants.{pdf,png}

Each variant is run by itself, one after another, by whatever engine; what an earlier one has trained and
measured is in the store.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from lossatlas import figures as figures_
from lossatlas import files, results, specs, summary
from lossatlas.cli import engines, running
from lossatlas.cli.output import Terminated, note, say, table
from lossatlas.figures.captions import captioned
from lossatlas.figures.grid import place_title
from lossatlas.findings import columns, tables
from lossatlas.findings import variants as ranks
from lossatlas.registry import Facts
from lossatlas.results import axes_of
from lossatlas.specs import Spec, Task
from lossatlas.specs.checks import ABLATED
from lossatlas.sweep import variants as shared
from lossatlas.sweep.cost import Costs, ModelCost, estimate, model_costs
from lossatlas.sweep.engine import Engine, remember
from lossatlas.sweep.plan import Plan
from lossatlas.sweep.run import check_same_experiment, open_folder, write_spec

KEY = "ρ: rank correlation over the cells with the test accuracy, and with the first variant"


def run(spec: Spec, folder: Path, store: Path | None, engine: Engine) -> dict[str, str]:
    """Do what is missing of every variant and compare them; returns the reasons of failed steps by their keys."""
    _prepare(spec, folder, engine)
    failures: dict[str, str] = {}
    every = specs.variants(spec)
    try:
        with running.keeping_data():
            for number, (name, each) in enumerate(every.items(), 1):
                note(f"Variant {name}, {number} of {len(every)}:")
                failures |= engines.run(each, folder / name, store or folder / "store", engine)
    except (KeyboardInterrupt, Terminated, typer.Exit):
        note(f"`lossatlas run {folder}` continues with all variants.")
        raise
    _compare(spec, folder)
    return failures


def write_only(spec: Spec, folder: Path, store: Path | None, engine: Engine) -> list[Path]:
    """Write the batch scripts of the first variant that lacks something, and submit nothing; returns the scripts.

    The others lack the models that these jobs train, and would train them, too.
    """
    _prepare(spec, folder, engine)
    for name, each in specs.variants(spec).items():
        scripts = engines.write_only(each, folder / name, store or folder / "store", engine)
        if scripts:
            note(f"Variant {name} comes first; when its jobs are done, the same command writes those of the next.")
            return scripts
    return []


def _prepare(spec: Spec, folder: Path, engine: Engine) -> None:
    check_same_experiment(open_folder(folder, folder / "store"), spec)
    write_spec(folder, spec)
    remember(folder, engine)


@dataclass(frozen=True)
class Needs:
    """What a spec with all its variants, or one without, takes."""

    steps: dict[str, int]  # by kind
    seconds: float  # of one process
    memory: int  # bytes of one process
    disk: int  # bytes


def plans(spec: Spec) -> tuple[Facts, list[Plan]]:
    """The sizes of the data, and the plans of all variants, or of a spec without variants."""
    found = [running.plan_without_data(each) for each in [*specs.variants(spec).values()] or [spec]]
    return found[0][0], [plan for _, plan in found]


def together(every: Sequence[Plan], facts: Facts, costs: Costs | None = None) -> Needs:
    """What plans of variants take; what they share is counted once."""
    known: dict[str, ModelCost] = {}  # they share the models, too

    def once(tasks: Mapping[str, Task], facts: Facts) -> dict[str, ModelCost]:
        if not known:
            known.update((costs or model_costs)(tasks, facts))
        return known

    predicted = [estimate(plan, facts, once) for plan in every]
    steps, seconds = shared.together(every, [each.seconds for each in predicted])
    return Needs(steps, seconds, max(each.memory for each in predicted), predicted[0].disk)


def _compare(spec: Spec, folder: Path) -> None:
    """Set the quantities that the variants differ in side by side: a table, a CSV file and a figure."""
    trees = {name: results.load(folder / name / "results.nc") for name in spec.variants}
    cells = {name: summary.cells(tree) for name, tree in trees.items()}
    written = []
    rows: list[ranks.Ranked] = []
    quantities = ablated(spec)
    for quantity in quantities:
        ranked = ranks.ranked(trees, quantity)
        rows += ranked
        notes = {row.variant: _note(row, is_first=row is ranked[0]) for row in ranked}
        example = next(iter(cells.values()))
        load, temperature = axes_of(example)
        for at in columns.places(example, load[0], *temperature):
            parts = {name: each.sel(at) for name, each in cells.items()}
            title = place_title(at, example)
            figure = figures_.variants(parts, quantity, notes=notes, key=KEY, title=title)
            figure = captioned(figure, spec.reduced) if spec.reduced else figure
            stem = "variants" if len(quantities) == 1 else f"variants-{quantity}"
            written += figures_.save(figure, folder / "figures" / f"{stem}{columns.place_suffix(at)}")
    header, body = ranks.table(rows)
    files.write_file(folder / "variants.csv", tables.to_csv((header, body)).encode())
    table(header, body)
    say(f"table: {folder / 'variants.csv'}")
    for path in written:
        say(f"figure: {path}")


def ablated(spec: Spec) -> list[str]:
    """The quantities that are set side by side: one of each measure that variants change."""
    sections = {key.split(".")[1] for changes in spec.variants.values() for key in changes}
    return [quantity for section, quantity in ABLATED.items() if section in sections]


def _note(row: ranks.Ranked, *, is_first: bool) -> str:
    """Its rank correlations, for the figure."""
    parts = [("accuracy", row.accuracy)] + ([] if is_first else [("first", row.first)])
    return ", ".join(f"ρ {name} {value:.2f}".replace("-", "−") for name, value in parts if not math.isnan(value))

"""Slices, best cells and what zero loss pays, by hand; advice by hand; both on what others published."""

import csv
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from grids import PHASES, build
from lossatlas import phases, published, results, summary
from lossatlas.errors import UserError
from lossatlas.findings import advice, columns, tables
from lossatlas.results import REASON, STATUS, Axis, Quantity
from lossatlas.tasks.corruption import noisy_labels

# ---- slices


def small(**options: object) -> xr.DataTree:
    cells = {
        (width, batch): {"phase": "IV-A", "accuracy": 60 + width + batch / 16}
        for width, batch in itertools.product((2, 4, 8), (16, 64))
    }
    return build(cells, **options)


@pytest.mark.parametrize(
    ("attrs", "at", "share"),
    [
        ({}, {"width": 4.0}, 0.0),
        ({"spec": {"name": "published"}}, {"width": 4.0}, 0.0),
        ({"spec": {"task": {"data": {"label_noise": 0.2}}}}, {"width": 4.0}, 0.2),
        ({"spec": {"task": {"data": {"label_noise": 0.2}}}}, {"width": 4.0, "label_noise": 0.1}, 0.1),
    ],
)
def test_the_wrong_labels_of_a_slice(attrs: dict, at: dict, share: float) -> None:
    assert columns.wrong_labels(small(attrs=attrs), at) == share


@pytest.mark.parametrize(("name", "classes"), [("digits", 10), ("cifar100", 100)])
def test_some_labels_drawn_from_all_classes_stay_right(name: str, classes: int) -> None:
    data = {"name": name, "label_noise": 0.3, "definition": "uniform"}
    share = columns.wrong_labels(small(attrs={"spec": {"task": {"data": data}}}), {"width": 4.0})
    labels = np.arange(20_000) % classes
    drawn = (noisy_labels(labels, classes, 0.3, "uniform") != labels).mean()
    assert drawn == pytest.approx(share, abs=4 * math.sqrt(0.25 / len(labels)))  # four standard errors at most
    assert share == pytest.approx(0.3 * (1 - 1 / classes), rel=1e-15)
    along = columns.wrong_labels(small(attrs={"spec": {"task": {"data": data}}}), {"label_noise": 0.1})
    assert along == pytest.approx(0.1 * (1 - 1 / classes), rel=1e-15)


def test_how_many_are_wrong_is_not_known_without_the_number_of_classes() -> None:
    data = {"name": "mine:data", "label_noise": 0.1, "definition": "uniform"}
    assert math.isnan(columns.wrong_labels(small(attrs={"spec": {"task": {"data": data}}}), {"width": 4.0}))
    assert columns.wrong_labels(small(attrs={"spec": {"task": {"data": {**data, "label_noise": 0}}}}), {}) == 0


def test_a_slice_has_every_metric_with_its_error_and_the_phase() -> None:
    tree = small(spread=1.0)
    cells, labels = summary.cells(tree), phases.label(tree)
    column = columns.cut(cells, labels, {"width": 4})
    assert column["test_accuracy"].dims == ("batch_size",)
    np.testing.assert_allclose(column["test_accuracy"], [65, 68], rtol=1e-15)
    np.testing.assert_allclose(column["test_accuracy_se"], 1 / math.sqrt(3), rtol=1e-12)
    assert column["phase"].values.tolist() == ["IV-A", "IV-A"]
    row = columns.cut(cells, labels, {"batch_size": 64})
    assert row["width"].values.tolist() == [2, 4, 8]
    header, rows = tables.of_cells(row, row[["phase"]])
    assert header[:3] == ["batch_size", "width", "phase"]
    assert [line[:3] for line in rows] == [["64", "2", "IV-A"], ["64", "4", "IV-A"], ["64", "8", "IV-A"]]
    header, rows = tables.of_cells(cells, labels)
    assert len(rows) == 6
    assert header[:3] == ["width", "batch_size", "phase"]
    assert rows[3][header.index("test_accuracy")] == "68"


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ({"height": 4}, "no axis 'height'.*width, batch_size"),
        ({"width": 5}, "width = 5 is no value.*2, 4, 8"),
        ({}, "nothing leaves width, batch_size free.*width=VALUE"),
        ({"width": 4, "batch_size": 16}, "leaves no axis free"),
    ],
)
def test_what_is_no_slice_is_refused(at: dict, words: str) -> None:
    tree = small()
    with pytest.raises(UserError, match=words):
        columns.cut(summary.cells(tree), phases.label(tree), at)


def test_the_coldest_temperature() -> None:
    assert columns.coldest(phases.label(small())) == {"batch_size": 64}
    tree = build({(2, rate): {"phase": "I"} for rate in (0.1, 0.01)}, axes=("width", "lr"))
    assert columns.coldest(phases.label(tree)) == {"lr": 0.01}


# ---- the best cell of every load


@pytest.mark.parametrize(("gain", "pays"), [(5.0, "yes"), (-5.0, "no"), (0.5, "undecided")])
def test_what_zero_loss_pays(gain: float, pays: str) -> None:
    cells = {
        (2, 16): {"phase": "I", "accuracy": 60},
        (2, 32): {"phase": "II", "accuracy": 70},
        (2, 64): {"phase": "III", "accuracy": 70 + gain},
        (2, 128): {"phase": "IV-A", "accuracy": 50},
    }
    tree = build(cells, spread=1.0)
    (column,) = columns.best_of_columns(tree, phases.label(tree))
    assert column.best == ({"batch_size": 64} if gain > 0 else {"batch_size": 32})
    assert column.phase == ("III" if gain > 0 else "II")
    assert (column.best_sharp, column.best_flat) == ({"batch_size": 32}, {"batch_size": 64})
    assert column.difference == pytest.approx(gain, rel=1e-12)
    assert column.difference_error == pytest.approx(2 / math.sqrt(3), rel=1e-12)  # seeds differ by -2, 0, 2
    assert column.pays == pays


def test_a_column_on_one_side_has_no_comparison() -> None:
    tree = small()
    found = columns.best_of_columns(tree, phases.label(tree))
    assert [column.at for column in found] == [{"width": 2}, {"width": 4}, {"width": 8}]
    assert {column.pays for column in found} == {"not measured"}
    assert found[0].reason == "no cell of this column is in Phase I or II"
    assert found[0].best == {"batch_size": 64}


def test_without_test_errors_there_is_no_best_cell() -> None:
    tree = build({(2, 16): {"phase": "I"}, (2, 32): {"phase": "III"}})
    assert [column.pays for column in columns.best_of_columns(tree, phases.label(tree))] == []


def test_one_seed_decides_nothing() -> None:
    # Pairs need two seeds, so the labels come from a tree that has them.
    cells = {(2, 16): {"phase": "I", "accuracy": 60}, (2, 32): {"phase": "III", "accuracy": 70}}
    labels = phases.label(build(cells))
    (column,) = columns.best_of_columns(build(cells, n_seeds=1), labels)
    assert (column.difference, column.pays) == (10.0, "undecided")
    assert column.reason == "no standard error: fewer than two seeds"


# ---- advice


ADVICE = {
    "I": ("larger model", "poorly-connected", "mode_connectivity -5 < -1.75"),
    "II": ("better convergence", "sharp", "ln_trace 8 > 5.5 and train_loss 1 > 0.02"),
    "III": ("larger model", "poorly-connected", "mode_connectivity -5 < -1.75"),
    "IV-A": ("more data", "dissimilar", "cka 0.3 < 0.7"),
    "IV-B": ("none", "", ""),
}


@pytest.mark.parametrize("phase", PHASES)
def test_the_advice_of_every_phase(phase: str) -> None:
    found = advice.advise(phases.label(build({(2, 16): {"phase": phase}})))
    header, ((*_, said, _words, rule, because, further),) = tables.of_advice(found)
    assert header == ["width", "batch_size", "phase", "advice", "in_words", "rule", "because", "further"]
    assert (said, rule, because) == ADVICE[phase]
    more = {
        "I": "better convergence (sharp:",
        "III": "other temperature (zero-loss-costs: train_loss 0.001 < 0.02",
    }
    assert further.startswith(more.get(phase, ""))
    assert bool(further) == (phase in more)


def test_connectivity_above_zero_means_that_training_has_not_converged() -> None:
    cells = {(2, 16): {"phase": "IV-B", "mc": 1.7}, (4, 16): {"phase": "IV-B", "mc": 1.8}}
    calm, risen = advice.advise(phases.label(build(cells)))
    assert calm.advice == "none"
    assert (risen.advice, risen.because) == ("better convergence", ("mode_connectivity 1.8 > 1.75",))


def test_only_what_makes_a_cell_sharp_is_told() -> None:
    (found,) = advice.advise(phases.label(build({(2, 16): {"phase": "II", "trace": 3.0}})))
    assert found.because == ("train_loss 1 > 0.02",)


def test_a_cell_without_a_phase_gets_no_advice() -> None:
    (found,) = advice.advise(phases.label(build({(2, 16): {"phase": "IV-A", "cka": math.nan}})))
    assert (found.advice, found.reason) == ("", "no phase without cka")


def test_a_metric_without_transition_is_named() -> None:
    labels = phases.label(small(), auto=True)
    assert set(json.loads(labels.attrs["sides"])) == {"ln_trace", "train_loss", "mode_connectivity", "cka"}
    for found in advice.advise(labels):
        assert found.because == ("cka 0.3, no transition: all cells IV-A where it is IV",)


# ---- what others published


@pytest.fixture(scope="module")
def archive(shared_data: Path) -> tuple[xr.DataTree, xr.Dataset]:
    tree = published.load_source(shared_data / "taxonomy" / "results.tar.gz")
    return tree, phases.label(tree)


def test_zero_loss_on_the_archive(archive: tuple[xr.DataTree, xr.Dataset]) -> None:
    """Below width 6 nothing reaches zero loss; at 6, through III, it costs; from 8 on it pays ever more."""
    found = {int(column.at["width"]): column for column in columns.best_of_columns(*archive)}
    pays = {width: column.pays for width, column in found.items()}
    expected = dict.fromkeys((1, 2, 3, 4), "not measured") | {6: "no"}
    assert pays == expected | dict.fromkeys((8, 11, 16, 23, 32, 45, 64, 91, 128), "yes")
    six, widest = found[6], found[128]
    assert (six.difference, six.difference_error) == pytest.approx((-1.208, 0.274), abs=5e-4)  # as printed
    assert (widest.accuracy, widest.phase, widest.best) == (
        pytest.approx(89.75, abs=5e-3),
        "IV-B",
        {"batch_size": 64},
    )


def test_advice_on_the_archive(archive: tuple[xr.DataTree, xr.Dataset]) -> None:
    labels = archive[1]
    found = advice.advise(labels)
    assert len(found) == 112
    for each in found:
        assert (each.advice == "larger model") == (each.phase in ("I", "III"))
        assert len(each.because) == len(each.rules)
        assert all(each.because)


# ---- the failures that Zhou 2024 tells of 1,690 configurations

UNCONVERGED = {"sharp", "ends-not-minima"}
CAUSES = {
    "larger model": "width",
    "other temperature": "batch",
    "better convergence": "batch",
    "more data": "data",
    "none": "",
}


@pytest.fixture(scope="module")
def diagnosed(shared_data: Path) -> list[tuple[dict[str, str], advice.Advice]]:
    """Every configuration of the table with our advice for it, by the default thresholds."""
    with (shared_data / "mdtree" / "mdtree_normal.csv").open() as stream:
        table = list(csv.DictReader(stream))
    names = {"width": "width", "n_train": "n_train_images", "batch_size": "batch_size"}
    keys = [tuple(int(row[column]) for column in names.values()) for row in table]
    axes = [
        Axis(name, tuple(sorted({key[k] for key in keys})), "temperature" if name == "batch_size" else "load")
        for k, name in enumerate(names)
    ]
    models, pairs = {}, {}
    for key, row in zip(keys, table, strict=True):
        trace, loss = math.exp(float(row["ln_hessian_trace"])), float(row["train_loss"])
        for seed in (0, 1):  # the table has means over seeds; a pair needs two
            models[(*key, seed)] = {"train_loss": loss, "hessian_trace": trace, "status": "ok"}
        of_pair = {"mode_connectivity": float(row["mc"]), "cka": float(row["cka_softmax"])}
        pairs[(*key, 0, 1)] = of_pair | {"status": "ok"}

    def quantities(*names: str) -> list[Quantity]:
        return [*(Quantity(name, "1", name, "published") for name in names), STATUS, REASON]

    seeds = (0, 1)
    groups = {
        "models": results.group(axes, {"seed": seeds}, models, quantities("train_loss", "hessian_trace")),
        "pairs": results.group(
            axes, {"seed": seeds, "seed_b": seeds}, pairs, quantities("mode_connectivity", "cka")
        ),
    }
    found = {tuple(each.at.values()): each for each in advice.advise(phases.label(results.tree(groups, {})))}
    return [(row, found[key]) for key, row in zip(keys, table, strict=True)]


def direction(found: advice.Advice) -> str:
    """What the advice says of the temperature of a cell; empty: nothing."""
    names = {rule.name for rule in found.rules}
    return "small" if "zero-loss-costs" in names else "large" if names & UNCONVERGED else ""


def width_or_batch(found: advice.Advice) -> str:
    names = {rule.name for rule in found.rules}
    return "width" if "poorly-connected" in names else "batch" if names & UNCONVERGED else ""


def data_or_batch(found: advice.Advice) -> str:
    names = {rule.name for rule in found.rules}
    return "data" if "dissimilar" in names else "batch" if names & {*UNCONVERGED, "zero-loss-costs"} else ""


def share_right(said: list[str], truth: list[str]) -> tuple[int, float, float, float, float]:
    """Cases; share right of all; share answered; share right of those; share of the largest class."""
    right = [a == b for a, b in zip(said, truth, strict=True)]
    answered = [a != "" for a in said]
    majority = max(truth.count(each) for each in set(truth)) / len(truth)
    return len(truth), float(np.mean(right)), float(np.mean(answered)), sum(right) / sum(answered), majority


@pytest.mark.parametrize(
    ("column", "question", "expected"),
    [
        ("q1_batch", direction, (1560, 0.472, 0.688, 0.687, 0.542)),
        ("q2_width_batch", width_or_batch, (1669, 0.464, 0.670, 0.693, 0.549)),
        ("q2_data_batch", data_or_batch, (1649, 0.638, 0.977, 0.653, 0.569)),
    ],
)
def test_the_advice_against_published_failures(diagnosed, column, question, expected) -> None:
    """No tuning: where the advice answers it is right more often than not, and it is often silent."""
    asked = [(row, found) for row, found in diagnosed if row[column] != "optimal"]
    said = [question(found) for _, found in asked]
    assert share_right(said, [row[column] for row, _ in asked]) == pytest.approx(expected, abs=5e-4)  # as told


def test_the_first_advice_against_the_greatest_room_for_improvement(diagnosed) -> None:
    """58 % where always naming the width would give 39 %."""

    def cause(row: dict[str, str]) -> str:
        hotter, colder = float(row["rfi_inc_temp"]), float(row["rfi_dec_temp"])
        room = {"width": float(row["rfi_width"]), "data": float(row["rfi_data"]), "batch": max(hotter, colder)}
        return max(room, key=room.__getitem__)

    said = [CAUSES[found.advice] for _, found in diagnosed]
    figures = share_right(said, [cause(row) for row, _ in diagnosed])
    assert figures == pytest.approx((1690, 0.581, 0.972, 0.598, 0.393), abs=5e-4)

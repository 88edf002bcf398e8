"""Every claim on grids made by hand: where it holds, where it fails, where it cannot be told; and the archive."""

import math

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from grids import build
from lossatlas import phases, published
from lossatlas.findings.claims import CLAIMS, Finding, check
from lossatlas.findings.evidence import Evidence, schedule
from lossatlas.findings.verdicts import difference, jackknife_error, verdict

SPEC = {"train": {"schedule": {"name": "step"}}}


def checked(tree: xr.DataTree, against: xr.DataTree | None = None) -> dict[str, Finding]:
    evidence = Evidence(tree, phases.label(tree), against=against)
    return {each.claim.name: each for each in check(evidence)}


# ---- verdicts


@pytest.mark.parametrize(
    ("margin", "error", "expected"),
    [
        (2.1, 1.0, "yes"),
        (2.0, 1.0, "undecided"),
        (-2.0, 1.0, "undecided"),
        (-2.1, 1.0, "no"),
        (0.0, 0.0, "undecided"),
        (1e-9, 0.0, "yes"),
        (5.0, math.nan, "undecided"),
        (math.nan, 1.0, "not measured"),
    ],
)
def test_a_verdict_needs_more_than_two_errors(margin: float, error: float, expected: str) -> None:
    assert verdict(margin, error) == expected


def test_differences_are_paired_over_shared_seeds() -> None:
    a, b = np.array([3.0, 4.0, 8.0, np.nan]), np.array([1.0, 2.0, 3.0, 9.0])
    # Differences 2, 2, 5: mean 3, s = sqrt(3), over sqrt(3).
    assert difference(a, b) == pytest.approx((3.0, 1.0), rel=1e-15)
    apart = difference(np.array([1.0, 3.0, np.nan, np.nan]), np.array([np.nan, np.nan, 0.0, 4.0]))
    assert apart == pytest.approx((0.0, math.hypot(1.0, 2.0)), rel=1e-15)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    x = np.random.default_rng(0).normal(size=7)
    without = [float(np.delete(x, k).mean()) for k in range(len(x))]
    assert jackknife_error(without) == pytest.approx(stats.sem(x), rel=1e-12)  # an identity, up to rounding
    assert math.isnan(jackknife_error([1.0]))


# ---- claims about the whole grid: {claim: (cells, options, margin, holds)}

WORST, BEST = (2, 128), (8, 16)


def two(first: dict, second: dict) -> dict:
    return {(2, 16): first, (4, 16): second}


HANDS = [
    ("loss-falls", two({"phase": "I"}, {"phase": "III"}), {"noise": 0.1}, 2.0, "yes"),
    (
        "loss-falls",
        two({"phase": "I", "loss": 0.05}, {"phase": "III", "loss": 0.01}),
        {"noise": 0.01},
        math.log10(5) - 1,
        "no",
    ),
    (
        "loss-falls",
        two({"phase": "I", "loss": 0.1}, {"phase": "III", "loss": 0.01}),
        {"noise": 0.1},
        0,
        "undecided",
    ),
    (
        "best-in-IV-B",
        two({"phase": "IV-B", "accuracy": 90}, {"phase": "II", "accuracy": 85}),
        {"spread": 1},
        5,
        "yes",
    ),
    (
        "best-in-IV-B",
        two({"phase": "IV-B", "accuracy": 85}, {"phase": "IV-A", "accuracy": 90}),
        {"spread": 1},
        -5,
        "no",
    ),
    (
        "best-in-IV-B",
        two({"phase": "IV-B", "accuracy": 86}, {"phase": "I", "accuracy": 85}),
        {"spread": 1},
        1,
        "undecided",
    ),
    (
        "III-sharpness",
        two({"phase": "III"}, {"phase": "IV-A", "trace": 4.2}),
        {"noise": 0.01},
        math.log(2) - 0.2,
        "yes",
    ),
    (
        "III-sharpness",
        two({"phase": "III"}, {"phase": "IV-A", "trace": 5.2}),
        {"noise": 0.01},
        math.log(2) - 1.2,
        "no",
    ),
    (
        "III-sharpness",
        two({"phase": "III"}, {"phase": "IV-A", "trace": 4.0 + math.log(2)}),
        {"noise": 0.1},
        0,
        "undecided",
    ),
    (
        "III-accuracy",
        two({"phase": "III", "accuracy": 70}, {"phase": "IV-A", "accuracy": 80}),
        {"spread": 1},
        10,
        "yes",
    ),
    (
        "III-accuracy",
        two({"phase": "III", "accuracy": 80}, {"phase": "IV-A", "accuracy": 70}),
        {"spread": 1},
        -10,
        "no",
    ),
    (
        "III-accuracy",
        two({"phase": "III", "accuracy": 80}, {"phase": "IV-A", "accuracy": 81}),
        {"spread": 1},
        1,
        "undecided",
    ),
]


@pytest.mark.parametrize(("name", "cells", "options", "margin", "holds"), HANDS)
def test_two_cells_by_hand(name: str, cells: dict, options: dict, margin: float, holds: str) -> None:
    found = checked(build(cells, **options))[name]
    assert found.holds == holds
    assert found.margin == pytest.approx(margin, rel=1e-12, abs=1e-12)  # logarithms of rounded means


def test_the_error_of_a_difference_is_the_paired_one() -> None:
    cells = two({"phase": "IV-B", "accuracy": 90}, {"phase": "II", "accuracy": 85})
    found = checked(build(cells, spread=1.0))["best-in-IV-B"]
    # The seeds differ by 5 - 2, 5, 5 + 2: s = 2, over sqrt(3).
    assert found.error == pytest.approx(2 / math.sqrt(3), rel=1e-12)
    assert found.rests_on == "width=2 batch_size=16 in IV-B, width=4 batch_size=16 in II"


def six(cka: list[float], distance: list[float]) -> dict:
    accuracy = [60, 65, 70, 75, 80, 85]
    names = ("accuracy", "cka", "distance")
    rows = zip(accuracy, cka, distance, strict=True)
    return {(k + 1, 16): {"phase": "IV-A", **dict(zip(names, row, strict=True))} for k, row in enumerate(rows)}


ORDERED, MIXED = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.3, 0.1, 0.6, 0.5, 0.2, 0.4]


@pytest.mark.parametrize(
    ("cka", "distance", "holds"),
    [(ORDERED, MIXED, "yes"), (MIXED, ORDERED[::-1], "no"), (ORDERED, ORDERED[::-1], "undecided")],
)
def test_rank_correlations(cka: list[float], distance: list[float], holds: str) -> None:
    found = checked(build(six(cka, distance)))["cka-beats-l2"]
    accuracy = range(6)
    expected = stats.spearmanr(cka, accuracy).statistic - abs(stats.spearmanr(distance, accuracy).statistic)
    assert found.margin == pytest.approx(expected, abs=1e-12)
    assert found.holds == holds


def test_rank_correlations_need_cells_that_differ() -> None:
    few = {key: cell for key, cell in six(ORDERED, MIXED).items() if key[0] < 5}
    assert checked(build(few))["cka-beats-l2"].rests_on == "4 cells with accuracy, CKA and l2; 5 are needed"
    same = checked(build(six([0.5] * 6, MIXED)))["cka-beats-l2"]
    assert (same.holds, same.rests_on) == ("not measured", "accuracy, CKA or l2 is the same in all cells")


@pytest.mark.parametrize(("gain", "holds"), [(5.0, "yes"), (-5.0, "no"), (0.5, "undecided")])
def test_columns_through_the_third_phase(gain: float, holds: str) -> None:
    cells = {
        (2, 32): {"phase": "I", "accuracy": 60},
        (2, 16): {"phase": "I", "accuracy": 70 + gain},
        (2, 64): {"phase": "III", "accuracy": 70},
        (4, 16): {"phase": "I", "accuracy": 75 + gain},
        (4, 32): {"phase": "III", "accuracy": 65},
        (4, 64): {"phase": "IV-A", "accuracy": 75},
        (8, 16): {"phase": "II", "accuracy": 50},  # not through III
        (8, 32): {"phase": "IV-A", "accuracy": 90},
        (8, 64): {"phase": "IV-A", "accuracy": 90},
    }
    found = checked(build(cells, spread=0.5))["zero-loss-costs"]
    assert found.margin == pytest.approx(gain, rel=1e-12)
    assert found.holds == holds
    ahead = 2 if gain > 0 else 0
    assert found.rests_on == f"best in I/II in {ahead} of 2 columns through III"


@pytest.mark.parametrize(("gain", "holds"), [(5.0, "yes"), (-5.0, "no"), (0.5, "undecided")])
def test_decay_against_a_constant_rate(gain: float, holds: str) -> None:
    def run(accuracy: float, **spec: object) -> xr.DataTree:
        cells = two({"phase": "IV-B", "accuracy": accuracy}, {"phase": "IV-B", "accuracy": 50})
        return build(cells, spread=1.0, attrs={"spec": spec})

    decayed = run(80 + gain, train={"schedule": {"name": "step"}})
    constant = run(80, train={})
    for pair in ((decayed, constant), (constant, decayed)):
        found = checked(*pair)["decay-helps"]
        assert (found.margin, found.holds) == (pytest.approx(gain, rel=1e-12), holds)
        assert found.error == pytest.approx(math.sqrt(2 / 3), rel=1e-12)  # two independent errors 1 / sqrt(3)
    twice = checked(decayed, decayed)["decay-helps"]
    assert twice.rests_on.endswith("the schedules are decayed and decayed")
    assert "--against" in checked(decayed)["decay-helps"].rests_on
    assert schedule(build(two({"phase": "I"}, {"phase": "I"}))) == ""


# ---- claims about every slice


def grid_along(
    axis: str, values: tuple, metric: str, lines: list[list[float]], phase: str = "IV-A", **more: float
):
    """Slices along an axis, one for each line of values: cells over (width, axis) or (axis, width)."""
    cells = {}
    for k, line in enumerate(lines):
        for value, x in zip(values, line, strict=True):
            cells[2**k, value] = {"phase": phase, **more, metric: x}
    return cells


def sloped(*slopes: float) -> list[list[float]]:
    return [[4.0 - slope, 4.0, 4.0 + slope] for slope in slopes]


@pytest.mark.parametrize(
    ("slopes", "holds"), [((0.2, 0.3, 0.4), "yes"), ((-0.2, -0.3, -0.4), "no"), ((-0.3, 0.1, 0.3), "undecided")]
)
def test_large_batches_sharpen(slopes: tuple, holds: str) -> None:
    found = checked(build(grid_along("batch_size", (16, 32, 64), "trace", sloped(*slopes))))["batch-sharpens"]
    assert found.margin == pytest.approx(np.mean(slopes), abs=1e-12)
    assert found.error == pytest.approx(stats.sem(slopes), rel=1e-9)  # slopes of rounded logarithms
    assert found.holds == holds
    up = sum(slope > 0 for slope in slopes)
    assert found.rests_on == f"rises in {up} of 3 slices; error over 3 slices"


def test_cells_outside_the_fourth_phase_do_not_count() -> None:
    cells = grid_along("batch_size", (16, 32, 64), "trace", sloped(0.2, 0.3, 0.4))
    cells[1, 16] = {"phase": "I", "trace": 9.0}
    found = checked(build(cells))["batch-sharpens"]
    assert found.margin == pytest.approx(0.3, abs=1e-12)


def over_data(metric: str, lines: list[list[float]], axis: str, values: tuple) -> dict:
    """Cells over (axis, batch_size): one slice along the axis for every batch size."""
    return {
        (value, 16 * 2**k): {"phase": "IV-A", metric: x}
        for k, line in enumerate(lines)
        for value, x in zip(values, line, strict=True)
    }


N_TRAIN = (1000, 2000, 4000)


@pytest.mark.parametrize(
    ("name", "metric", "sign", "scale"),
    [("data-sharpens", "trace", 1, 1), ("data-aligns", "cka", 1, 0.1), ("data-disconnects", "mc", -1, 1)],
)
@pytest.mark.parametrize(
    ("slopes", "holds"), [((0.2, 0.3, 0.4), "yes"), ((-0.2, -0.3, -0.4), "no"), ((-0.3, 0.1, 0.3), "undecided")]
)
def test_more_data(name: str, metric: str, sign: int, scale: float, slopes: tuple, holds: str) -> None:
    lines = [[sign * scale * slope * k for k in (0, 1, 2)] for slope in slopes]
    tree = build(over_data(metric, lines, "n_train", N_TRAIN), axes=("n_train", "batch_size"), one_curve=True)
    found = checked(tree)[name]
    assert found.margin == pytest.approx(scale * np.mean(slopes), abs=1e-12)
    assert found.holds == holds


@pytest.mark.parametrize(("rest", "holds"), [(0.5, "yes"), (3.5, "no"), (4.0 - math.log(10) - 0.05, "undecided")])
def test_little_weight_decay(rest: float, holds: str) -> None:
    """The smallest weight decay, 0, has the trace `rest`; the largest of each slice is 4 and some."""
    lines = [[rest, 4.0 + off, 3.0] for off in (-0.1, 0.0, 0.1)]
    tree = build(grid_along("weight_decay", (0.0, 5e-4, 1e-3), "trace", lines), axes=("width", "weight_decay"))
    found = checked(tree)["little-decay-flattens"]
    assert found.margin == pytest.approx(4.0 - rest - math.log(10), abs=1e-12)
    assert found.holds == holds


NOISE = (0.0, 0.1, 0.2)


@pytest.mark.parametrize(
    ("name", "metric", "changes", "holds"),
    [
        ("noise-spares-trace", "trace", (0.1, -0.1, 0.2), "yes"),
        ("noise-spares-trace", "trace", (1.1, -1.2, 1.3), "no"),
        ("noise-spares-trace", "trace", (0.1, -1.2, 0.7), "undecided"),
        ("noise-disconnects", "mc", (-5.0, -6.0, -7.0), "yes"),
        ("noise-disconnects", "mc", (5.0, 6.0, 7.0), "no"),
        ("noise-disconnects", "mc", (5.0, -6.0, 2.0), "undecided"),
        ("noise-parts", "cka", (-0.1, -0.12, -0.13), "yes"),
        ("noise-parts", "cka", (0.1, 0.12, 0.13), "no"),
        ("noise-parts", "cka", (0.1, -0.12, 0.05), "undecided"),
    ],
)
def test_label_noise_at_the_lowest_temperature(name: str, metric: str, changes: tuple, holds: str) -> None:
    cells = {}
    for k, change in enumerate(changes):
        for place, noise in enumerate(NOISE):
            start = 4.0 if metric == "trace" else 0.3
            cells[2**k, noise, 128] = {"phase": "IV-A", metric: start + change * place / 2}
            cells[2**k, noise, 16] = {"phase": "IV-A", metric: start - 40 * change * place}  # too hot to count
    tree = build(cells, axes=("width", "label_noise", "batch_size"), one_curve=True)
    found = checked(tree)[name]
    margins = math.log(2) - np.abs(changes) if metric == "trace" else -np.array(changes)
    assert found.margin == pytest.approx(margins.mean(), abs=1e-12)
    assert found.holds == holds
    assert found.rests_on == "at batch_size=128; error over 3 slices"


def test_a_single_slice_has_the_error_of_its_seeds() -> None:
    cells = over_data("trace", [[4.0, 4.5]], "label_noise", (0.0, 0.2))
    found = checked(build(cells, axes=("label_noise", "batch_size"), noise=0.1))["noise-spares-trace"]
    assert found.rests_on == "at batch_size=16; 1 slice, error over seeds"
    assert found.margin == pytest.approx(math.log(2) - 0.5, abs=1e-12)
    seeds = np.array([0.9, 1.0, 1.1])  # of one end; those of the other run the other way
    without = [math.log(np.delete(seeds[::-1], k).mean() / np.delete(seeds, k).mean()) for k in range(3)]
    assert found.error == pytest.approx(jackknife_error(without), rel=1e-9)


def test_one_curve_has_no_error_over_seeds() -> None:
    cells = over_data("mc", [[0.0, -2.0, -4.0]], "n_train", N_TRAIN)
    alone = checked(build(cells, axes=("n_train", "batch_size"), one_curve=True))["data-disconnects"]
    assert (alone.margin, alone.holds) == (pytest.approx(2.0), "undecided")
    assert alone.rests_on.endswith("no standard error: too few seeds")
    several = checked(build(cells, axes=("n_train", "batch_size")))["data-disconnects"]
    assert several.holds == "yes"


# ---- what is lacking is told


def test_one_seed_leaves_open_what_needs_seeds() -> None:
    cells = two({"phase": "I", "accuracy": 50}, {"phase": "III", "accuracy": 60})
    one = build(cells, n_seeds=1)
    found = {each.claim.name: each for each in check(Evidence(one, phases.label(one)))}
    assert {each.holds for each in found.values()} == {"not measured"}  # pairs need two seeds, so no phases
    assert found["loss-falls"].rests_on == "no cell in Phase I or II"
    two_seeds = checked(build(cells, n_seeds=2, noise=0.1))
    assert two_seeds["loss-falls"].holds == "yes"


@pytest.mark.parametrize("without", ["loss", "trace", "accuracy", "mc", "cka", "distance"])
def test_missing_measures_are_not_measured(without: str) -> None:
    full = {"accuracy": 80, "distance": 1.0}
    cells = {(2**k, 16): {"phase": phase, **full} for k, phase in enumerate(("I", "II", "III", "IV-A", "IV-B"))}
    for cell in cells.values():
        cell |= {without: math.nan}
    found = checked(build(cells))
    assert {each.holds for each in found.values()} <= {"yes", "no", "undecided", "not measured"}
    assert all(math.isnan(each.margin) for each in found.values() if each.holds == "not measured")
    needs = {"accuracy": "best-in-IV-B", "distance": "cka-beats-l2", "mc": "loss-falls"}
    if without in needs:
        assert found[needs[without]].holds == "not measured"


@pytest.mark.parametrize(
    ("name", "first"), [("yang2021/fig4", ["4"]), ("yang2021/fig6", ["6"] * 3), ("yang2021/svhn", ["2 and 3"] * 7)]
)
def test_the_claims_of_a_presets_own_figure_come_first(name: str, first: list[str]) -> None:
    tree = build(two({"phase": "I", "accuracy": 50}, {"phase": "III", "accuracy": 60}))
    tree.attrs["name"] = name
    found = check(Evidence(tree, phases.label(tree)))
    assert len(found) == len(CLAIMS)
    assert [each.claim.figure for each in found[: len(first)]] == first
    others = [each.holds == "not measured" for each in found[len(first) :]]
    assert others == sorted(others)  # what was measured before what was not


def test_a_single_cell_is_no_grid() -> None:
    found = checked(build({(2, 16): {"phase": "IV-B", "accuracy": 90}}))
    assert {each.holds for each in found.values()} == {"not measured"}
    assert all(each.rests_on for each in found.values())


def test_the_claims_have_names_of_their_own() -> None:
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS) == 15


# ---- the paper's own data

ARCHIVE = {  # margin and error as printed; the other claims need axes that the archive lacks
    "loss-falls": ("yes", 1.0835, 0.0044),
    "best-in-IV-B": ("yes", 2.0020, 0.2728),
    "III-sharpness": ("yes", 0.3159, 0.0353),
    "III-accuracy": ("yes", 3.9102, 0.1231),
    "cka-beats-l2": ("yes", 0.3738, 0.0155),
    "batch-sharpens": ("yes", 0.1651, 0.0467),
    # Three columns go through III. At width 6 zero loss costs 1.2 %; at 8 and 11 III has the best accuracy at its
    # very edge (batch 128), ahead of the nearest hotter batch size, 64.
    "zero-loss-costs": ("undecided", -0.2280, 0.2229),
}


def test_the_archive(shared_data) -> None:
    found = checked(published.load_source(shared_data / "taxonomy" / "results.tar.gz"))
    for name, (holds, margin, error) in ARCHIVE.items():
        assert found[name].holds == holds, name
        assert (found[name].margin, found[name].error) == pytest.approx((margin, error), abs=5e-5)
    assert {found[name].holds for name in found.keys() - ARCHIVE.keys()} == {"not measured"}

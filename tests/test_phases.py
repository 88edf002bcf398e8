"""Labels on grids made by hand, margins by hand, probabilities against brute force, and the published archive."""

import itertools
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from lossatlas import phases, published, results, summary
from lossatlas.cli.explore import labelled, note_rule
from lossatlas.errors import UserError
from lossatlas.results import REASON, STATUS, Axis, Quantity

MODEL = [Quantity(name, "1", name, "made up") for name in ("train_loss", "hessian_trace")] + [STATUS, REASON]
PAIR = [Quantity(name, "1", name, "made up") for name in ("mode_connectivity", "cka")] + [STATUS, REASON]


def grid(cells: Mapping[tuple, dict], *, n_seeds: int = 3, roles=("load", "temperature")) -> xr.DataTree:
    """Results from {(width, batch): metrics}, the same for every seed and every pair; None: not measured."""
    widths, batches = (tuple(sorted({key[k] for key in cells})) for k in (0, 1))
    axes = (Axis("width", widths, roles[0]), Axis("batch_size", batches, roles[1]))
    seeds = range(n_seeds)
    models, pairs = {}, {}
    for key, cell in cells.items():
        model = {"train_loss": cell.get("loss"), "hessian_trace": cell.get("trace")}
        pair = {"mode_connectivity": cell.get("mc"), "cka": cell.get("cka")}
        for s in seeds:
            models[(*key, s)] = {k: v for k, v in model.items() if v is not None} | {"status": "ok"}
        for a, b in itertools.combinations(seeds, 2):
            pairs[(*key, a, b)] = {k: v for k, v in pair.items() if v is not None} | {"status": "ok"}
    groups = {
        "models": results.group(axes, {"seed": tuple(seeds)}, models, MODEL),
        "pairs": results.group(axes, {"seed": tuple(seeds), "seed_b": tuple(seeds)}, pairs, PAIR),
    }
    return results.tree(groups, {})


def from_arrays(models: Mapping[str, np.ndarray], pairs: Mapping[str, np.ndarray]) -> xr.DataTree:
    """Results from arrays (width, batch, seed) and (width, batch, seed, seed)."""
    shape = models["train_loss"].shape
    axes = (
        Axis("width", tuple(range(1, shape[0] + 1)), "load"),
        Axis("batch_size", tuple(8 * k for k in range(1, shape[1] + 1)), "temperature"),
    )
    seeds = tuple(range(shape[2]))
    dataset = results.group(axes, {"seed": seeds}, {}, [])
    for name, values in models.items():
        dataset[name] = (("width", "batch_size", "seed"), values)
    dataset["status"] = (("width", "batch_size", "seed"), np.full(shape, "ok", dtype=object))
    both = results.group(axes, {"seed": seeds, "seed_b": seeds}, {}, [])
    for name, values in pairs.items():
        both[name] = (("width", "batch_size", "seed", "seed_b"), values)
    return results.tree({"models": dataset, "pairs": both}, {})


SHARP, FLAT = {"loss": 1.0, "trace": math.exp(8.0)}, {"loss": 0.001, "trace": math.exp(4.0)}


@pytest.mark.parametrize(
    ("cell", "phase"),
    [
        ({**SHARP, "mc": -5.0, "cka": 0.3}, "I"),
        ({**SHARP, "mc": 5.0, "cka": 0.3}, "II"),
        ({**FLAT, "mc": -5.0, "cka": 0.3}, "III"),
        ({**FLAT, "mc": 0.0, "cka": 0.3}, "IV-A"),
        ({**FLAT, "mc": 0.0, "cka": 0.9}, "IV-B"),
        # On a threshold: > for sharp, < for poor, >= for IV-B. ln(exp(5.5)) may round, so the loss is tested.
        ({"loss": 0.02, "trace": 1.0, "mc": -1.75, "cka": 0.70}, "IV-B"),
        # Either quantity makes it sharp.
        ({"loss": 1.0, "trace": 1.0, "mc": -5.0}, "I"),
        ({"loss": 0.001, "trace": math.exp(8.0), "mc": 5.0}, "II"),
        # Unknown metrics matter only where they decide.
        ({"loss": 1.0, "mc": -5.0}, "I"),
        ({"loss": 1.0, "trace": -3.0, "mc": -5.0}, "I"),
        ({"trace": math.exp(8.0), "mc": 5.0}, "II"),
        ({**FLAT, "mc": -5.0}, "III"),
        ({"loss": 0.001, "mc": -5.0, "cka": 0.9}, ""),
        ({"trace": 1.0, "mc": -5.0, "cka": 0.9}, ""),
        ({**SHARP, "cka": 0.9}, ""),
        ({**FLAT, "mc": 0.0}, ""),
        ({"loss": 0.001, "trace": -1.0, "mc": 0.0, "cka": 0.9}, ""),
    ],
)
def test_the_rule(cell: dict, phase: str) -> None:
    cells = {(2, 8): cell, (4, 8): {**SHARP, "mc": -9.0, "cka": 0.1}}
    labels = phases.label(grid(cells, n_seeds=2))  # the mean of two equal numbers is exact
    here = labels.sel(width=2, batch_size=8)
    assert here["phase"] == phase
    if phase == "":
        assert "no phase without" in str(here["reason"].item())
        assert here["status"] != "ok"
        assert np.isnan(here["probability"])
        assert np.isnan(here["margin"])


def test_what_is_lacking_is_named() -> None:
    labels = phases.label(grid({(2, 8): {**FLAT, "mc": 0.0}, (4, 8): {"loss": 0.001}}))
    assert labels["reason"].sel(width=2).item() == "no phase without cka"
    assert labels["reason"].sel(width=4).item() == "no phase without ln_trace, mode_connectivity"


def test_an_unmeasured_cell_has_no_phase() -> None:
    cells = {(2, 8): {**SHARP, "mc": 1.0}, (4, 16): {**SHARP, "mc": 1.0}}
    labels = phases.label(grid(cells))
    empty = labels.sel(width=2, batch_size=16)
    assert (empty["phase"], empty["status"], empty["n_ok"]) == ("", "missing", 0)


def test_thresholds_are_arguments_and_are_recorded() -> None:
    tree = grid({(2, 8): {**FLAT, "mc": 0.0, "cka": 0.65}})
    assert phases.label(tree)["phase"].item() == "IV-A"
    labels = phases.label(tree, thresholds=phases.Thresholds(cka=0.6))
    assert labels["phase"].item() == "IV-B"
    assert json.loads(labels.attrs["thresholds"]) == {
        "ln_trace": 5.5,
        "train_loss": 0.02,
        "mode_connectivity": -1.75,
        "cka": 0.6,
    }
    assert json.loads(labels.attrs["origin"])["cka"] == "given"
    assert json.loads(labels.attrs["origin"])["train_loss"] == "default"
    assert "published grid" in json.loads(labels.attrs["threshold_sources"])["cka"]


@pytest.mark.parametrize("value", [math.nan, math.inf, "0.7", None, True])
def test_a_threshold_is_a_finite_number(value: object) -> None:
    with pytest.raises(UserError, match="cka is"):
        phases.Thresholds(cka=value)


def test_margins_by_hand() -> None:
    # Five cells; every metric has a median and a MAD that can be read off.
    cells = {
        (1, 8): {"loss": 1.02, "trace": math.exp(6.5), "mc": -11.75, "cka": 0.1},  # I
        (2, 8): {"loss": 3.02, "trace": math.exp(5.0), "mc": -0.75, "cka": 0.3},  # II by the loss alone
        (3, 8): {"loss": 0.01, "trace": math.exp(5.0), "mc": -2.75, "cka": 0.9},  # III
        (4, 8): {"loss": 0.0, "trace": math.exp(4.5), "mc": 8.25, "cka": 0.72},  # IV-B
        (5, 8): {"loss": 0.0, "trace": math.exp(3.5), "mc": 8.25, "cka": 0.5},  # IV-A
    }
    labels = phases.label(grid(cells))
    assert labels["phase"].values.ravel().tolist() == ["I", "II", "III", "IV-B", "IV-A"]
    trace, loss, mc, cka = 0.5, 0.01, 9.0, 0.22  # MADs about the medians 5, .01, -.75, .5
    expected = [
        min(max(1.0 / trace, 1.0 / loss), 10.0 / mc),
        min(3.0 / loss, 1.0 / mc),
        min(0.5 / trace, 0.01 / loss, 1.0 / mc),
        min(1.0 / trace, 0.02 / loss, 10.0 / mc, 0.02 / cka),
        min(2.0 / trace, 0.02 / loss, 10.0 / mc, 0.2 / cka),
    ]
    # MADs are differences of numbers of order one, good to 1e-15 over a MAD of 0.01.
    np.testing.assert_allclose(labels["margin"].values.ravel(), expected, rtol=1e-11)
    # Each kind of limit decides somewhere: mc, mc, mc against the rest, cka, cka.
    assert json.loads(labels.attrs["margin_scales"]) == pytest.approx(
        {"ln_trace": trace, "train_loss": loss, "mode_connectivity": mc, "cka": cka}, rel=1e-11
    )


def test_the_margin_of_sharpness_follows_the_or() -> None:
    # mc is far from its threshold in units of its MAD; the cells differ in trace and loss only.
    losses, traces = [0.0, 0.01, 0.03, 0.04, 0.05], [3.5, 5.4, 5.0, 7.0, 6.0]
    cells = {
        (k, 8): {"loss": losses[k], "trace": math.exp(traces[k]), "mc": -1000.0 - 0.01 * k, "cka": 0.1}
        for k in range(5)
    }
    labels = phases.label(grid(cells))
    e_loss, e_trace = (np.array(losses) - 0.02) / 0.02, (np.array(traces) - 5.5) / 0.6  # MADs .02 and .6
    sharp = np.array([False, False, True, True, True])
    assert (labels["phase"].values.ravel() == np.where(sharp, "I", "III")).all()
    expected = np.where(sharp, np.maximum(e_loss, e_trace), np.minimum(-e_loss, -e_trace))
    np.testing.assert_allclose(labels["margin"].values.ravel(), expected, rtol=1e-11)


def test_a_metric_without_spread_is_infinitely_far() -> None:
    labels = phases.label(grid({(2, 8): {**FLAT, "mc": 0.0, "cka": 0.9}, (4, 8): {**FLAT, "mc": 0.0, "cka": 0.5}}))
    np.testing.assert_allclose(labels["margin"].values.ravel(), [0.2 / 0.2, 0.2 / 0.2], rtol=1e-12)
    assert np.isnan(phases.label(grid({(2, 8): {**FLAT, "mc": 0.0, "cka": 0.9}}))["margin"].item())


# ------------------------------------------------------------------------------------------------ probabilities


def noisy(n_seeds: int, *, shape=(2, 3), seed: int = 0) -> tuple[dict, dict]:
    """Metrics near their thresholds, so that resampling changes labels."""
    rng = np.random.default_rng(seed)
    loss = rng.uniform(0.0, 0.04, size=(*shape, n_seeds))
    trace = np.exp(rng.normal(5.0, 0.6, size=(*shape, n_seeds)))
    upper = np.triu(np.ones((n_seeds, n_seeds), dtype=bool), 1)
    mc = np.where(upper, rng.normal(-1.5, 2.0, size=(*shape, n_seeds, n_seeds)), np.nan)
    cka = np.where(upper, rng.normal(0.7, 0.1, size=(*shape, n_seeds, n_seeds)), np.nan)
    return {"train_loss": loss, "hessian_trace": trace}, {"mode_connectivity": mc, "cka": cka}


def plain_label(trace: float, loss: float, mc: float, cka: float) -> str:
    sharp = math.log(trace) > 5.5 or loss > 0.02
    if sharp:
        return "I" if mc < -1.75 else "II"
    return "III" if mc < -1.75 else ("IV-B" if cka >= 0.70 else "IV-A")


def brute_force(models: dict, pairs: dict, where: tuple[int, int], seeds: list[int]) -> float:
    """All n^n ordered draws of seeds, those of a single seed and self-pairs left out."""
    kept = total = 0
    nominal = ""
    for drawn in [tuple(seeds), *itertools.product(seeds, repeat=len(seeds))]:
        both = [(min(p), max(p)) for p in itertools.combinations(drawn, 2) if p[0] != p[1]]
        if not both:
            continue
        means = [np.mean([models[name][where][s] for s in drawn]) for name in ("hessian_trace", "train_loss")]
        means += [np.nanmean([pairs[name][where][p] for p in both]) for name in ("mode_connectivity", "cka")]
        found = plain_label(*means)
        if nominal == "":
            nominal = found
            continue
        total += 1
        kept += found == nominal
    return kept / total


@pytest.mark.parametrize("n_seeds", [3, 4, 5])
def test_the_probability_is_the_exact_bootstrap(n_seeds: int) -> None:
    models, pairs = noisy(n_seeds)
    probability = phases.label(from_arrays(models, pairs))["probability"].values
    expected = [brute_force(models, pairs, where, list(range(n_seeds))) for where in np.ndindex(2, 3)]
    np.testing.assert_allclose(probability.ravel(), expected, rtol=1e-12)  # sums of at most 3125 shares
    assert len(set(expected)) > 2  # the seeds matter here


def test_a_seed_that_is_not_ok_is_not_drawn() -> None:
    models, pairs = noisy(5, seed=3)
    tree = from_arrays(models, pairs)
    tree["models"]["status"][0, 1, 2] = "diverged"
    labels = phases.label(tree)
    assert labels["n_ok"].values[0, 1] == 4
    expected = brute_force(models, pairs, (0, 1), [0, 1, 3, 4])
    assert labels["probability"].values[0, 1] == pytest.approx(expected, rel=1e-12)
    others = phases.label(from_arrays(models, pairs))["probability"].values
    assert labels["probability"].values[1, 2] == pytest.approx(others[1, 2], rel=1e-12)


def test_one_curve_is_held_fixed_and_said_to_be() -> None:
    models, pairs = noisy(4, shape=(1, 6), seed=5)
    one = np.full_like(pairs["mode_connectivity"], np.nan)
    one[..., 0, 1] = pairs["mode_connectivity"][..., 0, 1]
    labels = phases.label(from_arrays(models, {**pairs, "mode_connectivity": one}))
    fixed = np.where(np.isnan(pairs["mode_connectivity"]), np.nan, one[..., 0:1, 1:2])
    expected = [brute_force(models, {**pairs, "mode_connectivity": fixed}, (0, k), [0, 1, 2, 3]) for k in range(6)]
    np.testing.assert_allclose(labels["probability"].values.ravel(), expected, rtol=1e-12)
    assert labels.attrs["held_fixed"] == "mode_connectivity held fixed: one curve"
    one[0, 0, 2, 3] = -3.0
    labels = phases.label(from_arrays(models, {**pairs, "mode_connectivity": one}))
    assert labels.attrs["held_fixed"] == "mode_connectivity held fixed: one curve in 5 of 6 cells"


def test_one_seed_has_no_probability_and_two_resample_the_models() -> None:
    models, pairs = noisy(1)
    labels = phases.label(from_arrays(models, pairs))
    assert labels["probability"].isnull().all()
    # Losses .01 and .05: drawn 00 (a quarter) it is flat, else sharp, and the one pair is held fixed.
    loss, trace = np.array([[[0.01, 0.05]]]), np.ones((1, 1, 2))
    pair = np.full((1, 1, 2, 2), np.nan)
    pair[..., 0, 1] = -9.0
    labels = phases.label(
        from_arrays({"train_loss": loss, "hessian_trace": trace}, {"mode_connectivity": pair, "cka": pair})
    )
    assert (labels["phase"].item(), labels["probability"].item()) == ("I", 0.75)


def test_many_seeds_are_sampled_repeatably() -> None:
    models, pairs = noisy(7, shape=(1, 4), seed=11)
    tree = from_arrays(models, pairs)
    labels = [phases.label(tree, seed=seed)["probability"].values for seed in (0, 0, 1)]
    np.testing.assert_array_equal(labels[0], labels[1])
    assert (labels[0] != labels[2]).any()
    # The exact value from all multisets of 7 seeds: 1716 with their multinomial shares.
    counts = [np.bincount(c, minlength=7) for c in itertools.combinations_with_replacement(range(7), 7)]
    counts = [c for c in counts if (c > 0).sum() > 1]
    ways = np.array([math.factorial(7) / math.prod(math.factorial(k) for k in c) for c in counts])
    for where in range(4):
        found = []
        for weights in [np.ones(7), *counts]:
            means = [np.average(models[n][0, where], weights=weights) for n in ("hessian_trace", "train_loss")]
            a, b = np.triu_indices(7, 1)
            both = weights[a] * weights[b]
            means += [np.average(pairs[n][0, where][a, b], weights=both) for n in ("mode_connectivity", "cka")]
            found.append(plain_label(*means))
        exact = np.average(np.array(found[1:]) == found[0], weights=ways)
        # 2000 draws: a standard error of at most .5/sqrt(2000) = .011
        assert labels[0][0, where] == pytest.approx(exact, abs=4 * 0.0112)


def test_a_full_grid_is_labelled_fast() -> None:
    tree = from_arrays(*noisy(5, shape=(14, 15)))
    start = time.perf_counter()
    phases.label(tree)
    # 210 cells take about 0.05 s; the bound leaves room for a busy machine.
    assert time.perf_counter() - start < 0.5


# ------------------------------------------------------------------------------------------------ the table


def test_the_table_and_the_csv() -> None:
    cells = {
        (2, 16): {**SHARP, "mc": -5.0, "cka": 0.3},
        (2, 8): {**SHARP, "mc": 5.0, "cka": 0.2},
        (16, 8): {**FLAT, "mc": 1 / 3, "cka": 0.9},
    }
    labels = phases.label(grid(cells))
    header, rows = phases.table(labels)
    assert header == ["width", "batch_size", "phase", "margin", "probability"]
    assert [row[:3] for row in rows] == [["2", "8", "II"], ["2", "16", "I"], ["16", "8", "IV-B"], ["16", "16", ""]]
    assert rows[-1][3:] == ["", ""]
    assert float(rows[2][3]) == pytest.approx(labels["margin"].sel(width=16, batch_size=8).item(), rel=5e-6)
    lines = phases.to_csv(labels).splitlines()
    assert lines[0] == "width,batch_size,phase,margin,probability"
    assert lines[-1] == "16,16,,,"
    assert len(lines) == 5


def test_the_load_comes_first_whatever_the_order_of_the_axes() -> None:
    tree = grid({(0.05, 8): {**SHARP, "mc": -5.0}, (0.1, 8): {**SHARP, "mc": 5.0}}, roles=("temperature", "load"))
    header, rows = phases.table(phases.label(tree))
    assert header[:2] == ["batch_size", "width"]
    assert [row[:3] for row in rows] == [["8", "0.05", "I"], ["8", "0.1", "II"]]


def test_labels_fit_the_results_file(tmp_path: Path) -> None:
    tree = grid({(2, 8): {**SHARP, "mc": -5.0, "cka": 0.3}, (4, 8): {**FLAT, "mc": 0.0, "cka": 0.9}})
    labels = phases.label(tree, auto=True)
    results.save(results.tree({"phases": labels}, {}), tmp_path / "results.nc")
    again = results.load(tmp_path / "results.nc")["phases"].to_dataset()
    assert phases.to_csv(again) == phases.to_csv(labels)
    assert again.attrs == labels.attrs
    for variable in labels.data_vars.values():
        assert {"units", "long_name", "estimator"} <= variable.attrs.keys()


# ------------------------------------------------------------------------------------------------ auto


def test_auto_finds_clear_steps_on_a_small_grid() -> None:
    rng = np.random.default_rng(7)
    cells = {}
    for i, j in itertools.product(range(5), range(5)):
        flat, well = i + j >= 4, i >= 2
        cells[i + 1, 8 * (j + 1)] = {
            "loss": math.exp((-6.0 if flat else -1.0) + 0.3 * rng.standard_normal()),
            "trace": math.exp((2.0 if flat else 9.0) + 0.3 * rng.standard_normal()),
            "mc": (0.0 if well else -20.0) + 0.3 * rng.standard_normal(),
            "cka": (0.95 if j >= 2 else 0.6) + 0.01 * rng.standard_normal(),
        }
    labels = phases.label(grid(cells), auto=True)
    assert set(json.loads(labels.attrs["origin"]).values()) == {"auto"}
    for (width, batch), phase in zip(cells, labels["phase"].values.ravel(), strict=True):
        i, j = width - 1, batch // 8 - 1
        sharp_names, fourth = ("II" if i >= 2 else "I"), ("IV-B" if j >= 2 else "IV-A")
        assert phase == (sharp_names if i + j < 4 else (fourth if i >= 2 else "III"))


def test_auto_answers_no_transition_on_noise_and_keeps_one_label() -> None:
    rng = np.random.default_rng(8)
    cells = {
        (i, j): {
            "loss": math.exp(-6.0 + 0.1 * rng.standard_normal()),
            "trace": math.exp(3.0 + 0.1 * rng.standard_normal()),
            "mc": 0.1 * rng.standard_normal(),
            "cka": 0.9 + 0.01 * rng.standard_normal(),
        }
        for i, j in itertools.product(range(1, 6), range(1, 6))
    }
    labels = phases.label(grid(cells), auto=True)
    assert set(json.loads(labels.attrs["origin"]).values()) == {"no transition"}
    assert set(labels["phase"].values.ravel()) == {"IV-B"}
    assert labels["margin"].isnull().all()  # no test decides anything
    assert json.loads(labels.attrs["sides"]) == {
        "ln_trace": "not sharp",
        "train_loss": "not sharp",
        "mode_connectivity": "not poorly connected",
        "cka": "IV-B where it is IV",
    }
    strict = phases.label(grid(cells), auto=True, thresholds=phases.Thresholds(cka=0.95))
    assert set(strict["phase"].values.ravel()) == {"IV-A"}
    assert json.loads(strict.attrs["origin"])["cka"] == "given"


def stepped() -> xr.DataTree:
    """A grid whose four metrics have clear steps, far from the default thresholds."""
    rng = np.random.default_rng(9)
    cells = {
        (i, j): {
            "loss": math.exp((-9.0 if i + j > 6 else -1.0) + 0.1 * rng.standard_normal()),
            "trace": math.exp((1.0 if i + j > 6 else 4.0) + 0.1 * rng.standard_normal()),
            "mc": (0.0 if i > 2 else -40.0) + 0.1 * rng.standard_normal(),
            "cka": (0.6 if j > 3 else 0.2) + 0.01 * rng.standard_normal(),
        }
        for i, j in itertools.product(range(1, 7), range(1, 7))
    }
    return grid(cells)


def test_a_given_threshold_wins_over_auto() -> None:
    for given in ({"ln_trace": 7.0}, {"ln_trace": 5.5, "cka": 0.7}):  # also one that equals the default
        labels = phases.label(stepped(), thresholds=given, auto=True)
        origins, thresholds = (json.loads(labels.attrs[name]) for name in ("origin", "thresholds"))
        assert origins == {name: "given" if name in given else "auto" for name in origins}
        assert {name: thresholds[name] for name in given} == given
    plain = phases.label(stepped(), thresholds={"ln_trace": 5.5})
    assert json.loads(plain.attrs["origin"]) == {
        "ln_trace": "given",
        "train_loss": "default",
        "mode_connectivity": "default",
        "cka": "default",
    }


def test_an_unknown_or_useless_given_threshold_is_refused() -> None:
    with pytest.raises(UserError, match="no threshold of sharpness"):
        phases.label(stepped(), thresholds={"sharpness": 1.0})
    with pytest.raises(UserError, match="cka is nan"):
        phases.label(stepped(), thresholds={"cka": math.nan})


@pytest.mark.parametrize(
    ("spec", "settings", "auto", "expected"),
    [
        ({}, [], True, "auto auto auto auto"),
        ({}, ["ln_trace=7"], True, "given auto auto auto"),
        ({"auto": True, "ln_trace": 2.0}, [], None, "given auto auto auto"),
        ({"auto": True}, ["ln_trace=2"], None, "given auto auto auto"),
        ({"auto": True, "cka": 0.3}, ["ln_trace=2"], None, "given auto auto given"),
        ({"auto": True, "cka": 0.3}, [], False, "default default default given"),
        ({"cka": 0.3}, ["cka=0.4"], None, "default default default given"),
    ],
)
def test_thresholds_come_from_the_options_then_the_spec_then_the_grid(
    spec: dict, settings: list[str], auto: bool | None, expected: str
) -> None:
    tree = stepped()
    tree.attrs["spec"] = json.dumps({"phases": spec})
    labels = labelled(tree, settings, auto=auto)
    assert list(json.loads(labels.attrs["origin"]).values()) == expected.split()
    given = dict(setting.split("=") for setting in settings)
    thresholds = json.loads(labels.attrs["thresholds"])
    for name, value in (spec | given).items():
        assert name == "auto" or thresholds[name] == float(value)


def test_what_labels_rest_on_is_said_in_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    tree = stepped()
    del tree["pairs"]["mode_connectivity"]
    tree["models"]["train_loss"][:] = 0.001 + 1e-6 * np.arange(tree["models"]["train_loss"].size).reshape(6, 6, 3)
    note_rule(phases.label(tree, thresholds={"cka": 0.3}, auto=True))
    said = capsys.readouterr()
    assert said.out == ""
    trace, loss, mc, cka, resampled = said.err.splitlines()
    assert trace.startswith("Threshold of ln_trace: ")
    assert trace.endswith(" (auto: derived from this grid).")
    assert loss == "train_loss shows no transition in this grid (auto): by it all cells are not sharp."
    assert mc == "mode_connectivity has no value in any cell."
    assert cka == "Threshold of cka: 0.3 (given)."
    assert resampled == "Probabilities resample the seeds at these thresholds; nothing is held fixed."
    note_rule(phases.label(grid({(2, 8): {**FLAT, "mc": 0.0, "cka": 0.9}}, n_seeds=2)))
    said = capsys.readouterr()
    assert "Threshold of mode_connectivity: -1.75 (default)." in said.err
    assert "mode_connectivity held fixed: one curve; cka held fixed: one pair." in said.err


def test_auto_leaves_unmeasured_metrics_unknown() -> None:
    cells = {(i, j): {"loss": 0.001 * (1 + i), "trace": 2.0 + j} for i in range(3) for j in range(3)}
    labels = phases.label(grid(cells), auto=True)
    assert set(labels["phase"].values.ravel()) == {""}


# ------------------------------------------------------------------------------------------- the real archive


@pytest.fixture(scope="module")
def archive(shared_data: Path) -> xr.DataTree:
    source = shared_data / "taxonomy" / "results.tar.gz"
    if not source.is_file():
        pytest.skip(f"{source} is missing")
    return published.read(source)


def test_the_published_grid_at_the_default_thresholds(archive: xr.DataTree) -> None:
    labels = phases.label(archive)
    _, rows = phases.table(labels)
    assert len(rows) == 112
    names, counts = np.unique(labels["phase"].values.astype(str), return_counts=True)
    # The one cell without a label has a collapsed model at the end of its only curve.
    assert dict(zip(names, counts, strict=True)) == {"": 1, "I": 38, "II": 27, "III": 9, "IV-A": 26, "IV-B": 11}
    assert labels["phase"].sel(width=1, batch_size=64) == ""
    best = summary.cells(archive)["test_accuracy"].argmax(...)
    assert labels["phase"].isel(best) == "IV-B"
    assert labels.attrs["held_fixed"] == "mode_connectivity held fixed: one curve"
    probability = labels["probability"].values
    assert ((probability >= 0) & (probability <= 1))[labels["phase"].values != ""].all()


def test_auto_finds_the_published_thresholds_again(archive: xr.DataTree) -> None:
    default, auto = phases.label(archive), phases.label(archive, auto=True)
    assert set(json.loads(auto.attrs["origin"]).values()) == {"auto"}
    assert (default["phase"] == auto["phase"]).mean() >= 0.90
    best = summary.cells(archive)["test_accuracy"].argmax(...)
    assert auto["phase"].isel(best) == "IV-B"

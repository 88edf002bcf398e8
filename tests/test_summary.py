"""Means over seeds and pairs: by hand, against brute force, and every way in which a cell can be less than ok."""

import itertools

import numpy as np
import pytest
import xarray as xr

from lossatlas import results, summary
from lossatlas.errors import FileError
from lossatlas.results import REASON, STATUS, Axis, Quantity

AXES = (Axis("width", (2, 4), "load"), Axis("batch_size", (8, 16, 32), "temperature"))
MODEL = [
    Quantity("train_loss", "nat", "training loss", "mean cross entropy"),
    Quantity("test_error", "percent", "test error", "0-1 error"),
    Quantity("hessian_trace", "1", "Hessian trace", "Hutchinson"),
    Quantity("hessian_trace_se", "1", "its standard error", "Hutchinson"),
    STATUS,
    REASON,
]
PAIR = [Quantity("cka", "1", "CKA", "linear"), STATUS, REASON]
SEEDS = (0, 1, 2, 3)


def grid(models: dict, pairs: dict | None = None, axes=AXES, seeds=SEEDS) -> xr.DataTree:
    groups = {"models": results.group(axes, {"seed": seeds}, models, MODEL)}
    if pairs is not None:
        groups["pairs"] = results.group(axes, {"seed": seeds, "seed_b": seeds}, pairs, PAIR)
    return results.tree(groups, {})


def model(loss=1.0, error=20.0, trace=5.0, status="ok", reason="") -> dict:
    values = {"train_loss": loss, "test_error": error, "hessian_trace": trace, "hessian_trace_se": 0.1}
    return {**values, "status": status, "reason": reason}


def test_the_mean_and_standard_error_of_a_cell_by_hand() -> None:
    losses, traces = [1.0, 2.0, 4.0, 5.0], [1.0, 2.0, 3.0, 6.0]
    tree = grid({(2, 8, s): model(loss=losses[s], error=10.0 * s, trace=traces[s]) for s in SEEDS})
    cell = summary.cells(tree).sel(width=2, batch_size=8)
    assert cell["train_loss"] == 3.0
    # Deviations -2 -1 1 2: variance 10/3 with ddof 1, and four seeds behind the mean.
    assert cell["train_loss_se"] == pytest.approx(np.sqrt(10 / 3 / 4), rel=1e-15)
    assert cell["test_accuracy"] == 85.0
    assert cell["test_accuracy_se"] == cell["test_error_se"]
    assert cell["ln_hessian_trace"] == np.log(3.0)
    assert cell["ln_hessian_trace_se"] == pytest.approx(np.std(traces, ddof=1) / 2 / 3.0, rel=1e-15)
    assert cell["n_ok"] == 4
    assert (cell["status"], cell["reason"]) == ("ok", "")


def test_only_sources_that_exist_are_summarised_and_every_variable_is_described() -> None:
    dataset = summary.cells(grid({(2, 8, 0): model()}))
    expected = {"train_loss", "test_error", "test_accuracy", "ln_hessian_trace"}
    errors = {f"{name}_se" for name in expected}
    assert set(dataset.data_vars) == expected | errors | {"n_ok", "n_pairs", "status", "reason"}
    for variable in dataset.data_vars.values():
        assert {"units", "long_name", "estimator"} <= variable.attrs.keys()
    assert results.axes_of(dataset) == (["width"], ["batch_size"])


def test_seeds_that_are_not_ok_leave_the_mean_and_are_told() -> None:
    tree = grid(
        {
            (2, 8, 0): model(loss=1.0),
            (2, 8, 1): model(loss=3.0),
            (2, 8, 2): model(loss=99.0, status="diverged", reason="loss is not finite"),
            (2, 8, 3): model(loss=50.0, status="collapsed", reason="constant outputs"),
        }
    )
    cell = summary.cells(tree).sel(width=2, batch_size=8)
    assert cell["train_loss"] == 2.0
    assert cell["n_ok"] == 2
    assert cell["status"] == "diverged"
    expected = "diverged (1 model): loss is not finite; collapsed (1 model): constant outputs"
    assert cell["reason"] == expected


def test_an_unmeasured_cell_is_missing() -> None:
    dataset = summary.cells(grid({(2, 8, 0): model()}))
    other = dataset.sel(width=4, batch_size=8)
    assert other["status"] == "missing"
    assert other["reason"] != ""
    assert np.isnan(other["train_loss"])
    assert other["n_ok"] == 0


@pytest.mark.parametrize("traces", [(-1.0, 0.5), (-1.0, 1.0), (0.0, 0.0)])
def test_a_mean_that_is_not_positive_has_no_logarithm(traces: tuple[float, float]) -> None:
    tree = grid({(2, 8, s): model(trace=trace) for s, trace in enumerate(traces)})
    cell = summary.cells(tree).sel(width=2, batch_size=8)
    assert np.isnan(cell["ln_hessian_trace"])
    assert np.isnan(cell["ln_hessian_trace_se"])
    assert cell["status"] == "degenerate"
    assert "hessian_trace" in str(cell["reason"].item())
    assert cell["train_loss"] == 1.0


def test_one_seed_has_a_mean_and_no_standard_error() -> None:
    cell = summary.cells(grid({(2, 8, 0): model(loss=7.0)})).sel(width=2, batch_size=8)
    assert cell["train_loss"] == 7.0
    assert np.isnan(cell["train_loss_se"])


def test_the_pair_mean_runs_over_measured_pairs_above_the_diagonal() -> None:
    models = {(2, 8, s): model() for s in SEEDS}
    pairs = {(2, 8, a, b): {"cka": 10.0 * a + b, "status": "ok"} for a, b in itertools.combinations(SEEDS, 2)}
    pairs[2, 8, 0, 3] = {"status": "degenerate", "reason": "0/0"}
    pairs[2, 8, 3, 0] = {"cka": 1e6, "status": "ok"}
    cell = summary.cells(grid(models, pairs)).sel(width=2, batch_size=8)
    assert cell["cka"] == pytest.approx(np.mean([1, 2, 12, 13, 23]), rel=1e-15)
    assert (cell["cka_n"], cell["n_pairs"]) == (5, 5)
    assert cell["status"] == "degenerate"
    assert cell["reason"] == "degenerate (1 pair): 0/0"


def jackknife(values: np.ndarray) -> float:
    """The textbook loop over left-out seeds."""
    n = len(values)
    means = []
    for left_out in range(n):
        rest = [s for s in range(n) if s != left_out]
        means.append(np.mean([values[a, b] for a, b in itertools.combinations(rest, 2)]))
    return float(np.sqrt((n - 1) / n * np.sum((np.array(means) - np.mean(means)) ** 2)))


def test_the_jackknife_against_the_loop() -> None:
    values = np.random.default_rng(0).normal(size=(3, 5, 5))
    expected = [jackknife(block) for block in values]
    np.testing.assert_allclose(summary.pair_errors(values), expected, rtol=1e-12)  # rounding of 10 sums


def test_the_jackknife_sees_that_pairs_share_seeds() -> None:
    # x_ab = u_a + u_b has Var(mean over pairs) = 4 Var(u)/n; as if independent it would be 2 Var(u)/(n(n-1)/2).
    rng = np.random.default_rng(1)
    seeds = rng.normal(size=(4000, 6))
    values = seeds[:, :, None] + seeds[:, None, :]
    squares = summary.pair_errors(values) ** 2
    # Exact here, since the statistic is linear in u: E[SE^2] = 4/6; 4000 draws of a chi^2_5/5 spread by 0.7 %.
    assert squares.mean() == pytest.approx(4 / 6, rel=0.04)


@pytest.mark.parametrize("measured", [[(0, 1)], [(0, 1), (0, 2), (0, 3)]])
def test_a_mean_that_hangs_on_one_seed_has_no_standard_error(measured: list[tuple[int, int]]) -> None:
    values = np.full((4, 4), np.nan)
    for k, pair in enumerate(measured):
        values[pair] = float(k)
    assert np.isnan(summary.pair_errors(values))
    assert summary.pair_means(values, np.ones((1, 4)))[0] == np.mean(range(len(measured)))


def test_weights_are_multiplicities_without_self_pairs() -> None:
    rng = np.random.default_rng(2)
    losses, similarity = rng.normal(size=4), rng.uniform(size=(4, 4))
    models = {(2, 8, s): model(loss=losses[s]) for s in SEEDS}
    pairs = {(2, 8, a, b): {"cka": similarity[a, b]} for a, b in itertools.combinations(SEEDS, 2)}
    drawn = [0, 0, 3, 1]
    cell = summary.cells(grid(models, pairs), weights={0: 2, 3: 1, 1: 1}).sel(width=2, batch_size=8)
    assert cell["train_loss"] == pytest.approx(np.mean(losses[drawn]), rel=1e-14)
    both = [similarity[min(a, b), max(a, b)] for a, b in itertools.combinations(drawn, 2) if a != b]
    assert cell["cka"] == pytest.approx(np.mean(both), rel=1e-14)
    assert not [name for name in cell.data_vars if str(name).endswith("_se")]


def test_a_third_axis_and_a_saved_file(tmp_path) -> None:
    axes = (*AXES, Axis("panel", (1, 2), "load"))
    models = {(2, 8, 2, s): model(loss=float(s)) for s in SEEDS}
    tree = grid(models, {}, axes=axes)
    results.save(tree, tmp_path / "results.nc")
    for each in (tree, results.load(tmp_path / "results.nc")):
        dataset = summary.cells(each)
        assert dataset["train_loss"].dims == ("width", "batch_size", "panel")
        assert dataset["train_loss"].sel(width=2, batch_size=8, panel=2) == 1.5
        assert (dataset["status"] == "ok").sum() == 1


def test_results_without_models_are_refused() -> None:
    with pytest.raises(FileError, match="no group `models`"):
        summary.cells(results.tree({}, {}))

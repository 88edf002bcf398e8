"""The density as a measure of a grid: against the dense Hessian, from the spec to the chart in a cell's story."""

import csv
import io
import math
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import command
from browser import chromium, downloaded, opened
from command import TINY
from lossatlas import phases, report, results, specs
from lossatlas.errors import SpecError
from lossatlas.landscape.density import Density, density
from lossatlas.landscape.operators import from_matrix
from lossatlas.landscape.parameters import flat_parameters
from lossatlas.measures import models
from lossatlas.measures import settings as s
from lossatlas.measures.jobs import Job, TrainedSeed
from lossatlas.registry import Facts
from lossatlas.report.densities import BINS, histograms
from lossatlas.seeding import derive
from lossatlas.sweep import cost
from lossatlas.sweep.collect import _densities, collect
from lossatlas.sweep.cost import ModelCost, estimate
from lossatlas.sweep.plan import Plan
from lossatlas.sweep.store import Store
from lossatlas.sweep.worker import Worker
from lossatlas.tasks import data, losses
from lossatlas.tasks import models as task_models
from lossatlas.tasks.corruption import corrupted
from lossatlas.tasks.samples import Samples
from oracles.dense import dense_hessian
from report_material import full
from test_worker import Heard

RAW = tomllib.loads(TINY.read_text())
ASKED = {"images": 50, "probes": 5, "steps": 12}
DIGITS = Facts(n_train=1437, n_test=360, input_shape=(1, 8, 8), classes=10)
EPS = torch.finfo(torch.float32).eps  # of the models of a sweep


def spec_with(measures_: dict[str, Any], **changes: Any) -> specs.Spec:
    return specs.validate({**RAW, "measures": measures_, **changes}, "tiny")


def keys(measures_: dict[str, Any]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for cell in Plan(spec_with(measures_), "f" * 32):
        for step in cell.steps:
            found.setdefault(step.name, set()).add(step.key)
    return found


# ---- spec and keys ------------------------------------------------------------------------------------------


def test_it_is_off_unless_asked_for_and_changes_no_other_key() -> None:
    without, asked = keys(RAW["measures"]), keys({**RAW["measures"], "density": {}})
    assert "density" not in without
    assert len(asked.pop("density")) == 8
    assert asked == without


def test_its_key_is_pinned_and_hangs_on_all_its_settings() -> None:
    plan = Plan(spec_with({"density": {}}), "0123456789abcdef0123456789abcdef")
    (first, _) = [step.key for step in plan[0].steps if step.name == "density"]
    assert (
        first == "e70301f273f07790f9c26e10db8048d8"
    )  # part of the format of the store, as those of tests/test_plan.py
    default = keys({"density": {}})["density"]
    assert keys({"density": {"data": "train", "images": 200, "probes": 4, "steps": 64}})["density"] == default
    for other in ({"data": "test"}, {"images": 201}, {"probes": 5}, {"steps": 63}):
        assert not keys({"density": other})["density"] & default


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"probes": 1}, "measures.density.probes: 1 was given; input should be greater than or equal to 2"),
        ({"steps": 0}, "measures.density.steps: 0 was given; input should be greater than or equal to 1"),
        ({"images": 2.5}, "measures.density.images: 2.5 was given; input should be a valid integer"),
        ({"data": "all"}, "measures.density.data: \"all\" was given; input should be 'train' or 'test'"),
        ({"step": 3}, "measures.density.step: "),
    ],
)
def test_mistakes_are_told(given: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_with({"density": given})
    assert told in str(caught.value)


# ---- against the dense Hessian ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One cell that a worker has measured, and what it was measured of."""

    spec: specs.Spec
    plan: Plan
    store: Store
    samples: Samples
    network: torch.nn.Module  # of seed 1

    def values(self, seed: int) -> dict[str, Any]:
        (step,) = [each for each in self.plan[0].steps if each.name == "density" and each.seeds == (seed,)]
        record = self.store.read("density", step.key)
        assert record is not None
        assert record.status == "ok"
        return record.values

    def tree(self) -> xr.DataTree:
        return collect(self.spec, self.plan, self.store, fingerprint=self.plan.fingerprint, failures={})


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    raw = data.load("digits", None)
    axes = {"load": {"width": [2]}, "temperature": {"batch_size": [16]}}
    spec = spec_with({"density": ASKED}, **axes)
    plan, root = Plan(spec, raw.fingerprint()), tmp_path_factory.mktemp("density")
    store = Store(root / "store")
    assert Worker(store, raw, "best", root / "failed", Heard()).run(plan) == {}
    task = plan[0].task
    kept = corrupted(raw, task.data)
    (training,) = [step for step in plan[0].steps if step.name == "train" and step.seeds == (1,)]
    weights = store.arrays("train", training.key, "best")
    assert weights is not None
    network = task_models.build("mlp", task.model.options, input_shape=(1, 8, 8), classes=10, seed=0)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return Measured(spec, plan, store, Samples(kept.train_inputs, kept.train_targets, kept), network.eval())


@pytest.fixture(scope="module")
def dense(measured: Measured) -> torch.Tensor:
    """The Hessian on the first images, in float64 and without the package."""
    inputs, targets = measured.samples.head(ASKED["images"])
    return dense_hessian(measured.network, [(inputs.double(), targets)], losses.build("cross_entropy"))


def test_every_probe_has_the_moments_of_the_dense_hessian(measured: Measured, dense: torch.Tensor) -> None:
    values, n = measured.values(1), len(dense)
    assert values["hessian_order"] == n
    assert values["ritz_nodes"] == [ASKED["steps"]] * ASKED["probes"]
    assert values["density_matvecs"] == ASKED["steps"] * ASKED["probes"]
    generator = torch.Generator().manual_seed(derive(1, "density"))
    ritz, weights = (
        torch.tensor(values[name], dtype=torch.float64).view(ASKED["probes"], -1)
        for name in ("ritz_value", "ritz_weight")
    )
    largest = torch.linalg.eigvalsh(dense).abs().max()
    for x, w in zip(ritz / largest, weights, strict=True):
        v = (2.0 * torch.randint(0, 2, (n,), generator=generator).double() - 1) / math.sqrt(n)
        image = v
        for k in range(2 * ASKED["steps"]):
            # of a matrix of norm 1; k products in float32 err by some k eps
            assert abs((w @ x.pow(k) - v @ image).item()) < 20 * (k + 1) * EPS, k
            image = dense @ image / largest


def test_shares_and_traces_are_those_of_the_dense_hessian(measured: Measured, dense: torch.Tensor) -> None:
    """Whole Krylov spaces, so that nothing but the draw of probes is between the estimate and the truth."""
    outcome = models.density(
        job(measured), s.Density(images=50, probes=40, steps=len(dense)), [seed_one(measured)], {}
    )
    found, values = rebuilt(outcome.values), outcome.values
    exact = torch.linalg.eigvalsh(dense)
    for power in (1, 2, 3):
        estimate_ = found.moment(power)
        # seeded; Student t with 39 degrees of freedom stays within 4 with probability 0.9997
        assert abs(estimate_.value - exact.pow(power).sum().item()) < 4 * estimate_.stderr
    threshold = float(values["sign_threshold"])  # type: ignore[arg-type]
    assert threshold == pytest.approx(100 * EPS * exact.abs().max().item(), rel=1e-4)
    for name, truth in (
        ("negative", (exact < -threshold).double().mean().item()),
        ("positive", (exact > threshold).double().mean().item()),
    ):
        share, error = float(values[f"{name}_share"]), float(values[f"{name}_share_se"])  # type: ignore[arg-type]
        assert share < truth + 4 * error  # what is called sure is a lower bound
        assert share > 0.5 * truth > 0.0  # and says something
    # Edges in the widest gaps of the spectrum, where rounding brings no eigenvalue to the other side.
    gaps = exact.diff().sort(descending=True).indices[:4].sort().values
    edges = torch.cat([exact[:1] - 1, (exact[gaps] + exact[gaps + 1]) / 2, exact[-1:] + 1])
    counted = found.histogram(edges)
    truth = torch.histogram(exact, edges).hist / len(exact)
    assert ((counted.share - truth).abs() <= 4 * counted.stderr + 1e-6).all()


def job(measured: Measured) -> Job:
    samples = measured.samples
    return Job(losses.build("cross_entropy"), samples, samples, 10, lambda _seed: measured.network)


def seed_one(measured: Measured) -> TrainedSeed:
    return TrainedSeed(1, measured.network, flat_parameters(measured.network))


def rebuilt(values: Any) -> Density:
    """The result of `landscape.density` from what is stored."""
    cut = {
        name: tuple(torch.tensor(values[f"ritz_{name}"], dtype=torch.float64).split(values["ritz_nodes"]))
        for name in ("value", "weight", "residual")
    }
    sizes = {"size": int(values["hessian_order"]), "matvecs": 0, "steps": max(values["ritz_nodes"])}
    return Density(cut["value"], cut["weight"], cut["residual"], probe="rademacher", seed=0, eps=EPS, **sizes)


def test_a_spectrum_that_is_not_finite_is_a_failure_with_its_reason(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lossatlas.landscape.operators.hessian", lambda _objective: from_matrix(torch.eye(5)))
    assert models.density(job(measured), s.Density(), [seed_one(measured)], {}).status == "ok"
    broken = from_matrix(torch.eye(5))
    broken.matrix[0, 0] = math.inf
    monkeypatch.setattr("lossatlas.landscape.operators.hessian", lambda _objective: broken)
    outcome = models.density(job(measured), s.Density(), [seed_one(measured)], {})
    assert (outcome.values, outcome.status) == ({}, "failed")
    assert outcome.reason == "the density of the eigenvalues is non-finite (product 1 is not finite)"


# ---- results ------------------------------------------------------------------------------------------------


def test_the_results_hold_every_quadrature(measured: Measured, tmp_path: Path) -> None:
    results.save(measured.tree(), tmp_path / "results.nc")
    tree = results.load(tmp_path / "results.nc")
    found = tree["densities"].to_dataset().squeeze()
    assert found["ritz_value"].dims == ("seed", "probe", "node")
    assert found["hessian_order"].dims == found["sign_threshold"].dims == ("seed",)
    assert found["ritz_value"].attrs["units"] == found["sign_threshold"].attrs["units"] == "nat"
    for seed in (0, 1):
        one, values = found.sel(seed=seed), measured.values(seed)
        for name in ("value", "weight", "residual"):
            assert one[f"ritz_{name}"].values.ravel().tolist() == values[f"ritz_{name}"]
        told = tree["models"].to_dataset().squeeze().sel(seed=seed)
        signs = rebuilt(values).signs()
        assert signs.threshold == float(one["sign_threshold"]) == values["sign_threshold"]
        for name in ("negative", "undecided", "positive"):
            share = getattr(signs, name)
            assert float(told[f"{name}_share"]) == share.value
            assert float(told[f"{name}_share_se"]) == share.stderr
        assert float(told["density_matvecs"]) == 60


def test_a_probe_that_was_exhausted_has_fewer_nodes() -> None:
    few = {"ritz_nodes": [2, 1], "ritz_value": [1.0, 2.0, 3.0], "ritz_weight": [0.4, 0.6, 1.0]}
    record = {**few, "ritz_residual": [0.0] * 3, "hessian_order": 3.0, "sign_threshold": 1e-5}
    found = _densities(spec_with({"density": {}}), {(2, 16, 1): record}).sel(width=2, batch_size=16)
    np.testing.assert_array_equal(found["ritz_value"].sel(seed=1), [[1.0, 2.0], [3.0, np.nan]])
    np.testing.assert_array_equal(found["ritz_weight"].sel(seed=1), [[0.4, 0.6], [1.0, np.nan]])
    assert found["ritz_value"].sel(seed=0).isnull().all()
    assert found["hessian_order"].values.tolist()[1] == 3.0


# ---- cost ---------------------------------------------------------------------------------------------------


def test_the_plan_knows_its_products_and_its_basis() -> None:
    spec = spec_with({"density": {"images": 50, "probes": 3, "steps": 20}, "hessian": {"images": 50}})
    plan = Plan(spec, "f" * 32)
    small, large = plan.task((2, 16)), plan.task((4, 16))
    costs = {
        task.model.model_dump_json(): ModelCost(1e-4, 1e-5, parameters, 100.0)
        for task, parameters in ((small, 10), (large, 10**8))
    }
    found = estimate(plan, DIGITS, lambda _tasks, _facts: costs)
    seconds = {cell: found.of(plan)("density", cell) - cost.STEP_OVERHEAD for cell in plan.cells}
    product = cost.MATVEC * (1e-4 + 50 * 1e-5)
    # no more steps than parameters
    assert seconds[2, 16] == pytest.approx(3 * 10 * (product + cost.ORTHOGONAL * 10 * 10))
    assert seconds[4, 16] == pytest.approx(3 * 20 * (product + cost.ORTHOGONAL * 20 * 10**8))
    one = costs[large.model.model_dump_json()]
    hessian = cost._memory([s.Hessian(images=50)], large, plan.train((4, 16)), one, DIGITS, 2)
    both = dict(zip(plan.cells, found.memories, strict=True))[4, 16]
    assert both - hessian == 21 * 4 * 10**8 - cost.KEPT_BYTES  # that of eigenpairs is compressed
    alone = Plan(spec_with({"hessian": {"images": 50}}), "f" * 32)
    disk = found.disk - estimate(alone, DIGITS, lambda _tasks, _facts: costs).disk
    assert disk == 8 * 3 * 20 * cost.NODE_BYTES


# ---- commands -----------------------------------------------------------------------------------------------


def test_a_run_that_is_asked_for_it_later_measures_nothing_else_again(tmp_path: Path) -> None:
    fast = {"connectivity": "", "cka": "", "ensemble": ""}
    plain = command.edited(tmp_path, "plain.toml", **fast)
    done = command.run(tmp_path, "run", plain, "--out", "out")
    assert done.code == 0, done.err
    before = command.steps_done(tmp_path / "out" / "store")
    asked = command.edited(tmp_path, **fast | {"cka": "density = { images = 50, probes = 3, steps = 10 }"})
    told = command.run(tmp_path, "plan", asked)
    assert told.code == 0, told.err
    assert "8 hessian, 8 density" in told.out
    done = command.run(tmp_path, "run", asked, "--out", "out")
    assert done.code == 0, done.err
    assert " 8 of 40 steps to do" in done.err
    after = command.steps_done(tmp_path / "out" / "store")
    assert {key: after[key] for key in before} == before
    assert sorted(key.split("/")[0] for key in after.keys() - before.keys()) == ["density"] * 8
    for record in (tmp_path / "out" / "store" / "density").glob("??/*/result.json"):
        assert record.stat().st_size == pytest.approx(3 * 10 * cost.NODE_BYTES, rel=0.4)  # and the shares
    state = command.status(tmp_path, tmp_path / "out")
    assert state["steps"]["density"] == {"done": 8, "total": 8, "status": {"ok": 8}}
    for call in (["verify", "out"], ["phases", "out"], ["figures", "out", "--out", "f"], ["report", "out"]):
        done = command.run(tmp_path, *call)
        assert done.code == 0, (call, done.err)
    tree = results.load(tmp_path / "out" / "results.nc")
    weights = tree["densities"]["ritz_weight"]
    assert weights.sizes == {"width": 2, "batch_size": 2, "seed": 2, "probe": 3, "node": 10}
    np.testing.assert_allclose(weights.sum("node"), 1, atol=1e-12)
    assert f'"densities":{{"bins":{BINS}}}' in (tmp_path / "report.html").read_text()


# ---- report -------------------------------------------------------------------------------------------------


def quadrature(values: torch.Tensor, **options: Any) -> tuple[Density, np.ndarray, np.ndarray]:
    """A density, and its Ritz values and weights as the results hold them: NaN after the last node."""
    found = density(from_matrix(torch.diag(values.double())), seed=3, **options)
    padded = np.full((2, len(found.ritz), max(map(len, found.ritz)) + 1), np.nan)
    for p, (ritz, weights) in enumerate(zip(found.ritz, found.weights, strict=True)):
        padded[0, p, : len(ritz)], padded[1, p, : len(ritz)] = ritz, weights
    return found, padded[0], padded[1]


@pytest.mark.parametrize(
    "values",
    [
        torch.cat([-torch.logspace(-6, 0, 40), torch.logspace(-6, 2, 100)]),
        torch.cat([torch.full((30,), -1.0), torch.full((10,), 3.0)]),
        torch.linspace(1, 5, 50),
        torch.zeros(6),
        torch.full((6,), -2.0),
    ],
    ids=["both signs", "two points", "one sign", "zero", "one eigenvalue"],
)
@pytest.mark.parametrize("bins", [1, 7, 61])  # odd: a single eigenvalue lies on no edge
def test_the_bins_of_one_model_are_those_of_the_library(values: torch.Tensor, bins: int) -> None:
    found, ritz, weights = quadrature(values, probes=4, steps=15)
    edges, shares, errors = histograms(ritz[None], weights[None], bins)
    expected = found.histogram(bins)
    np.testing.assert_allclose(edges, expected.edges, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(shares[0], expected.share, rtol=0, atol=1e-12)
    np.testing.assert_allclose(errors[0], expected.stderr, rtol=0, atol=1e-12)


def test_models_share_the_bins_and_one_without_a_density_has_none() -> None:
    first, ritz, weights = quadrature(torch.linspace(-1, 3, 60), probes=4, steps=15)
    second, other, other_weights = quadrature(torch.linspace(-4, 2, 60), probes=4, steps=15)
    none = np.full_like(ritz, np.nan)
    edges, shares, errors = histograms(np.stack([ritz, none, other]), np.stack([weights, none, other_weights]), 20)
    assert (edges[0], edges[-1]) == (second.smallest.value, first.largest.value)
    for k, found in ((0, first), (2, second)):
        expected = found.histogram(torch.from_numpy(edges))
        np.testing.assert_allclose(shares[k], expected.share, rtol=0, atol=1e-12)
        np.testing.assert_allclose(errors[k], expected.stderr, rtol=0, atol=1e-12)
    assert np.isnan(shares[1]).all()
    assert np.isnan(errors[1]).all()
    assert all(np.isnan(each).all() for each in histograms(none[None], none[None], 20))


SIGNS = '#story table:has(thead th:text-is("surely negative"))'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def without(tree: xr.DataTree, **at: int) -> xr.DataTree:
    """The results without the densities at a place."""
    found = tree["densities"].to_dataset()
    here = xr.ones_like(found["ritz_value"], dtype=bool)
    for name, value in at.items():
        here = here & (found[name] == value)
    tree["densities"] = xr.DataTree(found.where(~here))
    return tree


@pytest.mark.parametrize("width", [1440, 390])
def test_the_story_of_a_cell_draws_the_density_of_its_seeds(browser: Any, tmp_path: Path, width: int) -> None:
    tree = without(without(full(), width=8, batch_size=64, seed=1), width=2, batch_size=16)
    path = tmp_path / "report.html"
    path.write_text(report.of_grid(tree, phases.label(tree)))
    cell = tree["densities"].to_dataset().sel(width=8, batch_size=64)
    dims = ("seed", "probe", "node")
    ritz, weights = (cell[f"ritz_{name}"].transpose(*dims).values for name in ("value", "weight"))
    edges, shares, errors = histograms(ritz, weights, BINS)
    with opened(browser, path, width=width) as page:
        page.get_by_role("gridcell", name=re.compile("width 8, batch size 64: Phase")).click()
        figure = "density-width 8-batch size 64"
        page.locator(f'[data-figure="{figure}"]').scroll_into_view_if_needed()
        page.wait_for_selector(f'[data-figure="{figure}"] [data-drawn] .scatterlayer .trace')
        assert page.locator(f'[data-figure="{figure}"] .legend .traces').count() == 2
        assert page.locator(f'[data-figure="{figure}"] .errorbar').count() > 20
        assert page.locator(f'[data-figure="{figure}"] .shapelayer path').count() == 1  # at 0, between both signs
        signs = page.locator(SIGNS).locator("tbody tr")
        assert [row.locator("td").first.inner_text() for row in signs.all()] == ["seed 0", "seed 2"]
        noise = float(tree["models"]["negative_share"].sel(width=8, batch_size=64, seed=2))
        assert signs.nth(1).locator("td").nth(1).inner_text() == f"{noise:.4f} ± 0.0040"
        rows = list(csv.DictReader(io.StringIO(downloaded(page, figure, "CSV").decode())))
        assert list(rows[0]) == ["bin_left", "bin_right", "seed 0", "seed 0_se", "seed 2", "seed 2_se"]
        assert [float(row["bin_left"]) for row in rows] == edges[:-1].tolist()
        assert float(rows[-1]["bin_right"]) == edges[-1]
        for seed in (0, 2):
            assert [float(row[f"seed {seed}"]) for row in rows] == shares[seed].astype("f4").tolist()
            assert [float(row[f"seed {seed}_se"]) for row in rows] == errors[seed].astype("f4").tolist()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.keyboard.press("Escape")
        page.get_by_role("gridcell", name=re.compile("width 2, batch size 16: Phase")).click()
        assert page.locator('#story [data-figure^="density"]').count() == 0
        assert page.locator(SIGNS).count() == 0


def test_of_one_seed_there_are_bars(browser: Any, tmp_path: Path) -> None:
    tree = full(n_seeds=1)
    (tmp_path / "one.html").write_text(report.of_grid(tree, phases.label(tree)))
    with opened(browser, tmp_path / "one.html") as page:
        page.locator("#phases [data-cell]").first.click()
        page.locator('#story [data-figure^="density"]').scroll_into_view_if_needed()
        page.wait_for_selector('#story [data-figure^="density"] [data-drawn] .bars .point')


def test_results_without_densities_have_no_chart_of_them() -> None:
    tree = full()
    del tree["densities"]
    assert '"densities":{"bins":0}' in report.of_grid(tree, phases.label(tree)).replace(" ", "")

"""What a plan costs: predictions that follow the sizes, few probes of many models, refusals before the work."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command import TINY
from lossatlas import specs
from lossatlas.cli import running
from lossatlas.cli.running import Prepared, check_memory, machine_memory, prepare
from lossatlas.errors import UserError
from lossatlas.registry import Facts
from lossatlas.sweep import cost
from lossatlas.sweep.cost import Estimate, ModelCost, estimate
from lossatlas.sweep.plan import Plan
from lossatlas.sweep.remaining import remaining
from lossatlas.sweep.run import saved_plan
from lossatlas.sweep.store import Record, Store
from lossatlas.tasks import data

DIGITS = Facts(n_train=1437, n_test=360, input_shape=(1, 8, 8), classes=10)


def tiny(**changes: Any) -> Plan:
    return Plan(specs.validate({**tomllib.loads(TINY.read_text()), **changes}, "tiny"), "f" * 32)


def test_a_model_between_two_probed_ones_costs_a_power_of_its_size() -> None:
    def law(p: int) -> ModelCost:
        return ModelCost(3e-5 * p**0.25, 2e-6 * p**0.75, p, 40.0 * p**0.5)

    known = [law(100), law(10_000)]
    for size in (100, 300, 2000, 10_000):
        found, expected = cost._between(known, size), law(size)
        assert found.parameters == size
        for name in ("fixed", "per_sample", "activations"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9)
    # nothing is known there: in proportion, which is too much rather than too little
    beyond = cost._between(known, 30_000)
    assert beyond.per_sample == pytest.approx(3 * law(10_000).per_sample)
    assert cost._between([replace(law(100), fixed=0.0)], 100).fixed < 1e-9  # a cost that was too small to be seen


def test_of_many_models_few_are_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    probed = []
    original = cost.probe

    def counted(task: specs.Task, facts: Facts) -> ModelCost:
        probed.append(task.model.options["width"])
        return original(task, facts)

    monkeypatch.setattr(cost, "probe", counted)
    monkeypatch.setattr(cost, "PROBE_SECONDS", 1e9)
    many = tiny(load={"width": list(range(1, 301))})
    found = estimate(many, DIGITS)
    assert len(probed) == cost.PROBED
    assert probed == sorted(probed)
    assert (probed[0], probed[-1]) == (1, 300)
    assert found.seconds.shape == (600, 9)
    assert (found.seconds > 0).all()
    assert (np.diff(found.memories.reshape(300, 2)[:, 0]) > 0).all()  # wider, larger


def test_memory_counts_data_activations_graphs_and_basis() -> None:
    measured = specs.validate(tomllib.loads(TINY.read_text()), "tiny").measures.hessian
    assert measured is not None
    (task, train) = tiny().task((2, 64)), tiny().train((2, 64))
    model = ModelCost(0.0, 1e-6, 1000, 5000.0)
    # as they are, then as float32: of 200 samples two, and the test part
    images = 1797 * 64 + 4 * 64 * (2 * 200 + 360)
    without = cost._memory([None], task, train, model, DIGITS, 2)
    outputs = 4 * 10 * (200 + 360)  # of each seed
    assert without == cost.PROCESS + images + cost.VECTORS * 4 * 1000 + 2 * outputs + 64 * 5000
    assert cost._memory([None], task, train, model, DIGITS, 5) == without + 3 * (2 * 4 * 1000 + outputs)
    graphs = cost.KEPT_GRAPH * 50 * 5000 + cost.MATVECS * 4 * 1000
    assert cost._memory([None, measured], task, train, model, DIGITS, 2) == without - 64 * 5000 + graphs
    huge = replace(model, activations=1e9)
    assert cost._memory([measured], task, train, huge, DIGITS, 2) == pytest.approx(64e9, rel=0.05)  # the batch


def test_disk_counts_the_curves() -> None:
    def disk(**connectivity: Any) -> float:
        measures = {"connectivity": {"pairs": "all", **connectivity}} if connectivity else {}
        plan = tiny(seeds=[0, 1, 2], load={"width": [2]}, temperature={"batch_size": [64]}, measures=measures)
        return estimate(
            plan, DIGITS, lambda tasks, _facts: dict.fromkeys(tasks, ModelCost(0, 1e-6, 1000, 1.0))
        ).disk

    assert disk(bends=2) - disk() == 3 * 2 * 4 * 1000  # three pairs, two bends each


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """A run of four cells that need 1, 2, 3 and 4 GB."""
    planned = tiny()
    seconds = np.ones((4, len(planned.kinds())))
    predicted = Estimate(tuple(planned.counts()), seconds, 0, 1e9 * np.arange(1.0, 5.0))
    left = remaining(planned, Store(tmp_path), seconds)
    return Prepared(None, None, False, planned, predicted, left, set())  # type: ignore[arg-type]


def test_what_cannot_fit_is_refused(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(have: float, workers: int) -> str:
        monkeypatch.setattr(running, "machine_memory", lambda: int(have))
        try:
            check_memory(prepared, workers)
        except UserError as error:
            return str(error)
        return ""

    assert refusal(10e9, 4) == refusal(10e9, 100) == ""  # 1 + 2 + 3 + 4, however many workers there are
    assert refusal(9.5e9, 3) == ""
    assert "4 workers of this run need about 10 GB of memory" in refusal(9.5e9, 4)
    assert "this machine has 9.5 GB. Give --workers 3." in refusal(9.5e9, 4)
    assert refusal(4e9, 1) == ""
    told = refusal(3.9e9, 1)
    assert told.startswith(
        "The cell width 4, batch_size 64 needs about 4.0 GB of memory, and this machine has 3.9 GB"
    )
    assert refusal(3.9e9, 2) == told  # the cell is the trouble, not the number of workers


def test_cells_that_are_done_need_no_memory(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "machine_memory", lambda: int(2e9))
    missing = prepared.left.missing.copy()
    missing[2:] = 0
    check_memory(replace(prepared, left=replace(prepared.left, missing=missing)), 1)
    missing[:] = 0
    monkeypatch.setattr(running, "machine_memory", lambda: 1)
    check_memory(replace(prepared, left=replace(prepared.left, missing=missing)), 1)


def test_this_machine_has_memory() -> None:
    assert 1e8 < machine_memory() < 1e15


def test_a_run_that_goes_on_predicts_from_what_it_measured(tmp_path: Path) -> None:
    spec = tiny().spec
    known, store = Plan(spec, data.load("digits", None).fingerprint()), Store(tmp_path / "store")
    for cell in known[:2]:  # of width 2
        for step in cell.steps[:2]:
            assert step.name == "train"
            meta = {"seconds": 1000.0, "started": 0.0}
            store.commit("train", step.content, Record({}, "ok", ""), meta=meta)
    found = prepare(spec, tmp_path, None)
    others = found.predicted.seconds[:, 1:].sum() * 2
    assert found.predicted.seconds[:2, 0] == pytest.approx([1000.0] * 2, rel=0.9)  # as far apart as was predicted
    assert found.predicted.seconds[:2, 0].mean() == pytest.approx(1000.0)
    assert found.left.seconds == pytest.approx(2 * found.predicted.seconds[2:, 0].sum(), abs=others)
    assert found.left.seconds > 100.0 > others
    np.testing.assert_allclose(saved_plan(tmp_path).seconds, found.predicted.seconds, atol=1e-4)  # for the workers

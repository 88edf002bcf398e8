"""The worker in this process: what it leaves as it was, what it does again, what it does not."""

import json
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from command import TINY
from lossatlas import phases, specs, summary
from lossatlas.errors import FileError, UserError
from lossatlas.files import Damaged
from lossatlas.landscape.checkpoints import State, Stopped
from lossatlas.sweep.collect import collect
from lossatlas.sweep.plan import CellPlan, Plan, Step
from lossatlas.sweep.store import Store
from lossatlas.sweep.unfinished import Unfinished, packed, unpacked
from lossatlas.sweep.worker import Worker
from lossatlas.tasks import data
from lossatlas.tasks.corruption import corrupted
from lossatlas.tasks.data import RawData


@dataclass
class Heard:
    """What the worker told."""

    done: list[tuple[str, str]] = field(default_factory=list)
    left: int = 0
    fractions: list[float] = field(default_factory=list)

    def begins(self, step: Step) -> None:
        pass

    def finished(self, step: Step, status: str) -> None:
        self.done.append((step.name, status))

    def skipped(self, _step: Step) -> None:
        self.left += 1

    def advanced(self, _step: Step, epoch: int, epochs: int, _loss: float) -> None:
        self.fractions.append(epoch / epochs)


@pytest.fixture(scope="module")
def raw() -> RawData:
    return data.load("digits", None)


def one_cell(raw: RawData, *without: str, **train: Any) -> tuple[specs.Spec, list[CellPlan]]:
    """The first cell of the tiny spec."""
    content = tomllib.loads(TINY.read_text())
    content["load"], content["temperature"] = {"width": [2]}, {"batch_size": [64]}
    content["train"] |= train
    for name in without:
        del content["measures"][name]
    spec = specs.validate(content, "tiny")
    return spec, Plan(spec, raw.fingerprint())


def work(
    folder: Path, raw: RawData, cells: Sequence[CellPlan], weights: str = "best", **options: Any
) -> tuple[Heard, dict[str, str]]:
    heard = Heard()
    worker = Worker(Store(folder / "store"), raw, weights, folder / "failed", heard, **options)
    return heard, worker.run(cells)


def test_the_worker_leaves_threads_and_random_state_as_they_were(raw: RawData, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  # the global state is what is looked at
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    try:
        heard, failures = work(tmp_path, raw, one_cell(raw)[1])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002
    assert failures == {}
    assert heard.done == [
        (name, "ok")
        for name in ["train"] * 2
        + ["evaluation"] * 2
        + ["hessian"] * 2
        + ["curve", "connectivity", "cka", "distance", "disagreement", "ensemble"]
    ]
    assert heard.fractions == [k / 8 for k in range(1, 9)] * 2 + [
        0.5,
        1.0,
    ]  # epochs of the trainings and of the curve


def test_values_do_not_hang_on_the_measures_beside_them(raw: RawData, tmp_path: Path) -> None:
    for name, without in (("all", ()), ("few", ("hessian", "connectivity", "distance", "ensemble"))):
        _, cells = one_cell(raw, *without)
        work(tmp_path / name, raw, cells)
    everything, few = Store(tmp_path / "all" / "store"), Store(tmp_path / "few" / "store")
    for step in cells[0].steps:
        assert few.read(step.name, step.key) == everything.read(step.name, step.key) is not None


def test_the_weights_asked_for_are_measured(raw: RawData, tmp_path: Path) -> None:
    found = {}
    for weights in ("best", "early-stopped", "final"):
        spec, cells = one_cell(raw, "hessian", "connectivity", optimizer={"lr": 1.0}, epochs=8)
        spec = spec.model_copy(update={"weights": weights})
        cells = Plan(spec, raw.fingerprint())
        heard, _ = work(tmp_path, raw, cells, weights)
        found[weights] = [
            Store(tmp_path / "store").read(s.name, s.key) for s in cells[0].steps if s.name == "evaluation"
        ]
        assert heard.left == (0 if weights == "best" else 2)  # the trainings
    assert found["early-stopped"] == found["best"]  # the rule did not come true: it falls back
    assert found["final"] != found["best"]


def test_weights_of_the_early_stop_that_were_lost_are_made_again(raw: RawData, tmp_path: Path) -> None:
    rule = {"tolerance": 10.0, "patience": 1, "start": 2}  # nats: comes true at once
    spec, cells = one_cell(raw, "hessian", "connectivity", early_stop=rule)
    spec = spec.model_copy(update={"weights": "early-stopped"})
    cells = Plan(spec, raw.fingerprint())
    found = []
    for name in ("whole", "lost"):
        store = Store(tmp_path / name / "store")
        step = cells[0].steps[0]
        if name == "lost":
            shutil.copytree(tmp_path / "whole", tmp_path / "lost")
            (store.folder("train", step.key) / "early-stopped.safetensors").unlink()
            shutil.rmtree(tmp_path / "lost" / "store" / "evaluation")
        work(tmp_path / name, raw, cells, "early-stopped")
        assert (store.folder("train", step.key) / "early-stopped.safetensors").is_file()
        found.append([store.read(s.name, s.key) for s in cells[0].steps if s.name == "evaluation"])
    assert found[0] == found[1]


def test_what_a_failed_step_is_needed_for_is_left_out(
    raw: RawData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lossatlas.landscape import curve_fitting, similarity

    calls = []

    def broken(*_arguments: Any, **_options: Any) -> None:
        calls.append(1)
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(curve_fitting, "fit", broken)
    spec, cells = one_cell(raw)
    heard, failures = work(tmp_path, raw, cells)
    curve, connectivity = (s.key for s in cells[0].steps if s.name in ("curve", "connectivity"))
    assert len(calls) == 1  # connectivity did not try again
    assert failures.keys() == {curve, connectivity}
    assert "curve of cell (2, 64), seeds [0, 1]: ZeroDivisionError: a mistake" in failures[curve]
    assert {name for name, _ in heard.done} == {s.name for s in cells[0].steps} - {"curve", "connectivity"}
    tree = collect(spec, cells, Store(tmp_path / "store"), fingerprint="", failures=failures)
    pair = tree["pairs"].to_dataset().isel(width=0, batch_size=0).sel(seed=0, seed_b=1)
    assert pair["status"] == "failed"
    assert pair["reason"].item().startswith("curve, connectivity: curve of cell (2, 64)")
    assert np.isfinite(pair["cka"])
    assert np.isnan(pair["mode_connectivity"])
    monkeypatch.undo()
    monkeypatch.setattr(similarity, "cka", broken)  # is not called: it is done
    again, failures = work(tmp_path, raw, cells)
    assert failures == {}
    assert [name for name, _ in again.done] == ["curve", "connectivity"]


def test_a_mistake_in_a_step_is_noted_and_the_work_goes_on(
    raw: RawData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lossatlas.landscape import similarity

    def refuse(*_arguments: Any) -> None:
        raise UserError("not like this")

    monkeypatch.setattr(similarity, "distance", refuse)
    _, cells = one_cell(raw, "hessian", "connectivity")
    _, failures = work(tmp_path, raw, cells)
    (reason,) = failures.values()
    assert reason.startswith("distance of cell")
    assert reason.endswith("not like this")
    done = {path.parent.parent.parent.name for path in (tmp_path / "store").rglob("result.json")}
    assert done == {"train", "evaluation", "cka", "disagreement", "ensemble"}


def test_what_cannot_be_written_ends_the_work(
    raw: RawData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lossatlas.landscape import similarity

    def full(*_arguments: Any) -> None:
        raise FileError("the disk is full")

    monkeypatch.setattr(similarity, "distance", full)
    _, cells = one_cell(raw, "hessian", "connectivity")
    with pytest.raises(FileError, match="the disk is full"):
        work(tmp_path, raw, cells)
    done = {path.parent.parent.parent.name for path in (tmp_path / "store").rglob("result.json")}
    assert done == {"train", "evaluation", "cka"}  # what came before is kept


def test_a_collapsed_model_is_a_status(raw: RawData, tmp_path: Path) -> None:
    # A rate that kills every ReLU, or throws the weights about, without overflow: no better than guessing.
    spec, cells = one_cell(raw, "hessian", "connectivity", optimizer={"lr": 300.0}, epochs=1)
    work(tmp_path, raw, cells)
    tree = collect(spec, cells, Store(tmp_path / "store"), fingerprint="", failures={})
    models = tree["models"].to_dataset()
    labels = np.bincount(corrupted(raw, cells[0].task.data).train_targets)
    guessing = 100 * (1 - labels.max() / labels.sum())  # the largest class, everywhere
    collapsed = models["train_error"] >= guessing
    assert collapsed.any()
    assert (models["status"].where(collapsed, "collapsed") == "collapsed").all()
    reason = models["reason"].where(collapsed, drop=True).values.ravel()[0]
    assert f"no better than a constant prediction ({guessing:.4g}%)" in reason


def test_a_measure_that_fails_leaves_the_other_values_of_its_model(
    raw: RawData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lossatlas.landscape import lanczos

    def broken(*_arguments: Any, **_options: Any) -> None:
        raise ZeroDivisionError("no second derivative")

    monkeypatch.setattr(lanczos, "eigenpairs", broken)
    spec, cells = one_cell(raw, "connectivity")
    _, failures = work(tmp_path, raw, cells)
    tree = collect(spec, cells, Store(tmp_path / "store"), fingerprint="", failures=failures)
    assert set(tree["models"]["status"].values.ravel()) == {"partial"}
    assert "hessian: hessian of cell" in tree["models"]["reason"].values.ravel()[0]
    cell = summary.cells(tree).isel(width=0, batch_size=0)
    errors = tree["models"]["test_error"].values
    assert cell["test_accuracy"].item() == 100 - errors.mean()
    assert cell["cka"].item() == tree["pairs"]["cka"].max().item()  # of the only pair
    assert (cell["n_ok"].item(), cell["status"].item()) == (2, "partial")
    assert np.isnan(cell["ln_hessian_trace"].item())
    phase = phases.label(tree).isel(width=0, batch_size=0)
    assert phase["phase"].item() == ""
    assert "no phase without ln_trace, mode_connectivity" in phase["reason"].item()


# ---- stopped and continued ----------------------------------------------------------------------------------


@dataclass
class Countdown:
    """A stop that is asked for once it was looked at so often: before every step and after every batch."""

    left: int

    @property
    def asked(self) -> bool:
        self.left -= 1
        return self.left < 0


def small(raw: RawData) -> list[CellPlan]:
    """One cell, two trainings of 6 batches and a curve of 4: 22 looks at the stop."""
    return one_cell(raw, "hessian", "cka", "distance", "disagreement", "ensemble", epochs=2)[1]


def results_of(folder: Path) -> dict[str, bytes]:
    """All that is in the store's steps except how and when it was made."""
    files = {
        p.relative_to(folder): p for p in folder.glob("*/??/*/*") if p.name not in ("meta.json", "SHA256SUMS")
    }
    return {str(name): path.read_bytes() for name, path in files.items()}


def stopped(folder: Path, raw: RawData, cells: Sequence[CellPlan], looks: int) -> bool:
    """Whether a worker that is stopped after so many looks leaves, rather than end."""
    try:
        work(folder, raw, cells, stop=Countdown(looks))
    except Stopped:
        return True
    return False


@pytest.fixture(scope="module")
def undisturbed(raw: RawData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    work(folder, raw, small(raw))
    return results_of(folder / "store")


@pytest.mark.parametrize("looks", [0, 1, 4, 8, 15, 17, 20, 21])
def test_work_that_was_stopped_goes_on_with_the_same_bits(
    looks: int, raw: RawData, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    store, cells = tmp_path / "store", small(raw)
    stops = 0
    while stopped(tmp_path, raw, cells, looks if stops < 3 else 10**9):
        stops += 1
        assert len(list((store / "unfinished").glob("*"))) <= 1  # the step in hand, if it is one
    assert stops >= 1
    assert results_of(store) == undisturbed
    assert not list((store / "unfinished").glob("*"))
    assert not (store / "damaged").exists()
    assert not (tmp_path / "failed").exists()  # to be stopped is no failure


def test_the_step_in_hand_tells_its_stops_and_all_its_time(raw: RawData, tmp_path: Path) -> None:
    cells = small(raw)
    assert stopped(tmp_path, raw, cells, 5)
    key = cells[0].steps[0].key
    assert [p.name for p in (tmp_path / "store" / "unfinished").iterdir()] == [f"train-{key}.safetensors"]
    work(tmp_path, raw, cells)
    meta = json.loads((Store(tmp_path / "store").folder("train", key) / "meta.json").read_text())
    assert meta["stops"] == 1
    other = json.loads(
        (Store(tmp_path / "store").folder("train", cells[0].steps[1].key) / "meta.json").read_text()
    )
    assert other["stops"] == 0


def test_checkpoints_by_wall_time_change_nothing(
    raw: RawData, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves = []
    original = Unfinished.save

    def counted(self: Unfinished, state: State) -> None:
        original(self, state)
        assert self.store.unfinished(self.step, self.key).is_file()
        saves.append(self.step)

    monkeypatch.setattr(Unfinished, "save", counted)
    work(tmp_path, raw, small(raw), interval=0.0)
    assert saves == ["train"] * 2 * 6 + ["curve"] * 4  # after every batch
    assert results_of(tmp_path / "store") == undisturbed
    assert not list((tmp_path / "store" / "unfinished").iterdir())


@pytest.mark.parametrize("damage", ["cut", "bit", "sum", "empty", "of another step", "format"])
def test_a_checkpoint_that_cannot_be_trusted_is_set_aside_and_the_step_begun_anew(
    damage: str, raw: RawData, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    cells, store = small(raw), Store(tmp_path / "store")
    assert stopped(tmp_path, raw, cells, 5)
    (path,) = (store.root / "unfinished").iterdir()
    content = path.read_bytes()
    state, about = unpacked(content, "train", cells[0].steps[0].key)
    if damage == "of another step":  # whole, but under this name
        about["key"] = cells[0].steps[1].key
        content = packed(state, about)
    elif damage == "format":
        content = content.replace(b'\\"format\\": 1', b'\\"format\\": 2')
    elif damage == "sum":
        where = content.index(b'"sha256":"') + 12
        content = content[:where] + (b"0" if content[where : where + 1] != b"0" else b"1") + content[where + 1 :]
    else:
        content = {"cut": content[:-1], "bit": content[:-1] + bytes([content[-1] ^ 1]), "empty": b""}[damage]
    assert content != path.read_bytes()
    path.write_bytes(content)
    worker = Worker(store, raw, "best", tmp_path / "failed", Heard())
    assert worker.run(cells) == {}
    (aside,) = store.damaged  # named
    assert aside.name.startswith(f"unfinished-train-{cells[0].steps[0].key}")
    assert aside.read_bytes() == content
    assert results_of(store.root) == undisturbed
    meta = json.loads((store.folder("train", cells[0].steps[0].key) / "meta.json").read_text())
    assert meta["stops"] == 0


def test_any_flipped_bit_of_a_checkpoint_is_found() -> None:
    generator = np.random.default_rng(0)
    state = State({"a": torch.arange(5.0), "b/c": torch.zeros((), dtype=torch.int64)}, {"history": [0.1, 1 / 3]})
    content = packed(state, {"step": "train", "key": "k", "seconds": 1.5})
    found, about = unpacked(content, "train", "k")
    assert {name: t.tolist() for name, t in found.tensors.items()} == {"a": [0, 1, 2, 3, 4], "b/c": 0}
    assert (found.numbers, about["seconds"]) == ({"history": [0.1, 1 / 3]}, 1.5)
    for where in range(len(content)):
        flipped = bytearray(content)
        flipped[where] ^= 1 << generator.integers(8)
        with pytest.raises(Damaged):
            unpacked(bytes(flipped), "train", "k")
    for step, key in (("curve", "k"), ("train", "l")):
        with pytest.raises(Damaged):
            unpacked(content, step, key)


def test_a_checkpoint_of_another_recipe_or_device_is_not_used(
    raw: RawData, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    longer = one_cell(raw, "hessian", "cka", "distance", "disagreement", "ensemble", epochs=3)[1]
    assert stopped(tmp_path, raw, longer, 5)
    (path,) = (tmp_path / "store" / "unfinished").iterdir()
    before = path.read_bytes()
    cells = small(raw)
    work(tmp_path, raw, cells)
    assert results_of(tmp_path / "store") == undisturbed
    assert path.read_bytes() == before  # it waits for its own recipe
    key = longer[0].steps[0].key
    store = Store(tmp_path / "store")
    assert Unfinished(store, "train", key, torch.device("cpu")).load() is not None
    assert Unfinished(store, "train", key, torch.device("cuda")).load() is None


def test_a_checkpoint_of_a_model_that_has_changed_is_set_aside(
    raw: RawData, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    cells, store = small(raw), Store(tmp_path / "store")
    assert stopped(tmp_path, raw, cells, 5)
    (path,) = (store.root / "unfinished").iterdir()
    state, about = unpacked(path.read_bytes(), "train", cells[0].steps[0].key)
    path.write_bytes(packed(State({**state.tensors, "velocity": torch.zeros(3)}, state.numbers), about))
    assert Worker(store, raw, "best", tmp_path / "failed", Heard()).run(cells) == {}
    assert len(store.damaged) == 1
    assert results_of(store.root) == undisturbed

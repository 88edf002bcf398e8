"""Whole runs: the same numbers whatever happens in between, nothing lost, nothing done twice."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import command
from command import TINY, Running
from lossatlas import figures, results, summary
from lossatlas.cli.explore import draw, labelled

STEPS = 48  # 4 cells of 2 models, 2 measures of each, 5 of their pair and 1 of the cell


def assert_identical(a: xr.DataTree, b: xr.DataTree) -> None:
    """Every variable of every group, bit for bit, NaN in the same places."""
    assert sorted(a.groups) == sorted(b.groups)
    for name in a.groups:
        one, other = a[name].to_dataset(), b[name].to_dataset()
        assert set(one.variables) == set(other.variables), name
        for variable in one.variables:
            x, y = one[variable].values, other[variable].values
            assert x.shape == y.shape
            assert x.dtype == y.dtype
            same = x.tobytes() == y.tobytes() if x.dtype.kind == "f" else np.array_equal(x, y)
            assert same, f"{name}/{variable} differs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Path:
    """A run of the tiny spec from start to end, by the installed command; other tests must not change it."""
    executable = Path(sys.executable).with_name("lossatlas")
    arguments = [executable, "run", TINY, "--out", folder / "undisturbed"]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"figure: {folder}/undisturbed/figures/phase_map.png"
    assert (folder / "undisturbed" / "figures" / "phase_map.png").stat().st_size > 1000
    return folder / "undisturbed"


@pytest.fixture
def copy(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(undisturbed, tmp_path / "copy"))


def test_a_run_measures_everything(undisturbed: Path) -> None:
    tree = results.load(undisturbed / "results.nc")
    assert set(tree.children) == {"models", "pairs", "curves", "history", "cells", "phases"}
    models, pairs = tree["models"].to_dataset(), tree["pairs"].to_dataset()
    assert models["train_loss"].dims == ("width", "batch_size", "seed")
    assert (models["status"] == "ok").all()
    for name, variable in models.data_vars.items():
        if variable.dtype.kind == "f" and name != "early_stopped_epoch":  # the rule needs 30 epochs
            assert np.isfinite(variable).all(), name
    upper = pairs["cka"].transpose("seed", "seed_b", ...).values
    assert np.isfinite(upper[0, 1]).all()
    assert np.isnan(upper[1, 0]).all()
    assert np.isnan(upper[0, 0]).all()
    assert tree["curves"]["train_error"].sizes["t"] == 5
    assert np.isfinite(tree["cells"]["ensemble_error"]).all()
    assert tree.attrs["schema_version"] == results.SCHEMA_VERSION
    assert not (undisturbed / "failed").exists()


def test_a_run_says_that_nothing_was_learnt(tmp_path: Path) -> None:
    hot = ["train.optimizer.lr=300", "train.epochs=1", "seeds=[0]", "measures={}", "load.width=[2]"]
    done = command.run(tmp_path, "run", TINY, "--out", "run", *(word for each in hot for word in ("--set", each)))
    assert done.code == 0  # a status is data
    assert "No model has learnt anything, so there is nothing to map." in done.err


def test_two_runs_in_two_folders_give_the_same_bits(undisturbed: Path, folder: Path, tmp_path: Path) -> None:
    done = command.run(tmp_path, "run", TINY, "--out", "again", "--store", "elsewhere")
    assert done.code == 0, done.err
    assert not (tmp_path / "again" / "store").exists()
    assert_identical(results.load(undisturbed / "results.nc"), results.load(tmp_path / "again" / "results.nc"))
    # And the files of the store, but for when they were made: weights, values, keys.
    for path in sorted((undisturbed / "store").rglob("*.*")):
        if path.is_file() and path.name != "meta.json":
            other = tmp_path / "elsewhere" / path.relative_to(undisturbed / "store")
            assert path.read_bytes() == other.read_bytes(), path


def test_finished_work_is_not_done_again(copy: Path, tmp_path: Path) -> None:
    before = command.steps_done(copy / "store")
    assert len(before) == STEPS
    done = command.run(tmp_path, "run", copy)
    assert done.code == 0, done.err
    assert f"0 of {STEPS} steps to do" in done.err
    assert command.steps_done(copy / "store") == before


def test_killed_at_ten_moments_a_run_gives_the_same_values(undisturbed: Path, tmp_path: Path) -> None:
    moments = random.Random(0)
    out = tmp_path / "killed"
    kills, counts = 0, []
    while kills < 10:
        running = Running(tmp_path, ["run", TINY, "--out", out], cwd=tmp_path)
        if kills % 3 == 0:  # soon after the first file; else in the midst of the steps
            running.wait_for(out.exists)
            time.sleep(moments.uniform(0, 0.03))
        else:
            running.wait_for(lambda r=running: "steps to do" in r.err)
            time.sleep(moments.uniform(0, 0.25))
        running.process.kill()
        running.process.join()
        kills += 1
        counts.append(len(command.steps_done(out / "store")))
    assert counts == sorted(counts)  # nothing is lost by a kill
    assert counts[-1] > 0
    assert counts[3] < STEPS  # or nothing was disturbed
    before = command.steps_done(out / "store")
    done = command.run(tmp_path, "run", out)
    assert done.code == 0, done.err
    after = command.steps_done(out / "store")
    assert {key: after[key] for key in before} == before  # nothing is done twice
    assert_identical(results.load(undisturbed / "results.nc"), results.load(out / "results.nc"))
    assert not list(tmp_path.rglob(".tmp-*"))  # what the dead had left is gone


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_so_and_continues(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    running = Running(tmp_path, ["run", TINY, "--out", out], cwd=tmp_path)
    running.wait_for(lambda: len(command.steps_done(out / "store")) > 2)
    assert running.process.pid is not None
    os.kill(running.process.pid, sent)
    stopped = running.finish()
    assert stopped.code == code
    assert "Traceback" not in stopped.err
    assert f"`lossatlas run {out}` continues" in stopped.err
    assert "\n\n" not in stopped.err.strip()
    assert not list(tmp_path.rglob(".tmp-*"))
    state = command.status(tmp_path, out)
    done = sum(step["done"] for step in state["steps"].values())
    assert 2 < done < STEPS
    assert state["predicted_seconds_left"] > 0


def test_status_tells_how_far_a_run_is(copy: Path, tmp_path: Path) -> None:
    listed = command.run(tmp_path, "status", copy)
    assert listed.code == 0
    rows = [line.split("\t") for line in listed.out.splitlines()]
    assert rows[0] == ["step", "done", "of", "status"]
    assert ["train", "8", "8", "8 ok"] in rows
    assert "48 of 48 steps done (100%)" in listed.err
    shutil.rmtree(copy / "store" / "hessian")
    state = command.status(tmp_path, copy)
    assert state["steps"]["hessian"] == {"done": 0, "total": 8, "status": {}}
    assert state["steps"]["cka"] == {"done": 4, "total": 4, "status": {"ok": 4}}
    assert state["failed"] == []


def test_a_diverging_model_is_data(tmp_path: Path) -> None:
    spec = command.edited(
        tmp_path,
        temperature="temperature = { lr = [0.1, 1e6] }",
        optimizer="batch_size = 16",
        epochs="epochs = 2",
    )
    done = command.run(tmp_path, "run", spec, "--out", "out")
    assert done.code == 0, done.err
    assert "models: 4 diverged, 4 ok" in done.out
    tree = results.load(tmp_path / "out" / "results.nc")
    models, phases = tree["models"].to_dataset(), tree["phases"].to_dataset()
    hot, cold = models.sel(lr=1e6), models.sel(lr=0.1)
    assert (hot["status"] == "diverged").all()
    assert (cold["status"] == "ok").all()
    for epochs, reason in zip(hot["epochs"].values.ravel(), hot["reason"].values.ravel(), strict=True):
        assert f"not finite in epoch {epochs:.0f};" in reason
    assert np.isnan(hot["train_loss"]).all()
    assert np.isfinite(cold["train_loss"]).all()
    assert (phases["phase"].sel(lr=1e6) == "").all()
    assert (phases["phase"].sel(lr=0.1) != "").all()
    assert (tree["pairs"]["status"].sel(lr=1e6, seed=0, seed_b=1) == "diverged").all()
    again = command.run(tmp_path, "run", "out")
    assert "0 of 48 steps to do" in again.err  # a diverged model is a result, not a failure to be tried again


def test_a_grid_on_which_everything_diverges_is_drawn(tmp_path: Path) -> None:
    spec = command.edited(
        tmp_path,
        temperature="temperature = { lr = [1e6, 1e7] }",
        optimizer="batch_size = 16",
        epochs="epochs = 1",
    )
    done = command.run(tmp_path, "run", spec, "--out", "out")
    assert done.code == 0, done.err
    assert "models: 8 diverged" in done.out
    assert "phases: none could be told" in done.out


BROKEN_MODEL = """
import torch
from torch import nn

class Broken(nn.Module):
    # Works on any batch but of 64 samples, which the probe that predicts the costs does not try.
    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Linear(64, classes)

    def forward(self, x):
        if len(x) == 64:
            raise RuntimeError("no batches of 64 here")
        return self.layer(x.flatten(1))

def broken(width, classes):
    return Broken(classes)
"""


def test_a_step_that_raises_is_noted_and_the_sweep_goes_on(tmp_path: Path) -> None:
    (tmp_path / "own_model.py").write_text(BROKEN_MODEL)
    spec = command.edited(tmp_path, model='model = { name = "own_model:broken" }')
    done = command.run(tmp_path, "run", spec, "--out", "out")
    assert done.code == 1
    assert "Traceback" not in done.err
    assert "no batches of 64 here" in done.err
    models = results.load(tmp_path / "out" / "results.nc")["models"].to_dataset()
    assert (models["status"].sel(batch_size=16) == "ok").all()
    assert (models["status"].sel(batch_size=64) == "failed").all()
    assert "no batches of 64 here" in models["reason"].sel(batch_size=64).values.ravel()[0]
    noted = list((tmp_path / "out" / "failed").glob("*.json"))
    assert len(noted) == 4  # the trainings; their measures are left out, not tried
    assert "no batches of 64 here" in noted[0].read_text()
    assert len(command.status(tmp_path, tmp_path / "out")["failed"]) == 4


def test_a_folder_of_another_experiment_is_refused(undisturbed: Path, tmp_path: Path) -> None:
    spec = command.edited(tmp_path, epochs="epochs = 5", data='data = { name = "digits", n_train = 150 }')
    refused = command.run(tmp_path, "run", spec, "--out", undisturbed)
    assert refused.code == 2
    assert "Traceback" not in refused.err
    assert "train.epochs: the folder has 8, the spec 5" in refused.err
    assert "task.data.n_train: the folder has 200, the spec 150" in refused.err
    assert "task.data.label_noise: the folder has 0.1, the spec 0.0" in refused.err


def test_fewer_test_samples_are_the_same_experiment(copy: Path, tmp_path: Path) -> None:
    before = command.steps_done(copy / "store")
    done = command.run(tmp_path, "run", TINY, "--set", "task.data.n_test=50", "--out", copy)
    assert done.code == 0, done.err
    new = command.steps_done(copy / "store").keys() - before.keys()
    assert {key.split("/")[0] for key in new} == {"evaluation", "connectivity", "disagreement", "ensemble"}


def test_a_default_that_is_spelled_out_is_the_same_experiment(
    undisturbed: Path, copy: Path, tmp_path: Path
) -> None:
    spec = command.edited(
        tmp_path,
        model='model = { name = "mlp", depth = 1 }',
        optimizer="optimizer = { lr = 0.1, momentum = 0.9 }",
        schedule='schedule = { name = "step", factor = 0.1 }',
    )
    done = command.run(tmp_path, "run", spec, "--out", copy)
    assert done.code == 0, done.err
    assert f"0 of {STEPS} steps to do" in done.err
    assert "leaves out" not in done.err
    deeper = command.edited(tmp_path, model='model = { name = "mlp", depth = 2 }')
    refused = command.run(tmp_path, "run", deeper, "--out", undisturbed)
    assert refused.code == 2
    assert "has 1 problem:\n  - task.model.depth: the folder has 1, the spec 2\n" in refused.err
    assert refused.err.splitlines()[-1].startswith("Choose another folder with --out")


def test_what_a_narrower_spec_leaves_out_is_said_and_comes_back(
    undisturbed: Path, copy: Path, tmp_path: Path
) -> None:
    narrow = command.edited(tmp_path, seeds="seeds = [0]", load="load = { width = [4] }", cka="")
    done = command.run(tmp_path, "run", narrow, "--out", copy)
    assert done.code == 0, done.err
    assert "leaves out what" in done.err
    assert "holds: seed 1; width 2; measure cka." in done.err
    assert results.load(copy / "results.nc")["models"].sizes["seed"] == 1
    back = command.run(tmp_path, "run", TINY, "--out", copy)
    assert back.code == 0, back.err
    assert f"0 of {STEPS} steps to do" in back.err
    assert "leaves out" not in back.err
    assert_identical(results.load(undisturbed / "results.nc"), results.load(copy / "results.nc"))


def test_a_run_says_what_its_labels_rest_on(tmp_path: Path) -> None:
    spec = command.edited(tmp_path, connectivity="", hessian="", load="load = { width = [2] }")
    with spec.open("a") as file:
        file.write("\n[phases]\nauto = true\ncka = 0.5\n")
    done = command.run(tmp_path, "run", spec, "--out", "out")
    assert done.code == 0, done.err
    assert "Threshold of cka: 0.5 (given).\n" in done.err
    assert "train_loss shows no transition in this grid (auto): by it all cells are " in done.err
    assert "cka held fixed: one pair" in done.err


def test_a_second_load_gives_named_figures_with_the_same_colours(tmp_path: Path) -> None:
    spec = command.edited(
        tmp_path,
        connectivity="",
        hessian="",
        data='data = { name = "digits", n_train = 200 }',
        load="load = { width = [2, 4], label_noise = [0.0, 0.2] }",
    )
    done = command.run(tmp_path, "run", spec, "--out", "out")
    assert done.code == 0, done.err
    tree = results.load(tmp_path / "out" / "results.nc")
    drawn = {}

    def record(part: xr.DataTree, labels: xr.Dataset, **options: Any) -> dict[str, Any]:
        drawn[options["title"]] = figures.panels(
            summary.cells(part), title=options["title"], over=options["over"]
        ).findobj(lambda artist: artist.get_gid() == "train_loss")[0]
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_all", record)
        draw(tree, labelled(tree), tmp_path)
    assert set(drawn) == {"0 % randomised labels", "20 % randomised labels"}
    limits = {(mesh.norm.vmin, mesh.norm.vmax) for mesh in drawn.values()}
    whole = summary.cells(tree)["train_loss"]
    assert limits == {(float(whole.min()), float(whole.max()))}
    assert (tmp_path / "out" / "figures" / "panels-label_noise-0.2.pdf").is_file()
    assert (tmp_path / "out" / "figures" / "phase_maps.png").is_file()


def test_a_folder_takes_more_of_the_same(undisturbed: Path, copy: Path, tmp_path: Path) -> None:
    before = command.steps_done(copy / "store")
    spec = command.edited(tmp_path, seeds="seeds = [0, 1, 2]", load="load = { width = [2, 3, 4] }")
    done = command.run(tmp_path, "run", spec, "--out", copy)
    assert done.code == 0, done.err
    after = command.steps_done(copy / "store")
    assert {key: after[key] for key in before} == before
    # 6 cells of 3 models with 2 measures each, 3 pairs with 5 steps each, and the ensemble of three; of the old
    # ones all is there but 4 ensembles of two, which no longer count.
    assert f"{6 * (9 + 15 + 1) - (STEPS - 4)} of {6 * 25} steps to do" in done.err
    old, new = results.load(undisturbed / "results.nc"), results.load(copy / "results.nc")
    kept = new["models"].to_dataset().sel(width=[2, 4], seed=[0, 1])
    xr.testing.assert_equal(kept, old["models"].to_dataset())


def test_runs_share_a_store(undisturbed: Path, copy: Path, tmp_path: Path) -> None:
    spec = command.edited(tmp_path, name="name = 'other'", cka="cka = { images = 128 }")
    done = command.run(tmp_path, "run", spec, "--out", "other", "--store", copy / "store")
    assert done.code == 0, done.err
    assert f"4 of {STEPS} steps to do" in done.err
    plain = command.run(tmp_path, "run", "other")  # the folder remembers where its store is
    assert f"0 of {STEPS} steps to do" in plain.err


@pytest.mark.parametrize("name", ["result.json", "best.safetensors", "arrays.safetensors"])
def test_damaged_steps_are_set_aside_and_made_again(
    name: str, undisturbed: Path, copy: Path, tmp_path: Path
) -> None:
    damaged = sorted((copy / "store").rglob(name))[0]
    content = bytearray(damaged.read_bytes())
    if name == "result.json":
        content = content[: len(content) // 2]
    else:
        content[-1] ^= 1  # a single bit; the file's form stays right
    damaged.write_bytes(content)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    told = [one["key"] for one in command.status(tmp_path, copy)["damaged"]]
    assert told == ([damaged.parent.name] if name == "result.json" else [])  # the only file that status reads
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before  # it only looks
    (copy / "results.nc").unlink()
    # What takes the arrays as its input is to be done again, so that somebody looks at them.
    for step in {"best.safetensors": ["evaluation"], "arrays.safetensors": ["connectivity"]}.get(name, []):
        shutil.rmtree(copy / "store" / step)
    done = command.run(tmp_path, "run", copy)
    assert done.code == 0, done.err
    assert "damaged step was made again" in done.err
    aside = list((copy / "store" / "damaged").iterdir())
    assert len(aside) == 1
    assert (aside[0] / name).read_bytes() == content
    assert_identical(results.load(undisturbed / "results.nc"), results.load(copy / "results.nc"))

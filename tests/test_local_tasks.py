"""The commands on single models with data and losses of one's own; what they must not keep silent about."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import command
from lossatlas import files, local_results, registry
from lossatlas.tasks import models

OWN = """
import numpy as np
import torch.nn.functional as F
from torch import nn
from lossatlas.landscape.criterion import supervised

def linear():
    draws = np.random.default_rng(0)
    inputs = draws.normal(size=(60, 3))
    return inputs[:40], inputs[:40].sum(1, keepdims=True), inputs[40:], inputs[40:].sum(1, keepdims=True)

def flat():
    inputs, targets, more, test = linear()
    return inputs, targets[:, 0], more, test[:, 0]

def net(classes):
    assert classes is None
    return nn.Linear(3, 1)

def squares(): return supervised(F.mse_loss)
def bare(model, batch): return F.mse_loss(model(batch[0]), batch[1])
def vector(model, batch): return F.mse_loss(model(batch[0]), batch[1], reduction="none")
"""
REGRESSION = ["--model", "own_local:net", "--data", "own_local:linear", "--dtype", "float64", "--out", "out"]
DIGITS = ["--model", "mlp", "--option", "width=2", "--data", "digits", "--images", 50, "--out", "out"]
LOSSES = ("squares", "bare")
QUICK: dict[str, list[Any]] = {
    "spectrum": ["-k", 1, "--probes", 2, "--steps", 4],
    "line": ["--points", 5],
    "surface": ["--grid", 3, 3],
    "mine": ["--epochs", 1, "-k", 1, "--max-matvecs", 20],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module of one's own and weights; commands run in it."""
    root = tmp_path_factory.mktemp("own")
    (root / "own_local.py").write_text(OWN)
    for k in range(3):
        torch.manual_seed(k)
        torch.save(torch.nn.Linear(3, 1).double().state_dict(), root / f"r{k}.pt")
    for k in range(2):
        net = models.build("mlp", {"width": 2}, input_shape=(1, 8, 8), classes=10, seed=k)
        torch.save(net.state_dict(), root / f"m{k}.pt")
    with torch.no_grad():
        next(net.parameters())[0, :3] = torch.nan
    torch.save(net.state_dict(), root / "nan.pt")
    return root


def done(folder: Path, *arguments: object) -> command.Finished:
    finished = command.run(folder, *arguments)
    assert finished.code == 0, finished
    return finished


def refused(folder: Path, *arguments: object) -> str:
    finished = command.run(folder, *arguments)
    assert finished.code == 2, finished
    assert finished.out == ""
    return finished.err


@pytest.mark.parametrize("loss", LOSSES)
def test_regression_has_the_spectrum_of_least_squares(folder: Path, loss: str) -> None:
    loss_of = ["--loss", f"own_local:{loss}"]
    done(folder, "spectrum", "r0.pt", *REGRESSION, *loss_of, "-k", 2, "--probes", 0)
    found = local_results.load(folder / "out" / "spectrum.nc")
    inputs = np.random.default_rng(0).normal(size=(60, 3))[:40]
    # Inputs are normalised as float32, whose rounding is some 1e-7.
    wide = np.hstack([inputs, np.ones((40, 1))])
    exact = np.linalg.eigvalsh(2 / 40 * wide.T @ wide)
    assert found["eigenvalue"].values == pytest.approx(exact[::-1][:2], rel=1e-5)
    assert found["eigenvalue_min"].values == pytest.approx(exact[:2], rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["line", "surface", "mine"])
def test_regression_is_taken(folder: Path, name: str, loss: str) -> None:
    done(folder, name, "r0.pt", *REGRESSION, "--loss", f"own_local:{loss}", *QUICK[name])
    found = local_results.load(folder / "out" / f"{'mined' if name == 'mine' else name}.nc")
    assert np.isnan(found.attrs["guessing"])
    assert found["loss"].attrs["units"] == "1"
    assert bool(np.isfinite(found["loss"]).all())
    assert "error" not in found


@pytest.mark.parametrize("loss", LOSSES)
def test_a_plane_of_regression_is_told(folder: Path, loss: str) -> None:
    weights = [f"r{k}.pt" for k in range(3)]
    finished = done(folder, "plane", *weights, *REGRESSION, "--loss", f"own_local:{loss}", "--grid", 3, 3)
    rows = [line.split("\t") for line in finished.out.splitlines() if "\t" in line][1:]
    inputs = torch.from_numpy(np.random.default_rng(0).normal(size=(60, 3))[:40])
    for name, row in zip(weights, rows, strict=True):
        own = torch.load(folder / name)
        losses = (inputs @ own["weight"].T + own["bias"] - inputs.sum(1, keepdim=True)).square()
        assert float(row[-1].split()[0]) == pytest.approx(losses.mean().item(), rel=1e-3)  # four digits are told
        assert ("+-" in row[-1]) is (loss == "squares")


WRONG: list[tuple[list[Any], list[str]]] = [
    (["compare", "r0.pt", "r1.pt", *REGRESSION, "--loss", "own_local:bare"], ["bare function", "compare need"]),
    (["connect", "r0.pt", "r1.pt", *REGRESSION, "--loss", "own_local:squares"], ["no extra named error"]),
    (["connect", "r0.pt", "r1.pt", *REGRESSION], ["no classes", "connect and compare"]),
    (["line", "r0.pt", *REGRESSION], ["no classes", "cross_entropy", "--loss"]),
    (["line", "r0.pt", *REGRESSION, "--loss", "own_local:vector"], ["(16, 1)", "reduction='mean'"]),
    (
        ["line", "r0.pt", *REGRESSION, "--data", "own_local:flat", "--loss", "own_local:squares"],
        ["(16, 1)", "(16,)", "squeeze"],
    ),
    (
        ["line", "r0.pt", *REGRESSION, "--model", "mlp", "--option", "width=2", "--loss", "own_local:bare"],
        ["mlp", "classifier"],
    ),
    (["spectrum", "m0.pt", "m1.pt", *DIGITS], ["2 WEIGHTS", "takes 1"]),
    (["mine", "m0.pt", "m1.pt", *DIGITS], ["2 WEIGHTS", "takes 1"]),
    (["line", "m0.pt", *DIGITS, "--leave-out", ".*"], ["leave_out '.*'", "all parameters"]),
    (["line", "m0.pt", *DIGITS, "--leave-out", "zzz"], ["leave_out 'zzz'", "no parameter", "1.weight"]),
    (["line", "m0.pt", *DIGITS, "--leave-out", "("], ["leave_out '('", "no regular expression"]),
    (
        ["line", "m0.pt", *DIGITS, "--leave-out", "weight", "--scaling", "filter"],
        ["--leave-out", "leave nothing of the direction gaussian 0"],
    ),
    (["surface", "nan.pt", *DIGITS], ["nan.pt hold 3 entries that are not finite"]),
    (["mine", "nan.pt", *DIGITS], ["nan.pt hold 3 entries that are not finite"]),
    (["spectrum", "m0.pt", *DIGITS, "--max-matvecs", 3], ["--max-matvecs 3", "at least 20"]),
    (["spectrum", "m0.pt", *DIGITS, "-k", 1, "--max-matvecs", 3], ["--max-matvecs 3", "at least 16"]),
    (["line", "m0.pt", *DIGITS, "--data", "cifar10", "--data-path", "nowhere"], ["--data-path"]),
]


@pytest.mark.parametrize(("call", "words"), WRONG, ids=[" ".join(words) for _, words in WRONG])
def test_mistakes_are_named(call: list[Any], words: list[str], folder: Path) -> None:
    told = refused(folder, *call)
    for word in words:
        assert word in told
    assert "should not happen" not in told


def test_what_is_not_finite_is_said_first_and_once(folder: Path) -> None:
    for name in ("line", "spectrum"):
        finished = done(folder, name, "nan.pt", *DIGITS, *QUICK[name])
        lines = finished.err.splitlines()
        assert lines[0].startswith("The weights of nan.pt hold 3 entries that are not finite")
        assert len([line for line in lines if "product" in line.lower()]) <= 1


def test_a_budget_that_is_too_small_names_the_quantities_and_the_way_out(folder: Path) -> None:
    finished = done(folder, "spectrum", "m0.pt", *DIGITS, *QUICK["spectrum"], "--max-matvecs", 16, "--rel", 1e-3)
    (said,) = [line for line in finished.err.splitlines() if "--max-matvecs" in line]
    assert "trace of the square to --rel 0.001" in said
    assert "max_matvecs" not in finished.err


def test_a_density_of_an_earlier_call_is_named(folder: Path) -> None:
    out = ["--out", "dense"]
    done(folder, "spectrum", "m0.pt", *DIGITS, *out, *QUICK["spectrum"])
    finished = done(folder, "spectrum", "m0.pt", *DIGITS, *out, "-k", 1, "--probes", 0)
    assert "density.pdf and density.png in dense are of an earlier call" in finished.err


@pytest.mark.parametrize("grid", [["--range", 1, 2], ["--points", 4]])
def test_a_curve_without_the_model_has_no_class_and_says_so(folder: Path, grid: list[Any]) -> None:
    finished = done(folder, "line", "m0.pt", *DIGITS, *grid)
    assert "lambda = 0, the model, is none of their points" in finished.err
    assert "basin" not in finished.out


def test_further_weights_that_no_direction_takes_are_named(folder: Path) -> None:
    assert (
        "further WEIGHTS are not looked at" in done(folder, "line", "m0.pt", "m1.pt", *DIGITS, "--points", 3).err
    )
    used = done(folder, "line", "m0.pt", "m1.pt", *DIGITS, "--points", 3, "--direction", "to-checkpoint")
    assert "further" not in used.err


def test_points_of_another_grid_are_not_given_up_without_a_word(folder: Path) -> None:
    path = folder / "out" / ".surface-partial.json"
    files.write_file(path, json.dumps({"content": ["another"], "points": [[0, 0, {"loss": 1.0}]]}).encode())
    finished = done(folder, "surface", "m0.pt", *DIGITS, "--grid", 3, 3)
    assert re.search(r"^1 points of another surface", finished.err, re.MULTILINE)
    assert not path.exists()


def test_the_built_in_losses_are_those_that_take_classes() -> None:
    assert set(registry.LOSSES) == {"cross_entropy", "translation"}  # `_check_task` refuses them for regression

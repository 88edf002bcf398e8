"""`import lossatlas as la`: every name is there, loaded when it is first used; results say what they are."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lossatlas as la


def test_importing_loads_neither_torch_nor_matplotlib() -> None:
    program = "import sys, lossatlas; print([n for n in ('torch', 'matplotlib') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_is_there_and_type_checkers_know_the_same() -> None:
    assert la.__all__ == sorted(la.__all__)
    assert set(la.__all__) <= set(dir(la))
    for name in la.__all__:
        found = getattr(la, name)
        assert found.__name__.split(".")[-1] == name
        assert found.__doc__
    tree = ast.parse(Path(la.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    told = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    there = {name: f"{module}.{name}" for name, module in la._NAMES.items()} | la._MODULES
    assert told == there
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        la.nothing  # noqa: B018


@pytest.fixture(scope="module")
def objective() -> la.Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
        return la.Objective(model, [(torch.randn(30, 4), torch.randint(3, (30,)))], la.supervised(F.cross_entropy))


def test_results_are_told_by_their_headline_number_and_its_error(objective: la.Objective) -> None:
    operator = la.hessian(objective)
    both = la.eigenpairs(operator, 2, which="both", seed=0)
    value, residual = both.eigenvalues.tolist(), both.residuals.tolist()
    assert repr(both) == (
        f"Eigenpairs(largest {value[0]:.4g} (residual {residual[0]:.2g}), smallest {value[2]:.4g} "
        f"(residual {residual[2]:.2g}); 4 of 4 converged, {both.matvecs} products)"
    )
    assert repr(la.eigenpairs(operator, 1, which="smallest", seed=0)).startswith("Eigenpairs(smallest ")
    tr = la.trace(objective, seed=0)
    assert repr(tr) == f"TraceEstimate({tr.value:.4g} +- 0 by exact-ggn, +- {tr.data_stderr:.2g} over the data)"
    short = la.eigenpairs(operator, 1, max_matvecs=2, tol=1e-12, seed=0)
    assert "0 of 1 converged" in repr(short)
    directions = [la.gaussian(objective, seed=k) for k in range(2)]
    curve = la.line(objective, directions[0], points=3)
    low, high = curve.values["loss"].min(), curve.values["loss"].max()
    loss = curve.center["loss"]
    told = f"loss {loss:.4g} at the centre, {low:.4g} to {high:.4g}"
    assert repr(curve) == f"Curve(gaussian 0: 3 points, {told})"
    surface = la.surface(objective, *directions, grid=(3, 2))
    assert repr(surface).startswith(
        f"Surface(gaussian 0 x gaussian 1: 3 x 2 points, loss {loss:.4g} at the centre"
    )
    mined = la.mine_w_peak(objective, lambda _epoch: objective.batches(), epochs=2, seed=0)
    assert repr(mined).startswith(f"MinedDirection(w-peak, ok: mean loss {mined.losses[-1]:.4g} in epoch 2 of 2, ")
    mc = la.paths.connectivity([1.0, 5.0, 2.0], [0, 0.5, 1], samples=torch.tensor([[0.0, 2], [4, 6], [1, 3]]))
    assert repr(mc) == "Connectivity(-3.5 +- 0 at t = 0.5)"
    assert "collapsed" in repr(la.paths.connectivity([90.0, 5.0, 2.0], [0, 0.5, 1], guessing=90))
    assert repr(la.similarity.distance(torch.ones(4), torch.zeros(4))) == "Estimate(2 +- 0, 4 samples)"


def test_values_that_are_not_finite_are_counted(objective: la.Objective) -> None:
    direction = la.given(objective, torch.full_like(objective.center, 1e30), name="far")
    curve = la.line(objective, direction, points=3)
    assert repr(curve).endswith(f"{curve.non_finite} not finite)") == (curve.non_finite > 0)


def test_results_are_saved_and_loaded(objective: la.Objective, tmp_path: Path) -> None:
    operator = la.hessian(objective)
    results = {
        "pairs": (la.eigenpairs(operator, 2, seed=0), "eigenvalue"),
        "trace": (la.trace(objective, seed=0), "trace"),
        "density": (la.density(operator, probes=2, steps=5, seed=0), "density"),
        "curve": (la.line(objective, la.gaussian(objective, seed=0), points=3), "loss"),
        "mined": (la.mine_w_peak(objective, lambda _e: objective.batches(), epochs=1, seed=0), "mining_loss"),
        "connectivity": (la.paths.connectivity([1.0, 5.0, 2.0], [0, 0.5, 1]), "mode_connectivity"),
    }
    for name, (result, variable) in results.items():
        written = la.save(result, tmp_path / f"{name}.nc", attrs={"model": {"name": "mine"}})
        found = la.load(tmp_path / f"{name}.nc")
        assert found.attrs["model"] == '{"name": "mine"}'
        assert found[variable].equals(written[variable])
        assert {"units", "long_name", "estimator"} <= found[variable].attrs.keys()
    with pytest.raises(la.results.FileError, match="does not exist"):
        la.load(tmp_path / "nowhere.nc")
    content = (tmp_path / "trace.nc").read_bytes()
    (tmp_path / "half.nc").write_bytes(content[: len(content) // 2])
    with pytest.raises(la.results.FileError, match="damaged"):
        la.load(tmp_path / "half.nc")
    la.save(la.to_dataset(results["trace"][0]), tmp_path / "other.nc", attrs={"schema_version": 99})
    with pytest.raises(la.results.FileError, match="schema version 99"):
        la.load(tmp_path / "other.nc")
    with pytest.raises(Exception, match=r"A str has no dataset. Allowed are Eigenpairs"):
        la.to_dataset("text")

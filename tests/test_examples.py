"""The examples run as they are, and leave nothing changed."""

import math
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lossatlas as la

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_losses_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    with torch.random.fork_rng(devices=[]), pytest.warns(la.PlainMathsWarning, match="fused attention"):
        runpy.run_path(str(EXAMPLES / "own_loss.py"), run_name="__main__")
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == ["dict batches", "regression", "physics", "tied weights", "frozen backbone"]
    for name, line in lines.items():
        numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", line)]
        assert numbers, name
        assert all(map(math.isfinite, numbers)), name
        assert "nan" not in line
    assert "1 of 1 converged" in lines["dict batches"]
    assert "by exact-ggn" in lines["regression"]
    assert "2 of 2 converged" in lines["physics"]
    assert "48 parameters" in lines["tied weights"]  # one matrix of 36 and two biases of 6
    assert "by exact-ggn" not in lines["tied weights"]  # one weight is used twice in series
    assert "132 parameters" in lines["frozen backbone"]


@pytest.mark.slow
def test_the_gallery_draws_its_figures(shared_data: Path, tmp_path: Path) -> None:
    arguments = ["--data", shared_data / "cifar10", "--out", tmp_path, "--quick", "--only", "2,5,13,14"]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "gallery.py"), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "mlp-quick"
    stems = {"fig02-gaussian", "fig05-angles", "fig14-mli", "fig14-gmi"}
    stems |= {f"fig13-{what}-epoch{epoch}" for what in ("density", "ends", "changes") for epoch in (0, 10, 50)}
    for suffix in ("png", "pdf"):
        assert {path.stem for path in folder.glob(f"*.{suffix}")} == stems
    index = (folder / "index.md").read_text()
    assert re.search(r"v-basin \| .*2 \(", index)
    assert re.search(r"vvv-basin \| not seen", index)

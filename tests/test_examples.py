"""The examples run as they are, and leave nothing changed."""

import math
import re
import runpy
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

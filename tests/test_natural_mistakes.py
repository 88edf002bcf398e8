"""What people naturally try from Python: it works, or a UserError says what to write instead."""

import functools
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

import lossatlas as la
from lossatlas.cli import study as commands
from lossatlas.errors import UserError
from lossatlas.landscape import mining_checks
from lossatlas.studies import reading
from lossatlas.tasks import models

torch.manual_seed(0)
MODEL = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
DATA = [(torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 3)]
OBJECTIVE = la.Objective(MODEL, DATA, la.supervised(F.cross_entropy))
GAUSSIAN = la.gaussian(OBJECTIVE, seed=0)
PAIRS = la.eigenpairs(la.hessian(OBJECTIVE), 2, seed=0)


def per_sample(model: nn.Module, batch: Any) -> Any:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


MISTAKES: list[tuple[str, Callable[[], Any]]] = [
    ("CrossEntropyLoss .*supervised", lambda: la.Objective(MODEL, DATA, nn.CrossEntropyLoss())),
    ("cross_entropy .*supervised", lambda: la.Objective(MODEL, DATA, F.cross_entropy)),
    ("mse_loss .*supervised", lambda: la.Objective(MODEL, DATA, functools.partial(F.mse_loss, reduction="sum"))),
    ("str .*supervised", lambda: la.Objective(MODEL, DATA, "cross_entropy")),  # type: ignore[arg-type]
    (r"shape \(12,\); it must give one number", lambda: la.Objective(MODEL, DATA, per_sample)),
    ("a float; it must give", lambda: la.Objective(MODEL, DATA, lambda _m, _b: 1.0)),  # type: ignore
    ("module CrossEntropyLoss.*functional", lambda: la.supervised(nn.CrossEntropyLoss())),
    ("OrderedDict.*flatten.state_dict", lambda: la.difference(OBJECTIVE, MODEL.state_dict())),  # type: ignore
    ("Sequential.*named_parameters", lambda: la.difference(OBJECTIVE, MODEL)),  # type: ignore[arg-type]
    ("OrderedDict.*flatten", lambda: la.line(OBJECTIVE, [MODEL.state_dict()])),  # type: ignore[list-item]
    (r"lossatlas.hessian.objective", lambda: la.eigenpairs(OBJECTIVE, 1, seed=0)),  # type: ignore[arg-type]
    (r"lossatlas.hessian.objective", lambda: la.density(OBJECTIVE, seed=0)),  # type: ignore[arg-type]
    (r"lossatlas.hessian.objective", lambda: la.trace_of_square(OBJECTIVE, seed=0)),  # type: ignore[arg-type]
    ("lacks size, .*matmul", lambda: la.eigenpairs(MODEL, 1, seed=0)),  # type: ignore[arg-type]
    ("takes an Objective.*hutchinson", lambda: la.trace(la.hessian(OBJECTIVE), seed=0)),  # type: ignore[arg-type]
    ("no regular expression", lambda: la.gaussian(OBJECTIVE, seed=0, leave_out="(")),
    ("matches all", lambda: la.gaussian(OBJECTIVE, seed=0, leave_out=".*")),
    ("matches no parameter", lambda: la.gaussian(OBJECTIVE, seed=0, leave_out="zzz")),
    ("of the same space", lambda: la.angle(GAUSSIAN, torch.ones(3))),
]


@pytest.mark.parametrize(("words", "call"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_a_mistake_is_told_with_the_way_out(words: str, call: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=re.compile(words, re.DOTALL)):
        call()


def forget_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)


def test_a_torchvision_that_is_missing_or_cannot_be_imported_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = reading.read("xu2024/fig17", {"study.models": ["mobilenetv2"]})
    forget_torchvision(monkeypatch)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert models.torchvision_problem() == "torchvision is missing, see the extra `vision`"
    monkeypatch.delitem(sys.modules, "torchvision")
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    told = "torchvision is installed, but its import says RuntimeError: operator nms does not exist; install the"
    assert told in models.torchvision_problem()
    commands.plan(study)
    assert f"not told\tmobilenetv2: {told}" in capsys.readouterr().out
    (tmp_path / "torchvision" / "__init__.py").write_text("import no_such_module\n")
    importlib.invalidate_caches()
    assert "its import says ModuleNotFoundError: No module named 'no_such_module'" in models.torchvision_problem()
    (tmp_path / "torchvision" / "__init__.py").write_text("")
    (tmp_path / "torchvision" / "models.py").write_text("")
    assert not models.torchvision_problem()
    forget_torchvision(monkeypatch)


def test_a_direction_serves_wherever_a_vector_does() -> None:
    vector = GAUSSIAN.vector
    assert la.expand(OBJECTIVE, GAUSSIAN) == la.expand(OBJECTIVE, vector)
    assert la.angle(GAUSSIAN, vector).degrees == la.angle(vector, vector).degrees
    assert torch.equal(la.alignment(GAUSSIAN, PAIRS).cosines, la.alignment(vector, PAIRS).cosines)
    pieces = [la.local_pieces(OBJECTIVE, d, [0.0, 0.5]).values for d in (GAUSSIAN, vector)]
    assert torch.equal(*pieces)
    curves = [la.survives(OBJECTIVE, OBJECTIVE, d, [-1.0, 0.0, 1.0]).mining for d in (GAUSSIAN, vector)]
    assert torch.equal(*curves)
    other = la.gaussian(OBJECTIVE, seed=1)
    both = [mining_checks.compare(OBJECTIVE, a, b, [1.0]) for a, b in ((GAUSSIAN, other), (vector, other.vector))]
    assert both[0].advantage == both[1].advantage


def test_a_vector_serves_as_a_direction_as_it_is() -> None:
    a, b = GAUSSIAN, la.gaussian(OBJECTIVE, seed=1)
    named, bare = (la.line(OBJECTIVE, d, points=3) for d in (a, a.vector))
    assert torch.equal(named.values["loss"], bare.values["loss"])
    assert (bare.directions[0].name, bare.directions[0].norm) == ("direction 1", a.norm)
    surfaces = [la.surface(OBJECTIVE, *ds, grid=(3, 3)) for ds in ((a, b), (a.vector, b.vector))]
    assert torch.equal(surfaces[0].values["loss"], surfaces[1].values["loss"])


def test_figures_are_saved_under_a_name_given_as_text(tmp_path: Path) -> None:
    written = la.figures.save(Figure(), str(tmp_path / "name"))
    assert [path.name for path in written] == ["name.pdf", "name.png"]
    assert all(path.is_file() for path in written)


def test_the_legend_of_many_long_names_stays_inside_its_figure() -> None:
    along = [la.given(OBJECTIVE, GAUSSIAN.vector * (1 + k), name=f"eigenvector {k} (largest)") for k in range(9)]
    figure = la.line(OBJECTIVE, along, points=5, classes=3).plot()
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert box.y0 >= 0
    assert figure.axes[0].get_window_extent().height > figure.dpi  # an inch is left for the curves

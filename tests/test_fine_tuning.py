"""Weights to start from that do not fit are refused before anything is trained, with all that is wrong."""

from pathlib import Path

import pytest
import torch
from torch import nn

import command
from lossatlas import specs
from lossatlas.errors import SpecError
from lossatlas.registry import Facts
from lossatlas.specs import Train
from lossatlas.sweep.plan import Plan
from lossatlas.tasks import models
from lossatlas.training import fine_tuning

DIGITS = Facts(1437, 360, (1, 8, 8), 10)


def saved(folder: Path, width: int, classes: int = 10, depth: int = 1) -> Path:
    options = {"width": width, "depth": depth}
    model = models.build("mlp", options, input_shape=DIGITS.input_shape, classes=classes, seed=3)
    torch.save(model.state_dict(), folder / "w.pt")
    return folder / "w.pt"


def tuned(folder: Path, weights: Path, load: str = "load = { width = [2, 4] }") -> Path:
    epochs = f'epochs = 8\ninit = "{weights}"'
    model = 'model = { name = "mlp" }' if "width" in load else 'model = { name = "mlp", width = 4 }'
    lines = {"epochs": epochs, "load": load, "model": model}
    return command.edited(folder, data='data = { name = "digits" }' if "n_train" in load else DATA, **lines)


DATA = 'data  = { name = "digits", n_train = 200, label_noise = 0.1 }'


def checked(path: Path) -> None:
    spec = specs.read(path, {})
    plan = Plan(spec, "")
    fine_tuning.check(spec, [plan.task(cell).model for cell in plan.cells], DIGITS)


def test_every_model_that_they_do_not_fit_is_named_once(tmp_path: Path) -> None:
    weights = saved(tmp_path, width=4)
    with pytest.raises(SpecError) as refused:
        checked(tuned(tmp_path, weights))
    (problem,) = refused.value.problems  # of two widths, each at two batch sizes
    assert problem.startswith(f"train.init, for the model mlp, width 2, depth 1: The weights {weights} are not th")
    assert "(1.weight [4, 64] for [2, 64], 1.bias [4] for [2]" in problem
    assert str(refused.value).endswith("Weights fit one size of a model: take width out of the load.")
    saved(tmp_path, width=5)
    with pytest.raises(SpecError) as refused:
        checked(tuned(tmp_path, weights))
    assert len(refused.value.problems) == 2


def test_weights_of_another_model_are_told_without_advice_on_sizes(tmp_path: Path) -> None:
    noise = "load = { n_train = [100, 200] }"
    with pytest.raises(SpecError, match=r"2 unexpected \(5.weight, 5.bias\)") as refused:
        checked(tuned(tmp_path, saved(tmp_path, width=4, depth=2), noise))
    assert len(refused.value.problems) == 1
    assert "out of the load" not in str(refused.value)


def test_weights_of_a_model_that_keeps_its_network_as_module_start_it(tmp_path: Path) -> None:
    def held(seed: int, classes: int) -> nn.Module:
        holder = nn.Module()
        holder.module = models.build("mlp", {"width": 4}, input_shape=(5,), classes=classes, seed=seed)
        return holder

    torch.save(held(3, 7).state_dict(), tmp_path / "w.pt")
    model = held(4, 10)
    fresh = model.state_dict()["module.3.bias"].clone()
    assert fine_tuning.start(model, Train(epochs=1, init=str(tmp_path / "w.pt"))) == "module.3"
    assert torch.equal(model.state_dict()["module.1.weight"], held(3, 7).state_dict()["module.1.weight"])
    assert torch.equal(model.state_dict()["module.3.bias"], fresh)


def test_what_fits_is_let_through_with_the_head_of_another_task_too(tmp_path: Path) -> None:
    noise = "load = { n_train = [100, 200] }"
    for classes in (10, 7):
        checked(tuned(tmp_path, saved(tmp_path, width=4, classes=classes), noise))
    checked(command.TINY)


def test_a_run_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    spec = tuned(tmp_path, saved(tmp_path, width=4))
    refused = command.run(tmp_path, "run", spec, "--out", "run")
    assert refused.code == 2
    assert "train.init, for the model mlp, width 2, depth 1: The weights " in refused.err
    assert "Traceback" not in refused.err
    assert not (tmp_path / "run" / "plan.json").exists()
    assert not (tmp_path / "run" / "store" / "train").exists()
    noise = tuned(tmp_path, saved(tmp_path, width=4), "load = { n_train = [100, 200] }")
    done = command.run(tmp_path, "run", noise, "--out", "run", "--set", "train.epochs=1")
    assert done.code == 0, done.err

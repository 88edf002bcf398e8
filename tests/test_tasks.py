"""Models and losses, the built-in ones and one's own; data of one's own."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lossatlas import registry
from lossatlas.errors import UserError
from lossatlas.landscape.random_state import seeded
from lossatlas.seeding import derive
from lossatlas.tasks import data, losses, models
from lossatlas.tasks.samples import Samples

IMAGES = (3, 32, 32)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("width", "count"), [(64, 11_173_962), (8, 176_402), (1, 2_991)])
def test_resnet18_has_its_parameters(width: int, count: int) -> None:
    model = models.build("resnet18", {"width": width}, input_shape=IMAGES, classes=10, seed=0)
    assert parameters(model) == count


def test_resnet18_halves_the_image_three_times() -> None:
    model = models.build("resnet18", {"width": 2}, input_shape=IMAGES, classes=10, seed=0)
    shapes: list[tuple[int, ...]] = []
    for block in model.blocks:  # type: ignore[union-attr]
        block.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[1:])))
    assert model(torch.zeros(3, *IMAGES)).shape == (3, 10)
    expected = [(2, 32, 32), (4, 16, 16), (8, 8, 8), (16, 4, 4)]
    assert shapes == [shape for shape in expected for _ in range(2)]


def test_small_models_have_the_layers_that_they_say() -> None:
    mlp = models.build("mlp", {"width": 7, "depth": 3}, input_shape=(1, 8, 8), classes=10, seed=0)
    linear = [(m.in_features, m.out_features) for m in mlp.modules() if isinstance(m, nn.Linear)]
    assert linear == [(64, 7), (7, 7), (7, 7), (7, 10)]
    assert mlp(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    cnn = models.build("cnn", {"width": 4}, input_shape=(1, 8, 8), classes=10, seed=0)
    assert parameters(cnn) == 4 * 9 + 2 * 4 + 8 * 4 * 9 + 2 * 8 + 8 * 10 + 10
    assert cnn(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    for name in ("cnn", "resnet18"):
        with pytest.raises(UserError, match=r"images of shape.*the data have shape \(5,\)"):
            models.build(name, {"width": 2}, input_shape=(5,), classes=2, seed=0)


def test_a_seed_fixes_the_initialisation_and_nothing_else() -> None:
    def build(seed: int) -> torch.Tensor:
        model = models.build("mlp", {"width": 3}, input_shape=(4,), classes=2, seed=seed)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = build(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert torch.equal(build(0), first)
    assert not torch.equal(build(1), first)


def test_a_gpu_that_is_not_in_use_yet_begins_with_the_callers_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []  # that all GPUs would begin with, in their order
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        models.build("mlp", {"width": 3}, input_shape=(4,), classes=2, seed=0)
        with pytest.raises(UserError):
            models.build("mlp", {"depth": 3}, input_shape=(4,), classes=2, seed=0)
    ours = derive(0, "initialisation")
    assert seeds == [11, ours, 11, ours, 11]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_random_states_of_gpus_are_put_back() -> None:
    torch.cuda.init()
    states = torch.cuda.get_rng_state_all()
    drawn = []
    for _ in range(2):
        with seeded(5):
            drawn.append(torch.rand(3, device="cuda"))
    assert torch.equal(*drawn)
    models.build("mlp", {"width": 3}, input_shape=(4,), classes=2, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(states, torch.cuda.get_rng_state_all(), strict=True))


def test_the_loss_is_cross_entropy_and_the_error_in_percent() -> None:
    criterion = losses.build("cross_entropy")
    outputs, targets = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 0, 1])
    terms = criterion.terms(outputs, (None, targets))
    expected = torch.log(torch.tensor([1 + np.exp(-2), 1 + np.exp(1), 1 + np.exp(3)])).float()
    torch.testing.assert_close(terms["loss"], expected)
    assert terms["error"].tolist() == [0.0, 100.0, 100.0]


OWN = """
import numpy as np
import torch
from torch import nn

from lossatlas.landscape.criterion import supervised
from lossatlas.tasks.data import RawData

X, Y = np.zeros((6, 5), np.float32), np.array([0, 1, 2, 0, 1, 2], np.uint8)

def arrays(): return X, Y, X[:3], Y[:3]
def from_path(path): return X[: int(path)], Y[: int(path)], X, Y
def raw(): return RawData(X, Y, X, Y, 4)
def three(): return X, Y, X
def ragged(): return X, Y[:5], X, Y
def empty(): return X[:0], Y[:0], X, Y
def fractions(): return X, Y / 3, X, Y
def cubes(): return X, np.zeros((6, 2, 2)), X, np.zeros((6, 2, 2))
def unknown(): return X, Y * np.nan, X, Y / 3.0
def waves(): return X, np.stack([Y, Y], 1) / 3.0, X, np.stack([Y, Y], 1) / 3.0
def forgotten(): return RawData(X, Y, X, Y, 0)
def negative(): return X, Y.astype(int) - 1, X, Y
def too_many(): return RawData(X, Y, X, Y, 2)
def one_class(): return X, Y * 0, X, Y * 0
def wide(): return X, Y, np.zeros((6, 7), np.float32), Y
def words(): return X.astype(str), Y, X, Y
def complex(): return X, Y, X + 1j, Y
def long(): return X.astype(np.longdouble), Y, X, Y
def backwards(): return X[:, ::-1], Y[::-1], X.astype(">f8"), Y.astype(">i4")
def colours(): return RawData(X, Y, X, Y, 3, mean=(0.1, 0.2, 0.3))
def features(): return RawData(X, Y, X, Y, 3, mean=(0.1, 0.2, 0.3, 0.4, 0.5), std=(2.0,))
def mixed(): return X, X[:, :2], X, X[:, 0]
def broken(): raise KeyError("a mistake of one's own")

def net(width, input_shape, classes): return nn.Linear(input_shape[0], classes)
def plain(width): return nn.Linear(5, width)
def greedy(**options): return nn.Linear(5, len(options))
def no_net(): return 3

def loss(): return supervised(torch.nn.functional.mse_loss, {"error": lambda o, b: o[:, 0]})
def errorless(): return supervised(torch.nn.functional.mse_loss)
def no_loss(): return torch.nn.functional.mse_loss
def bare(model, batch, scale=1.0): return scale * model(batch[0]).square().mean()
def lonely(model): return model
value = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of one's own, found on the path; forgotten afterwards."""
    (tmp_path / "own_tasks.py").write_text(OWN)
    (tmp_path / "own_broken.py").write_text("def (:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("own_tasks", "own_broken"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("own")
def test_data_of_ones_own() -> None:
    raw = data.load("own_tasks:arrays", None)
    assert raw.facts() == registry.Facts(6, 3, (5,), 3)
    assert Samples(raw.train_inputs, raw.train_targets, raw).targets.tolist() == [0, 1, 2, 0, 1, 2]
    assert len(data.load("own_tasks:from_path", "4").train_targets) == 4
    assert data.load("own_tasks:raw", None).classes == 4
    assert data.load("own_tasks:features", None).mean[4] == 0.5
    raw = data.load("own_tasks:backwards", None)
    assert Samples(raw.train_inputs, raw.train_targets, raw).targets.tolist() == [2, 1, 0, 2, 1, 0]
    assert Samples(raw.test_inputs, raw.test_targets, raw).targets.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("three", "returned a tuple; it must return a lossatlas RawData or four arrays"),
        ("ragged", "there are 6 training inputs and 5 targets"),
        ("empty", "there are 0 training inputs and 0 targets"),
        ("fractions", "the training targets are float64 .* must be integers"),
        ("negative", "must be integers of shape .* from 0"),
        ("too_many", "from 0 to 1"),
        ("one_class", "one class; give at least two"),
        ("wide", r"a training sample has inputs of shape \(5,\) and a test sample of \(7,\); give both the same"),
        ("words", r"the training inputs are <U32; they must be real numbers"),
        ("complex", "the test inputs are complex64; they must be real"),
        ("long", "of at most 64 bits"),
        ("colours", r"mean and std hold 3 and 1 numbers, and inputs have shape \(5,\); give one number, or one a"),
        ("broken", "raised KeyError: .a mistake of one's own"),
        ("value", "has no function value"),
        ("missing", "has no function missing"),
    ],
)
def test_wrong_data_of_ones_own(name: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        data.load(f"own_tasks:{name}", None)


@pytest.mark.usefixtures("own")
def test_models_and_losses_of_ones_own() -> None:
    def build(name: str, **options: int) -> Any:
        return models.build(f"own_tasks:{name}", options, input_shape=(5,), classes=3, seed=0)

    assert build("net", width=1).weight.shape == (3, 5)
    assert build("plain", width=4).weight.shape == (4, 5)
    assert build("greedy", width=4).weight.shape == (3, 5)  # input_shape, classes and width
    with pytest.raises(UserError, match="returned a int; it must return a "):
        build("no_net")
    with pytest.raises(UserError, match=r"own_tasks:plain.* raised TypeError"):
        build("plain", depth=4)
    assert losses.build("own_tasks:loss").extras.keys() == {"error"}
    with pytest.raises(UserError, match="has no extra named error"):
        losses.build("own_tasks:errorless")
    with pytest.raises(UserError, match="returned a function; it must return a lossatlas Criterion"):
        losses.build("own_tasks:no_loss")
    assert losses.load("own_tasks:errorless").extras == {}  # type: ignore[union-attr]
    batch = (torch.ones(3, 5),)
    assert losses.load("own_tasks:bare")(torch.nn.Identity(), batch).item() == 1  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"bare function of .model, batch.*sweeps, connect and compare need"):
        losses.build("own_tasks:bare")
    with pytest.raises(UserError, match="takes 1 arguments"):
        losses.load("own_tasks:lonely")


@pytest.mark.usefixtures("own")
def test_regression_is_taken_where_it_is_allowed() -> None:
    raw = data.load("own_tasks:waves", None, regression=True)
    assert raw.classes == 0
    targets = Samples(raw.train_inputs, raw.train_targets, raw).targets
    assert torch.equal(targets, torch.from_numpy(raw.train_targets))
    assert models.build("own_tasks:plain", {"width": 4}, input_shape=(5,), classes=None, seed=0) is not None
    with pytest.raises(UserError, match="model 'mlp' is a classifier"):
        models.build("mlp", {"width": 4}, input_shape=(5,), classes=None, seed=0)
    with pytest.raises(UserError, match=r"they must be integers.*spectrum, line, surface, mine and plane"):
        data.load("own_tasks:waves", None)
    for name, problem in (
        ("fractions", "the training targets are float64"),
        ("cubes", r"of shape \(6, 2, 2\); they must be finite numbers of shape \(N,\) or \(N, d\)"),
        ("unknown", "must be finite"),
        ("mixed", r"targets of shape \(2,\) and a test sample of \(\)"),
        ("forgotten", "classes=0 tells of floating-point ones"),
    ):
        with pytest.raises(UserError, match=problem):
            data.load(f"own_tasks:{name}", None, regression=True)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nothing", "model 'nothing' is unknown. Allowed are mlp, cnn, .*, or your own as module:function"),
        ("no.such.module:f", "the module no.such.module cannot be imported"),
        ("own_broken:f", "the module own_broken cannot be imported .SyntaxError"),
        ("a..b:f", "cannot be imported"),
    ],
)
def test_names_that_lead_nowhere(name: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        models.build(name, {}, input_shape=(5,), classes=3, seed=0)


@pytest.mark.parametrize("name", ["a:b", "a.b:c", "_a1:_b1"])
def test_names_of_ones_own(name: str) -> None:
    assert registry.is_custom(name)


@pytest.mark.parametrize("name", ["a", "a:", ":b", "a:b:c", "a:b.c", "1a:b", "a b:c", "a/b:c"])
def test_names_that_are_none_of_ones_own(name: str) -> None:
    assert not registry.is_custom(name)

"""Which networks are piecewise affine in each single weight: known answers, and the dense diagonals of H and G."""

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import BY_NAME, CASES, Case, Reused, Siamese, conv_net
from lossatlas.landscape.criterion import Criterion, supervised
from lossatlas.landscape.linearity import confirm, piecewise_affine
from lossatlas.landscape.objective import Objective
from lossatlas.tasks.models import resnet18
from oracles.dense import dense_hessian, gauss_newton


class From(nn.Module):
    """A model of two layers and any function of (model, x)."""

    def __init__(self, function: Callable[["From", Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(4, 4), nn.Linear(4, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def objective_of(model: nn.Module, shape: tuple[int, ...] = (4,), **options: object) -> Objective:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, *shape, generator=generator)
    classes = model(x[:2]).flatten(1).shape[1]
    y = torch.randint(0, classes, (6,), generator=generator)
    return Objective(model, [(x, y)], supervised(F.cross_entropy), **options)


class MaxOfTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        return torch.maximum(a, b) + torch.where(a > b, a, 0.5 * b).abs().clamp(max=1.0)


AFFINE = {
    "relu mlp": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)), (4,)),
    "batchnorm conv": (conv_net, (2, 6, 6)),
    "resnet18": (lambda: resnet18(input_shape=(3, 8, 8), classes=3, width=1), (3, 8, 8)),
    "prelu": (lambda: nn.Sequential(nn.Linear(4, 5), nn.PReLU(), nn.LeakyReLU(0.2), nn.Linear(5, 3)), (4,)),
    "piecewise": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Hardtanh(), nn.ReLU6(), nn.Linear(5, 3)), (4,)),
    "max of two": (MaxOfTwo, (4,)),
    "residual": (lambda: From(lambda m, x: x + F.relu(m.b(F.relu(m.a(x))) + m.a(x))), (4,)),
    "disjoint product": (lambda: From(lambda m, x: F.relu(m.a(x)) * m.b(x)), (4,)),
    "parallel reuse": (lambda: From(lambda m, x: m.b(m.a(x) + m.a(-x) + m.a.weight.sum())), (4,)),
    "data attention": (lambda: From(lambda m, x: torch.softmax(x @ x.T, -1) @ m.a(x)), (4,)),
    "eval dropout": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.ReLU(), nn.Linear(5, 3)), (4,)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(9, 3)), (2, 4)),
    "pools": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.AvgPool2d(2), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(2, 3)
        ),
        (1, 4, 4),
    ),
}
CURVED = {
    "tanh": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,), "tanh.*0.weight"),
    "gelu": (lambda: From(lambda m, x: m.b(F.gelu(m.a(x)))), (4,), "gelu.*a.weight"),
    "layer norm": (lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)), (4,), "layer_norm"),
    "softmax": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1)), (4,), "softmax"),
    "gate": (lambda: From(lambda m, x: m.b(m.a(x)) * m.a(x)), (4,), "mul multiplies two factors.*a.bias"),
    "square": (lambda: From(lambda m, x: m.a(x) ** 2), (4,), "pow"),
    "division": (lambda: From(lambda m, x: m.b(x) / (1 + m.a(x).abs())), (4,), "div acts nonlinearly.*a.bias"),
    "twice in series": (lambda: From(lambda m, x: m.a(F.relu(m.a(x)))), (4,), "addmm multiplies.*a.weight"),
    "attention": (lambda: From(lambda m, x: torch.softmax(m.a(x) @ m.b(x).T, -1) @ x), (4,), "softmax"),
    "control flow": (lambda: From(lambda m, x: m.a(x) if m.a(x).sum() > 0 else m.b(x)), (4,), "cannot be traced"),
    "norm": (lambda: From(lambda m, x: m.a(x) * m.a.weight.norm()), (4,), "norm"),
    "silu": (lambda: From(lambda m, x: F.silu(m.a(x))), (4,), "silu"),
}


@pytest.mark.parametrize("name", AFFINE)
def test_holds(name: str) -> None:
    torch.manual_seed(0)
    make, shape = AFFINE[name]
    objective = objective_of(make(), shape)
    assert piecewise_affine(objective).reason == ""
    assert piecewise_affine(objective).holds
    confirmed = confirm(objective, seed=0)
    assert confirmed.reason == ""
    assert confirmed.holds


@pytest.mark.parametrize("name", CURVED)
def test_is_refused_with_its_reason(name: str) -> None:
    torch.manual_seed(0)
    make, shape, reason = CURVED[name]
    found = piecewise_affine(objective_of(make(), shape))
    assert not found.holds
    assert re.search(reason, found.reason), found.reason


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_the_diagonals_of_h_and_g(case: Case) -> None:
    """Where it holds the diagonals agree; these cases where it does not hold do differ, so the test can fail."""
    objective = Objective(case.model, case.batches, case.criterion)
    h = dense_hessian(case.model, case.batches, case.criterion).diagonal()
    g = gauss_newton(case.model, case.batches, case.criterion).diagonal()
    assert piecewise_affine(objective).holds == case.is_affine
    assert ((h - g).abs().max() <= 1e-12 * g.max()) == case.is_affine  # rounding in float64
    assert confirm(objective, seed=0).holds == case.is_affine


def test_batch_statistics_are_refused_unless_they_rest_on_data_alone() -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    assert piecewise_affine(objective_of(inner)).holds
    found = piecewise_affine(objective_of(inner, batchnorm="batch"))
    assert not found.holds
    assert "statistics of the batch" in found.reason
    outer = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    assert piecewise_affine(objective_of(outer, batchnorm="batch")).holds
    assert piecewise_affine(objective_of(inner, batchnorm="recalibrate")).holds


def test_only_the_chosen_parameters_count() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    assert not piecewise_affine(objective_of(model)).holds
    assert piecewise_affine(objective_of(model, params=r"^2\.")).holds
    assert confirm(objective_of(model, params=r"^2\."), seed=0).holds


def test_parameters_used_once_and_more_often() -> None:
    torch.manual_seed(0)
    assert piecewise_affine(Objective(*siamese())).used_once == {
        *("inner.weight", "inner.bias", "last.weight", "last.bias")
    }
    relu = objective_of(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)))
    assert piecewise_affine(relu).used_once == set(relu.layout.names)


def siamese() -> tuple[nn.Module, list[dict[str, Tensor]], Criterion]:
    case = BY_NAME["siamese"]
    assert isinstance(case.model, Siamese)
    return case.model, case.batches, case.criterion


def test_confirmation_catches_what_the_graph_hides() -> None:
    """A gradient hook makes autograd take an identity for a square, and the forward graph does not show it."""

    def hidden(model: From, x: Tensor) -> Tensor:
        h = model.a(x)
        if h.requires_grad:
            h.register_hook(lambda g: g * h)
        return model.b(h)

    torch.manual_seed(0)
    objective = objective_of(From(hidden))
    assert piecewise_affine(objective).holds
    found = confirm(objective, seed=0)
    assert not found.holds
    assert "H and G differ at a." in found.reason


def test_a_function_with_its_own_derivative_is_refused() -> None:
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(_: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(_: torch.autograd.function.FunctionCtx, g: Tensor) -> Tensor:
            return g * 2

    found = piecewise_affine(objective_of(From(lambda m, x: m.b(Hidden.apply(m.a(x))))))
    assert not found.holds
    assert "cannot be traced" in found.reason


@pytest.mark.parametrize("seed", range(5))
def test_a_saturated_loss_is_confirmed(seed: int) -> None:
    """Entries of A down to the rounding of 1 - p: their absolute error must not count as curvature."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        model[2].weight.mul_(400)
    x = torch.randn(6, 4)
    objective = Objective(model, [(x, model(x).argmax(1))], supervised(F.cross_entropy))
    assert confirm(objective, seed=0).reason == ""


def test_the_reused_module_is_quadratic() -> None:
    found = piecewise_affine(objective_of(Reused()))
    assert not found.holds
    assert "shared.weight" in found.reason


def test_a_bare_loss_function_gives_no_outputs() -> None:
    bare = Objective(nn.Linear(2, 1), [torch.ones(3, 2)], lambda model, x: model(x).square().mean())
    assert piecewise_affine(bare).reason == confirm(bare, seed=0).reason == "a bare loss function gives no outputs"


def test_leaves_the_random_state_and_the_model_alone() -> None:
    objective = objective_of(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)))
    before = {name: t.clone() for name, t in objective.model.state_dict().items()}
    state = torch.get_rng_state()
    piecewise_affine(objective)
    confirm(objective, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in objective.model.state_dict().items())
    assert all(p.grad is None for p in objective.model.parameters())


class Shifted(nn.Module):
    """A shift of all scores at once, as the bias of the keys in attention: softmax does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.shift = nn.Linear(4, 3), nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x) + self.shift).softmax(1)


def test_a_weight_without_effect_is_no_disagreement() -> None:
    torch.manual_seed(0)
    model = Shifted().double()
    for seed in range(5):
        x = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        objective = Objective(model, [(x, torch.arange(7) % 3)], supervised(F.cross_entropy))
        assert confirm(objective, affine=False, seed=seed).holds

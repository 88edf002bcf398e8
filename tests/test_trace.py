"""The trace against the dense Hessian, the three ways to sample gradients, and Hutchinson as a statistical law."""

import copy
import math
import warnings
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cases import BY_NAME, CASES, Case, conv_net
from lossatlas.errors import UserError
from lossatlas.landscape import batches as split
from lossatlas.landscape import trace as trace_module
from lossatlas.landscape.criterion import Criterion, supervised
from lossatlas.landscape.hutchinson import TraceEstimate, hutchinson
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.operators import HessianOperator, from_matrix, hessian, second_order
from lossatlas.landscape.sample_gradients import by_loop, by_modules, by_vmap, output_hessians
from lossatlas.landscape.trace import trace
from lossatlas.tasks.models import resnet18
from oracles.dense import dense_hessian, gauss_newton, mean_loss

CPU = torch.device("cpu")


def objective_of(case: Case, **options: object) -> Objective:
    return Objective(case.model, case.batches, case.criterion, **options)


def dense_of(operator: HessianOperator) -> Tensor:
    return operator @ torch.eye(operator.size, dtype=operator.dtype)


def data(n: int, *shape: int, classes: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, *shape, generator=generator, dtype=dtype)
    return x, torch.randint(0, classes, (n,), generator=generator)


# ---- the trace of an objective ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_equals_the_dense_trace(case: Case) -> None:
    expected = dense_hessian(case.model, case.batches, case.criterion).trace().item()
    found = trace(objective_of(case), rel=0.02, max_matvecs=400, seed=0)
    if case.is_affine:
        assert found.method == "exact-ggn"
        assert math.isclose(found.value, expected, rel_tol=1e-10)  # rounding in float64
        assert (found.stderr, found.converged, found.reason, found.matvecs) == (0.0, True, "", 0)
        assert found.passes == (3 if "mse" in case.name else 2)  # rank of A: C, or C - 1 with cross entropy
    else:
        assert found.method == "ggn-hutchinson"
        assert found.passes == (4 if case.name == "tied" else 3 if "mse" in case.name else 2)
        assert abs(found.value - expected) <= 3 * found.stderr  # seeded: one draw of a 99.7% interval
        assert "not exact" in found.reason
        assert math.isnan(found.data_stderr)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_the_batches_do_not_matter(chunk: int) -> None:
    case = BY_NAME["conv_batchnorm"]
    whole = trace(objective_of(case), seed=0)
    found = trace(objective_of(case, chunk=chunk), seed=0)
    assert math.isclose(found.value, whole.value, rel_tol=1e-12)
    assert math.isclose(found.data_stderr, whole.data_stderr, rel_tol=1e-12)


def test_data_stderr_is_that_of_the_samples_own_traces() -> None:
    case = BY_NAME["mlp_relu"]
    singles = [single for batch in case.batches for single in split.pieces(batch, 1)]
    traces = torch.stack([dense_hessian(case.model, [single], case.criterion).trace() for single in singles])
    found = trace(objective_of(case), seed=0)
    assert math.isclose(found.data_stderr, (traces.std() / math.sqrt(len(traces))).item(), rel_tol=1e-9)
    assert math.isnan(trace(Objective(case.model, singles[:1], case.criterion), seed=0).data_stderr)


def test_cross_entropy_equals_the_expected_squared_score() -> None:
    """tr GGN = (1/m) sum_x sum_c p_c ||grad log p_c||^2, written out with plain autograd."""
    case = BY_NAME["conv_batchnorm"]
    model = case.model.eval()
    total, count = 0.0, 0
    for x, _ in case.batches:
        for single in x:
            log_p = F.log_softmax(model(single.unsqueeze(0)), 1)[0]
            for score in log_p:
                gradients = torch.autograd.grad(score, list(model.parameters()), retain_graph=True)
                total += (score.exp() * sum(g.square().sum() for g in gradients)).item()
            count += 1
    assert math.isclose(trace(objective_of(case), seed=0).value, total / count, rel_tol=1e-10)


def test_recalibrated_statistics_and_another_theta() -> None:
    case = BY_NAME["conv_batchnorm"]
    objective = objective_of(case, batchnorm="recalibrate")
    theta = objective.center * 1.1
    by_hand = conv_net().double()
    by_hand.load_state_dict({**objective.unflatten(theta), **objective.buffers(theta)})
    expected = dense_hessian(by_hand, case.batches, case.criterion).trace().item()
    found = trace(objective, theta, seed=0)
    assert found.method == "exact-ggn"
    assert math.isclose(found.value, expected, rel_tol=1e-10)


def test_a_residual_network_is_exact_in_float32() -> None:
    torch.manual_seed(0)
    model = resnet18(input_shape=(3, 8, 8), classes=3, width=1)
    batch = data(6, 3, 8, 8, dtype=torch.float32)
    single = trace(Objective(model, [batch], supervised(F.cross_entropy)), seed=0)
    double = trace(Objective(model, [batch], supervised(F.cross_entropy), dtype=torch.float64), seed=0)
    assert single.method == double.method == "exact-ggn"
    assert math.isclose(single.value, double.value, rel_tol=1e-4)  # twenty layers of float32 (eps 1e-7)


def test_many_outputs_try_probes_first() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 120)).double()
    objective = Objective(model, [data(7, 4, classes=120)], supervised(F.cross_entropy))
    expected = dense_hessian(model, [data(7, 4, classes=120)], supervised(F.cross_entropy)).trace().item()
    cheap = trace(objective, rel=0.5, seed=0)
    assert cheap.method == "hutchinson"
    assert "cheaper than 120 backward passes" in cheap.reason
    assert abs(cheap.value - expected) <= 3 * cheap.stderr
    exact = trace(objective, rel=1e-4, seed=0)
    assert exact.method == "exact-ggn"
    assert (exact.matvecs, exact.passes) == (60, 119)
    assert math.isclose(exact.value, expected, rel_tol=1e-10)


# ---- networks with tr H != tr GGN: the GGN exactly, probes for the rest --------------------------------------


class Attention(nn.Module):
    """One block with LayerNorm, attention over 3 positions and GELU, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(3, 4) / 4)
        self.norm, self.qkv, self.out = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x + self.shift)).unsqueeze(1).chunk(3, dim=-1)
        h = x + F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return self.out(F.gelu(h)).mean(1)


CURVED = {
    "tanh": (lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), (4,)),
    "attention": (Attention, (3, 4)),
    "conv gelu": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.GELU(), nn.Conv2d(3, 2, 2), nn.GELU(), nn.Flatten()
        ),
        (1, 3, 4),
    ),
}


def curved(name: str, n: int = 9) -> tuple[Objective, nn.Module, list[tuple[Tensor, Tensor]]]:
    make, shape = CURVED[name]
    torch.manual_seed(1)
    model = make().double().eval()
    x, y = data(n, *shape)
    y = y.clamp_max(model(x).shape[1] - 1)
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    return Objective(model, batches, supervised(F.cross_entropy)), model, batches


def dense_parts(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """H, by forward over reverse, and G; attention by its plain formula.

    Not by torch.func.hessian, whose jacfwd(jacrev(...)) errs in the block of a LayerNorm's weight (torch 2.13).
    """
    criterion = supervised(F.cross_entropy)
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forward mode uses torch.jit inside
        function, theta = mean_loss(model, batches, criterion)
        matrix = torch.func.jacfwd(torch.func.grad(function))(theta)
        return matrix, gauss_newton(model, batches, criterion)


@pytest.mark.filterwarnings("ignore::lossatlas.landscape.kernels.PlainMathsWarning")
@pytest.mark.parametrize("name", CURVED)
def test_the_known_part_is_the_trace_of_the_ggn(name: str) -> None:
    """tr H = tr G + mean of v'(H - G)v over the same signs, all of it from dense matrices."""
    objective, model, batches = curved(name)
    found = trace(objective, rel=1e-9, floor=0.0, min_probes=20, max_matvecs=20, seed=3)
    hessian_matrix, ggn = dense_parts(model, batches)
    generator = torch.Generator().manual_seed(3)
    rows = []
    for _ in range(5):  # the signs come in fours
        signs = 2.0 * torch.randint(0, 2, (4, len(ggn)), generator=generator, dtype=torch.int8).double() - 1
        rows += [v * ((hessian_matrix - ggn) @ v) for v in signs]
    sample = torch.stack(rows)
    assert (found.method, found.matvecs, found.converged) == ("ggn-hutchinson", 20, False)
    assert math.isclose(found.value, (ggn.trace() + sample.sum(1).mean()).item(), rel_tol=1e-9)
    assert math.isclose(found.stderr, (2 * sample.var(0).sum() / 20).sqrt().item(), rel_tol=1e-8)


@pytest.mark.filterwarnings("ignore::lossatlas.landscape.kernels.PlainMathsWarning")
@pytest.mark.parametrize("name", CURVED)
def test_the_standard_error_of_the_split_is_calibrated(name: str) -> None:
    """The variance is that of all entries: z is about normal; 60 seeds know the mean to 0.13, the std to 0.1."""
    objective, model, batches = curved(name)
    exact, known = (matrix.trace().item() for matrix in dense_parts(model, batches))
    rest = dense_of(second_order(objective))
    op = from_matrix((rest + rest.T) / 2)
    options = {"rel": 1e-9, "floor": 0.0, "min_probes": 20, "max_matvecs": 20, "known": known}
    estimates = [hutchinson(op, seed=seed, **options) for seed in range(60)]
    z = torch.tensor([(e.value - exact) / e.stderr for e in estimates])
    assert abs(z.mean()) < 0.45
    assert 0.75 < z.std() < 1.4


def test_a_fitted_network_needs_far_fewer_probes() -> None:
    """Where the loss is small so is R, and its probes spread less: here the whole gain of the control variate."""
    _, model, batches = curved("tanh", n=12)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        sum(F.cross_entropy(model(x), y, reduction="sum") for x, y in batches).div(12).backward()
        optimizer.step()
    fitted = Objective(model, batches, supervised(F.cross_entropy))
    options = {"rel": 0.02, "floor": 0.0, "max_matvecs": 5000, "seed": 0}
    split_up, plain = trace(fitted, **options), hutchinson(hessian(fitted), **options)
    exact = dense_hessian(model, batches, supervised(F.cross_entropy)).trace().item()
    assert split_up.converged
    assert plain.converged
    assert split_up.matvecs * 10 < plain.matvecs
    assert abs(split_up.value - exact) < 4 * split_up.stderr


class Squares(nn.Module):
    """f = sum_i w_i^2 x_i: with a mean square loss the Hessian is known by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.1, 0.2], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight.square()).unsqueeze(1)


def test_a_negative_trace_is_a_result() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 1.0]], dtype=torch.float64)
    y = torch.ones(2, 1, dtype=torch.float64)
    objective = Objective(Squares(), [(x, y)], supervised(F.mse_loss))
    found = trace(objective, seed=0)
    f, w = x @ torch.tensor([0.01, 0.04], dtype=torch.float64), torch.tensor([0.1, 0.2], dtype=torch.float64)
    # d2 (f - y)^2 / dw_i^2 = 2 (2 w_i x_i)^2 + 2 (f - y) 2 x_i
    exact = (8 * (w * x).square() + 4 * (f - 1).unsqueeze(1) * x).sum(1).mean().item()
    assert exact < 0
    assert found.method == "ggn-hutchinson"
    assert found.stderr == 0  # R is diagonal, which random signs know exactly
    assert math.isclose(found.value, exact, rel_tol=1e-12)


def test_a_loss_that_couples_samples_is_not_split() -> None:
    def contrast(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (outputs - outputs.mean(0)).square().sum(1)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    criterion = Criterion(predict=lambda model, batch: model(batch[0]), loss=contrast)
    found = trace(Objective(model, [data(9, 4)], criterion, chunk=100), rel=0.3, seed=0)
    expected = dense_hessian(model, [data(9, 4)], criterion).trace().item()
    assert found.method == "hutchinson"
    assert "samples do not stand alone" in found.reason
    assert abs(found.value - expected) <= 3 * found.stderr


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_second_order_is_hessian_less_gauss_newton(case: Case) -> None:
    expected = dense_hessian(case.model, case.batches, case.criterion) - gauss_newton(
        case.model, case.batches, case.criterion
    )
    found = dense_of(second_order(objective_of(case, chunk=4)))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)  # rounding in float64


def test_a_bare_loss_function_has_nothing_to_split() -> None:
    objective = Objective(nn.Linear(4, 3).double(), [data(5, 4)], lambda m, b: m(b[0]).square().mean())
    with pytest.raises(UserError, match="no outputs to split"):
        second_order(objective)
    assert trace(objective, rel=0.5, seed=0).method == "hutchinson"


class Coupled(nn.Module):
    """Every sample's outputs depend on the mean of the batch: affine, but no sample stands alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - x.mean(0))


def test_coupled_samples_are_not_taken_apart() -> None:
    torch.manual_seed(0)
    model = Coupled().double()
    found = trace(
        Objective(model, [data(9, 4)], supervised(F.cross_entropy), batchnorm="batch", chunk=100), seed=0
    )
    expected = dense_hessian(model, [data(9, 4)], supervised(F.cross_entropy)).trace().item()
    assert found.method == "hutchinson"
    assert "other samples" in found.reason
    assert abs(found.value - expected) <= 3 * found.stderr


class Hooked(nn.Module):
    """A gradient hook makes autograd take an identity for a square, and the forward graph does not show it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if h.requires_grad:
            h.register_hook(lambda g: g * h)
        return self.b(h)


def test_without_confirmation_nothing_is_called_exact() -> None:
    torch.manual_seed(0)
    found = trace(Objective(Hooked().double(), [data(9, 4)], supervised(F.cross_entropy)), rel=1.0, seed=0)
    assert found.method == "hutchinson"
    assert "H and G differ" in found.reason


def test_outputs_of_every_token_fall_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3)).double()
    criterion = Criterion(
        predict=lambda model, batch: model(batch[0]),
        loss=lambda outputs, batch: F.cross_entropy(outputs.flatten(0, 1), batch[1].flatten(), reduction="none"),
    )
    x = torch.randn(4, 5, 4, dtype=torch.float64)
    y = torch.randint(0, 3, (4, 5))
    found = trace(Objective(model, [(x, y)], criterion), rel=0.5, seed=0)
    assert found.method == "hutchinson"
    assert "differ in number" in found.reason


def test_what_is_not_finite_is_a_result() -> None:
    case = BY_NAME["mlp_relu"]
    objective = objective_of(case)
    found = trace(objective, objective.center * math.nan, seed=0)
    assert math.isnan(found.value)
    assert not found.converged
    assert "not finite" in found.reason


def test_an_unmet_target_is_said() -> None:
    found = trace(objective_of(BY_NAME["mlp_tanh"]), rel=1e-6, floor=0.0, max_matvecs=20, seed=0)
    assert (found.converged, found.matvecs) == (False, 20)
    assert "max_matvecs=20" in found.reason
    assert found.stderr > 0


def test_leaves_the_random_state_alone_and_repeats() -> None:
    objective = objective_of(BY_NAME["mlp_tanh"])
    state = torch.get_rng_state()
    one, same, other = (trace(objective, rel=0.3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert replace(one, data_stderr=0) == replace(same, data_stderr=0)
    assert one.value != other.value


# ---- gradients of single samples ----------------------------------------------------------------------------


class Sequence(nn.Module):
    """Linear layers over positions, which the fast way sums over."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, width), nn.Linear(width, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x))).sum(1)


FAST = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), (4,)),
    "conv": (conv_net, (2, 6, 6)),
    "positions, few": (lambda: Sequence(2), (3, 4)),
    "positions, many": (lambda: Sequence(9), (11, 4)),
    "dilated": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, (2, 3), dilation=(2, 1), padding=(1, 2), bias=False), nn.Flatten()),
        (2, 5, 4),
    ),
    "batchnorm 1d": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3), nn.BatchNorm1d(3)), (4,)),
    "in place": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)), (4,)),
    "resnet18": (lambda: resnet18(input_shape=(3, 8, 8), classes=3, width=1), (3, 8, 8)),
}
SLOW = {
    "prelu": (lambda: nn.Sequential(nn.Linear(4, 6), nn.PReLU(), nn.Linear(6, 3)), (4,)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Flatten()), (2, 4)),
    "circular": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten()),
        (1, 4, 4),
    ),
    "positions first": (lambda: PositionsFirst(), (3, 4)),
}


class PositionsFirst(nn.Module):
    """The layer sees (positions, samples, features), so its first dimension is not the samples'."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x.transpose(0, 1)).relu().sum(0)


def arguments(model: nn.Module, shape: tuple[int, ...], n: int = 5) -> tuple[object, ...]:
    model = model.double()
    classes = model.eval()(torch.zeros(1, *shape, dtype=torch.float64)).shape[1]
    objective = Objective(model, [data(n, *shape, classes=classes)], supervised(F.cross_entropy))
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(n, 4, classes, generator=generator, dtype=torch.float64)
    values = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    point = objective.unflatten(objective.center), objective.buffers(objective.center)
    return objective, *point, next(objective.batches()), vectors, values


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_the_ways_agree(name: str) -> None:
    torch.manual_seed(0)
    make, shape = (FAST | SLOW)[name]
    given = arguments(make(), shape)
    expected = by_loop(*given)
    torch.testing.assert_close(by_vmap(*given), expected, rtol=1e-10, atol=1e-12)
    found = by_modules(*given)
    if name in FAST:
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    else:
        assert found is None


def test_batch_statistics_have_no_gradients_of_single_samples() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    objective = Objective(model, [data(5, 4)], supervised(F.cross_entropy), batchnorm="batch")
    _, *rest = arguments(model, (4,))
    assert by_modules(objective, *rest) is None


def test_samples_first_by_accident_is_found_out() -> None:
    """As many positions as samples: the shapes fit, the numbers do not, and the trace is right all the same."""
    torch.manual_seed(0)
    given = arguments(PositionsFirst(), (3, 4), n=3)
    objective = given[0]
    wrong = by_modules(*given)
    assert wrong is not None
    assert not torch.allclose(wrong, by_loop(*given))
    found = trace(objective, seed=0)
    batches = list(objective.batches())
    expected = (
        dense_hessian(copy.deepcopy(objective.model).requires_grad_(), batches, supervised(F.cross_entropy))
        .trace()
        .item()
    )
    assert found.method == "exact-ggn"
    assert math.isclose(found.value, expected, rel_tol=1e-10)


class UsedOutside(nn.Module):
    """The weight also works outside its module, where no hook sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + F.linear(x.abs(), self.a.weight) + self.b(x)


class UsedOutsideSometimes(UsedOutside):
    """The other use works on a sample in the middle only, where two samples at the ends would not tell."""

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + F.linear(x * (x[:, :1] == 1), self.a.weight) + self.b(x)


def test_a_second_use_that_shows_on_few_samples_is_known_from_the_graph() -> None:
    torch.manual_seed(0)
    model = UsedOutsideSometimes().double()
    x, y = data(5, 4)
    x[2, 0] = 1.0
    expected = dense_hessian(model, [(x, y)], supervised(F.cross_entropy)).trace().item()
    found = trace(Objective(model, [(x, y)], supervised(F.cross_entropy), chunk=100), seed=0)
    assert found.method == "exact-ggn"
    assert math.isclose(found.value, expected, rel_tol=1e-10)


@pytest.mark.parametrize(("make", "shape"), [*SLOW.values(), (UsedOutside, (4,))], ids=[*SLOW, "used outside"])
def test_the_generic_way_is_taken_where_the_fast_one_does_not_fit(make: object, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    objective, *_ = arguments(make(), shape)
    batches = list(objective.batches())
    expected = (
        dense_hessian(copy.deepcopy(objective.model).requires_grad_(), batches, supervised(F.cross_entropy))
        .trace()
        .item()
    )
    found = trace(objective, seed=0)
    assert found.method == "exact-ggn"
    assert math.isclose(found.value, expected, rel_tol=1e-10)


def test_too_many_sample_gradients_are_left_to_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    objective, *_ = arguments(SLOW["prelu"][0](), (4,))
    monkeypatch.setattr(trace_module, "GENERIC_NUMBERS", 10)
    found = trace(objective, rel=0.3, seed=0)
    assert found.method == "hutchinson"
    assert "single samples" in found.reason


def test_a_model_that_vmap_cannot_take_goes_one_by_one() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.slope = nn.Linear(4, 3), nn.PReLU()

        def forward(self, x: Tensor) -> Tensor:
            if torch._C._functorch.maybe_current_level() and torch._C._functorch.is_batchedtensor(x):
                raise RuntimeError("not under vmap")
            return self.slope(self.a(x))

    torch.manual_seed(0)
    objective, *_ = given = arguments(Stubborn(), (4,))
    with pytest.raises(RuntimeError, match="not under vmap"):
        by_vmap(*given)
    batches = list(objective.batches())
    expected = (
        dense_hessian(copy.deepcopy(objective.model).requires_grad_(), batches, supervised(F.cross_entropy))
        .trace()
        .item()
    )
    assert math.isclose(trace(objective, seed=0).value, expected, rel_tol=1e-10)


def test_output_hessians_of_known_losses() -> None:
    x, y = data(4, 3)
    p = x.softmax(1)
    expected = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    found = output_hessians(lambda f, batch: F.cross_entropy(f, batch, reduction="none"), x, y)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    squares = output_hessians(
        lambda f, batch: (f - batch).square().sum((1, 2)), x.view(4, 3, 1), x.view(4, 3, 1) + 1
    )
    torch.testing.assert_close(squares, 2 * torch.eye(3, dtype=torch.float64).expand(4, 3, 3))
    linear = output_hessians(lambda f, _: f.sum(1), x, y)
    assert torch.equal(linear, torch.zeros(4, 3, 3, dtype=torch.float64))


# ---- Hutchinson ---------------------------------------------------------------------------------------------


def random_matrix(n: int = 40) -> Tensor:
    draw = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (draw + draw.T) / 2 + torch.diag(torch.arange(n))


def test_hutchinsons_standard_error_is_calibrated() -> None:
    """Over 200 seeds, (estimate - trace) / stderr has mean 0 and std 1, the variance being that of 40 entries.

    The mean of 200 has a standard error of 0.07, the std of some 0.05: bands of 3.3 of these.
    """
    matrix = random_matrix()
    exact = matrix.trace().item()
    op = from_matrix(matrix)
    fixed = [hutchinson(op, rel=1e-12, floor=0.0, min_probes=20, max_matvecs=20, seed=s) for s in range(200)]
    assert all(estimate.matvecs == 20 for estimate in fixed)
    z = torch.tensor([(estimate.value - exact) / estimate.stderr for estimate in fixed])
    assert abs(z.mean()) < 0.24
    assert 0.83 < z.std() < 1.17


@pytest.mark.parametrize("rank", [1, 3, 30])
def test_stopping_early_does_not_underrate_the_error(rank: int) -> None:
    """Low rank: v'Av has long tails, and the sample that misses them would stop first and think itself good.

    The target asks for some 36 probes, the least number is 16. Over 400 seeds the std of z is known to some 5%
    (tails longer than normal ones); the variance of the forms gives 1.38, 1.11, 1.10.
    """
    factor = torch.randn(60, rank, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrix = factor @ factor.T
    exact = matrix.trace().item()
    spread = math.sqrt(2 * (matrix.square().sum() - matrix.diagonal().square().sum()).item())
    op, options = from_matrix(matrix), {"rel": spread / exact / 6, "floor": 0.0, "max_matvecs": 2000}
    found = [hutchinson(op, seed=seed, **options) for seed in range(400)]
    assert all(estimate.converged for estimate in found)
    assert min(estimate.matvecs for estimate in found) < max(estimate.matvecs for estimate in found)
    z = torch.tensor([(estimate.value - exact) / estimate.stderr for estimate in found])
    assert z.std() < 1.1


def test_the_spread_is_the_known_variance() -> None:
    """Var v'Av = 2 sum_{i != j} a_ij^2 for random signs; 2,000 probes know a std to 1.6%; 5% is three of these."""
    matrix = random_matrix()
    estimate = hutchinson(from_matrix(matrix), rel=1e-12, floor=0.0, max_matvecs=2000, seed=0)
    variance = 2 * (matrix.square().sum() - matrix.diagonal().square().sum()).item()
    assert math.isclose(estimate.stderr * math.sqrt(2000), math.sqrt(variance), rel_tol=0.05)


def test_a_diagonal_matrix_takes_the_least_number_of_probes() -> None:
    estimate = hutchinson(from_matrix(torch.diag(torch.arange(5.0))), seed=0, min_probes=6)
    assert (estimate.value, estimate.stderr, estimate.matvecs) == (10.0, 0.0, 8)  # products come in fours
    assert estimate.converged


def test_stops_at_the_relative_target_or_at_the_floor() -> None:
    op = from_matrix(random_matrix())
    relative = hutchinson(op, rel=0.004, floor=0.0, max_matvecs=5000, seed=0)
    assert relative.converged
    assert relative.stderr <= 0.004 * abs(relative.value)
    assert relative.matvecs > 16
    centred = random_matrix()
    centred -= torch.diag(centred.diagonal())  # trace 0: no relative target can be met
    hopeless = hutchinson(from_matrix(centred), rel=0.01, floor=0.0, max_matvecs=100, seed=0)
    assert not hopeless.converged
    floored = hutchinson(from_matrix(centred), rel=0.01, floor=4.0, max_matvecs=1000, seed=0)
    assert floored.converged
    assert floored.stderr <= 4.0


@dataclass
class Broken:
    size: int = 4
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return vectors * math.inf


def test_a_product_that_is_not_finite_ends_the_search() -> None:
    found = hutchinson(Broken(), seed=0)
    assert isinstance(found, TraceEstimate)
    assert math.isnan(found.value)
    assert math.isnan(found.stderr)
    assert (found.converged, found.matvecs) == (False, 16)
    assert "not finite" in found.reason


@pytest.mark.parametrize(
    "options", [{"rel": 0.0, "floor": 0.0}, {"rel": -1.0}, {"floor": -1.0}, {"min_probes": 1}, {"max_matvecs": 15}]
)
def test_impossible_budgets_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"do not fit|set no target"):
        hutchinson(from_matrix(torch.eye(3)), seed=0, **options)
    with pytest.raises(UserError, match=r"do not fit|set no target"):
        trace(objective_of(BY_NAME["mlp_relu"]), seed=0, **options)

"""The Objective: sums over ragged batches, BatchNorm policies, and the caller's model left as found."""

import copy
import math
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from cases import BY_NAME, CASES, Case, Tied, conv_net
from lossatlas.errors import UserError
from lossatlas.landscape import batches as split
from lossatlas.landscape.criterion import supervised
from lossatlas.landscape.lanczos import eigenpairs
from lossatlas.landscape.linearity import confirm, piecewise_affine
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.operators import hessian
from lossatlas.landscape.parameters import flat_parameters
from lossatlas.landscape.trace import trace
from oracles.dense import mean_loss

CLOSE = {"rtol": 1e-12, "atol": 1e-14}  # float64 sums in another order


def percent_wrong(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return 100.0 * (outputs.argmax(1) != batch[1])


def joined(batches: list[Any]) -> list[Any]:
    """All batches as one."""
    if isinstance(batches[0], dict):
        return [{key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}]
    return [tuple(torch.cat(parts) for parts in zip(*batches, strict=True))]


# ---- sums over samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_ragged_batches_equal_the_whole(case: Case) -> None:
    ragged = Objective(case.model, case.batches, case.criterion)
    whole = Objective(case.model, joined(case.batches), case.criterion)
    function, theta = mean_loss(case.model, case.batches, case.criterion)
    theta = theta.requires_grad_()
    expected = function(theta)
    (gradient,) = torch.autograd.grad(expected, theta)
    for objective in (ragged, whole):
        assert torch.equal(objective.center, theta.detach())
        torch.testing.assert_close(objective(objective.center), expected.detach(), **CLOSE)
        torch.testing.assert_close(objective.gradient(objective.center), gradient, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("chunk", [1, 2, 5, 7, 1000, None])
def test_chunk_sizes_agree(chunk: int | None) -> None:
    case = BY_NAME["conv_batchnorm"]
    reference = Objective(case.model, case.batches, case.criterion, chunk=4)
    objective = Objective(case.model, case.batches, case.criterion, chunk=chunk)
    theta = objective.center * 1.1
    torch.testing.assert_close(objective(theta), reference(theta), **CLOSE)
    torch.testing.assert_close(objective.gradient(theta), reference.gradient(theta), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(objective.outputs(theta), reference.outputs(theta), **CLOSE)
    pieces = [len(batch[1]) for batch in objective.batches()]
    assert sum(pieces) == 13
    assert max(pieces) <= (chunk or 13)


def test_values_extras_samples_and_outputs() -> None:
    case = BY_NAME["mlp_relu"]
    criterion = supervised(F.cross_entropy, {"error": percent_wrong})
    objective = Objective(case.model, case.batches, criterion)
    thetas = torch.stack([objective.center, torch.zeros_like(objective.center)])
    values = objective.values(thetas)
    x, y = joined(case.batches)[0]
    outputs = case.model(x).detach()
    assert values["loss"].dtype == torch.float64
    wrong = 100 * (outputs.argmax(1) != y).double().mean()
    torch.testing.assert_close(values["error"][0], wrong, **CLOSE)
    # at theta = 0 all outputs are equal: the loss of guessing
    assert math.isclose(values["loss"][1].item(), math.log(3), rel_tol=1e-12)
    torch.testing.assert_close(objective.outputs(objective.center), outputs, **CLOSE)
    samples = objective.samples(objective.center)
    torch.testing.assert_close(samples["loss"], F.cross_entropy(outputs, y, reduction="none").detach(), **CLOSE)
    torch.testing.assert_close(samples["error"].mean(), wrong.to(samples["error"].dtype), rtol=1e-6, atol=0)


def test_a_bare_loss_function_is_weighted_by_samples() -> None:
    case = BY_NAME["mlp_relu_mse"]
    bare = Objective(case.model, case.batches, lambda model, batch: F.mse_loss(model(batch[0]), batch[1]))
    whole = Objective(case.model, case.batches, case.criterion)
    torch.testing.assert_close(bare(bare.center), whole(whole.center), **CLOSE)
    torch.testing.assert_close(bare.gradient(bare.center), whole.gradient(whole.center), rtol=1e-10, atol=1e-13)
    with pytest.raises(UserError, match="no outputs"):
        bare.outputs(bare.center)
    with pytest.raises(UserError, match="single samples"):
        bare.samples(bare.center)


def test_data_may_be_a_function_or_a_loader() -> None:
    case = BY_NAME["mlp_relu"]
    expected = Objective(case.model, case.batches, case.criterion)
    x, y = joined(case.batches)[0]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=5)
    for data in (lambda: iter(case.batches), loader):
        found = Objective(case.model, data, case.criterion)
        torch.testing.assert_close(found(found.center), expected(expected.center), **CLOSE)


def test_dtype_moves_the_copy_and_the_batches() -> None:
    case = BY_NAME["conv_batchnorm"]
    single = Objective(case.model, case.batches, case.criterion, dtype=torch.float32)
    assert single.center.dtype == torch.float32
    assert single.outputs(single.center).dtype == torch.float32
    assert next(case.model.parameters()).dtype == torch.float64
    double = Objective(case.model, case.batches, case.criterion)
    # float32 weights and sums: eps 6e-8 through some hundred operations
    assert math.isclose(single(single.center).item(), double(double.center).item(), rel_tol=1e-5)


# ---- batches of any kind, losses of one's own ---------------------------------------------------------------


def test_batches_keep_their_type_and_are_moved_and_cut() -> None:
    x, y = torch.randn(5, 4), torch.arange(5)
    for batch in ({"x": x, "y": y}, OrderedDict(x=x, y=y), UserDict(x=x, y=y), defaultdict(list, x=x, y=y)):
        moved = split.move(batch, torch.float64, torch.device("cpu"))
        assert type(moved) is type(batch)
        assert (moved["x"].dtype, moved["y"].dtype) == (torch.float64, torch.int64)
        parts = list(split.pieces(moved, 2))
        assert [len(part["y"]) for part in parts] == [2, 2, 1]
        assert torch.equal(torch.cat([part["x"] for part in parts]), x.double())
        assert batch["x"] is x


@pytest.mark.parametrize("extra", [["a", "b", "c", "d", "e"], torch.arange(3), torch.tensor(0.1), range(5)])
def test_a_batch_with_a_part_that_cannot_be_cut_stays_whole(extra: Any) -> None:
    (only,) = split.pieces({"x": torch.randn(5, 4), "extra": extra}, 2)
    assert len(only["x"]) == 5
    assert only["extra"] is extra


def test_what_belongs_to_the_whole_batch_does_not_keep_it_whole() -> None:
    parts = list(split.pieces((torch.randn(5, 4), "a task", None, 0.1), 2))
    assert [part[1:] for part in parts] == [("a task", None, 0.1)] * 3


def token_mean(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The mean over the tokens that are not padding, as models of texts have it: not a mean over samples."""
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), ignore_index=-1)


def test_a_bare_loss_is_split_only_where_it_is_a_mean_over_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "ACTIVATION_BYTES", 1)  # pieces as small as they come
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3).double(), torch.randn(40, 6, 4, dtype=torch.float64)
    y = torch.where(torch.arange(6) < torch.arange(40).unsqueeze(1) % 6 + 1, torch.randint(0, 3, (40, 6)), -1)
    losses: dict[str, tuple[Any, int]] = {
        "mean over samples": (lambda m, b: m(b[0]).square().mean(), 16),
        "over tokens": (token_mean, 40),
        "between samples": (lambda m, b: m(b[0]).var(0).mean(), 40),
        "needs several": (lambda m, b: m(b[0][-3:]).square().mean() + m(b[0][7]).mean(), 40),
    }
    for name, (loss, longest) in losses.items():
        objective = Objective(model, [(x, y)], loss)
        assert max(len(b[0]) for b in objective.batches()) == longest, name
        torch.testing.assert_close(objective(objective.center), loss(model, (x, y)).detach(), **CLOSE)
    assert Objective(model, [(x, y)], token_mean, chunk=7).chunk == 7  # who gives it, knows


class Solution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def residual(model: nn.Module, points: Tensor) -> Tensor:
    """u' + u on the points, written as for training: without a thought of no_grad."""
    x = points.clone().requires_grad_()
    u = model(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    return (slope + u).square().mean()


@pytest.mark.parametrize("params", [None, r"net\.0"])
def test_a_loss_may_differentiate_inside(params: str | None) -> None:
    torch.manual_seed(0)
    model, points = Solution().double(), [torch.rand(n, 1, dtype=torch.float64) for n in (7, 4)]
    objective = Objective(model, points, residual, params=params)
    with torch.no_grad():
        value = objective(objective.center)
        slope = objective.gradient(objective.center)
    expected = residual(model, torch.cat(points))
    assert not value.requires_grad
    torch.testing.assert_close(value, expected.detach(), **CLOSE)
    chosen = [p for n, p in model.named_parameters() if params is None or n.startswith("net.0")]
    by_hand = torch.autograd.grad(expected, chosen)
    torch.testing.assert_close(slope, torch.cat([g.flatten() for g in by_hand]), rtol=1e-10, atol=1e-13)
    v, h = torch.ones_like(slope), 1e-5  # truncation ~ h^2, rounding ~ 1e-16 / h
    ends = [objective.gradient(objective.center + sign * h * v) for sign in (1, -1)]
    torch.testing.assert_close(hessian(objective) @ v, (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-8)


def test_values_build_no_graph() -> None:
    """Nor through parameters that are not chosen, whose graph would hold the activations of all data."""
    case = BY_NAME["mlp_relu"]
    objective = Objective(case.model, case.batches, case.criterion, params=r"^4\.")
    seen: list[bool] = []
    objective.model.register_forward_hook(lambda _m, _i, out: seen.append(out.requires_grad))
    objective(objective.center)
    assert not objective.outputs(objective.center).requires_grad
    assert seen == [False] * 6
    assert all(p.requires_grad for p in case.model.parameters())


def test_buffers_are_moved_and_never_written() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.register_buffer("scale", torch.tensor([1.0, 2.0, 0.5]))
            self.register_buffer("calls", torch.tensor(0))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.layer(x) * self.scale

    torch.manual_seed(0)
    model, case = Counting(), BY_NAME["mlp_relu"]
    objective = Objective(model, case.batches, case.criterion, dtype=torch.float64)
    objective.values(torch.stack([objective.center] * 2))
    hessian(objective) @ objective.center
    buffers = objective.buffers(objective.center)
    assert (buffers["scale"].dtype, buffers["calls"].dtype) == (torch.float64, torch.int64)
    assert int(buffers["calls"]) == int(model.calls) == 0
    assert model.scale.dtype == torch.float32


# ---- parameters ---------------------------------------------------------------------------------------------


def test_tied_and_frozen_parameters() -> None:
    torch.manual_seed(0)
    model = Tied().double()
    model.decoder.bias.requires_grad_(False)
    batches = [(x, x) for x in torch.randn(2, 3, 4, dtype=torch.float64)]
    objective = Objective(model, batches, supervised(F.mse_loss))
    assert objective.layout.names == ("encoder.weight", "encoder.bias")
    assert torch.equal(objective.center, flat_parameters(model))
    theta = objective.center * 0.5
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        by_hand.encoder.weight.mul_(0.5)  # the decoder's too
        by_hand.encoder.bias.mul_(0.5)
    expected = torch.stack([F.mse_loss(by_hand(x), x) for x, _ in batches]).mean()
    torch.testing.assert_close(objective(theta), expected.detach(), **CLOSE)
    expected.backward()
    gradient = torch.cat([by_hand.encoder.weight.grad.flatten(), by_hand.encoder.bias.grad])
    torch.testing.assert_close(objective.gradient(theta), gradient, rtol=1e-10, atol=1e-13)


def test_parameters_chosen_by_name() -> None:
    case = BY_NAME["mlp_relu"]
    objective = Objective(case.model, case.batches, case.criterion, params=r"weight$")
    assert objective.layout.names == ("0.weight", "2.weight", "4.weight")
    assert objective.center.shape == (24 + 30 + 15,)
    whole = Objective(case.model, case.batches, case.criterion)
    torch.testing.assert_close(objective(objective.center), whole(whole.center), **CLOSE)
    with pytest.raises(UserError, match=r"matches none.*0\.weight"):
        Objective(case.model, case.batches, case.criterion, params="scale")


# ---- BatchNorm ----------------------------------------------------------------------------------------------


def by_hand(model: nn.Sequential, x: Tensor, statistics: Callable[[int, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """The conv net's outputs with BatchNorm written out; statistics(layer, its input) -> mean, variance."""
    for index, layer in enumerate(model):
        if isinstance(layer, nn.BatchNorm2d):
            mean, variance = (s.view(1, -1, 1, 1) for s in statistics(index, x))
            scale, shift = layer.weight.view(1, -1, 1, 1), layer.bias.view(1, -1, 1, 1)
            x = scale * (x - mean) / (variance + layer.eps).sqrt() + shift
        else:
            x = layer(x)
    return x.detach()


def of_batch(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)


def test_batchnorm_eval_uses_the_running_statistics() -> None:
    case = BY_NAME["conv_batchnorm"]
    model = copy.deepcopy(case.model)
    objective = Objective(model, case.batches, case.criterion, batchnorm="eval")
    expected = [
        by_hand(model, x, lambda i, _: (model[i].running_mean, model[i].running_var)) for x, _ in case.batches
    ]
    torch.testing.assert_close(objective.outputs(objective.center), torch.cat(expected), rtol=1e-10, atol=1e-12)


def test_batchnorm_batch_uses_each_of_the_callers_batches_whole() -> None:
    case = BY_NAME["conv_batchnorm"]
    model = copy.deepcopy(case.model)
    objective = Objective(model, case.batches, case.criterion, batchnorm="batch", chunk=2)
    expected = [by_hand(model, x, lambda _, h: of_batch(h)) for x, _ in case.batches]
    torch.testing.assert_close(objective.outputs(objective.center), torch.cat(expected), rtol=1e-10, atol=1e-12)
    assert [len(y) for _, y in objective.batches()] == [5, 5, 3]


def test_recalibration_equals_torchs_own_on_equal_batches() -> None:
    model = copy.deepcopy(BY_NAME["conv_batchnorm"].model)
    torch.manual_seed(0)
    batches = [(torch.randn(6, 2, 6, 6, dtype=torch.float64), torch.randint(0, 3, (6,))) for _ in range(3)]
    objective = Objective(model, batches, supervised(F.cross_entropy), batchnorm="recalibrate", chunk=4)
    reference = copy.deepcopy(model)
    update_bn([x for x, _ in batches], reference)
    buffers = objective.buffers(objective.center)
    for name, expected in reference.named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffers[name], expected, **CLOSE)
    reference.eval()
    expected = torch.cat([reference(x) for x, _ in batches]).detach()
    torch.testing.assert_close(objective.outputs(objective.center), expected, rtol=1e-10, atol=1e-12)


def test_recalibration_weighs_ragged_batches_by_samples_at_the_given_theta() -> None:
    case = BY_NAME["conv_batchnorm"]
    objective = Objective(case.model, case.batches, case.criterion, batchnorm="recalibrate")
    theta = objective.center * 2
    model = copy.deepcopy(case.model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    seen, means, variances = 0, torch.zeros(4).double(), torch.zeros(4).double()
    for x, _ in case.batches:
        hidden = model[0](x).detach()
        seen += len(x)
        means += len(x) * hidden.mean((0, 2, 3))
        variances += len(x) * hidden.var((0, 2, 3))  # PyTorch keeps the unbiased variance
    buffers = objective.buffers(theta)
    torch.testing.assert_close(buffers["1.running_mean"], means / seen, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(buffers["1.running_var"], variances / seen, rtol=1e-10, atol=1e-12)


def test_recalibration_on_data_of_its_own() -> None:
    case = BY_NAME["conv_batchnorm"]
    own = Objective(
        case.model, case.batches, case.criterion, batchnorm="recalibrate", recalibration=case.batches[:1]
    )
    first = Objective(case.model, case.batches[:1], case.criterion, batchnorm="recalibrate")
    for name, buffer in first.buffers(first.center).items():
        torch.testing.assert_close(own.buffers(own.center)[name], buffer, **CLOSE)
    assert len(own.outputs(own.center)) == 13


def test_an_unknown_policy_is_refused() -> None:
    case = BY_NAME["conv_batchnorm"]
    with pytest.raises(UserError, match="eval, recalibrate, batch"):
        Objective(case.model, case.batches, case.criterion, batchnorm="train")


def test_batchnorm_without_running_statistics_depends_on_the_batches() -> None:
    case = BY_NAME["mlp_relu"]
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).double()
    for policy in ("eval", "recalibrate"):
        with pytest.raises(UserError, match="keeps none"):
            Objective(model, case.batches, case.criterion, batchnorm=policy)
    assert len(Objective(model, case.batches, case.criterion, batchnorm="batch", chunk=1).center) == 21


# ---- the caller's model -------------------------------------------------------------------------------------


def state_of(model: nn.Module) -> list[Any]:
    """Everything that a call might change, the global random state included."""
    return [
        OrderedDict((name, t.clone()) for name, t in model.state_dict().items()),
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        [module.training for module in model.modules()],
        [getattr(module, "momentum", None) for module in model.modules()],
        [len(module._forward_hooks) for module in model.modules()],
        torch.get_rng_state(),
        torch.is_grad_enabled(),
    ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def raising(objective: Objective) -> None:
    with suppress(UserError):
        objective(torch.zeros(3))
    with suppress(UserError):
        hessian(objective) @ torch.zeros(3)


CALLS: dict[str, Callable[[Objective], object]] = {
    "value": lambda objective: objective(objective.center),
    "values": lambda objective: objective.values(objective.center.unsqueeze(0)),
    "gradient": lambda objective: objective.gradient(objective.center),
    "outputs": lambda objective: objective.outputs(objective.center),
    "samples": lambda objective: objective.samples(objective.center),
    "buffers": lambda objective: objective.buffers(objective.center),
    "hessian": lambda objective: hessian(objective) @ objective.center,
    "eigenpairs": lambda objective: eigenpairs(hessian(objective), max_matvecs=4, seed=0),
    "linearity": piecewise_affine,
    "confirm": lambda objective: confirm(objective, seed=0),
    "trace": lambda objective: trace(objective, seed=0, rel=1.0),
    "an error": raising,
}


@pytest.mark.parametrize("policy", ["eval", "recalibrate", "batch"])
@pytest.mark.parametrize("call", CALLS)
def test_the_callers_model_is_left_as_found(policy: str, call: str) -> None:
    case = BY_NAME["conv_batchnorm"]
    model = copy.deepcopy(case.model)
    model.train()
    model[3].eval()  # a mixture of modes
    model(case.batches[0][0]).sum().backward()
    inputs = copy.deepcopy(case.batches)
    before = state_of(model)
    objective = Objective(model, case.batches, case.criterion, batchnorm=policy)
    CALLS[call](objective)
    assert same(state_of(model), before)
    assert all(
        torch.equal(a, b)
        for one, other in zip(case.batches, inputs, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    # and the private copy answers the same afterwards
    assert torch.equal(
        objective(objective.center),
        Objective(model, case.batches, case.criterion, batchnorm=policy)(objective.center),
    )


def test_a_model_that_raises_midway_is_left_as_found() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer, self.limit = nn.BatchNorm1d(4), nn.Linear(4, 3), 1e9

        def forward(self, x: Tensor) -> Tensor:
            out = self.layer(self.norm(x))
            if out.abs().max() > self.limit:
                raise ValueError("too large")
            return out

    torch.manual_seed(0)
    model = Failing().double()
    case = BY_NAME["mlp_relu"]
    before = state_of(model)
    for policy in ("eval", "recalibrate", "batch"):
        objective = Objective(model, case.batches, case.criterion, batchnorm=policy)
        first = objective(objective.center)
        huge = objective.center * 1e12
        for call in (objective, objective.gradient, objective.outputs, lambda t, o=objective: hessian(o, t) @ t):
            with pytest.raises(ValueError, match="too large"):
                call(huge)
            assert same(state_of(model), before)
            assert torch.equal(objective(objective.center), first)


def test_changes_of_the_model_afterwards_do_not_reach_the_objective() -> None:
    case = BY_NAME["mlp_relu"]
    model = copy.deepcopy(case.model)
    objective = Objective(model, case.batches, case.criterion)
    before = objective(objective.center)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.equal(objective(objective.center), before)


# ---- what is refused ----------------------------------------------------------------------------------------


def test_a_generator_is_refused() -> None:
    case = BY_NAME["mlp_relu"]

    def generator() -> Iterator[Any]:
        yield from case.batches

    with pytest.raises(UserError, match="generator, which can be read only once"):
        Objective(case.model, generator(), case.criterion)
    with pytest.raises(UserError, match="recalibration is a generator"):
        Objective(case.model, case.batches, case.criterion, recalibration=generator())
    with pytest.raises(UserError, match="data is a int"):
        Objective(case.model, 3, case.criterion)
    with pytest.raises(UserError, match="no batch"):
        Objective(case.model, [], case.criterion)


class RandomNet(nn.Module):
    """Dropout as a function, which eval mode does not switch off."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.layer(x), 0.5, training=True)


def test_dropout_as_a_function_is_refused_and_as_a_layer_is_off() -> None:
    case = BY_NAME["mlp_relu"]
    state = torch.get_rng_state()
    with pytest.raises(UserError, match="not a function of the parameters"):
        Objective(RandomNet().double(), case.batches, case.criterion)
    torch.set_rng_state(state)
    model = nn.Sequential(nn.Linear(4, 3)).double()
    with pytest.raises(UserError, match="not a function of the parameters"):
        Objective(
            model, case.batches, lambda model, batch: F.cross_entropy(model(batch[0] + torch.randn(1)), batch[1])
        )
    layer = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).double().train()
    objective = Objective(layer, case.batches, case.criterion)
    assert torch.equal(objective(objective.center), objective(objective.center))


def test_other_mistakes_are_named() -> None:
    case = BY_NAME["mlp_relu"]
    with pytest.raises(UserError, match="no parameters"):
        Objective(nn.ReLU(), case.batches, case.criterion)
    with pytest.raises(UserError, match="No parameter to vary"):
        Objective(copy.deepcopy(case.model).requires_grad_(False), case.batches, case.criterion)
    with pytest.raises(UserError, match="chunk=0"):
        Objective(case.model, case.batches, case.criterion, chunk=0)
    with pytest.raises(UserError, match="mps has no float64"):
        Objective(case.model, case.batches, case.criterion, device="mps")
    spectral = nn.Linear(4, 3)
    spectral.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(UserError, match=r"phase is torch\.complex64"):
        Objective(spectral, case.batches, case.criterion)
    with pytest.raises(UserError, match="does not depend on the chosen parameters"):
        Objective(case.model, case.batches, lambda _, batch: batch[0].mean())
    objective = Objective(case.model, case.batches, case.criterion)
    with pytest.raises(UserError, match=r"takes \(83,\)"):
        objective(torch.zeros(3))


def test_the_random_state_is_put_back_when_the_model_draws() -> None:
    """A model may consume random numbers without depending on them."""

    class Drawing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            torch.rand(3)
            return super().forward(x)

    case = BY_NAME["mlp_relu"]
    state = torch.get_rng_state()
    objective = Objective(Drawing(4, 3).double(), case.batches, case.criterion)
    after_init = torch.get_rng_state()
    for call in CALLS.values():
        call(objective)
        assert torch.equal(torch.get_rng_state(), after_init)
    torch.set_rng_state(state)


def test_conv_net_statistics_are_not_the_initial_ones() -> None:
    """Else the tests of the policies above could not tell them apart."""
    norm = conv_net()[1]
    assert not torch.equal(norm.running_mean, torch.zeros(4))
    assert not torch.equal(norm.running_var, torch.ones(4))

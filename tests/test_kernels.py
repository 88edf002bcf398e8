"""Fused kernels without the derivative that is needed: plain maths takes their place, says so, and is put back."""

import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lossatlas as la
from lossatlas.errors import UserError
from lossatlas.landscape.kernels import Kernels, PlainMathsWarning

ATTENTION = "derivative for aten::_scaled_dot_product_{}_attention_backward is not implemented"
EVAL_MODE = "cudnn RNN backward can only be called in training mode"


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(n, 4, generator=generator).double(), torch.arange(n) % 3) for n in (5, 3)]


def objective_of(model: nn.Module) -> la.Objective:
    return la.Objective(model, batches(), la.supervised(F.cross_entropy))


class Refusing(torch.autograd.Function):
    """The identity, whose derivative of a given order raises what a fused kernel raises."""

    @staticmethod
    def forward(ctx: object, x: Tensor, order: int, text: str) -> Tensor:
        ctx.order, ctx.text = order, text
        return x.clone()

    @staticmethod
    def backward(ctx: object, slope: Tensor) -> tuple[Tensor, None, None]:
        if ctx.order == 1:
            raise RuntimeError(ctx.text)
        return Refusing.apply(slope, ctx.order - 1, ctx.text), None, None


class Layered(nn.Module):
    """tanh between two layers, by what counts as a fused kernel wherever PyTorch is free to take one."""

    def __init__(self, kernel: str = "", order: int = 2, text: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6).double(), nn.Linear(6, 3).double()
        self.kernel, self.order, self.text = kernel, order, text

    @property
    def is_fused(self) -> bool:
        if self.kernel == "cuDNN":
            return torch.backends.cudnn.enabled
        return bool(self.kernel) and torch.backends.cuda.flash_sdp_enabled()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()
        return self.last(Refusing.apply(h, self.order, self.text) if self.is_fused else h)


def products(objective: la.Objective) -> Tensor:
    size = objective.layout.size
    return la.hessian(objective) @ torch.randn(size, 3, generator=torch.Generator().manual_seed(1)).double()


def flags() -> tuple[bool, ...]:
    cuda = torch.backends.cuda
    fused = (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled())
    return (torch.backends.cudnn.enabled, *fused, cuda.math_sdp_enabled())


# ---- second derivatives -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flash", "efficient", "cudnn", "fused_flash"])
def test_attention_is_taken_again_with_plain_maths(kind: str) -> None:
    objective, before = objective_of(Layered("attention", text=ATTENTION.format(kind))), flags()
    with pytest.warns(PlainMathsWarning, match=rf"fused attention .*{kind}_attention_backward.*plain operations"):
        found = products(objective)
    assert torch.equal(found, products(objective_of(Layered())))
    assert flags() == before


@pytest.fixture
def cudnn_rnn() -> Iterator[None]:
    """PyTorch's own operator of cuDNN's recurrent layers, with kernels on the CPU: input * weight."""

    def forward(x: Tensor, weight: list[Tensor], _stride: int, _buffer: object, hx: Tensor, *_: object) -> object:
        nothing = x.new_zeros(1)
        return x * weight[0], hx.clone(), hx.clone(), nothing, nothing

    def backward(
        x: Tensor, weight: list[Tensor], _s: int, _b: object, hx: Tensor, _c: object, _o: object, slope: Tensor,
        *_: object,
    ) -> object:  # fmt: skip
        return slope * weight[0], torch.zeros_like(hx), torch.zeros_like(hx), [(slope * x).sum(0)]

    library = torch.library.Library("aten", "IMPL")
    library.impl("_cudnn_rnn", forward, "CPU")
    library.impl("_cudnn_rnn_backward", backward, "CPU")
    yield
    library._destroy()


class Recurrent(nn.Module):
    """x * weight by that operator where cuDNN is enabled, else by plain maths."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.last = nn.Parameter(torch.randn(4).double()), nn.Linear(4, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        if torch.backends.cudnn.enabled:
            options = (None, x.new_zeros(1), None, 2, 4, 0, 1, False, 0.0, True, False, [], None)
            h = torch.ops.aten._cudnn_rnn(x, [self.weight], 1, *options)[0]
        else:
            h = x * self.weight
        return self.last(h.tanh())


@pytest.mark.usefixtures("cudnn_rnn")
def test_pytorchs_own_refusal_of_cudnn_is_known() -> None:
    objective, before = objective_of(Recurrent()), flags()
    slope = objective.gradient(objective.center)  # a first derivative needs no retry
    with pytest.warns(PlainMathsWarning, match="cuDNN .*_cudnn_rnn_backward"):
        found = products(objective)
    assert flags() == before
    with torch.backends.cudnn.flags(enabled=False):
        plain = objective_of(Recurrent())
        torch.testing.assert_close(found, products(plain), rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(slope, plain.gradient(plain.center), rtol=1e-12, atol=1e-15)


def test_it_is_said_once_an_objective_and_remembered() -> None:
    objective = objective_of(Layered("attention", text=ATTENTION.format("flash")))
    with pytest.warns(PlainMathsWarning) as said:
        products(objective)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        products(objective)
        assert la.trace(objective, rel=0.5, seed=0).method == "ggn-hutchinson"
        la.eigenpairs(next(iter(la.blocks(objective).values())), 1, max_matvecs=3, seed=0)


def test_values_keep_the_kernel_that_they_had() -> None:
    """A Hessian in between must not change a loss or a gradient by rounding."""
    objective = objective_of(Layered("attention", text=ATTENTION.format("flash")))
    calls: list[bool] = []
    objective.model.register_forward_hook(lambda model, *_: calls.append(model.is_fused))
    with pytest.warns(PlainMathsWarning):
        products(objective)
    calls.clear()
    objective(objective.center)
    objective.gradient(objective.center)
    assert calls == [True] * 4  # two batches each


def test_kept_graphs_of_the_fused_kernel_are_dropped() -> None:
    """The last layer's block needs no second derivative of the kernel, the first one's does."""
    objective = objective_of(Layered("attention", text=ATTENTION.format("flash")))
    plain = la.blocks(objective_of(Layered()))
    first, last = la.blocks(objective).values()
    assert torch.equal(last @ torch.ones(21).double(), plain["last"] @ torch.ones(21).double())
    with pytest.warns(PlainMathsWarning):
        found = first @ torch.ones(30).double()
    assert torch.equal(found, plain["first"] @ torch.ones(30).double())
    assert torch.equal(last @ torch.ones(21).double(), plain["last"] @ torch.ones(21).double())


def test_the_trace_says_so_too() -> None:
    objective = objective_of(Layered("attention", text=ATTENTION.format("efficient")))
    with pytest.warns(PlainMathsWarning, match="efficient"):
        found = la.trace(objective, rel=0.3, seed=0)
    expected = la.trace(objective_of(Layered()), rel=0.3, seed=0)
    assert (found.value, found.stderr, found.method) == (expected.value, expected.stderr, "ggn-hutchinson")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.embed(x).unsqueeze(1).chunk(3, dim=-1)  # one head
        return self.out(F.scaled_dot_product_attention(q, k, v).squeeze(1).mean(1))


def test_attention_on_this_device() -> None:
    torch.manual_seed(0)
    data = [(torch.randn(n, 5, 4, dtype=torch.float64), torch.randint(0, 3, (n,))) for n in (3, 2)]
    objective = la.Objective(Attention().double(), data, la.supervised(F.cross_entropy))
    v = torch.randn(objective.layout.size, dtype=torch.float64)
    with pytest.warns(PlainMathsWarning, match="flash_attention_for_cpu"):
        found = la.hessian(objective) @ v
    h = 1e-5  # truncation h^2 |third derivative| ~ 1e-10, rounding 1e-16 / h ~ 1e-11, both with room
    ends = [objective.gradient(objective.center + sign * h * v) for sign in (1, -1)]
    torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-8)


# ---- first derivatives --------------------------------------------------------------------------------------


def test_recurrent_layers_in_eval_mode_lose_cudnn_on_construction() -> None:
    """cuDNN has not even a gradient of them there, and an Objective works in eval mode."""
    before = flags()
    with pytest.warns(PlainMathsWarning, match=f"cuDNN .*{EVAL_MODE}") as said:
        objective = objective_of(Layered("cuDNN", order=1, text=EVAL_MODE))
    assert len(said) == 1
    plain = objective_of(Layered())
    assert torch.equal(objective.gradient(objective.center), plain.gradient(plain.center))
    assert torch.equal(products(objective), products(plain))
    assert flags() == before


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")),
    ],
)
@pytest.mark.filterwarnings("ignore::lossatlas.landscape.kernels.PlainMathsWarning")
def test_recurrent_layers(cls: type[nn.RNNBase], device: str) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.out = cls(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.layer(x)[0][:, -1])

    torch.manual_seed(0)
    data = [(torch.randn(6, 5, 3, dtype=torch.float64), torch.randint(0, 2, (6,)))]
    objective = la.Objective(Last().double(), data, la.supervised(F.cross_entropy), device=device)
    v = torch.randn(objective.layout.size, dtype=torch.float64).to(device)
    h = 1e-5  # as above
    points = [objective.center + sign * h * v for sign in (1, -1)]
    slope = (objective(points[0]) - objective(points[1])) / (2 * h)
    torch.testing.assert_close(objective.gradient(objective.center) @ v, slope, rtol=1e-6, atol=1e-8)
    column = (objective.gradient(points[0]) - objective.gradient(points[1])) / (2 * h)
    torch.testing.assert_close(la.hessian(objective) @ v, column, rtol=1e-6, atol=1e-7)


# ---- what is not known --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["out of memory", "derivative for aten::something_else is not implemented"])
def test_other_errors_are_not_retried(text: str) -> None:
    kernels, calls = Kernels(), []

    def failing() -> None:
        calls.append(1)
        raise RuntimeError(text)

    with pytest.raises(RuntimeError, match=text):
        kernels.retried(failing)
    assert (len(calls), kernels.avoided) == (1, [])


def test_what_plain_maths_does_not_mend_is_the_users() -> None:
    """A model that picks the kernel itself: one retry, then the error with the way out."""

    class Stubborn(Layered):
        is_fused = True

    objective = objective_of(Stubborn("attention", text=ATTENTION.format("flash")))
    with (
        pytest.warns(PlainMathsWarning),
        pytest.raises(UserError, match=r"cannot differentiate twice.*params"),
    ):
        products(objective)

"""Second derivatives of convolutions and BatchNorm against finite differences and PyTorch's own."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from cases import BY_NAME
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.operators import hessian
from lossatlas.landscape.twice import TwiceDifferentiable

# Sums of some hundred float64 terms in another order: 1e-12 relative to the largest entry is rounding with room.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def drawn(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def convolved(function: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    return lambda x, w, b=None: function(x, w, b, **options)


def normalised(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
    mean, variance = torch.tensor([0.5, -1.0, 2.0]).double(), torch.tensor([0.3, 2.0, 1.0]).double()
    return F.batch_norm(x, mean, variance, weight=w, bias=b, training=False, eps=1e-3)


CASES: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "1d": (convolved(F.conv1d, stride=2, padding=1), [drawn(2, 3, 7), drawn(4, 3, 3), drawn(4)]),
    "2d": (convolved(F.conv2d, padding=1), [drawn(2, 3, 4, 5), drawn(4, 3, 3, 3), drawn(4)]),
    "2d, no bias": (convolved(F.conv2d, stride=(2, 1)), [drawn(2, 2, 5, 4), drawn(3, 2, 3, 2)]),
    "2d, groups": (
        convolved(F.conv2d, groups=2, dilation=(1, 2), padding=(1, 0)),
        [drawn(2, 4, 4, 5), drawn(6, 2, 2, 2), drawn(6)],
    ),
    "3d": (convolved(F.conv3d, padding=(1, 0, 1)), [drawn(1, 2, 3, 3, 3), drawn(2, 2, 2, 2, 2), drawn(2)]),
    "norm of rows": (normalised, [drawn(4, 3), drawn(3), drawn(3)]),
    "norm of images": (normalised, [drawn(2, 3, 2, 4), drawn(3), drawn(3)]),
}


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives_are_those_of_finite_differences(name: str) -> None:
    function, inputs = CASES[name]
    with TwiceDifferentiable():
        assert gradcheck(function, inputs)
        assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("frozen", range(3))
def test_derivatives_of_any_order_are_pytorchs(name: str, frozen: int) -> None:
    """Up to the third, with one of the tensors held, and of one alone."""
    function, inputs = CASES[name]
    inputs = [t.detach().requires_grad_(i != frozen) for i, t in enumerate(inputs)]
    varied = [t for t in inputs if t.requires_grad]

    def derivatives() -> Iterator[Tensor]:
        value = function(*inputs).sin().mean()
        yield value
        for _ in range(3):
            slopes = torch.autograd.grad(value, varied, create_graph=True)
            yield from slopes
            value = sum((s.square() * (i + 1)).sum() for i, s in enumerate(slopes))
        yield from torch.autograd.grad(value, varied[:1], retain_graph=True)

    with TwiceDifferentiable():
        found = list(derivatives())
    torch.testing.assert_close(found, list(derivatives()), **CLOSE)


@pytest.mark.parametrize("chosen", [r"^0\.", r"^1\.weight", r"^1\.bias", r"^4\.bias", r"^[14]\."])
def test_chosen_parameters_give_a_block(chosen: str) -> None:
    case = BY_NAME["conv_batchnorm"]
    whole = hessian(Objective(case.model, case.batches, case.criterion))
    part = hessian(Objective(case.model, case.batches, case.criterion, params=chosen))
    place, start = [], 0
    for name, shape in zip(whole.layout.names, whole.layout.shapes, strict=True):
        place += list(range(start, start + shape.numel())) if name in part.layout.names else []
        start += shape.numel()
    matrix = whole @ torch.eye(whole.size, dtype=torch.float64)
    found = part @ torch.eye(part.size, dtype=torch.float64)
    torch.testing.assert_close(found, matrix[place][:, place], **CLOSE)


def nodes(value: Tensor) -> set[str]:
    """The names of all functions that a value came by."""
    pending, seen = [value.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending.extend(following for following, _ in node.next_functions)
    return {node.name() for node in seen}


def test_the_hessian_is_taken_this_way() -> None:
    case = BY_NAME["conv_batchnorm"]
    operator = hessian(Objective(case.model, case.batches, case.criterion))
    operator @ torch.ones(operator.size, dtype=torch.float64)
    names = set().union(*(nodes(g) for piece in operator._kept for g in piece.gradients.values()))
    assert {"_ConvolutionSlopesBackward", "_NormalisationSlopesBackward"} <= names
    assert not any(name.startswith(("ConvolutionBackward", "NativeBatchNorm")) for name in names)


x, w = drawn(2, 3, 5, 5), drawn(4, 3, 3, 3)
LEFT_ALONE: dict[str, Callable[[], Tensor]] = {
    "padding by name": lambda: F.conv2d(x, w, padding="same"),
    "one sample": lambda: F.conv2d(x[0], w),
    "by keywords": lambda: F.conv2d(input=x, weight=w),
    "no weights": lambda: normalised(x, None, None),
    "batch statistics": lambda: nn.BatchNorm2d(3, dtype=torch.float64)(x),
    "vmap": lambda: torch.func.vmap(F.conv2d, in_dims=(0, None))(x.unsqueeze(1), w),
    "torch.func.grad": lambda: torch.func.grad(lambda x: F.conv2d(x, w).sin().sum())(x),
    "jvp": lambda: torch.func.jvp(lambda x: F.conv2d(x, w).sin(), (x,), (x.cos(),))[1],
    "autocast": lambda: autocast(),
}


def autocast() -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return F.conv2d(x.float(), w.float())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # raised by torch.func.jvp itself
@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_does_not_fit_is_left_alone(name: str) -> None:
    expected = LEFT_ALONE[name]()
    with TwiceDifferentiable():
        found = LEFT_ALONE[name]()
    assert nodes(found) == nodes(expected)
    assert torch.equal(found, expected)


def test_images_pass_channels_last() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    with TwiceDifferentiable():
        outputs = model(torch.randn(2, 3, 8, 8))
    assert outputs.is_contiguous(memory_format=torch.channels_last)

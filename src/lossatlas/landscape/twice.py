"""Convolutions and evaluated BatchNorm whose second derivative costs what two first ones do.

Of either, phi(g, x, w) = <g, y> is linear in the slopes g, in the inputs x and, a shift aside, in the weights w.
First derivatives are phi_x and phi_w. What is differentiated next, <v, phi_x> + <u, phi_w>, is
phi(g, v, w) + phi(g, x, u), so its derivatives come from the kernels of the first ones, with v and u in the places
of x and w. PyTorch composes them of convolutions with samples and channels exchanged, and of a dozen elementwise
operations for BatchNorm. One CPU thread, ResNet18 of width 8: 1.7 gradients a Hessian product here, 2.4 there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_aten = torch.ops.aten
_DIMENSIONS: dict[Any, int] = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}


class TwiceDifferentiable(TorchFunctionMode):
    """Within it, convolutions and evaluated BatchNorm are those of this module: the same but for rounding.

    On a CPU images are laid out channels last from the first convolution on, which its kernels like best (but
    those of float64). What does not fit is left as it is: padding by name, samples without a batch dimension,
    BatchNorm without weights or on batch statistics, autocast, and derivatives that the model takes by torch.func
    or in forward mode.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Calls `function`, or what takes its place."""
        kwargs = kwargs or {}
        if function in _DIMENSIONS and _is_plain(types, args):
            return _convolve(function, *args, **kwargs)
        if function is F.batch_norm and _is_plain(types, args):
            return _normalise(*args, **kwargs)
        return function(*args, **kwargs)


def _is_plain(types: Any, args: Any) -> bool:
    return (
        bool(args)
        and {Tensor, nn.Parameter}.issuperset([type(args[0]), *types])
        and not torch.is_autocast_enabled(args[0].device.type)
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
    )


def _channels(vector: Tensor, dims: int) -> Tensor:
    """(C,) -> (C, 1, ..., 1), to go with tensors (n, C, ...) of that many dimensions."""
    return vector.view(-1, *[1] * (dims - 2))


# ---- convolution --------------------------------------------------------------------------------------------


def _convolve(
    function: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    dims = _DIMENSIONS[function]
    if x.dim() != dims + 2 or isinstance(padding, str):
        return function(x, weight, bias, stride, padding, dilation, groups)
    sizes = [[n] * dims if isinstance(n, int) else list(n) for n in (stride, padding, dilation)]
    geometry = (*(n * (dims // len(n)) for n in sizes), False, [0] * dims, groups)  # not transposed
    if dims == 2 and x.device.type == "cpu" and x.dtype != torch.float64:
        x = x.contiguous(memory_format=torch.channels_last)
    result: Tensor = _Convolution.apply(x, weight, bias, geometry)  # type: ignore[no-untyped-call]
    return result


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Any) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return _aten.convolution(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        slopes: Any = _ConvolutionSlopes.apply if torch.is_grad_enabled() else _convolution_slopes
        return (*slopes(g, *ctx.saved_tensors, ctx.geometry, ctx.needs_input_grad[:3]), None)


def _convolution_slopes(g: Tensor, x: Tensor, weight: Tensor, geometry: Any, needed: Any) -> Any:
    """phi_x, phi_w and the slope in the bias, those that are needed."""
    return _aten.convolution_backward(g, x, weight, [len(weight)], *geometry, needed)


class _ConvolutionSlopes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, geometry: Any, needed: Any) -> Any:
        ctx.save_for_backward(g, x, weight)
        ctx.set_materialize_grads(False)
        ctx.geometry = geometry
        return _convolution_slopes(g, x, weight, geometry, needed)

    @staticmethod
    def backward(ctx: Any, v: Tensor | None, u: Tensor | None, s: Tensor | None) -> Any:
        g, x, weight = ctx.saved_tensors
        in_g = in_x = in_weight = None
        if u is not None:
            in_g = _aten.convolution(x, u, s, *ctx.geometry)
            if ctx.needs_input_grad[1]:
                in_x = _convolution_slopes(g, x, u, ctx.geometry, (True, False, False))[0]
        elif s is not None:
            in_g = _channels(s, g.dim()).expand_as(g)
        if v is not None:
            moved = _aten.convolution(v, weight, None, *ctx.geometry)
            in_g = moved if in_g is None else in_g + moved
            if ctx.needs_input_grad[2]:
                in_weight = _convolution_slopes(g, v, weight, ctx.geometry, (False, True, False))[1]
        return in_g, in_x, in_weight, None, None


# ---- BatchNorm on running statistics ------------------------------------------------------------------------


def _normalise(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training or running_mean is None or running_var is None or weight is None or bias is None:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    result: Tensor = _Normalisation.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, running_mean, running_var, eps
    )
    return result


class _Normalisation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
    ) -> Any:
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps = eps
        return _normalised(x, weight, bias, mean, variance, eps)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        slopes: Any = _NormalisationSlopes.apply if torch.is_grad_enabled() else _normalisation_slopes
        return (*slopes(g, *ctx.saved_tensors, ctx.eps), None, None, None)


def _normalised(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    result: Tensor = _aten.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0]
    return result


def _normalisation_slopes(g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Any:
    """phi_x, phi_w and the slope in the bias."""
    return _aten.native_batch_norm_backward(
        g, x, weight, mean, variance, None, None, False, eps, [True, True, True]
    )


class _NormalisationSlopes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Any:
        ctx.save_for_backward(g, x, weight, mean, variance)
        ctx.set_materialize_grads(False)
        ctx.eps = eps
        return _normalisation_slopes(g, x, weight, mean, variance, eps)

    @staticmethod
    def backward(ctx: Any, v: Tensor | None, u: Tensor | None, s: Tensor | None) -> Any:
        g, x, weight, mean, variance = ctx.saved_tensors
        zero = torch.zeros_like(weight)
        u = zero if u is None else u
        in_g = _normalised(x, u, zero if s is None else s, mean, variance, ctx.eps)
        if v is None:
            in_x = _normalisation_slopes(g, x, u, mean, variance, ctx.eps)[0]
            return in_g, in_x, None, None, None, None
        in_g = torch.addcmul(in_g, v, _channels(weight * (variance + ctx.eps).rsqrt(), v.dim()))
        in_x, in_weight, _ = _normalisation_slopes(g, v, u, zero, variance, ctx.eps)
        return in_g, in_x, in_weight, None, None, None

"""Squared gradient norms of single samples, for scalars s_x = v_x . f(x) of a model's outputs f(x) (C,).

Three ways to sum_j values[x, j] ||d(vectors[x, j] . f(x)) / d theta||^2, all equal: `by_modules` (records what
enters and leaves every layer, no weight gradient of a sample is formed where that costs more), `by_vmap`,
`by_loop`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from lossatlas.landscape import batches as split
from lossatlas.landscape.batches import Batch
from lossatlas.landscape.objective import Objective

VMAP_NUMBERS = 1 << 22  # of single-sample gradients held at once: measured best on a CPU (16 MB in float32)

Tensors = Mapping[str, Tensor]
Norms = Callable[[Objective, Tensors, Tensors, Batch, Tensor, Tensor], Tensor | None]


def output_hessians(loss: Callable[[Tensor, Batch], Tensor], outputs: Tensor, batch: Batch) -> Tensor:
    """(n, C, C) float64: the Hessian of every sample's loss in its outputs (n, ...), flattened to (n, C).

    `batch` must be in float64. Cost: C backward passes through the loss alone.
    """
    with torch.enable_grad():
        flat = outputs.detach().double().reshape(len(outputs), -1).requires_grad_()  # (n, C)
        total = loss(flat.view(outputs.shape), batch).sum()
        (slope,) = torch.autograd.grad(total, flat, create_graph=True, allow_unused=True, materialize_grads=True)
        if not slope.requires_grad:  # a loss that is linear in the outputs
            return flat.new_zeros(*flat.shape, flat.shape[1])
        rows = [
            torch.autograd.grad(column.sum(), flat, retain_graph=True, allow_unused=True, materialize_grads=True)[
                0
            ]
            for column in slope.unbind(1)
        ]
    return torch.stack(rows, dim=1)


def by_loop(
    objective: Objective, tensors: Tensors, buffers: Tensors, batch: Batch, vectors: Tensor, values: Tensor
) -> Tensor:
    """(n,) float64, one sample after another; vectors (n, r, C), values (n, r). Works for every model."""
    rows: list[Tensor] = []
    with torch.enable_grad():
        leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        inputs = list(leaves.values())
        for single in split.pieces(batch, 1):
            for output in objective.predict(leaves, buffers, single):
                cotangents, weights = vectors[len(rows)], values[len(rows)]
                norms = [_square(_pulled_back(output, v, inputs)) for v in cotangents]
                rows.append((torch.stack(norms) * weights).sum())
    return torch.stack(rows)


def _pulled_back(outputs: Tensor, cotangent: Tensor, inputs: Sequence[Any]) -> tuple[Tensor, ...]:
    """The gradients of <cotangent, outputs>; the graph stays."""
    return torch.autograd.grad(
        outputs, inputs, cotangent.view_as(outputs), retain_graph=True, allow_unused=True, materialize_grads=True
    )


def by_vmap(
    objective: Objective, tensors: Tensors, buffers: Tensors, batch: Batch, vectors: Tensor, values: Tensor
) -> Tensor:
    """(n,) float64, samples side by side; as `by_loop`, for models that torch.func.vmap can trace."""
    leaves = list(split.leaves(batch))
    numbers = sum(t.numel() for t in tensors.values())

    def one(parts: list[Tensor], cotangents: Tensor, weights: Tensor) -> Tensor:
        stream = iter(parts)
        single = split.map_tensors(batch, lambda _: next(stream).unsqueeze(0))
        output, pull, *_ = torch.func.vjp(lambda values: objective.predict(values, buffers, single), dict(tensors))
        norms = [_square(pull(v.view_as(output))[0].values()) for v in cotangents]
        return (torch.stack(norms) * weights).sum()

    size = max(1, VMAP_NUMBERS // numbers)
    return torch.func.vmap(one, chunk_size=size)(leaves, vectors, values)


def _square(gradients: Any) -> Tensor:
    return torch.stack([g.square().sum().double() for g in gradients]).sum()


def by_modules(
    objective: Objective, tensors: Tensors, buffers: Tensors, batch: Batch, vectors: Tensor, values: Tensor
) -> Tensor | None:
    """(n,) float64 as `by_loop`, from the inputs of every layer and the gradients at its outputs.

    None unless every parameter belongs to exactly one Linear, Conv2d or BatchNorm in eval mode, called once in
    the forward pass on a tensor whose first dimension is the samples'. That no parameter is used outside its
    module and that the first dimension means samples is for the caller to check.
    """
    owners = _owners(objective)
    if owners is None:
        return None
    with torch.enable_grad():
        leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        outputs, calls = _recorded(objective, leaves, buffers, batch, owners)
        if calls is None or any(len(call.input) != len(outputs) for call in calls):
            return None
        total = torch.zeros(len(outputs), dtype=torch.float64, device=outputs.device)
        edges = [call.edge for call in calls]
        for vector, value in zip(vectors.unbind(1), values.unbind(1), strict=True):
            gradients = _pulled_back(outputs, vector, edges)
            for call, gradient in zip(calls, gradients, strict=True):
                total += value * call.squared_norms(gradient.detach())
    return total


@dataclass(frozen=True, eq=False)
class _LayerCall:
    """One call of a layer: what entered it, where its output's gradient appears, which parameters count."""

    module: nn.Module
    input: Tensor
    edge: GradientEdge
    parameters: frozenset[str]  # of "weight", "bias"
    statistics: tuple[Tensor, Tensor]  # mean and variance that a BatchNorm used; empty for other layers

    def squared_norms(self, gradient: Tensor) -> Tensor:
        """(n,) float64: the squared gradient norms of the layer's parameters, from its output's gradient."""
        positions = _positions(self.module, gradient)  # (n, groups, out, positions)
        total = torch.zeros(len(gradient), dtype=torch.float64, device=gradient.device)
        if "bias" in self.parameters:
            total += positions.sum(-1).square().flatten(1).sum(1, dtype=torch.float64)
        if "weight" in self.parameters:
            total += self._weight_norms(positions)
        return total

    def _weight_norms(self, gradient: Tensor) -> Tensor:
        if isinstance(self.module, nn.modules.batchnorm._BatchNorm):
            return (gradient * self.patches).sum(-1).square().flatten(1).sum(1, dtype=torch.float64)
        if self._is_gram:  # ||g a'||^2 = <a'a, g'g>
            gram = gradient.transpose(-1, -2) @ gradient
            return (gram * self.input_gram).flatten(1).sum(1, dtype=torch.float64)
        product = gradient @ self.patches.transpose(-1, -2)
        return product.square().flatten(1).sum(1, dtype=torch.float64)

    @cached_property
    def _is_gram(self) -> bool:
        """Fewer positions than inputs: the Gram matrices over positions are smaller than the weight."""
        return self.patches.shape[-1] < self.patches.shape[-2]

    @cached_property
    def patches(self) -> Tensor:
        """(n, groups, in, positions): what every output position is a linear function of."""
        module, x = self.module, self.input
        if isinstance(module, nn.Conv2d):
            padding = cast(tuple[int, ...], module.padding)  # a text is refused by _is_known
            columns = F.unfold(x, module.kernel_size, module.dilation, padding, module.stride)
            return columns.view(len(x), module.groups, -1, columns.shape[-1])
        x = _positions(module, x)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            mean, variance = self.statistics
            return (x - mean.view(-1, 1)) / (variance.view(-1, 1) + module.eps).sqrt()
        return x

    @cached_property
    def input_gram(self) -> Tensor:
        """(n, groups, positions, positions): a'a of the patches a."""
        return self.patches.transpose(-1, -2) @ self.patches


def _positions(module: nn.Module, x: Tensor) -> Tensor:
    """(n, groups, channels, positions) from the layout of the layer's inputs and outputs."""
    if isinstance(module, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1]).transpose(1, 2).unsqueeze(1)
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    return x.reshape(len(x), groups, x.shape[1] // groups, -1)


def _owners(objective: Objective) -> dict[nn.Module, frozenset[str]] | None:
    """The layers that hold the parameters of theta, with which of theirs count; None where there are others."""
    wanted = {id(p): n for n, p in objective.model.named_parameters() if n in set(objective.layout.names)}
    owners: dict[nn.Module, frozenset[str]] = {}
    seen: set[int] = set()
    for module in objective.model.modules():
        held = {key: id(p) for key, p in module._parameters.items() if p is not None and id(p) in wanted}
        if not held:
            continue
        if seen & set(held.values()) or not _is_known(module):
            return None
        seen |= set(held.values())
        owners[module] = frozenset(held)
    return owners if seen == set(wanted) else None


def _is_known(module: nn.Module) -> bool:
    """Exactly a Linear, a zero-padded Conv2d or a BatchNorm in eval mode; a subclass may do anything."""
    if type(module) is nn.Conv2d:
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
        return not module.training and module.running_mean is not None
    return type(module) is nn.Linear


def _recorded(
    objective: Objective, leaves: Tensors, buffers: Tensors, batch: Batch, owners: dict[nn.Module, frozenset[str]]
) -> tuple[Tensor, list[_LayerCall] | None]:
    """The outputs, and one record a layer; None where one is not called exactly once."""
    calls: list[_LayerCall] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0].detach()
        used = (getattr(module, "running_mean", x.new_empty(0)), getattr(module, "running_var", x.new_empty(0)))
        calls.append(_LayerCall(module, x, get_gradient_edge(output), owners[module], used))

    hooks = [module.register_forward_hook(record) for module in owners]
    try:
        outputs = objective.predict(leaves, buffers, batch)
    finally:
        for hook in hooks:
            hook.remove()
    once = len(calls) == len(owners) == len({call.module for call in calls})
    return outputs, calls if once else None

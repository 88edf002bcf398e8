"""A slice without its first layers: W(a, b) x = W_0 x + a E_1 x + b E_2 x, each part computed once.

A linear layer is linear in (weight, bias) together, so at theta + sum_i c_i d_i its output on fixed inputs is
Z_0 + sum_i c_i Z_i, where Z_0 is its output with theta's tensors and Z_i with those of d_i. For an MLP on images
that layer is nearly all of the work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lossatlas.landscape.batches import Batch
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.random_state import preserved_rng

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # exactly: a subclass may do anything
LEAST_SHARE = 0.5  # of the multiplications: below, reading the parts back costs about what it saves
KEPT_BYTES = 1 << 30
# Both ways round differently: some eps for every layer and term of the sums.
AGREEMENT_EPS = 1e3


class SplitFirstLayer:
    """The objective's means at theta + sum_i c_i d_i, with the parts of `layers` kept for every batch."""

    def __init__(
        self, objective: Objective, theta: Tensor, vectors: Sequence[Tensor], layers: Mapping[str, nn.Module]
    ) -> None:
        self._objective = objective
        self._layers = layers
        self._batch = 0  # which batch is passing
        origins = [objective.unflatten(v) for v in (theta, *vectors)]
        own = [_full(name, kind) for name in layers for kind in ("weight", "bias")]
        self._rest = [{n: t for n, t in origin.items() if n not in own} for origin in origins]
        # The layers' own tensors are used no more: if anything else reads them, let it show.
        self._unused = {n: torch.full_like(t, torch.nan) for n, t in origins[0].items() if n in own}
        self._moved = [{n: t for n, t in origin.items() if n in own} for origin in origins]
        self._parts: list[dict[str, list[Tensor]]] = []  # batch -> layer -> Z_0, Z_1, ...

    def prepare(self, memory: int) -> bool:
        """Compute the parts of every batch; False when they would take more than `memory` bytes."""
        used = 0
        with torch.no_grad(), preserved_rng(self._objective.device):
            for batch in self._objective.batches():
                tensors = self._rest[0] | self._moved[0]
                inputs = inputs_of(self._objective, tensors, batch, self._layers)
                parts = {name: self._outputs(name, calls[0]) for name, calls in inputs.items()}
                used += sum(t.numel() * t.element_size() for ts in parts.values() for t in ts)
                if used > memory:
                    return False
                self._parts.append(parts)
        return True

    def __call__(self, coefficients: Sequence[float]) -> dict[str, float]:
        """The mean loss and extras at theta + sum_i c_i d_i."""
        rest = {n: _combined([o[n] for o in self._rest], coefficients) for n in self._rest[0]}
        with torch.no_grad(), preserved_rng(self._objective.device), self._replaced(coefficients):
            # No policy that this path serves has buffers that depend on theta; batch statistics update the copy.
            buffers = {n: b.clone() for n, b in self._objective.model.named_buffers()}
            means = self._objective.means(rest | self._unused, buffers, self._counted())
            return {name: mean.item() for name, mean in means.items()}

    def _counted(self) -> Iterator[Batch]:
        for index, batch in enumerate(self._objective.batches()):
            self._batch = index
            yield batch

    def _outputs(self, name: str, inputs: Tensor) -> list[Tensor]:
        """Z_0, Z_1, ...: the layer's outputs with the tensors of theta and of every direction."""
        layer, outputs = self._layers[name], []
        for i, moved in enumerate(self._moved):
            held = {n: p.detach() if i == 0 else torch.zeros_like(p) for n, p in layer.named_parameters()}
            held |= {n: moved[_full(name, n)] for n in held if _full(name, n) in moved}
            outputs.append(functional_call(layer, held, (inputs,)))
        return outputs

    @contextmanager
    def _replaced(self, coefficients: Sequence[float]) -> Iterator[None]:
        """The layers give their combined parts, whatever they are given."""

        def combined(name: str) -> Callable[[Tensor], Tensor]:
            return lambda _inputs: _combined(self._parts[self._batch][name], coefficients)

        try:
            for name, layer in self._layers.items():
                layer.__dict__["forward"] = combined(name)
            yield
        finally:
            for layer in self._layers.values():
                layer.__dict__.pop("forward", None)


def split_first_layer(
    objective: Objective,
    theta: Tensor,
    vectors: Sequence[Tensor],
    scales: Sequence[float],
    *,
    memory: int = KEPT_BYTES,
) -> SplitFirstLayer | None:
    """The fast way along `vectors` around theta, or None where it does not apply.

    It applies where linear layers that do at least half of the multiplications act on inputs that no parameter
    reaches (in autograd's graph, and bitwise at another point), run once a batch, and where the loss agrees at
    one random point within `scales` with the objective's own, to rounding. Not under `"recalibrate"` with
    BatchNorm, whose statistics need the whole model at every point. Cost: about 4 passes, `memory` bytes.
    """
    has_norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in objective.model.modules())
    if objective.batchnorm == "recalibrate" and has_norms:
        return None
    generator = torch.Generator().manual_seed(0)
    draws = (0.25 + 0.75 * torch.rand(len(vectors), generator=generator, dtype=torch.float64)).tolist()
    probe = [draw * scale for draw, scale in zip(draws, scales, strict=True)]
    elsewhere = _combined([theta, *vectors], probe)
    layers = _independent_layers(objective, theta, elsewhere)
    if not layers:
        return None
    fast = SplitFirstLayer(objective, theta, vectors, layers)
    if not fast.prepare(memory):
        return None
    slow_loss, fast_loss = objective(elsewhere).item(), fast(probe)["loss"]
    tolerance = AGREEMENT_EPS * torch.finfo(objective.dtype).eps * abs(slow_loss)
    agrees = math.isfinite(slow_loss) and abs(slow_loss - fast_loss) <= tolerance
    return fast if agrees else None


def inputs_of(
    objective: Objective, tensors: Mapping[str, Tensor], batch: Batch, layers: Mapping[str, nn.Module]
) -> dict[str, list[Tensor]]:
    """Copies of what each layer is given in one pass over a batch, one a call; their graphs are kept."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, given: seen[name].extend(t.clone() for t in given)

    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
    try:
        objective.loss_sum(tensors, {n: b.clone() for n, b in objective.model.named_buffers()}, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _independent_layers(objective: Objective, theta: Tensor, elsewhere: Tensor) -> dict[str, nn.Module]:
    """The linear layers whose inputs do not depend on the parameters; none if the others do most of the work."""
    linear = {name: m for name, m in objective.model.named_modules() if type(m) in LINEAR and _is_plain(m)}
    with torch.enable_grad(), preserved_rng(objective.device):
        batch = next(iter(objective.batches()))
        tensors = {n: t.detach().clone().requires_grad_() for n, t in objective.unflatten(theta).items()}
        here = inputs_of(objective, tensors, batch, linear)
        there = inputs_of(objective, objective.unflatten(elsewhere), batch, linear)
    chosen = {
        name: layer
        for name, layer in linear.items()
        if len(here[name]) == len(there[name]) == 1  # one call, one positional argument
        and not here[name][0].requires_grad
        and torch.equal(here[name][0], there[name][0])
    }
    work = {name: sum(_multiplications(linear[name], t) for t in here[name]) for name in linear}
    share = sum(work[name] for name in chosen) / max(1, sum(work.values()))
    return chosen if share >= LEAST_SHARE else {}


def _is_plain(layer: nn.Module) -> bool:
    """No hooks that would run beside the layer, no other function put in its place."""
    return not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__)


def _multiplications(layer: Any, inputs: Tensor) -> int:
    if isinstance(layer, nn.Linear):
        return inputs.numel() * layer.out_features
    # A kernel element meets every input element once, up to stride and borders.
    kernel, stride = math.prod(layer.kernel_size), math.prod(layer.stride)
    return int(inputs.numel() * kernel * layer.out_channels // (layer.groups * stride))


def _full(module: str, kind: str) -> str:
    return f"{module}.{kind}" if module else kind  # the model may itself be the layer


def _combined(parts: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """parts[0] + sum_i c_i parts[i], always a new tensor."""
    result = parts[0].clone()
    for c, part in zip(coefficients, parts[1:], strict=True):
        if c != 0:
            result.add_(part, alpha=c)
    return result

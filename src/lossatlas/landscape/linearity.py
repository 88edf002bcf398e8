"""Whether the outputs of a model are piecewise affine in each single weight, so that tr H = tr GGN exactly.

With outputs f and loss l(f), H = J' A J + sum_c (dl/df_c) d2 f_c, A the Hessian of l in f. Where every f_c is
piecewise affine in each single weight theta_i (the others held), d2 f_c/d theta_i^2 vanishes wherever it
exists, so the diagonals of H and of the generalised Gauss-Newton matrix G = J' A J agree, and with them the
traces. No weight may then reach an output through two serial uses or through both factors of a product.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lossatlas.errors import UserError
from lossatlas.landscape import batches as split
from lossatlas.landscape.aten_rules import PIECEWISE_CONSTANT, RULES, TRAINING_FLAG, Rule
from lossatlas.landscape.batches import Batch
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.random_state import preserved_rng
from lossatlas.landscape.sample_gradients import output_hessians

TRACED_SAMPLES = 2

Names = frozenset[str]
NOTHING: Names = frozenset()


@dataclass(frozen=True)
class Linearity:
    """Whether the outputs are piecewise affine in each single weight, and if not what breaks it."""

    holds: bool
    reason: str = ""  # empty where it holds
    used_once: Names = NOTHING  # parameters that at most one operation takes; none where it cannot be traced


class _Broken(Exception):
    """An operation that the rules do not allow; its text says which, and on which parameter."""


def piecewise_affine(objective: Objective, theta: Tensor | None = None) -> Linearity:
    """Decide from the graph of ATen operations of the objective's outputs at theta (default: its centre).

    Follows, from operation to operation, the set of parameters that each intermediate depends on, through the
    allow-list in aten_rules.py. Sound but not complete: whatever is not on the list, or cannot be traced (control
    flow that depends on data), does not hold. The graph is that of the first two samples; cost: one forward pass
    over them at tracing speed (some ms an operation).
    """
    if objective.criterion is None:
        return Linearity(False, "a bare loss function gives no outputs")
    point = objective.center if theta is None else theta
    try:
        graph, names = _traced(objective, point)
    except UserError:
        raise
    except Exception as error:  # whatever the tracer cannot do, it says by exceptions of many types
        return Linearity(
            False, f"the model cannot be traced: {str(error).splitlines()[0] if str(error) else error!r}"
        )
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    once = frozenset(name for name, node in zip(names, placeholders, strict=False) if len(node.users) <= 1)
    try:
        _follow(graph, names)
    except _Broken as broken:
        return Linearity(False, str(broken), once)
    return Linearity(True, used_once=once)


def confirm(
    objective: Objective,
    theta: Tensor | None = None,
    *,
    affine: bool = True,
    coordinates: int = 32,
    samples: int = 8,
    seed: int,
) -> Linearity:
    """Check e_i' H e_i = e_i' G e_i at random coordinates i on the first samples, in float64.

    With `affine` False, that e_i' H e_i = e_i' (G + R) e_i, R = sum_c (dl/df_c) d2 f_c: which holds for every
    network whose samples have losses and outputs of their own. The coordinates are drawn evenly over the
    parameter tensors. The sides must agree to 1e-6 of the largest term, the rounding of some hundred operations
    with room, plus 1e-12 ||J e_i||^2 max(1, |A|): A is known only to an absolute eps where the loss saturates;
    plus 1e-12 of the largest term over all coordinates: where the loss does not depend on a weight (the bias of
    the keys in attention) both sides are rounding. A network that is curved in a weight errs by its whole second
    derivative.
    """
    criterion = objective.criterion
    if criterion is None:
        return Linearity(False, "a bare loss function gives no outputs")
    point = objective.center if theta is None else theta
    with torch.enable_grad(), preserved_rng(objective.device):
        tensors, frozen, buffers = _in_float64(objective, point)
        first = split.move(next(iter(objective.batches())), torch.float64, objective.device)
        batch = next(split.pieces(first, samples))
        drawn = _draw(tensors, coordinates, seed)

        def compare() -> str:
            outputs = objective.predict({**frozen, **tensors}, buffers, batch)
            loss = criterion.loss(outputs, batch).sum()
            curvature = output_hessians(criterion.loss, outputs.detach(), batch)  # A (n, C, C)
            return _disagreement(tensors, outputs, loss, curvature, drawn, affine=affine)

        try:
            disagreement = objective.curvature_kernels.retried(compare)
        except (
            RuntimeError,
            ValueError,
        ) as error:  # such as a constant that stayed in float32, or no second derivative
            return Linearity(False, f"it cannot be confirmed in float64: {str(error).splitlines()[0]}")
    return Linearity(not disagreement, disagreement)


def _disagreement(
    tensors: Mapping[str, Tensor],
    outputs: Tensor,
    loss: Tensor,
    curvature: Tensor,
    drawn: Sequence[tuple[str, int]],
    *,
    affine: bool,
) -> str:
    """What says that the diagonals of H and of G (+ R) differ; empty when they agree at all drawn coordinates."""
    leaves = list(tensors.values())
    (slope,) = torch.autograd.grad(loss, outputs, retain_graph=True, allow_unused=True, materialize_grads=True)
    gradients = dict(zip(tensors, _derivatives(loss, leaves), strict=True))
    cotangent = slope.detach().requires_grad_()  # u; J'u is linear in it, and its derivative in theta is R
    pulled = dict(zip(tensors, _derivatives((outputs * cotangent).sum(), leaves), strict=True))
    scale = max(1.0, curvature.abs().max().item())
    found: list[tuple[float, float, float, float]] = []
    for name, index in drawn:
        exact = _entry(gradients[name], tensors[name], index).reshape(-1)[index]
        column = _entry(pulled[name], cotangent, index).reshape(len(outputs), -1)  # J e_i (n, C)
        gauss_newton = torch.einsum("nc,ncd,nd->", column, curvature, column)
        rest = exact.new_zeros(())
        if not affine:
            rest = _entry(pulled[name], tensors[name], index).reshape(-1)[index]
        terms = torch.stack([exact, gauss_newton, rest]).abs().max()
        tolerance = 1e-6 * terms + 1e-12 * scale * column.square().sum()
        found.append((exact.item(), (gauss_newton + rest).item(), terms.item(), tolerance.item()))
    nothing = 1e-12 * max(terms for *_, terms, _ in found)
    for (name, index), (one, other, _, tolerated) in zip(drawn, found, strict=True):
        if not abs(one - other) <= tolerated + nothing:
            looks = "though the graph looks piecewise affine" if affine else "so samples do not stand alone"
            return (
                f"H and {'G' if affine else 'G + R'} differ at {name}[{index}]: {one:.6g} against "
                f"{other:.6g}, {looks}"
            )
    return ""


def _derivatives(scalar: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(scalar, leaves, create_graph=True, allow_unused=True, materialize_grads=True)


def _entry(gradient: Tensor, leaf: Tensor, index: int) -> Tensor:
    """The derivative of one entry of a gradient."""
    if not gradient.requires_grad:
        return torch.zeros_like(leaf)
    entry = gradient.reshape(-1)[index]
    return torch.autograd.grad(entry, leaf, retain_graph=True, allow_unused=True, materialize_grads=True)[0]


def _in_float64(
    objective: Objective, theta: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The parameters in theta, the other ones and the buffers, all in float64."""
    tensors = {n: t.detach().double().requires_grad_() for n, t in objective.unflatten(theta).items()}
    others = {n: p.detach().double() for n, p in objective.model.named_parameters() if n not in tensors}
    buffers = {n: b.double() if b.is_floating_point() else b for n, b in objective.buffers(theta).items()}
    return tensors, others, buffers


def _draw(tensors: Mapping[str, Tensor], coordinates: int, seed: int) -> list[tuple[str, int]]:
    """(name, flat index) of random coordinates: one a parameter tensor in random order, then over again."""
    generator = torch.Generator().manual_seed(seed)
    names = list(tensors)
    drawn: list[tuple[str, int]] = []
    while len(drawn) < coordinates:
        order = torch.randperm(len(names), generator=generator).tolist()
        for name in [names[i] for i in order][: coordinates - len(drawn)]:
            drawn.append((name, int(torch.randint(tensors[name].numel(), (), generator=generator))))
    return drawn


def _traced(objective: Objective, theta: Tensor) -> tuple[fx.Graph, list[str]]:
    """The graph of ATen operations from the parameters to the outputs, and the names of the first placeholders."""
    from torch.fx.experimental.proxy_tensor import make_fx  # its import takes a second, so only when needed

    tensors = {n: t.detach() for n, t in objective.unflatten(theta).items()}
    names = list(tensors)

    def outputs(values: list[Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return objective.predict(dict(zip(names, values, strict=True)), buffers, batch)

    with torch.enable_grad(), preserved_rng(objective.device):
        batch: Batch = next(split.pieces(next(iter(objective.batches())), TRACED_SAMPLES))
        function: Callable[..., Tensor] = torch.func.functionalize(outputs)
        return make_fx(function)(list(tensors.values()), objective.buffers(theta)).graph, names


def _follow(graph: fx.Graph, names: Sequence[str]) -> None:
    """Raise _Broken at the first operation on the way to the outputs that is not affine in each parameter."""
    output = next(node for node in graph.nodes if node.op == "output")
    needed: set[fx.Node] = set()
    pending = [output]
    while pending:  # only what leads to the outputs: in-place updates of buffers do not
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending.extend(node.all_input_nodes)
    depends: dict[fx.Node, Names] = {}
    parameters = iter(names)
    for node in graph.nodes:
        if node.op == "placeholder":
            name = next(parameters, None)
            depends[node] = frozenset() if name is None else frozenset([name])
        elif node in needed and node is not output:
            depends[node] = _dependence(node, depends)


def _dependence(node: fx.Node, depends: Mapping[fx.Node, Names]) -> Names:
    """The parameters that the result of a node depends on; raises _Broken when it is not affine in each."""
    arguments = [*node.args, *node.kwargs.values()]
    sets = [_union(argument, depends) for argument in arguments]
    everything = frozenset().union(*sets)
    if not everything or not _is_floating(node.meta.get("val")):
        return NOTHING
    if node.target is operator.getitem:
        return sets[0]
    operation = (
        str(node.target).split(".")[1] if isinstance(node.target, torch._ops.OpOverload) else str(node.target)
    )
    if operation in PIECEWISE_CONSTANT:
        return NOTHING
    rule = RULES.get(operation, Rule())
    if operation in TRAINING_FLAG and sets[0] and arguments[TRAINING_FLAG[operation]]:
        raise _Broken(f"{operation} uses the statistics of the batch, which depend on {_some(sets[0])}")
    for position, found in enumerate(sets):
        if found and (position >= len(node.args) or position not in (*rule.added, *rule.multiplied)):
            raise _Broken(f"{operation} acts nonlinearly on what depends on {_some(found)}")
    factors = [sets[position] for position in rule.multiplied if position < len(sets)]
    for number, factor in enumerate(factors):
        for other in factors[:number]:
            if factor & other:
                raise _Broken(f"{operation} multiplies two factors that both depend on {_some(factor & other)}")
    return everything


def _union(argument: Any, depends: Mapping[fx.Node, Names]) -> Names:
    found: set[str] = set()
    fx.map_arg(argument, lambda node: found.update(depends.get(node, NOTHING)))
    return frozenset(found)


def _is_floating(value: Any) -> bool:
    """Whether a result holds floating-point numbers (of a tuple: its first part, the values not the indices)."""
    first = value[0] if isinstance(value, tuple | list) and value else value
    return not isinstance(first, Tensor) or first.is_floating_point() or first.is_complex()


def _some(names: Names) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")

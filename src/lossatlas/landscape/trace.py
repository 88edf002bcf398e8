"""The trace of the Hessian: exact where the network allows, else by random probes with a standard error."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lossatlas.errors import UserError
from lossatlas.landscape import batches as split
from lossatlas.landscape.batches import Batch
from lossatlas.landscape.criterion import Criterion
from lossatlas.landscape.hutchinson import MIN_PROBES, TraceEstimate, check_budget, hutchinson
from lossatlas.landscape.linearity import confirm, piecewise_affine
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.operators import hessian, second_order
from lossatlas.landscape.random_state import preserved_rng
from lossatlas.landscape.sample_gradients import Norms, by_loop, by_modules, by_vmap, output_hessians

CONFIRMED_SAMPLES = 2
MANY_OUTPUTS = 100  # from here on Hutchinson is tried first
MAX_OUTPUTS = 2048  # beyond, the C x C Hessians in the outputs are too large
GENERIC_NUMBERS = (
    1 << 33
)  # entries of single-sample gradients to form where layers are of other kinds: seconds on a CPU
SMALLER_PIECES = 4  # a sample takes more memory here: the patches of a 3 x 3 convolution are nine times its input


def trace(
    objective: Objective,
    theta: Tensor | None = None,
    *,
    rel: float = 0.05,
    max_matvecs: int = 200,
    min_probes: int = MIN_PROBES,
    floor: float = 1e-3,
    seed: int,
) -> TraceEstimate:
    """The trace of the Hessian of the objective's mean loss at theta (default: its centre).

    H = G + R with the generalised Gauss-Newton matrix G and R = (1/m) sum_x sum_c (dl/df_c) d2 f_c. Where the
    outputs are small and no sample depends on another, tr G = (1/m) sum_x sum_j lambda_j ||J_x' v_j||^2 comes
    without probes, from the eigenpairs of A_x, the Hessian of the sample's loss in its C outputs; for cross
    entropy it is sum_c p_c ||grad log p_c||^2, in C - 1 terms. Cost: two forward passes and rank(A) backward
    passes, which with 10 classes take 10 gradient evaluations for a ResNet18, 2 to 3 for an MLP, 10 to 25 where
    layers are of other kinds than Linear, Conv2d and BatchNorm; the checks before it take 3 to 5 of them (at 100
    images).

    "exact-ggn", where the outputs are piecewise affine in each single weight (`linearity.piecewise_affine`,
    then `linearity.confirm`): tr R = 0. With a loss that is convex in the outputs the trace cannot be negative.

    "ggn-hutchinson", elsewhere (tanh, GELU, LayerNorm, attention): tr G as a control variate, and probes for
    tr R only, whose products cost what those of H do (`operators.second_order`). It may be negative. On digits
    (n = 8,000 to 18,000, 200 images), a tanh MLP, a transformer with LayerNorm and a convolution net with GELU,
    trained for 5 and 30 epochs, need 90 and 24, 160 and 158, 63 and 13 probes for 1% against 616 and 622, 1,708
    and 3,111, 1,585 and 1,294 plain ones, and fewer than the least number for 5% (by the spread of 64 probes).
    Untrained networks gain little. XTrace on H, after 128 products on the same (5 epochs), erred by 1.2% to 2.0%
    against 0.8% to 1.1% here, and by 1.1 to 1.6 times the standard error that it states; on R it gained nothing.
    Why R gets Hutchinson's probes: the least number of them meets the usual 5%, where a sketch has yet to pay. On
    the dense R of smaller ones (n = 1,210, tanh; 842, transformer; the same epochs), 60 draws of 18 products err
    by 1.7% to 3.5% (Hutchinson), 2.2% to 4.1% (Hutch++) and 2.0% to 3.5% (XTrace) of tr H; with 60 products the
    latter two, holding as many vectors, err less by 1.3 to 1.9 and 1.4 to 2.7 times.

    "hutchinson", where samples or outputs do not allow that: see there for `rel`, `floor` and the budgets. From
    C = 100 on it is tried first, with C / 2 products (a product costs about two of the backward passes), so the
    sum is at most twice the cheaper way. It also serves where layers beside Linear, Conv2d and BatchNorm would
    make tr G form more than 2^33 entries of single-sample gradients. `reason` says why a trace is not exact.
    """
    if not isinstance(objective, Objective):
        raise UserError(
            f"trace takes an Objective, of which it takes the Hessian, not a {type(objective).__name__}. The "
            "trace of an operator is that of lossatlas.landscape.hutchinson.hutchinson(operator, seed=...)."
        )
    check_budget(rel=rel, floor=floor, min_probes=min_probes, max_matvecs=max_matvecs)
    theta = objective.center if theta is None else theta
    probe = partial(hutchinson, rel=rel, min_probes=min_probes, floor=floor, seed=seed)
    with torch.enable_grad(), preserved_rng(objective.device):
        plan = _plan(objective, theta, seed)
        if isinstance(plan, str):
            return _inexact(probe(hessian(objective, theta), max_matvecs=max_matvecs), plan)
        tried = 0
        if plan.outputs >= MANY_OUTPUTS:
            fewer = max(min_probes, min(max_matvecs, plan.outputs // 2))
            estimate = probe(hessian(objective, theta), max_matvecs=fewer)
            if estimate.converged:
                return _inexact(estimate, f"cheaper than {plan.outputs} backward passes")
            tried = estimate.matvecs
        with objective.curvature_kernels.plain():  # fused attention has no derivatives under vmap either
            traces, passes = _sample_traces(objective, theta, plan)
        gauss_newton = traces.mean().item()
        if plan.curved and math.isfinite(gauss_newton):
            budget = max(min_probes, max_matvecs - tried)
            estimate = probe(second_order(objective, theta), max_matvecs=budget, known=gauss_newton)
            spent = {"matvecs": tried + estimate.matvecs, "passes": passes}
            return _inexact(replace(estimate, method="ggn-hutchinson", **spent), plan.curved)  # type: ignore[arg-type]
    finite = math.isfinite(gauss_newton)
    spread = traces.std().item() / math.sqrt(len(traces)) if len(traces) > 1 else math.nan
    return TraceEstimate(
        value=gauss_newton if finite else math.nan,
        stderr=0.0 if finite else math.nan,
        data_stderr=spread if finite else math.nan,
        method="exact-ggn",
        converged=finite,
        matvecs=tried,
        passes=passes,
        rel=rel,
        floor=floor,
        seed=seed,
        reason="" if finite else "the trace of a sample is not finite",
    )


def _inexact(estimate: TraceEstimate, why: str) -> TraceEstimate:
    return replace(estimate, reason="; ".join(filter(None, (estimate.reason, f"not exact: {why}"))))


@dataclass(frozen=True)
class _Plan:
    """How to compute the trace of the GGN, and whether that of the Hessian is another one."""

    criterion: Criterion
    norms: Norms
    outputs: int  # C, of a sample
    curved: str  # why the outputs are not piecewise affine in each weight; empty where they are


def _plan(objective: Objective, theta: Tensor, seed: int) -> _Plan | str:
    """The way to the trace of the GGN, or why there is none."""
    if objective.criterion is None:
        return "a bare loss function gives no outputs"
    linearity = piecewise_affine(objective, theta)
    tensors, buffers = _point(objective, theta)
    part = next(_parts(objective))
    lengths = {len(t) if t.dim() else 0 for t in split.leaves(part)}
    with torch.no_grad():
        outputs = objective.predict(tensors, buffers, part)
        losses = objective.criterion.loss(outputs, part)
        if len(lengths) != 1 or not outputs.dim() or losses.shape != (len(outputs),) or lengths != {len(outputs)}:
            return "samples, outputs and losses differ in number"
        if not bool(outputs.isfinite().all()):
            return "the outputs are not finite"
        # Twice itself, which has the same batch statistics: layers may refuse to take those of one sample.
        alone = objective.predict(tensors, buffers, _rows(part, [-1, -1]))[:1]
    if outputs[0].numel() > MAX_OUTPUTS:
        return f"a sample has more than {MAX_OUTPUTS} outputs"
    # Coupled samples differ by as much as they share; kernels for other batch sizes differ by rounding only.
    if not (outputs[-1:] - alone).abs().max() <= _rounding(outputs) * outputs.abs().max():
        return "the outputs of a sample depend on the other samples of its batch"
    agreed = confirm(objective, theta, affine=linearity.holds, samples=CONFIRMED_SAMPLES, seed=seed)
    if not agreed.holds:
        return agreed.reason
    with objective.curvature_kernels.plain():  # as `confirm` has found them
        norms = _fastest(objective, tensors, buffers, part, linearity.used_once >= set(tensors), seed)
    if norms is not by_modules:
        samples = sum(split.count(batch) for batch in objective.batches())
        if samples * outputs[0].numel() * objective.layout.size > GENERIC_NUMBERS:
            return (
                "its layers are not all Linear, Conv2d or BatchNorm, and the gradients of single samples too large"
            )
    return _Plan(objective.criterion, norms, outputs[0].numel(), linearity.reason)


def _fastest(
    objective: Objective,
    tensors: dict[str, Tensor],
    buffers: dict[str, Tensor],
    part: Batch,
    is_used_once: bool,
    seed: int,
) -> Norms:
    """The fastest way to squared gradient norms that agrees with `by_loop` on two samples, a random direction."""
    ends = _rows(part, [0, -1])
    with torch.no_grad():
        shape = objective.predict(tensors, buffers, part).flatten(1).unsqueeze(1).shape  # (n, 1, C)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    vectors, values = (
        drawn.to(objective.center),
        torch.ones(shape[:2], dtype=torch.float64, device=objective.device),
    )
    expected = by_loop(objective, tensors, buffers, ends, vectors[[0, -1]], values[[0, -1]])
    for norms in (by_modules, by_vmap) if is_used_once else (by_vmap,):
        try:
            found = norms(objective, tensors, buffers, part, vectors, values)
        except (RuntimeError, ValueError, TypeError, IndexError):  # what vmap raises where it cannot trace
            continue
        if (
            found is not None
            and ((found[[0, -1]] - expected).abs() <= _rounding(drawn.to(vectors)) * expected).all()
        ):
            return norms
    return by_loop


def _sample_traces(objective: Objective, theta: Tensor, plan: _Plan) -> tuple[Tensor, int]:
    """(m,) float64: tr(J_x A_x J_x') of every sample, and the largest number of backward passes."""
    tensors, buffers = _point(objective, theta)
    traces: list[Tensor] = []
    passes = 0
    for part in _parts(objective):
        with torch.no_grad():
            outputs = objective.predict(tensors, buffers, part)
        curvature = output_hessians(
            plan.criterion.loss, outputs, split.move(part, torch.float64, objective.device)
        )
        if not bool(curvature.isfinite().all()):
            return torch.full((1,), math.nan, dtype=torch.float64), passes
        values, vectors = _factors(curvature)
        passes = max(passes, values.shape[1])
        arguments = (objective, tensors, buffers, part, vectors.to(outputs.dtype), values)
        found = plan.norms(*arguments)
        traces.append((by_loop(*arguments) if found is None else found).cpu())
    return torch.cat(traces), passes


def _factors(curvature: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n, r) and vectors (n, r, C) of symmetric matrices (n, C, C), those that are zero left out."""
    values, vectors = torch.linalg.eigh((curvature + curvature.transpose(1, 2)) / 2)
    order = values.abs().argsort(dim=1, descending=True)
    values = values.gather(1, order)
    vectors = vectors.transpose(1, 2).gather(1, order.unsqueeze(2).expand_as(vectors))
    largest = values.abs().amax(0)
    noise = values.shape[1] * torch.finfo(values.dtype).eps * largest.max()  # of a computed zero
    rank = int((largest > noise).sum())
    return values[:, :rank], vectors[:, :rank]


def _point(objective: Objective, theta: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return {n: t.detach() for n, t in objective.unflatten(theta).items()}, objective.buffers(theta)


def _parts(objective: Objective) -> Iterator[Batch]:
    size = max(2, objective.chunk // SMALLER_PIECES)  # of one sample there are no batch statistics
    for batch in objective.batches():
        yield from split.pieces(batch, size)


def _rows(batch: Batch, rows: list[int]) -> Batch:
    return split.map_tensors(batch, lambda t: t[rows])


def _rounding(tensor: Tensor) -> float:
    """The relative difference that two orders of summation may make in a network, generously."""
    return 10 * math.sqrt(torch.finfo(tensor.dtype).eps)

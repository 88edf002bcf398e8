"""Training a low-loss path between two solutions ([Garipov 2018], as used by [Yang2021]), for any module."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lossatlas.errors import UserError
from lossatlas.landscape import paths
from lossatlas.landscape.batches import Batch
from lossatlas.landscape.checkpoints import Checkpoints, State
from lossatlas.landscape.criterion import Criterion, LossFn
from lossatlas.landscape.descent import Walk, epoch_mean, has_batchnorm, own_randomness
from lossatlas.landscape.objective import ModelCall
from lossatlas.landscape.parameters import Layout, layout_of
from lossatlas.landscape.result import Result


@dataclass(frozen=True)
class CurveFit(Result):
    """A fitted path, and how the fit went."""

    points: Tensor  # (bends+2, n), as left by the last epoch; first and last row are bitwise the given ends
    kind: paths.Kind
    losses: tuple[float, ...]  # of every epoch run: mean loss of its samples at its random t, without the l2 term
    epochs: int  # asked for
    seed: int
    status: Literal["ok", "diverged"] = "ok"
    reason: str = ""

    def __repr__(self) -> str:
        last = f"mean loss {self.losses[-1]:.4g} in epoch {len(self.losses)} of {self.epochs}"
        return f"CurveFit({self.kind}, {self.status}: {last})"


def learning_rate(lr: float, epoch: int, epochs: int) -> float:
    """The rate of epoch 0 .. epochs-1, with a = (epoch + 1) / epochs ([Garipov 2018]).

    lr for a <= 1/2, then linear down to lr/100 at a = 0.9: lr (1 - 0.99 (a - 1/2) / 0.4), then lr/100.
    """
    done = (epoch + 1) / epochs
    if done <= 0.5:
        return lr
    return lr * (1 - 0.99 * (done - 0.5) / 0.4) if done <= 0.9 else lr * 0.01


def fit(
    model: nn.Module,
    ends: tuple[Tensor, Tensor],
    batches: Callable[[int], Iterable[Batch]],
    loss: Criterion | LossFn,
    *,
    seed: int,
    bends: int = 1,
    epochs: int = 50,
    lr: float = 0.01,
    momentum: float = 0.9,
    l2: float = 5e-4,
    kind: paths.Kind = "bezier",
    start: Tensor | Literal["midpoint"] = "midpoint",
    device: torch.device | str | None = None,
    progress: Callable[[int, float], None] | None = None,
    checkpoints: Checkpoints | None = None,
    generators: Sequence[torch.Generator] = (),
) -> CurveFit:
    """Minimise E_t [L(gamma(t)) + (l2/2) |gamma(t)|^2], t ~ U[0, 1], over the bends between two fixed ends (n,).

    SGD with `momentum`, the rate of `learning_rate`, one t a batch. [Yang2021] takes the default numbers, one bend
    of a Bezier curve and batches of 128, and starts the bend at random: give such a vector (bends, n) as `start`.
    `"midpoint"` spaces the bends evenly on the straight line, which is a saddle of a symmetric problem.

    `batches(epoch)` yields the batches of epoch 0, 1, ...; all are used whatever their size. `loss` is the mean
    loss of a batch; `progress(epoch, mean loss)` is called after each epoch.

    The whole model is in train mode: BatchNorm uses the statistics of the batch (so a batch of one sample, which
    has none, is left out when the model has BatchNorm layers). Everything random (t, Dropout, a loader that draws
    from torch's global generator) follows from `seed`; on a CPU the same call gives the same bits. The caller's
    model and random state stay as they are. Weights have the dtype of the ends; `device` defaults to the model's.
    `checkpoints` are left between batches and continued from, with the same bits as without a stop; if `batches`
    draws from generators of its own, name them as `generators`.

    The gradient of bend i is c_i(t) dL/dw: one backward pass at the interpolated weights w, so an epoch costs 1.06
    (ResNet18 of width 8) to 1.10 (two convolutions) plain epochs. A loss that is not finite ends the fit after its
    epoch with status `"diverged"`. Raises UserError for arguments that do not fit together, and an epoch without
    usable batches.
    """
    layout = layout_of(model)
    _check(layout, ends, batches, bends, epochs, lr, momentum, l2, kind, start)
    place = torch.device(device) if device is not None else next(model.parameters()).device
    private = copy.deepcopy(model).to(dtype=ends[0].dtype, device=place)
    points = _initial(ends, bends, start).to(place)
    draws = torch.Generator().manual_seed(seed)
    descent = _Descent(private, layout, points, kind, loss, momentum, l2, draws)
    losses = descent.losses
    with torch.enable_grad(), own_randomness(draws):
        walk = Walk(checkpoints, descent.state, sums=1, generators=(draws, *generators), device=place)
        if walk.resumed:
            descent.restore(walk.resumed)
        for epoch in walk.remaining(range(epochs)):
            losses.append(descent.epoch(walk, epoch, batches, learning_rate(lr, epoch, epochs)))
            if progress is not None:
                progress(epoch, losses[-1])
            if not (math.isfinite(losses[-1]) and bool(points.isfinite().all())):
                reason = f"the loss along the curve or its bends ceased to be finite in epoch {epoch} (from 0)"
                return CurveFit(points, kind, tuple(losses), epochs, seed, "diverged", reason)
    return CurveFit(points, kind, tuple(losses), epochs, seed)


class _Descent:
    """SGD on the bends, the inner rows of `points`, which it changes in place; the ends stay."""

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        points: Tensor,
        kind: paths.Kind,
        loss: Criterion | LossFn,
        momentum: float,
        l2: float,
        draws: torch.Generator,
    ) -> None:
        self._call = ModelCall(model).train()
        self._has_norms = has_batchnorm(model)
        self._layout, self._points, self._kind, self._loss = layout, points, kind, loss
        self._momentum, self._l2, self._draws = momentum, l2, draws
        self._velocity = torch.zeros_like(points[1:-1])
        self.losses: list[float] = []  # of the epochs that are over

    def epoch(self, walk: Walk, epoch: int, batches: Callable[[int], Iterable[Batch]], rate: float) -> float:
        """One pass; the mean loss over its samples."""
        return epoch_mean(
            walk.batches(epoch, lambda: batches(epoch)),
            lambda batch: self._step(batch, rate),
            like=self._points,
            skip_single=self._has_norms,
            running=walk.running,
        )

    def state(self) -> State:
        """What a fit needs to continue; its ends and its model come from the caller again."""
        buffers = dict(self._call.named_buffers())
        return State({"bends": self._points[1:-1], "velocity": self._velocity, **buffers}, {"losses": self.losses})

    def restore(self, state: State) -> None:
        """Continue from a state."""
        for name, tensor in self.state().tensors.items():
            tensor.copy_(state.tensor(name, tensor))
        self.losses[:] = state.numbers["losses"]

    def _step(self, batch: Batch, rate: float) -> Tensor:
        """One step at a random t; the mean loss of the batch, detached, in float64."""
        t = torch.rand((), generator=self._draws, dtype=torch.float64).item()
        w = paths.point(self._points, t, kind=self._kind).requires_grad_()
        tensors = {f"model.{name}": tensor for name, tensor in self._layout.unflatten(w).items()}
        value: Tensor = functional_call(self._call, tensors, (self._loss, batch))
        if value.grad_fn is None:
            raise UserError("The loss does not depend on the model's trainable parameters: its graph is empty.")
        gradient = torch.autograd.grad(value, w)[0].add(w.detach(), alpha=self._l2)
        shares = paths.weights(self._kind, t, len(self._points) - 1)[1:-1].tolist()
        for share, bend, velocity in zip(shares, self._points[1:-1], self._velocity, strict=True):
            velocity.mul_(self._momentum).add_(gradient, alpha=share)  # d w / d bend = share
            bend.add_(velocity, alpha=-rate)
        return value.detach().double()


def _initial(ends: tuple[Tensor, Tensor], bends: int, start: Tensor | Literal["midpoint"]) -> Tensor:
    """(bends+2, n): a copy of the ends with the bends between."""
    straight = torch.stack([end.detach() for end in ends])
    if isinstance(start, Tensor):
        inner = start.detach().to(straight)
    else:
        inner = torch.stack([paths.line(straight, (i + 1) / (bends + 1)) for i in range(bends)])
    return torch.cat([straight[:1], inner, straight[1:]])


def _check(
    layout: Layout,
    ends: tuple[Tensor, Tensor],
    batches: object,
    bends: int,
    epochs: int,
    lr: float,
    momentum: float,
    l2: float,
    kind: str,
    start: Tensor | str,
) -> None:
    """All that is wrong with the arguments of `fit`, together."""
    problems = []
    for name, end in zip(("first", "second"), ends, strict=True):
        if end.shape != (layout.size,) or not end.is_floating_point() or end.dtype != ends[0].dtype:
            problems.append(
                f"the {name} end has shape {tuple(end.shape)} and dtype {end.dtype}; both must be flat parameter "
                f"vectors ({layout.size},) of one floating-point dtype"
            )
    if not callable(batches):
        problems.append(f"batches is a {type(batches).__name__}; it must be a function epoch -> batches")
    if kind not in ("bezier", "chain"):
        problems.append(f"kind={kind!r} must be bezier or chain (a line has nothing to fit)")
    if bends < 1 or epochs < 1:
        problems.append(f"bends={bends} and epochs={epochs} must be at least 1")
    if not (lr > 0 and 0 <= momentum < 1 and l2 >= 0):
        problems.append(f"lr={lr}, momentum={momentum}, l2={l2} must satisfy lr > 0, 0 <= momentum < 1, l2 >= 0")
    if isinstance(start, Tensor):
        if start.shape != (bends, layout.size):
            problems.append(f"start has shape {tuple(start.shape)}; it must be ({bends}, {layout.size})")
    elif start != "midpoint":
        problems.append(f"start={start!r} must be 'midpoint' or a tensor ({bends}, {layout.size})")
    if problems:
        raise UserError("No curve can be fitted: " + "; ".join(problems) + ".")

"""Mining the landscape: descent towards a direction along which the loss has a wanted shape ([Xu2024])."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from lossatlas.errors import UserError
from lossatlas.landscape.batches import Batch
from lossatlas.landscape.descent import epoch_mean, has_batchnorm, own_randomness
from lossatlas.landscape.expansion import checked_direction
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.result import Result

Algorithm = Literal["w-peak", "vvv-basin"]
Batches = Callable[[int], Iterable[Batch]]
Progress = Callable[[int, float], None]
Step = Callable[[int, Batch], Tensor]


@dataclass(frozen=True, eq=False)
class MinedDirection(Result):
    """A mined direction, to be taken unscaled, and how the search went."""

    vector: Tensor  # (n,), as left by the last epoch
    algorithm: Algorithm
    losses: tuple[float, ...]  # of every epoch run: the mean of what was minimised, at its random lambda
    epochs: int  # asked for
    seed: int
    batchnorm: str  # the objective's policy
    settings: Mapping[str, float]  # the other hyper-parameters
    status: Literal["ok", "diverged"] = "ok"
    reason: str = ""

    def __repr__(self) -> str:
        last = f"mean loss {self.losses[-1]:.4g} in epoch {len(self.losses)} of {self.epochs}"
        length = torch.linalg.vector_norm(self.vector, dtype=torch.float64).item()
        return f"MinedDirection({self.algorithm}, {self.status}: {last}, length {length:.4g})"


def mine_w_peak(
    objective: Objective,
    batches: Batches,
    *,
    seed: int,
    theta: Tensor | None = None,
    epochs: int = 20,
    lr: float = 0.02,
    momentum: float = 0.0,
    start: float | Tensor = 1e-3,
    progress: Progress | None = None,
) -> MinedDirection:
    """Minimise E_lambda L(theta + lambda eps), lambda ~ U[-1, 1], over the direction eps; [Xu2024] Algorithm 1.

    It looks for a direction along which the model, at theta (default: the objective's centre), is a peak between
    two valleys. In epoch e = 1 .. E lambda ~ U[-a, a] with a = e/E, one draw a batch; eps <- eps - lr v with
    v <- momentum v + lambda dL/dw at w = theta + lambda eps. theta stays, and eps has no decay.

    The gradient vanishes in expectation at eps = 0, hence `start`: the standard deviation of a Gaussian eps, or a
    vector (n,), such as an eigenvector. In second order E[lambda dL/dw] = (a^2/3) H eps, so over S steps without
    momentum a component along curvature c is multiplied by about exp(-lr c S/9): negative curvature takes some
    60/(lr |c|) steps to bring 1e-3 to 1. The slope g = dL/dtheta averages out, but leaves a random walk of about
    lr ||g|| sqrt(S)/3 along g, which tilts the curve where S is small. Where S lr is large, a direction is found
    that lowers the loss of the given images only: `mining_checks.survives` tells.

    `batches(epoch)` yields the batches of epoch 0, 1, ...; the objective says how they are scored, and with which
    BatchNorm policy: "eval" or "batch" (then batches of one sample are left out). Dropout is off, as it is in
    curves. `progress(epoch, mean loss)` is called after each epoch, whose cost is that of a plain training epoch.
    All that is random follows from `seed`, also loaders that draw from torch's global generator; on a CPU the same
    call gives the same bits. The caller's random state stays as it is. What ceases to be finite ends the search
    with status "diverged". Raises UserError for arguments that do not fit together, the policy "recalibrate" with
    BatchNorm layers, and an epoch without usable batches.
    """
    _check(objective, batches, epochs, lr, momentum)
    theta = checked_direction(objective, objective.center if theta is None else theta)
    draws = torch.Generator().manual_seed(seed)
    if isinstance(start, Tensor):
        eps = checked_direction(objective, start).clone()
    elif start > 0:
        eps = (start * torch.randn(len(theta), generator=draws, dtype=torch.float64)).to(theta)
    else:
        raise UserError(f"start={start} must be positive: at eps = 0 the expected gradient vanishes.")
    sgd = _Descent(eps, lr, momentum)
    buffers = objective.buffers(theta)

    def step(epoch: int, batch: Batch) -> Tensor:
        lam = _uniform(draws, 0.0, (epoch + 1) / epochs)
        loss, gradient = _mean_gradient(objective, buffers, theta.add(eps, alpha=lam), batch)
        sgd.step(gradient, lam)
        return loss

    losses, reason = _run(objective, batches, step, eps, epochs, draws, progress)
    settings = {"lr": lr, "momentum": momentum} | ({} if isinstance(start, Tensor) else {"start": start})
    return _result(objective, eps, "w-peak", losses, epochs, seed, settings, reason)


def mine_vvv_basin(
    objective: Objective,
    batches: Batches,
    start: Tensor,
    *,
    seed: int,
    theta: Tensor | None = None,
    gamma: float = 0.5,
    half_width: float = 0.1,
    epochs: int = 20,
    lr: float = 0.02,
    momentum: float = 0.0,
    progress: Progress | None = None,
) -> MinedDirection:
    """Minimise E_lambda [L(phi) + gamma L((1-lambda) theta + lambda phi)] over phi; [Xu2024] Algorithm 2.

    lambda ~ U[1/2 - a, 1/2 + a] with a = `half_width`, one draw a batch; the paper has a in {0, 0.1} and gamma in
    {0.1, 0.5, 0.9}. theta (default: the objective's centre) is a converged solution and stays; the direction is
    eps = phi - theta, along which three valleys at 0, 1/2 and 1 are looked for. The gradient in phi is
    dL(phi) + gamma lambda dL at the point between.

    phi begins at `start` (n,), a fresh initialisation: the paper does not say where, and from theta it would stay
    there. With BatchNorm layers take an Objective of policy "batch": running statistics are those of theta. Cost:
    two plain training epochs an epoch. All else is as in `mine_w_peak`.
    """
    _check(objective, batches, epochs, lr, momentum)
    if not (gamma > 0 and 0 <= half_width <= 0.5):
        raise UserError(f"gamma={gamma} must be positive and half_width={half_width} lie in [0, 0.5].")
    theta = checked_direction(objective, objective.center if theta is None else theta)
    phi = checked_direction(objective, start).clone()
    draws = torch.Generator().manual_seed(seed)
    sgd = _Descent(phi, lr, momentum)
    buffers = objective.buffers(theta)

    def step(_epoch: int, batch: Batch) -> Tensor:
        lam = _uniform(draws, 0.5, half_width)
        end_loss, end_gradient = _mean_gradient(objective, buffers, phi, batch)
        loss, gradient = _mean_gradient(objective, buffers, torch.lerp(theta, phi, lam), batch)
        sgd.step(end_gradient.add(gradient, alpha=gamma * lam), 1.0)
        return end_loss + gamma * loss

    losses, reason = _run(objective, batches, step, phi, epochs, draws, progress)
    settings = {"lr": lr, "momentum": momentum, "gamma": gamma, "half_width": half_width}
    return _result(objective, phi - theta, "vvv-basin", losses, epochs, seed, settings, reason)


class _Descent:
    """SGD with momentum on one vector, which it changes in place."""

    def __init__(self, variable: Tensor, lr: float, momentum: float) -> None:
        self._variable, self._lr, self._momentum = variable, lr, momentum
        self._velocity = torch.zeros_like(variable)

    def step(self, gradient: Tensor, share: float) -> None:
        """One step along `share` times the gradient."""
        self._velocity.mul_(self._momentum).add_(gradient, alpha=share)
        self._variable.add_(self._velocity, alpha=-self._lr)


def _run(
    objective: Objective,
    batches: Batches,
    step: Step,
    variable: Tensor,
    epochs: int,
    draws: torch.Generator,
    progress: Progress | None,
) -> tuple[list[float], str]:
    """The mean loss of every epoch, and why the search ended early, or nothing."""
    skip_single = objective.batchnorm == "batch" and has_batchnorm(objective.model)
    losses: list[float] = []
    with torch.enable_grad(), own_randomness(draws):
        for epoch in range(epochs):
            one = partial(step, epoch)
            losses.append(epoch_mean(batches(epoch), one, like=variable, skip_single=skip_single))
            if progress is not None:
                progress(epoch, losses[-1])
            if not (math.isfinite(losses[-1]) and bool(variable.isfinite().all())):
                return losses, f"the loss or the direction ceased to be finite in epoch {epoch} (from 0)"
    return losses, ""


def _mean_gradient(
    objective: Objective, buffers: Mapping[str, Tensor], w: Tensor, batch: Batch
) -> tuple[Tensor, Tensor]:
    """The mean loss of a batch at w, in float64, and its gradient (n,); both detached."""
    point = w.detach().requires_grad_()
    total, count = objective.loss_sum(objective.layout.unflatten(point), buffers, batch)
    mean = total / count
    return mean.detach().double(), torch.autograd.grad(mean, point)[0]


def _uniform(draws: torch.Generator, center: float, half_width: float) -> float:
    return center + half_width * (2 * torch.rand((), generator=draws, dtype=torch.float64).item() - 1)


def _result(
    objective: Objective,
    vector: Tensor,
    algorithm: Algorithm,
    losses: list[float],
    epochs: int,
    seed: int,
    settings: Mapping[str, float],
    reason: str,
) -> MinedDirection:
    status: Literal["ok", "diverged"] = "diverged" if reason else "ok"
    policy = str(objective.batchnorm)
    return MinedDirection(vector, algorithm, tuple(losses), epochs, seed, policy, settings, status, reason)


def _check(objective: Objective, batches: object, epochs: int, lr: float, momentum: float) -> None:
    """What is wrong with the arguments that both algorithms share, together."""
    problems = []
    if objective.batchnorm == "recalibrate" and has_batchnorm(objective.model):
        problems.append(
            "batchnorm='recalibrate' would take a pass over the data at every step; build the Objective with "
            "batchnorm='batch' or 'eval'"
        )
    if not callable(batches):
        problems.append(f"batches is a {type(batches).__name__}; it must be a function epoch -> batches")
    if epochs < 1:
        problems.append(f"epochs={epochs} must be at least 1")
    if not (lr > 0 and 0 <= momentum < 1):
        problems.append(f"lr={lr} and momentum={momentum} must satisfy lr > 0, 0 <= momentum < 1")
    if problems:
        raise UserError("No direction can be mined: " + "; ".join(problems) + ".")

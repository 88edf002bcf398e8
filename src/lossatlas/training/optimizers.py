"""Optimisers on one flat vector that the parameters are views of: a few operations a step, however many layers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lossatlas import specs


class FlatOptimizer(ABC):
    """Parameters and gradients as views of two flat vectors; a subclass updates the one from the other.

    A parameter that the loss does not reach has gradient 0 here, and still decays. `lr` is to be set before a
    step, `steps` counts those taken.
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.lr = 0.0
        self.steps = 0
        self._theta = torch.cat([p.detach().reshape(-1) for p in parameters])
        self._gradient = torch.zeros_like(self._theta)
        sizes = [p.numel() for p in parameters]
        for p, value, gradient in zip(
            parameters, self._theta.split(sizes), self._gradient.split(sizes), strict=True
        ):
            p.data = value.view_as(p)
            p.grad = gradient.view_as(p)

    @property
    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """The tensors (n,) beside the weights, by name, to be saved and changed in place."""

    @abstractmethod
    def _update(self) -> None:
        """Change the weights by the gradient; `steps` counts this step already."""

    def zero_grad(self) -> None:
        """Set the gradient to 0; backward then adds to it in place."""
        self._gradient.zero_()

    def clip(self, most: float) -> None:
        """Scale the gradient down to the norm `most` if it is longer, as torch.nn.utils.clip_grad_norm_."""
        # Without asking for the norm, which would make a GPU wait. 1e-6 is torch's.
        self._gradient.mul_((most / (self._gradient.norm() + 1e-6)).clamp(max=1.0))

    def step(self) -> None:
        """One update from the gradient in place."""
        self.steps += 1
        self._update()

    def is_finite(self) -> bool:
        """Whether all weights are finite."""
        return bool(self._theta.isfinite().all())


class FlatSGD(FlatOptimizer):
    """torch.optim.SGD: three operations a step in all.

    v <- momentum v + g, theta <- theta - lr v (with `nesterov` theta - lr (g + momentum v)), where
    g = gradient + weight_decay theta, and v = 0 at first. For networks of a few layers a step of batch 8 takes 0.6
    times as long as with torch.optim.SGD (benchmarks/training.py).
    """

    def __init__(self, model: nn.Module, *, momentum: float, weight_decay: float, nesterov: bool = False) -> None:
        super().__init__(model)
        self._momentum, self._weight_decay, self._nesterov = momentum, weight_decay, nesterov
        self._velocity = torch.zeros_like(self._theta)

    @property
    def state(self) -> dict[str, Tensor]:
        """The velocity v."""
        return {"velocity": self._velocity}

    def _update(self) -> None:
        if self._weight_decay:
            self._gradient.add_(self._theta, alpha=self._weight_decay)
        self._velocity.mul_(self._momentum).add_(self._gradient)
        if self._nesterov:
            self._theta.add_(self._gradient.add_(self._velocity, alpha=self._momentum), alpha=-self.lr)
        else:
            self._theta.add_(self._velocity, alpha=-self.lr)


class FlatAdam(FlatOptimizer):
    """torch.optim.Adam [Kingma 2015], and with `decoupled` decay torch.optim.AdamW [Loshchilov 2019].

    m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, theta <- theta - lr m^ / (sqrt(v^) + eps), where
    m^ = m / (1 - b1^t), v^ = v / (1 - b2^t) in step t, and m = v = 0 at first. Adam has weight_decay theta in g;
    AdamW shrinks theta by lr weight_decay theta instead.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        decoupled: bool,
    ) -> None:
        super().__init__(model)
        self._betas, self._eps, self._weight_decay, self._decoupled = betas, eps, weight_decay, decoupled
        self._mean, self._square = torch.zeros_like(self._theta), torch.zeros_like(self._theta)
        self._scratch = torch.empty_like(self._theta)

    @property
    def state(self) -> dict[str, Tensor]:
        """The running means m of the gradient and v of its square."""
        return {"mean": self._mean, "square": self._square}

    def _update(self) -> None:
        (b1, b2), gradient = self._betas, self._gradient
        if self._weight_decay and self._decoupled:
            self._theta.mul_(1 - self.lr * self._weight_decay)
        elif self._weight_decay:
            gradient.add_(self._theta, alpha=self._weight_decay)
        self._mean.lerp_(gradient, 1 - b1)
        self._square.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
        # Both sides of the fraction times sqrt(1 - b2^t), which saves a pass over v.
        root = math.sqrt(1 - b2**self.steps)
        torch.sqrt(self._square, out=self._scratch).add_(self._eps * root)
        self._theta.addcdiv_(self._mean, self._scratch, value=-self.lr * root / (1 - b1**self.steps))


def build(model: nn.Module, settings: specs.Optimizer) -> FlatOptimizer:
    """The optimiser that the settings name, on the trainable parameters of the model."""
    if settings.name == "sgd":
        return FlatSGD(
            model, momentum=settings.momentum, weight_decay=settings.weight_decay, nesterov=settings.nesterov
        )
    return FlatAdam(
        model,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        decoupled=settings.name == "adamw",
    )

"""The mean loss of a model as a function of a flat vector, and its dense derivatives, without the package."""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lossatlas.landscape.criterion import Criterion


def mean_loss(
    model: nn.Module, batches: Sequence[Any], criterion: Criterion
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The function theta -> mean over all samples (eval mode, float64), and the model's own theta (n,)."""
    model = copy.deepcopy(model).double().eval()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            losses = [criterion.loss(criterion.predict(self.model, batch), batch) for batch in batches]
            return torch.cat(losses).mean()

    module = Loss()

    def function(theta: Tensor) -> Tensor:
        pieces, start = {}, 0
        for name, p in trainable.items():
            pieces[f"model.{name}"] = theta[start : start + p.numel()].reshape(p.shape)
            start += p.numel()
        return torch.func.functional_call(module, pieces, ())

    return function, torch.cat([p.detach().reshape(-1) for p in trainable.values()])


def dense_hessian(model: nn.Module, batches: Sequence[Any], criterion: Criterion) -> Tensor:
    """(n, n) float64, by forward over reverse (the package differentiates backward twice)."""
    function, theta = mean_loss(model, batches, criterion)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forward mode uses torch.jit inside
        return torch.func.hessian(function)(theta)


def gauss_newton(model: nn.Module, batches: Sequence[Any], criterion: Criterion) -> Tensor:
    """(n, n): J' A J / m, from a dense Jacobian and the dense Hessian of the loss in all outputs together."""
    model = copy.deepcopy(model).double().eval()
    trainable = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    class Outputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: Any) -> Tensor:
            return criterion.predict(self.model, batch)

    module = Outputs()
    total, count = torch.zeros(()), 0
    for batch in batches:

        def outputs(tensors: dict[str, Tensor], batch: Any = batch) -> Tensor:
            named = {f"model.{n}": t for n, t in tensors.items()}
            return torch.func.functional_call(module, named, (batch,)).flatten()

        value = outputs(trainable)
        jacobian = torch.func.jacrev(outputs)(trainable)
        rows = torch.cat([j.reshape(len(value), -1) for j in jacobian.values()], dim=1)
        shape = criterion.predict(model, batch).shape

        def loss(flat: Tensor, batch: Any = batch, shape: Any = shape) -> Tensor:
            return criterion.loss(flat.view(shape), batch).sum()

        total = total + rows.T @ torch.func.jacrev(torch.func.grad(loss))(value) @ rows
        count += shape[0]
    return total / count

"""Small models, losses and ragged batches in float64: the table that the curvature tests run over."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossatlas.landscape.criterion import Criterion, supervised

RAGGED = (5, 5, 3)


@dataclass(frozen=True)
class Case:
    name: str
    model: nn.Module
    batches: list[Any]
    criterion: Criterion
    is_affine: bool  # outputs piecewise affine in each single weight

    def __repr__(self) -> str:
        return self.name


class Reused(nn.Module):
    """A residual connection, and one layer used twice in series: quadratic in its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        h = h + F.relu(self.shared(h))
        return self.last(h + F.relu(self.shared(h)))


class Siamese(nn.Module):
    """One branch for two inputs in parallel, and a residual connection: affine in each weight. Takes a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.inner, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        h = F.relu(self.branch(batch["a"])) + F.relu(self.branch(batch["b"]))
        return self.last(h + F.relu(self.inner(h)))


class Tied(nn.Module):
    """An autoencoder whose second layer is the first one's weight: one parameter in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 4), nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(F.relu(self.encoder(x)))


def conv_net() -> nn.Module:
    """Convolutions (strided, grouped, with and without bias), BatchNorm with statistics that are not 0 and 1."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    for norm in model:
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
    return model


def _build(
    name: str, make: Callable[[], nn.Module], shape: tuple[int, ...], loss: str = "cross_entropy", *, affine: bool
) -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(name.encode()))
        model = make().double()
        inputs = [torch.randn(n, *shape, dtype=torch.float64) for n in RAGGED]
        classes = [torch.randint(0, 3, (n,)) for n in RAGGED]
        if name == "siamese":
            others = [torch.randn(n, *shape, dtype=torch.float64) for n in RAGGED]
            batches: list[Any] = [
                {"a": a, "b": b, "y": y} for a, b, y in zip(inputs, others, classes, strict=True)
            ]
            criterion = Criterion(
                predict=lambda model, batch: model(batch),
                loss=lambda outputs, batch: F.cross_entropy(outputs, batch["y"], reduction="none"),
            )
            return Case(name, model, batches, criterion, affine)
        if loss == "mse":
            width = model(inputs[0]).shape[1]
            targets = [torch.randn(n, width, dtype=torch.float64) for n in RAGGED]
            return Case(name, model, list(zip(inputs, targets, strict=True)), supervised(F.mse_loss), affine)
        return Case(name, model, list(zip(inputs, classes, strict=True)), supervised(F.cross_entropy), affine)


def _mlp(activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 5), activation(), nn.Linear(5, 3))


CASES = [
    _build("mlp_relu", lambda: _mlp(nn.ReLU), (4,), affine=True),
    _build("mlp_relu_mse", lambda: _mlp(nn.ReLU), (4,), "mse", affine=True),
    _build("mlp_tanh", lambda: _mlp(nn.Tanh), (4,), affine=False),
    _build("mlp_tanh_mse", lambda: _mlp(nn.Tanh), (4,), "mse", affine=False),
    _build("conv_batchnorm", conv_net, (2, 6, 6), affine=True),
    _build("reused", Reused, (4,), affine=False),
    _build("siamese", Siamese, (4,), affine=True),
    _build("tied", Tied, (4,), "mse", affine=False),
]
BY_NAME = {case.name: case for case in CASES}

"""Everything that is told of a Hessian against the dense one, of three networks of some thousand parameters.

The dense Hessian is written here with the module's own parameters, all samples in one batch and one row for each
component of the gradient, and held against central differences. (`oracles.dense` differentiates forward over
reverse, which errs for LayerNorm in torch 2.13.)
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import lossatlas as la
from lossatlas.landscape.density import Density
from lossatlas.landscape.hutchinson import hutchinson
from lossatlas.landscape.operators import HessianOperator

CLASSES = 5
RAGGED = (13, 8)
ROUNDING = 1e-12  # of the largest eigenvalue: sums of some thousand float64 terms in another order
STEPS = 40  # of the quadrature
SEED = 0  # of every random probe; not chosen


class Transformer(nn.Module):
    """Embedding, positions, a block of LayerNorm, attention and GELU, and the mean over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.positions = nn.Parameter(torch.randn(5, 8) / 4)
        self.block = nn.TransformerEncoderLayer(
            8, 2, 12, dropout=0.1, activation=F.gelu, batch_first=True, norm_first=True
        )
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.block(self.embedding(tokens) + self.positions)).mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, CLASSES))


def conv_net() -> nn.Module:
    """ReLU between convolutions, and BatchNorm with statistics of its own."""
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(54, CLASSES),
    )
    model(torch.randn(64, 2, 6, 6) * 2 + 1)  # in train mode
    return model


@dataclass(frozen=True, eq=False)
class Known:
    """A network with its dense Hessian."""

    objective: la.Objective
    gradient_at: Callable[[Tensor], Tensor]  # by plain autograd
    matrix: Tensor  # (n, n)
    eigenvalues: Tensor  # (n,) ascending

    @property
    def scale(self) -> float:
        return self.eigenvalues.abs().max().item()

    @property
    def hessian(self) -> HessianOperator:
        return la.hessian(self.objective)


MAKERS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": lambda: (mlp(), torch.randn(sum(RAGGED), 20, dtype=torch.float64)),
    "conv": lambda: (conv_net(), torch.randn(sum(RAGGED), 2, 6, 6, dtype=torch.float64)),
    "transformer": lambda: (Transformer(), torch.randint(10, (sum(RAGGED), 5))),
}
pytestmark = [
    pytest.mark.parametrize("name", MAKERS),
    pytest.mark.filterwarnings("ignore::lossatlas.landscape.kernels.PlainMathsWarning"),  # see test_kernels.py
]


@cache
def known(name: str) -> Known:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model, inputs = MAKERS[name]()
        targets = torch.randint(CLASSES, (len(inputs),))
    model = model.double().eval()
    batches = list(zip(inputs.split(RAGGED), targets.split(RAGGED), strict=True))
    objective = la.Objective(model, batches, la.supervised(F.cross_entropy))
    model = copy.deepcopy(model)
    parameters = list(model.parameters())

    def gradient(create_graph: bool) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            parts = torch.autograd.grad(
                F.cross_entropy(model(inputs), targets), parameters, create_graph=create_graph
            )
        return torch.cat([part.reshape(-1) for part in parts])

    def gradient_at(theta: Tensor) -> Tensor:
        nn.utils.vector_to_parameters(theta, parameters)
        return gradient(create_graph=False)

    slopes = gradient(create_graph=True)
    unit = torch.eye(len(slopes), dtype=torch.float64)
    rows = torch.autograd.grad(slopes, parameters, unit, is_grads_batched=True)
    matrix = torch.cat([part.flatten(1) for part in rows], dim=1)
    return Known(objective, gradient_at, matrix, torch.linalg.eigvalsh(matrix))


def test_the_dense_hessian_is_that_of_central_differences(name: str) -> None:
    network = known(name)
    n = len(network.matrix)
    assert 500 <= n <= 3000
    # both triangles of reverse over reverse are computed apart
    torch.testing.assert_close(network.matrix, network.matrix.T, rtol=0, atol=ROUNDING * network.scale)
    h = 1e-6  # truncation h^2 |third derivative| ~ 1e-12, rounding 1e-16 / h ~ 1e-10, with room
    for i in torch.randperm(n, generator=torch.Generator().manual_seed(SEED))[:20].tolist():
        step = torch.zeros(n, dtype=torch.float64).index_fill(0, torch.tensor(i), h)
        ends = [network.gradient_at(network.objective.center + sign * step) for sign in (1, -1)]
        numeric = (ends[0] - ends[1]) / (2 * h)
        torch.testing.assert_close(network.matrix[i], numeric, rtol=0, atol=1e-8 * network.scale)


def test_products(name: str) -> None:
    network = known(name)
    vectors = torch.randn(
        len(network.matrix), 5, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64
    )
    torch.testing.assert_close(
        network.hessian @ vectors, network.matrix @ vectors, rtol=0, atol=1e-11 * network.scale
    )


@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
def test_eigenpairs_within_their_residuals(name: str, which: str) -> None:
    network = known(name)
    found = la.eigenpairs(network.hessian, 10, which=which, tol=1e-6, max_matvecs=500, seed=SEED)
    ends = {"largest": network.eigenvalues.flip(0)[:10], "smallest": network.eigenvalues[:10]}
    expected = ends[which] if which != "both" else torch.cat([ends["largest"], ends["smallest"]])
    room = ROUNDING * network.scale
    assert found.converged.all()
    assert ((found.eigenvalues - expected).abs() <= found.residuals + room).all()
    measured = network.matrix @ found.eigenvectors - found.eigenvectors * found.eigenvalues
    torch.testing.assert_close(measured.norm(dim=0), found.residuals, rtol=1e-6, atol=room)


def test_trace(name: str) -> None:
    network = known(name)
    exact = network.matrix.trace().item()
    found = la.trace(network.objective, seed=SEED)
    if name == "conv":
        assert found.method == "exact-ggn"
        assert math.isclose(found.value, exact, rel_tol=1e-10)  # rounding
    else:
        assert found.method == "ggn-hutchinson"
        assert 0 < abs(found.value - exact) <= 4 * found.stderr


def test_trace_of_square(name: str) -> None:
    network = known(name)
    found = la.trace_of_square(network.hessian, max_matvecs=100, seed=SEED)
    assert 0 < abs(found.value - network.matrix.square().sum().item()) <= 4 * found.stderr


@cache
def measured(name: str) -> Density:
    return la.density(known(name).hessian, probes=8, steps=STEPS, seed=SEED)


def test_moments_of_the_density(name: str) -> None:
    network, found = known(name), measured(name)
    for power in (1, 2):
        exact = network.eigenvalues.pow(power).sum().item()
        estimate = found.moment(power)
        # Student's t with 7 degrees of freedom stays within 5 with probability 0.998
        assert 0 < abs(estimate.value - exact) <= 5 * estimate.stderr
    generator, n = torch.Generator().manual_seed(SEED), len(network.matrix)
    for ritz, weights in zip(found.ritz, found.weights, strict=True):
        v = (2.0 * torch.randint(0, 2, (n,), generator=generator).double() - 1) / math.sqrt(n)
        image = v
        for power in range(2 * STEPS):  # Gauss quadrature is exact up to the power 2 steps - 1
            exact = (v @ image).item()
            assert math.isclose(weights @ ritz.pow(power), exact, rel_tol=0, abs_tol=1e-11 * network.scale**power)
            image = network.matrix @ image


def test_negative_mass_and_the_smallest_eigenvalue(name: str) -> None:
    network, found = known(name), measured(name)
    for share in (-0.2, -0.1, -1e-9):  # the last one leaves out what is zero but for rounding
        exact = (network.eigenvalues < share * network.scale).double().mean().item()
        mass = found.mass_below(share * network.scale)
        assert exact > 0.01
        # the bracket is that of the quadrature; about it, eight probes have Student's t with 7 degrees of freedom
        assert mass.lower.value - 5 * mass.lower.stderr <= exact <= mass.upper.value + 5 * mass.upper.stderr
        if share < -1e-3:  # few eigenvalues at the threshold, so a node there has little weight
            assert mass.upper.value - mass.lower.value < 0.1
            assert abs(mass.value - exact) <= 5 * mass.stderr + (mass.upper.value - mass.lower.value) / 2
    for extreme, end in ((found.smallest, network.eigenvalues[0]), (found.largest, network.eigenvalues[-1])):
        assert abs(extreme.value - end.item()) <= extreme.residual + ROUNDING * network.scale
    assert found.smallest.value >= network.eigenvalues[0].item() - ROUNDING * network.scale
    assert found.to_dataset()["ritz_smallest"].item() == found.smallest.value


def test_blocks(name: str) -> None:
    network = known(name)
    layout = network.objective.layout
    positions = layout.unflatten(torch.arange(layout.size))
    found = la.blocks(network.objective)
    assert sum(block.size for block in found.values()) == layout.size
    for layer, block in found.items():
        chosen = block.layout.flatten(positions)
        expected = network.matrix[chosen][:, chosen]
        exact = torch.linalg.eigvalsh(expected)
        k = min(3, block.size // 2)
        pairs = la.eigenpairs(block, k, which="both", tol=1e-6, max_matvecs=500, seed=SEED)
        room = pairs.residuals + ROUNDING * network.scale
        # an eigenvalue that is repeated exactly, as the zeros of the last layer, may be found once only
        assert ((pairs.eigenvalues.unsqueeze(1) - exact).abs().min(1).values <= room).all(), layer
        ends = exact[[-1, 0]]
        assert ((pairs.eigenvalues[[0, k]] - ends).abs() <= room[[0, k]]).all(), layer
        estimate = hutchinson(block, rel=0.1, max_matvecs=40, seed=SEED)
        # some ten blocks, so five standard errors; none where the block is diagonal
        error = abs(estimate.value - exact.sum().item())
        assert error <= 5 * estimate.stderr + ROUNDING * network.scale * block.size, layer

"""The package against short independent programs for what the listings of [Xu2024], appendix B, compute.

Their text was not at hand: these are written anew from what they are said to do, in plain PyTorch, NumPy and
SciPy, and share nothing with the package: (1) a Hessian-vector product by double backward over a loader, (2)
eigenpairs from it, by SciPy's `eigsh` and by power iteration, (3) the spectral density by stochastic Lanczos
quadrature.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

import lossatlas as la
from cases import conv_net

Array = np.ndarray
Batches = Sequence[tuple[Tensor, Tensor]]
Product = Callable[[Array], Array]


# ---- the listings -------------------------------------------------------------------------------------------


def hessian_vector_product(model: nn.Module, loader: Batches, vector: Tensor) -> Tensor:
    """Listing 1: H v of the mean loss, by a gradient of <gradient, v>; the graph of one batch at a time."""
    parameters = list(model.parameters())
    pieces = vector.split([p.numel() for p in parameters])
    total, samples = torch.zeros_like(vector), 0
    for x, y in loader:
        loss = F.cross_entropy(model(x), y, reduction="sum")
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        along = sum((g.flatten() * v).sum() for g, v in zip(gradients, pieces, strict=True))
        total += torch.cat([h.flatten() for h in torch.autograd.grad(along, parameters)])
        samples += len(y)
    return total / samples


def leading_eigenpairs(product: Product, n: int, k: int, which: str) -> tuple[Array, Array]:
    """Listing 2: the k eigenpairs at one end ("LA", "SA"), outermost first, by ARPACK to machine precision."""
    hessian = LinearOperator((n, n), product, dtype=np.float64)
    values, vectors = eigsh(hessian, k, which=which, tol=0, v0=np.ones(n))
    order = np.argsort(values)[:: -1 if which == "LA" else 1]
    return values[order], vectors[:, order]


def power_iteration(product: Product, n: int, steps: int, rng: np.random.Generator) -> tuple[float, Array]:
    """Listing 2, the other way: the eigenpair of largest magnitude."""
    vector = rng.standard_normal(n)
    for _ in range(steps):
        vector = product(vector)
        vector /= np.linalg.norm(vector)
    return float(vector @ product(vector)), vector


def lanczos_quadrature(product: Product, start: Array, steps: int) -> tuple[Array, Array]:
    """Listing 3: nodes and weights (m,) of the spectral measure of one start vector."""
    basis, alphas, betas = [start / np.linalg.norm(start)], [], []
    for _ in range(steps):
        image = product(basis[-1])
        alphas.append(image @ basis[-1])
        for _ in range(2):  # against all, twice
            for q in basis:
                image = image - (image @ q) * q
        betas.append(np.linalg.norm(image))
        basis.append(image / betas[-1])
    nodes, vectors = np.linalg.eigh(np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1))
    return nodes, vectors[0] ** 2


# ---- one network for all ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, Batches]:
    """A convolution net with BatchNorm, in eval mode and float64, and ragged batches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = conv_net().double().eval()
        return model, [(torch.randn(n, 2, 6, 6).double(), torch.randint(3, (n,))) for n in (8, 8, 5)]


@pytest.fixture(scope="module")
def product(network: tuple[nn.Module, Batches]) -> Product:
    """Listing 1 between arrays."""
    times = partial(hessian_vector_product, *network)
    return lambda vector: times(torch.from_numpy(np.asarray(vector, dtype=np.float64).reshape(-1))).numpy()


@pytest.fixture(scope="module")
def matrix(product: Product, operator) -> Array:
    """Listing 1 on all unit vectors, for what takes more products than the matrix has columns."""
    return np.stack([product(e) for e in np.eye(operator.size)])


@pytest.fixture(scope="module")
def operator(network: tuple[nn.Module, Batches]) -> object:
    model, loader = network
    return la.hessian(la.Objective(model, loader, la.supervised(F.cross_entropy)))


def test_products(operator, product) -> None:
    """The same sums of some 1e4 terms in another order, in float64: 1e-12 of the product's size, with room."""
    vectors = torch.from_numpy(np.random.default_rng(0).standard_normal((operator.size, 3)))
    expected = np.stack([product(v) for v in vectors.T.numpy()], axis=1)
    found = (operator @ vectors).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize(("which", "arpack"), [("largest", "LA"), ("smallest", "SA")])
def test_eigenpairs_at_either_end(operator, product, which: str, arpack: str) -> None:
    """An eigenvalue errs by residual^2 / gap, a vector by residual / gap; the residuals are asked to be 1e-9."""
    values, vectors = leading_eigenpairs(product, operator.size, 4, arpack)
    pairs = la.eigenpairs(operator, 4, which=which, tol=1e-9, seed=0)
    assert pairs.converged.all()
    assert (values > 0).all() if which == "largest" else (values < 0).all()
    scale = np.abs(product(vectors[:, 0])).max()
    np.testing.assert_allclose(pairs.eigenvalues.numpy(), values, rtol=0, atol=1e-9 * max(scale, 1))
    cosines = np.abs((pairs.eigenvectors.numpy() * vectors).sum(0))
    angles = (pairs.residuals / pairs.gaps).numpy() + 1e-9  # ARPACK's own residuals are rounding
    assert (np.sqrt(np.maximum(0, 1 - cosines**2)) <= angles + 1e-7).all()  # a cosine's rounding is 1e-7 in angle


def test_power_iteration_finds_the_largest_magnitude(operator, product) -> None:
    """It errs by (ratio of magnitudes)^(2 steps), below 1e-8 here, and knows nothing of the other end."""
    value, vector = power_iteration(product, operator.size, 60, np.random.default_rng(0))
    both = la.eigenpairs(operator, 2, which="both", tol=1e-9, seed=0)
    largest, second, smallest, _ = both.eigenvalues.tolist()
    ratio = max(second, -smallest) / largest
    assert ratio**120 < 1e-8  # what the tolerance below rests on
    assert value == pytest.approx(largest, rel=1e-7)
    assert abs(vector @ both.eigenvectors[:, 0].numpy()) == pytest.approx(1, abs=1e-7)


class Listening:
    """An operator that remembers what it is given."""

    def __init__(self, op) -> None:
        self.size, self.dtype, self.device, self.op = op.size, op.dtype, op.device, op
        self.given: list[Tensor] = []

    def __matmul__(self, vector: Tensor) -> Tensor:
        self.given.append(vector.clone())
        return self.op @ vector


def test_the_quadrature_of_the_same_probes(operator, product) -> None:
    """Both orthogonalise fully, so T differs by rounding, 1e-13 of ||H|| a step; a weight by that over its gap."""
    steps, listening = 15, Listening(operator)
    density = la.density(listening, probes=3, steps=steps, seed=0)
    starts = listening.given[::steps]  # a probe's first product is that of the probe
    for ritz, weights, start in zip(density.ritz, density.weights, starts, strict=True):
        signs = start.numpy() * np.sqrt(operator.size)
        np.testing.assert_allclose(np.abs(signs), 1, rtol=1e-14)
        nodes, squares = lanczos_quadrature(product, signs, steps)
        np.testing.assert_allclose(ritz.numpy(), nodes, rtol=0, atol=1e-10 * np.abs(nodes).max())
        np.testing.assert_allclose(weights.numpy(), squares, rtol=0, atol=1e-8)


def test_the_density_of_independent_probes(operator, matrix) -> None:
    """Shares of the spectrum from 30 probes of either program agree within 4 of their joint standard errors."""
    steps, count, rng = 12, 30, np.random.default_rng(1)
    density = la.density(operator, probes=count, steps=steps, seed=0)
    histogram = density.histogram(12)
    edges = histogram.edges.numpy().copy()
    edges[0], edges[-1] = -np.inf, np.inf  # the other probes have outermost Ritz values of their own
    shares = []
    for _ in range(count):
        nodes, weights = lanczos_quadrature(matrix.__matmul__, rng.choice([-1.0, 1.0], operator.size), steps)
        shares.append(np.histogram(nodes, edges, weights=weights)[0])
    expected, error = np.mean(shares, axis=0), np.std(shares, axis=0, ddof=1) / np.sqrt(count)
    joint = np.hypot(error, histogram.stderr.numpy())
    assert expected.sum() == pytest.approx(1, abs=1e-12)
    assert (np.abs(histogram.share.numpy() - expected) <= 4 * joint + 1e-12).all()
    for estimate, exact in ((density.trace, matrix.trace()), (density.trace_of_square, (matrix**2).sum())):
        assert abs(estimate.value - exact) <= 4 * estimate.stderr

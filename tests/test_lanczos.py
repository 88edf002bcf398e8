"""Eigenpairs against prescribed spectra, SciPy and the identities of the method."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor

from cases import BY_NAME
from lossatlas.errors import UserError
from lossatlas.landscape.krylov import Krylov
from lossatlas.landscape.lanczos import eigenpairs
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.operators import MatrixOperator, from_matrix, hessian
from oracles.dense import dense_hessian


def with_spectrum(values: Tensor, seed: int = 0) -> MatrixOperator:
    """A random rotation of diag(values), in float64."""
    draw = torch.randn(
        len(values), len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    rotation = torch.linalg.qr(draw).Q
    matrix = rotation @ torch.diag(values.double()) @ rotation.T
    return from_matrix((matrix + matrix.T) / 2)


CPU = torch.device("cpu")
SPECTRA = {
    "spread": torch.linspace(-3, 10, 60),
    "negative": -torch.linspace(1, 9, 60).square(),
    "outliers": torch.cat([torch.tensor([50.0, 20.0, 19.0, -8.0]), torch.linspace(-0.5, 0.5, 56)]),
    "clustered": torch.cat([10 - 1e-3 * torch.arange(5), torch.linspace(-1, 1, 55)]),
    "low rank": torch.cat([torch.tensor([5.0, 3.0, 1.0, -2.0]), torch.zeros(56)]),
}


def true_residuals(op: MatrixOperator, values: Tensor, vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(op @ vectors - vectors * values.to(vectors), dim=0).double()


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
def test_prescribed_spectra(name: str, which: str) -> None:
    op, k, tol = with_spectrum(SPECTRA[name]), 3, 1e-8
    found = eigenpairs(op, k, which=which, tol=tol, seed=1)
    ascending = SPECTRA[name].double().sort().values
    ends = {"largest": ascending.flip(0)[:k], "smallest": ascending[:k]}
    expected = ends[which] if which != "both" else torch.cat([ends["largest"], ends["smallest"]])
    assert found.converged.all()
    assert found.reason == ""
    # every eigenvalue lies within its residual: tol times the size of the spectrum
    torch.testing.assert_close(found.eigenvalues, expected, rtol=0, atol=tol * ascending.abs().max().item())


@pytest.mark.parametrize("name", SPECTRA)
def test_residuals_are_true_and_vectors_orthonormal(name: str) -> None:
    op = with_spectrum(SPECTRA[name])
    size = SPECTRA[name].abs().max().item()
    found = eigenpairs(op, 2, which="both", tol=1e-5, seed=0)
    # rounding of A v in float64 is some 1e-16 ||A|| sqrt(n)
    measured = true_residuals(op, found.eigenvalues, found.eigenvectors)
    torch.testing.assert_close(found.residuals, measured, rtol=1e-6, atol=1e-13 * size)
    gram = found.eigenvectors.T @ found.eigenvectors
    torch.testing.assert_close(gram, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(found.converged, found.residuals <= 1e-5 * size)


def test_vectors_are_those_of_the_rotation_with_fixed_signs() -> None:
    op = with_spectrum(SPECTRA["outliers"])
    found = eigenpairs(op, 2, tol=1e-10, seed=0)
    exact = torch.linalg.eigh(op.matrix).eigenvectors[:, [-1, -2]]
    cosines = (found.eigenvectors * exact).sum(0).abs()
    torch.testing.assert_close(cosines, torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-12)
    largest = found.eigenvectors.gather(0, found.eigenvectors.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()
    # the nearest other eigenvalue of 50 is 20, of 20 it is 19 (found once the latter has converged)
    assert math.isclose(found.gaps[0].item(), 30, rel_tol=1e-6)


def test_the_lanczos_relation_holds_across_restarts() -> None:
    op = with_spectrum(SPECTRA["spread"])
    space = Krylov(op, 10, torch.randn(op.size, generator=torch.Generator().manual_seed(0)))
    for restart in range(3):
        while space.m < 10:
            assert space.grow()
        basis, projected = space.basis[:10], space.projected
        last = torch.zeros(10, dtype=torch.float64)
        last[-1] = 1
        residual = op @ basis.T - basis.T @ projected - space.beta * torch.outer(space.basis[10], last)
        # rounding: some ten operations on numbers of the size of A
        assert residual.abs().max() < 1e-13 * 10
        gram = space.basis @ space.basis.T
        assert (gram - torch.eye(11, dtype=torch.float64)).abs().max() < 1e-13
        values, vectors = torch.linalg.eigh(projected)
        space.compress(values[4:], vectors[:, 4:])
        assert space.m == 6, restart


@pytest.mark.parametrize("name", ["spread", "outliers", "clustered", "negative"])
@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
def test_restart_equals_no_restart(name: str, which: str) -> None:
    op = with_spectrum(SPECTRA[name])
    size = SPECTRA[name].abs().max().item()
    whole = eigenpairs(op, 2, which=which, tol=1e-9, seed=3)
    restarted = eigenpairs(op, 2, which=which, tol=1e-9, max_basis=12, max_matvecs=3000, seed=3)
    assert restarted.converged.all()
    torch.testing.assert_close(restarted.eigenvalues, whole.eigenvalues, rtol=0, atol=2e-9 * size)
    measured = true_residuals(op, restarted.eigenvalues, restarted.eigenvectors)
    assert (measured <= 1e-9 * size + 1e-13 * size).all()


def test_scipy_agrees() -> None:
    case = BY_NAME["conv_batchnorm"]
    matrix = dense_hessian(case.model, case.batches, case.criterion)
    objective = Objective(case.model, case.batches, case.criterion)
    found = eigenpairs(hessian(objective), 3, which="both", tol=1e-10, seed=0)
    start = np.ones(len(matrix))
    largest = eigsh(matrix.numpy(), 3, which="LA", v0=start)[0][::-1]
    smallest = eigsh(matrix.numpy(), 3, which="SA", v0=start)[0]
    scale = abs(largest).max()
    # residual 1e-10 of the scale bounds the error
    np.testing.assert_allclose(found.eigenvalues, np.concatenate([largest, smallest]), atol=2e-10 * scale)


def test_float32_stays_orthogonal_and_accurate() -> None:
    # 2,000 coordinates, 120 directions: without reorthogonalisation copies of the outlier would appear by then.
    values = torch.cat([torch.tensor([100.0]), torch.linspace(-1, 1, 1999)])
    matrix = torch.diag(values)  # a diagonal matrix keeps the eigenvalues exact in float32
    found = eigenpairs(from_matrix(matrix), 4, tol=0.0, max_matvecs=120, seed=0)
    gram = (found.eigenvectors.T @ found.eigenvectors).double()
    assert (gram - torch.eye(4, dtype=torch.float64)).abs().max() < 1e-5  # some 10 eps of float32
    assert abs(found.eigenvalues[0].item() - 100) < 1e-4
    assert found.eigenvalues[1] <= 1 + 1e-4
    assert found.matvecs == 120
    assert not found.converged.any()  # tol 0 cannot be met
    assert "max_matvecs=120" in found.reason


def test_repeated_eigenvalues_of_an_exhausted_space_are_found() -> None:
    values = torch.cat([torch.full((3,), 7.0), torch.full((10,), 2.0), torch.full((7,), -1.0)])
    found = eigenpairs(with_spectrum(values), 4, tol=1e-8, seed=0)
    expected = torch.tensor([7.0, 7, 7, 2], dtype=torch.float64)
    torch.testing.assert_close(found.eigenvalues, expected, rtol=0, atol=1e-10)
    assert found.converged.all()
    assert found.matvecs <= 4 * 3 + 1  # each Krylov space holds one vector of each of the three eigenvalues


@pytest.mark.parametrize("matrix", [torch.zeros(6, 6), torch.eye(6), torch.ones(1, 1) * -3])
def test_exact_at_once(matrix: Tensor) -> None:
    found = eigenpairs(from_matrix(matrix), which="smallest", seed=0)
    assert found.matvecs == 1
    assert found.converged.all()
    torch.testing.assert_close(found.eigenvalues, matrix[:1, 0].double(), rtol=1e-6, atol=0)


def test_an_operator_smaller_than_the_budget() -> None:
    values = torch.tensor([3.0, 2.0, 1.0, -5.0])
    found = eigenpairs(with_spectrum(values), 2, which="both", tol=0.0, max_matvecs=500, seed=0)
    expected = torch.tensor([3.0, 2.0, -5.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(found.eigenvalues, expected, rtol=0, atol=1e-13)
    assert found.matvecs == 4


@dataclass
class Diverging:
    """The identity whose third product is not finite."""

    size: int = 10
    dtype: torch.dtype = torch.float64
    device: torch.device = CPU
    products: int = 0

    def __matmul__(self, vector: Tensor) -> Tensor:
        self.products += 1
        return vector * torch.arange(1, 11) * (math.inf if self.products == 3 else 1.0)


def test_a_product_that_is_not_finite_is_a_result() -> None:
    found = eigenpairs(Diverging(), 2, tol=1e-12, seed=0)
    assert found.reason == "product 3 is not finite"
    assert found.matvecs == 3
    assert found.eigenvalues.isnan().all()
    assert found.eigenvectors.shape == (10, 2)
    assert not found.converged.any()


def test_the_stop_rule_is_the_residual() -> None:
    op = with_spectrum(SPECTRA["clustered"])
    loose, tight = (eigenpairs(op, 3, tol=tol, seed=0) for tol in (1e-2, 1e-8))
    assert loose.matvecs < tight.matvecs
    assert (loose.residuals <= 1e-2 * 10 * (1 + 1e-9)).all()
    stopped = eigenpairs(op, 3, tol=1e-8, max_matvecs=tight.matvecs - 1, seed=0)
    assert not stopped.converged.all()
    assert torch.equal(
        eigenpairs(op, 3, tol=1e-8, max_matvecs=tight.matvecs, seed=0).eigenvalues, tight.eigenvalues
    )


def test_seed_and_global_random_state() -> None:
    op = with_spectrum(SPECTRA["spread"])
    state = torch.get_rng_state()
    one, same, other = (eigenpairs(op, tol=1e-3, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.eigenvectors, same.eigenvectors)
    assert not torch.equal(one.eigenvectors, other.eigenvectors)
    assert (one.seed, one.tol) == (5, 1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"k": 5}, "from 1 to 4"),
        ({"k": 3, "which": "both"}, "from 1 to 2"),
        ({"which": "magnitude"}, "largest, smallest, both"),
        ({"k": 3, "max_matvecs": 2}, "at least 3"),
        ({"k": 1, "max_basis": 2}, "Give 3 or more"),
    ],
)
def test_what_cannot_be_done_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        eigenpairs(with_spectrum(torch.arange(4.0)), seed=0, **arguments)

"""Spectral densities against prescribed spectra, dense Hessians and the laws of quadrature and of probes."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from cases import CASES, Case
from lossatlas.errors import UserError
from lossatlas.landscape.density import Density, SymlogAxis, density
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.operators import MatrixOperator, from_matrix, hessian
from oracles.dense import dense_hessian

CPU = torch.device("cpu")


def with_spectrum(values: Tensor) -> MatrixOperator:
    """A random rotation of diag(values), in float64."""
    draw = torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rotation = torch.linalg.qr(draw).Q
    matrix = rotation @ torch.diag(values.double()) @ rotation.T
    return from_matrix((matrix + matrix.T) / 2)


def textbook(matrix: Tensor, probe: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights by the three-term recurrence with a tridiagonal T, as [Golub and Welsch 1969]."""
    v, before, beta = probe / probe.norm(), torch.zeros_like(probe), 0.0
    alphas, betas = [], []
    for _ in range(steps):
        w = matrix @ v - beta * before
        alphas.append((w @ v).item())
        w = w - alphas[-1] * v
        beta = w.norm().item()
        betas.append(beta)
        before, v = v, w / beta
    off = torch.tensor(betas[:-1], dtype=torch.float64)
    tridiagonal = torch.diag(torch.tensor(alphas, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(tridiagonal)
    return values, vectors[0].square()


SEMICIRCLE_ORDER = 300


def semicircle() -> MatrixOperator:
    """A Gaussian orthogonal matrix of eigenvalues within +-2: the density is sqrt(4 - x^2) / (2 pi)."""
    draw = torch.randn(
        SEMICIRCLE_ORDER, SEMICIRCLE_ORDER, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    return from_matrix((draw + draw.T) / math.sqrt(2 * SEMICIRCLE_ORDER))


# ---- quadrature ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_equals_the_textbook_recurrence(probe: str) -> None:
    op = with_spectrum(torch.linspace(-1, 3, 40))
    found = density(op, probes=2, steps=6, probe=probe, seed=4)
    generator = torch.Generator().manual_seed(4)
    for ritz, weights in zip(found.ritz, found.weights, strict=True):
        if probe == "gaussian":
            start = torch.randn(40, generator=generator, dtype=torch.float64)
        else:
            start = 2.0 * torch.randint(0, 2, (40,), generator=generator) - 1
        values, shares = textbook(op.matrix, start.double(), 6)  # six steps lose no orthogonality in float64
        torch.testing.assert_close(ritz, values, rtol=0, atol=1e-12)
        torch.testing.assert_close(weights, shares, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 5, 60])
def test_weights_are_real_not_negative_and_sum_to_one(steps: int) -> None:
    found = density(with_spectrum(torch.linspace(-3, 10, 60)), probes=4, steps=steps, seed=0)
    assert found.matvecs == 4 * steps
    for ritz, weights in zip(found.ritz, found.weights, strict=True):
        assert ritz.dtype == weights.dtype == torch.float64
        assert ritz.shape == weights.shape == (steps,)
        assert (weights >= 0).all()
        assert abs(weights.sum().item() - 1) < 1e-14 * steps  # rows of an orthogonal matrix, some eps an entry


def test_moments_of_a_probe_are_exact_up_to_twice_the_steps() -> None:
    op = with_spectrum(torch.linspace(-1, 1, 50))
    found = density(op, probes=1, steps=4, seed=9)
    v = 2.0 * torch.randint(0, 2, (50,), generator=torch.Generator().manual_seed(9)).double() - 1
    power = v
    for k in range(9):
        exact = (v @ power).item()  # v'A^k v of signs: n times that of the unit vector
        if k < 8:
            assert math.isclose(found.moment(k).value, exact, rel_tol=0, abs_tol=1e-11), k
        else:
            by_hand = 50 * (found.weights[0] @ found.ritz[0].pow(8)).item()
            assert abs(by_hand - exact) > 1e-3  # four nodes know eight moments and no more
        power = op @ power
    with pytest.raises(UserError, match="power=8"):
        found.moment(8)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_moments_of_dense_hessians(case: Case) -> None:
    matrix = dense_hessian(case.model, case.batches, case.criterion)
    op = hessian(Objective(case.model, case.batches, case.criterion))
    found = density(op, probes=16, steps=8, seed=2)
    exact = torch.linalg.eigvalsh(matrix)
    for estimate, expected in (
        (found.trace, exact.sum()),
        (found.trace_of_square, exact.square().sum()),
        (found.moment(3), exact.pow(3).sum()),
    ):
        # seeded; Student t with 15 degrees of freedom stays within 4 with probability 0.999
        assert abs(estimate.value - expected.item()) < 4 * estimate.stderr
    for extreme, sign in ((found.smallest, -1), (found.largest, 1)):
        end = exact[0 if sign < 0 else -1]
        assert sign * (extreme.value - end) < 1e-12 * exact.abs().max()
        assert (exact - extreme.value).abs().min() <= extreme.residual + 1e-12 * exact.abs().max()


def test_an_exhausted_space_ends_its_probe_exactly() -> None:
    values = torch.cat([torch.full((30,), -1.0), torch.full((10,), 3.0)])
    found = density(with_spectrum(values), probes=5, steps=20, seed=0)
    assert found.matvecs == 5 * 2
    for ritz in found.ritz:
        torch.testing.assert_close(ritz, torch.tensor([-1.0, 3.0], dtype=torch.float64), rtol=0, atol=1e-12)
    assert found.largest.residual < 1e-12


@pytest.mark.parametrize("matrix", [torch.zeros(4, 4), torch.eye(4) * 7, torch.full((1, 1), -2.0)])
def test_one_eigenvalue(matrix: Tensor) -> None:
    found = density(from_matrix(matrix), probes=3, seed=0)
    assert (found.matvecs, found.trace.value) == (3, matrix.trace().item())
    assert found.trace.stderr == 0
    shares = [share.value for share in (found.signs().negative, found.signs().undecided, found.signs().positive)]
    sign = int(matrix[0, 0].sign().item())
    assert shares == pytest.approx([float(sign == s) for s in (-1, 0, 1)], abs=1e-12)  # one step is exact here
    counted = found.histogram(5)
    assert counted.share.sum() == 1
    curve = found.smoothed()
    assert curve.density.isfinite().all()


# ---- densities that are known -------------------------------------------------------------------------------


def shares_of(values: Tensor, edges: Tensor) -> Tensor:
    return torch.histogram(values.double(), edges).hist / len(values)


@pytest.mark.parametrize(
    ("op", "edges"),
    [
        # edges off the bulk where the law is discrete; five broad bins, so that 40 steps resolve them
        (with_spectrum(torch.linspace(-1, 1, 300)), torch.linspace(-1.001, 1.001, 6)),
        (with_spectrum(torch.tensor([-2.0] * 60 + [5.0] * 240)), torch.tensor([-3.0, 0.0, 4.0, 6.0])),
        (semicircle(), torch.linspace(-2.2, 2.2, 6)),
    ],
    ids=["uniform", "two points", "semicircle"],
)
@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_known_densities(op: MatrixOperator, edges: Tensor, probe: str) -> None:
    edges = edges.double()
    found = density(op, probes=20, steps=40, probe=probe, seed=3).histogram(edges)
    exact = shares_of(torch.linalg.eigvalsh(op.matrix), edges)
    assert abs(found.share.sum().item() - 1) < 1e-12
    # beside the spread over probes, an edge may cut off half the weight of a node: some 1/(2 * 40) of the mass
    assert ((found.share - exact).abs() < 4 * found.stderr + 1 / 40).all()
    assert torch.equal(found.edges, edges)


def test_the_semicircle_law() -> None:
    found = density(semicircle(), probes=10, steps=30, seed=0)
    # cumulative share of the semicircle below x: 1/2 + x sqrt(4 - x^2) / (4 pi) + asin(x/2) / pi
    for x in (-1.5, -0.5, 0.3, 1.2):
        exact = 0.5 + x * math.sqrt(4 - x * x) / (4 * math.pi) + math.asin(x / 2) / math.pi
        mass = found.mass_below(x)
        # a matrix of order 300 follows its law to some 1/300, quadrature to the share of a node
        assert abs(mass.value - exact) < 4 * mass.stderr + 1 / 30 + 1 / 300
    # moments of the law: 0, 1, 0, 2 (Catalan numbers); of one matrix they fluctuate by some 1/n
    shares = [found.moment(k).value / SEMICIRCLE_ORDER for k in range(1, 5)]
    torch.testing.assert_close(torch.tensor(shares), torch.tensor([0.0, 1, 0, 2]), rtol=0, atol=0.06)


def test_the_share_of_negatives() -> None:
    values = torch.cat([-torch.linspace(0.5, 1, 90), torch.linspace(0.5, 20, 210)])  # 30%, with a gap at 0
    found = density(with_spectrum(values), probes=30, steps=40, seed=0).mass_below(0)
    assert found.stderr < 0.02
    assert abs(found.value - 0.3) < 4 * found.stderr
    assert found.lower.value <= found.value <= found.upper.value


def test_the_bracket_of_a_share_holds_for_every_probe() -> None:
    """The spectral measure of a probe is known here, so that the bracket can be held against it."""
    op = with_spectrum(torch.linspace(-1, 2, 80))
    values, vectors = torch.linalg.eigh(op.matrix)
    for seed in range(20):
        v = 2.0 * torch.randint(0, 2, (80,), generator=torch.Generator().manual_seed(seed)).double() - 1
        measure = (vectors.T @ v).square() / 80
        found = density(op, probes=1, steps=5, seed=seed)
        for x in torch.linspace(-1.1, 2.1, 23, dtype=torch.float64).tolist():
            exact = measure[values < x].sum().item()
            mass = found.mass_below(x)
            assert mass.lower.value - 1e-12 <= exact <= mass.upper.value + 1e-12


def test_the_bracket_closes_where_the_quadrature_is_exact() -> None:
    values = torch.cat([torch.full((30,), -1.0), torch.full((10,), 3.0)])
    found = density(with_spectrum(values), probes=40, steps=20, seed=0)
    mass = found.mass_below(0)
    assert mass.lower.value == pytest.approx(mass.value, abs=1e-12)
    assert mass.upper.value == pytest.approx(mass.value, abs=1e-12)
    assert found.signs().undecided.value == pytest.approx(0, abs=1e-12)
    assert abs(found.signs().negative.value - 0.75) < 4 * found.signs().negative.stderr


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_eigenvalues_at_zero_are_undecided_and_not_negative(dtype: torch.dtype) -> None:
    """70% of the spectrum is 0, where rounding draws the signs of Ritz values; 6% is negative."""
    values = torch.cat([-torch.logspace(-3, 0, 12), torch.zeros(140), torch.logspace(-3, 1, 48)])
    op = from_matrix(with_spectrum(values).matrix.to(dtype))
    for seed in range(5):
        signs = density(op, probes=20, steps=30, seed=seed).signs()
        assert signs.threshold == pytest.approx(100 * torch.finfo(dtype).eps * 10, rel=1e-3)
        assert signs.negative.value + signs.undecided.value + signs.positive.value == pytest.approx(1, abs=1e-12)
        # seeded; Student t with 19 degrees of freedom stays within 4 with probability 0.999
        assert signs.negative.value <= 0.06 + 4 * signs.negative.stderr
        assert signs.positive.value <= 0.24 + 4 * signs.positive.stderr
        assert signs.undecided.value >= 0.7 - 4 * signs.undecided.stderr
        assert signs.negative.value > 0.02  # and the bounds say something
        assert signs.positive.value > 0.1


def test_a_threshold_moves_shares_to_the_undecided() -> None:
    found = density(with_spectrum(torch.linspace(-1, 2, 80)), probes=4, steps=20, seed=0)
    fine, coarse = found.signs(), found.signs(0.5)
    assert coarse.threshold == 0.5
    assert coarse.negative.value < fine.negative.value
    assert coarse.undecided.value > fine.undecided.value
    with pytest.raises(UserError, match="threshold=-1"):
        found.signs(-1)


def test_standard_errors_are_calibrated() -> None:
    """Over 150 seeds, (estimate - truth) / stderr follows Student's t with 9 degrees of freedom: std 1.13.

    The mean of 150 has a standard error of 0.09, their std one of about 0.09: bands of 3.3 of these.
    """
    op = with_spectrum(torch.cat([-torch.linspace(0.5, 1, 30), torch.linspace(0.5, 3, 70)]))
    exact = torch.linalg.eigvalsh(op.matrix)
    z = []
    for seed in range(150):
        found = density(op, probes=10, steps=12, probe="gaussian", seed=seed)
        square, mass = found.trace_of_square, found.mass_below(0)
        z.append(
            [
                (found.trace.value - exact.sum().item()) / found.trace.stderr,
                (square.value - exact.square().sum().item()) / square.stderr,
                (mass.value - 0.3) / mass.stderr,
            ]
        )
    columns = torch.tensor(z)
    assert (columns.mean(0).abs() < 0.3).all()
    assert ((columns.std(0) > 0.83) & (columns.std(0) < 1.43)).all()


# ---- axis, histogram, curve ---------------------------------------------------------------------------------


def test_the_axis_is_its_own_inverse_and_monotone() -> None:
    axis = SymlogAxis(1e-3)
    values = torch.tensor([-10.0, -1.0, -1e-3, -5e-4, 0.0, 1e-4, 1e-3, 1e-2, 100.0], dtype=torch.float64)
    expected = torch.tensor([-5.0, -4.0, -1.0, -0.5, 0.0, 0.1, 1.0, 2.0, 6.0], dtype=torch.float64)
    torch.testing.assert_close(axis.forward(values), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(axis.inverse(expected), values, rtol=1e-12, atol=0)


def test_the_histogram_holds_all_mass_and_is_even_on_its_axis() -> None:
    found = density(with_spectrum(torch.linspace(-3, 10, 60)), probes=4, steps=20, seed=0)
    counted = found.histogram(31, threshold=0.01)
    assert counted.share.shape == counted.stderr.shape == (31,)
    assert abs(counted.share.sum().item() - 1) < 1e-12
    spacing = counted.axis.forward(counted.edges).diff()
    torch.testing.assert_close(spacing, spacing.mean().expand(31), rtol=1e-9, atol=0)
    assert (counted.edges[0].item(), counted.edges[-1].item()) == (found.smallest.value, found.largest.value)
    assert found.histogram().axis.threshold == pytest.approx(1e-4 * found.largest.value)


def test_the_smoothed_density_is_that_of_wide_kernels() -> None:
    found = density(with_spectrum(torch.linspace(-3, 10, 60)), probes=4, steps=20, seed=0)
    curve = found.smoothed(width=0.3, threshold=0.1)
    u = curve.axis.forward(curve.grid)
    # the kernels go on for 4 widths: 3e-5 of them are cut off at most
    assert abs(torch.trapezoid(curve.density, u).item() - 1) < 1e-4
    by_hand = torch.zeros(4, len(u), dtype=torch.float64)
    for p, (ritz, weights) in enumerate(zip(found.ritz, found.weights, strict=True)):
        for x, w in zip(curve.axis.forward(ritz), weights, strict=True):
            by_hand[p] += w * torch.distributions.Normal(x, 0.3).log_prob(u).exp()
    torch.testing.assert_close(curve.density, by_hand.mean(0), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(curve.stderr, by_hand.std(0) / 2, rtol=1e-10, atol=1e-14)


def test_a_single_probe_has_no_standard_error() -> None:
    found = density(with_spectrum(torch.linspace(-1, 1, 20)), probes=1, steps=5, seed=0)
    assert math.isnan(found.trace.stderr)
    assert found.histogram(3).stderr.isnan().all()
    assert found.smoothed().stderr.isnan().all()
    assert math.isfinite(found.trace.value)


# ---- contracts ----------------------------------------------------------------------------------------------


@dataclass
class Diverging:
    """An operator whose fourth product is not finite."""

    size: int = 10
    dtype: torch.dtype = torch.float64
    device: torch.device = CPU
    products: int = 0

    def __matmul__(self, vector: Tensor) -> Tensor:
        self.products += 1
        return vector * torch.arange(1, 11) * (math.inf if self.products == 4 else 1.0)


def test_a_product_that_is_not_finite_is_a_result() -> None:
    found = density(Diverging(), probes=3, steps=3, seed=0)
    assert (found.status, found.reason, found.matvecs) == ("non-finite", "product 4 is not finite", 4)
    assert found.ritz == found.weights == ()
    assert found.trace.status == "non-finite"
    mass, signs = found.mass_below(0), found.signs()
    for number in (found.trace.value, mass.value, found.largest.value, mass.lower.value, signs.undecided.value):
        assert math.isnan(number)
    assert found.histogram(4).share.isnan().all()
    assert found.smoothed().density.isnan().all()


def test_seed_and_global_random_state() -> None:
    op = with_spectrum(torch.linspace(-1, 1, 20))
    state = torch.get_rng_state()
    one, same, other = (density(op, probes=2, steps=5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(one, Density)
    assert torch.equal(one.ritz[1], same.ritz[1])
    assert not torch.equal(one.ritz[0], one.ritz[1])
    assert not torch.equal(one.ritz[0], other.ritz[0])
    assert (one.seed, one.steps, one.probe, one.size) == (1, 5, "rademacher", 20)


@pytest.mark.parametrize("options", [{"probes": 0}, {"steps": 0}, {"probe": "sphere"}])
def test_numbers_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match="must be at least 1"):
        density(from_matrix(torch.eye(3)), seed=0, **options)


def test_views_that_make_no_sense_are_refused() -> None:
    found = density(from_matrix(torch.eye(3)), seed=0)
    for bins in (0, torch.tensor([1.0]), torch.tensor([1.0, 1.0])):
        with pytest.raises(UserError, match="ascending edges"):
            found.histogram(bins)
    with pytest.raises(UserError, match="threshold=0"):
        found.histogram(threshold=0.0)
    with pytest.raises(UserError, match=r"width=-1"):
        found.smoothed(width=-1.0)

"""Expansion: quadratics in closed form, dense derivatives, and the laws of random directions against sampling."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import BY_NAME, Case
from lossatlas.errors import UserError
from lossatlas.landscape.expansion import (
    expand,
    gaussian_change,
    local_pieces,
    sample_changes,
    sphere_change,
)
from lossatlas.landscape.moments import trace_of_square
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.operators import from_matrix
from oracles.dense import dense_hessian, mean_loss

SMOOTH = [BY_NAME[name] for name in ("mlp_tanh", "mlp_tanh_mse")]


class Point(nn.Module):
    """A model that is nothing but its parameters w (n,)."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w.clone())


def symmetric(n: int, seed: int) -> Tensor:
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (a + a.T) / 2


def vector(n: int, seed: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quadratic(hessian: Tensor, gradient: Tensor) -> Objective:
    """L = g'w + w'Hw/2 at w = 0."""
    model = Point(torch.zeros(len(gradient), dtype=torch.float64))
    return Objective(model, [torch.zeros(1)], lambda m, _: gradient @ m.w + m.w @ hessian @ m.w / 2)


def objective_of(case: Case, **options) -> Objective:
    return Objective(case.model, case.batches, case.criterion, **options)


def dense(case: Case) -> tuple[Tensor, Tensor]:
    """Gradient (n,) and Hessian (n, n) of the mean over all samples."""
    function, theta = mean_loss(case.model, case.batches, case.criterion)
    return torch.func.grad(function)(theta), dense_hessian(case.model, case.batches, case.criterion)


# ---- along one direction -----------------------------------------------------------------------------------


def test_a_quadratic_is_its_own_expansion():
    h, g, d, theta = symmetric(7, 0), vector(7, 1), vector(7, 2), vector(7, 3)
    objective = quadratic(h, g)
    found = expand(objective, d, theta=theta)
    assert found.slope == pytest.approx((d @ (g + h @ theta)).item(), rel=1e-12)  # rounding of float64
    assert found.curvature == pytest.approx((d @ h @ d).item(), rel=1e-12)
    assert found.gradient_norm == pytest.approx((g + h @ theta).norm().item(), rel=1e-12)
    assert found.direction_norm == pytest.approx(d.norm().item(), rel=1e-12)
    lambdas = torch.linspace(-2, 2, 9, dtype=torch.float64)
    curve = objective.values(theta + lambdas.unsqueeze(1) * d)["loss"]
    torch.testing.assert_close(found.loss + found.change(lambdas), curve, rtol=1e-12, atol=1e-12)
    assert (found.status, found.batchnorm) == ("ok", "eval")


@pytest.mark.parametrize("case", SMOOTH, ids=repr)
def test_slope_and_curvature_are_those_of_the_dense_derivatives_and_of_the_curve(case):
    objective = objective_of(case)
    g, h = dense(case)
    d = vector(len(g), 5)
    found = expand(objective, d)
    assert found.slope == pytest.approx((d @ g).item(), rel=1e-10)
    assert found.curvature == pytest.approx((d @ h @ d).item(), rel=1e-10)
    errors = []
    for step in (0.02, 0.01):
        above, here, below = (objective(objective.center + s * d) for s in (step, 0.0, -step))
        errors.append(abs(((above - 2 * here + below) / step**2).item() - found.curvature))
    assert 3.5 < errors[0] / errors[1] < 4.5  # the difference quotient converges in second order to d'Hd


def test_relu_kinks_are_invisible_to_the_curvature():
    """L = |w| as relu(w) + relu(-w): a kink that finite differences see and autograd does not."""
    model = Point(torch.tensor([0.01], dtype=torch.float64))
    objective = Objective(model, [torch.zeros(1)], lambda m, _: (F.relu(m.w) + F.relu(-m.w)).sum())
    d = torch.ones(1, dtype=torch.float64)
    assert expand(objective, d).curvature == 0
    quotient = (
        objective(objective.center + 0.1) - 2 * objective(objective.center) + objective(objective.center - 0.1)
    ) / 0.01
    assert quotient > 10


@pytest.mark.parametrize("policy", ["eval", "batch"])
def test_batchnorm_slope_is_that_of_the_curve_under_the_same_policy(policy):
    case = BY_NAME["conv_batchnorm"]
    objective = objective_of(case, batchnorm=policy)
    d = vector(objective.layout.size, 1)
    found = expand(objective, d)
    step = 1e-6  # no kink between: third-order and rounding errors are some 1e-9 of the slope
    quotient = (objective(objective.center + step * d) - objective(objective.center - step * d)) / (2 * step)
    assert found.slope == pytest.approx(quotient.item(), rel=1e-6)
    assert found.batchnorm == policy


def test_recalibrated_statistics_are_refused_only_where_there_are_any():
    case, plain = BY_NAME["conv_batchnorm"], BY_NAME["mlp_tanh"]
    objective = objective_of(case, batchnorm="recalibrate")
    with pytest.raises(UserError, match="recalibrate"):
        expand(objective, objective.center)
    without = objective_of(plain, batchnorm="recalibrate")
    same = objective_of(plain)
    assert expand(without, same.center).slope == expand(same, same.center).slope


def test_local_pieces_touch_the_curve_and_miss_it_in_third_order():
    case = BY_NAME["mlp_tanh"]
    objective = objective_of(case)
    d = vector(objective.layout.size, 4)
    positions = torch.linspace(-1, 0, 11)
    worst = []
    for half_width in (0.05, 0.025):
        pieces = local_pieces(objective, d, positions, half_width=half_width, points=5)
        curve = torch.stack(
            [objective.values(objective.center + row.unsqueeze(1) * d)["loss"] for row in pieces.lambdas]
        )
        torch.testing.assert_close(pieces.values[:, 2], curve[:, 2], rtol=1e-12, atol=1e-12)
        worst.append((pieces.values - curve).abs().max().item())
    assert pieces.lambdas.shape == pieces.values.shape == (11, 5)
    assert [p.loss for p in pieces.expansions] == pytest.approx(curve[:, 2].tolist(), rel=1e-12)
    assert 6 < worst[0] / worst[1] < 10  # halving the width divides a third-order error by 8


def test_a_loss_that_is_not_finite_is_a_status():
    model = Point(torch.tensor([2.0], dtype=torch.float64))
    objective = Objective(model, [torch.zeros(1)], lambda m, _: m.w.log().sum())
    found = expand(objective, torch.ones(1), theta=torch.tensor([-1.0], dtype=torch.float64))
    assert found.status == "non-finite"
    assert "loss" in found.reason


def test_directions_that_do_not_fit_are_refused():
    objective = quadratic(symmetric(3, 0), vector(3, 0))
    for bad in (torch.zeros(4), torch.tensor([0.0, math.nan, 0.0])):
        with pytest.raises(UserError, match=r"finite vectors of shape \(3,\)"):
            expand(objective, bad)
    with pytest.raises(UserError, match="half_width"):
        local_pieces(objective, torch.ones(3), [0.0], half_width=0.0)
    with pytest.raises(UserError, match="draws=3"):
        sample_changes(objective, seed=0, draws=3)


# ---- along random directions -------------------------------------------------------------------------------

N = 6
DRAWS = 200_000


def drawn_changes(h: Tensor, g: Tensor, lam: float, directions: Tensor) -> Tensor:
    return lam * directions @ g + lam**2 / 2 * ((directions @ h) * directions).sum(1)


def z_scores(changes: Tensor, mean: float, variance: float) -> tuple[float, float]:
    """How many standard errors the sample's mean and variance are off."""
    count, s2 = len(changes), changes.var().item()
    fourth = (changes - changes.mean()).pow(4).mean().item()
    return (
        (changes.mean().item() - mean) / math.sqrt(s2 / count),
        (s2 - variance) / math.sqrt((fourth - s2**2) / count),
    )


@pytest.mark.parametrize(("lam", "sigma"), [(1.0, 1.0), (0.3, 2.0), (2.0, 0.5), (0.05, 0.7)])
def test_moments_over_gaussian_directions(lam, sigma):
    """The linear and the quadratic term dominate in turn; other powers are off by many errors."""
    h, g = symmetric(N, 0) + torch.eye(N, dtype=torch.float64), vector(N, 1)
    z = torch.randn(DRAWS, N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    facts = {
        "gradient_norm": g.norm().item(),
        "trace": h.trace().item(),
        "trace_of_square": (h @ h).trace().item(),
    }
    theory = gaussian_change(lam, **facts, sigma=sigma)
    scores = z_scores(drawn_changes(h, g, lam, sigma * z), theory.mean, theory.variance)
    assert max(map(abs, scores)) < 4  # one in 16,000 for a normal score


@pytest.mark.parametrize(("lam", "radius"), [(1.0, 1.0), (0.3, 4.0), (0.1, 1.0)])
def test_moments_over_directions_of_one_length(lam, radius):
    h, g = symmetric(N, 0) + torch.eye(N, dtype=torch.float64), vector(N, 1)
    z = torch.randn(DRAWS, N, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    facts = {
        "gradient_norm": g.norm().item(),
        "trace": h.trace().item(),
        "trace_of_square": (h @ h).trace().item(),
    }
    theory = sphere_change(lam, size=N, radius=radius, **facts)
    directions = radius * z / z.norm(dim=1, keepdim=True)
    scores = z_scores(drawn_changes(h, g, lam, directions), theory.mean, theory.variance)
    assert max(map(abs, scores)) < 4


def test_an_isotropic_bowl_rises_alike_in_all_directions_of_one_length():
    theory = sphere_change(0.5, size=9, radius=3.0, gradient_norm=0.0, trace=18.0, trace_of_square=36.0)  # H = 2 I
    assert theory.mean == pytest.approx(0.5**2 * 9.0, rel=1e-15)
    assert theory.variance == 0


@pytest.mark.parametrize("radius", [None, 1.5])
def test_sampled_changes_of_a_network_follow_the_law_at_small_scale(radius):
    case = BY_NAME["mlp_tanh"]
    objective = objective_of(case)
    g, h = dense(case)
    facts = {
        "gradient_norm": g.norm().item(),
        "trace": h.trace().item(),
        "trace_of_square": (h @ h).trace().item(),
    }
    found = sample_changes(objective, (0.001, 0.01), seed=3, draws=200, sigma=0.7, radius=radius)
    for lam, mean, variance in zip(found.lambdas, found.means, found.variances, strict=True):
        theory = (
            gaussian_change(lam, **facts, sigma=0.7)
            if radius is None
            else sphere_change(lam, size=len(g), radius=radius, **facts)
        )
        assert abs(mean.value - theory.mean) < 4 * mean.stderr
        assert abs(variance.value - theory.variance) < 4 * variance.stderr
        assert variance.stderr < 0.2 * variance.value  # so that the test can fail: sqrt(2/200) = 0.1
    assert found.changes.shape == (2, 200)
    assert (found.sigma, found.radius) == ((0.7, None) if radius is None else (None, 1.5))


def test_sampled_changes_are_quadratic_forms_of_their_draws_and_repeat():
    """Oracle: from the changes at lambda and -lambda the linear and the quadratic part of each draw."""
    h, g = symmetric(N, 4), vector(N, 5)
    objective = quadratic(h, g)
    found = sample_changes(objective, (1.0, -1.0, 2.0), seed=0, draws=50, radius=2.0)
    plus, minus, double = found.changes
    torch.testing.assert_close(double, (plus - minus) + 2 * (plus + minus), rtol=1e-10, atol=1e-10)
    eigenvalues = torch.linalg.eigvalsh(h)
    assert (plus + minus).max() <= 4 * eigenvalues[-1] + 1e-12  # |d| = 2
    assert (plus + minus).min() >= 4 * eigenvalues[0] - 1e-12
    state = torch.get_rng_state()
    again, other = (sample_changes(objective, (1.0,), seed=s, draws=50, radius=2.0) for s in (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again.changes[0], plus)
    assert not torch.equal(other.changes[0], plus)
    assert found.means[0].value == pytest.approx(plus.mean().item(), rel=1e-12)
    assert found.variances[0].value == pytest.approx(plus.var().item(), rel=1e-12)


def test_standard_error_of_a_variance_is_its_scatter():
    """500 samples of 25 normal numbers: the variance of s^2 is 2/(N-1)."""
    h, g = torch.zeros(4, 4, dtype=torch.float64), torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    objective = quadratic(h, g)
    found = [sample_changes(objective, (1.0,), seed=s, draws=25).variances[0] for s in range(500)]
    values, squares = (torch.tensor(x) for x in ([f.value for f in found], [f.stderr**2 for f in found]))
    assert values.mean().item() == pytest.approx(1.0, abs=4 * math.sqrt(2 / 24 / 500))
    # For normal numbers E[m4] - (N-3)/(N-1) E[s^4] = 2 - 6/N up to O(1/N^2): few draws underrate the tails.
    assert abs(squares.mean() - (2 - 6 / 25) / 25) < 4 * squares.std() / math.sqrt(500)


def test_a_change_that_is_not_finite_is_a_status():
    model = Point(torch.tensor([2.0], dtype=torch.float64))
    objective = Objective(model, [torch.zeros(1)], lambda m, _: m.w.log().sum())
    found = sample_changes(objective, (1e-3, 10.0), seed=0, draws=20)
    assert [m.status for m in found.means] == ["ok", "non-finite"]
    assert [v.status for v in found.variances] == ["ok", "non-finite"]


# ---- the trace of the square -------------------------------------------------------------------------------


def test_trace_of_square_is_unbiased_with_the_variance_of_hutchinson():
    a = symmetric(8, 0)
    square = a @ a
    found = [trace_of_square(from_matrix(a), rel=1e-9, max_matvecs=20, seed=s) for s in range(300)]
    values = torch.tensor([f.value for f in found], dtype=torch.float64)
    assert abs(values.mean() - square.trace()) < 4 * values.std() / math.sqrt(300)
    variance = 2 * (square.square().sum() - square.diagonal().square().sum()) / 20
    # A sample variance of 300 scatters by sqrt(2/299) = 8%.
    assert values.var().item() == pytest.approx(variance.item(), rel=0.33)
    assert sum(f.stderr**2 for f in found) / 300 == pytest.approx(variance.item(), rel=0.1)
    assert not any(f.converged for f in found)


def test_trace_of_square_stops_by_its_error_and_repeats():
    a = symmetric(40, 1)
    found = trace_of_square(from_matrix(a), rel=0.05, max_matvecs=5000, seed=1)
    assert found.converged
    assert found.stderr <= 0.05 * found.value
    assert found.matvecs < 5000
    assert abs(found.value - (a @ a).trace()) < 4 * found.stderr
    assert trace_of_square(from_matrix(a), rel=0.05, max_matvecs=5000, seed=1) == found
    cut = trace_of_square(from_matrix(a), rel=1e-6, max_matvecs=18, seed=1)
    assert not cut.converged
    assert cut.matvecs == 18
    assert "max_matvecs=18" in cut.reason


def test_trace_of_square_of_diagonal_zero_and_broken_operators():
    diagonal = torch.diag(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    exact = trace_of_square(from_matrix(diagonal), seed=0)
    assert (exact.value, exact.stderr, exact.matvecs) == (14.0, 0.0, 16)  # signs have no part in it
    zero = trace_of_square(from_matrix(diagonal * 0), seed=0)
    assert (zero.value, zero.converged) == (0.0, True)
    broken = trace_of_square(from_matrix(torch.diag(torch.tensor([1.0, math.inf]).double())), seed=0)
    assert math.isnan(broken.value)
    assert "not finite" in broken.reason
    with pytest.raises(UserError, match="min_probes"):
        trace_of_square(from_matrix(diagonal), max_matvecs=1, seed=0)

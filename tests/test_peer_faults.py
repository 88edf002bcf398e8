"""Is a landscape tool right? Faults that were found in published tools, each as a test that it is not here.

One test a fault; the docstring names the tool and what went wrong. Where it takes a line or two, the faulty way is
computed beside ours, so that one sees that the test would have caught it. The seams between modules have their own
tests; these ask only what anybody may ask of any tool.
"""

import gc
import math
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import lossatlas as la
from lossatlas import summary
from lossatlas.landscape.hutchinson import hutchinson
from lossatlas.results import REASON, STATUS, Axis, Quantity, group, tree

POLICIES = ("eval", "recalibrate", "batch")
ENTROPY = la.supervised(F.cross_entropy)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def data(samples: int, *shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, *shape).double(), torch.arange(samples) % 3


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def conv_net() -> nn.Module:
    """Smooth, with BatchNorm whose statistics are those of a few training steps."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)
    ).double()
    for _ in range(3):
        model(data(16, 1, 6, 6)[0])
    return model


def images(samples: int = 12) -> tuple[Tensor, Tensor]:
    return data(samples, 1, 6, 6)


def large() -> la.Objective:
    """10,100 parameters."""
    return la.Objective(nn.Linear(100, 100).double(), [(data(8, 100)[0], torch.arange(8))], ENTROPY)


def dense_hessian(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(n, n), row by row, by plain autograd in the mode that the model is in."""
    parameters = list(model.parameters())
    loss = F.cross_entropy(model(x), y)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    rows = [torch.autograd.grad(g, parameters, **options) for g in gradient]
    return torch.stack([torch.cat([t.flatten() for t in row]) for row in rows])


def with_spectrum(values: Tensor) -> Tensor:
    """A symmetric matrix with these eigenvalues."""
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values)).double())
    matrix = q @ torch.diag(values) @ q.T
    return (matrix + matrix.T) / 2


# ---- directions ---------------------------------------------------------------------------------------------


def test_random_directions_are_orthogonal() -> None:
    """Landscaper 1.3.1: Gram-Schmidt without dividing by the squared norm; cosine 0.99, norms 8 times apart."""
    objective = large()
    first, second = (la.gaussian(objective, seed=seed) for seed in range(2))
    n = len(first.vector)
    assert abs(la.angle(first.vector, second.vector).cosine) < 5 / math.sqrt(n)  # 5 standard deviations
    ours = la.orthogonalised([first, second])
    a, b = (d.vector for d in ours)
    assert abs(la.angle(a, b).cosine) < 1e-14  # a sum of 1e4 products of size 1e-4 in float64
    norm = objective.center.norm().item()
    assert [d.norm for d in ours] == pytest.approx([norm, norm], rel=1e-12)
    u, v = torch.randn(2, n).double()
    faulty = v - (v @ u) * u
    assert abs(la.angle(u, faulty).cosine) > 0.9


def test_directions_that_are_given_stay_as_they_are() -> None:
    """Landscaper 1.3.1: `orthnormal` projects in place on the caller's tensors."""
    objective = la.Objective(mlp(), [data(9, 4)], ENTROPY)
    tensors = [torch.randn_like(objective.center) for _ in range(2)]
    kept = [t.clone() for t in tensors]
    directions = [la.given(objective, t, name="mine", scaling="filter") for t in tensors]
    vectors = [d.vector.clone() for d in directions]
    la.orthogonalised(directions)
    la.surface(objective, *directions, grid=(3, 3))
    la.expand(objective, tensors[0])
    assert all(torch.equal(t, k) for t, k in zip(tensors, kept, strict=True))
    assert all(torch.equal(d.vector, v) for d, v in zip(directions, vectors, strict=True))


def test_many_random_directions_have_mean_zero_and_are_orthogonal_to_all_others() -> None:
    """pylandscape 0.1.3: orthogonal to the previous one only, drawn from [0, 1), so all entries positive."""
    directions = [la.gaussian(large(), seed=seed) for seed in range(6)]
    rows = torch.stack([d.vector / d.norm for d in directions])
    n = rows.shape[1]
    assert (rows.mean(1).abs() < 5 / n).all()  # entries have the standard deviation 1/sqrt(n), their mean 1/n
    between = rows @ rows.T - torch.eye(6).double()
    assert between.abs().max() < 5 / math.sqrt(n)
    exact = torch.stack([d.vector / d.norm for d in la.orthogonalised(directions)])
    torch.testing.assert_close(exact @ exact.T, torch.eye(6).double(), rtol=0, atol=1e-14)
    u, v = torch.rand(2, n).double()
    assert la.angle(u, v).cosine == pytest.approx(0.75, abs=0.03)  # the faulty draw


# ---- slices -------------------------------------------------------------------------------------------------


class Logarithm(nn.Module):
    """L = w_1 + w_2 - ln w_1: infinite at w_1 = 0, not a number below."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))


def test_values_that_are_not_finite_stay_and_nothing_is_noisy() -> None:
    """Landscaper 1.3.1: NaN becomes the mean, infinity the maximum, which gets unseeded noise; grid not seeded."""
    objective = la.Objective(Logarithm(), [torch.zeros(1)], lambda model, _: model.w.sum() - model.w[0].log())
    axes = [la.given(objective, e, name="axis") for e in torch.eye(2).double()]
    plane = la.surface(objective, *axes, extent=((-2, 2), (-1, 1)), grid=(5, 3))
    w1, w2 = 1 + plane.alphas.unsqueeze(1), 2 + plane.betas
    expected = w1 + w2 - w1.log()
    assert expected[0].isnan().all()
    assert expected[1].isinf().all()
    assert plane.non_finite == 6
    torch.testing.assert_close(plane.values["loss"], expected, rtol=1e-15, atol=0, equal_nan=True)
    torch.manual_seed(1)  # the caller's seed does not matter
    again = la.surface(objective, *axes, extent=((-2, 2), (-1, 1)), grid=(5, 3))
    assert torch.equal(again.values["loss"].nan_to_num(nan=-1), plane.values["loss"].nan_to_num(nan=-1))
    directions = [la.gaussian(objective, seed=3).vector for _ in range(2)]
    assert torch.equal(*directions)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_surface_of_a_batchnorm_model_is_finite(policy: str) -> None:
    """loss-landscape-3d 0.1.3: directions move all floats of the state, also running_var: 6 of 9 points NaN."""
    model = conv_net()
    norm = model[1]
    kept = norm.running_mean.clone(), norm.running_var.clone(), norm.num_batches_tracked.clone()
    objective = la.Objective(model, [images()], ENTROPY, batchnorm=policy)
    directions = [la.gaussian(objective, seed=seed) for seed in range(2)]
    assert len(directions[0].vector) == sum(p.numel() for p in model.parameters())  # buffers have no part in it
    plane = la.surface(objective, *directions, extent=((-3, 3), (-3, 3)), grid=(3, 3))
    assert plane.values["loss"].isfinite().all()
    found = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert all(torch.equal(f, k) for f, k in zip(found, kept, strict=True))
    own = dict(objective.model.named_buffers())
    assert torch.equal(own["1.running_var"], kept[1])


def test_eigenvectors_of_a_batchnorm_model_are_directions() -> None:
    """loss-landscape-3d 0.1.3: its centre lacks buffers: `Missing key(s) ... running_mean, running_var`."""
    objective = la.Objective(conv_net(), [images()], ENTROPY)
    pairs = la.eigenpairs(la.hessian(objective), 2, tol=1e-8, seed=0)
    first, second = la.eigenvectors(objective, pairs)
    assert la.surface(objective, first, second, grid=(3, 3)).non_finite == 0
    step = 1e-3
    below, center, above = la.line(objective, first, a=-step, b=step, points=3).values["loss"][0].tolist()
    # a second difference errs by step^2 L''''/12 and by eps/step^2 = 2e-10
    assert (above - 2 * center + below) / step**2 == pytest.approx(first.details["eigenvalue"], rel=1e-4)


def test_the_weights_move_and_the_centre_is_the_model() -> None:
    """pylandscape 0.1.3: a zip unpacked the wrong way, so that the weights never move: a constant surface."""
    model, (x, y) = nn.Linear(4, 1).double(), (torch.randn(10, 4).double(), torch.randn(10, 1).double())
    objective = la.Objective(model, [(x, y)], la.supervised(F.mse_loss))
    direction = la.gaussian(objective, seed=0)
    curve = la.line(objective, direction)
    change = x @ direction.vector[:4] + direction.vector[4]
    errors = (model(x) - y).detach()[:, 0] + curve.positions.unsqueeze(1) * change
    torch.testing.assert_close(curve.values["loss"][0], errors.square().mean(1), rtol=1e-12, atol=0)
    assert curve.values["loss"].unique().numel() == 41
    assert curve.center["loss"] == pytest.approx(F.mse_loss(model(x), y).item(), rel=1e-14)
    plane = la.surface(objective, direction, la.gaussian(objective, seed=1), grid=(3, 3))
    assert plane.values["loss"].unique().numel() == 9


def test_positions_and_distances_are_as_said() -> None:
    """loss-landscapes 3.0.6: odd columns a step off, `distance` acts inversely, the model is left moved."""
    model = mlp()
    kept = [p.clone() for p in model.parameters()]
    objective = la.Objective(model, [data(9, 4)], ENTROPY)
    d1, d2 = (la.gaussian(objective, seed=seed) for seed in range(2))
    plane = la.surface(objective, d1, d2, extent=((-1, 1), (0, 2)), grid=(3, 5), fast=False)
    assert plane.betas.tolist() == [0, 0.5, 1, 1.5, 2]
    for i, alpha in enumerate([-1.0, 0.0, 1.0]):
        for j, beta in enumerate([0, 0.5, 1, 1.5, 2]):  # odd columns and even ones
            at = objective.center + alpha * d1.vector + beta * d2.vector
            assert plane.values["loss"][i, j] == objective(at)
            ratio = (at - objective.center).norm() / objective.center.norm()
            assert plane.distances[i, j].item() == pytest.approx(ratio.item(), rel=1e-12, abs=1e-12)
    near, far = (la.line(objective, d1, a=-b, b=b, points=3, fast=False) for b in (1, 2))
    assert far.distances[0, -1] == 2 * near.distances[0, -1]
    assert far.values["loss"][0, -1] == objective(objective.center + 2 * d1.vector)
    assert all(torch.equal(p, k) for p, k in zip(model.parameters(), kept, strict=True))


# ---- curvature ----------------------------------------------------------------------------------------------


def test_density_weights_are_real_and_sum_to_one() -> None:
    """Landscaper 1.3.1: all entries of the eigenvectors squared, not the first ones: complex, of sum 10."""
    objective = la.Objective(conv_net(), [images()], ENTROPY)
    density = la.density(la.hessian(objective), probes=4, steps=10, seed=0)
    for ritz, weights in zip(density.ritz, density.weights, strict=True):
        assert ritz.dtype == weights.dtype == torch.float64
        assert (weights >= 0).all()
        assert weights.sum().item() == pytest.approx(1, abs=1e-13)
    # and they are the right weights: of a matrix with two eigenvalues, the mass of each
    known = la.density(la.from_matrix(with_spectrum(torch.tensor([1.0] * 30 + [5.0] * 10).double())), seed=0)
    share = known.mass_below(3.0)
    assert abs(share.value - 0.75) < 4 * share.stderr


def test_curvature_leaves_no_cycle_and_no_eval_mode_behind() -> None:
    """PyHessian: `backward(create_graph=True)` leaks, as torch warns; the model stays in eval mode."""
    model = conv_net().train()
    model[2].eval()
    modes = [m.training for m in model.modules()]
    objective = la.Objective(model, [images()], ENTROPY)
    vector = torch.ones_like(objective.center)

    def tensors() -> int:
        return sum(type(thing) is Tensor for thing in gc.get_objects())

    la.hessian(objective) @ vector  # what is kept once and for all
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            la.eigenpairs(la.hessian(objective), max_matvecs=3, seed=0)
        assert tensors() == before  # all freed by their counts alone: no cycle holds a graph
    finally:
        gc.enable()
    assert [m.training for m in model.modules()] == modes


@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_an_eigenvalue_is_within_its_residual_at_either_end(which: str) -> None:
    """PyHessian, Landscaper: Rayleigh quotients agree to 1e-3, the error is 0.4-1.9%; largest magnitude only."""
    values = torch.cat([torch.linspace(-2, 0, 100), torch.linspace(0, 1, 200)]).double()
    matrix = with_spectrum(values)
    pairs = la.eigenpairs(la.from_matrix(matrix), 3, which=which, seed=0)
    expected = values.sort(descending=which == "largest").values[:3]
    assert pairs.converged.all()
    assert (pairs.residuals <= 1e-3 * 2.001).all()  # tol times the norm of the matrix
    assert ((pairs.eigenvalues - expected).abs() <= pairs.residuals + 1e-13).all()
    quotient, vector = None, torch.randn(300).double()
    for _ in range(1000):  # the faulty rule
        vector = matrix @ vector / (matrix @ vector).norm()
        previous, quotient = quotient, (vector @ matrix @ vector).item()
        if previous is not None and abs(quotient - previous) < 1e-3 * abs(quotient):
            break
    assert quotient < 0  # the end of larger magnitude, whatever was asked for
    assert abs(quotient + 2) > 0.004 * 2


def negative(kind: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network that is sure of a wrong answer everywhere: the Gauss-Newton part is small, the rest negative."""
    torch.manual_seed(1)
    middle = {"tanh": nn.Identity(), "layer norm": nn.LayerNorm(6), "batch statistics": nn.BatchNorm1d(6)}[kind]
    model = nn.Sequential(nn.Linear(4, 6), middle, nn.Tanh(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[3].weight.mul_(50)
    x, _ = data(20, 4)
    y = model(x).argmin(1)
    return model.train(kind == "batch statistics"), x, y


@pytest.mark.parametrize("kind", ["tanh", "layer norm", "batch statistics"])
def test_a_negative_trace_is_found(kind: str) -> None:
    """PyHessian: stops when the running mean moves little; without `abs` a negative one always stops after 2."""
    model, x, y = negative(kind)
    policy = "batch" if kind == "batch statistics" else "eval"
    found = la.trace(la.Objective(model, [(x, y)], ENTROPY, batchnorm=policy), max_matvecs=2000, seed=0)
    exact = dense_hessian(model, x, y).trace().item()
    assert exact < 0
    assert found.converged
    assert found.matvecs >= 16
    assert found.stderr <= 0.05 * abs(found.value)
    assert abs(found.value - exact) <= 4 * found.stderr


def test_the_trace_stops_by_its_error_not_by_luck() -> None:
    """PyHessian: 5 to 23 probes by luck, errors to 7% at a tolerance of 1e-3, no standard error."""
    matrix = with_spectrum(torch.linspace(-3, 1, 120).double())
    exact, deviations = matrix.trace().item(), []
    for seed in range(20):
        found = hutchinson(la.from_matrix(matrix), rel=0.05, max_matvecs=1000, seed=seed)
        assert found.converged
        assert found.matvecs >= 16
        assert found.stderr <= 0.05 * abs(found.value)
        deviations.append((found.value - exact) / found.stderr)
    # Student's t with 15 degrees of freedom or more: beyond 4.5 once in 2,000
    assert max(abs(z) for z in deviations) < 4.5


def test_a_second_operator_on_the_same_model_says_the_same() -> None:
    """PyHessian: gradients with graphs stay on the model: a second object finds 2.005 times the eigenvalue."""
    model, batches, found = conv_net(), [images(9), images(6)], []
    for _ in range(2):
        objective = la.Objective(model, batches, ENTROPY)
        found.append(la.eigenpairs(la.hessian(objective), seed=0).eigenvalues.item())
        assert all(p.grad is None for p in model.parameters())
    assert found[0] == found[1]


def test_unequal_batches_count_by_samples() -> None:
    """hessian-eigenthings 1.0.0a5: batches averaged without weights: 900 + 100 images give a product 33% wrong."""
    model, (x, y) = mlp(), data(1000, 4)
    y[900:] = 0  # the small batch is another one
    vector = torch.randn(sum(p.numel() for p in model.parameters())).double()

    def product(*parts: slice) -> Tensor:
        return la.hessian(la.Objective(model, [(x[p], y[p]) for p in parts], ENTROPY)) @ vector

    whole, big, small = product(slice(None)), product(slice(900)), product(slice(900, None))
    torch.testing.assert_close(product(slice(900), slice(900, None)), whole, rtol=1e-11, atol=1e-14)
    assert ((big + small) / 2 - whole).norm() > 0.05 * whole.norm()  # the faulty mean


def test_single_precision_and_default_budgets_suffice() -> None:
    """hessian-eigenthings 1.0.0a5: float32 differences 4-14 times too large, 2k Lanczos steps 15-18% off."""
    model, (x, y) = conv_net(), images()
    wide = la.Objective(model, [(x, y)], ENTROPY)
    narrow = la.Objective(model, [(x, y)], ENTROPY, dtype=torch.float32)
    vector = torch.randn_like(wide.center)
    exact = la.hessian(wide) @ vector
    # float32 rounds at 6e-8; sums of some 1e3 terms, and the cancellation in a second derivative
    assert ((la.hessian(narrow) @ vector.float()).double() - exact).norm() < 1e-5 * exact.norm()
    spectrum = torch.linalg.eigvalsh(dense_hessian(model.eval(), x, y))
    pairs = la.eigenpairs(la.hessian(wide), 5, seed=0)
    assert pairs.converged.all()
    assert (pairs.eigenvalues - spectrum.flip(0)[:5]).abs().max() <= 1e-3 * spectrum.abs().max()


def test_products_are_means_over_batches_not_sums() -> None:
    """Goldstein's `eval_hess_vec_prod`: sums over batches: 4 batches give exactly 4 times the product."""
    model, (x, y) = mlp(), data(40, 4)
    one, four = (
        la.hessian(la.Objective(model, list(zip(x.split(size), y.split(size), strict=True)), ENTROPY))
        for size in (40, 10)
    )
    vector = torch.ones(one.size).double()
    torch.testing.assert_close(four @ vector, one @ vector, rtol=1e-11, atol=1e-14)


# ---- between models -----------------------------------------------------------------------------------------


def test_cka_knows_no_batches_and_is_in_double_precision() -> None:
    """[Yang2021]: one batch too many, float32 Gram loses 1e-4 at 5,000 samples, passes anew for every pair."""
    x, _ = data(5000, 4)
    passes = 0

    def predict(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        nonlocal passes
        passes += 1
        return model(batch[0])

    criterion = la.Criterion(predict=predict, loss=ENTROPY.loss)
    models, found = [mlp() for _ in range(2)], []
    for size in (128, 999):
        outputs = []
        for model in models:
            batches = [(part, torch.zeros(len(part), dtype=torch.long)) for part in x.split(size)]
            objective = la.Objective(model, batches, criterion, chunk=size)
            passes = 0
            outputs.append(objective.outputs(objective.center))
            assert passes == len(batches)
        found.append(la.similarity.cka(*outputs))
        assert found[-1].count == 5000
    assert found[0].value == pytest.approx(found[1].value, rel=1e-12)
    single = [o.float() for o in outputs]
    a, b = (o.numpy().astype(np.longdouble) for o in single)
    a, b = a - a.mean(0), b - b.mean(0)
    exact = ((b.T @ a) ** 2).sum() / np.sqrt(((a.T @ a) ** 2).sum() * ((b.T @ b) ** 2).sum())
    assert la.similarity.cka(*single).value == pytest.approx(float(exact), rel=1e-12)

    class Counting(np.random.Generator):
        draws = 0

        def beta(self, *args: object) -> float:
            self.draws += 1
            return super().beta(*args)

    generator = Counting(np.random.PCG64(0))
    assert la.similarity.mixup(x[:2560], generator=generator).shape == (2560, 4)
    assert generator.draws == 20  # batches of 128, and not one more


def test_a_curve_is_judged_with_statistics_of_its_own_and_starts_in_the_middle() -> None:
    """[Yang2021]: tests the curve without a BatchNorm update; never initialises the bend linearly."""
    model, ends = conv_net(), []
    batches = [images(12) for _ in range(2)]
    for _ in range(2):
        ends.append(la.Objective(conv_net(), batches, ENTROPY).center)
    fit = la.curve_fitting.fit(model, tuple(ends), lambda _: batches, ENTROPY, seed=0, epochs=1, lr=1e-30)
    torch.testing.assert_close(fit.points[1], (ends[0] + ends[1]) / 2, rtol=1e-15, atol=1e-16)
    objective = la.Objective(model, batches, ENTROPY, batchnorm="recalibrate")
    ts = [0.0, 0.3, 1.0]
    found = la.paths.evaluate(objective, fit.points, ts).values["loss"]
    for t, loss in zip(ts, found.tolist(), strict=True):
        with torch.no_grad():
            nn.utils.vector_to_parameters(la.paths.bezier(fit.points, t), model.parameters())
            stale = torch.stack([F.cross_entropy(model.eval()(x), y) for x, y in batches]).mean().item()
            update_bn([x for x, _ in batches], model)
            expected = torch.stack([F.cross_entropy(model.eval()(x), y) for x, y in batches]).mean().item()
        assert loss == pytest.approx(expected, rel=1e-10)
        assert abs(stale - expected) > 1e-3 * expected  # of the point before


def test_a_negative_mean_trace_is_a_status_and_mc_comes_from_all_inner_points() -> None:
    """[Yang2021]'s notebook: `np.log` of the trace, NaN if negative; the deviation read at 5 fixed points."""
    axes = (Axis("width", (2,), "load"), Axis("batch_size", (8,), "temperature"))
    quantities = [Quantity("hessian_trace", "1", "Hessian trace", "Hutchinson"), STATUS, REASON]
    traces = {(2, 8, seed): {"hessian_trace": t, "status": "ok", "reason": ""} for seed, t in enumerate([-2.0, 1])}
    results = tree({"models": group(axes, {"seed": (0, 1)}, traces, quantities)}, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy's, of an invalid logarithm
        cell = summary.cells(results).squeeze()
    assert cell["status"] == "degenerate"
    assert "hessian_trace" in str(cell["reason"].item())
    # a narrow barrier at t = 0.4, ends that differ by 10
    ts = torch.linspace(0, 1, 11).double()
    errors = torch.tensor([0, 1, 2, 3, 30, 5, 6, 7, 8, 9, 10]).double()
    found = la.paths.connectivity(errors, ts)
    assert (found.value, found.t_star, found.t_star_at_end) == (-25.0, pytest.approx(0.4), False)
    flat = la.paths.connectivity([0.0, 4.0, 5.5, 5.0, 10.0], [0, 0.25, 0.5, 0.75, 1])
    assert (flat.value, flat.t_star, flat.t_star_at_end) == (1.0, 0.25, True)
    faulty = la.paths.connectivity([0.0, 4.0, 5.5, 5.0, 10.0], [0, 0.25, 0.5, 0.75, 1], rule="published")
    assert (faulty.value, faulty.t_star) == (5.0, 0.0)


def test_comparisons_of_outputs_know_no_batches_and_mixup_is_seeded() -> None:
    """[Yang2021]'s `compare_classification`: cosine over the flattened batch; mixup inputs drawn anew per call."""
    a, b = torch.randn(2, 60, 5).double()
    b[:10] *= 100  # a few large outputs rule the flattened cosine
    for measure in (la.similarity.cosine, la.similarity.agreement):
        parts = [measure(x, y).value for x, y in zip(a.split(20), b.split(20), strict=True)]
        assert measure(a, b).value == pytest.approx(sum(parts) / 3, rel=1e-12)

    def faulty(x: Tensor, y: Tensor) -> float:
        return F.cosine_similarity(x.flatten(), y.flatten(), 0).item()

    by_batch = [faulty(x, y) for x, y in zip(a.split(20), b.split(20), strict=True)]
    assert abs(sum(by_batch) / 3 - faulty(a, b)) > 0.01
    mixed = [la.similarity.mixup(a, generator=np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert torch.equal(mixed[0], mixed[1])
    assert not torch.equal(mixed[0], mixed[2])

"""Directions: lengths against hand-written loops, angles against their law, linear models in closed form."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import BY_NAME, conv_net
from lossatlas.errors import UserError
from lossatlas.landscape import angles, directions, trajectories
from lossatlas.landscape.criterion import supervised
from lossatlas.landscape.lanczos import eigenpairs
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.operators import from_matrix, hessian

WIDE = 10_000


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wide_objective(dtype: torch.dtype = torch.float64) -> Objective:
    """Linear regression with 10,000 weights: cheap to build, wide enough for the laws of high dimension."""
    model = nn.Linear(WIDE, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(normal(1, WIDE, seed=1))
    data = [(normal(2, WIDE, seed=2), normal(2, 1, seed=3))]
    return Objective(model, data, supervised(F.mse_loss), dtype=dtype)


def conv_objective() -> Objective:
    case = BY_NAME["conv_batchnorm"]
    return Objective(case.model, case.batches, case.criterion)


def by_name(objective: Objective, direction: directions.Direction) -> dict[str, Tensor]:
    return objective.layout.unflatten(direction.vector)


# ---- where they come from -----------------------------------------------------------------------------------


def test_gaussian_is_normal_seeded_and_the_same_in_every_dtype():
    objective = wide_objective()
    drawn = directions.gaussian(objective, seed=0, scaling="none").vector
    # n = 10,000 draws: mean +- 0.01, variance +- 0.014; five sigma.
    assert abs(drawn.mean()) < 0.05
    assert abs(drawn.var() - 1) < 0.07
    assert drawn.min() < -2  # not uniform on [0, 1), as in a peer
    assert torch.equal(directions.gaussian(objective, seed=0, scaling="none").vector, drawn)
    assert not torch.equal(directions.gaussian(objective, seed=1, scaling="none").vector, drawn)
    narrow = directions.gaussian(wide_objective(torch.float32), seed=0, scaling="none").vector
    assert torch.equal(narrow, drawn.float())


def test_the_global_random_state_is_left_alone():
    objective, before = wide_objective(), torch.get_rng_state()
    directions.gaussian(objective, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_negative_gradient_of_all_data_and_of_one_batch():
    case = BY_NAME["mlp_tanh"]
    objective = Objective(case.model, case.batches, case.criterion)
    parameters = list(case.model.parameters())
    losses = [case.criterion(case.model, batch) for batch in case.batches]
    counts = [len(batch[1]) for batch in case.batches]
    whole = sum(n * loss for n, loss in zip(counts, losses, strict=True)) / sum(counts)
    for batch, loss in ((None, whole), (case.batches[2], losses[2])):
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])
        direction = directions.negative_gradient(objective, batch=batch)
        torch.testing.assert_close(direction.vector, -expected, rtol=1e-12, atol=1e-15)
        assert direction.norm == pytest.approx(expected.norm().item(), rel=1e-12)
    assert all(p.grad is None for p in parameters)


def test_differences_reach_the_checkpoint_exactly_as_scaled():
    objective = conv_objective()
    start, end = objective.center, objective.center + 0.1 * normal(objective.layout.size)
    direction = directions.difference(objective, end)
    torch.testing.assert_close(start + direction.vector, end, rtol=0, atol=1e-15)
    assert direction.relative == pytest.approx(((end - start).norm() / start.norm()).item())
    between = directions.difference(objective, end, start=2 * end)
    torch.testing.assert_close(between.vector, -end, rtol=0, atol=1e-15)


def test_eigenvectors_carry_their_eigenvalue_and_their_end():
    objective = Objective(
        nn.Linear(3, 1, bias=False).double(),
        [(normal(8, 3), normal(8, 1, seed=1))],
        supervised(F.mse_loss),
    )
    op = hessian(objective)
    pairs = eigenpairs(op, 1, which="both", seed=0, tol=1e-10)
    top, bottom = directions.eigenvectors(objective, pairs)
    assert (top.name, bottom.name) == ("eigenvector 1 (largest)", "eigenvector 1 (smallest)")
    for direction in (top, bottom):
        assert direction.norm == pytest.approx(1, abs=1e-12)
        value = direction.details["eigenvalue"]
        torch.testing.assert_close(op @ direction.vector, value * direction.vector, rtol=0, atol=1e-8)
    assert top.details["eigenvalue"] > bottom.details["eigenvalue"]
    broken = eigenpairs(from_matrix(torch.full((3, 3), torch.inf, dtype=torch.float64)), 1, seed=0)
    with pytest.raises(UserError, match="not finite"):
        directions.eigenvectors(objective, broken)


# ---- scaling ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_dimensional", ["zero", "rescale", "copy"])
def test_filter_scaling_is_the_loop_over_filters(one_dimensional):
    objective = conv_objective()
    drawn = by_name(objective, directions.gaussian(objective, seed=0, scaling="none"))
    own = objective.unflatten(objective.center)
    direction = directions.gaussian(objective, seed=0, scaling="filter", one_dimensional=one_dimensional)
    for name, part in by_name(objective, direction).items():
        if part.dim() > 1:
            for i in range(len(part)):
                expected = drawn[name][i] / drawn[name][i].norm() * own[name][i].norm()
                torch.testing.assert_close(part[i], expected, rtol=1e-12, atol=0)
        elif one_dimensional == "zero":
            assert torch.equal(part, torch.zeros_like(part))
        elif one_dimensional == "copy":
            assert torch.equal(part, own[name])
        else:
            expected = drawn[name] / drawn[name].norm() * own[name].norm()
            torch.testing.assert_close(part, expected, rtol=1e-12, atol=0)
    assert direction.one_dimensional == one_dimensional


def test_filter_scaling_leaves_one_dimensional_parameters_by_default():
    objective = conv_objective()
    for scaling in ("filter", "layer"):
        direction = directions.gaussian(objective, seed=0, scaling=scaling)
        moved = {name for name, part in by_name(objective, direction).items() if part.any()}
        assert moved == {"0.weight", "4.weight", "8.weight"}


def test_layer_and_model_scaling_and_names_left_out():
    objective = conv_objective()
    own = objective.unflatten(objective.center)
    layer = directions.gaussian(objective, seed=0, scaling="layer", one_dimensional="rescale")
    for name, part in by_name(objective, layer).items():
        assert part.norm().item() == pytest.approx(own[name].norm().item(), rel=1e-12)
    model = directions.gaussian(objective, seed=0)
    assert model.scaling == "model"
    assert model.norm == pytest.approx(objective.center.norm().item(), rel=1e-12)
    assert model.relative == pytest.approx(1, rel=1e-12)
    partial = directions.gaussian(objective, seed=0, leave_out=r"^0\.|bias", one_dimensional="zero")
    moved = {name for name, part in by_name(objective, partial).items() if part.any()}
    assert moved == {"4.weight", "8.weight"}
    assert partial.relative == pytest.approx(1, rel=1e-12)


def test_a_filter_of_zeros_stays_put_and_nothing_becomes_nan():
    objective = conv_objective()
    theta = objective.center.clone()
    objective.layout.unflatten(theta)["0.weight"][1].zero_()
    direction = directions.gaussian(objective, seed=0, theta=theta, scaling="filter")
    assert torch.equal(by_name(objective, direction)["0.weight"][1], torch.zeros(2, 3, 3, dtype=torch.float64))
    assert bool(direction.vector.isfinite().all())
    at_origin = directions.gaussian(objective, seed=0, theta=torch.zeros_like(theta), scaling="none")
    assert at_origin.relative == math.inf


@pytest.mark.parametrize("objective", [conv_objective(), wide_objective()], ids=["several", "one tensor"])
def test_the_callers_vector_is_copied(objective):
    vector = normal(objective.layout.size)
    kept = vector.clone()
    for scaling in ("none", "model", "layer", "filter"):
        direction = directions.given(objective, vector, name="mine", scaling=scaling)
        direction.vector.zero_()
        assert torch.equal(vector, kept)


def test_unknown_options_and_sizes_are_refused():
    objective = conv_objective()
    with pytest.raises(UserError, match=r"filters' is not allowed\. Give one of none, model, layer, filter"):
        directions.gaussian(objective, seed=0, scaling="filters")
    with pytest.raises(UserError, match="'copy' does not go with scaling='model'"):
        directions.gaussian(objective, seed=0, one_dimensional="copy")
    with pytest.raises(UserError, match=r"shape \(3,\); this objective's parameters have"):
        directions.given(objective, torch.ones(3), name="mine")


# ---- angles -------------------------------------------------------------------------------------------------


def test_random_directions_are_nearly_orthogonal_and_exactly_so_after_orthogonalisation():
    objective = wide_objective()
    pair = [directions.gaussian(objective, seed=s) for s in (0, 1)]
    cosine = angles.cosines(pair)[0, 1].item()
    assert 0 < abs(cosine) < 5 / math.sqrt(WIDE)  # a peer's have 0.99
    first, second = angles.orthogonalised(pair)
    assert first is pair[0]
    assert abs(angles.cosines([first, second])[0, 1]) < 1e-15
    assert second.norm == pair[1].norm
    assert second.vector.norm().item() == pytest.approx(pair[1].norm, rel=1e-12)
    assert angles.angle(second.vector, pair[1].vector).cosine == pytest.approx(math.sqrt(1 - cosine**2), abs=1e-12)
    assert second.details["orthogonalised"] == pytest.approx(math.sqrt(1 - cosine**2), abs=1e-12)


def test_orthogonalisation_holds_for_many_nearly_parallel_float32_directions():
    objective = wide_objective(torch.float32)
    base = normal(WIDE)
    close = [directions.given(objective, base + 0.01 * normal(WIDE, seed=k + 1), name=str(k)) for k in range(5)]
    kept = [d.vector.clone() for d in close]
    apart = angles.cosines(angles.orthogonalised(close)) - torch.eye(5, dtype=torch.float64)
    assert apart.abs().max() < 1e-6  # rounding to float32 of vectors of 10,000 components
    assert angles.cosines(close)[0, 1] > 0.999
    assert all(torch.equal(d.vector, v) for d, v in zip(close, kept, strict=True))
    with pytest.raises(UserError, match="linearly dependent"):
        angles.orthogonalised([close[0], close[0]])


def test_angles_between_gaussians_follow_their_law():
    n, draws = 400, 2000
    fixed = torch.ones(n, dtype=torch.float64)
    found = [angles.angle(v, fixed) for v in normal(draws, n, seed=4)]
    assert found[0].gaussian_sd == pytest.approx(57.29578 / math.sqrt(n), rel=1e-6)
    z = torch.tensor([a.deviation for a in found], dtype=torch.float64)
    assert abs(z.mean()) < 5 / math.sqrt(draws)
    assert abs(z.std() - 1) < 5 / math.sqrt(2 * draws)


@pytest.mark.parametrize("degrees", [0.0, 1e-6, 30.0, 90.0, 179.999999, 180.0])
def test_angles_are_accurate_at_both_ends(degrees):
    radians = math.radians(degrees)
    first = torch.tensor([3.0, 0.0], dtype=torch.float64)
    second = torch.tensor([math.cos(radians), math.sin(radians)], dtype=torch.float64)
    # acos would give 0 or err by 1e-6 degrees near the ends.
    assert angles.angle(first, second).degrees == pytest.approx(degrees, abs=1e-13, rel=1e-9)


# ---- the gradient beside Gaussians --------------------------------------------------------------------------


def test_log_density_is_that_of_scipy_and_typical_for_draws():
    from scipy.stats import norm

    v = normal(WIDE)
    assert angles.log_density(v, sd=1.7) == pytest.approx(norm(scale=1.7).logpdf(v.numpy()).sum(), rel=1e-12)
    typical = -WIDE / 2 * math.log(2 * math.pi * math.e)
    assert abs(angles.log_density(v) - typical) < 5 * math.sqrt(WIDE / 2)
    assert angles.log_density(0.01 * v) > typical + 0.49 * WIDE  # a short gradient is denser than any draw


def test_the_gradient_beats_every_gaussian_at_equal_norm():
    objective = wide_objective()
    gradient = directions.negative_gradient(objective)
    # A step well short of the minimum along the gradient: the loss is nearly linear there.
    result = angles.against_gaussians(objective, gradient, distance=1e-3, count=20)
    assert result.gaussians.shape == (20,)
    assert result.value < result.best < result.start  # 20 draws: one goes down but with probability 2^-20
    assert result.beaten_by == 0
    step = 1e-3 * objective.center.norm() / gradient.norm
    assert result.value == objective(objective.center + step * gradient.vector).item()
    uphill = directions.given(objective, -gradient.vector, name="up")
    assert angles.against_gaussians(objective, uphill, distance=1e-3, count=5).beaten_by == 5


# ---- trajectories -------------------------------------------------------------------------------------------


def trajectory_in_a_plane(objective: Objective, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Checkpoints (6, n) that end at the centre, in the plane of two orthonormal vectors (2, n)."""
    basis = torch.linalg.qr(normal(objective.layout.size, 2))[0].T
    coordinates = torch.stack([torch.linspace(3, 0, 6), torch.tensor([0.0, 0.4, -0.3, 0.5, 0.1, 0])], 1).double()
    offsets = coordinates @ basis + noise * normal(6, objective.layout.size, seed=5)
    offsets[-1] = 0
    return objective.center + offsets, basis


def test_principal_components_of_a_plane_hold_all_of_it():
    objective = conv_objective()
    checkpoints, basis = trajectory_in_a_plane(objective)
    first, second = trajectories.principal_components(objective, checkpoints)
    assert first.details["share"] + second.details["share"] == pytest.approx(1, abs=1e-12)
    assert first.details["share"] > 0.9
    both = torch.stack([first.vector, second.vector])
    torch.testing.assert_close(both @ both.T, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(both.T @ both, basis.T @ basis, rtol=0, atol=1e-10)  # the same plane
    assert first.vector[first.vector.abs().argmax()] > 0
    with pytest.raises(UserError, match="fewer than k=3 dimensions"):
        trajectories.principal_components(objective, checkpoints, 3)
    with pytest.raises(UserError, match="from 1 to 5"):
        trajectories.principal_components(objective, checkpoints, 6)


def test_projection_gives_coordinates_shares_and_both_losses():
    objective = conv_objective()
    checkpoints, _ = trajectory_in_a_plane(objective, noise=0.01)
    kept = checkpoints.clone()
    first, second = trajectories.principal_components(objective, checkpoints)
    skew = directions.given(objective, first.vector + second.vector, name="skew")
    square = trajectories.project(objective, checkpoints, first, second)
    oblique = trajectories.project(objective, checkpoints, first, skew)
    assert square.share == pytest.approx(oblique.share, rel=1e-10)  # the same plane
    assert square.share == pytest.approx(first.details["share"] + second.details["share"], rel=1e-10)
    assert 0.9 < square.share < 1 - 1e-6
    assert math.isnan(square.shares[-1])  # the centre itself
    for t in range(6):
        alpha, beta = square.coordinates[t].tolist()
        assert square.loss[t] == objective(checkpoints[t])
        at = objective.center + alpha * first.vector + beta * second.vector
        torch.testing.assert_close(square.plane_loss[t], objective(at), rtol=1e-10, atol=0)
        torch.testing.assert_close(
            (checkpoints[t] - at) @ first.vector, torch.zeros(()).double(), atol=1e-10, rtol=0
        )
    assert (square.loss[:-1] - square.plane_loss[:-1]).abs().max() > 1e-6  # noise off the plane shows
    assert torch.equal(checkpoints, kept)


def test_directions_never_hold_buffers():
    model = conv_net().double()
    before = copy.deepcopy(model.state_dict())
    batch = (normal(4, 2, 6, 6), torch.tensor([0, 1, 2, 0]))
    objective = Objective(model, [batch], supervised(F.cross_entropy))
    directions.gaussian(objective, seed=0)
    directions.negative_gradient(objective, batch=batch)
    assert objective.layout.size == sum(p.numel() for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

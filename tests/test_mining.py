"""Mining: the naive autograd oracle, double wells and quadratics in closed form, the caller left alone."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lossatlas.errors import UserError
from lossatlas.landscape import mining
from lossatlas.landscape.criterion import Criterion, supervised
from lossatlas.landscape.lanczos import Eigenpairs, eigenpairs
from lossatlas.landscape.mining import mine_vvv_basin, mine_w_peak
from lossatlas.landscape.mining_checks import alignment, compare, survives
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.operators import hessian
from lossatlas.landscape.parameters import layout_of
from lossatlas.tasks.data import digits

HALVES = (slice(0, 720), slice(720, 1437))


class Point(nn.Module):
    """A model that is nothing but its parameters w (n,)."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w.detach().clone().double())


def point(loss, *w: float) -> Objective:
    """The objective of a function of w alone."""
    return Objective(Point(torch.tensor(w)), [torch.zeros(1)], lambda model, _: loss(model.w))


def steps(count: int):
    """`count` batches an epoch that say nothing: the loss is in the model."""
    return lambda _epoch: [torch.zeros(1)] * count


def net(seed: int, *, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(12, 3)
        ).double()


def images(n: int = 21, batch: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (n,), generator=generator)
    return list(zip(x.split(batch), y.split(batch), strict=True))


def objective_of(model: nn.Module, **options) -> Objective:
    return Objective(model, images(), supervised(F.cross_entropy), **({"batchnorm": "batch"} | options))


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def spy_on_lambda(monkeypatch) -> list[float]:
    draws: list[float] = []
    original = mining._uniform

    def spy(*arguments) -> float:
        draws.append(original(*arguments))
        return draws[-1]

    monkeypatch.setattr(mining, "_uniform", spy)
    return draws


def batch_loss(model: nn.Module, w: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(functional_call(model, layout_of(model).unflatten(w), (batch[0],)), batch[1])


# ---- what is minimised --------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["batch", "eval"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_every_step_of_a_w_peak_is_sgd_on_autograd_through_the_line(monkeypatch, policy, momentum):
    """Oracle: eps as a Parameter, torch.optim.SGD, the same draws of lambda; Dropout off."""
    draws = spy_on_lambda(monkeypatch)
    objective = objective_of(net(0, dropout=0.5), batchnorm=policy)
    theta = objective.center
    start = torch.randn(len(theta), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found = mine_w_peak(objective, lambda _: images(), seed=3, epochs=4, lr=0.1, momentum=momentum, start=start)
    model = net(0).train(policy == "batch")
    eps, drawn, losses = nn.Parameter(start.clone()), iter(draws), []
    optimizer = torch.optim.SGD([eps], lr=0.1, momentum=momentum)
    for epoch in range(4):
        total = 0.0
        for batch in images():
            lam = next(drawn)
            assert abs(lam) <= (epoch + 1) / 4
            loss = batch_loss(model, theta + lam * eps, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch[0])
        losses.append(total / 21)  # the ragged last batch counts by its 5 samples
    # float64: twelve steps of the same arithmetic in another order.
    torch.testing.assert_close(found.vector, eps.detach(), rtol=1e-10, atol=1e-12)
    assert found.losses == pytest.approx(losses, rel=1e-12)
    assert (found.algorithm, found.batchnorm, found.status) == ("w-peak", policy, "ok")


@pytest.mark.parametrize("half_width", [0.0, 0.1])
def test_every_step_of_a_vvv_basin_is_sgd_on_autograd_through_the_line(monkeypatch, half_width):
    draws = spy_on_lambda(monkeypatch)
    objective = objective_of(net(0))
    theta, start = objective.center, objective_of(net(1)).center
    found = mine_vvv_basin(
        objective, lambda _: images(), start, seed=3, gamma=0.9, half_width=half_width, epochs=3, lr=0.1
    )
    model, phi, drawn, losses = net(0).train(), nn.Parameter(start.clone()), iter(draws), []
    optimizer = torch.optim.SGD([phi], lr=0.1)
    for _ in range(3):
        total = 0.0
        for batch in images():
            lam = next(drawn)
            assert abs(lam - 0.5) <= half_width
            loss = batch_loss(model, phi, batch) + 0.9 * batch_loss(model, (1 - lam) * theta + lam * phi, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch[0])
        losses.append(total / 21)
    torch.testing.assert_close(found.vector, phi.detach() - theta, rtol=1e-10, atol=1e-12)
    assert found.losses == pytest.approx(losses, rel=1e-12)
    assert found.settings == {"lr": 0.1, "momentum": 0.0, "gamma": 0.9, "half_width": half_width}


def test_draws_of_lambda_are_uniform_in_a_range_that_grows(monkeypatch):
    draws = spy_on_lambda(monkeypatch)
    mine_w_peak(point(lambda w: w.sum(), 0.0), steps(1000), seed=0, epochs=2, lr=1e-9)
    for epoch, reach in ((0, 0.5), (1, 1.0)):
        u = torch.tensor(draws[1000 * epoch : 1000 * (epoch + 1)]).double().sort().values / (2 * reach) + 0.5
        # Kolmogorov-Smirnov distance; 1.95/sqrt(N) is exceeded by one uniform sample in a thousand.
        assert (u - (torch.arange(1000) + 1) / 1000).abs().max() < 1.95 / math.sqrt(1000) + 1e-3


def test_a_w_peak_on_a_quadratic_multiplies_each_coordinate(monkeypatch):
    """L = w'Hw/2 at its stationary point: eps_i prod_t (1 - lr lambda_t^2 h_i), and no decay where h_i = 0."""
    draws = spy_on_lambda(monkeypatch)
    h = torch.tensor([2.0, 0.0, -1.0]).double()
    objective = point(lambda w: (h * w.square()).sum() / 2, 0.0, 0.0, 0.0)
    start = torch.tensor([1.0, -2.0, 0.5]).double()
    found = mine_w_peak(objective, steps(50), seed=1, epochs=4, lr=0.1, start=start)
    squares = torch.tensor(draws, dtype=torch.float64).square().unsqueeze(1)
    torch.testing.assert_close(found.vector, start * (1 - 0.1 * squares * h).prod(0), rtol=1e-12, atol=0)
    # log growth over S steps is about lr |h| S E[lambda^2], E[lambda^2] = mean of a^2/3: 0.156 for E = 4.
    assert math.log(found.vector[2] / 0.5) == pytest.approx(0.1 * 200 * 0.156, rel=0.15)


# ---- known wells --------------------------------------------------------------------------------------------


def double_well(w: Tensor) -> Tensor:
    """A ridge along w2 and w3 at w1 = 0, with wells at w1 = -1 and 1; a bowl in the other coordinates."""
    return (w[0].square() - 1).square() + 3 * w[1:].square().sum()


def test_a_w_peak_finds_the_direction_of_a_double_well_and_its_length():
    """E_lambda (lambda^2 e^2 - 1)^2 = e^4/5 - 2 e^2/3 + 1 is least at e^2 = 5/3."""
    objective = point(double_well, 0.0, 0.0, 0.0)
    found = [mine_w_peak(objective, steps(100), seed=s, epochs=30, lr=0.02) for s in range(4)]
    for one in found:
        assert one.status == "ok"
        assert one.vector[1:].abs().max() < 1e-6  # what was there at the start has shrunk
        result = survives(objective, objective, one.vector, torch.linspace(-1, 1, 21, dtype=torch.float64))
        assert result.status == "survives"
        assert result.mining[0] < 0.6  # 0.44 at e^2 = 5/3, 1 on the ridge
        # The least mean is 4/9; at its own random lambda the last epochs' scatter by 0.4/sqrt(100).
        assert one.losses[-1] == pytest.approx(4 / 9, abs=0.15)
    # The random lambda leaves scatter at any finite rate, and the last ranges (a > 0.9) lengthen by up to 1/a.
    lengths = torch.tensor([one.vector[0].abs().item() for one in found])
    assert lengths.mean().item() == pytest.approx(math.sqrt(5 / 3), abs=0.06)


def test_a_slope_does_not_hide_the_wells():
    objective = point(lambda w: double_well(w) + 0.3 * w[0], 0.0, 0.0)
    found = mine_w_peak(objective, steps(100), seed=0, epochs=30, lr=0.01)
    assert survives(objective, objective, found.vector, torch.linspace(-1, 1, 21)).status == "survives"
    assert found.vector[1].abs() < 1e-3


def test_a_bowl_has_no_w_peak():
    objective = point(lambda w: w.square().sum(), 0.0, 0.0)
    found = mine_w_peak(objective, steps(100), seed=0, epochs=10, lr=0.05)
    assert found.vector.norm() < 1e-3 * 1e-3
    result = survives(objective, objective, found.vector, [-1.0, 0.0, 1.0])
    assert result.status == "no-fall"
    assert result.mining_fall.lambdas == (-1.0, 1.0)  # 0 itself is on no side


@pytest.mark.parametrize(("gamma", "half_width"), [(0.1, 0.0), (0.5, 0.1), (0.9, 0.1)])
def test_a_vvv_basin_of_a_quadratic_in_closed_form(gamma, half_width):
    """phi - c = -gamma E[lambda (1-lambda)] / (1 + gamma E[lambda^2]) (theta - c), whatever the curvature is."""
    h, c = torch.tensor([1.0, 3.0]).double(), torch.tensor([0.5, -1.0]).double()
    objective = point(lambda w: (h * (w - c).square()).sum() / 2, 2.0, 1.0)
    spread = half_width**2 / 3
    best = c - gamma * (0.25 - spread) / (1 + gamma * (0.25 + spread)) * (objective.center - c)
    found = mine_vvv_basin(
        objective, steps(100), torch.tensor([5.0, -5.0]), seed=0, gamma=gamma, half_width=half_width, epochs=20
    )
    # Exact without scatter; with it the rate 0.02 leaves sd 0.06 gamma |theta - c| sqrt(lr h / 2) < 0.02.
    torch.testing.assert_close(objective.center + found.vector, best, rtol=0, atol=0.04 if half_width else 1e-10)


def valleys(w: Tensor) -> Tensor:
    """Walls between w1 = 0, 1 and 2; at 0 and 2 every w2 will do, at 1 only w2 = 1/2."""
    between = (w[0] * (w[0] - 2)).square()
    return 4 * (w[0] * (w[0] - 1) * (w[0] - 2)).square() + between * (w[1] - 0.5).square()


def test_a_vvv_basin_bends_the_end_so_that_the_middle_is_a_valley():
    """theta = (0, 0); of all ends (2, y) only y = 1 has its midpoint in the valley (1, 1/2)."""
    objective = point(valleys, 0.0, 0.0)
    start = torch.tensor([1.9, -0.7]).double()
    options = {"seed": 0, "half_width": 0.0, "epochs": 10, "lr": 0.05}
    found = mine_vvv_basin(objective, steps(100), start, gamma=0.9, **options)
    torch.testing.assert_close(found.vector, torch.tensor([2.0, 1.0]).double(), rtol=0, atol=1e-3)
    assert found.losses[-1] < 1e-6
    without = mine_vvv_basin(objective, steps(100), start, gamma=1e-12, **options)
    assert without.vector[1] < -0.4  # the term of the middle did it


# ---- how it behaves -----------------------------------------------------------------------------------------


def mine(algorithm: str, objective: Objective, batches, seed: int, **options) -> mining.MinedDirection:
    if algorithm == "w-peak":
        return mine_w_peak(objective, batches, seed=seed, **options)
    return mine_vvv_basin(objective, batches, -objective.center, seed=seed, **options)


BOTH = pytest.mark.parametrize("algorithm", ["w-peak", "vvv-basin"])


@BOTH
def test_repetition_is_bitwise_a_shuffling_loader_included_and_the_seed_counts(algorithm):
    def shuffled(_epoch: int):
        return [images()[i] for i in torch.randperm(3).tolist()]

    def once(seed: int) -> mining.MinedDirection:
        return mine(algorithm, objective_of(net(0)), shuffled, seed, epochs=2)

    first = once(1)
    torch.rand(5)  # the caller's random state is of no account
    again, other = once(1), once(2)
    assert torch.equal(first.vector, again.vector)
    assert first.losses == again.losses
    assert not torch.equal(first.vector, other.vector)
    assert (first.seed, first.epochs, first.algorithm) == (1, 2, algorithm)


@BOTH
def test_one_objective_serves_several_searches(algorithm):
    """Running statistics that the batches move must not leak into the objective."""
    objective = objective_of(net(0))
    buffers = copy.deepcopy(dict(objective.model.named_buffers()))
    center = objective.center.clone()
    first = mine(algorithm, objective, lambda _: images(), 1, epochs=2)
    assert torch.equal(mine(algorithm, objective, lambda _: images(), 1, epochs=2).vector, first.vector)
    assert torch.equal(objective.center, center)
    for name, value in objective.model.named_buffers():
        assert torch.equal(value, buffers[name]), name


@BOTH
@pytest.mark.parametrize("broken", [False, True])
def test_the_callers_model_and_random_state_stay(algorithm, broken):
    model = net(0, dropout=0.5)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, modes = copy.deepcopy(model), [m.training for m in model.modules()]

    def batches(_epoch: int):
        yield images()[0]
        if broken:
            raise OSError("the disk is gone")

    state = torch.get_rng_state()
    with torch.no_grad():  # a caller's no_grad must not stop the search
        objective = objective_of(model)
        if broken:
            with pytest.raises(OSError, match="disk"):
                mine(algorithm, objective, batches, 0, epochs=1)
        else:
            mine(algorithm, objective, batches, 0, epochs=1)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))


def test_the_start_has_the_given_standard_deviation_and_stays():
    objective = point(lambda w: w.square().sum(), *([0.0] * 4000))
    found = mine_w_peak(objective, steps(1), seed=0, epochs=1, lr=1e-30, start=0.02)
    # A standard deviation of 4000 draws scatters by 1/sqrt(8000) = 1.1%.
    assert found.vector.std().item() == pytest.approx(0.02, rel=0.05)
    start = torch.ones(4000).double()
    kept = mine_w_peak(objective, steps(5), seed=0, epochs=1, lr=0.5, start=start)
    assert torch.equal(start, torch.ones(4000).double())
    assert not torch.equal(kept.vector, start)


@BOTH
def test_a_batch_of_one_sample_is_left_out_only_under_batch_statistics(algorithm):
    ragged = images(17)  # 8, 8, 1
    for policy, is_same in (("batch", True), ("eval", False)):
        objective = objective_of(net(0), batchnorm=policy)
        with_it, without = (
            mine(algorithm, objective, lambda _, d=d: d, 0, epochs=1) for d in (ragged, ragged[:2])
        )
        assert torch.equal(with_it.vector, without.vector) == is_same


@BOTH
def test_divergence_is_a_status_with_its_epoch_and_progress_hears_of_every_epoch(algorithm):
    heard = []
    objective = point(lambda w: w.pow(4).sum(), 1.0, -2.0)
    found = mine(
        algorithm,
        objective,
        steps(5),
        0,
        epochs=50,
        lr=50.0,
        progress=lambda epoch, loss: heard.append((epoch, loss)),
    )
    last = len(found.losses) - 1
    assert found.status == "diverged"
    assert last < 49
    assert f"in epoch {last} " in found.reason
    assert [epoch for epoch, _ in heard] == list(range(last + 1))


def test_arguments_that_do_not_fit_are_refused():
    plain, norms = point(lambda w: w.square().sum(), 1.0), objective_of(net(0), batchnorm="recalibrate")
    with pytest.raises(UserError, match=r"epochs=0.*lr=0.0"):  # all at once
        mine_w_peak(plain, steps(1), seed=0, epochs=0, lr=0.0)
    with pytest.raises(UserError, match="batches is a list"):
        mine_w_peak(plain, [torch.zeros(1)], seed=0)
    with pytest.raises(UserError, match=r"start=0.0 must be positive"):
        mine_w_peak(plain, steps(1), seed=0, start=0.0)
    with pytest.raises(UserError, match="recalibrate"):
        mine_w_peak(norms, lambda _: images(), seed=0)
    with pytest.raises(UserError, match="gamma=0"):
        mine_vvv_basin(plain, steps(1), torch.ones(1), seed=0, gamma=0.0)
    with pytest.raises(UserError, match=r"finite vectors of shape \(1,\)"):
        mine_vvv_basin(plain, steps(1), torch.ones(2), seed=0)
    with pytest.raises(UserError, match="no batch to fit"):
        mine_w_peak(plain, lambda _: [], seed=0)


# ---- what it is worth ---------------------------------------------------------------------------------------


def pairs_of(vectors: Tensor, values: list[float], *, residual: float = 1e-6, gap: float = 1.0) -> Eigenpairs:
    k = len(values)
    return Eigenpairs(
        eigenvalues=torch.tensor(values).double(),
        eigenvectors=vectors,
        residuals=torch.full((k,), residual).double(),
        gaps=torch.full((k,), gap).double(),
        converged=torch.ones(k, dtype=torch.bool),
        matvecs=0,
        which="both",
        tol=1e-3,
        seed=0,
    )


def test_alignment_of_a_combination_of_eigenvectors():
    basis = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(0)).double()).Q
    direction = 7 * (0.6 * basis[:, 0] - 0.48 * basis[:, 2] + 0.48 * basis[:, 3] + math.sqrt(0.1792) * basis[:, 5])
    found = alignment(direction, pairs_of(basis[:, :4], [5.0, 1.0, -2.0, -1e-9]))
    torch.testing.assert_close(
        found.cosines, torch.tensor([0.6, 0, -0.48, 0.48], dtype=torch.float64), rtol=0, atol=1e-12
    )
    assert found.projection == pytest.approx(math.sqrt(0.8208), abs=1e-12)
    assert (found.positive, found.negative) == pytest.approx((0.6, 0.48), abs=1e-12)  # -1e-9 has no sign
    assert found.chance == math.sqrt(4 / 9)
    assert not found.ambiguous.any()
    assert alignment(direction, pairs_of(basis[:, :4], [5.0, 1.0, -2.0, -1.0], gap=1e-7)).ambiguous.all()


def test_projection_does_not_need_orthogonal_vectors_of_unit_length():
    vectors = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)).double()
    direction = torch.randn(30, generator=torch.Generator().manual_seed(1)).double()
    basis = torch.linalg.qr(vectors).Q
    expected = (basis.T @ direction).norm() / direction.norm()
    found = alignment(direction, pairs_of(vectors, [3.0, 2.0, 1.0]))
    assert found.projection == pytest.approx(expected.item(), rel=1e-12)
    assert found.negative == 0
    assert math.isnan(alignment(0 * direction, pairs_of(vectors, [3.0, 2.0, 1.0])).projection)
    with pytest.raises(UserError, match="same parameters"):
        alignment(direction[:5], pairs_of(vectors, [3.0, 2.0, 1.0]))


def wells(batch: Tensor, center: float, **options) -> Objective:
    """Sample x scores (w^2 - x)^2 / 4, w a number: wells at +-sqrt(x), a peak at 0 for positive x."""
    criterion = Criterion(
        predict=lambda model, x: model.w.expand(len(x)),
        loss=lambda outputs, x: (outputs.square() - x).square() / 4,
    )
    return Objective(Point(torch.tensor([center])), [batch], criterion, **options)


def test_survival_is_told_on_held_out_data_where_the_mining_data_are_lowest():
    x = torch.tensor([0.9, 1.0, 1.3, 0.8]).double()
    lambdas = torch.linspace(-2, 2, 41)  # whose middle is -3e-8 in float32
    direction = torch.ones(1)
    good = survives(wells(x, 0.0), wells(x + 1, 0.0), direction, lambdas)  # wells at 1 and 1.4
    assert good.status == "survives"
    assert good.mining_fall.lambdas == pytest.approx((-1.0, 1.0))  # sqrt(mean x) = 1
    assert good.held_out_fall.lambdas == good.mining_fall.lambdas
    fall = x.square() / 4 - (1 - x).square() / 4  # of every sample
    assert good.mining_fall.right.value == pytest.approx(fall.mean().item(), rel=1e-6)  # lambda 1 in float32
    assert good.mining_fall.right.stderr == pytest.approx(fall.std().item() / 2, rel=1e-6)
    bad = survives(wells(x, 0.0), wells(x - 2, 0.0), direction, lambdas)
    assert bad.status == "mining-only"
    assert not bad.held_out_fall.on_both_sides()
    assert survives(wells(x - 2, 0.0), wells(x, 0.0), direction, lambdas).status == "no-fall"
    one_sided = survives(wells(x, 0.5), wells(x, 0.5), direction, torch.linspace(-0.4, 0.4, 9))
    assert one_sided.status == "no-fall"
    assert one_sided.mining_fall.right.value > 0 > one_sided.mining_fall.left.value


def test_a_fall_within_its_error_is_none_and_broken_curves_are_a_status():
    x = torch.tensor([4.0, -3.0, 4.2, -2.8]).double()  # the mean fall at lambda = 0.5 is (x - 0.125) / 8 > 0
    fall = survives(wells(x, 0.0), wells(x, 0.0), torch.ones(1), [-0.5, 0.0, 0.5])
    assert fall.mining_fall.left.value > 0
    assert fall.status == "no-fall"
    assert survives(wells(x, 0.0), wells(x, 0.0), torch.ones(1), [-0.5, 0.0, 0.5], sigmas=0.0).status == "survives"
    broken = survives(wells(x, 0.0), wells(x, 0.0), torch.ones(1).double() * 1e200, [-0.5, 0.0, 0.5])
    assert broken.status == "non-finite"
    for bad in ([-1.0, 0.0], [0.0, 1.0], [1.0, 0.0, -1.0]):
        with pytest.raises(UserError, match="must ascend, with values on either side"):
            survives(wells(x, 0.0), wells(x, 0.0), torch.ones(1), bad)


def test_comparison_at_equal_length_and_each_at_its_best():
    """Along w1 the wells are 2 away and 1 deep, along w2 half as far and a quarter as deep: in closed form."""

    def loss(w: Tensor) -> Tensor:
        return ((w[0] / 2).square() - 1).square() + ((2 * w[1].square()) - 0.5).square()

    objective = point(loss, 0.0, 0.0)
    scales = [0.25, 0.5, 1.0, 2.0]
    found = compare(objective, torch.tensor([2.0, 0.0]), torch.tensor([0.0, -0.1]), scales)
    assert found.norm == 2.0
    assert found.lambdas.tolist() == [-2, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 2]
    assert found.first_fall.left.value == pytest.approx(1.0, abs=1e-12)
    assert found.second_fall.right.value == pytest.approx(0.25 - 7.5**2, abs=1e-12)
    assert found.first_best.lambdas == (-1.0, 1.0)
    assert found.second_best.lambdas == (-0.25, 0.25)
    assert found.second_best.right.value == pytest.approx(0.25, abs=1e-12)
    assert found.advantage.value == pytest.approx(1.0 + 7.5**2 - 0.25, abs=1e-12)
    assert found.best_advantage.value == pytest.approx(0.75, abs=1e-12)
    assert math.isnan(found.advantage.stderr)  # a bare loss has no samples
    for bad in ([0.5], [], [1.0, 0.5], [-1.0, 1.0]):
        with pytest.raises(UserError, match=r"scales|ascend"):
            compare(objective, torch.ones(2), torch.ones(2), bad)
    with pytest.raises(UserError, match="length zero"):
        compare(objective, torch.ones(2), torch.zeros(2), scales)


def test_the_advantage_is_paired_over_samples():
    x = torch.tensor([0.9, 1.0, 1.3, 0.8]).double()
    found = compare(wells(x, 0.0), torch.tensor([1.0]), torch.tensor([-3.0]), [0.5, 1.0])
    assert found.advantage.value == pytest.approx(0.0, abs=1e-12)  # the same line, turned round
    assert found.advantage.stderr == pytest.approx(0.0, abs=1e-12)
    assert found.first_fall.right.stderr > 0.01


def test_a_real_network_early_in_training_is_a_peak_between_valleys_on_held_out_images_too():
    """Digits: from a loss of 0.86 it falls by 0.7 on either side, far more than along negative curvature."""
    raw = digits()
    x = ((torch.tensor(raw.train_inputs).float() / raw.scale - raw.mean[0]) / raw.std[0]).flatten(1)
    y = torch.tensor(raw.train_targets)

    def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
        order = torch.randperm(720, generator=torch.Generator().manual_seed(epoch))
        return [(x[rows], y[rows]) for rows in order.split(32)]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in batches(99) * 2:
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()
        optimizer.step()
    criterion = supervised(F.cross_entropy)
    mining_data, held_out = (Objective(model, [(x[rows], y[rows])], criterion) for rows in HALVES)
    found = mine_w_peak(mining_data, batches, seed=0, epochs=100, lr=0.3)
    result = survives(mining_data, held_out, found.vector, torch.linspace(-2, 2, 21), sigmas=10)
    assert result.status == "survives"
    assert min(result.held_out_fall.left.value, result.held_out_fall.right.value) > 0.5
    curvature = eigenpairs(hessian(mining_data), 3, which="smallest", tol=1e-3, seed=0)
    assert curvature.converged.all()
    assert alignment(found.vector, curvature).negative > 3 * math.sqrt(3 / len(found.vector))  # three times chance
    scales = [0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    rivals = compare(held_out, found.vector, curvature.eigenvectors[:, 0], scales)
    assert rivals.best_advantage.value > 10 * rivals.best_advantage.stderr > 0

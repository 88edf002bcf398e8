"""Paths: identities of Bezier curves, hand-made curves for eq. 4, BatchNorm against torch's own update."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from lossatlas.errors import UserError
from lossatlas.landscape import paths
from lossatlas.landscape.criterion import supervised
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.parameters import flat_parameters, layout_of

SHAPES = [("bezier", 1), ("bezier", 2), ("bezier", 4), ("chain", 1), ("chain", 3), ("line", 1)]


def control_points(k: int, n: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(k + 1, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def percent_wrong(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return 100.0 * (outputs.argmax(1) != batch[1])


# ---- shapes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "k"), SHAPES)
def test_ends_are_bitwise_the_given_points(kind, k):
    points = control_points(k).float()
    points[0, 0], points[-1, 0] = -0.0, -0.0
    points[1:, 1] = torch.inf  # 0 * inf would be NaN
    for t, end in ((0.0, 0), (1.0, -1)):
        reached = paths.point(points, t, kind=kind)
        assert torch.equal(reached.view(torch.int32), points[end].view(torch.int32))
        reached.zero_()
        assert points[0, 2] != 0  # a copy, not a view of the caller's points


@pytest.mark.parametrize(("kind", "k"), SHAPES)
@pytest.mark.parametrize("t", [0.0, 0.1, 1 / 3, 0.5, 0.97, 1.0])
def test_weights_are_an_affine_combination_and_give_the_point(kind, k, t):
    weights = paths.weights(kind, t, k)
    assert weights.shape == (k + 1,)
    assert weights.dtype == torch.float64
    assert weights.min() >= 0
    assert weights.sum().item() == pytest.approx(1, abs=4e-16)  # rounding of a few terms
    points = control_points(k)
    torch.testing.assert_close(paths.point(points, t, kind=kind), weights @ points, rtol=0, atol=1e-14)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("t", [0.0, 0.2, 0.75, 1.0])
def test_bezier_is_de_casteljaus_repeated_interpolation(k, t):
    points = control_points(k)
    level = points
    while len(level) > 1:
        level = (1 - t) * level[:-1] + t * level[1:]
    torch.testing.assert_close(paths.bezier(points, t), level[0], rtol=0, atol=1e-14)


def test_bezier_leaves_along_its_first_leg_and_arrives_along_its_last():
    k, h = 3, 1e-6
    points = control_points(k)
    # One-sided difference: error h/2 |gamma''|, and |gamma''| <= k (k-1) 4 max|p| < 100.
    start = (paths.bezier(points, h) - points[0]) / h
    end = (points[-1] - paths.bezier(points, 1 - h)) / h
    torch.testing.assert_close(start, k * (points[1] - points[0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(end, k * (points[-1] - points[-2]), rtol=0, atol=1e-4)


def test_chain_passes_through_every_point_and_is_straight_between():
    points = control_points(4)
    for i in range(5):
        torch.testing.assert_close(paths.chain(points, i / 4), points[i], rtol=0, atol=0)
    torch.testing.assert_close(paths.chain(points, 3 / 8), (points[1] + points[2]) / 2, rtol=0, atol=1e-15)
    torch.testing.assert_close(paths.line(points[:2], 0.25), 0.75 * points[0] + 0.25 * points[1])


@pytest.mark.parametrize(
    ("kind", "t", "k", "message"),
    [
        ("spline", 0.5, 2, "spline"),
        ("line", 0.5, 2, "exactly 2"),
        ("bezier", 1.5, 2, "1.5"),
        ("chain", 0.5, 0, "1 control"),
    ],
)
def test_impossible_paths_are_refused(kind, t, k, message):
    with pytest.raises(UserError, match=message):
        paths.weights(kind, t, k)


# ---- length -------------------------------------------------------------------------------------------------


def test_length_of_a_parabola_in_closed_form():
    # (0,0) (1/2,0) (1,1) is y = x^2 at x = t: length sqrt(5)/2 + asinh(2)/4.
    points = torch.tensor([[0.0, 0.0], [0.5, 0.0], [1.0, 1.0]])
    exact = math.sqrt(5) / 2 + math.asinh(2) / 4
    assert paths.arc_length(points, [0.0, 1.0])[-1].item() == pytest.approx(exact, rel=1e-13)
    fine = paths.arc_length(points, torch.linspace(0, 1, 7))
    assert fine[-1].item() == pytest.approx(exact, rel=1e-13)
    x = 1 / 3
    part = x / 2 * math.sqrt(1 + 4 * x * x) + math.asinh(2 * x) / 4
    assert fine[2].item() == pytest.approx(part, rel=1e-6)  # linspace is float32


def test_length_of_straight_pieces():
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]])
    chain = paths.arc_length(points, [0.25, 0.5, 0.75, 1.0], kind="chain")
    torch.testing.assert_close(chain, torch.tensor([2.5, 5.0, 5.5, 6.0], dtype=torch.float64))
    uneven = torch.tensor([[0.0, 0.0], [1.0, 0.0], [10.0, 0.0]])  # a straight Bezier curve of uneven speed
    for kind, control in (("bezier", uneven), ("line", uneven[::2])):
        assert paths.arc_length(control, [0.0, 0.3, 1.0], kind=kind)[-1].item() == pytest.approx(10, rel=1e-14)


def test_length_of_a_cusp_is_within_the_stated_tenth_of_a_percent():
    there_and_back = torch.tensor([[0.0], [1.0], [0.0]])  # turns round at 1/2: length 1
    assert paths.arc_length(there_and_back, [0.0, 1.0])[-1].item() == pytest.approx(1, rel=1e-3)


# ---- connectivity -------------------------------------------------------------------------------------------

TS = [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("errors", "inner", "published", "at_end"),
    [
        ([0, 2, 10, 4, 0], (-10, 0.5), (-10, 0.5), False),  # barrier
        ([20, 15, 2, 15, 20], (18, 0.5), (18, 0.5), False),  # well
        ([10, 8, 7, 6, 2], (-2, 0.25), (-4, 0.0), True),  # monotone: both ends deviate by 4, nothing inside does
        ([2, 6, 7, 8, 10], (-2, 0.75), (4, 0.0), True),  # the same curve backwards flips the published sign only
        ([1, 2, 0, 2, 1], (-1, 0.25), (-1, 0.25), False),  # a tie: the first, although a well follows
        ([0, 0, 0, 0, 0], (0, 0.25), (0, 0.0), False),  # flat: nothing hangs on the ends
        (
            [4, 6, 5, 5, 6],
            (-1, 0.25),
            (1, 0.0),
            True,
        ),  # an inner point ties with the ends: first overall is an end
    ],
)
def test_equation_4_on_hand_made_curves(errors, inner, published, at_end):
    for rule, (value, t_star) in (("inner", inner), ("published", published)):
        result = paths.connectivity(errors, TS, rule=rule)
        assert (result.value, result.t_star) == (value, t_star)
        assert result.t_star_at_end is at_end
        assert result.ends == (errors[0], errors[-1])
        assert (result.rule, result.status) == (rule, "ok")
        assert math.isnan(result.stderr)


def test_rounding_does_not_break_a_tie():
    # h = 0.2 and both inner points deviate by 0.1, but 0.30000000000000004 - 0.2 > 0.2 - 0.1 in floating point.
    errors = [0.2, 0.1, 0.1 + 0.2, 0.2]
    assert abs(0.2 - errors[2]) > abs(0.2 - errors[1])
    assert paths.connectivity(errors, [0.0, 0.3, 0.6, 1.0]).t_star == 0.3


def test_more_points_can_only_enlarge_the_deviation():
    fine = torch.rand(17, generator=torch.Generator().manual_seed(2)).double() * 30
    ts = torch.linspace(0, 1, 17, dtype=torch.float64)
    sizes = [abs(paths.connectivity(fine[::step], ts[::step]).value) for step in (8, 4, 2, 1)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


@pytest.mark.parametrize("which", [0, -1])
def test_a_collapsed_end_has_no_connectivity(which):
    errors = [1.0, 5.0, 50.0, 5.0, 1.0]
    errors[which] = 200 / 3  # C = 3: 100 - 100/3, in another rounding
    result = paths.connectivity(errors, TS, guessing=100 - 100 / 3)
    assert result.status == "collapsed"
    assert "66.6667%" in result.reason
    assert math.isnan(result.value)
    assert math.isnan(result.t_star)
    assert result.ends[which] == errors[which]
    assert paths.connectivity(errors, TS, guessing=75.0).status == "ok"
    assert paths.connectivity(errors, TS).status == "ok"  # a loss, or an unknown number of classes


def test_a_value_that_is_not_finite_is_a_status():
    result = paths.connectivity([1.0, math.nan, 2.0, 3.0, 1.0], TS)
    assert result.status == "non-finite"
    assert "1 of 5" in result.reason
    assert math.isnan(result.value)


@pytest.mark.parametrize("rule", ["inner", "published"])
def test_standard_error_is_paired_and_calibrated(rule):
    """The scatter of mc over many draws of the samples is what the standard error says."""
    generator, size, runs = torch.Generator().manual_seed(5), 400, 300
    values, errors = [], []
    for _ in range(runs):
        hard = torch.rand(size, generator=generator)  # one difficulty a sample: errors along the path correlate
        rates = torch.tensor([0.1, 0.5, 0.12]) if rule == "inner" else torch.tensor([0.1, 0.3, 0.6])
        noise = 0.05 * torch.randn(3, size, generator=generator)
        samples = 100.0 * (hard + noise < rates[:, None])
        result = paths.connectivity(samples.double().mean(1), [0.0, 0.5, 1.0], rule=rule, samples=samples)
        values.append(result.value)
        errors.append(result.stderr)
    scatter = torch.tensor(values).std().item()
    # The scatter of 300 runs is itself known to 1/sqrt(600) = 4%; 15% is 3.7 of that.
    assert torch.tensor(errors).mean().item() == pytest.approx(scatter, rel=0.15)


def test_standard_error_by_hand():
    samples = torch.tensor([[0.0, 100, 0, 0], [100, 100, 100, 0], [0, 0, 0, 0]])
    result = paths.connectivity(samples.mean(1), [0.0, 0.5, 1.0], samples=samples)
    assert result.value == 12.5 - 75
    paired = torch.tensor([-100.0, -50.0, -100.0, 0.0])
    assert result.stderr == pytest.approx(paired.std().item() / 2, rel=1e-6)  # `paired` is float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ts": [0.0, 0.5, 1.0]}, "do not match ts"),
        ({"ts": [0.1, 0.25, 0.5, 0.75, 1.0]}, "from 0 to 1"),
        ({"ts": [0.0, 0.5, 0.25, 0.75, 1.0]}, "ascending"),
        ({"rule": "last"}, "'last' must be one of inner, published"),
        ({"samples": torch.zeros(4, 9)}, r"samples of shape \(4, 9\)"),
        ({"samples": torch.zeros(5, 9)}, "same quantity"),
    ],
)
def test_arguments_of_connectivity_that_do_not_fit(arguments, message):
    with pytest.raises(UserError, match=message):
        paths.connectivity([0, 2, 10, 4, 0], **({"ts": TS} | arguments))


# ---- summary ------------------------------------------------------------------------------------------------


def test_summary_by_hand():
    ts = torch.tensor([0.0, 0.5, 0.75, 1.0])
    values, positions = torch.tensor([2.0, 6.0, 1.0, 4.0]), torch.tensor([1.0, 2.0, 5.0, 7.0])
    result = paths.summary(ts, values, positions)
    assert (result.min, result.max, result.t_max, result.mean, result.length) == (1, 6, 0.5, 3.25, 6)
    assert result.integral == pytest.approx((4 * 1 + 3.5 * 3 + 2.5 * 2) / 6, rel=1e-15)
    assert result.barrier == 6 - 3


def test_summary_of_a_path_of_no_length_and_of_a_broken_value():
    values = torch.tensor([1.0, 1.0, 1.0])
    assert math.isnan(paths.summary([0.0, 0.5, 1.0], values, torch.zeros(3)).integral)
    values[1] = torch.nan
    broken = paths.summary([0.0, 0.5, 1.0], values, torch.arange(3))
    assert all(math.isnan(x) for x in (broken.min, broken.max, broken.mean, broken.integral, broken.barrier))
    with pytest.raises(UserError, match="one and the same"):
        paths.summary([0.0, 1.0], values, torch.arange(3))


# ---- evaluation ---------------------------------------------------------------------------------------------


def ragged_data(n: int = 22, features: int = 4, classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, features, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (n,), generator=generator)
    return list(zip(x.split(8), y.split(8), strict=True))


def normalised_net(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()


def test_values_along_a_line_of_a_quadratic_loss():
    """A linear model with squared loss: along a line the loss is a parabola through three of its values."""
    model = nn.Linear(4, 1, bias=False).double()
    data = [(x, x.sum(1, keepdim=True)) for x, _ in ragged_data()]
    objective = Objective(model, data, supervised(F.mse_loss))
    ends = control_points(1, n=4)
    values = paths.evaluate(objective, ends, [0.0, 0.3, 0.5, 1.0], kind="line").values["loss"]
    a, c, b = values[0], values[2], values[3]
    curvature = 2 * (a + b - 2 * c)
    expected = a + 0.3 * (b - a - curvature) + 0.09 * curvature
    assert values[1].item() == pytest.approx(expected.item(), rel=1e-12)


def test_samples_average_to_the_values_of_the_objective():
    objective = Objective(
        normalised_net(0), ragged_data(), supervised(F.cross_entropy, {"error": percent_wrong}), chunk=3
    )
    n = objective.layout.size
    points = control_points(2, n)
    result = paths.evaluate(objective, points, TS)
    thetas = torch.stack([paths.bezier(points, t) for t in TS])
    for name, expected in objective.values(thetas).items():
        torch.testing.assert_close(result.values[name], expected, rtol=1e-13, atol=0)
        assert result.samples[name].shape == (5, 22)
    assert set(result.values) == {"loss", "error"}
    torch.testing.assert_close(result.positions, paths.arc_length(points, TS))
    assert (result.kind, result.batchnorm) == ("bezier", "eval")


def test_a_bare_loss_function_gives_values_without_samples():
    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    model = normalised_net(0)
    points = control_points(1, layout_of(model).size)
    bare = paths.evaluate(Objective(model, ragged_data(), loss), points, TS, kind="chain")
    full = paths.evaluate(Objective(model, ragged_data(), supervised(F.cross_entropy)), points, TS, kind="chain")
    torch.testing.assert_close(bare.values["loss"], full.values["loss"], rtol=1e-13, atol=0)
    assert not bare.samples


def test_batchnorm_is_re_estimated_at_every_point_ends_included():
    """Oracle: torch's own update_bn (equal batches, so its unweighted average is the weighted one)."""
    model = normalised_net(0)
    model(ragged_data()[0][0] + 3)  # running statistics that are wrong everywhere
    data = ragged_data(24)
    points = torch.stack([flat_parameters(normalised_net(seed)) for seed in (1, 2, 3)])
    objective = Objective(
        model, data, supervised(F.cross_entropy, {"error": percent_wrong}), batchnorm="recalibrate"
    )
    result = paths.evaluate(objective, points, TS)
    stale = paths.evaluate(Objective(model, data, supervised(F.cross_entropy)), points, TS)
    for i, t in enumerate(TS):
        oracle = copy.deepcopy(model)
        oracle.load_state_dict(layout_of(model).unflatten(paths.bezier(points, t)), strict=False)
        update_bn([x for x, _ in data], oracle)
        oracle.eval()
        x, y = (torch.cat(column) for column in zip(*data, strict=True))
        expected = F.cross_entropy(oracle(x), y).item()
        assert result.values["loss"][i].item() == pytest.approx(expected, rel=1e-12)
        assert abs(stale.values["loss"][i].item() - expected) > 1e-3
    assert result.batchnorm == "recalibrate"


def test_points_of_another_size_are_refused():
    objective = Objective(normalised_net(0), ragged_data(), supervised(F.cross_entropy))
    with pytest.raises(UserError, match="theta has shape"):
        paths.evaluate(objective, control_points(2, 7), TS)

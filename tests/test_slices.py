"""Slices: closed forms, bitwise positions, the fast way against the plain one, and the faults of peers."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import BY_NAME, CASES, conv_net
from lossatlas import slice_results
from lossatlas.errors import FileError, UserError
from lossatlas.landscape import directions, first_layer, slices
from lossatlas.landscape.criterion import Criterion, supervised
from lossatlas.landscape.objective import Objective


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def percent_wrong(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return 100.0 * (outputs.argmax(1) != batch[1])


def objective_of(name: str, **options) -> Objective:
    case = BY_NAME[name]
    return Objective(case.model, case.batches, case.criterion, **options)


def linear_regression() -> tuple[Objective, Tensor, Tensor]:
    """An objective whose loss is mean (x'w - y)^2, with the inputs (9, 4) and targets (9, 1)."""
    x, y = normal(9, 4), normal(9, 1, seed=1)
    model = nn.Linear(4, 1, bias=False).double()
    return Objective(model, [(x[:5], y[:5]), (x[5:], y[5:])], supervised(F.mse_loss)), x, y


def deep_mlp(dtype: torch.dtype = torch.float64, *, widths: tuple[int, ...] = (50, 8, 6, 3)) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Flatten()]
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers[:-1]).to(dtype)


def images(dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    x, y = normal(13, 2, 5, 5).to(dtype), torch.arange(13) % 3
    return [(x[:5], y[:5]), (x[5:10], y[5:10]), (x[10:], y[10:])]


def two(objective: Objective, **options) -> list[directions.Direction]:
    return [directions.gaussian(objective, seed=s, **options) for s in (0, 1)]


# ---- positions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "points", "marked"),
    [
        (-1, 1, 41, (0, 1)),
        (-1, 2, 61, (0, 1)),
        (-0.1, 0.2, 4, (0, 0.1)),
        (-0.3, 0.7, 11, (0, 0.5)),
        (-1, 0, 21, (0,)),
    ],
)
def test_marked_positions_are_exactly_on_the_grid(a, b, points, marked):
    positions = slices.evenly(a, b, points)
    assert (positions[0], positions[-1], len(positions)) == (a, b, points)
    assert set(marked) <= set(positions.tolist())
    np.testing.assert_allclose(positions, np.linspace(a, b, points), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("a", "b", "points"), [(1, -1, 3), (0, 0, 3), (0, math.inf, 3), (0, 1, 1)])
def test_impossible_grids_are_refused(a, b, points):
    with pytest.raises(UserError, match="No grid runs from"):
        slices.evenly(a, b, points)


# ---- closed form --------------------------------------------------------------------------------------------


def test_the_loss_of_linear_regression_is_an_exact_parabola():
    objective, x, y = linear_regression()
    direction = directions.gaussian(objective, seed=0)
    curve = slices.line(objective, direction, a=-2, b=3, points=26)
    rest, slope = x @ objective.center - y[:, 0], x @ direction.vector
    t = curve.positions
    parabola = (rest**2).mean() + 2 * (rest * slope).mean() * t + (slope**2).mean() * t**2
    torch.testing.assert_close(curve.values["loss"][0], parabola, rtol=1e-12, atol=1e-14)
    assert curve.center["loss"] == curve.values["loss"][0, 10].item() == objective(objective.center).item()
    assert curve.distances[0, 0] == pytest.approx(2)  # scaled to the model's norm, at lambda = -2
    assert math.isnan(curve.guessing)


def test_the_surface_of_linear_regression_lies_in_ij_order():
    objective, x, y = linear_regression()
    first, second = two(objective, scaling="none")
    plane = slices.surface(objective, first, second, extent=((-1, 1), (-2, 4)), grid=(3, 7))
    a, b = torch.meshgrid(plane.alphas, plane.betas, indexing="ij")
    assert plane.values["loss"].shape == (3, 7)
    outputs = (x @ objective.center) + a[..., None] * (x @ first.vector) + b[..., None] * (x @ second.vector)
    expected = ((outputs - y[:, 0]) ** 2).mean(-1)
    torch.testing.assert_close(plane.values["loss"], expected, rtol=1e-12, atol=1e-14)
    point = plane.alphas[2] * first.vector + plane.betas[5] * second.vector
    ratio = (point.norm() / objective.center.norm()).item()
    assert plane.distances[2, 5].item() == pytest.approx(ratio, rel=1e-12)
    assert abs(plane.cosine) > 1e-3  # not orthogonal, and said so


# ---- positions are where they are said to be, in weights alone ----------------------------------------------


@pytest.mark.parametrize("name", ["conv_batchnorm", "mlp_tanh", "siamese", "tied", "reused"])
def test_values_are_bitwise_those_of_the_objective_at_the_point(name):
    objective = objective_of(name)
    first, second = two(objective)
    curve = slices.line(objective, [first, second], points=5, fast=False)
    assert curve.values["loss"].shape == (2, 5)
    for k, direction in enumerate((first, second)):
        for j, x in enumerate(curve.positions.tolist()):
            assert curve.values["loss"][k, j] == objective(objective.center + x * direction.vector)
    plane = slices.surface(objective, first, second, grid=(3, 5), fast=False)
    for i, alpha in enumerate(plane.alphas.tolist()):
        for j, beta in enumerate(plane.betas.tolist()):
            at = objective.center + alpha * first.vector + beta * second.vector
            assert plane.values["loss"][i, j] == objective(at)
    again = slices.surface(objective, first, second, grid=(3, 5), fast=False)
    assert torch.equal(again.values["loss"], plane.values["loss"])  # no noise


@pytest.mark.parametrize("batchnorm", ["eval", "recalibrate", "batch"])
def test_a_batchnorm_surface_is_finite_and_moves_and_leaves_the_model_alone(batchnorm):
    model = conv_net().double()
    batches = [(normal(8, 2, 6, 6), torch.arange(8) % 3)]
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    state = torch.get_rng_state()
    objective = Objective(model, batches, supervised(F.cross_entropy), batchnorm=batchnorm)
    buffers = {n: b.clone() for n, b in objective.model.named_buffers()}
    first, second = two(objective)
    kept = first.vector.clone()
    plane = slices.surface(objective, first, second, grid=(3, 3))
    assert plane.non_finite == 0
    loss = plane.values["loss"]
    assert loss.unique().numel() == 9  # no two points alike: the weights move along both axes
    assert (loss.max() - loss.min()) > 0.1
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(b, buffers[n]) for n, b in objective.model.named_buffers())
    assert all((b > 0).all() for n, b in buffers.items() if n.endswith("running_var"))
    assert torch.equal(first.vector, kept)
    assert torch.equal(torch.get_rng_state(), state)


def test_recalibration_marks_the_checkpoints_own_loss_apart():
    case = BY_NAME["conv_batchnorm"]
    plain, again = objective_of("conv_batchnorm"), objective_of("conv_batchnorm", batchnorm="recalibrate")
    direction = directions.gaussian(again, seed=0)
    curve = slices.line(again, direction, points=3)
    assert curve.batchnorm == "recalibrate"
    assert curve.center["loss"] == again(again.center).item() == curve.values["loss"][0, 1].item()
    assert curve.checkpoint["loss"] == plain(plain.center).item()
    assert abs(curve.center["loss"] - curve.checkpoint["loss"]) > 1e-3
    assert slices.line(plain, direction, points=3).checkpoint == slices.line(plain, direction, points=3).center
    elsewhere = slices.line(again, direction, points=3, theta=again.center * 1.1)
    assert elsewhere.checkpoint == {}  # the running statistics belong to the model
    assert elsewhere.values["loss"][0, 1] == again(again.center * 1.1)
    batch = Objective(case.model, case.batches, case.criterion, batchnorm="batch")
    assert slices.line(batch, direction, points=3).checkpoint == {}


def test_non_finite_values_stay_and_are_counted():
    objective, _, _ = linear_regression()
    huge = directions.given(objective, torch.full((4,), 1e160, dtype=torch.float64), name="huge")
    curve = slices.line(objective, huge, points=5)
    loss = curve.values["loss"][0]
    assert curve.non_finite == 4
    assert bool(loss[[0, 1, 3, 4]].isinf().all())
    assert loss[2] == objective(objective.center)


def test_extras_and_the_level_of_guessing():
    data = images()
    criterion = supervised(F.cross_entropy, {"error": percent_wrong})
    objective = Objective(deep_mlp(), data, criterion)
    curve = slices.line(objective, directions.gaussian(objective, seed=0), points=3, classes=3)
    assert curve.guessing == math.log(3)
    assert set(curve.values) == {"loss", "error"}
    assert set(curve.center) == {"loss", "error"}
    at = objective.values(objective.center.unsqueeze(0))
    assert curve.values["error"][0, 1] == at["error"][0]


# ---- the fast way -------------------------------------------------------------------------------------------


class Skipping(nn.Module):
    """Two linear layers on the inputs, one of them beside the rest, and a third called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.skip, self.last = nn.Linear(50, 8), nn.Linear(50, 3, bias=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = (x.flatten(1) - 0.1) * 2
        return self.last(input=torch.tanh(self.wide(x))) + self.skip(x)


def bare_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def bare_mean(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return model(batch[0]).exp().mean()


def normalised_mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(50, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()


def shallow_cnn() -> nn.Module:
    convolution = nn.Conv2d(2, 8, 3, stride=2, padding=1)
    return nn.Sequential(
        convolution, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    ).double()


FAST = {
    "mlp": (deep_mlp, supervised(F.cross_entropy, {"error": percent_wrong})),
    "bare loss": (deep_mlp, bare_loss),
    "one layer": (lambda: nn.Linear(5, 3).double(), bare_mean),
    "skipping": (lambda: Skipping().double(), supervised(F.cross_entropy)),
    "batchnorm after": (normalised_mlp, supervised(F.cross_entropy)),
    "convolution": (shallow_cnn, supervised(F.cross_entropy)),
}


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("batchnorm", ["eval", "batch"])
def test_the_fast_way_equals_the_plain_one(name, batchnorm):
    make, loss = FAST[name]
    torch.manual_seed(1)
    objective = Objective(make(), images(), loss, batchnorm=batchnorm, chunk=4)
    first, second = two(objective)
    plane, plain = (slices.surface(objective, first, second, grid=(4, 5), fast=f) for f in (True, False))
    assert (plane.method, plain.method) == ("split first layer", "direct")
    for quantity, values in plain.values.items():
        # float64 sums of 50 terms in another order
        torch.testing.assert_close(plane.values[quantity], values, rtol=1e-11, atol=0)
    assert plane.center == plain.center
    assert not any("forward" in m.__dict__ or m._forward_pre_hooks for m in objective.model.modules())
    assert objective(objective.center).item() == plain.center["loss"]  # the layers are themselves again


@pytest.mark.parametrize("params", [None, "weight"])
def test_the_fast_way_in_float32_for_several_lines_and_some_parameters(params):
    objective = Objective(
        deep_mlp(torch.float32), images(torch.float32), supervised(F.cross_entropy), params=params
    )
    fast, plain = (slices.line(objective, two(objective), points=6, fast=f) for f in (True, False))
    assert fast.method == "split first layer"
    # float32 sums of 50 terms in another order
    torch.testing.assert_close(fast.values["loss"], plain.values["loss"], rtol=1e-5, atol=0)


def test_layers_before_the_parameters_that_move_are_computed_once_too():
    objective = Objective(deep_mlp(), images(), supervised(F.cross_entropy), params=r"^5\.")
    fast, plain = (slices.line(objective, two(objective), points=6, fast=f) for f in (True, False))
    assert fast.method == "split first layer"
    torch.testing.assert_close(fast.values["loss"], plain.values["loss"], rtol=1e-11, atol=0)


def test_a_loss_that_overflows_at_the_probe_confirms_nothing():
    objective, _, _ = linear_regression()
    vector = torch.full((4,), 1e160, dtype=torch.float64)
    assert first_layer.split_first_layer(objective, objective.center, [vector], [1.0]) is None
    assert first_layer.split_first_layer(objective, objective.center, [vector / 1e160], [1.0]) is not None


class Regularised(nn.Module):
    """The first layer's weight is used a second time, where no call of a module shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(50, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x.flatten(1)))) + 1e-9 * self.first.weight.square().sum()


class Detached(nn.Module):
    """What the second layer sees depends on a parameter behind autograd's back."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.wide, self.last = nn.Parameter(torch.ones(1)), nn.Linear(50, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.wide(x.flatten(1) * self.scale.detach()))) * self.scale


class Twice(nn.Module):
    """The first layer runs twice a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.last = nn.Linear(50, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.wide(x.flatten(1))) + self.wide(-x.flatten(1)))


class Doubling(nn.Linear):
    """No plain linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "model",
    [Regularised(), Detached(), Twice(), nn.Sequential(nn.Flatten(), Doubling(50, 3))],
    ids=lambda m: type(m).__name__,
)
def test_models_that_only_seem_splittable_are_walked_plainly(model):
    objective = Objective(model.double(), images(), supervised(F.cross_entropy))
    direction = directions.gaussian(objective, seed=0)
    curve = slices.line(objective, direction, points=5)
    assert curve.method == "direct"
    for j, x in enumerate(curve.positions.tolist()):
        assert curve.values["loss"][0, j] == objective(objective.center + x * direction.vector)


def test_a_hook_on_the_first_layer_is_obeyed():
    model = deep_mlp()
    model[1].register_forward_hook(lambda _module, _inputs, output: output.sin())
    objective = Objective(model, images(), FAST["mlp"][1])
    fast, plain = (slices.line(objective, two(objective), points=3, fast=f) for f in (True, False))
    assert fast.method == "direct"
    assert torch.equal(fast.values["loss"], plain.values["loss"])


def test_the_fast_way_is_declined_where_it_does_not_pay_or_hold():
    recalibrated = Objective(FAST["batchnorm after"][0](), images(), FAST["mlp"][1], batchnorm="recalibrate")
    narrow_first = Objective(deep_mlp(widths=(50, 2, 200, 3)), images(), FAST["mlp"][1])
    for objective in (recalibrated, narrow_first):
        assert slices.line(objective, two(objective), points=3).method == "direct"
    objective = Objective(deep_mlp(), images(), FAST["mlp"][1])
    vectors = [d.vector for d in two(objective)]
    whole = 13 * 8 * 8 * 3  # samples, outputs, bytes, parts
    assert first_layer.split_first_layer(objective, objective.center, vectors, [1, 1], memory=whole) is not None
    assert first_layer.split_first_layer(objective, objective.center, vectors, [1, 1], memory=whole - 1) is None


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_both_ways_agree_on_every_model(case):
    objective = Objective(case.model, case.batches, case.criterion)
    fast, plain = (slices.line(objective, two(objective), points=4, fast=f) for f in (True, False))
    torch.testing.assert_close(fast.values["loss"], plain.values["loss"], rtol=1e-11, atol=0)


# ---- going on where one stopped -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp_tanh", "conv_batchnorm"])
def test_a_stopped_slice_goes_on_and_gives_the_same_bits(name):
    objective = objective_of(name)
    first, second = two(objective)
    whole = slices.surface(objective, first, second, grid=(3, 4))
    stored: dict[tuple[int, int], dict[str, float]] = {}
    calls: list[tuple[int, int]] = []

    def store(index, values):
        if len(stored) == 5:
            raise KeyboardInterrupt
        stored[index] = dict(values)

    with pytest.raises(KeyboardInterrupt):
        slices.surface(objective, first, second, grid=(3, 4), keep=store)
    assert list(stored) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
    new: dict[tuple[int, int], dict[str, float]] = {}
    rest = slices.surface(
        objective,
        first,
        second,
        grid=(3, 4),
        done=stored,
        keep=lambda i, v: new.update({i: dict(v)}),
        progress=lambda n, total: calls.append((n, total)),
    )
    assert torch.equal(rest.values["loss"], whole.values["loss"])
    assert len(new) == 7
    assert calls == [(n, 12) for n in range(1, 13)]
    marked = stored | {(1, 0): {"loss": 7.0}}
    assert slices.surface(objective, first, second, grid=(3, 4), done=marked).values["loss"][1, 0] == 7


def test_what_does_not_fit_is_refused():
    objective = objective_of("mlp_tanh")
    first, second = two(objective)
    with pytest.raises(UserError, match=r"done holds \(0, 9\)"):
        slices.line(objective, first, points=3, done={(0, 9): {"loss": 1.0}})
    with pytest.raises(UserError, match="other quantities than loss"):
        slices.line(objective, first, points=3, done={(0, 1): {"error": 1.0}})
    with pytest.raises(UserError, match="span no plane"):
        slices.surface(objective, first, directions.given(objective, -2 * first.vector, name="back"))
    with pytest.raises(UserError, match="do not fit this objective"):
        slices.line(objective_of("conv_batchnorm"), second)
    with pytest.raises(UserError, match="do not fit this objective"):
        slices.line(objective, [])


def test_batches_of_any_shape_and_losses_without_classes_are_walked():
    model = nn.Linear(4, 2, bias=False).double()
    criterion = Criterion(
        predict=lambda m, batch: m(batch["x"]), loss=lambda outputs, _batch: outputs.square().mean(1)
    )
    objective = Objective(model, [{"x": normal(5, 4)}], criterion)
    through = directions.given(objective, objective.center, name="through the origin")
    curve = slices.line(objective, through, points=3)
    assert curve.method == "split first layer"
    expected = torch.tensor([[0, 1, 4]]).double() * curve.center["loss"]
    torch.testing.assert_close(curve.values["loss"], expected, rtol=1e-12, atol=1e-30)


# ---- names --------------------------------------------------------------------------------------------------


def test_a_curve_goes_to_a_file_and_back(tmp_path):
    import xarray as xr

    criterion = supervised(F.cross_entropy, {"error": percent_wrong, "margin": lambda o, _b: o.max(1).values})
    objective = Objective(deep_mlp(), images(), criterion)
    curve = slices.line(objective, two(objective), points=5, classes=3)
    dataset = slice_results.to_dataset(curve, units={"margin": "logit"})
    assert dataset.loss.dims == ("direction", "lambda")
    assert [dataset[n].attrs["units"] for n in ("loss", "error", "margin")] == ["nat", "%", "logit"]
    assert all({"units", "long_name", "estimator"} <= set(v.attrs) for v in dataset.data_vars.values())
    assert dataset.loss.sel(direction="gaussian 1").sel({"lambda": 0.0}).item() == curve.center["loss"]
    dataset.to_netcdf(tmp_path / "curve.nc", engine="h5netcdf")
    back = slice_results.from_dataset(xr.load_dataset(tmp_path / "curve.nc", engine="h5netcdf"))
    assert isinstance(back, slices.Curve)
    assert back.directions == curve.directions
    assert (back.center, back.checkpoint, back.method) == (curve.center, curve.checkpoint, curve.method)
    assert all(torch.equal(back.values[n], v) for n, v in curve.values.items())
    assert torch.equal(back.distances, curve.distances)


def test_a_surface_goes_to_a_file_and_back(tmp_path):
    import xarray as xr

    objective, _, _ = linear_regression()
    first, second = two(objective)
    plane = slices.surface(objective, first, second, grid=(3, 4))
    plane.values["loss"][0, 0] = math.nan  # a value that is not finite survives
    dataset = slice_results.to_dataset(plane)
    assert dataset.loss.dims == ("alpha", "beta")
    assert dataset.loss.isel(alpha=2, beta=1).item() == plane.values["loss"][2, 1]
    dataset.to_netcdf(tmp_path / "surface.nc", engine="h5netcdf")
    back = slice_results.from_dataset(xr.load_dataset(tmp_path / "surface.nc", engine="h5netcdf"))
    assert isinstance(back, slices.Surface)
    torch.testing.assert_close(back.values["loss"], plane.values["loss"], equal_nan=True, rtol=0, atol=0)
    assert (back.non_finite, back.cosine, back.directions) == (1, plane.cosine, plane.directions)
    assert math.isnan(back.guessing)
    with pytest.raises(FileError, match="no curve or surface of schema version 1"):
        slice_results.from_dataset(dataset.drop_attrs())

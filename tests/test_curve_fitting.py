"""Curve fitting: the naive autograd oracle, a bend known in closed form, a bent valley, the caller left alone."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lossatlas.errors import UserError
from lossatlas.landscape import curve_fitting, paths
from lossatlas.landscape.checkpoints import State, Stopped
from lossatlas.landscape.criterion import supervised
from lossatlas.landscape.curve_fitting import fit
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.parameters import flat_parameters, layout_of


class Point(nn.Module):
    """A model that is nothing but its parameters w (n,)."""

    def __init__(self, n: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(n, dtype=dtype))


def steps(count: int):
    """`count` batches an epoch that say nothing: the loss is in the model."""
    return lambda _epoch: [torch.zeros(1)] * count


def net(seed: int, *, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(12, 3)
        ).double()


def images(n: int = 21, batch: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (n,), generator=generator)
    return list(zip(x.split(batch), y.split(batch), strict=True))


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def ends_of_nets() -> tuple[Tensor, Tensor]:
    return flat_parameters(net(1)), flat_parameters(net(2))


# ---- the rate -----------------------------------------------------------------------------------------------


def test_rate_is_constant_then_falls_linearly_to_a_hundredth():
    rates = [curve_fitting.learning_rate(0.2, epoch, 20) for epoch in range(20)]
    assert rates[:10] == [0.2] * 10
    falling = torch.tensor(rates[9:18])  # a = 0.5 .. 0.9
    torch.testing.assert_close(falling.diff(), torch.full((8,), -0.2 * 0.99 / 8), rtol=1e-4, atol=0)
    assert rates[17:] == pytest.approx([0.002] * 3, rel=1e-12)


# ---- what is minimised --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "bends"), [("bezier", 1), ("bezier", 2), ("chain", 3)])
def test_every_step_is_sgd_on_autograd_through_the_interpolation(monkeypatch, kind, bends):
    """Oracle: bends as Parameters, the l2 term written out, torch.optim.SGD; the same draws of t."""
    draws: list[float] = []
    original = paths.point

    def spy(points, t, *, kind):
        draws.append(t)
        return original(points, t, kind=kind)

    ends, epochs = ends_of_nets(), 4
    with monkeypatch.context() as patch:
        patch.setattr(paths, "point", spy)
        result = fit(
            net(0),
            ends,
            lambda _: images(),
            supervised(F.cross_entropy),
            seed=3,
            bends=bends,
            epochs=epochs,
            lr=0.1,
            l2=0.01,
            kind=kind,
        )
    draws = draws[-3 * epochs :]  # before them the bends were placed
    model, layout = net(0).train(), layout_of(net(0))
    inner = [nn.Parameter(ends[0] + (i + 1) / (bends + 1) * (ends[1] - ends[0])) for i in range(bends)]
    optimizer, drawn, losses = torch.optim.SGD(inner, lr=0.1, momentum=0.9), iter(draws), []
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = curve_fitting.learning_rate(0.1, epoch, epochs)
        total = 0.0
        for x, y in images():
            points = torch.stack([ends[0], *inner, ends[1]])
            w = paths.weights(kind, next(drawn), bends + 1) @ points
            loss = F.cross_entropy(functional_call(model, layout.unflatten(w), (x,)), y)
            optimizer.zero_grad()
            (loss + 0.01 / 2 * w.square().sum()).backward()
            optimizer.step()
            total += loss.item() * len(x)
        losses.append(total / 21)  # the ragged last batch counts by its 5 samples
    # float64: twelve steps of the same arithmetic in another order.
    torch.testing.assert_close(result.points[1:-1], torch.stack(inner).detach(), rtol=1e-10, atol=1e-12)
    assert result.losses == pytest.approx(losses, rel=1e-12)
    assert next(drawn, None) is None


def test_draws_of_t_are_uniform():
    """L = w at fixed ends 0 and 1 with a bend at 1/2 that hardly moves: w is t itself."""
    seen: list[float] = []

    def loss(model: nn.Module, _batch: Tensor) -> Tensor:
        seen.append(model.w.item())
        return model.w.sum()

    zero = torch.zeros(1, dtype=torch.float64)
    fit(Point(1), (zero, zero + 1), steps(1000), loss, seed=0, epochs=1, lr=1e-12, l2=0.0)
    t = torch.tensor(seen).sort().values
    steps_up = (torch.arange(1000) + 1) / 1000
    # Kolmogorov-Smirnov distance; 1.95/sqrt(N) is exceeded by one uniform sample in a thousand.
    assert (t - steps_up).abs().max() < 1.95 / math.sqrt(1000) + 1e-3


@pytest.mark.parametrize("l2", [0.0, 0.5])
def test_the_bend_of_a_quadratic_valley_in_closed_form(l2):
    """L = (w-c)'A(w-c)/2: the best bend b has b - m = -3/4 ((a-m) + (d-m)), m = (A + l2)^-1 A c.

    E[c1 (c0 (a-m) + c1 (b-m) + c2 (d-m))] = 0 with E[c1^2] = 2/15 and E[c0 c1] = E[c1 c2] = 1/10.
    """
    a, d = torch.tensor([1.0, -1.0]).double(), torch.tensor([0.5, 2.0]).double()
    center, curvature = torch.tensor([0.3, 1.0]).double(), torch.tensor([1.0, 3.0]).double()

    def loss(model: nn.Module, _batch: Tensor) -> Tensor:
        return (curvature * (model.w - center).square()).sum() / 2

    m = curvature * center / (curvature + l2)
    best = m - 0.75 * ((a - m) + (d - m))
    assert (best - (a + d) / 2).abs().max() > 0.5  # from the midpoint it is far
    fits = [fit(Point(2), (a, d), steps(60), loss, seed=seed, epochs=20, lr=0.05, l2=l2) for seed in range(6)]
    off = torch.stack([f.points[1] - best for f in fits])
    # The random t leaves scatter at any finite rate; the mean over seeds must agree within four standard errors.
    assert (off.mean(0).abs() < 4 * off.std(0) / math.sqrt(6)).all()
    assert off.abs().max() < 0.3


def test_a_curve_follows_a_bent_valley_where_the_line_meets_a_barrier():
    """L = 10 (|w|^2 - 1)^2: the ends lie on the circle, the line between them passes over the hill."""

    def valley(w: Tensor) -> Tensor:
        return 10 * (w.square().sum() - 1).square()

    ends = (torch.tensor([-1.0, 0.0]).double(), torch.tensor([1.0, 0.0]).double())
    start = torch.tensor([[0.0, 0.2]]).double()
    result = fit(
        Point(2),
        ends,
        steps(50),
        lambda model, _: valley(model.w),
        seed=0,
        epochs=20,
        lr=0.01,
        l2=0.0,
        start=start,
    )
    ts = torch.linspace(0, 1, 21, dtype=torch.float64).tolist()
    curve = max(valley(paths.bezier(result.points, t)) for t in ts)
    line = max(valley(paths.line(torch.stack(ends), t)) for t in ts)
    assert line == 10
    # A parabola is no circle: of all bends (0, h) h = 2.13 has the least mean loss (by a grid), 0.49 at worst.
    torch.testing.assert_close(result.points[1], torch.tensor([0, 2.13]).double(), rtol=0, atol=0.1)
    assert curve < 0.6
    assert result.losses[-1] < 0.1 * result.losses[0]


def test_fitting_lowers_the_loss_of_a_network_between_its_solutions():
    """Two nets trained on the same images: on the fitted curve the worst loss is below the worst on the line."""
    data, trained = images(24), []
    for seed in (1, 2):
        model = net(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for x, y in data * 40:
            optimizer.zero_grad()
            cross_entropy(model, (x, y)).backward()
            optimizer.step()
        trained.append(flat_parameters(model))
    result = fit(net(0), (trained[0], trained[1]), lambda _: data, cross_entropy, seed=0, epochs=40, lr=0.05)
    objective = Objective(net(0), data, supervised(F.cross_entropy), batchnorm="batch")
    ts = torch.linspace(0, 1, 11, dtype=torch.float64)
    curve = paths.evaluate(objective, result.points, ts).values["loss"].max()
    line = paths.evaluate(objective, torch.stack(trained), ts, kind="line").values["loss"].max()
    assert curve < 0.5 * line


# ---- how it behaves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bends", [1, 3])
def test_the_ends_stay_bitwise_and_the_midpoint_is_on_the_line(bends):
    ends = ends_of_nets()
    given = [end.clone() for end in ends]
    result = fit(net(0), ends, lambda _: images(), cross_entropy, seed=0, bends=bends, epochs=1, lr=1e-30, l2=0.0)
    assert result.points.shape == (bends + 2, len(ends[0]))
    assert torch.equal(result.points[0], given[0])
    assert torch.equal(result.points[-1], given[1])
    for i in range(bends + 2):
        straight = given[0] + i / (bends + 1) * (given[1] - given[0])
        torch.testing.assert_close(result.points[i], straight, rtol=0, atol=1e-15)
    moved = fit(net(0), ends, lambda _: images(), cross_entropy, seed=0, bends=bends, epochs=2)
    assert torch.equal(moved.points[0], given[0])
    assert torch.equal(moved.points[-1], given[1])
    assert torch.equal(ends[0], given[0])
    assert not torch.equal(moved.points[1], result.points[1])


def test_a_given_start_is_where_the_bends_begin():
    ends = ends_of_nets()
    start = torch.stack([flat_parameters(net(7)), flat_parameters(net(8))])
    result = fit(net(0), ends, lambda _: images(), cross_entropy, seed=0, bends=2, epochs=1, lr=1e-30, start=start)
    torch.testing.assert_close(result.points[1:-1], start, rtol=0, atol=1e-15)
    assert result.points[1:-1].data_ptr() != start.data_ptr()


def test_repetition_is_bitwise_dropout_included_and_the_seed_counts():
    ends = ends_of_nets()

    def once(seed: int) -> curve_fitting.CurveFit:
        return fit(net(0, dropout=0.5), ends, lambda _: images(), cross_entropy, seed=seed, epochs=2)

    first = once(1)
    torch.rand(5)  # the caller's random state is of no account
    again, other = once(1), once(2)
    assert torch.equal(first.points, again.points)
    assert first.losses == again.losses
    assert not torch.equal(first.points, other.points)
    without = fit(net(0), ends, lambda _: images(), cross_entropy, seed=1, epochs=2)
    assert not torch.equal(first.points, without.points)  # Dropout was at work


@pytest.mark.parametrize("broken", [False, True])
def test_the_callers_model_and_random_state_stay(broken):
    model = net(0, dropout=0.5)
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = copy.deepcopy(model)
    modes = [m.training for m in model.modules()]
    ends = ends_of_nets()

    def batches(epoch: int):
        yield images()[0]
        if broken:
            raise OSError("the disk is gone")
        yield images()[1]

    state = torch.get_rng_state()
    with torch.no_grad():  # a caller's no_grad must not stop the fit
        if broken:
            with pytest.raises(OSError, match="disk"):
                fit(model, ends, batches, cross_entropy, seed=0, epochs=1)
        else:
            fit(model, ends, batches, cross_entropy, seed=0, epochs=1)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[5].weight.grad is None


def test_batchnorm_uses_the_statistics_of_the_batch():
    """Wrong running statistics must not matter."""
    ends, spoiled = ends_of_nets(), net(0)
    spoiled[1].running_mean.fill_(50.0)
    plain = fit(net(0), ends, lambda _: images(), cross_entropy, seed=0, epochs=1)
    assert torch.equal(
        plain.points, fit(spoiled, ends, lambda _: images(), cross_entropy, seed=0, epochs=1).points
    )


def test_a_batch_of_one_sample_is_left_out_only_with_batchnorm():
    ends = ends_of_nets()
    ragged = images(17)  # 8, 8, 1
    with_it = fit(net(0), ends, lambda _: ragged, cross_entropy, seed=0, epochs=1)
    assert torch.equal(
        with_it.points, fit(net(0), ends, lambda _: ragged[:2], cross_entropy, seed=0, epochs=1).points
    )
    plain = nn.Linear(16, 3).double()
    theta = flat_parameters(plain)

    def loss(model, batch):
        return F.cross_entropy(model(batch[0].flatten(1)), batch[1])

    results = [fit(plain, (theta, -theta), lambda _, d=d: d, loss, seed=0, epochs=1) for d in (ragged, ragged[:2])]
    assert not torch.equal(results[0].points, results[1].points)


def test_divergence_is_a_status_with_its_epoch():
    a = torch.tensor([1.0]).double()
    seen = []
    result = fit(
        Point(1),
        (a, -3 * a),
        steps(3),
        lambda model, _: model.w.pow(4).sum(),
        seed=0,
        epochs=50,
        lr=10.0,
        progress=lambda epoch, loss: seen.append((epoch, loss)),
    )
    assert result.status == "diverged"
    last = len(result.losses) - 1
    assert last < 49
    assert f"in epoch {last} " in result.reason
    assert not math.isfinite(result.losses[-1]) or not bool(result.points.isfinite().all())
    assert torch.equal(result.points[0], a)
    assert [epoch for epoch, _ in seen] == list(range(last + 1))


def test_progress_and_batches_hear_of_every_epoch():
    heard, asked = [], []

    def batches(epoch: int):
        asked.append(epoch)
        return images()

    result = fit(
        net(0),
        ends_of_nets(),
        batches,
        cross_entropy,
        seed=4,
        epochs=3,
        progress=lambda epoch, loss: heard.append((epoch, loss)),
    )
    assert asked == [0, 1, 2]
    assert heard == list(enumerate(result.losses))
    assert (result.epochs, result.seed, result.kind, result.status) == (3, 4, "bezier", "ok")


def test_tied_and_frozen_parameters():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3).double()
            self.second = nn.Linear(3, 3).double()
            self.second.weight = self.first.weight
            self.second.bias.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x)))

    model = Tied()
    theta = flat_parameters(model)
    assert len(theta) == 12
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = fit(model, (theta, -theta), lambda _: [x], lambda m, b: m(b).square().mean(), seed=0, epochs=2)
    assert result.points.shape == (3, 12)
    assert result.status == "ok"


def test_weights_have_the_dtype_of_the_ends():
    ends = tuple(end.float() for end in ends_of_nets())
    result = fit(net(0), ends, lambda _: images(), cross_entropy, seed=0, epochs=1)
    assert result.points.dtype == torch.float32
    assert torch.equal(result.points[0], ends[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bends": 0}, "bends=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"batches": images()}, "batches is a list"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"kind": "line"}, "'line' must be bezier or chain"),
        ({"start": "random"}, "'random' must be 'midpoint' or a tensor"),
        ({"start": torch.zeros(2, 2)}, r"it must be \(1, "),
        ({"ends": (torch.zeros(3), torch.zeros(3))}, "the first end has shape"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    arguments = {"ends": ends_of_nets(), "batches": lambda _: images(), "loss": cross_entropy, "seed": 0} | change
    with pytest.raises(UserError, match=message):
        fit(net(0), **arguments)


def test_an_epoch_without_a_usable_batch_and_a_loss_without_a_graph():
    ends = ends_of_nets()
    exhausted = iter(images())
    with pytest.raises(UserError, match="no batch to fit"):
        fit(net(0), ends, lambda _: exhausted, cross_entropy, seed=0, epochs=2)
    with pytest.raises(UserError, match="no batch to fit"):
        fit(net(0), ends, lambda _: images(4, batch=1), cross_entropy, seed=0, epochs=1)
    with pytest.raises(UserError, match="does not depend"):
        fit(net(0), ends, lambda _: images(), lambda _m, _b: torch.zeros(()), seed=0, epochs=1)
    with pytest.raises(UserError, match=r"bends=0.*lr=-1"):  # all at once
        fit(net(0), ends, itertools.repeat, cross_entropy, seed=0, bends=0, lr=-1)


# ---- stopped and continued ----------------------------------------------------------------------------------


class Memory:
    """Checkpoints in memory: asks for one after so many batches, and stops there."""

    def __init__(self, stop_after: int | None = None, saved: State | None = None) -> None:
        self.left, self.saved = stop_after, saved

    def load(self) -> State | None:
        return copy.deepcopy(self.saved)

    def due(self) -> bool:
        self.left = None if self.left is None else self.left - 1
        return self.left == 0

    def save(self, state: State) -> None:
        self.saved = copy.deepcopy(state)
        raise Stopped


def stoppable(memory: Memory | None, source: str, *, lr: float = 0.05) -> curve_fitting.CurveFit:
    """A fit with Dropout, BatchNorm, two bends and 3 batches an epoch (8, 8, 1: the last one is left out)."""
    data = images(17)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    order = torch.Generator().manual_seed(5)

    def shuffled(_epoch: int):
        index = torch.randperm(17, generator=order)
        yield from zip(x[index].split(8), y[index].split(8), strict=True)

    sources = {
        "fixed": lambda _epoch: data,
        "shuffled": shuffled,  # from a generator of its own
        "loader": lambda _epoch: loader,  # from torch's global one
    }
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8, shuffle=True)
    return fit(
        net(0, dropout=0.5),
        ends_of_nets(),
        sources[source],
        cross_entropy,
        seed=1,
        bends=2,
        epochs=4,
        lr=lr,
        checkpoints=memory,
        generators=[order],
    )


@pytest.mark.parametrize("source", ["fixed", "shuffled", "loader"])
@pytest.mark.parametrize("batches", [1, 2, 3, 4, 6, 8, 11, 12])
def test_a_fit_that_was_stopped_ends_with_the_same_bits(source, batches):
    memory = Memory(batches)
    with pytest.raises(Stopped):
        stoppable(memory, source)
    torch.manual_seed(batches)  # another process has another global state
    found, plain = stoppable(Memory(saved=memory.saved), source), stoppable(None, source)
    assert torch.equal(found.points, plain.points)
    assert (found.losses, found.status) == (plain.losses, "ok")
    assert len(found.losses) == 4


@pytest.mark.parametrize("name", ["velocity", "walk/now/0", "walk/now/1", "walk/start/2", "walk/sums"])
def test_a_state_of_a_fit_that_lacks_anything_would_be_told(name):
    memory = Memory(4)
    with pytest.raises(Stopped):
        stoppable(memory, "shuffled")
    right = memory.saved.tensors[name]
    wrong = torch.Generator().manual_seed(99).get_state() if right.dtype == torch.uint8 else right + 1
    state = State({**memory.saved.tensors, name: wrong}, memory.saved.numbers)
    found, plain = stoppable(Memory(saved=state), "shuffled"), stoppable(None, "shuffled")
    assert not torch.equal(found.points, plain.points) or found.losses != plain.losses


def test_a_diverging_fit_that_was_stopped_tells_the_same():
    memory = Memory(2)
    with pytest.raises(Stopped):
        stoppable(memory, "fixed", lr=1e200)
    found, plain = stoppable(memory, "fixed", lr=1e200), stoppable(None, "fixed", lr=1e200)
    assert found.status == plain.status == "diverged"
    assert (found.reason, len(found.losses)) == (plain.reason, len(plain.losses))

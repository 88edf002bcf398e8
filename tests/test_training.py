"""Training: the optimiser against torch's, the schedule, which weights are kept, divergence, repeatability."""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lossatlas.errors import UserError
from lossatlas.landscape.checkpoints import DoesNotFit, State, Stopped
from lossatlas.landscape.criterion import Criterion, supervised
from lossatlas.seeding import derive
from lossatlas.specs import EarlyStop, Optimizer, Schedule
from lossatlas.tasks import losses
from lossatlas.tasks.data import RawData
from lossatlas.tasks.samples import Samples
from lossatlas.training import FlatSGD, TrainedModel, rates, stops_early, train
from trainings import Memory, assert_same_bits, network, recipe, samples


def trained(
    seed: int = 0, count: int = 50, dropout: float = 0.0, **changes: object
) -> tuple[TrainedModel, nn.Module]:
    model = network(seed, dropout)
    return train(model, samples(count), losses.cross_entropy(), recipe(**changes), seed=seed), model


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.01), (0.9, 0.01)])
def test_flat_sgd_is_torch_sgd(momentum: float, weight_decay: float) -> None:
    ours, theirs = network().double(), network().double()
    mine = FlatSGD(ours, momentum=momentum, weight_decay=weight_decay)
    torchs = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=momentum, weight_decay=weight_decay)
    batches = list(samples().batches(16)())
    for step in range(30):
        rate = 0.1 if step < 20 else 0.01
        mine.lr = torchs.param_groups[0]["lr"] = rate
        inputs, targets = batches[step % len(batches)]
        for model, optimizer in ((ours, mine), (theirs, torchs)):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs.double()), targets).backward()
            optimizer.step()
    for one, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        # The same operations on the same numbers; only a fused multiply-add may round differently, 30 times.
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_flat_sgd_leaves_frozen_parameters_alone_and_ties_together() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    first.bias.requires_grad_(False)
    frozen = first.bias.clone()
    model = nn.Sequential(first, second)
    optimizer = FlatSGD(model, momentum=0.9, weight_decay=0.1)
    optimizer.lr = 0.1
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    assert torch.equal(first.bias, frozen)
    assert second.weight is first.weight
    assert first.bias.grad is None


def test_a_linear_model_follows_gradient_descent_in_closed_form() -> None:
    # Full batches of a least-squares problem: theta_k = theta* + (I - lr A)^k (theta_0 - theta*), A = X'X/N.
    generator = np.random.default_rng(1)
    inputs = generator.normal(size=(6, 2)).astype(np.float32)
    targets = np.array([0, 1, 0, 1, 1, 0])
    data = Samples(inputs, targets, RawData(inputs, targets, inputs, targets, 2))

    def half_square(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        return (outputs[:, 0] - batch[1]).square() / 2

    criterion = Criterion(lambda model, batch: model(batch[0]), half_square, {"error": half_square})
    model = nn.Linear(2, 1, bias=False)
    x, y = inputs.astype(np.float64), targets.astype(np.float64)
    start = model.weight.detach().double().numpy()[0]
    settings = recipe(batch_size=6, epochs=10, optimizer=Optimizer(lr=0.2, momentum=0.0, weight_decay=0.0))
    result = train(model, data, criterion, settings, seed=0)
    a = x.T @ x / 6
    best = np.linalg.solve(a, x.T @ y / 6)
    path = [best + np.linalg.matrix_power(np.eye(2) - 0.2 * a, k) @ (start - best) for k in range(11)]
    weight = result.weights["final"]["weight"].double().numpy()[0]
    np.testing.assert_allclose(weight, path[10], rtol=1e-5)  # ten steps in float32
    # The running loss of an epoch of one step is the loss before that step.
    losses_before = [((x @ theta - y) ** 2).mean() / 2 for theta in path[:10]]
    np.testing.assert_allclose(result.history["loss"], losses_before, rtol=1e-5)


def test_training_again_gives_the_same_bits_and_another_seed_others() -> None:
    (one, _), (same, _), (other, _) = trained(0, dropout=0.5), trained(0, dropout=0.5), trained(1, dropout=0.5)
    assert one.history == same.history
    assert one.weights.keys() == same.weights.keys() == {"best", "final"}
    for name, weights in one.weights.items():
        for key, tensor in weights.items():
            assert torch.equal(tensor, same.weights[name][key])
    assert one.history["loss"] != other.history["loss"]


def test_the_order_and_dropout_have_streams_of_their_own() -> None:
    seen: list[torch.Tensor] = []

    def noting(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        seen.append(batch[1])
        outputs: torch.Tensor = model(batch[0])
        return outputs

    plain = losses.cross_entropy()
    orders = []
    for dropout in (0.0, 0.5):
        seen.clear()
        criterion = Criterion(noting, plain.loss, plain.extras)
        train(network(0, dropout), samples(), criterion, recipe(epochs=2), seed=0)
        orders.append(torch.cat(seen))
    assert torch.equal(*orders)
    assert len(orders[0]) == 2 * 48  # the last 2 of 50 samples are dropped
    expected = torch.randperm(50, generator=torch.Generator().manual_seed(derive(0, "order")))[:48]
    assert torch.equal(orders[0][:48], samples().targets[expected])


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    trained(dropout=0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_rate_drops_once() -> None:
    step = Schedule(name="step", factor=0.1, at=0.75)

    def found(schedule: Schedule, epochs: int) -> list[float]:
        rate = rates(recipe(optimizer=Optimizer(lr=0.5), schedule=schedule, epochs=epochs), 50)
        assert rate.per_epoch == 6
        return [rate(s) for s in range(6 * epochs)]

    assert found(step, 100) == [0.5] * 450 + [0.5 * 0.1] * 150
    assert found(step, 4) == [0.5] * 18 + [0.5 * 0.1] * 6
    assert set(found(Schedule(), 10)) == {0.5}
    result, _ = trained(schedule=step)
    assert result.history["lr"] == [0.1, 0.1, 0.1, 0.1 * 0.1]


def test_when_training_stops_early() -> None:
    rule = EarlyStop(tolerance=0.1, patience=3, start=4)

    def first(losses: list[float]) -> int | None:
        return next((n for n in range(1, len(losses) + 1) if stops_early(losses[:n], rule)), None)

    # The moves into epochs 4, 5 and 6 are the first three that count.
    assert first([1.0] * 10) == 6
    # A move of 0.1 or more starts the count again, up or down; here the one into epoch 5.
    assert first([1, 1, 1, 1, 2, 2, 2, 2, 2]) == 8
    assert first([1, 1, 1, 1, 0, 0, 0, 0, 0]) == 8
    # Slowly, but for ever, each move below the tolerance: that counts.
    assert first([1 - 0.09 * k for k in range(10)]) == 6
    assert first([1 - 0.2 * k for k in range(10)]) is None
    assert first([1.0] * 5) is None
    # From the first epoch on there is no move into epoch 1.
    immediate = EarlyStop(tolerance=0.1, patience=2, start=1)
    assert [stops_early([1.0] * n, immediate) for n in (1, 2, 3)] == [False, False, True]
    assert not stops_early([1.0, float("nan"), 1.0], immediate)


def test_the_early_stopped_weights_are_those_of_their_epoch() -> None:
    rule = EarlyStop(tolerance=10.0, patience=1, start=2)  # comes true as soon as it may
    result, _ = trained(early_stop=rule, epochs=4)
    shorter, _ = trained(early_stop=rule, epochs=2)
    assert (result.early_stopped_epoch, result.epochs) == (2, 4)  # training goes on
    for name, tensor in result.weights["early-stopped"].items():
        assert torch.equal(tensor, shorter.weights["final"][name])
    assert "early-stopped" not in trained(epochs=4)[0].weights


def test_weights_of_chosen_epochs_are_kept() -> None:
    result, _ = trained(keep=(0, 2, 4), epochs=4)
    assert set(result.weights) == {"best", "final", "epoch-0", "epoch-2", "epoch-4"}
    for epoch in (2, 4):
        for name, tensor in trained(epochs=epoch)[0].weights["final"].items():
            assert torch.equal(result.weights[f"epoch-{epoch}"][name], tensor)
    for name, tensor in network(0).state_dict().items():
        assert torch.equal(result.weights["epoch-0"][name], tensor)


def test_the_best_weights_are_those_of_the_lowest_running_loss() -> None:
    # A rate so large that the loss goes up and down.
    result, _ = trained(optimizer=Optimizer(lr=1.5, weight_decay=0.0), epochs=12)
    history = result.history["loss"]
    assert result.best_epoch == 1 + history.index(min(history))
    assert result.best_epoch < 12  # or this test could not fail
    shorter, _ = trained(optimizer=Optimizer(lr=1.5, weight_decay=0.0), epochs=result.best_epoch)
    for name, tensor in result.weights["best"].items():
        assert torch.equal(tensor, shorter.weights["final"][name])


def test_the_history_holds_running_means_in_train_mode() -> None:
    result, _ = trained(epochs=1, optimizer=Optimizer(lr=1e-30, momentum=0.0, weight_decay=0.0))
    # At a rate of nearly nothing the running mean is the mean over the batches of that order, in train mode.
    order = torch.randperm(50, generator=torch.Generator().manual_seed(derive(0, "order")))[:48]
    inputs, targets = samples().take(order)
    model = network(0).train()
    outputs = torch.cat([model(part) for part in inputs.split(8)])
    loss = F.cross_entropy(outputs.double(), targets).item()
    wrong = (outputs.argmax(1) != targets).double().mean().item()
    assert result.history["loss"] == pytest.approx([loss], rel=1e-6)  # float32 losses
    assert result.history["error"] == pytest.approx([100 * wrong], rel=1e-12)
    assert len(result.history["lr"]) == result.epochs == 1


def test_training_that_diverges_says_when() -> None:
    result, _ = trained(optimizer=Optimizer(lr=1e30), epochs=6)
    assert result.status == "diverged"
    assert result.epochs < 6
    assert result.reason.endswith(f"epoch {result.epochs}")
    assert result.weights == {}
    assert not math.isfinite(result.history["loss"][-1])
    assert all(math.isfinite(loss) for loss in result.history["loss"][:-1])


def test_weights_that_overflow_in_the_last_step_have_diverged() -> None:
    # One step: the loss before it is finite, the weights after it are not.
    result, _ = trained(count=8, optimizer=Optimizer(lr=1e10, weight_decay=1e30), epochs=1)
    assert math.isfinite(result.history["loss"][0])
    assert (result.status, result.weights) == ("diverged", {})
    assert result.reason == "a weight was not finite after epoch 1"


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match="batch_size = 51 is larger than the 50 training samples"):
        trained(batch_size=51)
    assert trained(batch_size=50)[0].status == "ok"


def test_progress_hears_of_every_epoch() -> None:
    heard: list[tuple[int, float]] = []
    result = train(
        network(),
        samples(),
        supervised(F.cross_entropy, {"error": losses.error_percent}),
        recipe(),
        seed=0,
        progress=lambda epoch, loss: heard.append((epoch, loss)),
    )
    assert heard == list(enumerate(result.history["loss"], start=1))


# ---- stopped and continued ----------------------------------------------------------------------------------


class Odd(nn.Module):
    """What a state_dict or a list of parameters may miss: a buffer that is not saved, a tie, a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tied, self.last = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.tied.weight = self.first.weight
        self.first.bias.requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        hidden = torch.relu(self.first(x)) * (1 + 0.1 * torch.sin(self.calls))
        hidden = F.dropout(self.tied(hidden), 0.2)
        return self.last(hidden)


BATCHES, EPOCHS = 6, 4  # 50 samples in batches of 8
STORY = {  # the rate drops in epoch 3, the early stop comes in epoch 3
    "epochs": EPOCHS,
    "schedule": Schedule(name="step", factor=0.1, at=0.5),
    "early_stop": EarlyStop(tolerance=10.0, patience=1, start=3),
    "keep": (0, 1, 3),
}


def built(name: str) -> nn.Module:
    if name == "network":
        return network(0, 0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Odd()


def story(name: str, memory: Memory | None = None, **changes: object) -> TrainedModel:
    settings = recipe(**{**STORY, **changes})
    return train(built(name), samples(), losses.cross_entropy(), settings, seed=0, checkpoints=memory)


@cache
def undisturbed(name: str) -> TrainedModel:
    return story(name)


@pytest.mark.parametrize("name", ["network", "odd"])
@pytest.mark.parametrize("batches", range(1, BATCHES * EPOCHS + 1))
def test_a_training_that_was_stopped_ends_with_the_same_bits(name: str, batches: int) -> None:
    memory = Memory(batches)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with pytest.raises(Stopped):
        story(name, memory)
    assert torch.equal(torch.get_rng_state(), before)  # also on this way out
    torch.manual_seed(batches)  # another process has another global state
    found = story(name, Memory(saved=memory.saved))
    assert set(found.weights) == {"best", "early-stopped", "final", "epoch-0", "epoch-1", "epoch-3"}
    assert found.early_stopped_epoch == 3
    assert_same_bits(found, undisturbed(name))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("batches", [1, 6, 9, 24])
def test_a_training_on_a_gpu_that_was_stopped_ends_with_the_same_bits(batches: int) -> None:
    def on_gpu(memory: Memory | None) -> TrainedModel:
        inputs, targets = samples().head(50)
        raw = RawData(inputs.numpy(), targets.numpy(), inputs.numpy(), targets.numpy(), 3)
        data = Samples(raw.train_inputs, raw.train_targets, raw, "cuda")
        model = network(0, 0.5).cuda()
        return train(model, data, losses.cross_entropy(), recipe(**STORY), seed=0, checkpoints=memory)

    memory = Memory(batches)
    with pytest.raises(Stopped):
        on_gpu(memory)
    torch.cuda.manual_seed(batches)
    assert_same_bits(on_gpu(Memory(saved=memory.saved)), on_gpu(None))


def test_a_training_that_is_stopped_again_and_again_ends_with_the_same_bits() -> None:
    memory, stops = Memory(1), 0
    while True:
        try:
            found = story("network", memory)
        except Stopped:
            memory, stops = Memory(1, memory.saved), stops + 1  # one batch a start
        else:
            break
    assert stops == BATCHES * EPOCHS
    assert_same_bits(found, undisturbed("network"))


def test_a_state_that_lacks_anything_would_be_told() -> None:
    """The comparison above sees a wrong velocity, order, Dropout state or sum: this test spoils each."""
    memory = Memory(9)
    with pytest.raises(Stopped):
        story("network", memory)
    assert memory.saved is not None
    other = torch.Generator().manual_seed(99).get_state()
    spoiled = {
        "velocity": memory.saved.tensors["velocity"] * 2,
        "walk/now/0": other,  # Dropout
        "walk/start/1": other,  # the order of this epoch
        "walk/now/1": other,  # the order of the next
        "walk/sums": memory.saved.tensors["walk/sums"] + 1,
        "model/1.running_mean": memory.saved.tensors["model/1.running_mean"] + 1,
    }
    for name, tensor in spoiled.items():
        assert name in memory.saved.tensors
        state = State({**memory.saved.tensors, name: tensor}, memory.saved.numbers)
        with pytest.raises(AssertionError):
            assert_same_bits(story("network", Memory(saved=state)), undisturbed("network"))


def test_a_diverged_training_that_was_stopped_tells_the_same() -> None:
    memory = Memory(3)
    with pytest.raises(Stopped):
        story("network", memory, optimizer=Optimizer(lr=1e30))
    found = story("network", memory, optimizer=Optimizer(lr=1e30))
    plain = story("network", optimizer=Optimizer(lr=1e30))
    assert found.status == "diverged"
    assert (found.reason, found.epochs, found.weights) == (plain.reason, plain.epochs, {})


def test_progress_goes_on_where_it_was() -> None:
    memory, heard = Memory(2 * BATCHES + 1), []
    with pytest.raises(Stopped):
        story("network", memory)
    model, settings = network(0, 0.5), recipe(**STORY)
    told = lambda epoch, _loss: heard.append(epoch)  # noqa: E731
    train(model, samples(), losses.cross_entropy(), settings, seed=0, progress=told, checkpoints=memory)
    assert heard == [3, 4]


def test_a_checkpoint_of_another_model_is_refused() -> None:
    memory = Memory(1)
    with pytest.raises(Stopped):
        story("odd", memory)
    with pytest.raises(DoesNotFit, match="The checkpoint does not fit the model: for "):
        story("network", memory)

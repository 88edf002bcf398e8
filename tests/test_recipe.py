"""The training recipe: optimisers and schedules against torch's, and every option in a whole training."""

import copy
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

import command
from command import TINY
from lossatlas import specs
from lossatlas.errors import FileError, SpecError, UserError
from lossatlas.landscape.checkpoints import Stopped
from lossatlas.specs import EarlyStop, Optimizer, Schedule, Spec, Train
from lossatlas.sweep.plan import Plan
from lossatlas.tasks import losses
from lossatlas.training import Rates, TrainedModel, fine_tuning, optimizers, rates, stops_early, train
from trainings import Memory, assert_same_bits, network, recipe, samples

RAW = tomllib.loads(TINY.read_text())
PER_EPOCH = 6  # 50 samples in batches of 8


def trained(memory: Memory | None = None, dropout: float = 0.5, **changes: object) -> TrainedModel:
    return train(
        network(0, dropout), samples(), losses.cross_entropy(), recipe(**changes), seed=0, checkpoints=memory
    )


# ---- optimisers -----------------------------------------------------------------------------------------------


def smooth() -> nn.Sequential:
    # Without BatchNorm: a bias before it has gradient 0 up to rounding, which Adam blows up to whole steps.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


OPTIMIZERS: dict[str, tuple[dict[str, Any], Callable[..., torch.optim.Optimizer]]] = {
    "sgd": ({}, torch.optim.SGD),
    "nesterov": ({"name": "sgd", "nesterov": True}, torch.optim.SGD),
    "adam": ({"weight_decay": 0.0}, torch.optim.Adam),
    "adam-decay": ({"name": "adam", "weight_decay": 0.1}, torch.optim.Adam),
    "adam-betas": ({"name": "adam", "betas": (0.5, 0.9), "eps": 1e-3}, torch.optim.Adam),
    "adam-none": ({"name": "adam", "betas": (0.0, 0.0)}, torch.optim.Adam),
    "adamw": ({"weight_decay": 0.1}, torch.optim.AdamW),
    "adamw-betas": ({"name": "adamw", "betas": (0.8, 0.95), "eps": 1e-2, "weight_decay": 0.02}, torch.optim.AdamW),
}


@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_is_torchs(name: str, clips: bool) -> None:
    changes, theirs_of = OPTIMIZERS[name]
    settings = Optimizer.model_validate({"name": name, **changes})
    taken = ["momentum", "nesterov"] if settings.name == "sgd" else ["betas", "eps"]
    ours, theirs = smooth(), smooth()
    mine = optimizers.build(ours, settings)
    options = {key: getattr(settings, key) for key in (*taken, "weight_decay")}
    torchs = theirs_of(theirs.parameters(), lr=0.1, **options)
    batches = list(samples().batches(16)())
    clipped = 0
    for step in range(50):
        mine.lr = torchs.param_groups[0]["lr"] = 0.05 if step < 30 else 0.01
        inputs, targets = batches[step % len(batches)]
        mine.zero_grad()
        torchs.zero_grad()
        for model in (ours, theirs):
            F.cross_entropy(model(inputs.double()), targets).backward()
        if clips:
            most = 0.1 if step % 2 else 100.0
            mine.clip(most)
            clipped += int(nn.utils.clip_grad_norm_(theirs.parameters(), most) > most)
        mine.step()
        torchs.step()
    assert not clips or 0 < clipped < 50
    for one, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        # The same numbers up to the order of a few roundings of 1e-16, in each of 50 steps of a smooth network.
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_adam_in_closed_form() -> None:
    # At a constant gradient the corrected means are the gradient and its square: each step has the length lr.
    model = nn.Linear(3, 1, bias=False).double()
    start = model.weight.detach().clone()
    adam = optimizers.build(model, Optimizer(name="adam", lr=0.1, weight_decay=0.0, eps=1e-30))
    adam.lr = 0.1
    for _ in range(20):
        adam.zero_grad()
        (model.weight * torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)).sum().backward()
        adam.step()
    moved = torch.tensor([[-2.0, 2.0, -2.0]], dtype=torch.float64)
    torch.testing.assert_close(model.weight.detach() - start, moved, rtol=1e-12, atol=0)  # 20 roundings


# ---- schedules ------------------------------------------------------------------------------------------------

EPOCHS, STEPS, PEAK = 8, 8 * PER_EPOCH, 0.2


def ours(schedule: Schedule) -> list[float]:
    settings = recipe(optimizer=Optimizer(lr=PEAK), schedule=schedule, epochs=EPOCHS)
    rate = rates(settings, 50)
    return [rate(step) for step in range(STEPS)]


def torchs(make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    scheduler = make(optimizer)
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def warmed(steps: int) -> Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]:
    return lambda o: lr_scheduler.LinearLR(o, start_factor=1 / steps, total_iters=steps - 1)


def vaswani(step: int) -> float:
    """[Vaswani2017] eq. 3 for a model of dimension d; here relative to its peak at step 10."""
    rate: float = min(step**-0.5, step * 10**-1.5) / 10**-0.5
    return rate


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        (Schedule(), lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
        (Schedule(warmup_steps=9), warmed(9)),
        (Schedule(warmup_epochs=1.5), warmed(9)),
        (Schedule(name="step", at=0.5), lambda o: lr_scheduler.MultiStepLR(o, [STEPS // 2], 0.1)),
        (
            Schedule(name="step", at=(0.25, 0.5, 0.75), factor=0.3),
            lambda o: lr_scheduler.MultiStepLR(o, [STEPS // 4, STEPS // 2, 3 * STEPS // 4], 0.3),
        ),
        (
            Schedule(name="step", at=(0.5, 0.75), warmup_epochs=1),
            lambda o: lr_scheduler.ChainedScheduler(
                [warmed(PER_EPOCH)(o), lr_scheduler.MultiStepLR(o, [STEPS // 2, 3 * STEPS // 4], 0.1)]
            ),
        ),
        (Schedule(name="cosine"), lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS)),
        (Schedule(name="cosine", final=0.1), lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, 0.1 * PEAK)),
        (
            Schedule(name="cosine", warmup_steps=10),
            lambda o: lr_scheduler.SequentialLR(
                o, [warmed(10)(o), lr_scheduler.CosineAnnealingLR(o, STEPS - 10)], [10]
            ),
        ),
        (
            Schedule(name="inverse-sqrt", warmup_steps=10),
            lambda o: lr_scheduler.LambdaLR(o, lambda step: vaswani(step + 1)),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")  # SequentialLR warns of itself
def test_a_schedule_is_torchs(schedule: Schedule, theirs: Any) -> None:
    # torch's cosine goes from rate to rate, which adds roundings of PEAK up.
    assert ours(schedule) == pytest.approx(torchs(theirs), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("at", "epochs", "kept"),  # 0.29 * 100 is 28.999999999999996, 0.07 * 100 is 7.000000000000001
    [
        (0.29, 100, 29),
        (0.57, 100, 57),
        (0.58, 100, 58),
        (0.82, 150, 123),
        (0.7, 90, 63),
        (0.07, 100, 7),
        (0.75, 30, 22),
        (0.5, 4, 2),
        (0.999, 10, 9),
    ],
)
def test_a_decay_comes_after_its_fraction_of_the_epochs_rounded_down(at: float, epochs: int, kept: int) -> None:
    rate = Rates(1.0, Schedule(name="step", at=at), epochs, per_epoch=3)
    assert rate.milestones == (kept,)
    assert [rate(step) for step in range(3 * epochs)] == [1.0] * (3 * kept) + [0.1] * (3 * (epochs - kept))


def test_every_hundredth_of_the_epochs_is_a_whole_number_of_them() -> None:
    for hundredth in range(1, 100):
        for epochs in (100, 200, 1000, 70_000):
            rate = Rates(1.0, Schedule(name="step", at=hundredth / 100), epochs, per_epoch=1)
            assert rate.milestones == (hundredth * epochs // 100,)


def test_the_history_holds_the_rate_of_the_last_step_of_each_epoch() -> None:
    schedule = Schedule(name="cosine", warmup_steps=3)
    rate = rates(recipe(schedule=schedule), 50)
    assert trained(schedule=schedule).history["lr"] == [rate(PER_EPOCH * epoch - 1) for epoch in range(1, 5)]


def test_linear_scaling_carries_the_rate_along_the_batches() -> None:
    raw = copy.deepcopy(RAW)
    raw["train"]["optimizer"] = {"lr": 0.05, "batch_ref": 128}
    spec = specs.validate(raw, "scaled")
    peaks = {train.batch_size: rates(train, 200).peak for train in (spec.at(cell)[1] for cell in spec.cells())}
    assert peaks == {16: 0.05 / 8, 64: 0.05 / 2}
    assert trained(optimizer=Optimizer(lr=0.1, batch_ref=16)).history["lr"] == [0.05] * 4


def test_fewer_samples_get_more_epochs_and_as_many_steps() -> None:
    settings = recipe(epochs=4, n_ref=200)
    assert {n: settings.epochs_on(n) for n in (200, 100, 50, 30)} == {200: 4, 100: 8, 50: 16, 30: 27}
    assert recipe(epochs=4, n_ref=1).epochs_on(50) == 1
    assert trained(n_ref=100, epochs=2).epochs == 4
    # The schedule is stretched with the epochs.
    halved = trained(n_ref=100, epochs=2, schedule=Schedule(name="step", at=0.5)).history["lr"]
    assert halved == [0.1, 0.1, 0.1 * 0.1, 0.1 * 0.1]


def test_a_warm_up_longer_than_the_training_is_refused() -> None:
    with pytest.raises(UserError, match=r"The training has 24 steps in 4 epochs .* its warm-up takes 24"):
        trained(schedule=Schedule(warmup_steps=24))
    assert trained(schedule=Schedule(warmup_steps=23)).status == "ok"


@pytest.mark.parametrize(
    "schedule", [Schedule(name="cosine", warmup_epochs=1), Schedule(name="inverse-sqrt", warmup_steps=3)]
)
def test_the_early_stop_heeds_the_loss_whatever_the_schedule(schedule: Schedule) -> None:
    rule = EarlyStop(tolerance=0.06, patience=2, start=3)
    result = trained(schedule=schedule, early_stop=rule, epochs=12, dropout=0.0)
    history = result.history["loss"]
    first = next(n for n in range(1, 13) if stops_early(history[:n], rule))
    assert 3 < first < 12
    assert (result.early_stopped_epoch, result.epochs) == (first, 12)
    kept = trained(schedule=schedule, early_stop=rule, epochs=12, dropout=0.0, keep=(first,)).weights
    assert all(torch.equal(t, kept[f"epoch-{first}"][name]) for name, t in kept["early-stopped"].items())


# ---- stopped and continued ------------------------------------------------------------------------------------

RECIPES: dict[str, dict[str, object]] = {
    "nesterov": {
        "optimizer": Optimizer(nesterov=True, lr=0.1, batch_ref=16),
        "schedule": Schedule(name="step", at=(0.25, 0.5), factor=0.5, warmup_steps=8),
    },
    "adam": {"optimizer": Optimizer(name="adam", lr=0.01), "schedule": Schedule(name="cosine", warmup_epochs=1.5)},
    "adamw": {
        "optimizer": Optimizer(name="adamw", lr=0.01),
        "schedule": Schedule(name="inverse-sqrt", warmup_steps=7),
        "clip": 0.5,
    },
    "bfloat16": {"precision": "bfloat16", "schedule": Schedule(name="cosine", final=0.1)},
    "equal-steps": {"epochs": 2, "n_ref": 100, "schedule": Schedule(name="step", at=0.5)},
}


@pytest.mark.parametrize("stop", [1, 6, 8, 9, 23, 24])
@pytest.mark.parametrize("name", RECIPES)
def test_a_training_that_was_stopped_ends_with_the_same_bits(name: str, stop: int) -> None:
    memory = Memory(stop)
    with pytest.raises(Stopped):
        trained(memory, **RECIPES[name])
    torch.manual_seed(stop)
    assert_same_bits(trained(Memory(saved=memory.saved), **RECIPES[name]), trained(**RECIPES[name]))


def test_a_wrong_moment_or_position_would_be_told() -> None:
    """The comparison above sees it: this test spoils the state of Adam, and the step that the schedule is at."""
    memory = Memory(9)
    with pytest.raises(Stopped):
        trained(memory, **RECIPES["adam"])
    assert memory.saved is not None
    whole = trained(**RECIPES["adam"])
    for spoil in ("mean", "square", "batches"):
        saved = copy.deepcopy(memory.saved)
        if spoil == "batches":
            saved.numbers["walk"]["batches"] -= 1
        else:
            saved.tensors[spoil].mul_(2)
        with pytest.raises(AssertionError):
            assert_same_bits(trained(Memory(saved=saved), **RECIPES["adam"]), whole)


def test_the_recipes_above_train() -> None:
    plain = trained(dropout=0.0)
    for name, changes in RECIPES.items():
        result = trained(dropout=0.0, **changes)
        losses_ = result.history["loss"]
        assert result.status == "ok"
        assert losses_[-1] < losses_[0], name
        assert losses_ != plain.history["loss"]


# ---- precision and clipping -----------------------------------------------------------------------------------


def test_in_bfloat16_only_the_forward_pass_is_rounded() -> None:
    rounded, plain = trained(precision="bfloat16", dropout=0.0), trained(dropout=0.0)
    assert (rounded.about, plain.about) == ({"precision": "bfloat16"}, {})
    floating = [t for t in rounded.weights["final"].values() if t.is_floating_point()]
    assert {t.dtype for t in floating} == {torch.float32}
    assert rounded.history["loss"] != plain.history["loss"]
    # Outputs are rounded to 8 bits, 2^-9 of them, and so is what the four epochs make of it.
    assert rounded.history["loss"] == pytest.approx(plain.history["loss"], rel=0.05)
    # Updates far below the resolution of bfloat16 are not lost.
    slow = trained(precision="bfloat16", optimizer=Optimizer(lr=1e-5, momentum=0.0, weight_decay=0.0), epochs=1)
    assert not torch.equal(slow.weights["final"]["4.weight"], network().state_dict()["4.weight"])
    torch.testing.assert_close(
        slow.weights["final"]["4.weight"], network().state_dict()["4.weight"], atol=1e-3, rtol=0
    )


def test_what_does_not_clip_changes_nothing() -> None:
    # The factor is then min(1, ...) = 1 exactly.
    assert_same_bits(trained(clip=1e6), trained())
    assert trained(clip=0.01).history["loss"] != trained().history["loss"]


@pytest.mark.parametrize("largest", [float("inf"), float("nan")])
def test_clipping_hides_no_divergence(largest: float) -> None:
    model = nn.Linear(2, 1, bias=False)
    sgd = optimizers.build(model, Optimizer())
    sgd.lr = 0.1
    assert model.weight.grad is not None
    model.weight.grad[0, 0] = largest
    sgd.clip(1.0)
    sgd.step()
    assert not sgd.is_finite()


# ---- starting from given weights ------------------------------------------------------------------------------


def saved(folder: Path, model: nn.Module, name: str = "w.safetensors") -> str:
    path = folder / name
    if name.endswith(".pt"):
        torch.save(model.state_dict(), path)
    else:
        safetensors.torch.save_file(model.state_dict(), path)
    return str(path)


def with_head(classes: int) -> nn.Sequential:
    model = network(5)
    model[4] = nn.Linear(8, classes)
    return model


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_all_seeds_start_from_given_weights(name: str, tmp_path: Path) -> None:
    settings = recipe(init=saved(tmp_path, network(5), name), keep=(0,))
    for seed in (0, 1):
        result = train(network(seed), samples(), losses.cross_entropy(), settings, seed=seed)
        for key, tensor in network(5).state_dict().items():
            assert torch.equal(result.weights["epoch-0"][key], tensor)
        assert result.about == {}
    # As if the model had been initialised so.
    same = train(network(5), samples(), losses.cross_entropy(), recipe(keep=(0,)), seed=1)
    assert_same_bits(result, same)


def test_a_head_of_another_task_stays_freshly_initialised(tmp_path: Path) -> None:
    settings = recipe(init=saved(tmp_path, with_head(7)), keep=(0,))
    result = train(network(0), samples(), losses.cross_entropy(), settings, seed=0)
    start = result.weights["epoch-0"]
    fresh, given = network(0).state_dict(), network(5).state_dict()
    assert result.about == {"fresh_layer": "4"}
    for key in start:
        assert torch.equal(start[key], (fresh if key.startswith("4.") else given)[key]), key


def test_weights_that_differ_elsewhere_are_refused_by_name(tmp_path: Path) -> None:
    wider = nn.Sequential(nn.Linear(5, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 3))
    with pytest.raises(UserError, match=r"of another shape \(0.weight \[9, 5\] for \[8, 5\]."):
        trained(init=saved(tmp_path, wider))
    with pytest.raises(UserError, match=r"2 missing \(4.weight, 4.bias\)"):
        trained(init=saved(tmp_path, network()[:4]))
    with pytest.raises(FileError, match="cannot be read"):
        trained(init=str(tmp_path / "nothing.pt"))


def test_a_fine_tuning_that_was_stopped_ends_with_the_same_bits(tmp_path: Path) -> None:
    changes = {"init": saved(tmp_path, with_head(7)), "keep": (0, 2)}
    memory = Memory(9)
    with pytest.raises(Stopped):
        trained(memory, **changes)
    assert_same_bits(trained(Memory(saved=memory.saved), **changes), trained(**changes))


def tuned(path: str, **train: Any) -> Spec:
    raw = copy.deepcopy(RAW)
    raw["train"] |= {"init": path, **train}
    return specs.validate(raw, "tuned")


def test_the_key_hangs_on_the_content_of_the_weights_not_on_their_place(tmp_path: Path) -> None:
    def keys(spec: Spec) -> set[str]:
        return {step.key for cell in Plan(spec, "0" * 32) for step in cell.steps}

    one = fine_tuning.pinned(tuned(saved(tmp_path, network(5))))
    moved = fine_tuning.pinned(tuned(saved(tmp_path, network(5), "moved.safetensors")))
    other = fine_tuning.pinned(tuned(saved(tmp_path, network(6), "other.safetensors")))
    plain = specs.validate(RAW, "plain")
    assert keys(one) == keys(moved)
    assert not keys(one) & keys(other)
    assert not keys(one) & keys(plain)
    assert fine_tuning.pinned(plain) is plain
    # What a run folder keeps is the pinned spec, and it reads it back as it was.
    again = specs.validate(one.model_dump(mode="json", exclude_unset=True), "again")
    assert keys(again) == keys(one)


def test_weights_that_have_changed_since_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, network(5))
    spec = fine_tuning.pinned(tuned(path))
    saved(tmp_path, network(6))
    with pytest.raises(FileError, match="are others than the spec names: their SHA-256 is "):
        fine_tuning.pinned(spec)
    with pytest.raises(FileError, match="are others than the spec names"):
        trained(init=path, init_sha256=spec.train.init_sha256)


# ---- specs ----------------------------------------------------------------------------------------------------


def test_what_is_not_given_is_not_in_the_key() -> None:
    assert Train(epochs=1).content() == {"epochs": 1}
    spelled = Schedule(name="step", at=(0.75,), warmup_steps=0, final=0.0)
    assert Train(epochs=1, schedule=spelled).content() == {"epochs": 1, "schedule": {"name": "step"}}
    assert recipe(augment=("flip", "crop")).content() == recipe(augment=("crop", "flip", "crop")).content()


@pytest.mark.parametrize(
    ("train", "line"),
    [
        ({"optimizer": {"name": "lion"}}, "train.optimizer.name: \"lion\" was given; input should be 'sgd', 'ada"),
        ({"optimizer": {"name": "adam"}}, "train.optimizer.lr: missing; adam must be given one, "),
        (
            {"optimizer": {"name": "adamw", "lr": 1e-3, "momentum": 0.9}},
            "train.optimizer.momentum: given although adamw has none; it is for sgd",
        ),
        (
            {"optimizer": {"betas": [0.9, 0.99]}},
            "train.optimizer.betas: given although sgd has none; it is for adam and adamw",
        ),
        ({"optimizer": {"name": "adam", "lr": 1, "betas": [0.9, 1]}}, "train.optimizer.betas: [0.9, 1] was given"),
        ({"optimizer": {"name": "adam", "lr": 1, "betas": [0.9]}}, "train.optimizer.betas: [0.9] was given; allo"),
        ({"optimizer": {"name": "adam", "lr": 1, "eps": 0}}, "train.optimizer.eps: 0 was given; input should be "),
        ({"optimizer": {"momentum": 0.0, "nesterov": True}}, "train.optimizer.nesterov: true was given; it needs"),
        ({"optimizer": {"batch_ref": 0}}, "train.optimizer.batch_ref: 0 was given; input should be greater than "),
        ({"schedule": {"name": "linear"}}, "train.schedule.name: \"linear\" was given; input should be 'constant"),
        ({"schedule": {"at": []}}, "train.schedule.at: [] was given; input should be less than 1 and greater tha"),
        ({"schedule": {"at": [0.5, 0.5]}}, "train.schedule.at: [0.5, 0.5] was given; input should be less than 1"),
        ({"schedule": {"at": [0.5, 1]}}, "train.schedule.at: [0.5, 1] was given; input should be less than 1 and"),
        ({"schedule": {"at": "0.5"}}, 'train.schedule.at: "0.5" was given; input should be less than 1 and'),
        ({"schedule": {"final": 0.1}}, "train.schedule.final: given although constant has none; it is for cosine"),
        ({"schedule": {"name": "cosine", "final": 2}}, "train.schedule.final: 2 was given; input should be less "),
        ({"schedule": {"name": "inverse-sqrt"}}, "train.schedule.name: inverse-sqrt was given without a warm-up,"),
        ({"schedule": {"warmup_steps": -1}}, "train.schedule.warmup_steps: -1 was given; input should be greater"),
        (
            {"schedule": {"warmup_steps": 5, "warmup_epochs": 1}},
            "train.schedule.warmup_steps: 5 was given beside warmup_epochs; remove one of the two",
        ),
        ({"schedule": {"warmup_epochs": 8}}, "train.schedule.warmup_epochs: 8 was given; allowed are less than 8"),
        ({"augment": ["rotate"]}, "train.augment.0: \"rotate\" was given; input should be 'crop' or 'flip'"),
        ({"clip": 0}, "train.clip: 0 was given; input should be greater than 0"),
        ({"precision": "float16"}, "train.precision: \"float16\" was given; input should be 'float32' or 'bfloat"),
        ({"n_ref": 0}, "train.n_ref: 0 was given; input should be greater than or equal to 1"),
        ({"init_sha256": "0" * 64}, "train.init_sha256: given without weights; give their file as train.init, or"),
        ({"init": "w.pt", "init_sha256": "0"}, "train.init_sha256: \"0\" was given; string should match pattern "),
        ({"keep": [9]}, "train.keep: [9] was given; allowed are epochs from 0 (the initialisation) to 8, each on"),
        ({"keep": [-1], "n_ref": 9}, "train.keep: [-1] was given; allowed are epochs from 0 (the initialisation)"),
    ],
)  # fmt: skip
def test_a_wrong_value_gives_one_line(train: dict[str, Any], line: str) -> None:
    raw = copy.deepcopy(RAW)
    raw["train"] = {"epochs": 8, **train}
    with pytest.raises(SpecError) as caught:
        specs.validate(raw, "wrong")
    assert len(caught.value.problems) == 1, caught.value.problems
    assert caught.value.problems[0].startswith(line)


def test_the_rate_of_adam_may_be_the_temperature() -> None:
    raw = copy.deepcopy(RAW)
    raw["train"] = {"epochs": 8, "optimizer": {"name": "adam"}}
    raw["temperature"] = {"lr": [0.1, 0.01]}
    assert specs.validate(raw, "adam").at((2, 0.01))[1].optimizer.lr == 0.01


def test_a_run_with_everything(tmp_path: Path) -> None:
    spec = command.edited(
        tmp_path,
        optimizer='optimizer = { name = "adamw", lr = 0.01, betas = [0.9, 0.98] }',
        schedule='schedule = { name = "inverse-sqrt", warmup_epochs = 0.5 }\nclip = 1.0\nprecision = "bfloat16"\n'
        'augment = ["flip", "crop"]',
        connectivity="",
        hessian="",
    )
    done = command.run(tmp_path, "run", spec, "--out", "run")
    assert done.code == 0, done.err
    assert "failed" not in done.out
    kept = [json.loads(file.read_text())["train"] for file in (tmp_path / "run/store/train").rglob("spec.json")]
    assert len(kept) == 8
    for train_ in kept:
        assert train_["optimizer"] == {"name": "adamw", "lr": 0.01, "betas": [0.9, 0.98]}
        assert train_["schedule"] == {"name": "inverse-sqrt", "warmup_epochs": 0.5}
        assert (train_["clip"], train_["precision"], train_["augment"]) == (1.0, "bfloat16", ["crop", "flip"])

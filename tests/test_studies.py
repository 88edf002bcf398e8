"""Studies in the manner of [Xu2024]: what they ask for, what they keep, and that every preset runs through."""

import json
import os
import re
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import xarray as xr
from matplotlib.figure import Figure

import command
import image_folders as layouts
import libraries
from lossatlas import local_results, presets, registry
from lossatlas.cli.study import _pinned as pinned
from lossatlas.errors import SpecError, UserError
from lossatlas.figures.captions import captioned
from lossatlas.landscape import directions
from lossatlas.landscape.angles import log_density
from lossatlas.landscape.checkpoints import StopFlag
from lossatlas.landscape.lanczos import Eigenpairs, eigenpairs
from lossatlas.settings import content_key
from lossatlas.studies import captions, probing, reading, slicing, vectors, ways, work
from lossatlas.studies.catalogue import CURVES, FIGURES
from lossatlas.studies.index import Entry, Index
from lossatlas.studies.items import Item, Lacking, Unavailable, Undefined
from lossatlas.studies.numbers import Table, tables
from lossatlas.studies.pictures import Look, Panel, Picture
from lossatlas.studies.schema import Header, KnownData, Sizes, Study
from lossatlas.studies.subject import Subject
from lossatlas.sweep.engine import Engine
from lossatlas.sweep.plan import Plan
from lossatlas.sweep.store import Store
from lossatlas.tasks import from_torchvision
from lossatlas.tasks.corruption import corrupted
from lossatlas.tasks.data import digits

IMAGES = 140  # a part: a batch of 128 and a rest
# What --scale leaves is still too much for a test.
LITTLE = {
    "images": 16,
    "points": 11,
    "grid": 5,
    "gaussians": 2,
    "pairs": 2,
    "mining_epochs": 2,
    "draws": 4,
    "probes": 2,
    "steps": 8,
}
ADAM = {"name": "adam", "lr": 0.001}
TINY_TRAINING = {"train.epochs": 2, "train.keep": [0, 1, 2], "models.resnet32.model.width": 2}


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits: dict[str, layouts.Split] = {}
    for seed, part in enumerate(("train", "test")):
        images = [layouts.encoded(pixels, "PNG") for pixels in layouts.random_images(IMAGES, seed)]
        splits[part] = images, np.arange(IMAGES) % 10
    return layouts.write_parquet(tmp_path_factory.mktemp("cifar10"), splits, "img", "label")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store for all presets."""
    return tmp_path_factory.mktemp("store")


def options(data: Path, **further: Any) -> list[str]:
    given = {"data.cifar10.path": str(data), **{f"sizes.{name}": size for name, size in LITTLE.items()}, **further}
    texts = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given.items()]
    return [part for text in texts for part in ("--set", text)]


def study(figure: int, **further: Any) -> Study:
    given = {f"sizes.{name}": size for name, size in LITTLE.items()}
    return reading.scaled(reading.read(f"xu2024/fig{figure}", {**given, **further}), 0.001)


def subject_of(asked: Study, store: Path, known: KnownData | None = None) -> Subject:
    facts = registry.DATA["cifar10"].facts
    assert facts is not None
    data = {name: known or KnownData(facts, "a fingerprint") for name in asked.data}
    return work.subjects(asked, work.Sources(asked), data, Store(store), torch.device("cpu"))[0]


# ---- every preset


@pytest.mark.parametrize("name", presets.studies())
def test_a_preset_runs_through_at_a_tiny_scale(name: str, cifar10: Path, shared: Path, tmp_path: Path) -> None:
    arguments = ("run", name, "--out", "out", "--store", shared, "--scale", 0.001, *options(cifar10))
    done = command.run(tmp_path, *arguments)
    assert done.code == 0, done.err
    assert "not drawn" not in done.err
    drawn = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    stem = f"fig{reading.read(name).study.figure:02}-"
    assert drawn
    assert all(path.startswith(stem) and path.endswith((".pdf", ".png")) for path in drawn)
    assert len([path for path in drawn if path.endswith(".pdf")]) == done.out.count(".pdf")
    page = (tmp_path / "out" / "index.md").read_text()
    assert "Reduced: scaled by 0.001" in page
    assert f"Reduced {'resnet32' if name.endswith('17') else 'mlp'}: epochs 2/200, width 4/" in page
    links = re.findall(r"\]\(figures/([^)]+)\)", page)
    assert sorted(links) == drawn  # each figure as PNG and as PDF
    told = page.split("\n### ")[1:]
    assert all("In the manner of [Xu2024]" in section for section in told)
    has_numbers = [re.search(r"^\| --- .*\n\| .*\d", section, re.MULTILINE) is not None for section in told]
    in_space = [f"{section.splitlines()[0]}-contours.pdf" in drawn for section in told]
    assert has_numbers == [not here for here in in_space]


def test_there_is_one_preset_a_figure() -> None:
    assert {reading.read(name).study.figure for name in presets.studies()} == set(FIGURES)
    assert all(reading.read(name).name == name for name in presets.studies())


def test_the_recipe_is_that_of_the_paper() -> None:
    asked = reading.read("xu2024/fig2")
    assert len(asked.learners) == 15
    for name, learner in asked.learners.items():
        if name == "resnext101":
            assert learner.train is None
            continue
        assert learner.train is not None
        assert (learner.train.epochs, learner.train.batch_size) == (200, 128)
        assert learner.train.keep == (0, 10, 50, 100, 200)
        assert learner.train.optimizer.weight_decay == 5e-4
        assert learner.train.optimizer.lr == (0.01 if name == "mobilenetv2" else 0.1)


# ---- what is kept


def test_nothing_is_done_twice_and_figures_share_their_models(cifar10: Path, tmp_path: Path) -> None:
    arguments = ["--store", "store", "--scale", 0.001, *options(cifar10)]
    assert command.run(tmp_path, "run", "xu2024/fig7", "--out", "seven", *arguments).code == 0
    first = command.steps_done(tmp_path / "store")
    assert sum(step.startswith("train/") for step in first) == 2
    assert command.run(tmp_path, "run", "seven").code == 0  # the folder knows its store and its scale
    assert command.steps_done(tmp_path / "store") == first
    assert command.run(tmp_path, "run", "xu2024/fig12", "--out", "twelve", *arguments).code == 0
    both = command.steps_done(tmp_path / "store")
    assert first.items() <= both.items()
    assert sum(step.startswith("train/") for step in both) == 2
    pairs = [{step for step in steps if step.startswith("local-eigenpairs/")} for steps in (first, both)]
    assert pairs[0] == pairs[1]  # those of Figure 12 are among those of Figure 7


@pytest.mark.parametrize(("blow", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_study_that_was_stopped_goes_on(
    blow: signal.Signals, code: int, cifar10: Path, shared: Path, tmp_path: Path
) -> None:
    arguments = ["run", "xu2024/fig15", "--scale", 0.001, *options(cifar10)]
    assert command.run(tmp_path, *arguments, "--out", "whole", "--store", shared).code == 0
    running = command.Running(tmp_path, [*arguments, "--out", "stopped"], cwd=tmp_path)
    running.wait_for(lambda: len(command.steps_done(tmp_path / "stopped" / "store")) >= 4)
    assert running.process.pid is not None
    os.kill(running.process.pid, blow)
    assert running.finish().code == code, running.err
    assert code != 130 or "`lossatlas run stopped` continues" in running.err
    before = command.steps_done(tmp_path / "stopped" / "store")
    assert command.run(tmp_path, "run", "stopped").code == 0
    after = command.steps_done(tmp_path / "stopped" / "store")
    assert before.items() <= after.items()
    assert len(before) < len(after)
    for path in (tmp_path / "stopped" / "store").glob("local-*/*/*/dataset.nc"):
        twin = shared / path.relative_to(tmp_path / "stopped" / "store")
        xr.testing.assert_identical(xr.load_dataset(path), xr.load_dataset(twin))


def test_status_and_verify_know_a_study(cifar10: Path, tmp_path: Path) -> None:
    arguments = ("run", "xu2024/fig6", "--out", "six", "--scale", 0.001, *options(cifar10))
    assert command.run(tmp_path, *arguments).code == 0
    told = command.status(tmp_path, tmp_path / "six")
    assert told["steps"] == {"train": {"done": 2, "total": 2}, "local-distances": {"done": 1, "total": 1}}
    assert command.run(tmp_path, "status", "six", "--watch").out == "3 of 3 steps done.\n"
    refused = command.run(tmp_path, "cancel", "six")
    assert (refused.code, "six holds a study, which has no jobs" in refused.err) == (2, True)
    assert command.run(tmp_path, "verify", "six").code == 0
    (path,) = (tmp_path / "six" / "store").glob("local-distances/*/*/dataset.nc")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = command.run(tmp_path, "verify", "six", "--repair")
    assert found.code == 1
    assert "dataset.nc" in found.out
    assert "1 of 2" not in command.run(tmp_path, "status", "six").err
    assert command.run(tmp_path, "run", "six").code == 0
    assert command.run(tmp_path, "verify", "six").code == 0


def test_keys_stay_what_they_are() -> None:
    """If this fails, raise the version of the step whose numbers change, or keep the content as it was."""
    keys = []
    for figure in FIGURES:
        subject = subject_of(study(figure), Path("nowhere"))
        assert subject.name == ("resnet32" if figure == 17 else "mlp")
        pictures = work.pictures(study(figure), subject)
        keys += [item.key for item in work.items(pictures)]
    assert len(set(keys)) < len(keys)  # figures share results
    assert content_key(sorted(set(keys))) == "969bc279dc7cf565bde818c93c118536"


def test_eigenpairs_come_back_as_they_were() -> None:
    matrix = torch.diag(torch.tensor([3.0, 1.0, -2.0, 0.5], dtype=torch.float64))
    found = eigenpairs(_Matrix(matrix), 1, which="both", seed=0)
    again = vectors._unpacked(vectors._packed(found))
    assert isinstance(again, Eigenpairs)
    for name in Eigenpairs.__dataclass_fields__:
        before, after = getattr(found, name), getattr(again, name)
        same = torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after
        assert same, name


class _Matrix:
    def __init__(self, matrix: torch.Tensor) -> None:
        self._matrix = matrix
        self.size, self.dtype, self.device = len(matrix), matrix.dtype, matrix.device

    def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
        return self._matrix @ v


# ---- what is computed


def test_a_curve_is_that_of_the_trained_weights(cifar10: Path, tmp_path: Path) -> None:
    """The loss towards the other training, by hand: from the weights in the store and the images."""
    asked = study(4, **{"data.cifar10.path": str(cifar10)})
    store = Store(tmp_path)
    sources = work.Sources(asked)
    (subject,) = work.subjects(asked, sources, sources.known(), store, torch.device("cpu"))
    listener = _Silent()
    assert not work.train(subject, store, tmp_path / "failed", listener, StopFlag())
    pictures = work.pictures(asked, subject)
    work.make(subject, work.items(pictures), tmp_path / "failed", lambda _place, _count: None, StopFlag())
    panel = pictures[0].panels[-1]
    assert panel.title == "epoch 2: E'=2"
    dataset = subject.shelf.get(panel.item)
    states = [store.arrays("train", step.key, "epoch-2") for step in subject.training]
    raw = sources.load("cifar10")
    x = (torch.from_numpy(raw.train_inputs[:16]).float() / 255 - _wide(raw.mean)) / _wide(raw.std)
    y = torch.from_numpy(raw.train_targets[:16])
    assert None not in states
    for lam, loss in zip(dataset["lambda"].values, dataset["loss"].values[0], strict=True):
        w = {
            name: torch.from_numpy(states[0][name] + np.float32(lam) * (states[1][name] - states[0][name]))  # type: ignore[index]
            for name in states[0]  # type: ignore[union-attr]
        }
        hidden = F.relu(F.linear(x.flatten(1), w["1.weight"], w["1.bias"]))
        expected = F.cross_entropy(F.linear(hidden, w["3.weight"], w["3.bias"]), y)
        assert loss == pytest.approx(expected.item(), rel=1e-4)  # float32: 3,072 products a unit
    assert dataset.attrs["guessing"] == pytest.approx(np.log(10))
    path = store.folder(panel.item.step, panel.item.key) / "dataset.nc"
    xr.testing.assert_identical(local_results.load(path), dataset)


NOISY = """
name = "noisy"
[study]
figure = 9
models = ["small"]
[data.digits]
n_train = 300
n_test = 40
label_noise = 0.5
image_noise = { kind = "gaussian", magnitude = 64.0, fraction = 0.5 }
test_noise = true
[models.small]
title = "a small network"
data = "digits"
model = { name = "mlp", width = 32 }
train = { epochs = 2, keep = [0, 1, 2], optimizer = { lr = 0.05 } }
[sizes]
points = 5
grid = 3
pairs = 2
mining_epochs = 1
"""


def subjects_of(asked: Study, store: Path) -> list[Subject]:
    sources = work.Sources(asked)
    return work.subjects(asked, sources, sources.known(), Store(store), torch.device("cpu"))


def trained(subject: Subject, store: Path) -> None:
    assert not work.train(subject, Store(store), store / "failed", _Silent(), StopFlag())


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A model that was trained on the first digits, with noise."""
    store = tmp_path_factory.mktemp("noisy")
    (subject,) = subjects_of(reading.parse(NOISY, "noisy"), store)
    trained(subject, store)
    return subject


def test_what_was_trained_on_is_looked_at(noisy: Subject) -> None:
    """The losses by hand: of the weights in the store, on the data as a grid would train on them."""
    asked = reading.parse(NOISY, "noisy").data["digits"]
    learnt = corrupted(digits(), asked)
    assert (len(learnt.train_targets), len(learnt.test_targets)) == (300, 40)
    assert 0.3 < (learnt.train_targets != digits().train_targets[:300]).mean() < 0.7
    w = noisy.network(noisy.late).state_dict()
    train, test = (learnt.train_inputs, learnt.train_targets), (learnt.test_inputs, learnt.test_targets)
    for part, (x, y) in (("train", train), ("test", test)):
        inputs = (torch.from_numpy(x).float().flatten(1) / 16 - 0.305) / 0.376
        outputs = F.linear(F.relu(F.linear(inputs, w["1.weight"], w["1.bias"])), w["3.weight"], w["3.bias"])
        found = noisy.objective(noisy.late, "eval", part)
        expected = F.cross_entropy(outputs, torch.from_numpy(y)).item()
        assert found(found.center).item() == pytest.approx(expected, rel=1e-5)  # float32
    assert noisy.images == 300
    searched = vectors.w_peak(noisy, noisy.late)
    assert searched.content["images"] == 300


def test_keys_tell_noise_and_nothing_else(noisy: Subject, tmp_path: Path) -> None:
    """What was looked at without its noise has another key; what no setting changes keeps the one that it had."""
    kept = {"data": "digits", "label_noise": 0.5, "test_noise": True}
    held_out = probing.held_out(noisy, noisy.late, ways.gaussian(noisy, noisy.late))
    assert held_out.content["weights"]["noise"]["label_noise"] == kept["label_noise"]
    assert (held_out.content["test_noise"], held_out.content["n_test"]) == (True, 40)
    plain = {"image_noise": None, "label_noise": 0.0, "test_noise": False, "n_test": 300}
    changes = {f"data.digits.{name}": value for name, value in plain.items()}
    (clean,) = subjects_of(reading.parse(NOISY, "clean", changes), tmp_path)
    item = probing.held_out(clean, clean.late, ways.gaussian(clean, clean.late))
    assert item.content["weights"] == {"train": clean.training[0].key, "epoch": 2}
    assert item.content.keys() == {"weights", "images", "ways", "pairs", "points", "batchnorm"}


def test_a_caption_tells_what_was_done_to_the_data(noisy: Subject) -> None:
    asked = reading.parse(NOISY, "noisy")
    text = captions.caption(asked, noisy, work.pictures(asked, noisy)[0], {})
    assert "(the first 300 images, 50 % of the labels replaced, gaussian noise on 50 % of the images)" in text
    assert "Mean cross entropy of 300 training images." in text


def _wide(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values).view(3, 1, 1)


class _Silent:
    def begins(self, step: Any) -> None: ...
    def finished(self, step: Any, status: str) -> None: ...
    def skipped(self, step: Any) -> None: ...
    def advanced(self, step: Any, epoch: int, epochs: int, loss: float) -> None: ...


def test_a_training_that_diverges_is_told_and_not_drawn(cifar10: Path, tmp_path: Path) -> None:
    given = options(cifar10, **{"train.optimizer.lr": 1e30})
    done = command.run(tmp_path, "run", "xu2024/fig6", "--out", "out", "--scale", 0.001, *given)
    assert done.code == 0, done.err
    assert "the training of seed 0 diverged" in done.err
    assert "diverged" in (tmp_path / "out" / "index.md").read_text()
    assert not (tmp_path / "out" / "figures").exists()


def test_what_raises_is_noted_and_the_rest_is_made(tmp_path: Path) -> None:
    subject = subject_of(study(12), tmp_path / "store")

    def full() -> xr.Dataset:
        raise RuntimeError("no memory left")

    first = Item("local-eigenpairs", {"of": 1}, 0.0, full)
    second = Item("local-line", {"of": 2}, 0.0, xr.Dataset, (first,))
    third = Item("local-line", {"of": 3}, 0.0, xr.Dataset)
    wanted = [first, second, third]
    failures = work.make(subject, wanted, tmp_path / "failed", lambda _place, _count: None, StopFlag())
    assert failures.keys() == {first.key, second.key}
    assert "no memory left" in failures[first.key]
    assert [subject.shelf.has(item) for item in wanted] == [False, False, True]
    (note,) = (tmp_path / "failed").iterdir()
    assert "Traceback" in json.loads(note.read_text())["trace"]


def test_a_result_that_cannot_be_had_is_not_looked_for_again(tmp_path: Path) -> None:
    subject, calls = subject_of(study(12), tmp_path / "store"), []

    def none() -> xr.Dataset:
        calls.append(1)
        raise Undefined("there are no eigenvectors")

    item = Item("local-surface", {}, 0.0, none)
    for _ in range(2):
        with pytest.raises(Unavailable, match="no eigenvectors"):
            subject.shelf.get(item)
    assert len(calls) == 1


@pytest.mark.parametrize("error", [UserError("The hub does not answer."), Lacking("the weights are not there")])
def test_what_may_be_mended_is_tried_again(error: Exception, tmp_path: Path) -> None:
    subject, answers = subject_of(study(12), tmp_path / "store"), [error, None]

    def second_time() -> xr.Dataset:
        if (answer := answers.pop(0)) is not None:
            raise answer
        return xr.Dataset()

    item = Item("local-surface", {}, 0.0, second_time)
    for told in ([str(error)], []):
        failures = work.make(subject, [item], tmp_path / "failed", lambda _place, _count: None, StopFlag())
        assert [text for text in told if text not in failures[item.key]] == []
        assert len(failures) == len(told)
    assert subject.shelf.has(item)


def test_parallel_directions_span_no_plane_and_that_is_kept(noisy: Subject) -> None:
    way = ways.gaussian(noisy, noisy.late)
    item = slicing.surface(noisy, noisy.late, [way, way])
    for _ in range(2):
        with pytest.raises(Unavailable, match="linearly dependent"):
            noisy.shelf.get(item)
    assert noisy.shelf.has(item)


def test_a_direction_without_length_is_given_none(noisy: Subject) -> None:
    nothing = ways.Way(
        "Neg. Grad.", {"of": 1}, lambda: directions.given(at, torch.zeros_like(at.center), name="0")
    )
    at, full = noisy.objective(noisy.late), ways.gaussian(noisy, noisy.late)
    for item in (
        slicing.surface(noisy, noisy.late, [ways.as_long_as(nothing, full), full]),
        probing.distances(noisy, noisy.late, nothing),
        probing.rivals(noisy, noisy.late, nothing, full, own_best=True),
    ):
        with pytest.raises(Unavailable, match=r"the direction Neg\. Grad\. has the length 0"):
            noisy.shelf.get(item)
        assert noisy.shelf.has(item)


def test_results_wait_for_a_training_that_failed(tmp_path: Path) -> None:
    asked = reading.parse(NOISY, "noisy")
    (subject,) = subjects_of(asked, tmp_path)
    item = slicing.line(subject, subject.late, [ways.gaussian(subject, subject.late)])
    steps = ([item], tmp_path / "failed", lambda _place, _count: None, StopFlag())
    failures = work.make(subject, *steps)
    assert "the weights of epoch 2, seed 0, are not in the store" in failures[item.key]
    trained(subject, tmp_path)
    assert work.make(subject, *steps) == {}
    assert np.isfinite(subject.shelf.get(item)["loss"]).all()


def test_an_eigenvector_that_was_not_looked_for_is_not_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = _Matrix(torch.diag(torch.tensor([3.0, 1.0, -2.0, 0.5], dtype=torch.float64)))
    monkeypatch.setattr(vectors, "eigenpairs", lambda *_: eigenpairs(matrix, 1, which="both", seed=0))
    subject = subject_of(study(12), Path("nowhere"))
    for sign in "PN":
        with pytest.raises(Undefined, match=rf"no {sign}\.E\.2: the Hessian has 1 eigenpairs at either end"):
            ways.eigenvector(subject, 1, sign, 2).make()


# ---- smaller


def test_scaling_tells_what_is_less() -> None:
    small = reading.scaled(reading.read("xu2024/fig2"), 0.1)
    assert small.study.models == ("mlp",)
    assert small.learners["mlp"].train is not None
    assert small.learners["mlp"].train.keep == (0, 1, 5, 10, 20)
    assert small.data["cifar10"].limit == 5000
    assert (
        small.reduced
        == "scaled by 0.1: models 1/15, images looked at 100/1000, points of a curve 21/41, Gaussians 3/5"
    )
    assert small.learners["mlp"].reduced == "epochs 20/200, width 13/128, images of either part 5000/50000"
    assert small.study.random_weights
    assert reading.scaled(reading.read("xu2024/fig2"), 1.0) == reading.read("xu2024/fig2")
    kept = reading.scaled(reading.read("xu2024/fig2", {"study.random_weights": False}), 0.1)
    assert not kept.study.random_weights
    with pytest.raises(SpecError, match="--scale"):
        reading.scaled(small, 0.0)


def test_scaling_leaves_no_more_training_images_than_are_loaded(cifar10: Path, tmp_path: Path) -> None:
    small = reading.scaled(reading.read("xu2024/fig2", {"data.cifar10.n_train": 20_000}), 0.1)
    assert (small.data["cifar10"].limit, small.data["cifar10"].n_train) == (5000, 2000)
    assert "images of either part 5000/50000, training images 2000/20000" in small.learners["mlp"].reduced
    given = options(cifar10, **{"data.cifar10.n_train": 20_000})
    done = command.run(tmp_path, "run", "xu2024/fig6", "--out", "out", "--scale", 0.001, *given)
    assert done.code == 0, done.err
    many = reading.parse(NOISY, "noisy", {"data.digits.n_train": 1000})
    assert reading.scaled(many, 0.2).data["digits"].n_train == 200
    assert reading.scaled(many, 0.001).data["digits"].n_train == 128  # a batch


def test_scaling_shortens_a_warm_up() -> None:
    by = {"train.schedule.name": "cosine", "train.schedule.warmup_epochs": 20.0}
    small = reading.scaled(reading.read("xu2024/fig2", by), 0.05).learners["mlp"].train
    assert small is not None
    assert (small.epochs, small.schedule.warmup_epochs) == (10, 1.0)
    by = {"train.schedule.name": "inverse-sqrt", "train.schedule.warmup_steps": 4000}
    small = reading.scaled(reading.read("xu2024/fig2", by), 0.001).learners["mlp"].train
    assert small is not None
    assert (small.epochs, small.schedule.warmup_steps) == (2, 1)


def test_a_tiny_study_has_three_checkpoints() -> None:
    small = reading.scaled(reading.read("xu2024/fig2"), 0.001)
    assert small.learners["mlp"].train is not None
    assert small.learners["mlp"].train.keep == (0, 1, 2)
    subject = subject_of(small, Path("nowhere"))
    assert (subject.early, subject.late) == (1, 2)


# ---- mistakes


def refused(folder: Path, *arguments: object) -> str:
    done = command.run(folder, *arguments)
    assert done.code == 2, (done.out, done.err)
    assert "Traceback" not in done.err
    return done.err


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    changes = ['study.models=["mpl","mlp"]', "sizes.points=40", "study.seeds=[1,1]"]
    told = refused(tmp_path, "run", "xu2024/fig3", *(part for text in changes for part in ("--set", text)))
    assert "3 problems" in told
    assert "Did you mean mlp?" in told
    assert "odd numbers" in told
    keep = refused(tmp_path, "plan", "xu2024/fig3", "--set", "train.epochs=300")
    assert "models.mlp.train.keep" in keep
    assert "300, the last epoch" in keep
    assert "sizes.colour" in refused(tmp_path, "plan", "xu2024/fig3", "--set", "sizes.colour=1")
    assert "width" in refused(tmp_path, "plan", "xu2024/fig3", "--set", "models.mlp.model.width=0")
    assert "allowed are images, points" in refused(tmp_path, "plan", "xu2024/fig3", "--set", "sizes.colour=1")
    assert "xu2024/fig3" in refused(tmp_path, "run", "xu2024/fig99")
    assert "Did you mean xu2024/fig13?" in refused(tmp_path, "plan", "fig13")


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({"models.mlp": 3}, ["models.mlp: 3 was given; it must be a table of keys"]),
        ({"models": 3, "data": [1]}, ["data: [1] was given; it must be", "models: 3 was given; it must be"]),
        ({"study": 3}, ["study: 3 was given; it must be"]),
        ({"train": 3}, ["train: 3 was given; it must be"]),
        ({"data.cifar10": "cifar10"}, ['data.cifar10: "cifar10" was given; it must be']),
        ({"models.mlp.train": 3}, ["models.mlp.train: 3 was given; it must be"]),
        ({"models.mlp.data": ["cifar10"]}, ['models.mlp.data: ["cifar10"] was given']),
        ({"study.models": [["mlp"]]}, ['study.models.0: ["mlp"] was given']),
        ({"study.seeds": [1, 1]}, ["study.seeds: [1, 1] was given; allowed are two that differ"]),
        ({"models.mlp.model.name": "resnet3"}, ["models.mlp.model.name: 'resnet3' does not exist"]),
        ({"models.mlp.train.epochs": 20}, ["20, the last epoch, such as [0, 20]"]),
        ({"colour": 1}, ["colour: unknown key; allowed are name, study, data, models, sizes, reduced, train"]),
        ({"models.mlp.titel": "MLP"}, ["models.mlp.titel: unknown key; allowed are title, ", "mean title?"]),
        ({"data.cifar10.name": "multi30k"}, ["data.cifar10.name: multi30k was given, which is text"]),
        ({"data.cifar10.name": "cifr10"}, ["data.cifar10.name: 'cifr10' does not exist"]),
        ({"data.cifar10.test_noise": True}, ["data.cifar10.test_noise: true was given and no noise"]),
        ({"models.mlp.train.n_ref": 5000}, ["models.mlp.train.n_ref: 5000 was given, and a study"]),
        ({"models.mlp.train.optimizer.name": "adam"}, ["models.mlp.train.optimizer.lr: missing; adam must be"]),
        (
            {"models.mlp.train.optimizer": {**ADAM, "momentum": 0.9}},
            ["models.mlp.train.optimizer.momentum: given although adam has none"],
        ),
        ({"data.cifar10.pth": "x"}, ["data.cifar10.pth: unknown key; allowed are name, path", "mean path?"]),
        ({"study.seeds": [0]}, ["study.seeds: [0] was given; give at least 2 values"]),
        ({"study.models": []}, ["study.models: [] was given; give at least 1 value"]),
        ({"train.keep": [0, 5]}, ["models.mlp.train.keep: [0, 5] was given", "the same of resnet32, "]),
        ({"task.data.path": "x"}, ["task: unknown key; of a study it is in the sections data and models"]),
    ],
)
def test_a_wrong_value_is_told_once_under_its_own_key(changes: dict[str, Any], problems: list[str]) -> None:
    with pytest.raises(SpecError) as found:
        reading.read("xu2024/fig7", changes)
    told = str(found.value)
    assert len(found.value.problems) <= len(changes) + ("study.models" in changes), told
    for each in problems:
        assert each in told


@pytest.mark.parametrize("figure", [5, 11, 12])
def test_a_figure_of_second_eigenvectors_takes_two(figure: int) -> None:
    with pytest.raises(SpecError, match=r"sizes\.pairs: 1 was given; allowed are integers from 2 on"):
        reading.read(f"xu2024/fig{figure}", {"sizes.pairs": 1})
    assert reading.read("xu2024/fig7", {"sizes.pairs": 1}).sizes.pairs == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"train.optimizer": ADAM},
        {"train.optimizer.name": "adam", "train.optimizer.lr": 0.001},
        {"models.mlp.train": {"optimizer": ADAM}},
        {"models.mlp.train.optimizer.lr": 0.001, "models.mlp.train.optimizer.name": "adam"},
    ],
)
def test_another_optimizer_takes_nothing_of_the_common_one(changes: dict[str, Any]) -> None:
    asked = reading.read("xu2024/fig6", changes)
    train = asked.learners["mlp"].train
    assert train is not None
    assert train.optimizer.model_fields_set - {"weight_decay"} == {"name", "lr"}
    spec = asked.training_of(asked.learners["mlp"])
    assert spec is not None
    optimizer = spec.at(spec.cells()[0])[1].optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adam", 0.001, 5e-4)


def test_a_study_in_a_file_may_name_another_optimizer_or_schedule() -> None:
    text = 'name = "a"\nstudy = { figure = 6, models = ["mlp", "resnet32"] }\n'
    text += 'train.optimizer = { name = "adamw", lr = 0.002, betas = [0.8, 0.9] }\n'
    text += 'train.schedule = { name = "cosine", final = 0.1 }\n'
    text += 'models.resnet32.train.optimizer = { name = "sgd", lr = 0.2, momentum = 0.5 }\n'
    text += 'models.resnet32.train.schedule = { name = "step" }\n'
    asked = reading.parse(text, "a file")
    adamw, sgd = (asked.learners[name].train for name in ("mlp", "resnet32"))
    assert adamw is not None
    assert sgd is not None
    assert (adamw.optimizer.name, adamw.optimizer.betas, adamw.schedule.final) == ("adamw", (0.8, 0.9), 0.1)
    assert (sgd.optimizer.lr, sgd.optimizer.momentum, sgd.schedule.name) == (0.2, 0.5, "step")


def test_data_that_are_not_there_are_told_by_the_key_of_a_study(tmp_path: Path) -> None:
    told = refused(tmp_path, "run", "xu2024/fig6", "--set", "data.cifar10.path=nowhere", "--scale", 0.001)
    assert "data.NAME.path in a study" in told


def test_a_model_that_cannot_be_built_is_refused_before_anything_is_trained(
    cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lossatlas.cli import study as commands

    def missing(name: str) -> None:
        raise UserError(f"model {name!r} needs torchvision.")

    monkeypatch.setattr(from_torchvision, "builder", missing)
    asked = reading.read(
        "xu2024/fig6",
        {
            "study.models": ["mlp", "mobilenetv2"],
            "study.random_weights": True,
            "data.cifar10.path": str(cifar10),
            "models.mobilenetv2.data": "cifar10",
        },
    )
    with pytest.raises(UserError, match="needs torchvision"):
        commands.run(asked, tmp_path / "out", None, Engine(device="cpu"))
    assert not (tmp_path / "out").exists()


def test_more_images_than_there_are_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "noisy.toml").write_text(NOISY)
    for command_ in ("plan", "run"):
        told = refused(tmp_path, command_, "noisy.toml", "--set", "data.digits.n_train=1438")
        assert "data.digits.n_train: 1438 was given; allowed are at most 1437" in told
        told = refused(tmp_path, command_, "noisy.toml", "--set", "train.batch_size=301")
        assert "models.small.train.batch_size: 301 was given; allowed are at most 300" in told
    assert not (tmp_path / "runs").exists()


def test_a_study_takes_no_other_engine(tmp_path: Path) -> None:
    assert "inline and processes" in refused(tmp_path, "run", "xu2024/fig3", "--engine", "slurm")
    assert "--write-only" in refused(tmp_path, "run", "xu2024/fig3", "--write-only")


def test_worker_processes_share_the_models(cifar10: Path, shared: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"study.models": ["mlp", "resnet32"], "models.mlp.model.width": 8}
    scale = ("--scale", 1.0, *options(cifar10, **changes, **TINY_TRAINING))
    done = command.run(tmp_path, "run", "xu2024/fig6", "--out", "out", "--engine", "processes", *scale)
    assert done.code == 0, done.err
    logs = [(tmp_path / "out" / "logs" / f"worker-{k}.log").read_text() for k in (0, 1)]
    assert not any("Traceback" in log for log in logs)
    alone = command.run(tmp_path, "run", "xu2024/fig6", "--out", "alone", *scale)
    assert alone.code == 0, alone.err
    whole, parts = (command.steps_done(tmp_path / name / "store") for name in ("alone", "out"))
    assert whole.keys() == parts.keys()
    first = min(parts.values())
    assert "0 trainings and 0 results to do" in command.run(tmp_path, "run", "out").err
    assert min(command.steps_done(tmp_path / "out" / "store").values()) == first
    assert "Allowed are 0 to 1" in refused(tmp_path, "worker", "out", "--shard", 2, "--of", 2)


def test_a_folder_holds_one_study(cifar10: Path, tmp_path: Path) -> None:
    arguments = ["--scale", 0.001, *options(cifar10)]
    assert command.run(tmp_path, "run", "xu2024/fig6", "--out", "out", *arguments).code == 0
    other = refused(tmp_path, "run", "xu2024/fig7", "--out", "out", *arguments)
    assert "study.figure: the folder has 6, this one 7" in other
    by = ["--set", "data.cifar10.label_noise=0.1"]
    noisy = refused(tmp_path, "run", "xu2024/fig6", "--out", "out", *arguments, *by)
    assert "data.cifar10.label_noise: the folder has 0.0, this one 0.1" in noisy
    for words in (("phases", "out"), ("findings", "out"), ("advise", "out"), ("figures", "out", "--out", "drawn")):
        assert "out is the folder of a study" in refused(tmp_path, *words)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("...")
    assert "not empty" in refused(tmp_path, "run", "xu2024/fig7", "--out", "mine", *arguments)
    saved = tmp_path / "out" / reading.STUDY_FILE
    saved.write_text(saved.read_text().replace("mlp", "mlq"))
    assert "damaged" in refused(tmp_path, "run", "out")


def test_keys_hang_on_the_content_of_weights_to_start_from(tmp_path: Path) -> None:
    def training_keys(value: float, name: str) -> tuple[str, ...]:
        path = tmp_path / name
        safetensors.torch.save_file({"weight": torch.full((2, 2), value)}, path)
        given = reading.read("xu2024/fig6", {"study.models": ["mlp"], "models.mlp.train.init": str(path)})
        found = pinned(given)
        spec = found.training_of(found.learners["mlp"])
        assert spec is not None
        return tuple(step.key for step in Plan(spec, "f" * 32)[0].steps if step.name == "train")

    assert training_keys(1.0, "one") == training_keys(1.0, "moved")
    assert training_keys(2.0, "one") != training_keys(1.0, "one")


def test_the_documents_describe_all_of_it() -> None:
    page = (Path(__file__).parent.parent / "docs" / "studies.md").read_text()
    (block,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    assert reading.parse(block, "the documents").study.figure == 6
    assert [name for name in Sizes.model_fields if f".{name}`" not in page] == []
    assert [name for name in Header.model_fields if f".{name}`" not in page] == []


def test_a_study_of_ones_own(tmp_path: Path) -> None:
    text = """
name = "mine"
[study]
figure = 6
models = ["small"]
[data.digits]
[models.small]
title = "a small network"
data = "digits"
model = { name = "mlp", width = 4 }
train = { epochs = 2, keep = [0, 1, 2], optimizer = { lr = 0.05 } }
[sizes]
images = 20
draws = 4
"""
    (tmp_path / "mine.toml").write_text(text)
    done = command.run(tmp_path, "run", "mine.toml")
    assert done.code == 0, done.err
    assert (tmp_path / "runs/mine/figures/fig06-small-gradient-against-gaussians.png").is_file()
    plan = dict(line.split("\t") for line in command.run(tmp_path, "plan", "mine.toml").out.splitlines())
    assert (plan["trainings"], plan["epochs"], plan["results"]) == ("2", "4", "1")


# ---- published weights


def birds(folder: Path, count: int) -> Path:
    images = [layouts.encoded(pixels, "JPEG") for pixels in layouts.random_images(count)]
    return layouts.write_birds(folder, (images, np.arange(count)), (images[:2], np.arange(2)))


def test_random_weights_stand_for_published_ones_and_the_caption_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries.torchvision_models()
    from lossatlas.cli import study as commands

    seen: list[str] = []

    def noting(figure: Figure, text: str) -> Figure:
        seen.append(text)
        return captioned(figure, text)

    monkeypatch.setattr(work, "captioned", noting)
    given: dict[str, Any] = {
        "study.models": ["mobilenetv2"],
        "data.cub200.path": str(birds(tmp_path / "birds", 4)),
        "train.batch_size": 4,
        "models.mobilenetv2.model.width_mult": 0.1,
        "sizes.images": 2,
        "sizes.points": 5,
        "sizes.gaussians": 1,
    }
    asked = study(2, **given)
    assert asked.model_of(asked.learners["mobilenetv2"]).options == {"width_mult": 0.1}
    assert not commands.run(asked, tmp_path / "out", None, Engine(device="cpu"))
    (caption,) = seen
    assert "from RANDOM weights in place of the published ones" in caption
    assert "CUB-200-2011" in caption
    assert "epochs 2/200" in caption


def test_published_weights_that_are_not_at_hand_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries.torchvision_models()
    from lossatlas.cli import study as commands

    def offline(*_arguments: Any) -> None:
        raise UserError("its published weights are not at hand.")

    monkeypatch.setattr(from_torchvision, "_published", offline)
    images = [layouts.encoded(pixels, "JPEG") for pixels in layouts.random_images(8)]
    layouts.write_wordnet(tmp_path / "imagenet" / "val", (images, np.arange(8)))
    given = {"study.models": ["resnext101"], "data.imagenet.path": str(tmp_path / "imagenet"), "sizes.images": 2}
    asked = reading.read("xu2024/fig2", given)
    with pytest.raises(UserError, match=r"--set study\.random_weights=true"):
        commands.run(asked, tmp_path / "out", None, Engine(device="cpu"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_published_model_without_training(tmp_path: Path) -> None:
    libraries.torchvision_models()
    from lossatlas.cli import study as commands

    images = [layouts.encoded(pixels, "JPEG") for pixels in layouts.random_images(8)]
    layouts.write_wordnet(tmp_path / "imagenet" / "val", (images, np.arange(8)))
    sizes = {"sizes.images": 2, "sizes.points": 5, "sizes.gaussians": 1}
    given: dict[str, Any] = {
        "study.models": ["resnext101"],
        "data.imagenet.path": str(tmp_path / "imagenet"),
        **sizes,
    }
    assert not commands.run(study(2, **given), tmp_path / "two", None, Engine(device="cpu"))
    assert (tmp_path / "two" / "figures" / "fig02-resnext101-gaussian.png").is_file()
    assert not commands.run(study(4, **given), tmp_path / "four", None, Engine(device="cpu"))
    assert "takes a training" in (tmp_path / "four" / "index.md").read_text()


# ---- captions and classes


@pytest.mark.parametrize("projection", [None, "3d"])
def test_a_caption_leaves_the_panels_as_they_are(projection: str | None) -> None:
    figure = Figure(figsize=(4.0, 3.0), layout="constrained" if projection is None else None)
    axes = figure.add_subplot(projection=projection)
    axes.plot([0, 1], [0, 1], label="a line")
    figure.legend(loc="outside upper center" if projection is None else "upper center")
    figure.supxlabel("below")
    figure.draw_without_rendering()
    before = axes.get_window_extent().bounds
    legend, label = figure.legends[0].get_window_extent(), figure._supxlabel.get_window_extent()  # type: ignore[attr-defined]
    captioned(figure, "What is shown. " * 30)
    figure.draw_without_rendering()
    (caption,) = [text for text in figure.texts if text.get_gid() == "caption"]
    box, grown = caption.get_window_extent(), figure.get_figheight() - 3.0
    assert axes.get_window_extent().bounds[2:] == pytest.approx(before[2:], rel=1e-6)
    assert axes.get_window_extent().y0 - before[1] == pytest.approx(grown * figure.dpi, abs=0.5)
    moved = figure.legends[0].get_window_extent()
    assert moved.y0 - legend.y0 == pytest.approx(grown * figure.dpi, abs=0.5)
    below = figure._supxlabel.get_window_extent()  # type: ignore[attr-defined]
    assert below.y0 - label.y0 == pytest.approx(grown * figure.dpi, abs=0.5)
    assert 0 <= box.y0 < box.y1 <= below.y0
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_a_caption_lifts_a_legend_that_has_a_place_of_its_own() -> None:
    figure = Figure(figsize=(4.0, 3.0))
    axes = figure.add_axes((0.1, 0.3, 0.8, 0.6))
    axes.plot([0, 1], [0, 1], label="a line")
    figure.legend(loc="lower center", bbox_to_anchor=(0.5, 0.05))
    figure.draw_without_rendering()
    above = axes.get_window_extent().y0 - figure.legends[0].get_window_extent().y1
    captioned(figure, "What is shown. " * 30)
    figure.draw_without_rendering()
    assert axes.get_window_extent().y0 - figure.legends[0].get_window_extent().y1 == pytest.approx(above, abs=0.5)


def test_the_index_counts_classes() -> None:
    def curve(values: Callable[[np.ndarray[Any, Any]], Any]) -> xr.Dataset:
        x = np.linspace(-1, 1, 11)
        dataset = xr.Dataset(
            {"loss": (("direction", "lambda"), [values(x)])}, coords={"lambda": x, "direction": ["d"]}
        )
        return dataset.assign_attrs(slice="curve")

    index = Index()
    for values in (np.square, np.square, partial(np.multiply, -1.0)):
        index.note(("mlp", 3), curve(values))
    index.missing.append("mlp: nothing")
    assert index.counts == {"v-basin": 2, "v-side": 1}
    page = index.text("A title", ["At full size."])
    assert "| v-basin | mlp (3: 2 of 3) |" in page
    assert "| w-peak | not seen |" in page
    assert "- mlp: nothing" in page
    assert "## Surfaces" not in page
    assert "## Figures" not in page
    index.figures.append(Entry("fig01-mlp", "What it shows.", [Table(("a|b", "c"), [("1", "2 ± 1 nat")])]))
    page = index.text("A title", ["Smaller.", "And smaller."])
    assert "Smaller.\n\nAnd smaller.\n" in page
    assert "![fig01-mlp](figures/fig01-mlp.png)\n\nWhat it shows. [PDF](figures/fig01-mlp.pdf)\n" in page
    assert "| a\\|b | c |\n| --- | --- |\n| 1 | 2 ± 1 nat |\n" in page


def curve_of(*losses: Any, **variables: Any) -> xr.Dataset:
    """A curve of 11 points, as `slice_results` makes it."""
    x = np.linspace(-1, 1, 11)
    names = [f"d{k}" for k in range(len(losses))]
    dataset = xr.Dataset(
        {"loss": (("direction", "lambda"), [loss(x) for loss in losses], {"units": "nat"}), **variables},
        coords={"lambda": x, "direction": names},
    )
    return dataset.assign_attrs(slice="curve", center=json.dumps({"loss": float(losses[0](x)[5])}))


def test_a_caption_tells_which_classes_there_are() -> None:
    basin, side = curve_of(np.square, np.square), curve_of(np.exp)
    told = captions.appeared(CURVES, [basin, side])
    assert told == (
        "Found here: v-basin 2 of 3 curves, v-side 1 of 3 curves; not found here: w-basin, w-peak, vvv-basin."
    )
    assert captions.appeared(("vvv-basin",), [basin]) == "Not found here: vvv-basin."
    assert captions.appeared(("v-side",), [side]) == "Found here: v-side 1 of 1 curves."
    assert captions.appeared((), [side]) == ""
    assert {number for number, subject in FIGURES.items() if subject.sought} == {1, 3, 4, 8, 10}


def shown(look: Look, *datasets: xr.Dataset) -> list[Table]:
    """The tables of a picture with a panel for each dataset."""
    panels = [Panel(f"panel {k}", 1, Item("local-line", {"k": k}, 0.0, xr.Dataset)) for k in range(len(datasets))]
    found = {panel.item.key: dataset for panel, dataset in zip(panels, datasets, strict=True)}
    return tables(Picture("a", look, [panels]), found)


def test_a_table_tells_the_numbers_of_curves() -> None:
    rivals = curve_of(np.exp, np.square, advantage=-0.0194, advantage_se=0.0412)
    several = curve_of(np.square, np.square, np.exp)
    (table,) = shown("lines", several, rivals)
    assert table.rows[0] == (
        "panel 0",
        "3 directions",
        "2 v-basin, 1 v-side",
        "0.67 ± 0.33 on average",
        *SQUARED,
        "",
    )
    assert table.rows[1][:4] == ("panel 1", "d0", "v-side", "0")
    assert table.rows[2][1:4] == ("d1", "v-basin", "1")
    assert table.head[-1] == "Δ"
    assert {row[-1] for row in table.rows[1:]} == {"−0.019 ± 0.041 nat"}  # as many digits as its error


SQUARED = ("0.000", "0.000", "2.718")  # of the model, least, greatest: x^2, and e^x up to e


def test_tables_tell_angles_and_lengths() -> None:
    draws = np.array([[89.0, 91.0, 90.0, 90.0]])
    dataset = xr.Dataset(
        {
            "angle": (("direction", "direction_b"), [[0.0, 60.0], [60.0, 0.0]]),
            "gaussian_angle": (("watched", "draw"), draws),
            "log_density": ("watched", [log_density(torch.full((400,), 0.1, dtype=torch.float64))]),
        },
        coords={"direction": ["a", "b"], "watched": ["b"]},
        attrs={"kind": "angles", "size": 400},
    )
    between, spread = shown("plot", dataset)
    assert between == Table(("angle (°)", "a", "b"), [("a", "0.0", "60.0"), ("b", "60.0", "0.0")])
    # of variance 2/3; 57.3 / 20 degrees, 20 +- 1 / sqrt(2)
    expected = [("b", "2", "90.00 ± 0.41", "0.816"), ("law of a Gaussian", "20.00 ± 0.71", "90", "2.86")]
    assert spread.rows == expected


def test_tables_tell_shares_eigenvalues_and_traces() -> None:
    ends = {
        f"eigenvalue{end}{ending}": (f"rank{end}", [value])
        for end, values in (("", (9.5, 0.01, 1.0)), ("_min", (-2.25, 0.002, 0.0)))
        for ending, value in zip(("", "_residual", "_converged"), values, strict=True)
    }
    numbers: dict[str, Any] = {"trace": 25.0, "trace_se": 0.0, "trace_data_se": 1.25, "negative_share": 0.00092}
    numbers |= {"negative_share_se": 0.0002, "undecided_share": 0.9954, "undecided_share_se": 6.7e-5}
    dataset = xr.Dataset({**ends, **numbers})
    whole, both = shown("plot", dataset)
    assert whole.rows == [("tr H", "25.0 ± 1.2 nat (exact; the error is over the samples)")]
    assert both.rows == [("P.E.1", "9.500", "0.01", "yes"), ("N.E.1", "−2.250", "0.002", "no")]
    (shares,) = shown("density", dataset)
    assert [share for _, share in shares.rows] == ["0.00092 ± 0.00020", "0.995400 ± 0.000067"]


def test_rivals_are_compared_in_nats_with_an_error(noisy: Subject) -> None:
    way, other = (ways.gaussian(noisy, noisy.late, k) for k in (0, 1))
    dataset = noisy.shelf.get(probing.rivals(noisy, noisy.late, way, other, own_best=False))
    losses = dataset["loss"].values[:, [0, -1]].mean(axis=1)
    assert dataset["advantage"].item() == pytest.approx(losses[1] - losses[0], abs=1e-5)  # float32 losses
    assert dataset["advantage"].attrs["units"] == "nat"
    assert dataset["advantage_se"].item() > 0
    assert "note" not in dataset.attrs


def test_a_surface_that_is_drawn_twice_is_counted_once(noisy: Subject, tmp_path: Path) -> None:
    item = slicing.surface(noisy, noisy.late, [ways.gaussian(noisy, noisy.late, k) for k in (0, 1)])
    noisy.shelf.get(item)
    panel = Panel("a", noisy.late, item)
    pictures = [Picture("space", "surface_3d", [[panel]]), Picture("contours", "plot", [[panel]])]
    index = Index()
    assert len(list(work.draw(reading.parse(NOISY, "noisy"), noisy, pictures, tmp_path, index))) == 4
    assert sum(index.counts.values()) == 1
    assert [len(entry.tables) for entry in index.figures] == [0, 1]  # the same numbers


def test_the_gaussians_of_the_angles_are_told_as_many_as_there_are() -> None:
    small = reading.scaled(reading.read("xu2024/fig5"), 0.1)
    (panel,) = work.pictures(small, subject_of(small, Path("nowhere")))[0].panels
    assert panel.item.content["draws"] == 40
    assert "Gaussians 40/200" in small.reduced
    assert "Gaussians 20/100" in reading.scaled(reading.read("xu2024/fig6"), 0.1).reduced


def test_a_plan_tells_what_was_taken_from_each_model(tmp_path: Path) -> None:
    text = command.run(tmp_path, "plan", "xu2024/fig7", "--scale", 0.1).out
    rows = dict(line.split("\t") for line in text.splitlines())
    assert rows["reduced"].startswith("scaled by 0.1: models 1/")
    assert rows["reduced mlp"] == "epochs 20/200, width 13/128, images of either part 5000/50000"
    assert "reduced" not in command.run(tmp_path, "plan", "xu2024/fig7").out

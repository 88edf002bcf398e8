"""The options of [Yang2021]'s code: every row of the table in docs/spec.md is a spec that runs."""

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lossatlas import specs
from lossatlas.specs import EarlyStop
from lossatlas.sweep.journal import Journal
from lossatlas.sweep.plan import Plan
from lossatlas.sweep.store import Store
from lossatlas.sweep.worker import Worker
from lossatlas.tasks import models
from lossatlas.tasks.data import RawData
from lossatlas.training import fine_tuning, stops_early

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "spec.md"
SAMPLES, WIDTH = 160, 16  # enough for a batch of 128
IMAGES = (3, 32, 32)
SPEC = f"""
name = "knob"
seeds = [0, 1, 2]
task.data = {{ name = "cifar10", n_train = {SAMPLES} }}
task.model = {{ name = "mlp" }}
train = {{ epochs = 22 }}
"""


def rows() -> dict[str, list[str]]:
    """By the first column of the table: the parts of a spec in the second, as lines of TOML."""
    section = DOCUMENT.read_text(encoding="utf-8").partition("## The knobs of [Yang2021]'s code")[2]
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")][2:]
    found = {there: re.findall(r"`([\w.]+ = [^`]+)`", here) for _, there, here, _ in (x.split("|") for x in lines)}
    return {there.strip(): parts for there, parts in found.items()}


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    found = dict(one)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = merged(found[key], value) if both else value
    return found


def spec_of(parts: list[str], folder: Path) -> dict[str, Any]:
    """A small spec with these parts in it, and with axes that they do not vary or fix themselves."""
    given: dict[str, Any] = {}
    for part in parts:
        given = merged(given, tomllib.loads(part))
    if "init" in given.get("train", {}):
        weights = models.build("mlp", {"width": WIDTH}, input_shape=IMAGES, classes=10, seed=5)
        torch.save(weights.state_dict(), folder / "w.pt")
        given["train"]["init"] = str(folder / "w.pt")
    content = merged(tomllib.loads(SPEC), given)
    taken = given.get("train", {})
    if "temperature" not in given:
        free = "batch_size" if "batch_size" not in taken else "weight_decay"
        content["temperature"] = {free: {"batch_size": [32], "weight_decay": [5e-4]}[free]}
    if "load" not in given:
        content["load"] = {"width": [content["task"]["model"].pop("width", WIDTH)]}
    if "width" not in content["load"]:
        content["task"]["model"]["width"] = WIDTH
    if "n_train" in content["load"]:
        del content["task"]["data"]["n_train"]
        content["load"]["n_train"] = [n // 100 for n in content["load"]["n_train"]]
    elif "n_train" in given.get("task", {}).get("data", {}):
        content["task"]["data"]["n_train"] //= 100
    return content


KNOBS = {there: parts for there, parts in rows().items() if parts}


def test_the_table_has_what_was_asked_for() -> None:
    text = " ".join(part for parts in KNOBS.values() for part in parts)
    asked = ["label_noise = 0.1", '"crop"', "lr = 0.003", "weight_decay = 0.0", "weight_decay = 1e-4"]
    asked += ["at = [0.5, 0.75]", "train.keep", "train.early_stop", "train.precision", "train.init", '"replace"']
    assert len(KNOBS) > 25
    assert [each for each in asked if each not in text] == []


@pytest.fixture(scope="module")
def raw() -> RawData:
    """Images of the shape of CIFAR-10's, each class a little brighter than the one before."""
    generator = np.random.default_rng(0)
    targets = np.arange(SAMPLES) % 10
    images = generator.integers(0, 150, (SAMPLES, *IMAGES)) + 10 * targets[:, None, None, None]
    images = images.astype(np.uint8)
    return RawData(images, targets, images[:50], targets[:50], 10, scale=255.0, mean=(0.4,) * 3, std=(0.2,) * 3)


@pytest.mark.parametrize("there", KNOBS, ids=lambda there: re.sub(r"[^\w]+", "-", there)[:40])
def test_every_row_is_a_spec_that_runs(there: str, raw: RawData, tmp_path: Path) -> None:
    content = spec_of(KNOBS[there], tmp_path)
    valid = specs.validate(content, there)
    if "measures" in content:  # they have tests of their own, and take long with the published settings
        return
    spec = fine_tuning.pinned(valid.model_copy(update={"seeds": (0,)}))
    plan, store = Plan(spec, raw.fingerprint()), Store(tmp_path / "store")
    told = Journal(tmp_path, "knobs")
    told.line = lambda _text: None  # type: ignore[method-assign]
    assert Worker(store, raw, spec.weights, tmp_path / "failed", told).run(plan) == {}
    for cell in plan:
        for step in cell.steps:
            record = store.look(step.name, step.key)
            assert record is not None
            assert record.status == "ok", record.reason


def test_what_is_kept_between_is_what_their_loop_saves(raw: RawData, tmp_path: Path) -> None:
    (parts,) = [parts for there, parts in KNOBS.items() if "--save-middle" in there]
    spec = specs.validate(spec_of(parts, tmp_path), "kept").model_copy(update={"seeds": (0,)})
    theirs = [epoch + 1 for epoch in range(spec.train.epochs) if epoch % 10 == 0]  # epoch % save_frequency there
    assert list(spec.train.keep) == theirs


def stops_as_published(losses: list[float]) -> bool:
    """The rule of train.py there, with --min-delta 0.0001 --patience 5."""
    moves = np.diff(losses)[-5:]
    return len(losses) >= 30 and not bool((np.abs(moves) > 1e-4).any())


def test_the_early_stop_of_the_table_is_that_of_their_code() -> None:
    (parts,) = [parts for there, parts in KNOBS.items() if "--min-delta" in there]
    rule = EarlyStop.model_validate(tomllib.loads(parts[0])["train"]["early_stop"])
    generator = np.random.default_rng(0)
    earliest = []
    for quiet in np.linspace(0, 1, 200):
        steps = generator.choice([1e-5, 3e-3], 60, p=[quiet, 1 - quiet]) * generator.choice([-1, 1], 60)
        losses = np.cumsum(steps).tolist()
        ours, theirs = (
            [n for n in range(1, 61) if stops(losses[:n])][:1]
            for stops in (lambda known: stops_early(known, rule), stops_as_published)
        )
        assert ours == theirs
        earliest += ours
    assert min(earliest) == 30
    assert max(earliest) > 40

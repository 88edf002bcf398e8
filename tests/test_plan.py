"""The plan: which steps there are, what their keys hang on, and what stays when a spec grows."""

import copy
import tomllib
from typing import Any

import pytest

from command import TINY
from lossatlas import specs
from lossatlas.sweep.plan import Plan, Step

RAW = tomllib.loads(TINY.read_text())
DATA = "0123456789abcdef0123456789abcdef"  # a made-up fingerprint

# The keys of the first cell (width 2, batch size 16), first seed or pair. They are part of the store's format: a
# change here means that every store in the world is worthless. If the numbers of a step change on purpose, raise
# its version (TRAIN_VERSION, or that of the row in `measures`), and then write the new keys down here.
PINNED = {
    "train": "ea5f5d37ee903a13e002382a5ad44d0b",
    "evaluation": "f6b9c7d022c19d73f58db676d4d0a3c5",
    "hessian": "b7c7cbc7606b6dc20d35f43b0b1a634c",
    "curve": "804dde218937ddb39360cb5ad468ac25",
    "connectivity": "6ff808c1ebff7826980c0428698709c5",
    "cka": "d243c9dcfa29984257aa2574fca00ea6",
    "distance": "ec226e49e87db8f0ac163c21c4aef9a8",
    "disagreement": "f6019f8c21e01c9a1d30d4b30b2cf49c",
    "ensemble": "3f11d268a26608c509322dc9fa5f98a1",
}


def steps(fingerprint: str = DATA, n_train: int = 0, **changes: Any) -> list[Step]:
    """All steps of the tiny spec with dotted keys (`__` for the dots) replaced."""
    raw = copy.deepcopy(RAW)
    for key, value in changes.items():
        *sections, last = key.split("__")
        holder = raw
        for section in sections:
            holder = holder.setdefault(section, {})
        if value is ...:
            del holder[last]
        else:
            holder[last] = value
    return [step for cell in Plan(specs.validate(raw, "tiny"), fingerprint, n_train) for step in cell.steps]


def keys(*args: Any, **changes: Any) -> dict[str, set[str]]:
    """The keys of each kind of step."""
    found: dict[str, set[str]] = {}
    for step in steps(*args, **changes):
        found.setdefault(step.name, set()).add(step.key)
    return found


def changed(**changes: Any) -> set[str]:
    """The kinds of steps of which some, but then all, keys change."""
    before, after = keys(), keys(**changes)
    kinds = {kind for kind in before if before[kind] != after.get(kind, set())}
    assert all(not before[kind] & after.get(kind, set()) for kind in kinds)
    return kinds


def test_keys_are_pinned() -> None:
    first: dict[str, str] = {}
    for step in steps():
        first.setdefault(step.name, step.key)
    assert first == PINNED


def test_every_step_comes_after_what_it_needs() -> None:
    for cell in Plan(specs.validate(RAW, "tiny"), DATA):
        seen: set[str] = set()
        for step in cell.steps:
            assert {*step.inputs, *(key for _, key in step.arrays)} <= seen
            seen.add(step.key)
        assert [step.name for step in cell.steps] == (
            ["train"] * 2 + ["evaluation"] * 2 + ["hessian"] * 2
            + ["curve", "connectivity", "cka", "distance", "disagreement", "ensemble"]
        )  # fmt: skip
    everything = [step.key for step in steps()]
    assert len(set(everything)) == len(everything) == 48


def test_no_pair_and_no_ensemble_of_one_seed() -> None:
    assert {step.name for step in steps(seeds=[0], measures__connectivity__pairs=1)} == {
        "train",
        "evaluation",
        "hessian",
    }


EVERYTHING = set(PINNED)
PAIRED = {"curve", "connectivity", "cka", "distance", "disagreement", "ensemble"}


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        # What changes no number changes no key
        ({"name": "other"}, set()),
        ({"task__data__path": "/elsewhere"}, set()),
        ({"phases": {"auto": True}}, set()),
        ({"measures__connectivity__pairs": "ring"}, set()),  # of two seeds: the same pair
        ({"task__model__depth": 1, "train__optimizer__momentum": 0.9}, set()),  # the defaults, spelled out
        ({"train__early_stop": {"start": 30}}, set()),
        # What changes the weights changes all keys
        ({"task__data__n_train": 201}, EVERYTHING),
        ({"task__data__label_noise": 0.2}, EVERYTHING),
        ({"task__data__definition": "uniform"}, EVERYTHING),
        ({"task__model__name": "cnn"}, EVERYTHING),
        ({"task__model__depth": 2}, EVERYTHING),
        ({"task__loss": "my:loss"}, EVERYTHING),
        ({"train__epochs": 5}, EVERYTHING),
        ({"train__optimizer__lr": 0.2}, EVERYTHING),
        ({"train__optimizer__momentum": 0.8}, EVERYTHING),
        ({"train__optimizer__weight_decay": 0.0}, EVERYTHING),
        ({"train__schedule__name": "constant"}, EVERYTHING),
        ({"train__schedule__factor": 0.2}, EVERYTHING),
        ({"train__early_stop": {"start": 2}}, EVERYTHING),
        ({"train__keep": [0, 1]}, EVERYTHING),
        # The budget of a measure changes that measure only
        ({"weights": "final"}, EVERYTHING - {"train"}),
        ({"task__data__n_test": 50}, {"evaluation", "connectivity", "disagreement", "ensemble"}),
        ({"task__data__test_noise": True}, {"evaluation", "connectivity", "disagreement", "ensemble"}),
        ({"measures__hessian__images": 60}, {"hessian"}),
        ({"measures__hessian__tol": 1e-2}, {"hessian"}),
        ({"measures__connectivity__points": 7}, {"connectivity"}),
        ({"measures__connectivity__rule": "published"}, {"connectivity"}),
        ({"measures__connectivity__data": "test"}, {"connectivity"}),
        ({"measures__connectivity__epochs": 3}, {"curve", "connectivity"}),
        ({"measures__connectivity__start": "random"}, {"curve", "connectivity"}),
        ({"measures__connectivity__l2": 0.0}, {"curve", "connectivity"}),
        ({"measures__cka__images": 128}, {"cka"}),
        ({"measures__cka__protocol": "published"}, {"cka"}),
        ({"measures__cka__outputs": "softmax", "measures__cka__noise": 0.0}, set()),
        ({"measures__cka__outputs": "logits"}, {"cka"}),
        ({"measures__cka__noise": 0.5}, {"cka"}),
        ({"measures__cka__debiased": True}, {"cka"}),
        ({"measures__cka__kernel": "rbf"}, {"cka"}),
        ({"variants": {"other": {"measures.cka.debiased": True}}}, set()),
        ({"measures__disagreement__data": "train"}, {"disagreement"}),
        ({"measures__ensemble__data": "train"}, {"ensemble"}),
        ({"measures__hessian": ...}, {"hessian"}),
        ({"measures__connectivity": ...}, {"curve", "connectivity"}),
    ],
)  # fmt: skip
def test_what_a_key_hangs_on(changes: dict[str, Any], kinds: set[str]) -> None:
    assert changed(**changes) == kinds


def test_other_data_have_other_keys() -> None:
    before, after = keys(), keys("f" * 32)
    assert all(not before[kind] & after[kind] for kind in EVERYTHING)


def test_a_spec_that_grows_keeps_its_keys() -> None:
    before = keys()
    for more in ({"load__width": [2, 3, 4]}, {"temperature__batch_size": [64, 16, 32]}):
        after = keys(**more)
        assert all(before[kind] < after[kind] for kind in EVERYTHING)
    after = keys(seeds=[2, 1, 0])
    assert all(before[kind] < after[kind] for kind in EVERYTHING - {"ensemble"})
    assert not before["ensemble"] & after["ensemble"]  # of three, which is another number


def test_a_swept_value_has_the_key_of_a_fixed_one() -> None:
    swept = keys()["train"]
    fixed = keys(load={"label_noise": [0.1]}, task__data__label_noise=..., task__model__width=2)["train"]
    assert fixed < swept
    lr = {"temperature": {"lr": [1, 0.1]}, "train__optimizer__lr": ..., "train__batch_size": 16}
    assert len(keys(**lr)["train"] & swept) == 4  # both widths and seeds at lr 0.1 and batch size 16


def test_grids_share_the_models_that_they_have_in_common() -> None:
    def trained(n_train: int = 1437, **changes: Any) -> set[str]:
        return {step.key for step in steps(n_train=n_train, **changes) if step.name == "train"}

    everything = trained(task__data__n_train=...)
    assert trained(task__data__n_train=1437) == everything  # a subset of all is none
    assert not trained(task__data__n_train=1436) & everything
    assert not trained(2000, task__data__n_train=1437) & everything  # of other data it is one
    # How labels are replaced does not matter if none are.
    clean: dict[str, Any] = {"task__data__label_noise": 0.0}
    assert trained(**clean, task__data__definition="uniform") == trained(**clean)
    # Linear scaling gives some batch sizes the rate that they have without.
    plain = {"temperature__batch_size": [16, 32], "train__optimizer__lr": 0.1}
    assert len(trained(**plain, train__optimizer__batch_ref=32) & trained(**plain)) == 4
    half = {**plain, "train__optimizer__lr": 0.05, "temperature__batch_size": [16]}
    assert trained(**half) < trained(**plain, train__optimizer__batch_ref=32)


def test_the_order_of_seeds_and_values_does_not_matter() -> None:
    assert keys(seeds=[1, 0], load__width=[4, 2]) == keys()

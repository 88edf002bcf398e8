"""Data sets, subsets, label noise, and the samples that a model sees."""

import numpy as np
import pytest
import torch

from lossatlas import registry
from lossatlas.errors import UserError
from lossatlas.specs import Data
from lossatlas.tasks import data
from lossatlas.tasks.corruption import corrupted, noisy_labels
from lossatlas.tasks.data import RawData
from lossatlas.tasks.samples import Samples


@pytest.fixture(scope="module")
def digits() -> RawData:
    return data.load("digits", None)


def test_the_digits_are_what_the_registry_says(digits: RawData) -> None:
    assert digits.facts() == registry.DATA["digits"].facts
    assert digits.train_inputs.dtype == np.uint8
    assert (digits.train_inputs.min(), digits.train_inputs.max()) == (0, 16)


def test_the_digits_are_those_of_scikit_learn_in_a_fixed_order(digits: RawData) -> None:
    from sklearn.datasets import load_digits

    original = load_digits()
    images = np.concatenate([digits.train_inputs, digits.test_inputs])[:, 0]
    labels = np.concatenate([digits.train_targets, digits.test_targets])
    ours = sorted((image.tobytes(), label) for image, label in zip(images, labels, strict=True))
    theirs = zip(original.images.astype(np.uint8), original.target, strict=True)
    assert ours == sorted((image.tobytes(), label) for image, label in theirs)
    # The order is part of the content; where it changes, all numbers of all digits runs change.
    assert digits.fingerprint() == "f2ebbe153a5b465474b0a44a641f74f9"
    counts = np.bincount(digits.train_targets[:100], minlength=10)
    assert counts.min() > 0  # also a small subset has every class


def test_the_mean_and_spread_of_the_digits_are_those_of_their_pixels(digits: RawData) -> None:
    pixels = np.concatenate([digits.train_inputs, digits.test_inputs]) / digits.scale
    assert (digits.mean, digits.std) == ((round(pixels.mean(), 3),), (round(pixels.std(), 3),))


def test_the_fingerprint_tells_contents_apart() -> None:
    inputs, targets = np.zeros((4, 2), np.uint8), np.array([0, 1, 0, 1])
    same = RawData(inputs, targets, inputs, targets, 2)
    others = [
        RawData(inputs.copy() + np.eye(4, 2, dtype=np.uint8), targets, inputs, targets, 2),
        RawData(inputs, 1 - targets, inputs, targets, 2),
        RawData(inputs, targets, inputs, 1 - targets, 2),
        RawData(inputs.reshape(4, 1, 2), targets, inputs, targets, 2),
        RawData(inputs.astype(np.int8), targets, inputs, targets, 2),
        RawData(inputs, targets, inputs, targets, 3),
        RawData(inputs, targets, inputs, targets, 2, mean=(0.5,)),
    ]
    prints = {raw.fingerprint() for raw in (same, *others)}
    assert len(prints) == 1 + len(others)
    strided = np.zeros((4, 4), np.uint8)[:, ::2]
    assert RawData(strided, targets, inputs, targets, 2).fingerprint() == same.fingerprint()


LABELS = np.random.default_rng(0).integers(0, 10, 20_000)


@pytest.mark.parametrize("definition", ["incorrect", "uniform"])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_as_many_labels_are_replaced_as_asked_for(definition: str, fraction: float) -> None:
    changed = (noisy_labels(LABELS, 10, fraction, definition) != LABELS).sum()
    # A label that is replaced by any of the 10 classes stays right with probability 1/10.
    p = fraction if definition == "incorrect" else fraction * 0.9
    spread = (len(LABELS) * p * (1 - p)) ** 0.5
    assert (
        abs(changed - len(LABELS) * p) <= 4 * spread
    )  # binomial law; fails for 6 seeds in 100,000, and ours is fixed


def test_no_noise_changes_nothing_and_full_noise_everything() -> None:
    for definition in ("incorrect", "uniform"):
        assert np.array_equal(noisy_labels(LABELS, 10, 0.0, definition), LABELS)
    assert (noisy_labels(LABELS, 10, 1.0, "incorrect") != LABELS).all()


@pytest.mark.parametrize(("definition", "classes"), [("incorrect", 9), ("uniform", 10)])
def test_the_classes_that_replace_are_equally_likely(definition: str, classes: int) -> None:
    noisy = noisy_labels(LABELS, 10, 1.0, definition)
    shift = np.bincount((noisy - LABELS) % 10, minlength=10)[-classes:]
    expected = len(LABELS) / classes
    # Chi-squared with at most 9 degrees of freedom exceeds 27.9 once in 1,000 seeds, and ours is fixed.
    assert ((shift - expected) ** 2 / expected).sum() < 27.9


@pytest.mark.parametrize("definition", ["incorrect", "uniform"])
def test_more_noise_replaces_the_same_labels_and_more(definition: str) -> None:
    little, much = (noisy_labels(LABELS, 10, fraction, definition) for fraction in (0.2, 0.6))
    hit = little != LABELS
    assert np.array_equal(little[hit], much[hit])
    assert (much != LABELS).sum() > 2 * hit.sum()


def test_noise_does_not_hang_on_the_size_of_the_subset(digits: RawData) -> None:
    small, large = (
        corrupted(digits, Data(name="digits", n_train=count, label_noise=0.3)) for count in (100, 1000)
    )
    assert np.array_equal(small.train_targets, large.train_targets[:100])
    assert np.array_equal(small.train_inputs, large.train_inputs[:100])
    assert small.train_inputs.shape[0] == 100
    assert np.array_equal(small.test_targets, digits.test_targets)  # the test data stay clean
    assert (large.train_targets != digits.train_targets[:1000]).any()
    assert len(corrupted(digits, Data(name="digits")).train_targets) == 1437
    with pytest.raises(UserError, match="n_train = 2000 was given, but data 'digits' have 1437"):
        corrupted(digits, Data(name="digits", n_train=2000))


def test_batches_are_normalised_and_keep_their_order() -> None:
    inputs = np.arange(7 * 2 * 3, dtype=np.uint8).reshape(7, 2, 3)
    targets = np.arange(7) % 2
    raw = RawData(inputs, targets, inputs, targets, 2, scale=10.0, mean=(1.0, 2.0), std=(0.5, 4.0))
    samples = Samples(inputs, targets, raw)
    expected = (inputs / 10.0 - np.array([1.0, 2.0])[:, None]) / np.array([0.5, 4.0])[:, None]
    batches = list(samples.batches(3)())
    assert [len(y) for _, y in batches] == [3, 3, 1]
    torch.testing.assert_close(torch.cat([x for x, _ in batches]).numpy(), expected.astype(np.float32))
    assert torch.cat([y for _, y in batches]).tolist() == targets.tolist()
    assert len(samples.head(100)[1]) == len(samples) == 7
    assert torch.equal(samples.head(2)[0], samples.take(torch.tensor([0, 1]))[0])
    assert samples.targets.dtype == torch.long


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_are_taken_without_a_warning() -> None:
    inputs, targets = np.arange(12, dtype=np.float32).reshape(4, 3), np.arange(4) % 2
    raw = RawData(inputs, targets, inputs, targets, 2)
    expected = Samples(inputs, targets, raw).head(4)
    inputs, targets = inputs.copy(), targets.copy()
    for array in (inputs, targets):
        array.setflags(write=False)
    found = Samples(inputs, targets, raw).head(4)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(6, 4), (6, 3, 4, 5)])
def test_arrays_that_run_backwards_or_have_foreign_bytes_are_taken(shape: tuple[int, ...]) -> None:
    inputs = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    targets = np.arange(6)
    raw = RawData(inputs, targets, inputs, targets, 6)
    expected = Samples(inputs, targets, raw).head(6)
    backwards = np.ascontiguousarray(inputs[..., ::-1])[..., ::-1], targets[::-1].copy()[::-1]
    foreign = inputs.astype(">f4"), targets.astype(">i8")
    assert min(backwards[0].strides) < 0
    for given in (backwards, foreign, (foreign[0][::-1], foreign[1][::-1])):
        found = Samples(*given, raw).head(6)
        order = slice(None) if given[1][0] == 0 else slice(None, None, -1)
        for one, other in zip(expected, found, strict=True):
            assert torch.equal(one, torch.from_numpy(other.numpy()[order].copy()))
        copies = RawData(*(part.copy() for part in given * 2), 6)
        assert RawData(*given, *given, 6).fingerprint() == copies.fingerprint()  # the layout counts for no key


def test_inputs_made_for_each_batch_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = np.random.default_rng(0).integers(0, 255, (9, 3, 4, 4)).astype(np.uint8)
    targets = np.zeros(9, int)
    raw = RawData(inputs, targets, inputs, targets, 2, scale=255.0, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))
    kept = Samples(inputs, targets, raw)
    monkeypatch.setattr("lossatlas.tasks.samples.FLOAT_LIMIT", 0)
    made = Samples(inputs, targets, raw)
    assert torch.equal(kept.head(9)[0], made.head(9)[0])
    orders = [list(s.shuffled(4, torch.Generator().manual_seed(0), drop_last=False)) for s in (kept, made)]
    for (one, _), (other, _) in zip(*orders, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [4, 4]), (False, [4, 4, 2])])
def test_a_shuffled_epoch_has_every_sample_once(drop_last: bool, sizes: list[int]) -> None:
    inputs = np.arange(10, dtype=np.float32)[:, None]
    samples = Samples(inputs, np.arange(10), RawData(inputs, np.arange(10), inputs, np.arange(10), 10))
    generator = torch.Generator().manual_seed(0)
    epochs = [list(samples.shuffled(4, generator, drop_last=drop_last)) for _ in range(2)]
    orders = []
    for epoch in epochs:
        assert [len(y) for _, y in epoch] == sizes
        order = torch.cat([y for _, y in epoch])
        assert torch.equal(torch.cat([x for x, _ in epoch])[:, 0], order.float())  # inputs go with their targets
        assert len(set(order.tolist())) == sum(sizes)
        orders.append(order.tolist())
    assert orders[0] != orders[1]

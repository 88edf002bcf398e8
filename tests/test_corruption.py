"""Noise on images and on test data: its law, what it leaves alone, and what it does to keys."""

import hashlib
import tomllib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import stats

from command import TINY
from lossatlas import specs
from lossatlas.errors import SpecError, UserError
from lossatlas.seeding import derive
from lossatlas.specs import Data
from lossatlas.specs.schema import ImageNoise
from lossatlas.sweep.plan import Plan
from lossatlas.tasks import corruption, data
from lossatlas.tasks.corruption import corrupted, noisy_images, noisy_labels
from lossatlas.tasks.data import RawData

KINDS = ["bernoulli", "gaussian", "uniform", "positive_uniform"]
MAGNITUDE = 40.0

# P(z <= x) of the noise of every kind.
LAWS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "bernoulli": lambda x: 0.5 * (x >= -MAGNITUDE) + 0.5 * (x >= MAGNITUDE),
    "gaussian": stats.norm(0, MAGNITUDE).cdf,
    "uniform": stats.uniform(-MAGNITUDE, 2 * MAGNITUDE).cdf,
    "positive_uniform": stats.uniform(0, MAGNITUDE).cdf,
}


def flat(level: int, count: int = 300) -> NDArray[np.uint8]:
    """Images of one level: (count, 3, 16, 16)."""
    return np.full((count, 3, 16, 16), level, dtype=np.uint8)


def some(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)


def noise(kind: str = "gaussian", **given: Any) -> ImageNoise:
    return ImageNoise(kind=kind, magnitude=given.pop("magnitude", MAGNITUDE), **given)  # type: ignore[arg-type]


def raw(count: int = 200, dtype: type = np.uint8) -> RawData:
    generator = np.random.default_rng(1)
    targets = generator.integers(0, 10, count)
    inputs = [some(count, seed).astype(dtype) for seed in (0, 1)]
    return RawData(inputs[0], targets, inputs[1], targets[::-1].copy(), 10, scale=255.0)


@pytest.mark.parametrize("level", [0, 128, 250])
@pytest.mark.parametrize("mode", ["add", "replace"])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_follow_the_law_of_their_kind(kind: str, mode: str, level: int) -> None:
    noisy = noisy_images(flat(level), noise(kind, mode=mode))
    # Rounding puts all of (k - 1/2, k + 1/2] into level k; below 0 all falls on 0, above 255 on 255.
    edges = np.arange(256) + 0.5 - (level if mode == "add" else 0)
    cumulated = np.append(LAWS[kind](edges[:-1]), 1.0)
    expected = np.diff(cumulated, prepend=0.0) * noisy.size
    found = np.bincount(noisy.ravel(), minlength=256)
    assert found[expected == 0].sum() == 0
    likely = expected > 5  # where a count is nearly normal
    if likely.sum() > 1:
        rest = [[counts[~likely].sum()] if expected[~likely].sum() > 5 else [] for counts in (found, expected)]
        f, e = (np.append(c[likely], r) for c, r in zip((found, expected), rest, strict=True))
        # Of 24 tests one falls below 1e-4 for 1 seed in 400, and ours is fixed.
        assert stats.chisquare(f, e * f.sum() / e.sum()).pvalue > 1e-4
    else:
        assert found[likely] == noisy.size


@pytest.mark.parametrize("kind", KINDS)
def test_mean_and_variance_are_those_of_the_kind(kind: str) -> None:
    noisy = noisy_images(flat(128), noise(kind, magnitude=20.0)).astype(float) - 128
    mean = 10.0 if kind == "positive_uniform" else 0.0
    variance = {"bernoulli": 400, "gaussian": 400, "uniform": 400 / 3, "positive_uniform": 400 / 12}[kind]
    # Rounding adds 1/12, or up to 1/6 where the ends of the range are whole numbers; 4 standard errors.
    assert abs(noisy.mean() - mean) < 4 * (variance / noisy.size) ** 0.5
    assert (
        -4 * variance * (2 / noisy.size) ** 0.5
        < noisy.var() - variance
        < 1 / 6 + 4 * variance * (2 / noisy.size) ** 0.5
    )


@pytest.mark.parametrize("mode", ["add", "replace"])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_as_many_images_are_noisy_as_asked_for(fraction: float, mode: str) -> None:
    images = some(4000)
    noisy = noisy_images(images, noise(mode=mode, fraction=fraction))
    hit = (noisy != images).any((1, 2, 3))
    # Binomial law: 4 standard deviations, exceeded for 6 seeds in 100,000, and ours is fixed.
    assert abs(hit.sum() - 4000 * fraction) < 4 * (4000 * fraction * (1 - fraction)) ** 0.5
    assert np.array_equal(noisy_images(images, noise(mode=mode, fraction=0.0)), images)
    everywhere = noisy_images(images, noise(mode=mode))
    assert np.array_equal(noisy[hit], everywhere[hit])  # which images are noisy changes nothing about the noise
    more = noisy_images(images, noise(mode=mode, fraction=fraction + 0.05))
    assert np.array_equal(noisy[hit], more[hit])
    assert (more != images).any((1, 2, 3)).sum() > hit.sum()


def test_noise_in_the_place_of_images_knows_nothing_of_them() -> None:
    one, other = (noisy_images(some(50, seed), noise("positive_uniform", mode="replace")) for seed in (0, 1))
    assert np.array_equal(one, other)
    assert one.max() <= MAGNITUDE


def test_noise_of_images_pixels_and_channels_differs() -> None:
    noisy = noisy_images(flat(128, 100), noise()).astype(float) - 128
    for a, b in (
        (noisy[:50], noisy[50:]),
        (noisy[:, 0], noisy[:, 1]),
        (noisy[..., :8], noisy[..., 8:]),
        (noisy[1:], noisy[:-1]),
    ):
        # The correlation of n independent pairs has the standard deviation 1/sqrt(n).
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / a.size**0.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_settings_give_the_same_bits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = some(150)
    noisy = noisy_images(images, noise(kind, fraction=0.7))
    assert noisy.dtype == np.uint8
    assert np.array_equal(images, some(150))  # the caller's are left alone
    for chunk in (1, 7, 1000):
        monkeypatch.setattr(corruption, "CHUNK", chunk)
        assert np.array_equal(noisy_images(images, noise(kind, fraction=0.7)), noisy)
    assert np.array_equal(noisy_images(images[:60], noise(kind, fraction=0.7)), noisy[:60])
    assert not np.array_equal(noisy_images(images, noise(kind, fraction=0.7), seed=1), noisy)
    assert not np.array_equal(noisy_images(images, noise(kind, fraction=0.7), stream="test image noise"), noisy)


def test_the_bits_are_those_of_the_first_version() -> None:
    # The settings are in the keys, the bits are not: they may not change under them.
    digest = hashlib.sha256()
    for kind in KINDS:
        for mode in ("add", "replace"):
            digest.update(noisy_images(some(20), noise(kind, mode=mode, fraction=0.5)).tobytes())
    assert digest.hexdigest()[:16] == "b789358649f09ea5"


def test_a_subset_with_label_noise_is_the_head_of_all_with_noise() -> None:
    # [Yang2021]'s "subset with 10% noise": the labels of all data are randomised, then the first are taken.
    settings = Data(name="some", label_noise=0.1, image_noise=noise(fraction=0.5))
    whole, part = corrupted(raw(), settings), corrupted(raw(), settings.model_copy(update={"n_train": 60}))
    assert np.array_equal(part.train_targets, whole.train_targets[:60])
    assert np.array_equal(part.train_inputs, whole.train_inputs[:60])
    assert (whole.train_targets != raw().train_targets).any()
    only_labels = corrupted(raw(), Data(name="some", label_noise=0.1))
    assert np.array_equal(only_labels.train_targets, whole.train_targets)  # streams of their own


def test_the_first_test_samples_are_taken_as_they_are() -> None:
    settings = Data(name="some", label_noise=0.3, image_noise=noise(), test_noise=True)
    whole, part = corrupted(raw(), settings), corrupted(raw(), settings.model_copy(update={"n_test": 20}))
    assert len(whole.test_targets) > 20
    assert np.array_equal(part.test_targets, whole.test_targets[:20])
    assert np.array_equal(part.test_inputs, whole.test_inputs[:20])
    assert np.array_equal(part.train_inputs, whole.train_inputs)
    more = corrupted(raw(), settings.model_copy(update={"n_test": 10**6}))  # at most so many
    assert np.array_equal(more.test_targets, whole.test_targets)


def test_the_test_data_stay_clean_unless_asked() -> None:
    clean, settings = raw(), Data(name="some", label_noise=0.3, image_noise=noise())
    found = corrupted(clean, settings)
    assert np.array_equal(found.test_inputs, clean.test_inputs)
    assert np.array_equal(found.test_targets, clean.test_targets)
    asked = corrupted(clean, settings.model_copy(update={"test_noise": True}))
    assert np.array_equal(asked.train_inputs, found.train_inputs)
    assert np.array_equal(asked.train_targets, found.train_targets)
    changed = (asked.test_targets != clean.test_targets).sum()
    assert abs(changed - 60) < 4 * (200 * 0.3 * 0.7) ** 0.5
    assert (asked.test_inputs != clean.test_inputs).any((1, 2, 3)).all()
    # Their own streams: the same data in either part get other noise.
    both = replace(clean, test_inputs=clean.train_inputs, test_targets=clean.train_targets)
    twice = corrupted(both, settings.model_copy(update={"test_noise": True}))
    assert not np.array_equal(twice.train_inputs, twice.test_inputs)
    assert not np.array_equal(twice.train_targets, twice.test_targets)


def test_nothing_asked_for_changes_nothing() -> None:
    found = corrupted(raw(), Data(name="some", test_noise=True))
    assert found.fingerprint() == raw().fingerprint()
    assert np.array_equal(noisy_labels(raw().train_targets, 10, 0.0, "uniform"), raw().train_targets)


def test_noise_is_for_images_alone() -> None:
    with pytest.raises(UserError, match="image_noise was given, but data 'some' hold float32 numbers"):
        corrupted(raw(dtype=np.float32), Data(name="some", image_noise=noise()))


@pytest.fixture(scope="module")
def digits() -> RawData:
    return data.load("digits", None)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_in_units_of_the_datas_own_range(kind: str, digits: RawData) -> None:
    # The digits go to 16, where usual images go to 255: noise of 16 levels' magnitude is one of 255.
    given = noise(kind, magnitude=102.0)
    found = corrupted(digits, Data(name="digits", image_noise=given, test_noise=True))
    z = (102 * 16 / 255) * _drawn(kind, digits.train_inputs.shape)
    assert np.array_equal(found.train_inputs, np.clip(np.rint(digits.train_inputs + z), 0, 16))
    assert found.train_inputs.max() == found.test_inputs.max() == 16
    assert (found.test_inputs != digits.test_inputs).any()
    inputs = {f"{part}_inputs": getattr(digits, f"{part}_inputs") * 15 for part in ("train", "test")}
    finer = corrupted(replace(digits, **inputs, scale=240.0), Data(name="digits", image_noise=given))
    # The same noise of the same pictures, but for rounding to half a level of either.
    assert np.abs(finer.train_inputs / 240 - found.train_inputs / 16).max() <= 0.5 / 16 + 0.5 / 240 + 1e-12


def _drawn(kind: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    generator = np.random.default_rng(derive(0, "image noise"))
    if kind == "gaussian":
        return generator.standard_normal(shape)
    u = generator.random(shape)  # as NumPy's uniform draws it
    return {"bernoulli": np.where(u < 0.5, -1.0, 1.0), "uniform": 2 * u - 1, "positive_uniform": u}[kind]


@pytest.mark.parametrize("scale", [255.0, 256.0, 1000.0])
def test_a_scale_beyond_uint8_changes_no_bit(scale: float) -> None:
    settings = Data(name="some", image_noise=noise(magnitude=33.3))
    found = corrupted(replace(raw(), scale=scale), settings)
    assert np.array_equal(found.train_inputs, noisy_images(raw().train_inputs, noise(magnitude=33.3)))


def test_noise_where_white_is_not_known_is_refused() -> None:
    settings = Data(name="some", image_noise=noise())
    for scale in (1.0, 127.5, 0.5):
        with pytest.raises(UserError, match=rf"hold pixels up to 255 at a scale of {scale:g}, .* what white is"):
            corrupted(replace(raw(), scale=scale), settings)
    dark = replace(raw(), train_inputs=raw().train_inputs // 16)
    with pytest.raises(UserError, match="pixels up to 255 at a scale of 16"):  # of the test data
        corrupted(replace(dark, scale=16.0), settings)
    black = replace(raw(), train_inputs=raw().train_inputs * 0, test_inputs=raw().test_inputs * 0, scale=0.5)
    with pytest.raises(UserError, match="what white is"):
        corrupted(black, settings)
    corrupted(replace(raw(), scale=1.0), Data(name="some"))


@pytest.mark.parametrize("kind", ["bernoulli", "uniform", "positive_uniform"])
def test_noise_that_would_be_rounded_away_is_refused(kind: str, digits: RawData) -> None:
    with pytest.raises(UserError, match=r"data 'digits' hold levels from 0 to 16 only, .* Give 8 or more"):
        corrupted(digits, Data(name="digits", image_noise=noise(kind, magnitude=7.9)))
    found = corrupted(digits, Data(name="digits", image_noise=noise(kind, magnitude=8.0)))
    assert (found.train_inputs != digits.train_inputs).any()
    tails = noise("gaussian", magnitude=4.0)  # a quarter of a level: 5 in 100 draws are beyond half of one
    assert (corrupted(digits, Data(name="digits", image_noise=tails)).train_inputs != digits.train_inputs).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, ">i8", np.int32])
def test_labels_of_every_kind_of_integer_stay_integers(dtype: Any) -> None:
    labels = np.arange(100) % 7
    for fraction in (0.0, 0.5):
        found = noisy_labels(labels.astype(dtype), 7, fraction, "incorrect")
        assert found.dtype == np.int64
        assert np.array_equal(found, noisy_labels(labels, 7, fraction, "incorrect"))


@pytest.mark.parametrize(
    "given", [{"magnitude": 0.0}, {"kind": "blur"}, {"mode": "mix"}, {"fraction": 1.5}, {"strength": 1}]
)
def test_wrong_noise_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ImageNoise(**{"kind": "gaussian", "magnitude": 1.0, **given})


def keys(**given: Any) -> set[str]:
    spec = tomllib.loads(TINY.read_text())
    spec["task"]["data"] |= given
    plan = Plan(specs.validate(spec, "tiny"), "0" * 32)
    return {step.key for cell in plan for step in cell.steps}


def test_noise_is_in_every_key_and_its_default_in_none() -> None:
    before = keys()
    table = {"kind": "gaussian", "magnitude": 10}
    assert keys(test_noise=False) == before
    assert keys(limit=100) == before  # what is loaded is told by the fingerprint
    assert (Data(name="some").options, Data(name="some", limit=100).options) == ({}, {"limit": 100})
    spelled = {**table, "magnitude": 10.0, "mode": "add", "fraction": 1.0}
    assert keys(image_noise=table) == keys(image_noise=spelled)
    others = [keys(image_noise={**table, **more}) for more in ({}, {"mode": "replace"}, {"fraction": 0.5})]
    others += [keys(image_noise={**table, "magnitude": 11})]
    assert len(set().union(before, *others)) == len(before) * (1 + len(others))


def test_noise_on_the_test_data_needs_noise() -> None:
    spec = tomllib.loads(TINY.read_text())
    spec["task"]["data"] = {"name": "digits", "test_noise": True}
    with pytest.raises(SpecError, match=r"task\.data\.test_noise: true was given and no noise"):
        specs.validate(spec, "tiny")
    spec["load"] = {"label_noise": [0.0, 0.5]}
    spec["task"]["model"]["width"] = 2
    assert specs.validate(spec, "tiny").task.data.test_noise

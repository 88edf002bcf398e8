"""Made data of any size in the layouts in which the real sets are published; noisy images of patterns."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import image_folders as layouts
from image_folders import Labels, Pixels, Split

PATTERN, NOISE = 15.0, 60.0  # levels of a pixel: learnt in some epochs, and not without errors
NUMBERS = {"eins": "one", "zwei": "two", "drei": "three", "vier": "four", "fünf": "five", "sechs": "six"}


def images(count: int, classes: int, seed: int) -> tuple[Pixels, Labels]:
    """Images of 32 x 32 pixels: a smooth pattern a class, the same for all seeds, and noise."""
    y, x = np.mgrid[0:32, 0:32] / 32
    waves = np.random.default_rng(0).uniform(-9, 9, (3, classes, 3, 1, 1))
    patterns = 127.5 + PATTERN * np.sin(waves[0] * x + waves[1] * y + waves[2])  # (classes, 3, 32, 32)
    labels = np.arange(count) % classes
    noise = np.random.default_rng(seed).normal(0, NOISE, (count, 32, 32, 3))
    pixels = patterns[labels].transpose(0, 2, 3, 1) + noise
    return np.uint8(pixels.clip(0, 255).round()), labels


def _encoded(count: int, classes: int, seed: int, form: str = "PNG") -> Split:
    pixels, labels = images(count, classes, seed)
    return [layouts.encoded(one, form) for one in pixels], labels


def _parquet(label: str, classes: int) -> Callable[[Path, int, int], None]:
    def write(folder: Path, train: int, test: int) -> None:
        splits = {"train": _encoded(train, classes, 0), "test": _encoded(test, classes, 1)}
        layouts.write_parquet(folder, splits, "img", label)

    return write


def _house_numbers(folder: Path, train: int, test: int) -> None:
    for seed, (part, count) in enumerate((("train", train), ("test", test))):
        layouts.write_matlab(folder / f"{part}_32x32.mat", *images(count, 10, seed))


def _birds(folder: Path, train: int, test: int) -> None:
    layouts.write_birds(folder / "CUB_200_2011", _encoded(train, 200, 0, "JPEG"), _encoded(test, 200, 1, "JPEG"))


def _wordnet(folder: Path, train: int, test: int) -> None:
    layouts.write_wordnet(folder / "train", _encoded(train, 1000, 0, "JPEG"))
    layouts.write_wordnet(folder / "val", _encoded(test, 1000, 1, "JPEG"))


def _sentences(test_part: str) -> Callable[[Path, int, int], None]:
    def write(folder: Path, train: int, test: int) -> None:
        pytest.importorskip("tokenizers", reason="the extra [text] is not installed")
        pytest.importorskip("sacrebleu", reason="the extra [text] is not installed")
        generator = np.random.default_rng(0)
        for part, count in (("train", train), (test_part, test)):
            lines = [generator.choice(list(NUMBERS), generator.integers(2, 6)) for _ in range(count)]
            english = [" ".join(NUMBERS[word] for word in line) for line in lines]
            (folder / f"{part}.de").write_text("\n".join(map(" ".join, lines)) + "\n", encoding="utf-8")
            (folder / f"{part}.en").write_text("\n".join(english) + "\n", encoding="utf-8")

    return write


_WRITERS: dict[str, Callable[[Path, int, int], None]] = {
    "cifar10": _parquet("label", 10),
    "cifar100": _parquet("fine_label", 100),
    "svhn": _house_numbers,
    "cub200": _birds,
    "imagenet": _wordnet,
    "multi30k": _sentences("test_2016_flickr"),
    "iwslt": _sentences("test"),
}
PUBLISHED = tuple(_WRITERS)  # the data that are read from files
TEXT = ("multi30k", "iwslt")


def write(name: str, folder: Path, *, train: int, test: int) -> Path:
    """Write made data as `name` is published, with as many training and test samples; returns the folder."""
    folder.mkdir(parents=True)
    _WRITERS[name](folder, train, test)
    return folder

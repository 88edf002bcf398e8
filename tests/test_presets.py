"""Every preset runs through at a tiny scale, on data in the layout in which the real ones are published."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import command
import image_folders as layouts
from lossatlas import presets, results, specs

SCALE = 0.001
SAMPLES = 130  # a part; the batch of most presets is 128
LARGE = 1024  # the smallest batch of the preset of large ones


def cifar(folder: Path, label: str, classes: int, samples: int = SAMPLES) -> Path:
    def split(seed: int) -> layouts.Split:
        images = [layouts.encoded(pixels, "PNG") for pixels in layouts.random_images(samples, seed)]
        return images, np.arange(samples) % classes

    return layouts.write_parquet(folder, {"train": split(0), "test": split(1)}, "img", label)


def cifar10(folder: Path, samples: int = SAMPLES) -> Path:
    return cifar(folder, "label", 10, samples)


def cifar100(folder: Path) -> Path:
    return cifar(folder, "fine_label", 100)


def svhn(folder: Path) -> Path:
    folder.mkdir()
    for seed, part in enumerate(("train", "test")):
        pixels = layouts.random_images(SAMPLES, seed)
        layouts.write_matlab(folder / f"{part}_32x32.mat", pixels, np.arange(SAMPLES) % 10)
    return folder


def translations(folder: Path) -> Path:
    pytest.importorskip("tokenizers", reason="the extra [text] is not installed")
    pytest.importorskip("sacrebleu", reason="the extra [text] is not installed")
    folder.mkdir()
    numbers = {"eins": "one", "zwei": "two", "drei": "three", "vier": "four"}
    generator = np.random.default_rng(0)
    for part in ("train", "test", "test_2016_flickr"):
        lines = [generator.choice(list(numbers), generator.integers(2, 6)) for _ in range(SAMPLES)]
        (folder / f"{part}.de").write_text("\n".join(" ".join(line) for line in lines) + "\n")
        (folder / f"{part}.en").write_text("\n".join(" ".join(numbers[w] for w in line) for line in lines) + "\n")
    return folder


DATA: dict[str, Callable[[Path], Path]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
    "multi30k": translations,
    "iwslt": translations,
}
TEXT = ("multi30k", "iwslt")


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_runs_through_at_a_tiny_scale(name: str, tmp_path: Path) -> None:
    spec = specs.parse(presets.text(name), name)
    assert spec.name == name
    data, given = spec.task.data.name, ["--scale", str(SCALE)]
    if name == "yang2021/large-batch":
        given += ["--set", f"task.data.path={cifar10(tmp_path / 'data', LARGE)}"]
    elif data in DATA:
        given += ["--set", f"task.data.path={DATA[data](tmp_path / 'data')}"]
    if data in TEXT:  # the sizes of the real corpora say nothing here, one step has no warm-up, no trace is exact
        changes = ("task.data.n_train=32", 'train.schedule={name="constant"}', "measures.hessian.max_matvecs=16")
        given += [part for change in changes for part in ("--set", change)]
    done = command.run(tmp_path, "run", name, "--out", "run", "--device", "cpu", *given)
    assert done.code == 0, done.err
    tree = results.load(tmp_path / "run" / "results.nc")
    small = specs.scaled(spec, SCALE)
    assert tree["models"].sizes["seed"] == len(small.seeds) == 2
    assert not (tree["models"]["status"] == "failed").any()
    assert {path.name for path in (tmp_path / "run" / "figures").glob("*.pdf")}

"""Image data sets: the published layouts give the pixels, labels and order that were put in."""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import image_folders as folders
from image_folders import Labels, Pixels, Split, encoded
from libraries import torchvision_models
from lossatlas import registry
from lossatlas.errors import FileError, UserError
from lossatlas.sweep import data_cache
from lossatlas.tasks import data, images
from lossatlas.tasks.data import RawData
from lossatlas.tasks.images import TABLE

SIZES = [(40, 30), (30, 41), (300, 257), (33, 33), (256, 300), (500, 260), (64, 48), (48, 64)]


def labels(count: int, classes: int, seed: int = 0) -> Labels:
    return np.random.default_rng(seed).integers(0, classes, count)


@dataclass(frozen=True)
class Small:
    """A tiny data set of 32 x 32 pixels: what goes in, and who writes it as its authors do."""

    name: str
    classes: int
    write: Callable[[Path, "Small"], Path]
    train: tuple[Pixels, Labels]
    test: tuple[Pixels, Labels]

    def parquet(self, folder: Path) -> Path:
        row = TABLE[self.name]
        splits: dict[str, Split] = {
            split: ([encoded(image, "PNG") for image in pixels], targets)
            for split, (pixels, targets) in (("train", self.train), ("test", self.test))
        }
        return folders.write_parquet(folder, splits, row.image, row.label)


def write_cifar10(folder: Path, small: Small) -> Path:
    for k, rows in enumerate(np.array_split(np.arange(len(small.train[1])), 5), 1):
        folders.write_batch(folder / f"data_batch_{k}", small.train[0][rows], "labels", small.train[1][rows])
    folders.write_batch(folder / "test_batch", small.test[0], "labels", small.test[1])
    return folder


def write_cifar100(folder: Path, small: Small) -> Path:
    for name, (pixels, targets) in (("train", small.train), ("test", small.test)):
        folders.write_batch(folder / name, pixels, "fine_labels", targets)
    return folder


def write_svhn(folder: Path, small: Small) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (pixels, targets) in (("train", small.train), ("test", small.test)):
        folders.write_matlab(folder / f"{name}_32x32.mat", pixels, targets)
    return folder


def small(name: str, classes: int, write: Callable[[Path, Small], Path]) -> Small:
    train = folders.random_images(13), labels(13, classes)
    return Small(name, classes, write, train, (folders.random_images(7, seed=1), labels(7, classes, seed=1)))


SMALL = [
    small("cifar10", 10, write_cifar10),
    small("cifar100", 100, write_cifar100),
    small("svhn", 10, write_svhn),
]


def same(raw: RawData, given: Small, limit: int | None = None) -> None:
    """The images and labels that were put in, bit by bit and in their order."""
    for inputs, targets, (pixels, expected) in (
        (raw.train_inputs, raw.train_targets, given.train),
        (raw.test_inputs, raw.test_targets, given.test),
    ):
        np.testing.assert_array_equal(inputs, pixels.transpose(0, 3, 1, 2)[:limit], strict=True)
        np.testing.assert_array_equal(targets, expected[:limit], strict=True)


@pytest.mark.parametrize("given", SMALL, ids=lambda given: given.name)
def test_small_images_come_bit_by_bit_from_either_layout(given: Small, tmp_path: Path) -> None:
    assert 0 in given.test[1] or given.name != "svhn"  # SVHN writes 10 for it
    original = data.load(given.name, str(given.write(tmp_path / "original", given)))
    parquet = data.load(given.name, str(given.parquet(tmp_path / "hub")))
    for raw in (original, parquet):
        same(raw, given)
        assert (raw.classes, raw.scale) == (given.classes, 255.0)
    assert original.fingerprint() == parquet.fingerprint()
    assert original.facts().classes == registry.DATA[given.name].facts.classes  # type: ignore[union-attr]
    assert original.input_shape == registry.DATA[given.name].facts.input_shape  # type: ignore[union-attr]


@pytest.mark.parametrize("given", SMALL, ids=lambda given: given.name)
def test_small_images_are_found_in_the_folders_that_archives_and_the_hub_make(
    given: Small, tmp_path: Path
) -> None:
    row = TABLE[given.name]
    given.write(tmp_path / "original" / row.archive.folder, given)
    given.parquet(tmp_path / "hub" / str(row.config))
    given.parquet(tmp_path / "data" / "data")
    for folder in ("original", "hub", "data"):
        same(data.load(given.name, str(tmp_path / folder)), given)


@pytest.mark.parametrize("given", SMALL, ids=lambda given: given.name)
@pytest.mark.parametrize("limit", [1, 5, 8, 100])
def test_a_limit_takes_the_first_images_of_each_part(given: Small, limit: int, tmp_path: Path) -> None:
    for folder in (given.write(tmp_path / "original", given), given.parquet(tmp_path / "hub")):
        same(data.load(given.name, str(folder), {"limit": limit}), given, limit)


def test_no_more_is_decoded_than_a_limit_asks_for(tmp_path: Path) -> None:
    given = SMALL[0]
    good = [encoded(image, "PNG") for image in given.train[0]]
    split: Split = [*good[:5], *[b"no image"] * 8], given.train[1]
    folders.write_parquet(tmp_path, {"train": split, "test": split}, "img", "label")
    same_part = images.cifar10(str(tmp_path), 5)
    np.testing.assert_array_equal(same_part.train_inputs, given.train[0][:5].transpose(0, 3, 1, 2))
    with pytest.raises(FileError, match=r"train-00000-of-00002.parquet, row 5 cannot be read"):
        images.cifar10(str(tmp_path), 6)


def test_normalisation_is_what_it_was() -> None:
    # The numbers are part of the fingerprint, so of every key.
    row = TABLE["cifar10"]
    assert (row.mean, row.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    preset = torchvision_models().MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    for name in ("cub200", "imagenet"):
        row = TABLE[name]
        assert (list(row.mean), list(row.std)) == (preset.mean, preset.std)
        assert ([row.resize], [row.facts.input_shape[1]]) == (preset.resize_size, preset.crop_size)


def jpegs(classes: int, seed: int, count: int = len(SIZES)) -> tuple[Split, list[Pixels]]:
    """Photographs of all sizes as JPEG, and their pixels before."""
    pixels = folders.photographs(SIZES[:count])
    return ([encoded(image, "JPEG", quality=95) for image in pixels], labels(count, classes, seed)), pixels


def reference(content: bytes) -> Any:
    """What torchvision makes of a file, (3, 224, 224)."""
    torchvision_models()  # else the import may fail
    from torchvision import transforms

    image = pytest.importorskip("PIL.Image", reason="the extra [datasets] is not installed")

    resize = transforms.Resize(256, transforms.InterpolationMode.BILINEAR)
    pixels = transforms.CenterCrop(224)(resize(image.open(io.BytesIO(content)).convert("RGB")))
    return np.asarray(pixels).transpose(2, 0, 1)


def as_sets(inputs: Any, targets: Any) -> list[tuple[bytes, int]]:
    return sorted((image.tobytes(), int(label)) for image, label in zip(inputs, targets, strict=True))


def test_birds_come_from_their_lists_as_from_parquet(tmp_path: Path) -> None:
    (train, _), (test, _) = jpegs(200, 0), jpegs(200, 1, count=5)
    folders.write_birds(tmp_path / "CUB_200_2011", train, test)
    raw = data.load("cub200", str(tmp_path))
    for inputs, targets, (contents, expected) in (
        (raw.train_inputs, raw.train_targets, train),
        (raw.test_inputs, raw.test_targets, test),
    ):
        assert as_sets(inputs, targets) == as_sets([reference(content) for content in contents], expected)
        assert inputs.shape[1:] == (3, 224, 224)
        assert inputs.dtype == np.uint8
    assert (raw.classes, raw.facts().input_shape) == (200, registry.DATA["cub200"].facts.input_shape)  # type: ignore[union-attr]
    hub = folders.write_parquet(tmp_path / "hub" / "data", {"train": train, "test": test}, "image", "label").parent
    assert data.load("cub200", str(hub)).fingerprint() == raw.fingerprint()


def test_photographs_are_those_before_jpeg_resized_by_averaging() -> None:
    # Bilinear with antialiasing is a weighted mean over the pixels that an output pixel covers: of a linear ramp
    # it is the ramp, away from the edges.
    image = pytest.importorskip("PIL.Image", reason="the extra [datasets] is not installed")
    ramp = np.uint8(np.broadcast_to(np.arange(768)[None, :, None] / 4, (512, 768, 3)))
    found = np.asarray(images.centre(image.fromarray(ramp), 256, 224))
    x = 2 * (np.arange(224) + 80) + 0.5  # the middle of two pixels of the ramp: (384 - 224)/2 = 80 are cut off
    assert np.abs(found - (x / 4)[None, :, None]).max() <= 1  # both the ramp and the result are rounded
    assert found.shape == (224, 224, 3)


def test_jpeg_changes_little() -> None:
    (contents, _), pixels = jpegs(10, 0)
    image = pytest.importorskip("PIL.Image", reason="the extra [datasets] is not installed")
    for content, before in zip(contents, pixels, strict=True):
        after = images._decoded(TABLE["imagenet"], images.Encoded("image", content))
        clean = np.asarray(images.centre(image.fromarray(before), 256, 224)).transpose(2, 0, 1)
        # Quality 95 quantises brightness in steps of up to some 5 levels and halves the resolution of colours.
        assert np.abs(after.astype(int) - clean).mean() < 3


def test_imagenet_comes_from_folders_of_classes_as_from_parquet(tmp_path: Path) -> None:
    (train, _), (val, _) = jpegs(1000, 0), jpegs(1000, 1, count=6)
    by_class = [(c, np.sort(t)) for c, t in (train, val)]  # the order of folders
    folders.write_wordnet(tmp_path / "train", by_class[0])
    folders.write_wordnet(tmp_path / "val", by_class[1])
    raw = data.load("imagenet", str(tmp_path))
    for inputs, targets, (contents, expected) in (
        (raw.train_inputs, raw.train_targets, by_class[0]),
        (raw.test_inputs, raw.test_targets, by_class[1]),
    ):
        assert as_sets(inputs, targets) == as_sets([reference(content) for content in contents], expected)
        assert targets.tolist() != expected.tolist()  # the order is a permutation
    hub = folders.write_parquet(
        tmp_path / "hub", {"train": by_class[0], "validation": by_class[1]}, "image", "label"
    )
    assert data.load("imagenet", str(hub)).fingerprint() == raw.fingerprint()
    assert raw.classes == 1000


def test_a_limit_of_photographs_is_a_prefix_of_all(tmp_path: Path) -> None:
    (train, _), (val, _) = jpegs(1000, 0), jpegs(1000, 1, count=6)
    folders.write_parquet(tmp_path, {"train": train, "validation": val}, "image", "label")
    whole, some = (images.imagenet(str(tmp_path), limit) for limit in (None, 4))
    assert np.array_equal(some.train_inputs, whole.train_inputs[:4])
    assert np.array_equal(some.train_targets, whole.train_targets[:4])
    assert np.array_equal(some.test_inputs, whole.test_inputs[:4])
    assert some.fingerprint() != whole.fingerprint()  # so it is in every key
    assert images.imagenet(str(tmp_path), 8).fingerprint() == whole.fingerprint()


def test_validation_images_alone_are_dealt_in_two_halves(tmp_path: Path) -> None:
    (val, _) = jpegs(1000, 1)
    folders.write_wordnet(tmp_path / "val", (val[0], np.sort(val[1])))
    raw = data.load("imagenet", str(tmp_path))
    inputs = [*raw.train_inputs, *raw.test_inputs]
    assert (len(raw.train_inputs), len(raw.test_inputs)) == (4, 4)
    expected = as_sets([reference(content) for content in val[0]], np.sort(val[1]))
    assert as_sets(inputs, [*raw.train_targets, *raw.test_targets]) == expected
    assert raw.notes == ("ImageNet without training images: its validation images are dealt in two halves.",)
    some = images.imagenet(str(tmp_path), 3)
    assert np.array_equal(some.train_inputs, raw.train_inputs[:3])
    assert np.array_equal(some.test_inputs, raw.test_inputs[:3])


def test_what_is_loaded_can_be_kept_as_arrays(tmp_path: Path) -> None:
    given = SMALL[2]
    raw = data.load(given.name, str(given.write(tmp_path / "original", given)))
    data_cache.keep(tmp_path / "store", raw, raw.fingerprint())
    kept = data_cache.kept(tmp_path / "store", raw.fingerprint())
    assert kept is not None
    same(kept, given)


@pytest.mark.parametrize("name", TABLE)
def test_a_wrong_folder_is_told_with_what_is_expected_and_found(name: str, tmp_path: Path) -> None:
    row = TABLE[name]
    expected = rf"holds no {row.title}: expected train-\*\.parquet and {row.test}-\*\.parquet"
    with pytest.raises(
        FileError, match=rf"{expected}.* or {row.archive.names[0]}.*found nothing in it.*--data-path"
    ):
        data.load(name, str(tmp_path))
    for k in range(7):
        (tmp_path / f"file{k}").touch()
    with pytest.raises(FileError, match=rf"{expected}.*found file0, .*, file4 and 2 more"):
        data.load(name, str(tmp_path))
    with pytest.raises(FileError, match=rf"{expected}.*there is no such folder"):
        data.load(name, str(tmp_path / "nowhere"))


def test_one_part_does_not_do_unless_it_is_imagenets(tmp_path: Path) -> None:
    given = SMALL[0]
    write_cifar10(tmp_path / "pickles", given)
    (tmp_path / "pickles" / "data_batch_3").unlink()
    given.parquet(tmp_path / "parquet")
    for path in (tmp_path / "parquet").glob("train-*"):
        path.unlink()
    for folder in ("pickles", "parquet"):
        with pytest.raises(FileError, match="holds no CIFAR-10"):
            data.load("cifar10", str(tmp_path / folder))


class Anything:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


def test_damaged_files_are_named_and_nothing_in_them_is_executed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = SMALL[0]
    write_cifar10(tmp_path, given)
    path = tmp_path / "data_batch_4"
    whole = path.read_bytes()
    for content, problem in (
        (folders.python2_pickle(Anything()), "is refused: it asks for"),
        (whole[:-100], "is damaged"),
        (folders.python2_pickle([1, 2]), "cannot be read"),
        (folders.python2_pickle({"data": np.zeros((2, 3072)), "labels": [0, 1]}), "float64 pixels"),
        (folders.python2_pickle({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}), "1 labels"),
    ):
        path.write_bytes(content)
        with pytest.raises(FileError, match=rf"data_batch_4.*{problem}"):
            data.load("cifar10", str(tmp_path))
    assert "executed" not in capsys.readouterr().out


def test_damaged_house_numbers_are_named(tmp_path: Path) -> None:
    from scipy.io import savemat

    given = SMALL[2]
    write_svhn(tmp_path, given)
    path = tmp_path / "train_32x32.mat"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match=r"train_32x32\.mat cannot be read"):
        data.load("svhn", str(tmp_path))
    savemat(path, {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[0], [11]]})
    with pytest.raises(FileError, match="labels from 0 to 11, not from 1 to 10"):
        data.load("svhn", str(tmp_path))
    savemat(path, {"X": np.zeros((32, 32, 3, 2), np.uint8)})
    with pytest.raises(FileError, match="cannot be read"):
        data.load("svhn", str(tmp_path))


def test_damaged_parquet_files_are_named(tmp_path: Path) -> None:
    given = SMALL[0]
    folder = given.parquet(tmp_path)
    path = folder / "test-00001-of-00002.parquet"
    path.write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(FileError, match=r"test-00001-of-00002\.parquet cannot be read"):
        data.load("cifar10", str(folder))
    splits = {"train": ([b""], np.array([0])), "test": ([b""], np.array([0]))}
    other = folders.write_parquet(tmp_path / "other", splits, "image", "label", files=1)
    columns = r"has the columns image, coarse_label, label, and img, label are needed: it is probably another"
    with pytest.raises(FileError, match=rf"train-00000-of-00001\.parquet {columns}.*task\.data\.path"):
        data.load("cifar10", str(other))
    large = encoded(np.zeros((40, 30, 3), np.uint8), "PNG")
    splits = {"train": ([large], np.array([0])), "test": ([large], np.array([0]))}
    other = folders.write_parquet(tmp_path / "large", splits, "img", "label", files=1)
    with pytest.raises(FileError, match="row 0 has 30 x 40 pixels; those of CIFAR-10 have 32 x 32"):
        data.load("cifar10", str(other))


def test_another_data_set_is_told_by_its_columns(tmp_path: Path) -> None:
    folder = SMALL[0].parquet(tmp_path)
    with pytest.raises(FileError, match="columns img, coarse_label, label, and img, fine_label are needed"):
        data.load("cifar100", str(folder))


def test_labels_that_are_no_classes_are_told_with_their_place(tmp_path: Path) -> None:
    given = SMALL[0]
    pixels, targets = given.test
    wrong = replace(given, test=(pixels, np.where(np.arange(len(targets)) == 5, 57, targets % 10)))
    told = "has the label 57, and CIFAR-10 has 10 classes, from 0 to 9"
    with pytest.raises(FileError, match=rf"test-00001-of-00002\.parquet, row 1 {told}"):
        data.load("cifar10", str(wrong.parquet(tmp_path / "hub")))
    with pytest.raises(FileError, match=f"Image 5 {told}"):
        data.load("cifar10", str(write_cifar10(tmp_path / "original", wrong)))
    below = replace(given, train=(given.train[0], given.train[1] - 1 - given.train[1].min()))
    with pytest.raises(FileError, match="has the label -1, and CIFAR-10 has 10 classes"):
        data.load("cifar10", str(below.parquet(tmp_path / "below")))


def test_lists_of_birds_that_do_not_fit_are_told(tmp_path: Path) -> None:
    (train, _), (test, _) = jpegs(200, 0), jpegs(200, 1, count=2)
    folders.write_birds(tmp_path, train, test)
    path = tmp_path / "image_class_labels.txt"
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(FileError, match="name different images"):
        data.load("cub200", str(tmp_path))
    path.write_text(whole.replace(" ", " bird ", 1))
    with pytest.raises(FileError, match=r"image_class_labels\.txt cannot be read"):
        data.load("cub200", str(tmp_path))
    path.write_text(whole)
    next((tmp_path / "images").rglob("*0003.jpg")).unlink()
    with pytest.raises(FileError, match=r"0003\.jpg cannot be read"):
        data.load("cub200", str(tmp_path))


def test_folders_of_classes_must_be_all(tmp_path: Path) -> None:
    (val, _) = jpegs(1000, 1, count=2)
    folders.write_wordnet(tmp_path / "val", val)
    folders.write_wordnet(tmp_path / "train", val)
    (tmp_path / "train" / "n99999999").mkdir()
    with pytest.raises(FileError, match=r"train holds 1001 folders of classes; expected are the 1000"):
        data.load("imagenet", str(tmp_path))
    empty = next(name for k, name in enumerate(folders.WORDNET) if k not in val[1])
    (tmp_path / "train" / empty).rmdir()
    with pytest.raises(FileError, match="are not the same"):
        data.load("imagenet", str(tmp_path))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A hub that holds SMALL's CIFAR-100 under every name; the list says what was asked of it."""
    datasets = pytest.importorskip("datasets", reason="the extra [datasets] is not installed")
    asked: list[tuple[Any, ...]] = []
    given = SMALL[1]
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(num_classes=100)})

    def load_dataset(name: str, config: str | None, *, split: str) -> Any:
        asked.append((name, config, split))
        pixels, targets = given.train if split == "train" else given.test
        return datasets.Dataset.from_dict({"img": list(pixels), "fine_label": targets}, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_the_hub_gives_the_same_as_its_files(hub: list[tuple[Any, ...]]) -> None:
    same(data.load("cifar100", None), SMALL[1])
    assert hub == [("uoft-cs/cifar100", "cifar100", "train"), ("uoft-cs/cifar100", "cifar100", "test")]
    same(images.cifar100(limit=3), SMALL[1], 3)


def test_a_hub_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra [datasets] is not installed")

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        FileError, match=r"ILSVRC/imagenet-1k cannot be loaded from the hub.*no network.*data\.path"
    ):
        data.load("imagenet", None)


def test_the_extra_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = SMALL[0].parquet(tmp_path)
    original = write_cifar10(tmp_path / "original", SMALL[0])
    for module in ("pyarrow.parquet", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    for path in (str(folder), None):
        with pytest.raises(UserError, match=r"pip install 'lossatlas\[datasets\]'"):
            data.load("cifar10", path)
    same(data.load("cifar10", str(original)), SMALL[0])  # pickles need none


def decoded_by_the_library(folder: Path, part: str, count: int | None, cache: Path) -> tuple[Any, Any]:
    """CIFAR-10 as the `datasets` library decodes its parquet files."""
    datasets = pytest.importorskip("datasets", reason="the extra [datasets] is not installed")
    datasets.disable_progress_bars()
    files = sorted(str(path) for path in folder.glob(f"{part}-*.parquet"))
    found = datasets.load_dataset("parquet", data_files={part: files}, cache_dir=str(cache))[part]
    found = found if count is None else found.select(range(count))
    pixels = np.stack([np.asarray(image.convert("RGB"), dtype=np.uint8) for image in found["img"]])
    return pixels.transpose(0, 3, 1, 2).copy(), np.asarray(found["label"], dtype=np.int64)


@pytest.mark.parametrize("limit", [300, pytest.param(None, marks=pytest.mark.slow)])
def test_the_real_cifar10_is_what_the_library_decodes(
    shared_data: Path, tmp_path: Path, limit: int | None
) -> None:
    folder = shared_data / "cifar10"
    raw = images.cifar10(str(folder), limit)
    arrays = [
        array
        for part in ("train", "test")
        for array in decoded_by_the_library(folder, part, limit, tmp_path / "cache")
    ]
    # Written out, so that the fingerprint, which is in every key, cannot change unseen.
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    assert raw.fingerprint() == RawData(*arrays, 10, 255.0, mean, std).fingerprint()
    if limit is None:
        assert raw.facts() == registry.DATA["cifar10"].facts
        assert np.bincount(raw.train_targets).tolist() == [5000] * 10
        pixels = raw.train_inputs[:5000] / 255.0
        # The customary constants; our images are re-encoded and a tenth of all.
        np.testing.assert_allclose(pixels.mean((0, 2, 3)), raw.mean, atol=0.01)

"""Where the images of a data set lie: the hub, its parquet files, and what the authors publish. Decodes no image.

Nothing in these files is executed: pickles pass through `unpickle.loads` alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lossatlas import registry, unpickle
from lossatlas.errors import FileError, UserError
from lossatlas.tasks.data import DATA_PATH, IntArray

ROWS = 256  # of a parquet file that are read at once: some 30 MB of photographs
WORDNET_CLASSES = 1000  # of ILSVRC 2012


def extra(module: str) -> Any:
    """What decodes images and reads their files; raises UserError where it is missing."""
    return registry.extra(module, "these data need", "datasets")


class Encoded(NamedTuple):
    """An image as it lies in its file: PNG, JPEG."""

    name: str  # for messages
    content: bytes


@dataclass(frozen=True)
class Part:
    """The training or the test images of a data set: all labels, and images when they are asked for."""

    labels: IntArray  # (N,)
    images: Callable[[IntArray], Iterator[Encoded | NDArray[np.uint8]]]  # of ascending rows; arrays are (3, H, W)


Parts = tuple[Part | None, Part]  # training (if there is one) and test


@dataclass(frozen=True)
class Archive:
    """What the authors publish: the folder that it unpacks to, what must stand in it, and who reads it."""

    folder: str
    names: tuple[str, ...]
    read: Callable[[Path], Parts]


@contextmanager
def reading(name: object) -> Iterator[None]:
    """Turn whatever a foreign file makes its reader raise into a FileError with its name."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a damaged file can make a parser raise almost anything
        raise FileError(
            f"{name} cannot be read ({type(error).__name__}: {error}). It is damaged or laid out otherwise: get "
            "it again."
        ) from error


def on_hub(name: str, config: str | None, split: str, image: str, label: str) -> Part:
    """A split of a data set on the Hugging Face hub, or in its cache; raises FileError if there is none."""
    datasets = extra("datasets")
    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(name, config, split=split)
        labels = found.select_columns([label]).with_format("numpy")[:][label]
        images = found.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    except Exception as error:  # the errors of several libraries, not all of them an OSError
        raise FileError(
            f"{name} cannot be loaded from the hub ({type(error).__name__}: {error}). Say where a folder with its "
            f"files is: {DATA_PATH}."
        ) from error

    def encoded(rows: IntArray) -> Iterator[Encoded]:
        for row in rows.tolist():
            yield _from_cell(f"{name}, image {row} of {split}", images[row][image])

    return Part(np.asarray(labels, dtype=np.int64), encoded)


def parquet(folder: Path, split: str, image: str, label: str) -> Part | None:
    """The images in `<split>-*.parquet`, in the order of the files; None if there are no such files."""
    paths = sorted(folder.glob(f"{split}-*.parquet"))
    if not paths:
        return None
    pyarrow = extra("pyarrow.parquet")
    labels = []
    for path in paths:
        with reading(path), pyarrow.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names, image, label)
            labels.append(np.asarray(file.read(columns=[label])[label], dtype=np.int64))

    def encoded(rows: IntArray) -> Iterator[Encoded]:
        start = 0
        for path, known in zip(paths, labels, strict=True):
            wanted = rows[(rows >= start) & (rows < start + len(known))] - start
            start += len(known)
            if len(wanted):
                with reading(path), pyarrow.ParquetFile(path) as file:
                    for row, cell in _cells(file, image, wanted):
                        yield _from_cell(f"{path}, row {row}", cell)

    return Part(np.concatenate(labels), encoded)


def _check_columns(path: Path, found: Sequence[str], *needed: str) -> None:
    if not set(needed) <= set(found):
        raise FileError(
            f"{path} has the columns {', '.join(found)}, and {', '.join(needed)} are needed: it is probably "
            f"another data set. Mend the name of the data, or their path: {DATA_PATH}."
        )


def _cells(file: Any, column: str, rows: IntArray) -> Iterator[tuple[int, Any]]:
    """The cells of a column in ascending rows; what lies behind the last of them is not read."""
    start = 0
    for batch in file.iter_batches(batch_size=ROWS, columns=[column]):
        inside = rows[(rows >= start) & (rows < start + len(batch))]
        for row in inside.tolist():
            yield row, batch[column][row - start].as_py()
        start += len(batch)
        if start > rows[-1]:
            return


def _from_cell(name: str, cell: Any) -> Encoded:
    if not isinstance(cell, dict) or not isinstance(cell.get("bytes"), bytes):
        raise FileError(f"{name} holds no image: a table with `bytes` is expected, as the hub publishes images.")
    return Encoded(name, cell["bytes"])


def cifar(folder: str, train: Sequence[str], test: str, label: str) -> Archive:
    """The "python version" of CIFAR: pickled batches with `data` (n, 3072) and a list of labels."""

    def read(where: Path) -> Parts:
        return _batches([where / name for name in train], label), _batches([where / test], label)

    return Archive(folder, (*train, test), read)


def _batches(paths: Sequence[Path], label: str) -> Part:
    pixels, labels = [], []
    for path in paths:
        with reading(path):
            batch = unpickle.loads(path.read_bytes(), name=str(path))
            pixels.append(np.asarray(batch["data"]).reshape(-1, 3, 32, 32))
            labels.append(np.asarray(batch[label], dtype=np.int64))
            _check(pixels[-1], labels[-1])
    return _in_memory(np.concatenate(pixels), np.concatenate(labels))


def _house_numbers(folder: Path) -> Parts:
    return _matlab(folder / "train_32x32.mat"), _matlab(folder / "test_32x32.mat")


def _matlab(path: Path) -> Part:
    """A file of SVHN: X (32, 32, 3, N), y (N, 1) with 10 for the digit 0."""
    from scipy.io import loadmat

    with reading(path):
        content = loadmat(str(path), variable_names=["X", "y"])
        pixels, labels = content["X"].transpose(3, 2, 0, 1), content["y"].ravel().astype(np.int64)
        _check(pixels, labels)
        if labels.min() < 1 or labels.max() > 10:
            raise ValueError(f"y has labels from {labels.min()} to {labels.max()}, not from 1 to 10")
    return _in_memory(pixels, labels % 10)


def _check(pixels: NDArray[Any], labels: NDArray[Any]) -> None:
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3, 32, 32):
        raise ValueError(f"{len(labels)} labels, and {pixels.dtype} pixels of shape {pixels.shape}")


def _in_memory(pixels: NDArray[np.uint8], labels: IntArray) -> Part:
    return Part(labels, lambda rows: (pixels[row] for row in rows))


def _birds(folder: Path) -> Parts:
    """CUB-200-2011: three lists by the number of an image; classes count from 1."""
    paths, labels, trained = (
        _listed(folder / f"{name}.txt") for name in ("images", "image_class_labels", "train_test_split")
    )
    if not paths.keys() == labels.keys() == trained.keys():
        raise FileError(f"The lists in {folder} name different images. They are damaged: get them again.")

    def part(flag: str) -> Part:
        numbers = [number for number in paths if trained[number] == flag]
        with reading(folder / "image_class_labels.txt"):
            classes = np.array([int(labels[number]) - 1 for number in numbers], dtype=np.int64)
        return _files([folder / "images" / paths[number] for number in numbers], classes)

    return part("1"), part("0")


def _listed(path: Path) -> dict[str, str]:
    """The lines `<number> <value>` of a list, in their order."""
    with reading(path):
        lines = path.read_text(encoding="utf-8").splitlines()
        return dict(line.split() for line in lines if line)


def _wordnet(folder: Path) -> Parts:
    """ImageNet: a folder a class, `val/<WordNet id>/*.JPEG`, and `train` alike where there is one."""
    classes = _classes(folder / "val")
    train = folder / "train" if (folder / "train").is_dir() else None
    if train and _classes(train) != classes:
        raise FileError(f"The folders of classes in {train} and {folder / 'val'} are not the same.")
    return _by_class(train, classes) if train else None, _by_class(folder / "val", classes)


def _classes(folder: Path) -> list[str]:
    found = sorted(path.name for path in folder.iterdir() if re.fullmatch(r"n\d{8}", path.name))
    if len(found) != WORDNET_CLASSES:
        raise FileError(
            f"{folder} holds {len(found)} folders of classes; expected are the {WORDNET_CLASSES} of ILSVRC 2012, "
            "named by their WordNet ids (n01440764, ...), since the number of a class is its place among them. "
            "Sort the images into such folders; those of classes that you leave out may be empty."
        )
    return found


def _by_class(folder: Path, classes: Sequence[str]) -> Part:
    found = [(path, k) for k, name in enumerate(classes) for path in sorted((folder / name).glob("*.JPEG"))]
    return _files([path for path, _ in found], np.array([k for _, k in found], dtype=np.int64))


def _files(paths: Sequence[Path], labels: IntArray) -> Part:
    def encoded(rows: IntArray) -> Iterator[Encoded]:
        for row in rows:
            with reading(paths[row]):
                content = paths[row].read_bytes()
            yield Encoded(str(paths[row]), content)

    return Part(labels, encoded)


SVHN = Archive(".", ("train_32x32.mat", "test_32x32.mat"), _house_numbers)
CUB = Archive("CUB_200_2011", ("images.txt", "image_class_labels.txt", "train_test_split.txt", "images"), _birds)
IMAGENET = Archive(".", ("val",), _wordnet)

"""Tiny data sets of images in the layouts in which the real ones are published."""

import io
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # (N, H, W, 3)
Labels = NDArray[np.int64]
Split = tuple[Sequence[bytes], Labels]  # images as they lie in files


def random_images(count: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def photographs(sizes: Sequence[tuple[int, int]]) -> list[Pixels]:
    """Smooth images of these (heights, widths), as JPEG likes them: waves of random directions."""
    generator = np.random.default_rng(1)
    found = []
    for height, width in sizes:
        y, x = np.mgrid[0:height, 0:width] / max(height, width)
        waves = [np.sin(generator.uniform(-9, 9) * x + generator.uniform(-9, 9) * y + k) for k in range(3)]
        found.append(np.uint8(np.round(127.5 + 120 * np.stack(waves, -1))))
    return found


def encoded(pixels: Pixels, form: str, **options: Any) -> bytes:
    image = pytest.importorskip("PIL.Image", reason="the extra [datasets] is not installed")
    stream = io.BytesIO()
    image.fromarray(pixels).save(stream, form, **options)
    return stream.getvalue()


def write_parquet(folder: Path, splits: dict[str, Split], image: str, label: str, files: int = 2) -> Path:
    """The hub's layout: a table of bytes and path, several files a split, several row groups a file."""
    arrow = pytest.importorskip("pyarrow", reason="the extra [datasets] is not installed")
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    for split, (contents, labels) in splits.items():
        for k, rows in enumerate(np.array_split(np.arange(len(labels)), files)):
            cells = arrow.array([{"bytes": contents[row], "path": f"{row}.png"} for row in rows], kind)
            table = arrow.table({image: cells, "coarse_label": labels[rows] % 2, label: labels[rows]})
            parquet.write_table(table, folder / f"{split}-{k:05}-of-{files:05}.parquet", row_group_size=3)
    return folder


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]  # the one in Python, whose parts can be replaced
    """Writes text and bytes as Python 2 wrote its strings, as in CIFAR's own files."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def _text(self, text: str | bytes) -> None:
        raw = text.encode("latin1") if isinstance(text, str) else text
        self.write(b"T" + struct.pack("<i", len(raw)) + raw)  # BINSTRING
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = _text


def python2_pickle(content: Any) -> bytes:
    stream = io.BytesIO()
    _Python2Pickler(stream, protocol=2).dump(content)
    return stream.getvalue()


def write_batch(path: Path, pixels: Pixels, label: str, labels: Labels) -> None:
    """A batch of CIFAR's "python version": red, green and blue planes in a row of 3,072 numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    others = {"batch_label": "a batch", "filenames": [f"{k}.png" for k in range(len(pixels))]}
    coarse = {"coarse_labels": [0] * len(labels)} if label == "fine_labels" else {}
    path.write_bytes(python2_pickle({"data": rows, label: labels.tolist(), **others, **coarse}))


def write_matlab(path: Path, pixels: Pixels, labels: Labels) -> None:
    """A file of SVHN: images along the last axis, 10 for the digit 0."""
    from scipy.io import savemat

    y = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
    savemat(path, {"X": pixels.transpose(1, 2, 3, 0), "y": y}, do_compression=True)


def write_birds(folder: Path, train: Split, test: Split) -> Path:
    """CUB-200-2011's layout, training and test images taking turns in the lists, as far as both last."""
    rows = [("1", content, label) for content, label in zip(*train, strict=True)]
    for k, (content, label) in enumerate(zip(*test, strict=True)):
        rows.insert(2 * k + 1, ("0", content, label))
    lists: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    for number, (trained, content, label) in enumerate(rows, 1):
        name = f"{label + 1:03}.Bird_{label}/Bird_{label}_{number:04}.jpg"
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        for values, value in zip(lists.values(), (name, label + 1, trained), strict=True):
            values.append(f"{number} {value}\n")
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("".join(lines))
    return folder


WORDNET = [f"n{1_440_000 + 37 * k:08}" for k in range(1000)]


def write_wordnet(folder: Path, images: Split) -> Path:
    """A part of ImageNet: a folder a class, all 1,000 of them."""
    for name in reversed(WORDNET):
        (folder / name).mkdir(parents=True)
    for number, (content, label) in enumerate(zip(*images, strict=True)):
        (folder / WORDNET[label] / f"ILSVRC2012_val_{number:08}.JPEG").write_bytes(content)
    return folder

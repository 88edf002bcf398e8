"""Image data sets as uint8 arrays (N, 3, H, W), from the Hugging Face hub or from a folder as it was published.

A folder (`path`) holds the hub's parquet files (`train-*.parquet` ..., also in `data/` or in the folder of the
hub's configuration), or what the authors publish, unpacked. The order is that of the files; where it goes class by
class (CUB-200-2011, ImageNet) one fixed permutation of it, so that the first n images are a sample of all classes.

`limit` takes the first images of that order, at most `limit` of each part, and decodes no others. The fingerprint
of what was loaded tells it, and with that every key.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lossatlas import registry
from lossatlas.errors import FileError
from lossatlas.tasks import image_sources as sources
from lossatlas.tasks.data import DATA_PATH, IntArray, RawData
from lossatlas.tasks.image_sources import Archive, Encoded, Part, Parts

Channels = tuple[float, float, float]

PHOTOGRAPHS: tuple[Channels, Channels] = (  # mean and std that torchvision's published weights expect
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Where a data set is published, what its files call things, and how a pixel enters a model."""

    name: str  # in registry.DATA, which knows its sizes
    title: str
    hub: str
    config: str | None = None  # the hub's, where it has several
    image: str = "image"  # the hub's columns
    label: str = "label"
    test: str = "test"  # the hub's name of the images that are measured
    archive: Archive
    mean: Channels  # of pixels / 255
    std: Channels
    resize: int | None = None  # the shorter side gets this length, then the centre is cut out
    by_class: bool = False  # the published order goes class by class
    test_alone: bool = False  # training images may be missing, and are too many to fetch from the hub

    @property
    def facts(self) -> registry.Facts:
        """Its sizes."""
        facts = registry.DATA[self.name].facts
        assert facts is not None  # those of all that come with lossatlas are known
        return facts


ROWS = (
    ImageSet(
        name="cifar10",
        title="CIFAR-10",
        hub="uoft-cs/cifar10",
        config="plain_text",
        image="img",
        # https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz
        archive=sources.cifar(
            "cifar-10-batches-py", [f"data_batch_{k}" for k in range(1, 6)], "test_batch", "labels"
        ),
        mean=(0.4914, 0.4822, 0.4465),  # as in [Yang2021]'s code
        std=(0.2023, 0.1994, 0.2010),
    ),
    ImageSet(
        name="cifar100",
        title="CIFAR-100",
        hub="uoft-cs/cifar100",
        config="cifar100",
        image="img",
        label="fine_label",
        # https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz
        archive=sources.cifar("cifar-100-python", ["train"], "test", "fine_labels"),
        mean=(0.5071, 0.4865, 0.4409),  # of the pixels of all training images
        std=(0.2673, 0.2564, 0.2762),
    ),
    ImageSet(
        name="svhn",
        title="SVHN",
        hub="ufldl-stanford/svhn",
        config="cropped_digits",
        # http://ufldl.stanford.edu/housenumbers: train_32x32.mat, test_32x32.mat
        archive=sources.SVHN,
        mean=(0.4377, 0.4438, 0.4728),  # of the pixels of all training images
        std=(0.1980, 0.2010, 0.1970),
    ),
    ImageSet(
        name="cub200",
        title="CUB-200-2011",
        hub="bentrevett/caltech-ucsd-birds-200-2011",
        # https://data.caltech.edu/records/65de6-vp158: CUB_200_2011.tgz
        archive=sources.CUB,
        mean=PHOTOGRAPHS[0],
        std=PHOTOGRAPHS[1],
        resize=256,
        by_class=True,
    ),
    ImageSet(
        name="imagenet",
        title="ImageNet",
        hub="ILSVRC/imagenet-1k",
        test="validation",
        # https://image-net.org/challenges/LSVRC/2012: ILSVRC2012_img_val.tar, ILSVRC2012_img_train.tar
        archive=sources.IMAGENET,
        mean=PHOTOGRAPHS[0],
        std=PHOTOGRAPHS[1],
        resize=256,
        by_class=True,
        test_alone=True,
    ),
)
TABLE = {row.name: row for row in ROWS}


def cifar10(path: str | None = None, limit: int | None = None) -> RawData:
    """CIFAR-10 [Krizhevsky 2009]: 32 x 32 pixels, 50,000 + 10,000 images."""
    return load(TABLE["cifar10"], path, limit)


def cifar100(path: str | None = None, limit: int | None = None) -> RawData:
    """CIFAR-100 [Krizhevsky 2009] with its 100 fine labels: 32 x 32 pixels, 50,000 + 10,000 images."""
    return load(TABLE["cifar100"], path, limit)


def svhn(path: str | None = None, limit: int | None = None) -> RawData:
    """SVHN [Netzer 2011], cropped digits: 32 x 32 pixels, 73,257 + 26,032 images, without the `extra` ones."""
    return load(TABLE["svhn"], path, limit)


def cub200(path: str | None = None, limit: int | None = None) -> RawData:
    """CUB-200-2011 [Wah 2011]: birds, 5,994 + 5,794 photographs, cut to 224 x 224 pixels (0.9 GB a part)."""
    return load(TABLE["cub200"], path, limit)


def imagenet(path: str | None = None, limit: int | None = None) -> RawData:
    """ILSVRC 2012 [Russakovsky 2015], cut to 224 x 224 pixels: 150 kB an image, 7.5 GB for the 50,000 to validate.

    The test images are those of the validation set. Where there are no training images (from the hub they are
    never fetched) it is dealt in two halves, training and test, and `notes` says so: published weights have learnt
    neither.
    """
    return load(TABLE["imagenet"], path, limit)


def load(which: ImageSet, path: str | None, limit: int | None) -> RawData:
    """The images of a row of the table; raises FileError, and UserError if the extra is missing."""
    train, test = _from_hub(which) if path is None else _from_folder(which, Path(path))
    for part in filter(None, (train, test)):
        _check_labels(which, part)
    rows = _order(which, len(test.labels))
    notes: tuple[str, ...] = ()
    if train is None:
        notes = (f"{which.title} without training images: its {which.test} images are dealt in two halves.",)
        half = len(rows) // 2
        arrays = *_taken(which, test, rows[:half][:limit]), *_taken(which, test, rows[half:][:limit])
    else:
        learnt = _order(which, len(train.labels))
        arrays = *_taken(which, train, learnt[:limit]), *_taken(which, test, rows[:limit])
    return RawData(*arrays, classes=which.facts.classes, scale=255.0, mean=which.mean, std=which.std, notes=notes)


def _from_hub(which: ImageSet) -> Parts:
    def fetched(split: str) -> Part:
        return sources.on_hub(which.hub, which.config, split, which.image, which.label)

    return None if which.test_alone else fetched("train"), fetched(which.test)


def _from_folder(which: ImageSet, folder: Path) -> Parts:
    for place in dict.fromkeys((folder, folder / "data", folder / (which.config or "."))):
        train = sources.parquet(place, "train", which.image, which.label)
        test = sources.parquet(place, which.test, which.image, which.label)
        if test and (train or which.test_alone):
            return train, test
    for place in (folder, folder / which.archive.folder):
        if all((place / name).exists() for name in which.archive.names):
            return which.archive.read(place)
    raise FileError(
        f"{folder} holds no {which.title}: expected train-*.parquet and {which.test}-*.parquet in the Hugging "
        f"Face layout, or {', '.join(which.archive.names)} as the authors publish them; {_found(folder)}. Mend "
        f"the path: {DATA_PATH} (of the first two, also as --set KEY=FOLDER)."
    )


def _check_labels(which: ImageSet, part: Part) -> None:
    """Raise FileError for a label that is no class of the data set, with the place of the first."""
    classes = which.facts.classes
    wrong = np.flatnonzero((part.labels < 0) | (part.labels >= classes))
    if len(wrong):
        image = next(part.images(wrong[:1]))
        place = image.name if isinstance(image, Encoded) else f"Image {wrong[0]}"
        raise FileError(
            f"{place} has the label {part.labels[wrong[0]]}, and {which.title} has {classes} classes, from 0 to "
            f"{classes - 1}: the files are probably those of another data set. Mend the path: {DATA_PATH}."
        )


def _found(folder: Path) -> str:
    if not folder.is_dir():
        return "there is no such folder"
    names = sorted(path.name for path in folder.iterdir())
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"found {', '.join(names[:5])}{more}" if names else "found nothing in it"


def _order(which: ImageSet, count: int) -> IntArray:
    """The rows of the files in the order of the data."""
    return np.random.default_rng(0).permutation(count) if which.by_class else np.arange(count)


def _taken(which: ImageSet, part: Part, rows: IntArray) -> tuple[NDArray[np.uint8], IntArray]:
    """The images and labels of some rows, in the order of `rows`; the files are read in theirs."""
    images = np.empty((len(rows), *which.facts.input_shape), dtype=np.uint8)
    ascending = np.argsort(rows)
    for place, image in zip(ascending, part.images(rows[ascending]), strict=True):
        images[place] = _decoded(which, image) if isinstance(image, Encoded) else image
    return images, part.labels[rows]


def _decoded(which: ImageSet, image: Encoded) -> NDArray[np.uint8]:
    """The pixels (3, H, W) of a file."""
    pillow = sources.extra("PIL.Image")
    with sources.reading(image.name), pillow.open(io.BytesIO(image.content)) as opened:
        colours = opened.convert("RGB")
    _, height, width = which.facts.input_shape
    if which.resize is not None:
        colours = centre(colours, which.resize, height)
    if colours.size != (width, height):
        raise FileError(
            f"{image.name} has {colours.width} x {colours.height} pixels; those of {which.title} have "
            f"{width} x {height}. Mend the path: {DATA_PATH}."
        )
    return np.asarray(colours, dtype=np.uint8).transpose(2, 0, 1)


def centre(image: Any, resize: int, side: int) -> Any:
    """The middle `side` x `side` pixels of a Pillow image after its shorter side got the length `resize`.

    Bilinear with antialiasing; lengths and margins are rounded as torchvision does it, so that published weights
    see what they were evaluated on.
    """
    from PIL.Image import Resampling

    short = min(image.size)
    width, height = (resize if length == short else int(resize * length / short) for length in image.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.resize((width, height), Resampling.BILINEAR).crop((left, top, left + side, top + side))

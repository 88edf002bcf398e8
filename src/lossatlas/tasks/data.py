"""Data sets as arrays in memory: integers as they came, made floating-point batch by batch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lossatlas import registry
from lossatlas.errors import FileError, UserError

IntArray = NDArray[np.int64]
DATA_PATH = "task.data.path in a spec, --data-path on a command on models"


@dataclass(frozen=True)
class RawData:
    """Training and test data before any corruption. An input x enters a model as (x / scale - mean) / std."""

    train_inputs: NDArray[Any]  # (N, ...) uint8, or floating-point
    train_targets: NDArray[Any]  # (N,) integers; of regression (N,) or (N, d) floating-point
    test_inputs: NDArray[Any]
    test_targets: NDArray[Any]
    classes: int  # 0: the targets are numbers to be met, not classes (regression)
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)  # one number, or one a channel
    std: tuple[float, ...] = (1.0,)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.train_inputs.shape[1:])

    def facts(self) -> registry.Facts:
        """Its sizes."""
        return registry.Facts(len(self.train_targets), len(self.test_targets), self.input_shape, self.classes)

    def fingerprint(self) -> str:
        """128 bits of SHA-256 over the content: what every key that depends on the data holds."""
        digest = hashlib.sha256(repr((self.classes, self.scale, self.mean, self.std)).encode())
        for array in (self.train_inputs, self.train_targets, self.test_inputs, self.test_targets):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:32]


def load(name: str, path: str | None, *, regression: bool = False) -> RawData:
    """The data set of a name, or of one's own `module:function`; raises UserError or FileError.

    One's own function is called without arguments (with `path` if the spec gives one) and returns a RawData or the
    four arrays (train_inputs, train_targets, test_inputs, test_targets). Floating-point targets are refused unless
    `regression` allows them; such data have no classes.
    """
    function = registry.resolve(name, registry.DATA, "data")
    with registry.blamed(f"data {name!r}"):
        raw = function() if path is None else function(path)
        if isinstance(raw, tuple | list) and len(raw) == 4:
            raw = _from_arrays(*(np.asarray(part) for part in raw))
    if not isinstance(raw, RawData):
        raise UserError(
            f"data {name!r} returned a {type(raw).__name__}; it must return a lossatlas RawData or four arrays: "
            "training inputs, training targets, test inputs, test targets."
        )
    problem = _problem(raw)
    if not problem and not raw.classes and not regression:
        problem = (
            f"the training targets are {raw.train_targets.dtype}; here they must be integers, the classes of a "
            "classification. Numbers to be met (regression) are for spectrum, line, surface, mine and plane"
        )
    if problem:
        raise UserError(f"data {name!r}: {problem}.")
    return raw


def _from_arrays(
    train_inputs: NDArray[Any], train_targets: NDArray[Any], test_inputs: NDArray[Any], test_targets: NDArray[Any]
) -> RawData:
    """Four arrays as they are; the largest target tells the number of classes, unless targets are not integers."""
    both = [targets for targets in (train_targets, test_targets) if targets.size]
    is_regression = bool(both) and all(targets.dtype.kind == "f" for targets in both)
    classes = 0 if is_regression else 1 + max((int(targets.max()) for targets in both), default=0)
    return RawData(train_inputs, train_targets, test_inputs, test_targets, classes)


def _problem(raw: RawData) -> str:
    """What makes data useless for training, empty if nothing does."""
    for part, inputs, targets in (
        ("training", raw.train_inputs, raw.train_targets),
        ("test", raw.test_inputs, raw.test_targets),
    ):
        if len(inputs) != len(targets) or not len(targets):
            return f"there are {len(inputs)} {part} inputs and {len(targets)} targets; give as many, at least one"
        if raw.classes == 0 and targets.dtype.kind == "f":
            if targets.ndim not in (1, 2) or not np.isfinite(targets).all():
                return (
                    f"the {part} targets are {targets.dtype} of shape {targets.shape}; they must be finite "
                    "numbers of shape (N,) or (N, d)"
                )
        elif (
            targets.ndim != 1
            or targets.dtype.kind not in "iu"
            or targets.min() < 0
            or targets.max() >= raw.classes
        ):
            return (
                f"the {part} targets are {targets.dtype} of shape {targets.shape}; they must be integers of shape "
                f"(N,) from 0 to {raw.classes - 1}, the number of classes less one"
                if raw.classes
                else f"the {part} targets are {targets.dtype}, and classes=0 tells of floating-point ones; say "
                "how many classes there are"
            )
    return "it has one class; give at least two" if raw.classes == 1 else ""


def digits(path: str | None = None) -> RawData:
    """scikit-learn's handwritten digits: 1,437 images of 8 x 8 pixels for training and 360 for testing.

    Their order is one fixed permutation, since the original order groups the images by writer.
    """
    from sklearn.datasets import load_digits  # 1.5 s to import, so only where the digits are asked for

    if path is not None:
        raise UserError(f"data 'digits' come with scikit-learn; remove their path ({DATA_PATH}).")
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    inputs = bunch.images.astype(np.uint8)[order][:, None]
    targets = bunch.target.astype(np.int64)[order]
    n_train = 1437
    return RawData(
        inputs[:n_train],
        targets[:n_train],
        inputs[n_train:],
        targets[n_train:],
        classes=10,
        scale=16.0,
        mean=(0.305,),  # of all digits, to three digits
        std=(0.376,),
    )


def cifar10(path: str | None = None) -> RawData:
    """CIFAR-10 from a folder of parquet files in the Hugging Face layout, or from the hub (`uoft-cs/cifar10`).

    Images (N, 3, 32, 32) uint8 in the order of the files.
    """
    try:
        from datasets import disable_progress_bars, load_dataset  # an extra
    except ImportError as error:
        raise UserError("data 'cifar10' need the extra: pip install 'lossatlas[datasets]'.") from error
    disable_progress_bars()
    try:
        if path is None:
            parts = load_dataset("uoft-cs/cifar10")
        else:
            parts = load_dataset("parquet", data_files=_parquet_files(Path(path)))
    except (OSError, ValueError) as error:
        raise FileError(
            f"CIFAR-10 cannot be loaded from {path or 'the hub'} ({error}). Say where a folder with "
            f"train-*.parquet and test-*.parquet is: {DATA_PATH}."
        ) from error
    train, test = _decoded(parts["train"]), _decoded(parts["test"])
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # as in [Yang2021]'s code
    return RawData(*train, *test, classes=10, scale=255.0, mean=mean, std=std)


def _parquet_files(folder: Path) -> dict[str, list[str]]:
    files = {part: sorted(str(f) for f in folder.glob(f"{part}-*.parquet")) for part in ("train", "test")}
    if not all(files.values()):
        raise FileError(
            f"{folder} holds no CIFAR-10: expected train-*.parquet and test-*.parquet in the Hugging Face layout. "
            f"Mend the path: {DATA_PATH} (or --set task.data.path=FOLDER)."
        )
    return files


def _decoded(part: Any) -> tuple[NDArray[np.uint8], IntArray]:
    images = np.stack([np.asarray(image.convert("RGB"), dtype=np.uint8) for image in part["img"]])
    return images.transpose(0, 3, 1, 2).copy(), np.asarray(part["label"], dtype=np.int64)

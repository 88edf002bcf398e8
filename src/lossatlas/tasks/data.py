"""Data sets as arrays in memory: integers as they came, made floating-point batch by batch."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lossatlas import registry
from lossatlas.errors import UserError
from lossatlas.landscape.sequences import PAD

IntArray = NDArray[np.int64]
DATA_PATH = "task.data.path in a spec, data.NAME.path in a study, --data-path on a command on models"


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
    sequences: bool = False  # inputs (N, S) and targets (N, T) are token ids, padded by 0; classes: the vocabulary
    tokenizer: str = ""  # of sequences that are text: what makes text of them, as the JSON of `tokenizers`
    notes: tuple[str, ...] = ()  # what was done to the data, to be told to the user

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.train_inputs.shape[1:])

    def facts(self) -> registry.Facts:
        """Its sizes."""
        tokens = (_usual_length(self.train_inputs), _usual_length(self.train_targets)) if self.sequences else None
        return registry.Facts(
            len(self.train_targets), len(self.test_targets), self.input_shape, self.classes, tokens
        )

    def fingerprint(self) -> str:
        """128 bits of SHA-256 over the content: what every key that depends on the data holds."""
        digest = hashlib.sha256(repr((self.classes, self.scale, self.mean, self.std)).encode())
        for array in (self.train_inputs, self.train_targets, self.test_inputs, self.test_targets):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        if self.sequences:  # of other data the fingerprint is as it always was
            digest.update(f"sequences {self.tokenizer}".encode())
        return digest.hexdigest()[:32]


def load(
    name: str, path: str | None, options: Mapping[str, Any] | None = None, *, regression: bool = False
) -> RawData:
    """The data set of a name, or of one's own `module:function`; raises UserError or FileError.

    One's own function is called with `path`, if the spec gives one, and with `options` by their names, and returns
    a RawData or the four arrays (train_inputs, train_targets, test_inputs, test_targets). Floating-point targets
    are refused unless `regression` allows them; such data have no classes.
    """
    function = registry.resolve(name, registry.DATA, "data")
    _check_options(name, function, options or {})
    with registry.blamed(f"data {name!r}"):
        raw = function(*([] if path is None else [path]), **(options or {}))
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


def _check_options(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse options that data of a name do not have; of one's own nothing is known."""
    if name not in registry.DATA:
        return
    known = [each for each in inspect.signature(function).parameters if each != "path"]
    if unknown := [option for option in options if option not in known]:
        raise UserError(
            f"data {name!r} have no option {', '.join(unknown)}; allowed are {', '.join(known) or 'none'}."
        )


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
        if raw.sequences:
            continue
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
    if raw.sequences:
        return _sequence_problem(raw)
    return "it has one class; give at least two" if raw.classes == 1 else _shape_problem(raw)


def _shape_problem(raw: RawData) -> str:
    """What no model could take, empty if nothing is: no numbers, test samples or means of another shape."""
    for part, inputs in (("training", raw.train_inputs), ("test", raw.test_inputs)):
        if inputs.dtype.kind not in "buif" or inputs.dtype.itemsize > 8:
            return f"the {part} inputs are {inputs.dtype}; they must be real numbers of at most 64 bits"
    for what, train, test in (
        ("inputs", raw.train_inputs, raw.test_inputs),
        ("targets", raw.train_targets, raw.test_targets),
    ):
        if train.shape[1:] != test.shape[1:]:
            return (
                f"a training sample has {what} of shape {train.shape[1:]} and a test sample of {test.shape[1:]}; "
                "give both the same shape"
            )
    if any(len(each) not in (1, *raw.input_shape[:1]) for each in (raw.mean, raw.std)):
        return (
            f"mean and std hold {len(raw.mean)} and {len(raw.std)} numbers, and inputs have shape "
            f"{raw.input_shape}; give one number, or one a channel"
        )
    return ""


def _sequence_problem(raw: RawData) -> str:
    """What makes token arrays useless, empty if nothing does."""
    for name in ("train_inputs", "train_targets", "test_inputs", "test_targets"):
        array = getattr(raw, name)
        if array.ndim != 2 or array.dtype.kind not in "iu" or not array.size:
            return (
                f"{name} are {array.dtype} of shape {array.shape}; sequences must be integers of shape (N, length)"
            )
        if array.min() < 0 or array.max() >= raw.classes:
            return f"{name} hold tokens beyond 0 to {raw.classes - 1}, the size of the vocabulary less one"
        tokens = array != PAD
        if not tokens[:, 0].all() or (tokens[:, 1:] > tokens[:, :-1]).any():
            return f"{name} must hold at least one token a row, and padding ({PAD}) at the ends of rows only"
    return ""


def _usual_length(sequences: NDArray[Any]) -> int:
    """The length that 99 in 100 sequences do not exceed: about that of the longest in a batch."""
    return int(np.quantile((sequences != PAD).sum(1), 0.99))


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

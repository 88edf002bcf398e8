"""Weights from a file that a user names, into a model: checked first, and without executing a pickle."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lossatlas import files
from lossatlas.errors import FileError

WRAPPERS = ("state_dict", "model_state_dict", "model")  # under which trainers keep the weights in a checkpoint
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
SHOWN = 5  # names a list in a message
STEP_CHECKPOINT = "best.safetensors"  # what is taken of a step folder of a run's store
PICKLE_MAGICS = (b"PK\x03\x04", b"\x80")  # torch.save today, and before version 1.6
LONGEST_HEADER = 100_000_000  # bytes that safetensors allows


@dataclass(frozen=True, eq=False)
class Weights:
    """The tensors of a checkpoint by name, and where they come from."""

    tensors: Mapping[str, Tensor]
    path: Path
    sha256: str  # of the file
    removed: tuple[str, ...] = ()  # the prefixes that all names have in the file, the outermost first

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to the names, to be told to the user."""
        count = len(self.tensors)
        return tuple(
            f"{self.path.name}: the prefix {each!r} of all {count} names was removed" for each in self.removed
        )


def read(path: Path) -> Weights:
    """The weights in a safetensors file, a `torch.save` file, or a training step's folder in a run's store.

    The content tells the format, not the name. A `torch.save` file is read with `weights_only=True` and may hold a
    state_dict, alone or under "state_dict", "model_state_dict" or "model". Prefixes that DataParallel ("module.")
    or torch.compile ("_orig_mod.") put before all names are removed, and `notes` says so; `fitted` puts back those
    that belong to the model. Raises FileError for a missing or damaged file, one that holds anything but tensors
    in plain containers, and a step that diverged.
    """
    path = _in_step(path) if path.is_dir() else path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileError(
            f"The weights {path} cannot be read: {error.strerror or error}. Give a safetensors file, a state_dict "
            "saved by torch.save, or a folder store/train/../KEY of a run."
        ) from error
    sha256 = hashlib.sha256(content).hexdigest()
    pickled = content.startswith(PICKLE_MAGICS) and not _is_safetensors(content)
    found = _from_torch(path, content) if pickled else _from_safetensors(path, content)
    removed: list[str] = []
    while prefix := _common_prefix(found):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
        removed.append(prefix)
    return Weights(found, path, sha256, tuple(removed))


def _common_prefix(names: Collection[str]) -> str:
    """That of a wrapper before all names; empty if there is none."""
    return next((each for each in PREFIXES if names and all(name.startswith(each) for name in names)), "")


def fitted(weights: Weights, own: Collection[str]) -> Weights:
    """The weights with those of the removed prefixes put back that make names of a model, `own`, of theirs.

    The weights of a model that keeps a network as `self.module` have that prefix themselves.
    """
    for start in range(len(weights.removed)):
        back = "".join(weights.removed[start:])
        if any(back + name in own for name in weights.tensors):
            tensors = {back + name: tensor for name, tensor in weights.tensors.items()}
            return replace(weights, tensors=tensors, removed=weights.removed[:start])
    return weights


def load(model: nn.Module, weights: Weights) -> None:
    """Copy the weights into the model; every name and shape must fit.

    As in PyTorch, `num_batches_tracked` of BatchNorm may be missing, and so may a second name of a tied tensor.
    Raises FileError that lists and counts what is missing, unexpected, or of another shape or kind; the model is
    then unchanged.
    """
    own: dict[str, Tensor] = model.state_dict()
    given = fitted(weights, own).tensors
    there = {tensor.data_ptr() for name, tensor in own.items() if name in given and tensor.numel()}
    missing = [
        name
        for name, tensor in own.items()
        if name not in given and not name.endswith("num_batches_tracked") and tensor.data_ptr() not in there
    ]
    unexpected = [name for name in given if name not in own]
    shared = [name for name in own if name in given]
    misshapen = [
        f"{name} {list(given[name].shape)} for {list(own[name].shape)}"
        for name in shared
        if given[name].shape != own[name].shape
    ]
    of_other_kind = [
        f"{name} {given[name].dtype} for {own[name].dtype}"
        for name in shared
        if given[name].is_floating_point() != own[name].is_floating_point()
    ]
    lists = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    lists["of another kind of number"] = of_other_kind
    if problems := counted(lists):
        raise FileError(
            f"The weights {weights.path} are not those of this model: of its {len(own)} tensors and the file's "
            f"{len(given)}, {problems}. Give the model and options that they were trained with."
        )
    model.load_state_dict(dict(given), strict=False)


def counted(lists: Mapping[str, Sequence[str]]) -> str:
    """How many names each list has, and the first of them, by what is wrong with them; empty if nothing is."""
    return "; ".join(f"{len(names)} {what} ({_some(names)})" for what, names in lists.items() if names)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _in_step(folder: Path) -> Path:
    """The checkpoint of a training step's folder, its check sum compared."""
    try:
        record: Mapping[str, Any] = json.loads(files.read_checked(folder, "result.json"))
        status, reason = record["status"], record["reason"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(
            f"The folder {folder} is no training step of a run's store: its result.json cannot be read "
            f"({type(error).__name__}). Give store/train/../KEY of a run, or a file of weights."
        ) from error
    path = folder / STEP_CHECKPOINT
    if not path.is_file():
        raise FileError(f"The step {folder} keeps no weights: its status is {status} ({reason or 'no reason'}).")
    try:
        files.read_checked(folder, STEP_CHECKPOINT)
    except files.Damaged as error:
        raise FileError(f"{error}. `lossatlas run` on its folder makes it again.") from error
    return path


def _is_safetensors(content: bytes) -> bool:
    """Whether it begins as such a file: the length of its header (which may look like a pickle), then `{`."""
    return content[8:9] == b"{" and int.from_bytes(content[:8], "little") <= LONGEST_HEADER


def _from_safetensors(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise FileError(
            f"{path} is damaged, or holds no weights: it is neither a safetensors nor a torch.save file ({error})."
        ) from error


def _from_torch(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):  # on odd pickles, which are refused below or are fine
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FileError(
            f"{path} is no plain file of weights: it is damaged, or holds Python objects beside tensors, such as "
            "a whole pickled model, which could run any code and is never read. Save its weights alone: "
            "torch.save(model.state_dict(), FILE)."
        ) from error
    except Exception as error:  # a damaged archive gives all sorts of things
        raise FileError(f"{path} is damaged: {str(error).splitlines()[0] if str(error) else error!r}.") from error
    for name in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping) or not loaded:
        raise FileError(f"{path} holds a {type(loaded).__name__}, not the weights of a model by name.")
    others = [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        raise FileError(
            f"{path} holds {len(others)} entries that are no tensors ({_some(others)}). Give a state_dict, alone "
            f"or under {', '.join(WRAPPERS)}."
        )
    return {str(name): tensor for name, tensor in loaded.items()}

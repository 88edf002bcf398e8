"""Training that starts from given weights instead of a fresh initialisation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from lossatlas.errors import FileError
from lossatlas.specs import Spec, Train
from lossatlas.tasks import weights


def pinned(spec: Spec) -> Spec:
    """The spec with the SHA-256 of the weights that `train.init` names, which is what its keys hang on.

    Raises FileError when they cannot be read, or are others than the spec names.
    """
    if spec.train.init is None:
        return spec
    found = _read(spec.train.init, spec.train.init_sha256)
    train = spec.train.model_copy(update={"init_sha256": found.sha256})
    return spec.model_copy(update={"train": train})


def start(model: nn.Module, recipe: Train) -> str:
    """Load the weights that `recipe.init` names; returns the name of the layer that stays as it is, if one does.

    That is the last layer with parameters, if nothing else differs in shape: the head, of another task. Raises
    FileError that lists what differs elsewhere, is missing or unexpected; the model is then unchanged.
    """
    assert recipe.init is not None
    given, own = _read(recipe.init, recipe.init_sha256), model.state_dict()
    differing = [name for name in own if name in given.tensors and given.tensors[name].shape != own[name].shape]
    head = _layer([name for name, _ in model.named_parameters()][-1])
    if not differing or any(_layer(name) != head for name in differing):
        weights.load(model, given)  # which lists all that is wrong
        return ""
    fresh = {name: own[name] for name in differing}
    weights.load(model, replace(given, tensors={**given.tensors, **fresh}))
    return head


def _read(path: str, expected: str | None) -> weights.Weights:
    found = weights.read(Path(path))
    if expected is not None and found.sha256 != expected:
        raise FileError(
            f"The weights {path} are others than the spec names: their SHA-256 is {found.sha256}, the spec has "
            f"{expected}. Restore them, or take init_sha256 out of the spec and choose another folder with --out."
        )
    return found


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0]

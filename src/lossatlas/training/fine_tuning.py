"""Training that starts from given weights instead of a fresh initialisation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from torch import nn

from lossatlas.errors import FileError, SpecError
from lossatlas.registry import Facts
from lossatlas.specs import Model, Spec, Train
from lossatlas.specs.schema import AXES
from lossatlas.tasks import models, weights


def pinned(spec: Spec) -> Spec:
    """The spec with the SHA-256 of the weights that `train.init` names, which is what its keys hang on.

    Raises FileError when they cannot be read, or are others than the spec names.
    """
    if spec.train.init is None:
        return spec
    found = _read(spec.train.init, spec.train.init_sha256)
    train = spec.train.model_copy(update={"init_sha256": found.sha256})
    return spec.model_copy(update={"train": train})


def check(spec: Spec, found: Iterable[Model], facts: Facts) -> None:
    """Raise SpecError with every model of a run, once, that the weights of `train.init` do not fit.

    Builds each of them on data of these sizes.
    """
    if spec.train.init is None:
        return
    given = _read(spec.train.init, spec.train.init_sha256)
    problems = []
    for model in {each.model_dump_json(): each for each in found}.values():
        own = models.build(model.name, model.options, input_shape=facts.input_shape, classes=facts.classes, seed=0)
        try:
            _load(own, given)
        except FileError as error:
            options = "".join(f", {name} {value}" for name, value in model.options.items())
            problems.append(f"train.init, for the model {model.name}{options}: {error}")
    if problems:
        sizes = ", ".join(name for name in spec.load if AXES[name][0] == "model")
        advice = f"Weights fit one size of a model: take {sizes} out of the load." if sizes else ""
        raise SpecError(f"The spec {spec.name!r}", problems, advice)


def start(model: nn.Module, recipe: Train) -> str:
    """Load the weights that `recipe.init` names; returns the name of the layer that stays as it is, if one does.

    That is the last layer with parameters, if nothing else differs in shape: the head, of another task. Raises
    FileError that lists what differs elsewhere, is missing or unexpected; the model is then unchanged.
    """
    assert recipe.init is not None
    return _load(model, _read(recipe.init, recipe.init_sha256))


def _load(model: nn.Module, given: weights.Weights) -> str:
    own = model.state_dict()
    given = weights.fitted(given, own)
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

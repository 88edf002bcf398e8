"""Models by name: those that come with lossatlas, those of other libraries, and one's own."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from lossatlas import registry
from lossatlas.errors import UserError
from lossatlas.landscape.random_state import seeded
from lossatlas.seeding import derive
from lossatlas.specs import Model, Spec
from lossatlas.tasks import from_torchvision, from_transformers
from lossatlas.tasks.convnets import cnn, vgg11
from lossatlas.tasks.resnets import cifar_resnet, resnet, resnet18

__all__ = ["build", "cifar_resnet", "cnn", "mlp", "pinned", "resnet", "resnet18", "vgg11"]

LIBRARIES = {registry.TORCHVISION: from_torchvision, registry.HF: from_transformers}


def build(
    name: str, options: dict[str, Any], *, input_shape: Sequence[int], classes: int | None, seed: int
) -> nn.Module:
    """The freshly initialised model of a seed; the global random state is put back.

    One's own `module:function` is called with its options, and with `input_shape` and `classes` if it takes them;
    `torchvision:NAME` is a classifier of torchvision, `hf:PATH` one of Transformers in a folder. Of pretrained
    weights only what does not fit the classes is initialised anew. `classes` is None for regression, which takes a
    model of one's own. Raises UserError when what is called does not return an nn.Module.
    """
    if classes is None and (registry.is_library(name) or not registry.is_custom(name)):
        raise UserError(
            f"model {name!r} is a classifier, and the targets of the data are no classes. Give a model of your "
            "own as module:function."
        )
    function = _function(name)
    with seeded(derive(seed, "initialisation")), registry.blamed(f"model {name!r} with {options}"):
        model = function(**_accepted(function, input_shape=tuple(input_shape), classes=classes), **options)
    if not isinstance(model, nn.Module):
        raise UserError(f"model {name!r} returned a {type(model).__name__}; it must return a torch.nn.Module.")
    return model


def pinned(spec: Spec) -> Spec:
    """The spec with a pretrained model named by its content, so that the same spec trains the same model for ever.

    Raises UserError as `pinned_options` does.
    """
    model = spec.task.model
    options = pinned_options(model.name, model.options)
    if options == model.options:
        return spec
    task = spec.task.model_copy(update={"model": Model(name=model.name, **options)})
    return spec.model_copy(update={"task": task})


def pinned_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a model, with what a pretrained one holds.

    `hf:PATH` gets the fingerprint of its folder, torchvision's `weights = "DEFAULT"` the name that it stands for
    today. Raises UserError when they are missing, or the options hold another fingerprint.
    """
    for prefix, library in LIBRARIES.items():
        if name.startswith(prefix):
            found: dict[str, Any] = library.pinned(name, options)
            return found
    return options


def torchvision_problem() -> str:
    """Why no model of torchvision can be built here: it is missing, or what its import says; else empty."""
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # beside a PyTorch of another build it may be any
        if isinstance(error, ModuleNotFoundError) and error.name == "torchvision":
            return "torchvision is missing, see the extra `vision`"
        return (
            f"torchvision is installed, but its import says {type(error).__name__}: {error}; install the pair of "
            "PyTorch and torchvision that belongs together, see https://pytorch.org"
        )
    return ""


def _function(name: str) -> Callable[..., Any]:
    for prefix, library in LIBRARIES.items():
        if name.startswith(prefix):
            builder: Callable[..., nn.Module] = library.builder(name)
            return builder
    function = registry.resolve(name, registry.MODELS, "model")
    return partial(function, **registry.MODELS[name].fixed) if name in registry.MODELS else function


def _accepted(function: Callable[..., Any], **offered: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return offered
    return {name: value for name, value in offered.items() if name in {p.name for p in parameters}}


def mlp(*, input_shape: Sequence[int], classes: int, width: int, depth: int = 1) -> nn.Module:
    """Flatten, then `depth` hidden ReLU layers of `width` units, then a linear layer onto the classes."""
    sizes = [int(torch.Size(input_shape).numel()), *[width] * depth]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))

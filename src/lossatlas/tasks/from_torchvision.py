"""Classifiers of torchvision by name: freshly initialised, or with the weights that torchvision publishes."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.hub import HASH_REGEX

from lossatlas import registry
from lossatlas.errors import FileError, UserError


def builder(name: str) -> Callable[..., nn.Module]:
    """The builder of `torchvision:NAME`; raises UserError where torchvision is missing or has no such model."""
    library = _library(name)
    short, known = name.removeprefix(registry.TORCHVISION), library.list_models(module=library)
    if short not in known:
        close = difflib.get_close_matches(short, known, n=3)
        meant = f" Did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"torchvision has no classifier {short!r}; it has {len(known)}.{meant}")

    def built(
        *,
        input_shape: Sequence[int],  # noqa: ARG001
        classes: int,
        weights: str | None = None,
        **options: Any,
    ) -> nn.Module:
        """The model; `weights` are a name of torchvision's, such as DEFAULT or IMAGENET1K_V1.

        Layers of published weights whose shape hangs on the number of classes are initialised anew where that
        number differs; all others are kept.
        """
        model: nn.Module = library.get_model(short, weights=None, num_classes=classes, **options)
        if weights is None or torch.get_default_device().type == "meta":  # only the shapes are asked for
            return model
        published = _published(library, name, _member(library, name, weights), options)
        _replace_heads(published, model)
        return published

    return built


def pinned(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with torchvision's own name of the weights: what DEFAULT stands for changes with versions."""
    weights = options.get("weights")
    if not isinstance(weights, str):
        return dict(options)
    return {**options, "weights": _member(_library(name), name, weights).name}


def _library(name: str) -> Any:
    try:
        return registry.extra("torchvision.models", f"model {name!r} needs", "vision")
    except RuntimeError as error:  # what a torchvision for another build of PyTorch says
        raise UserError(
            f"model {name!r}: torchvision does not fit the PyTorch that is installed ({error}). Install the pair "
            "that belongs together, see https://pytorch.org."
        ) from error


def _member(library: Any, name: str, weights: str) -> Any:
    """The published weights of this name, with or without that of their enumeration before it."""
    known = library.get_model_weights(name.removeprefix(registry.TORCHVISION))
    short = weights.removeprefix(f"{known.__name__}.")
    if short not in known.__members__:
        raise UserError(
            f"model {name!r} has no weights {weights!r}; allowed are {', '.join(known.__members__) or 'none'}."
        )
    return known[short]


def _published(library: Any, name: str, member: Any, options: Mapping[str, Any]) -> nn.Module:
    """The model with all its published weights, as torchvision itself loads them; downloaded unless at hand."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / member.url.rpartition("/")[2]
    if file.is_file():
        _check(file)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # PyTorch tells there of a download
            model: nn.Module = library.get_model(
                name.removeprefix(registry.TORCHVISION), weights=member, progress=False, **options
            )
    except OSError as error:
        raise UserError(
            f"model {name!r}: its published weights {member.name} are not at hand and cannot be downloaded "
            f"({error}). Get {member.url} on a machine with internet and put it into {file.parent} (TORCH_HOME "
            "moves that folder), or leave `weights` out and start from scratch."
        ) from error
    return model


def _check(file: Path) -> None:
    """Compare a file that was downloaded earlier with the head of its SHA-256, which its name holds."""
    expected = HASH_REGEX.search(file.name)
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if expected and not found.startswith(expected.group(1)):
        raise FileError(
            f"{file} is damaged: by its name its SHA-256 starts with {expected.group(1)}, and it is {found}. "
            "Remove it, and it is downloaded again."
        )


def _replace_heads(published: nn.Module, fresh: nn.Module) -> None:
    """Put the layers of the fresh model in place of those that have another shape."""
    shapes = {name: parameter.shape for name, parameter in fresh.named_parameters()}
    differing = [name for name, parameter in published.named_parameters() if shapes.get(name) != parameter.shape]
    for layer in dict.fromkeys(name.rpartition(".")[0] for name in differing):
        published.set_submodule(layer, fresh.get_submodule(layer))

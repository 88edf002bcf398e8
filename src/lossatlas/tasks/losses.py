"""The losses that come with lossatlas, each a Criterion: the loss and the extras of every single sample."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lossatlas import registry
from lossatlas.errors import UserError
from lossatlas.landscape.criterion import Criterion, LossFn, supervised
from lossatlas.landscape.sequences import real


def error_percent(outputs: Tensor, batch: Any) -> Tensor:
    """(n,): 100 where the largest output is not the target's, else 0."""
    wrong: Tensor = outputs.argmax(dim=1) != batch[1]
    return wrong.double() * 100


def cross_entropy() -> Criterion:
    """Cross entropy in nats [Yang2021, eq. 1 without decay], and the 0-1 error in percent."""
    return supervised(F.cross_entropy, {"error": error_percent})


def translation() -> Criterion:
    """Cross entropy in nats of every target token given the source and the tokens before it; 0-1 error in percent.

    Batches are (source (B, S), target (B, T)) of token ids, padding at the ends of rows; `model(source, target)`
    gives the logits (n, V) of the n target tokens. One loss a token, so means run over tokens, and a batch weighs
    as many as it has. The perplexity is exp(loss).
    """
    return Criterion(
        predict=lambda model, batch: model(batch[0], batch[1]),
        loss=lambda outputs, batch: F.cross_entropy(outputs, real(batch[1]), reduction="none"),
        extras={"error": lambda outputs, batch: error_percent(outputs, (None, real(batch[1])))},
    )


def load(name: str) -> Criterion | LossFn:
    """The loss of a name or of one's own `module:function`; raises UserError when it is none.

    A function that needs two arguments is a bare loss (model, batch) -> mean loss of the batch; one that needs
    none is called and returns a Criterion.
    """
    function = registry.resolve(name, registry.LOSSES, "loss")
    needed = _needed(function)
    if needed == 2:
        return function
    if needed:
        raise UserError(
            f"loss {name!r} takes {needed} arguments. Give a function without any that returns a lossatlas "
            "Criterion, or a bare loss of two, (model, batch), that returns the mean loss of the batch."
        )
    with registry.blamed(f"loss {name!r}"):
        criterion = function()
    if not isinstance(criterion, Criterion):
        raise UserError(
            f"loss {name!r} returned a {type(criterion).__name__}; it must return a lossatlas Criterion, or take "
            "(model, batch) and be a bare loss."
        )
    return criterion


def build(name: str) -> Criterion:
    """As `load`, for work that needs the error: raises UserError for a bare loss and a Criterion without error."""
    criterion = load(name)
    if not isinstance(criterion, Criterion):
        raise UserError(
            f"loss {name!r} is a bare function of (model, batch), which gives no error of single samples: enough "
            "for spectrum, line, surface, mine and plane, but sweeps, connect and compare need a lossatlas "
            "Criterion with an extra named error (in percent)."
        )
    if "error" not in criterion.extras:
        raise UserError(
            f"loss {name!r} has no extra named error (in percent), which sweeps, connect and compare need."
        )
    return criterion


def _needed(function: Callable[..., Any]) -> int:
    """How many positional arguments must be given."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of built-in functions nothing is known
        return 0
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters)

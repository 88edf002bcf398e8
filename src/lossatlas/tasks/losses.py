"""The losses that come with lossatlas, each a Criterion: the loss and the extras of every single sample."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lossatlas import registry
from lossatlas.errors import UserError
from lossatlas.landscape.criterion import Criterion, supervised


def error_percent(outputs: Tensor, batch: Any) -> Tensor:
    """(n,): 100 where the largest output is not the target's, else 0."""
    wrong: Tensor = outputs.argmax(dim=1) != batch[1]
    return wrong.double() * 100


def cross_entropy() -> Criterion:
    """Cross entropy in nats [Yang2021, eq. 1 without decay], and the 0-1 error in percent."""
    return supervised(F.cross_entropy, {"error": error_percent})


def build(name: str) -> Criterion:
    """The Criterion of a name or of one's own `module:function`; raises UserError when it returns no Criterion."""
    function = registry.resolve(name, registry.LOSSES, "loss")
    with registry.blamed(f"loss {name!r}"):
        criterion = function()
    if not isinstance(criterion, Criterion):
        raise UserError(
            f"loss {name!r} returned a {type(criterion).__name__}; it must return a lossatlas Criterion with an "
            "extra named error."
        )
    if "error" not in criterion.extras:
        raise UserError(
            f"loss {name!r} has no extra named error (in percent), which connectivity and the maps need."
        )
    return criterion

"""Named parameters <-> flat vector: a landscape is a function of one vector theta of shape (n,)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lossatlas.errors import UserError


@dataclass(frozen=True)
class Layout:
    """Where every parameter tensor stands in the flat vector."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @property
    def size(self) -> int:
        """The number n of coordinates."""
        return sum(shape.numel() for shape in self.shapes)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """(n,): the named tensors one after another, in the order of the layout."""
        return torch.cat([tensors[name].reshape(-1) for name in self.names])

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Views into `theta` (n,), one a parameter; differentiable."""
        pieces = theta.split([shape.numel() for shape in self.shapes])
        return {n: p.view(s) for n, p, s in zip(self.names, pieces, self.shapes, strict=True)}


def layout_of(model: nn.Module, pattern: str | None = None) -> Layout:
    """The layout of the trainable parameters whose name matches the regular expression `pattern`.

    Tied parameters count once, under their first name; frozen ones (requires_grad False) do not count.
    Raises UserError when no parameter is left, or one is complex.
    """
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    chosen = {n: p for n, p in trainable.items() if pattern is None or re.search(pattern, n)}
    if not chosen:
        known = ", ".join(list(trainable)[:8]) or "none that is trainable"
        raise UserError(
            f"No parameter to vary: params={pattern!r} matches none of the model's trainable parameters "
            f"({known}). Give a regular expression that matches one, or set requires_grad."
        )
    if unreal := [n for n, p in chosen.items() if not p.is_floating_point()]:
        raise UserError(
            f"Parameter {unreal[0]} is {chosen[unreal[0]].dtype}, and theta is a vector of real numbers. Store "
            "its real and imaginary parts (torch.view_as_real), or leave it out by params=..."
        )
    return Layout(tuple(chosen), tuple(p.shape for p in chosen.values()))


def flat_parameters(model: nn.Module) -> Tensor:
    """(n,): a copy of all trainable parameters of the model, detached."""
    layout = layout_of(model)
    return layout.flatten({n: p.detach() for n, p in model.named_parameters()})

"""The Hessian layer by layer, or in blocks of one's own: the diagonal blocks of the whole one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from lossatlas.errors import UserError
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.operators import KEPT_BYTES, HessianOperator, hessian
from lossatlas.landscape.parameters import Layout


class BlockOperator:
    """A diagonal block of a Hessian: rows and columns of some parameters. `matvecs` counts its products."""

    def __init__(self, whole: HessianOperator, layout: Layout) -> None:
        self._whole = whole
        self.layout = layout
        self.size = layout.size
        self.dtype = whole.dtype
        self.device = whole.device
        self.matvecs = 0

    def __matmul__(self, vectors: Tensor, /) -> Tensor:
        product = self._whole.restricted(vectors, self.layout)
        self.matvecs += 1 if vectors.dim() == 1 else vectors.shape[1]
        return product


def blocks(
    objective: Objective,
    groups: Literal["layer"] | Mapping[str, str] = "layer",
    *,
    theta: Tensor | None = None,
    memory: int = KEPT_BYTES,
) -> dict[str, BlockOperator]:
    """The diagonal blocks of the Hessian at theta (default: the objective's centre), by name.

    `groups` is "layer" (one block a module, of the parameters that are its own; a parameter of the model itself
    is a block of its own), or a mapping of names to regular expressions, searched for in the names of the
    objective's parameters as by `Objective(params=...)`; blocks may overlap. All blocks share the graphs of the
    first backward pass, within `memory` bytes together (see `HessianOperator`), and a product goes back only to
    the parameters of its block. The traces of disjoint blocks add up to that of the Hessian; their largest
    eigenvalues bound its own from below. Raises UserError for a pattern that matches nothing.
    """
    whole = hessian(objective, theta, memory=memory)
    chosen = _layers(whole.layout) if groups == "layer" else _matching(whole.layout, groups)
    return {name: BlockOperator(whole, layout) for name, layout in chosen.items()}


def _layers(layout: Layout) -> dict[str, Layout]:
    members: dict[str, list[str]] = {}
    for name in layout.names:
        members.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return {layer: _part(layout, names) for layer, names in members.items()}


def _matching(layout: Layout, groups: Mapping[str, str]) -> dict[str, Layout]:
    found = {key: [name for name in layout.names if re.search(pattern, name)] for key, pattern in groups.items()}
    empty = [f"{key} = {groups[key]!r}" for key, names in found.items() if not names]
    if empty:
        raise UserError(
            f"No parameter is in block {', '.join(empty)}. The objective's parameters are "
            f"{', '.join(layout.names[:8])}{', ...' if len(layout.names) > 8 else ''}."
        )
    return {key: _part(layout, names) for key, names in found.items()}


def _part(layout: Layout, names: list[str]) -> Layout:
    shapes: dict[str, torch.Size] = dict(zip(layout.names, layout.shapes, strict=True))
    return Layout(tuple(names), tuple(shapes[name] for name in names))

"""What goes into a module of a network, or comes out of it, while the network computes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from lossatlas.errors import UserError

SHOWN = 30  # names in a message


Side = Literal["inputs", "outputs"]
_VERBS = {"inputs": "takes", "outputs": "gives"}


@contextmanager
def watched(model: nn.Module, layer: str, side: Side) -> Iterator[Callable[[], Tensor]]:
    """Within it, a function that hands over, after a forward pass, what the module named `layer` took or gave.

    The names are those of `model.named_modules()`. The first input counts. Raises UserError where there is no such
    module, and the function does where the module did not work exactly once in the pass, or with no tensor.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    if layer not in modules:
        names = [*modules][:SHOWN]
        more = f" and {len(modules) - SHOWN} more" if len(modules) > SHOWN else ""
        close = difflib.get_close_matches(layer, modules, n=1)
        raise UserError(
            f"The model has no layer {layer!r}; its modules are {', '.join(names)}{more}."
            + (f" Did you mean {close[0]}?" if close else "")
        )
    found: list[Any] = []

    def keep(tensor: Any) -> None:  # a copy: what follows may work in place
        found.append(tensor.detach().clone() if isinstance(tensor, Tensor) else tensor)

    def last() -> Tensor:
        if len(found) != 1 or not isinstance(found[0], Tensor):
            what = f"works {len(found)} times" if len(found) != 1 else f"{_VERBS[side]} no tensor"
            raise UserError(
                f"The layer {layer!r} {what} in a pass through the model. Give a module that {_VERBS[side]} one "
                "tensor, once."
            )
        tensor: Tensor = found.pop()
        return tensor

    module = modules[layer]
    if side == "outputs":
        hook = module.register_forward_hook(lambda _module, _inputs, outputs: keep(outputs))
    else:
        hook = module.register_forward_pre_hook(lambda _module, inputs: keep(inputs[0] if inputs else None))
    try:
        yield last
    finally:
        hook.remove()

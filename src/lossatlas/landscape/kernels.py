"""Fused kernels that lack a derivative, and the plain maths that takes their place."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

T = TypeVar("T")


class PlainMathsWarning(UserWarning):
    """A fused kernel has no such derivative, so plain operations were used: the same numbers but for rounding."""


@dataclass(frozen=True)
class _Kernel:
    """A family of kernels, known by what PyTorch says where it cannot differentiate them."""

    name: str
    error: re.Pattern[str]
    without: Callable[[], AbstractContextManager[None]]  # in which PyTorch takes plain operations instead


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """As `cudnn.flags(enabled=False)`, which would also reset the precision that the user has chosen."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


# In this order: the backward of cuDNN's attention names both.
# - "derivative for aten::_scaled_dot_product_{flash,efficient,cudnn}_attention_backward is not implemented"
# - "the derivative for '_cudnn_rnn_backward' is not implemented. Double backwards is not supported for CuDNN RNNs"
# - "cudnn RNN backward can only be called in training mode": not even a first derivative of it in eval mode
_FUSED = (
    _Kernel(
        "fused attention",
        re.compile(r"derivative for .*attention\w*backward.* not implemented"),
        lambda: sdpa_kernel(SDPBackend.MATH),
    ),
    _Kernel(
        "cuDNN",
        re.compile(r"derivative for .*_cudnn_\w+.* not implemented|cudnn RNN backward can only", re.IGNORECASE),
        _without_cudnn,
    ),
)


@dataclass(eq=False)
class Kernels:
    """The kernels to do without, found out from errors; later calls do without them at once."""

    avoided: list[_Kernel] = field(default_factory=list)

    @contextmanager
    def plain(self) -> Iterator[None]:
        """In it, PyTorch takes plain operations in place of the kernels that are avoided."""
        with ExitStack() as stack:
            for kernel in self.avoided:
                stack.enter_context(kernel.without())
            yield

    def retried(self, function: Callable[[], T]) -> T:
        """`function()` in `plain()`, once more where a fused kernel lacked a derivative; a warning says so."""
        while True:
            try:
                with self.plain():
                    return function()
            except RuntimeError as error:
                text = str(error)
                known = next((k for k in _FUSED if k not in self.avoided and k.error.search(text)), None)
                if known is None:
                    raise
                self.avoided.append(known)
            warnings.warn(
                f"{known.name} cannot be differentiated as often as is needed here ({_sentence(text)}); plain "
                "operations are used instead, which are slower and give the same numbers but for rounding.",
                PlainMathsWarning,
                stacklevel=2,
            )


def _sentence(text: str) -> str:
    return text.splitlines()[0].partition(". ")[0].rstrip(".")

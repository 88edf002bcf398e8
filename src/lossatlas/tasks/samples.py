"""Samples in memory as tensors, without a DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from lossatlas.tasks.data import RawData

Pair = tuple[Tensor, Tensor]

FLOAT_LIMIT = 64 << 20  # bytes up to which normalised inputs are kept rather than made anew for every batch


class Samples:
    """Inputs and targets on one device; batches are (normalised inputs, targets) in the order of the data."""

    def __init__(
        self, inputs: NDArray[Any], targets: NDArray[Any], raw: RawData, device: torch.device | str = "cpu"
    ) -> None:
        self._inputs = torch.as_tensor(inputs, device=device)
        self.targets = torch.as_tensor(targets, device=device)
        shape = (-1, *[1] * (self._inputs.dim() - 2)) if self._inputs.dim() > 2 else (-1,)
        std = torch.tensor(raw.std, dtype=torch.float32, device=device).view(shape)
        self._gain = 1.0 / (raw.scale * std)
        self._offset = -torch.tensor(raw.mean, dtype=torch.float32, device=device).view(shape) / std
        self._ready = self._inputs.numel() * 4 <= FLOAT_LIMIT
        if self._ready:
            self._inputs = self._normalised(self._inputs)

    def __len__(self) -> int:
        return len(self.targets)

    def _normalised(self, inputs: Tensor) -> Tensor:
        return torch.addcmul(self._offset, inputs.float(), self._gain)

    def _batch(self, inputs: Tensor, targets: Tensor) -> Pair:
        return (inputs if self._ready else self._normalised(inputs)), targets

    def take(self, index: Tensor | slice) -> Pair:
        """The samples at `index`."""
        return self._batch(self._inputs[index], self.targets[index])

    def head(self, count: int) -> Pair:
        """The first samples: at most `count`."""
        return self.take(slice(0, count))

    def batches(self, size: int) -> Callable[[], Iterator[Pair]]:
        """A function that yields all samples in their order, `size` at a time; the last batch may be smaller."""

        def iterate() -> Iterator[Pair]:
            for start in range(0, len(self), size):
                yield self.take(slice(start, start + size))

        return iterate

    def shuffled(self, size: int, generator: torch.Generator, *, drop_last: bool) -> Iterator[Pair]:
        """One epoch in a random order: the data are permuted once and cut, which beats an index a batch."""
        order = torch.randperm(len(self), generator=generator).to(self.targets.device)
        inputs, targets = self._inputs[order], self.targets[order]
        stop = len(self) - len(self) % size if drop_last else len(self)
        for start in range(0, stop, size):
            yield self._batch(inputs[start : min(start + size, stop)], targets[start : min(start + size, stop)])

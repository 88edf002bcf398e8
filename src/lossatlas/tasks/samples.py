"""Samples in memory as tensors, without a DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lossatlas.landscape.sequences import lengths
from lossatlas.tasks.data import RawData

Pair = tuple[Tensor, Tensor]

FLOAT_LIMIT = 64 << 20  # bytes up to which normalised inputs are kept rather than made anew for every batch


class Samples:
    """Inputs and targets on one device; batches are (normalised inputs, targets) in the order of the data.

    Batches of sequences are (source (B, S), target (B, T)) of token ids, each as wide as its longest row.

    On a CPU images are kept and handed over with their channels last in memory: convolutional networks of every
    width then train 1.1 to 1.5 times as fast (benchmarks/training.py).
    """

    def __init__(
        self, inputs: NDArray[Any], targets: NDArray[Any], raw: RawData, device: torch.device | str = "cpu"
    ) -> None:
        self.sequences, self.tokenizer = raw.sequences, raw.tokenizer
        kept, known = _tensor(inputs, device), _tensor(targets, device)
        self.targets = known if known.is_floating_point() or raw.sequences else known.long()
        self._channels_last = kept.dim() == 4 and kept.device.type == "cpu"
        if self._channels_last:
            kept = kept.permute(0, 2, 3, 1).contiguous()
        shape = (-1,) if self._channels_last or kept.dim() < 3 else (-1, *[1] * (kept.dim() - 2))
        std = torch.tensor(raw.std, dtype=torch.float32, device=device).view(shape)
        self._gain = 1.0 / (raw.scale * std)
        self._offset = -torch.tensor(raw.mean, dtype=torch.float32, device=device).view(shape) / std
        self._ready = kept.numel() * 4 <= FLOAT_LIMIT and not raw.sequences
        self._inputs = self._normalised(kept) if self._ready else kept

    def __len__(self) -> int:
        return len(self.targets)

    def _normalised(self, inputs: Tensor) -> Tensor:
        return torch.addcmul(self._offset, inputs.float(), self._gain)

    def _batch(self, inputs: Tensor, targets: Tensor) -> Pair:
        if self.sequences:
            return _cut(inputs), _cut(targets)
        normal = inputs if self._ready else self._normalised(inputs)
        return (normal.permute(0, 3, 1, 2) if self._channels_last else normal), targets

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


def _tensor(array: NDArray[Any], device: torch.device | str) -> Tensor:
    """A copy of an array that is read-only, runs backwards or has foreign bytes: tensors know none of these."""
    native = np.require(array, dtype=array.dtype.newbyteorder("="), requirements="W")
    return torch.as_tensor(native.copy() if min(native.strides, default=0) < 0 else native, device=device)


def _cut(tokens: Tensor) -> Tensor:
    """The rows (B, T) without the columns that are padding in all of them."""
    return tokens[:, : int(lengths(tokens).max())].long()

"""Batches of any shape (tensors, tuples, lists, dicts of them): move, count, split."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor, nn

from lossatlas.errors import UserError

Batch = Any
Source = Callable[[], Iterable[Batch]]

ACTIVATION_BYTES = 4 << 20  # a piece whose largest activation fits the caches: measured best on ResNet18 and MLP
CHUNK_RANGE = (16, 8192)


def reiterable(data: Sequence[Batch] | Source, name: str) -> Source:
    """A function that yields the batches anew; refuses what can be read only once."""
    if isinstance(data, Iterator):
        raise UserError(
            f"{name} is a generator, which can be read only once. Give a list of batches, a DataLoader without "
            "shuffling, or a function that returns a fresh iterator in the same order at every call."
        )
    if callable(data):
        return data
    if not hasattr(data, "__iter__"):
        raise UserError(
            f"{name} is a {type(data).__name__}. Give a list of batches or a function that yields them."
        )
    return lambda: data


def map_tensors(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with `function` applied to each of its tensors."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        mapped = {key: map_tensors(value, function) for key, value in batch.items()}
        if type(batch) is dict or not isinstance(batch, MutableMapping):
            return mapped
        other = copy.copy(batch)  # whatever its constructor takes, as a defaultdict or a BatchEncoding
        other.update(mapped)
        return other
    if isinstance(batch, tuple | list):
        items = [map_tensors(item, function) for item in batch]
        if hasattr(batch, "_fields"):  # a named tuple
            return type(batch)(*items)
        return type(batch)(items)
    return batch


def leaves(batch: Batch) -> Iterator[Tensor]:
    """The tensors of a batch, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from leaves(value)
    elif isinstance(batch, tuple | list):
        for item in batch:
            yield from leaves(item)


def count(batch: Batch) -> int:
    """The number of samples: the length of the first tensor."""
    first = next(leaves(batch), None)
    if first is None or first.dim() == 0:
        raise UserError(
            "A batch holds no tensor with a first dimension, so its samples cannot be counted. "
            "Give batches of tensors, or a Criterion, whose per-sample losses are counted."
        )
    return first.shape[0]


def move(batch: Batch, dtype: torch.dtype, device: torch.device) -> Batch:
    """The batch on `device`, its floating-point tensors in `dtype`."""
    return map_tensors(batch, lambda t: t.to(device=device, dtype=dtype if t.is_floating_point() else t.dtype))


def wide(tensor: Tensor) -> Tensor:
    """In float64; on the CPU where the device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def pieces(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in pieces of at most `size` samples; whole when its parts differ in length or cannot be cut."""
    lengths = {t.shape[0] if t.dim() else -1 for t in leaves(batch)}
    if len(lengths) != 1 or (length := lengths.pop()) <= size or _holds_uncut(batch, length):
        yield batch
        return
    for start in range(0, length, size):
        stop = min(start + size, length)
        yield map_tensors(batch, lambda t, a=start, b=stop: t[a:b])  # type: ignore[misc]


def _holds_uncut(batch: Batch, length: int) -> bool:
    """Whether something of that many samples is no tensor: a list of texts, an array of another library."""
    if isinstance(batch, Tensor | str):
        return False
    if any(True for _ in leaves(batch)):
        parts = batch.values() if isinstance(batch, Mapping) else batch
        return any(_holds_uncut(part, length) for part in parts)
    return isinstance(batch, Sized) and len(batch) == length


def chunk_for(model: nn.Module, forward: Callable[[], object]) -> int:
    """How many samples a piece should hold so that its largest activation takes ACTIVATION_BYTES.

    `forward` runs the model on one sample. Found by size, not by timing: the same model gets the same pieces
    everywhere, so sums are taken in the same order.
    """
    largest = 1

    def note(_module: nn.Module, inputs: object, output: object) -> None:
        nonlocal largest
        there = {t.untyped_storage().data_ptr() for t in leaves(inputs)}  # a view of it, as by Flatten, is free
        new = [t for t in leaves(output) if t.untyped_storage().data_ptr() not in there]
        largest = max([largest, *(t.numel() * t.element_size() for t in new)])

    hooks = [m.register_forward_hook(note) for m in model.modules() if not any(True for _ in m.children())]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    low, high = CHUNK_RANGE
    return max(low, min(high, ACTIVATION_BYTES // largest))

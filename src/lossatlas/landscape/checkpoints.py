"""Leaving long work in the middle and taking it up again: what a descent and its keeper say to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # who only asks for a stop needs no torch
    from torch import Tensor

from lossatlas.errors import UserError


class Stopped(BaseException):
    """Work was left in the middle because a stop was asked for; what was done is kept.

    No Exception, so that nothing that handles the failures of a step takes it for one.
    """


class DoesNotFit(UserError):
    """A checkpoint is not one of this model, although it is one of this recipe."""


@dataclass
class StopFlag:
    """Whether the work is to be left at the next good place; signal handlers set it, nothing unsets it."""

    asked: bool = False


@dataclass(frozen=True)
class State:
    """All that a descent needs to continue: tensors by name, and plain data that JSON can hold."""

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]

    def tensor(self, name: str, like: Tensor) -> Tensor:
        """The tensor of this name on the device of `like`; raises DoesNotFit if it has another shape or dtype."""
        found = self.tensors.get(name)
        if found is None or (found.shape, found.dtype) != (like.shape, like.dtype):
            has = "lacks it" if found is None else f"has {list(found.shape)}, {found.dtype}"
            raise DoesNotFit(
                f"The checkpoint does not fit the model: for {name} {list(like.shape)}, {like.dtype}, it {has}. "
                "Start anew without it."
            )
        return found.to(like.device)


class Checkpoints(Protocol):
    """Where a descent leaves its state between two batches."""

    def load(self) -> State | None:
        """The last state that was saved; None where there is none."""

    def due(self) -> bool:
        """Whether to save now. Asked after every batch, so it must cost next to nothing."""

    def save(self, state: State) -> None:
        """Keep a copy of the state in place of the one before; raises Stopped if the work is to be left now."""

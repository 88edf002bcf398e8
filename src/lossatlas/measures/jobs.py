"""What a measure is handed and what it hands back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:  # the table of measures is read without loading torch
    from torch import Generator, Tensor, nn

    from lossatlas.landscape.checkpoints import Checkpoints
    from lossatlas.landscape.criterion import Criterion

Values = dict[str, float | str | list[float]]


class Samples(Protocol):
    """Samples in memory; a batch is (inputs, targets)."""

    sequences: bool  # a batch is (source (B, S), target (B, T)) of token ids, padded at the ends of rows
    tokenizer: str  # of sequences that are text, as the JSON of `tokenizers`; else empty

    @property
    def targets(self) -> Tensor:
        """(N,), of sequences (N, T): the targets of all samples."""

    def __len__(self) -> int: ...

    def head(self, count: int) -> tuple[Tensor, Tensor]:
        """The first samples."""

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The samples at `index`."""

    def batches(self, size: int) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
        """A function that yields all samples in their order, in batches."""

    def shuffled(self, size: int, generator: Generator, *, drop_last: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in random order."""


@dataclass(frozen=True)
class TrainedSeed:
    """A trained model of one seed: its weights are loaded and it is in eval mode."""

    seed: int
    model: nn.Module
    theta: Tensor  # (n,): its trainable parameters


@dataclass(frozen=True)
class Job:
    """The task of one cell, and a memory that its steps share so that no forward pass is done twice."""

    criterion: Criterion
    train: Samples
    test: Samples
    classes: int
    initialise: Callable[[int], nn.Module]  # seed -> a freshly initialised model
    progress: Callable[[int, float], None] | None = None
    checkpoints: Checkpoints | None = None  # for the step in hand, if it takes long
    memory: dict[Any, Any] = field(default_factory=dict)

    @property
    def sequences(self) -> bool:
        """Whether the samples are sentences, scored token by token."""
        return self.train.sequences

    def samples(self, part: Literal["train", "test"]) -> Samples:
        """The training or the test samples."""
        return self.train if part == "train" else self.test

    def guessing(self, part: Literal["train", "test"]) -> float:
        """The error in percent of the best constant prediction."""
        from lossatlas.landscape.paths import guessing_error
        from lossatlas.landscape.sequences import real

        targets = self.samples(part).targets
        return guessing_error(real(targets) if self.sequences else targets)

    def remember(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value under `key`, made the first time it is asked for."""
        if key not in self.memory:
            self.memory[key] = make()
        return self.memory[key]


@dataclass(frozen=True)
class Outcome:
    """What a step measured: values by quantity, a status with its reason, and arrays to keep."""

    values: Values
    status: str = "ok"
    reason: str = ""
    arrays: Mapping[str, Tensor] = field(default_factory=dict)

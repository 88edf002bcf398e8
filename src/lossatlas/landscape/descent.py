"""What stochastic descents in the space of parameters share: randomness, passes over batches, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from lossatlas.errors import UserError
from lossatlas.landscape import batches as split
from lossatlas.landscape.batches import Batch
from lossatlas.landscape.checkpoints import Checkpoints, State
from lossatlas.landscape.random_state import seeded

B = TypeVar("B")


def has_batchnorm(model: nn.Module) -> bool:
    """Whether the model holds a BatchNorm layer of any kind."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


@dataclass
class Running:
    """Sums over the samples of the epoch in hand."""

    sums: Tensor  # (k,), float64, on the device: a number asked for at every batch would make it wait
    count: int = 0


def epoch_mean(
    batches: Iterable[Batch],
    step: Callable[[Batch], Tensor],
    *,
    like: Tensor,
    skip_single: bool,
    running: Running | None = None,
) -> float:
    """Take `step` on every batch; the mean over the samples of the float64 losses that it returns.

    Batches are moved to the device and dtype of `like`. `skip_single` leaves out those of one sample, of which
    BatchNorm has no statistics. `running` holds the sums where they are to be seen on the way. Raises UserError
    where no batch is left.
    """
    running = running or Running(torch.zeros(1, dtype=torch.float64, device=like.device))
    for batch in batches:
        samples = split.count(batch)
        if samples == 1 and skip_single:
            continue
        running.sums += step(split.move(batch, like.dtype, like.device)) * samples
        running.count += samples
    if not running.count:
        raise UserError(
            "batches(epoch) yields no batch to fit with (one of a single sample cannot be used by BatchNorm "
            "layers). Give a function that returns batches anew for every epoch."
        )
    return running.sums.item() / running.count


class Walk:
    """Goes over epochs of batches, leaves checkpoints between batches, and continues from one bit for bit.

    `snapshot` gives what the descent itself needs to continue. Kept beside it are the position, the running sums,
    and the states of torch's global generators and of `generators`, which are all that batches and steps may draw
    from. An epoch in hand is continued by drawing its batches anew from the states at its start and passing over
    those done.
    """

    def __init__(
        self,
        checkpoints: Checkpoints | None,
        snapshot: Callable[[], State],
        *,
        sums: int,
        generators: Sequence[torch.Generator],
        device: torch.device,
    ) -> None:
        self.running = Running(torch.zeros(sums, dtype=torch.float64, device=device))
        self.resumed = None if checkpoints is None else checkpoints.load()  # the state to continue from
        self._checkpoints, self._snapshot = checkpoints, snapshot
        self._generators, self._device = generators, device

    def remaining(self, epochs: range) -> range:
        """The epochs that are not over."""
        return range(self.resumed.numbers["walk"]["epoch"], epochs.stop) if self.resumed else epochs

    def batches(self, epoch: int, make: Callable[[], Iterable[B]]) -> Iterator[B]:
        """The batches of an epoch that are not done; `running` holds the sums over those that are."""
        start = [] if self._checkpoints is None else self._random()
        if self.resumed:
            start, done, batches = self._continued(self.resumed, make, start)
            self.resumed = None
        else:
            self.running.sums.zero_()
            self.running.count, done, batches = 0, 0, iter(make())
        for batch in batches:
            yield batch
            done += 1
            if self._checkpoints is not None and self._checkpoints.due():
                self._checkpoints.save(self._state(epoch, done, start))

    def _continued(
        self, state: State, make: Callable[[], Iterable[B]], like: Sequence[Tensor]
    ) -> tuple[list[Tensor], int, Iterator[B]]:
        """The random states at the start of the epoch in hand, its batches done, and an iterator over the rest."""
        start, now = (
            [state.tensor(f"walk/{moment}/{i}", each) for i, each in enumerate(like)]
            for moment in ("start", "now")
        )
        done = state.numbers["walk"]["batches"]
        self._set_random(start)
        batches = iter(make())
        for _ in range(done):
            next(batches)
        self._set_random(now)
        self.running.sums.copy_(state.tensor("walk/sums", self.running.sums))
        self.running.count = state.numbers["walk"]["count"]
        return start, done, batches

    def _state(self, epoch: int, done: int, start: Sequence[Tensor]) -> State:
        inner = self._snapshot()
        tensors = {f"walk/start/{i}": each for i, each in enumerate(start)}
        tensors |= {f"walk/now/{i}": each for i, each in enumerate(self._random())}
        tensors["walk/sums"] = self.running.sums
        place = {"epoch": epoch, "batches": done, "count": self.running.count}
        return State({**inner.tensors, **tensors}, {**inner.numbers, "walk": place})

    def _random(self) -> list[Tensor]:
        """The states of all generators: torch's on the CPU, the given ones, and torch's on the device."""
        states = [torch.get_rng_state(), *(generator.get_state() for generator in self._generators)]
        return [*states, torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else states

    def _set_random(self, states: Sequence[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for generator, state in zip(self._generators, states[1:], strict=False):
            generator.set_state(state)
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(states[-1], self._device)


def own_randomness(draws: torch.Generator) -> AbstractContextManager[None]:
    """Seed torch's global generators (Dropout, loaders) from `draws`, and put them back afterwards."""
    return seeded(int(torch.randint(2**62, (), generator=draws)))

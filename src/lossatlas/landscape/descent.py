"""What stochastic descents in the space of parameters share: their own randomness, and one pass over batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lossatlas.errors import UserError
from lossatlas.landscape import batches as split
from lossatlas.landscape.objective import Batch


def has_batchnorm(model: nn.Module) -> bool:
    """Whether the model holds a BatchNorm layer of any kind."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def epoch_mean(
    batches: Iterable[Batch], step: Callable[[Batch], Tensor], *, like: Tensor, skip_single: bool
) -> float:
    """Take `step` on every batch; the mean over the samples of the float64 losses that it returns.

    Batches are moved to the device and dtype of `like`. `skip_single` leaves out those of one sample, of which
    BatchNorm has no statistics. Raises UserError where no batch is left.
    """
    total = torch.zeros((), dtype=torch.float64, device=like.device)
    count = 0
    for batch in batches:
        samples = split.count(batch)
        if samples == 1 and skip_single:
            continue
        # The sum stays on the device: a number asked for at every batch would make it wait.
        total += step(split.move(batch, like.dtype, like.device)) * samples
        count += samples
    if not count:
        raise UserError(
            "batches(epoch) yields no batch to fit with (one of a single sample cannot be used by BatchNorm "
            "layers). Give a function that returns batches anew for every epoch."
        )
    return total.item() / count


@contextmanager
def own_randomness(device: torch.device, draws: torch.Generator) -> Iterator[None]:
    """Seed torch's global generators (Dropout, loaders) from `draws`, and put them back afterwards."""
    seed = int(torch.randint(2**62, (), generator=draws))
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        # torch.manual_seed would also reseed accelerators whose state is not put back.
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield

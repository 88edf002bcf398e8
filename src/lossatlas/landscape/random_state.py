"""The global random state of PyTorch: kept over a computation, or seeded for it and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def preserved_rng(device: torch.device) -> Iterator[None]:
    """Put the random state back afterwards."""
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    mps = torch.mps.get_rng_state() if device.type == "mps" else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        if mps is not None:
            torch.mps.set_rng_state(mps)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of the CPU and of all GPUs, and put them back afterwards.

    For what draws from nothing else: initialisations, Dropout, loaders.
    """
    begun = torch.cuda.is_initialized()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if begun else []):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed other accelerators too
            torch.cuda.manual_seed_all(seed)
            yield
    finally:
        if not begun:  # a GPU that is not in use yet has no state, only the seed that it will begin with
            torch.cuda.manual_seed_all(torch.initial_seed())

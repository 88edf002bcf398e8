"""The learning rate of every step, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lossatlas.errors import UserError
from lossatlas.specs import Schedule, Train


@dataclass(frozen=True)
class Rates:
    """The rate of each of `epochs` * `per_epoch` steps, counted from 0."""

    peak: float  # without warm-up and decay
    schedule: Schedule
    epochs: int
    per_epoch: int

    def __call__(self, step: int) -> float:
        """The peak, times the decay, times the warm-up."""
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return self.peak * self._decay(step) * rising

    @property
    def warmup(self) -> int:
        """Steps until the rate is at its peak for the first time."""
        if not self.schedule.warmup_epochs:
            return self.schedule.warmup_steps
        return max(1, round(self.schedule.warmup_epochs * self.per_epoch))

    def _decay(self, step: int) -> float:
        schedule = self.schedule
        if schedule.name == "step":  # by whole epochs, so that none has two rates
            epoch = step // self.per_epoch + 1
            return schedule.factor ** sum(epoch > moment * self.epochs for moment in schedule.moments)
        if schedule.name == "cosine":
            over = max(0, step - self.warmup) / (self.epochs * self.per_epoch - self.warmup)
            return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * over)) / 2
        if schedule.name == "inverse-sqrt":
            return math.sqrt(self.warmup / max(step + 1, self.warmup))
        return 1.0


def rates(recipe: Train, samples: int) -> Rates:
    """The rates of a training on so many samples; raises UserError when it would end before its warm-up does."""
    optimizer, batch_size = recipe.optimizer, recipe.batch_size
    peak = optimizer.lr if optimizer.batch_ref is None else optimizer.lr * batch_size / optimizer.batch_ref
    found = Rates(peak, recipe.schedule, recipe.epochs_on(samples), samples // batch_size)
    steps = found.epochs * found.per_epoch
    if found.warmup >= steps:
        raise UserError(
            f"The training has {steps} steps in {found.epochs} epochs of {samples} samples in batches of "
            f"{batch_size}, and its warm-up takes {found.warmup}. Give more epochs, or a shorter warm-up."
        )
    return found

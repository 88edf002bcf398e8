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

    @property
    def milestones(self) -> tuple[int, ...]:
        """Epochs at the rate before each decay of `step`: the fraction `at` of all, rounded down.

        0.29 of 100 is 28.999999999999996 in floating point, and means 29.
        """
        return tuple(math.floor(moment * self.epochs + 1e-9) for moment in self.schedule.moments)

    def _decay(self, step: int) -> float:
        schedule = self.schedule
        if schedule.name == "step":  # by whole epochs, so that none has two rates
            epoch = step // self.per_epoch + 1
            return schedule.factor ** sum(epoch > milestone for milestone in self.milestones)
        if schedule.name == "cosine":
            over = max(0, step - self.warmup) / (self.epochs * self.per_epoch - self.warmup)
            return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * over)) / 2
        if schedule.name == "inverse-sqrt":
            return math.sqrt(self.warmup / max(step + 1, self.warmup))
        return 1.0


def rates(recipe: Train, samples: int) -> Rates:
    """The rates of a training on so many samples; raises UserError when it would end before its warm-up does."""
    batch_size = recipe.batch_size
    found = Rates(recipe.lr, recipe.schedule, recipe.epochs_on(samples), samples // batch_size)
    steps = found.epochs * found.per_epoch
    if found.warmup >= steps:
        raise UserError(
            f"The training has {steps} steps in {found.epochs} epochs of {samples} samples in batches of "
            f"{batch_size}, and its warm-up takes {found.warmup}. Give more epochs, or a shorter warm-up."
        )
    return found

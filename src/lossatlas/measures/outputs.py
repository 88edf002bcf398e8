"""Forward passes that several measures share: each is done once a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lossatlas.measures.jobs import Job, TrainedSeed
from lossatlas.measures.settings import Part

if TYPE_CHECKING:
    from torch import Tensor

FORWARD_BATCH = 1024  # cut further by the objective; part of no key, since sums over samples are in float64


def on_samples(job: Job, trained: TrainedSeed, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs (N, C) of a model on the training or test samples, and the loss and extras of every sample (N,)."""
    from lossatlas.landscape.objective import Objective

    def make() -> tuple[Tensor, dict[str, Tensor]]:
        objective = Objective(trained.model, job.samples(part).batches(FORWARD_BATCH), job.criterion)
        return objective.scores(objective.center)

    scores: tuple[Tensor, dict[str, Tensor]] = job.remember(("scores", trained.seed, part), make)
    return scores


def on_inputs(job: Job, trained: TrainedSeed, inputs: Tensor, name: object) -> Tensor:
    """Outputs (n, C) of a model on inputs that are known by `name`."""
    import torch

    from lossatlas.landscape.objective import Objective

    def make() -> Tensor:
        targets = torch.zeros(len(inputs), dtype=torch.long, device=inputs.device)  # not looked at
        objective = Objective(trained.model, [(inputs, targets)], job.criterion)
        return objective.outputs(objective.center)

    outputs: Tensor = job.remember(("outputs", trained.seed, name), make)
    return outputs

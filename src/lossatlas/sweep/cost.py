"""What a plan will cost: seconds in one process from a short probe of each model, bytes of disk and memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lossatlas import registry
from lossatlas.measures import settings as s
from lossatlas.registry import Facts
from lossatlas.settings import canonical
from lossatlas.specs import Task
from lossatlas.sweep.plan import CellPlan, Step
from lossatlas.sweep.worker import one_thread
from lossatlas.tasks import losses, models

PROBE_BATCHES = (8, 32)  # a step takes a + b B seconds; two sizes give a and b
PROBE_SECONDS = 8.0  # what is left unprobed after that is scaled by the number of parameters
STEP_OVERHEAD = 0.01  # s: writing and syncing the files of a step

# In units of one gradient on the same samples (measured on ResNet18 and a perceptron; see benchmarks/).
FORWARD = 1 / 3
MATVECS = 60  # products until both ends of the spectrum are there, typically
MATVEC = 2.7
CURVE_EPOCH = 1.2


@dataclass(frozen=True)
class ModelCost:
    """Seconds a + b B of a training step with batch B, and the number of parameters."""

    fixed: float
    per_sample: float
    parameters: int

    def gradients(self, samples: float, batch: int) -> float:
        """Seconds of gradients on so many samples, in batches."""
        return samples * (self.per_sample + self.fixed / batch)


@dataclass(frozen=True)
class Estimate:
    """Seconds of every step, in the order of the plan, and bytes."""

    seconds: tuple[float, ...]
    disk: int
    memory: int


def estimate(cells: Sequence[CellPlan], facts: Facts) -> Estimate:
    """Predict the cost of every step of a plan, by timing a few training steps of each model."""
    known: dict[str, ModelCost] = {}
    start = time.monotonic()
    with one_thread(), torch.random.fork_rng(devices=[]):
        for cell in sorted(
            cells, key=lambda c: sum(v for v in c.task.model.options.values() if isinstance(v, int))
        ):
            name = canonical(cell.task.model.model_dump(mode="json"))
            if name in known:
                continue
            if time.monotonic() - start < PROBE_SECONDS:
                known[name] = _probe(cell.task, facts)
            else:
                known[name] = _scaled(list(known.values())[-1], _parameters(cell.task, facts))
    costs = {id(c): known[canonical(c.task.model.model_dump(mode="json"))] for c in cells}
    seconds = tuple(_seconds(step, cell, costs[id(cell)], facts) for cell in cells for step in cell.steps)
    trained = [(costs[id(c)], step) for c in cells for step in c.steps if step.name == "train"]
    disk = sum(3 * 4 * cost.parameters + 20_000 for cost, _ in trained)  # best, early-stopped and final weights
    largest = max(cost.parameters for cost in costs.values())
    images = (facts.n_train + facts.n_test) * int(torch.Size(facts.input_shape).numel())
    memory = 600_000_000 + images + 4 * largest * (12 + MATVECS)  # torch itself, the images, a Krylov basis
    return Estimate(seconds, disk, memory)


def _model(task: Task, facts: Facts) -> torch.nn.Module:
    return models.build(
        task.model.name, task.model.options, input_shape=facts.input_shape, classes=facts.classes, seed=0
    )


def _parameters(task: Task, facts: Facts) -> int:
    return sum(p.numel() for p in _model(task, facts).parameters())


def _scaled(cost: ModelCost, parameters: int) -> ModelCost:
    return ModelCost(cost.fixed, cost.per_sample * parameters / cost.parameters, parameters)


def _probe(task: Task, facts: Facts) -> ModelCost:
    model, criterion = _model(task, facts), losses.build(task.loss)
    seconds = []
    for size in PROBE_BATCHES:
        batch = (torch.zeros(size, *facts.input_shape), torch.zeros(size, dtype=torch.long))
        times = []
        for _ in range(3):
            start = time.perf_counter()
            with registry.blamed(f"model {task.model.name!r} on inputs of shape {facts.input_shape}"):
                criterion(model, batch).backward()
            times.append(time.perf_counter() - start)
        seconds.append(min(times))
    small, large = PROBE_BATCHES
    slope = max(seconds[1] - seconds[0], 0.1 * seconds[1]) / (large - small)
    return ModelCost(max(0.0, seconds[0] - small * slope), slope, sum(p.numel() for p in model.parameters()))


def _seconds(step: Step, cell: CellPlan, cost: ModelCost, facts: Facts) -> float:
    n = cell.task.data.n_train or facts.n_train
    everything = cost.gradients((n + facts.n_test) * FORWARD, 1024)
    if step.name == "train":
        return STEP_OVERHEAD + cost.gradients(cell.train.epochs * n, cell.train.batch_size)
    if step.name == "evaluation":
        return STEP_OVERHEAD + everything
    settings = step.settings
    if isinstance(settings, s.Hessian):
        images = min(settings.images, n)
        units = min(settings.max_matvecs, MATVECS) * MATVEC + facts.classes
        return STEP_OVERHEAD + units * cost.gradients(images, images)
    if isinstance(settings, s.Connectivity):
        if step.name == "curve":
            return STEP_OVERHEAD + CURVE_EPOCH * cost.gradients(settings.epochs * n, settings.batch_size)
        return STEP_OVERHEAD + settings.points * (everything + cost.gradients(n * FORWARD, 128))
    return STEP_OVERHEAD

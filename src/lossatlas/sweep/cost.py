"""What a plan will cost: seconds in one process from a short probe of each model, bytes of disk and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lossatlas import registry
from lossatlas.measures import settings as s
from lossatlas.registry import Facts
from lossatlas.results import Cell
from lossatlas.settings import Settings
from lossatlas.specs import Task, Train
from lossatlas.sweep.plan import Plan
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
    """Seconds of the steps of a plan, and bytes."""

    names: tuple[str, ...]  # the kinds of steps, in the order of a cell's steps
    seconds: NDArray[np.float64]  # (cells, names): of one step of each kind
    disk: int
    memory: int  # of one process

    def of(self, plan: Plan) -> Callable[[str, Cell], float]:
        """The predicted seconds of a step of `plan`, by its name and cell."""
        row = {cell: i for i, cell in enumerate(plan.cells)}
        column = {name: i for i, name in enumerate(self.names)}
        return lambda name, cell: float(self.seconds[row[cell], column[name]])

    def total(self, plan: Plan) -> float:
        """The predicted seconds of all steps of `plan`."""
        counts = plan.counts()
        return float((self.seconds @ [counts[name] / len(plan) for name in self.names]).sum())


def estimate(plan: Plan, facts: Facts) -> Estimate:
    """Predict the cost of every step of a plan, by timing a few training steps of each model."""
    costs = _model_costs({_model_key(task): task for task in map(plan.task, plan.cells)}, facts)
    kinds = plan.kinds()
    known: dict[tuple[int, int], tuple[float, ...]] = {}  # by the task and the training, which cells share
    rows = []
    disk = 0
    for cell in plan.cells:
        task, train = plan.task(cell), plan.train(cell)
        cost = costs[_model_key(task)]
        pair = (id(task), id(train))
        if pair not in known:
            known[pair] = tuple(_seconds(name, setting, task, train, cost, facts) for name, setting in kinds)
        rows.append(known[pair])
        # Best, early-stopped and final weights.
        disk += len(plan.spec.seeds) * (3 * 4 * cost.parameters + 20_000)
    largest = max(cost.parameters for cost in costs.values())
    images = (facts.n_train + facts.n_test) * int(torch.Size(facts.input_shape).numel())
    memory = 600_000_000 + images + 4 * largest * (12 + MATVECS)  # torch itself, the images, a Krylov basis
    return Estimate(tuple(name for name, _ in kinds), np.array(rows), disk, memory)


def _model_key(task: Task) -> str:
    return task.model.model_dump_json()


def _model_costs(tasks: Mapping[str, Task], facts: Facts) -> dict[str, ModelCost]:
    """The cost of each model: from a probe, the smallest models first, until PROBE_SECONDS are over."""
    known: dict[str, ModelCost] = {}
    start = time.monotonic()
    with one_thread(), torch.random.fork_rng(devices=[]):
        for key in sorted(
            tasks, key=lambda k: sum(v for v in tasks[k].model.options.values() if isinstance(v, int))
        ):
            if time.monotonic() - start < PROBE_SECONDS:
                known[key] = _probe(tasks[key], facts)
            else:
                known[key] = _scaled(list(known.values())[-1], _parameters(tasks[key], facts))
    return known


def _model(task: Task, facts: Facts) -> torch.nn.Module:
    return models.build(
        task.model.name, task.model.options, input_shape=facts.input_shape, classes=facts.classes, seed=0
    )


def _parameters(task: Task, facts: Facts) -> int:
    with torch.device("meta"):  # shapes without numbers
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


def _seconds(
    name: str, settings: Settings | None, task: Task, train: Train, cost: ModelCost, facts: Facts
) -> float:
    n = task.data.n_train or facts.n_train
    everything = cost.gradients((n + facts.n_test) * FORWARD, 1024)
    if name == "train":
        return STEP_OVERHEAD + cost.gradients(train.epochs * n, train.batch_size)
    if name == "evaluation":
        return STEP_OVERHEAD + everything
    if isinstance(settings, s.Hessian):
        images = min(settings.images, n)
        units = min(settings.max_matvecs, MATVECS) * MATVEC + facts.classes
        return STEP_OVERHEAD + units * cost.gradients(images, images)
    if isinstance(settings, s.Connectivity):
        if name == "curve":
            return STEP_OVERHEAD + CURVE_EPOCH * cost.gradients(settings.epochs * n, settings.batch_size)
        return STEP_OVERHEAD + settings.points * (everything + cost.gradients(n * FORWARD, 128))
    return STEP_OVERHEAD

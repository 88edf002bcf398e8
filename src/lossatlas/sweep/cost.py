"""What a plan will cost: seconds in one process from a short probe of its models, bytes of disk and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lossatlas import registry
from lossatlas.measures import settings as s
from lossatlas.registry import Facts
from lossatlas.results import Cell
from lossatlas.settings import Settings
from lossatlas.specs import Model, Task, Train
from lossatlas.sweep.plan import Plan
from lossatlas.sweep.remaining import per_cell
from lossatlas.sweep.worker import one_thread
from lossatlas.tasks import losses, models
from lossatlas.tasks.samples import FLOAT_LIMIT
from lossatlas.training import FlatSGD

# A step takes a + b B seconds: the smallest of these batches and the first that takes PROBE_STEP give a and b.
PROBE_BATCHES = (8, 32, 128, 512)
PROBE_STEP = 0.01  # s
PROBED = 12  # models at most; those between are interpolated by their numbers of parameters
PROBE_SECONDS = 4.0  # and no further model is begun after that
NODE_BYTES = 77  # on disk, of a node of a density's quadrature
STEP_OVERHEAD = 0.025  # s: writing and syncing the files of a step

# In units of one gradient on the same samples. Products and the trace as `operators.HessianOperator` and
# benchmarks/training.py have them for a ResNet18 (1.7; a perceptron: 1.0): too long rather than too short.
FORWARD = 1 / 3
MATVECS = 25  # products until both ends of the spectrum are there: 12 to 26 on ResNet18 and a perceptron
MATVEC = 1.7
ORTHOGONAL = 3e-10  # s a product, a number of a full basis: 2e-10 (75,000 parameters) to 6e-10 (9 million)
TRACE_CLASS = 1.75  # of the exact trace, a class
CURVE_EPOCH = 1.2
DECODING = 4.0  # translating, in units of a forward pass: small matrices, one token after another

# Bytes, fitted to the peak of workers' resident memory (benchmarks/results/cells.md).
PROCESS = 500_000_000  # Python, torch and what the measures load
VECTORS = 16  # of the size of the parameters: weights kept of two models and a curve, gradients, velocity
MORE_VECTORS = 2  # and of each further seed of a cell
KEPT_GRAPH = 3.0  # what a differentiated gradient keeps, in units of what a gradient does
KEPT_BYTES = 1 << 30  # where kept graphs (operators.KEPT_BYTES) and a Krylov basis (models.BASIS_BYTES) end


@dataclass(frozen=True)
class ModelCost:
    """Seconds a + b B of a training step with batch B, the number of parameters, bytes of activations a sample."""

    fixed: float
    per_sample: float
    parameters: int
    activations: float

    def gradients(self, samples: float, batch: int) -> float:
        """Seconds of gradients on so many samples, in batches."""
        return samples * (self.per_sample + self.fixed / batch)


Costs = Callable[[Mapping[str, Task], Facts], dict[str, ModelCost]]  # of the models with these keys


@dataclass(frozen=True)
class Estimate:
    """Seconds of the steps of a plan, and bytes."""

    names: tuple[str, ...]  # the kinds of steps, in the order of a cell's steps
    seconds: NDArray[np.float64]  # (cells, names): of one step of each kind
    disk: int
    memories: NDArray[np.float64]  # (cells,): bytes of one process at its peak

    @property
    def memory(self) -> int:
        """Bytes of one process that does all cells."""
        return int(self.memories.max())

    def of(self, plan: Plan) -> Callable[[str, Cell], float]:
        """The predicted seconds of a step of `plan`, by its name and cell."""
        row = {cell: i for i, cell in enumerate(plan.cells)}
        column = plan.columns()
        return lambda name, cell: float(self.seconds[row[cell], column[name]])

    def total(self, plan: Plan) -> float:
        """The predicted seconds of all steps of `plan`."""
        return float((self.seconds @ per_cell(plan)).sum())


def estimate(plan: Plan, facts: Facts, costs_of: Costs | None = None) -> Estimate:
    """Predict the cost of every step of a plan: of each model by `costs_of`, or by timing a few training steps."""
    costs = (costs_of or model_costs)({_model_key(task): task for task in map(plan.task, plan.cells)}, facts)
    kinds = plan.kinds()
    known: dict[tuple[int, int], tuple[tuple[float, ...], float]] = {}  # by the task and training that cells share
    found = []
    disk = 0
    nodes = sum(each.probes * each.steps for _, each in kinds if isinstance(each, s.Density))
    seeds = len(plan.spec.seeds)
    bends = sum(
        plan.counts()[name] // len(plan) * each.bends
        for name, each in kinds
        if name == "curve" and isinstance(each, s.Connectivity)
    )
    for cell in plan.cells:
        task, train = plan.task(cell), plan.train(cell)
        cost = costs[_model_key(task)]
        pair = (id(task), id(train))
        if pair not in known:
            seconds = tuple(_seconds(name, setting, task, train, cost, facts) for name, setting in kinds)
            known[pair] = seconds, _memory([setting for _, setting in kinds], task, train, cost, facts, seeds)
        found.append(known[pair])
        kept = 3 + len(train.keep)  # best, early-stopped and final weights, and those asked for
        disk += seeds * (kept * 4 * cost.parameters + 20_000 + nodes * NODE_BYTES) + bends * 4 * cost.parameters
    names = tuple(name for name, _ in kinds)
    return Estimate(names, np.array([row for row, _ in found]), disk, np.array([peak for _, peak in found]))


def _model_key(task: Task) -> str:
    return task.model.model_dump_json()


def model_costs(tasks: Mapping[str, Task], facts: Facts) -> dict[str, ModelCost]:
    """The cost of each model: some are probed, spread evenly by size, the smallest first, within PROBE_SECONDS."""
    probed: dict[str, ModelCost] = {}
    with one_thread(), torch.random.fork_rng(devices=[]):
        sizes = {key: _parameters(task, facts) for key, task in tasks.items()}
        ordered = sorted(tasks, key=lambda key: sizes[key])
        chosen = {ordered[round(k * (len(ordered) - 1) / (PROBED - 1))] for k in range(PROBED)}
        start = time.monotonic()
        for key in ordered:
            if key in chosen and (not probed or time.monotonic() - start < PROBE_SECONDS):
                probed[key] = probe(tasks[key], facts)
    known = list(probed.values())
    return {key: probed.get(key) or _between(known, sizes[key]) for key in ordered}


def _between(known: Sequence[ModelCost], parameters: int) -> ModelCost:
    """The cost of a model of this size: a power of it between two probed ones, in proportion to it beyond them."""
    sizes = np.log([cost.parameters for cost in known])

    def power_law(values: Sequence[float]) -> float:
        inside = np.interp(np.log(parameters), sizes, np.log(np.maximum(values, 1e-12)))
        largest = max(cost.parameters for cost in known)
        return float(np.exp(inside)) * max(1.0, parameters / largest)

    return ModelCost(
        power_law([cost.fixed for cost in known]),
        power_law([cost.per_sample for cost in known]),
        parameters,
        power_law([cost.activations for cost in known]),
    )


def model_of(model: Model, facts: Facts) -> torch.nn.Module:
    """The model on data of these sizes."""
    return models.build(model.name, model.options, input_shape=facts.input_shape, classes=facts.classes, seed=0)


def _parameters(task: Task, facts: Facts) -> int:
    try:
        with torch.device("meta"):  # shapes without numbers
            return sum(p.numel() for p in model_of(task.model, facts).parameters())
    except Exception:  # a model of one's own may need the numbers; what else is wrong with it, this says again
        return sum(p.numel() for p in model_of(task.model, facts).parameters())


def probe(task: Task, facts: Facts) -> ModelCost:
    """The cost of a model on this machine, from a few training steps; one thread is up to the caller."""
    model, criterion = model_of(task.model, facts), losses.build(task.loss)
    optimizer = FlatSGD(model, momentum=0.9, weight_decay=1e-4)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}  # bytes of what the gradient needs, by storage, so that nothing counts twice

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step(batch: tuple[torch.Tensor, torch.Tensor]) -> float:
        start = time.process_time()  # not by the clock: others may be at work here
        kept.clear()
        optimizer.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = criterion(model, batch)
        loss.backward()
        optimizer.step()
        return time.process_time() - start

    seconds: dict[int, float] = {}
    for size in PROBE_BATCHES:
        batch = example(size, facts)
        with registry.blamed(f"model {task.model.name!r} on inputs of shape {facts.input_shape}"):
            seconds[size] = min(step(batch) for _ in range(3))
        if len(seconds) > 1 and seconds[size] > PROBE_STEP:
            break
    small, large = min(seconds), max(seconds)
    slope = max(seconds[large] - seconds[small], 0.1 * seconds[large]) / (large - small)
    parameters = sum(p.numel() for p in model.parameters())
    activations = sum(size for storage, size in kept.items() if storage not in weights) / large
    return ModelCost(max(0.0, seconds[small] - small * slope), slope, parameters, activations)


def example(size: int, facts: Facts) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of the data's shapes; of sequences of their usual lengths, without padding."""
    if facts.tokens is None:
        return torch.zeros(size, *facts.input_shape), torch.zeros(size, dtype=torch.long)
    source, target = facts.tokens
    return torch.ones(size, source, dtype=torch.long), torch.ones(size, target, dtype=torch.long)


def _memory(
    settings: Sequence[Settings | None], task: Task, train: Train, cost: ModelCost, facts: Facts, seeds: int
) -> float:
    """Bytes of a worker at the peak of a cell: its data, models and outputs, and the largest of its steps."""
    sample = int(torch.Size(facts.input_shape).numel())
    n = task.data.n_train or facts.n_train
    data = (facts.n_train + facts.n_test) * sample
    data += 2 * _samples(n * sample) + _samples(_tested(task, facts) * sample)
    largest = train.batch_size * cost.activations
    for each in settings:
        if isinstance(each, s.Hessian | s.Density):
            graphs = min(KEPT_BYTES, KEPT_GRAPH * min(each.images, n) * cost.activations)
            largest = max(largest, graphs + _basis(each, cost.parameters))
    vectors = VECTORS + MORE_VECTORS * max(0, seeds - 2)
    outputs = 0 if facts.tokens else seeds * 4 * facts.classes * (n + _tested(task, facts))
    return PROCESS + data + vectors * 4 * cost.parameters + outputs + largest


def _basis(settings: s.Hessian | s.Density, parameters: int) -> float:
    """Bytes of the Krylov basis: that of eigenpairs is compressed and goes on, that of a density is whole."""
    if isinstance(settings, s.Density):
        return (min(settings.steps, parameters) + 1) * 4 * parameters
    return min(KEPT_BYTES, MATVECS * 4 * parameters)


def _tested(task: Task, facts: Facts) -> int:
    """The test samples of a task."""
    return min(task.data.n_test or facts.n_test, facts.n_test)


def _samples(numbers: int) -> int:
    """Bytes of inputs that are kept as `tasks.samples.Samples` does it."""
    return 4 * numbers if 4 * numbers <= FLOAT_LIMIT else numbers


def _seconds(
    name: str, settings: Settings | None, task: Task, train: Train, cost: ModelCost, facts: Facts
) -> float:
    n = task.data.n_train or facts.n_train
    n_test = _tested(task, facts)
    everything = cost.gradients((n + n_test) * FORWARD, 1024)
    if name == "train":
        return STEP_OVERHEAD + cost.gradients(train.epochs_on(n) * n, train.batch_size)
    if name == "evaluation":
        return STEP_OVERHEAD + everything
    if isinstance(settings, s.Hessian):
        images = min(settings.images, n if settings.data == "train" else n_test)
        # The trace of a Transformer is never exact.
        trace = facts.classes * TRACE_CLASS if facts.tokens is None else settings.max_matvecs * MATVEC
        units = min(settings.max_matvecs, MATVECS) * MATVEC + trace
        return STEP_OVERHEAD + units * cost.gradients(images, images)
    if isinstance(settings, s.Density):
        images = min(settings.images, n if settings.data == "train" else n_test)
        steps = min(settings.steps, cost.parameters)
        product = MATVEC * cost.gradients(images, images) + ORTHOGONAL * steps * cost.parameters
        return STEP_OVERHEAD + settings.probes * steps * product
    if isinstance(settings, s.Connectivity):
        if name == "curve":
            return STEP_OVERHEAD + CURVE_EPOCH * cost.gradients(settings.epochs_on(n) * n, settings.batch_size)
        return STEP_OVERHEAD + settings.points * (everything + cost.gradients(n * FORWARD, 128))
    if isinstance(settings, s.Bleu):
        return STEP_OVERHEAD + DECODING * settings.beam * cost.gradients(n_test * FORWARD, 256)
    if isinstance(settings, s.CKA):
        return STEP_OVERHEAD + 2 * cost.gradients(settings.images * FORWARD, 1024)
    return STEP_OVERHEAD

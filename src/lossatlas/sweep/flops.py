"""What a plan would cost on a machine known by its speed alone, from the operations that its models take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from lossatlas import registry
from lossatlas.registry import Facts
from lossatlas.specs import Model, Task
from lossatlas.sweep.cost import Costs, ModelCost, example, model_of, probe
from lossatlas.sweep.worker import one_thread
from lossatlas.tasks import losses

CALLS = 4  # of a module without parts in a training step: forward, two gradients, and its share of the rest
GRADIENT = 3  # forward passes that a gradient takes


@dataclass(frozen=True)
class Machine:
    """Seconds of a training step for every call of an operation, and for every floating-point operation."""

    per_call: float
    per_flop: float


# Assumed, not measured: 10 TFLOP/s of float32 are sustained, and launching a kernel takes 10 us.
GPU = Machine(1e-5, 1e-13)


@dataclass(frozen=True)
class Work:
    """Calls of operations in a training step, floating-point operations of a gradient on one sample."""

    calls: int
    flops: int
    parameters: int


def costs_on(machine: Machine) -> Costs:
    """What models cost on a machine; their memory is not told."""

    def costs(tasks: Mapping[str, Task], facts: Facts) -> dict[str, ModelCost]:
        found = {key: work_of(task, facts) for key, task in tasks.items()}
        return {
            key: ModelCost(one.calls * machine.per_call, one.flops * machine.per_flop, one.parameters, 0.0)
            for key, one in found.items()
        }

    return costs


def this_machine() -> Machine:
    """One thread of this machine, from a few training steps of a small ResNet18 in a second or so."""
    facts = registry.DATA["cifar10"].facts
    assert facts is not None
    task = Task.model_validate({"data": {"name": "cifar10"}, "model": {"name": "resnet18", "width": 8}})
    with one_thread(), torch.random.fork_rng(devices=[]):
        measured, known = probe(task, facts), work_of(task, facts)
    return Machine(measured.fixed / known.calls, measured.per_sample / known.flops)


def work_of(task: Task, facts: Facts) -> Work:
    """The work of the model of a task, counted in a forward pass on shapes without numbers.

    Sequences have numbers, since it hangs on them which tokens are padding.
    """
    return _work(task.model.model_dump_json(), task.loss, facts)


@cache
def _work(model_json: str, loss: str, facts: Facts) -> Work:
    """Nothing else of a task matters, so presets that share a model count it once."""
    with torch.device("meta" if facts.tokens is None else "cpu"):
        model, criterion = model_of(Model.model_validate_json(model_json), facts), losses.build(loss)
        batch = example(1, facts)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        criterion.predict(model.eval(), batch)
    parts = sum(not list(module.children()) for module in model.modules())
    parameters = sum(p.numel() for p in model.parameters())
    return Work(CALLS * parts, GRADIENT * counter.get_total_flops(), parameters)

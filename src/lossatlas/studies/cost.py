"""What a study will cost, from the operations that its models take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lossatlas.errors import UserError
from lossatlas.specs import Task
from lossatlas.studies.schema import Study
from lossatlas.studies.subject import BATCH, Subject
from lossatlas.studies.work import Sources, items, pictures, subjects
from lossatlas.sweep import flops
from lossatlas.sweep.flops import Machine
from lossatlas.sweep.store import Store

Missing = Callable[[str, str], bool]  # whether a step with this name and key has yet to be done


@dataclass(frozen=True)
class Cost:
    """Of all models whose cost can be told; those that cannot be built here are named."""

    trainings: int
    epochs: int
    results: int
    seconds: tuple[float, ...]  # on each machine
    unknown: tuple[str, ...]


def beforehand(study: Study, machines: Sequence[Machine]) -> Cost:
    """What all of a study takes in one process; loads no data whose sizes are known."""
    sources = Sources(study)
    found = subjects(study, sources, sources.expected(), Store(Path()), torch.device("cpu"))
    return cost(study, found, machines, lambda _step, _key: True)


def cost(study: Study, found: Sequence[Subject], machines: Sequence[Machine], missing: Missing) -> Cost:
    """What is missing of the work on some models, in one process."""
    trainings = epochs = results = 0
    seconds, unknown = [0.0] * len(machines), []
    for subject in found:
        trained = sum(missing(step.name, step.key) for step in subject.training)
        trainings, epochs = trainings + trained, epochs + trained * subject.late
        try:
            wanted = [item for item in items(pictures(study, subject)) if missing(item.step, item.key)]
            gradients = sum(item.gradients for item in wanted)
            took = [_seconds(study, subject, trained, gradients, machine) for machine in machines]
        except UserError:  # torchvision is missing: the run says so
            unknown.append(subject.name)
            continue
        results += len(wanted)
        seconds = [a + b for a, b in zip(seconds, took, strict=True)]
    return Cost(trainings, epochs, results, tuple(seconds), tuple(unknown))


def _seconds(study: Study, subject: Subject, trained: int, gradients: float, machine: Machine) -> float:
    """Of so many trainings of a model and of so many gradients of single samples."""
    task = Task(data=study.data_of(subject.learner), model=subject.model, loss=subject.learner.loss)
    one = flops.costs_on(machine)({"": task}, subject.facts)[""]
    batch = BATCH if subject.learner.train is None else subject.learner.train.batch_size
    samples = trained * subject.late * subject.facts.n_train
    return one.gradients(samples, batch) + one.gradients(gradients, BATCH)

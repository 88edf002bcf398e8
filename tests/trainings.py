"""Small trainings, how they are stopped and continued, and whether two of them have the same bits."""

import copy
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from lossatlas.landscape.checkpoints import State, Stopped
from lossatlas.specs import Optimizer, Train
from lossatlas.tasks.data import RawData
from lossatlas.tasks.samples import Samples
from lossatlas.training import TrainedModel


def network(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout)]
        return nn.Sequential(*layers, nn.Linear(8, 3))


def samples(count: int = 50) -> Samples:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(count, 5)).astype(np.float32)
    targets = generator.integers(0, 3, count)
    return Samples(inputs, targets, RawData(inputs, targets, inputs, targets, 3))


def recipe(**changes: object) -> Train:
    settings: dict[str, object] = {"batch_size": 8, "epochs": 4, "optimizer": Optimizer(lr=0.1), **changes}
    return Train.model_validate(settings)


@dataclass
class Memory:
    """Checkpoints in memory: asks for one after so many batches, and stops there."""

    stop_after: int | None = None
    saved: State | None = None
    batches: int = field(default=0, init=False)

    def load(self) -> State | None:
        return copy.deepcopy(self.saved)

    def due(self) -> bool:
        self.batches += 1
        return self.batches == self.stop_after

    def save(self, state: State) -> None:
        self.saved = copy.deepcopy(state)
        raise Stopped


def assert_same_bits(one: TrainedModel, other: TrainedModel) -> None:
    for what in ("status", "reason", "epochs", "best_epoch", "early_stopped_epoch", "history", "about"):
        assert getattr(one, what) == getattr(other, what), what
    assert one.weights.keys() == other.weights.keys()
    for kept, weights in one.weights.items():
        assert weights.keys() == other.weights[kept].keys()
        for name, tensor in weights.items():
            assert torch.equal(tensor, other.weights[kept][name]), (kept, name)

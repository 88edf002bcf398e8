"""Measures of pairs and of all seeds of a cell, on models made by hand."""

import numpy as np
import torch
from torch import nn

from lossatlas.landscape.parameters import flat_parameters
from lossatlas.measures import pairs
from lossatlas.measures.jobs import Job, TrainedSeed
from lossatlas.measures.settings import Ensemble
from lossatlas.tasks import losses
from lossatlas.tasks.data import RawData
from lossatlas.tasks.samples import Samples


def answers(seed: int, label: int | None) -> TrainedSeed:
    """A model that always gives this label, or (None) the place of the pixel that is 1."""
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2) if label is None else torch.zeros(2, 2))
        layer.bias.copy_(torch.zeros(2) if label is None else 9.0 * torch.eye(2)[label])
    net = nn.Sequential(nn.Flatten(), layer).eval()
    return TrainedSeed(seed, net, flat_parameters(net))


def test_an_ensemble_leaves_out_models_that_collapsed() -> None:
    inputs = np.tile(np.eye(2, dtype=np.float32), (3, 1))[:, None]  # (6, 1, 2): one of two pixels is 1
    targets = np.tile([0, 1], 3)
    samples = Samples(inputs, targets, RawData(inputs, targets, inputs, targets, 2))
    job = Job(losses.build("cross_entropy"), samples, samples, 2, lambda _seed: nn.Linear(1, 1))
    models = [answers(0, None), answers(1, 1), answers(2, None), answers(3, 1), answers(4, 0)]
    found = pairs.ensemble(job, Ensemble(), models, {})
    assert (found.status, found.values["ensemble_size"], found.values["ensemble_error"]) == ("ok", 2.0, 0.0)
    alone = pairs.ensemble(job, Ensemble(), models[:2], {})
    assert (alone.status, alone.reason) == ("collapsed", "1 of 2 models are better than guessing")

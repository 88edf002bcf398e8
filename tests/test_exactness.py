"""The models that come along have exact traces on the very batches that a sweep hands over."""

import pytest

from lossatlas.landscape.objective import Objective
from lossatlas.landscape.trace import trace
from lossatlas.tasks import data, losses, models
from lossatlas.tasks.samples import Samples


@pytest.mark.parametrize(("name", "width"), [("mlp", 4), ("cnn", 1), ("cnn", 2), ("resnet18", 1), ("resnet18", 2)])
def test_the_trace_is_exact(name: str, width: int) -> None:
    raw = data.load("digits", None)
    samples = Samples(raw.train_inputs[:16], raw.train_targets[:16], raw)  # channels last in memory
    model = models.build(name, {"width": width}, input_shape=raw.input_shape, classes=raw.classes, seed=0)
    objective = Objective(model, [samples.head(8)], losses.build("cross_entropy"))
    found = trace(objective, seed=0)
    assert found.method == "exact-ggn", found.reason
    assert found.stderr == 0

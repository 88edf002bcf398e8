"""Train one model: samples and a recipe in, weights and history out. Bit-identical on repetition."""

from lossatlas.training.loop import TrainedModel, stops_early, train
from lossatlas.training.optimizers import FlatAdam, FlatOptimizer, FlatSGD
from lossatlas.training.schedules import Rates, rates

__all__ = ["FlatAdam", "FlatOptimizer", "FlatSGD", "Rates", "TrainedModel", "rates", "stops_early", "train"]

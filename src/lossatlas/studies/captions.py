"""What stands below a picture of a study: what it shows of which model, and what was reduced or random."""

from __future__ import annotations

from collections.abc import Mapping

import xarray as xr

from lossatlas.studies.catalogue import FIGURES
from lossatlas.studies.pictures import Picture
from lossatlas.studies.schema import Study
from lossatlas.studies.subject import Subject
from lossatlas.tasks.images import TABLE

BATCHNORM = {
    "eval": "BatchNorm with its running statistics.",
    "recalibrate": "BatchNorm re-estimated at every point.",
}


def caption(study: Study, subject: Subject, picture: Picture, found: Mapping[str, xr.Dataset]) -> str:
    """A few sentences on a picture that was drawn from datasets by the keys of their items."""
    figure = study.study.figure
    epochs = {panel.epoch for panel in picture.panels}
    at = f" Epoch {epochs.pop()}." if len(epochs) == 1 and subject.cell is not None else ""
    told = [f"In the manner of [Xu2024] Fig. {figure}: {FIGURES[figure].title}.", f"{whose(study, subject)}{at}"]
    images = "images" if subject.cell is None else "training images"
    told.append(f"Mean cross entropy of {subject.images} {images}.")
    policies = {str(dataset.attrs.get("batchnorm")) for dataset in found.values()}
    if subject.has_batchnorm and len(policies) == 1:  # with several the panels say it
        told += filter(None, [BATCHNORM.get(policies.pop())])
    less = "; ".join(filter(None, [study.reduced, subject.learner.reduced]))
    return " ".join([*told, *([f"Reduced, {less}."] if less else [])])


def whose(study: Study, subject: Subject) -> str:
    """Which model on which data, and how it came to its weights; a sentence."""
    learner, name = subject.learner, study.data_of(subject.learner).name
    title = TABLE[name].title if name in TABLE else name
    replaced = study.study.random_weights and learner.asks_for_weights
    if learner.train is None:
        weights = "RANDOM weights in place of the published ones" if replaced else "published weights"
        return f"{learner.title} on {title}, {weights}."
    start = ""
    if learner.asks_for_weights:
        start = ", from RANDOM weights in place of the published ones" if replaced else ", from published weights"
    rate = learner.train.optimizer.lr
    return f"{learner.title} on {title}, trained for {learner.train.epochs} epochs at rate {rate:g}{start}."

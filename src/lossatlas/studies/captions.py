"""What stands below a picture of a study: what it shows of which model, and what was reduced or random."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import xarray as xr

from lossatlas.specs import Data
from lossatlas.studies.catalogue import FIGURES
from lossatlas.studies.index import kinds_of
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
    told = [f"In the manner of [Xu2024] Fig. {figure}: {FIGURES[figure].title}."]
    told += filter(None, [appeared(FIGURES[figure].sought, found.values())])
    told.append(f"{whose(study, subject)}{at}")
    images = "images" if subject.cell is None else "training images"
    loss = "cross entropy" if subject.learner.loss == "cross_entropy" else "loss"
    told.append(f"Mean {loss} of {subject.images} {images}.")
    policies = {str(dataset.attrs.get("batchnorm")) for dataset in found.values()}
    if subject.has_batchnorm and len(policies) == 1:  # with several the panels say it
        told += filter(None, [BATCHNORM.get(policies.pop())])
    told += filter(None, [picture.marks])
    less = "; ".join(filter(None, [study.reduced, subject.learner.reduced]))
    return " ".join([*told, *([f"Reduced, {less}."] if less else [])])


def appeared(sought: Sequence[str], drawn: Iterable[xr.Dataset]) -> str:
    """Which of the classes that a figure is in search of are among its curves; empty if it seeks none."""
    if not sought:
        return ""
    kinds = Counter(kind for dataset in drawn for kind in kinds_of(dataset))
    there = [f"{kind} {kinds[kind]} of {kinds.total()} curves" for kind in sought if kinds[kind]]
    lacking = [kind for kind in sought if not kinds[kind]]
    told = [f"Found here: {', '.join(there)}"] if there else []
    told += [f"{'n' if there else 'N'}ot found here: {', '.join(lacking)}"] if lacking else []
    return f"{'; '.join(told)}."


def whose(study: Study, subject: Subject) -> str:
    """Which model on which data, and how it came to its weights; a sentence."""
    learner, data = subject.learner, study.data_of(subject.learner)
    title = TABLE[data.name].title if data.name in TABLE else data.name
    if changed := _changed(data):
        title += f" ({changed})"
    replaced = study.study.random_weights and learner.asks_for_weights
    if learner.train is None:
        weights = "RANDOM weights in place of the published ones" if replaced else "published weights"
        return f"{learner.title} on {title}, {weights}."
    start = ""
    if learner.asks_for_weights:
        start = ", from RANDOM weights in place of the published ones" if replaced else ", from published weights"
    rate = learner.train.optimizer.lr
    return f"{learner.title} on {title}, trained for {learner.train.epochs} epochs at rate {rate:g}{start}."


def _changed(data: Data) -> str:
    """What was done to the training data, and thereby to what is looked at; empty if nothing was."""
    noise = data.image_noise
    told = (
        f"the first {data.n_train} images" if data.n_train else "",
        f"{100 * data.label_noise:g} % of the labels replaced" if data.label_noise else "",
        f"{noise.kind.replace('_', ' ')} noise on {100 * noise.fraction:g} % of the images" if noise else "",
    )
    return ", ".join(filter(None, told))

"""The work of a study in a folder: its trainings, its results, its figures. What is there is not done again.

DIR/study.json index.md figures/*.{pdf,png} failed/ store/ (unless shared)
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import xarray as xr

from lossatlas import figures, files, registry
from lossatlas.errors import FileError, SpecError, UserError
from lossatlas.figures.captions import captioned
from lossatlas.landscape.checkpoints import StopFlag, Stopped
from lossatlas.studies.captions import caption
from lossatlas.studies.catalogue import FIGURES
from lossatlas.studies.index import Entry, Index
from lossatlas.studies.items import Item, Lacking, Unavailable, with_needs
from lossatlas.studies.numbers import tables
from lossatlas.studies.other_figures import PICTURES
from lossatlas.studies.pictures import Picture, drawn
from lossatlas.studies.schema import KnownData, Study
from lossatlas.studies.subject import Subject
from lossatlas.sweep.store import Store
from lossatlas.sweep.worker import Listener, Worker, one_thread, write_note
from lossatlas.tasks import data
from lossatlas.tasks.corruption import corrupted
from lossatlas.tasks.data import RawData

Begins = Callable[[int, int], None]  # the place of the result that is begun, and of how many


@dataclass
class Sources:
    """The data of a study, each loaded once, when they are first needed."""

    study: Study
    notes: list[str] = field(default_factory=list)
    _loaded: dict[str, RawData] = field(default_factory=dict)
    _learnt: dict[str, RawData] = field(default_factory=dict)

    def load(self, name: str) -> RawData:
        """The data of a section `[data.NAME]`; raises UserError or FileError."""
        if name not in self._loaded:
            asked = self.study.data[name]
            raw = data.load(asked.name, asked.path, asked.options)
            self.notes += raw.notes
            self._loaded[name] = raw
        return self._loaded[name]

    def learnt(self, name: str) -> RawData:
        """The same as it is trained on and looked at: a subset, with noise, if the section asks for these."""
        if name not in self._learnt:
            self._learnt[name] = corrupted(self.load(name), self.study.data[name])
        return self._learnt[name]

    def known(self) -> dict[str, KnownData]:
        """What keys hang on, of all data, which are loaded."""
        found = {}
        for name in self.study.data:
            raw = self.load(name)
            found[name] = KnownData(raw.facts(), raw.fingerprint())
        return found

    def expected(self) -> dict[str, KnownData]:
        """The same without fingerprints, from what is known beforehand; one's own data are loaded."""
        found = {}
        for name, section in self.study.data.items():
            entry = registry.DATA.get(section.name)
            facts = (entry.facts if entry else None) or self.load(name).facts()
            found[name] = KnownData(facts.limited(section.limit), "")
        return found


def subjects(
    study: Study, sources: Sources, known: Mapping[str, KnownData], store: Store, device: torch.device
) -> list[Subject]:
    """The models of a study on its data; raises SpecError where more samples are asked for than there are."""
    _check_sizes(study, known)
    found = []
    for name, learner in study.learners.items():
        load, learnt = (partial(give, learner.data) for give in (sources.load, sources.learnt))
        found.append(Subject(name, study, known[learner.data], store, load, learnt, device))
    return found


def _check_sizes(study: Study, known: Mapping[str, KnownData]) -> None:
    problems: dict[str, None] = {}  # in their order, each once
    for name, learner in study.learners.items():
        there = known[learner.data].facts.n_train
        asked = study.data_of(learner).n_train or there
        if asked > there:
            most = f"allowed are at most {there}, the training samples"
            problems[f"data.{learner.data}.n_train: {asked} was given; {most}"] = None
        elif learner.train is not None and learner.train.batch_size > asked:
            most = f"allowed are at most {asked}, the training samples"
            problems[f"models.{name}.train.batch_size: {learner.train.batch_size} was given; {most}"] = None
    if problems:
        raise SpecError(f"The study {study.name!r}", list(problems))


def pictures(study: Study, subject: Subject, index: Index | None = None) -> list[Picture]:
    """The pictures of one model; what it cannot have is noted in the index."""
    try:
        return list(PICTURES[study.study.figure](subject))
    except Unavailable as error:
        if index is not None:
            index.missing.append(f"{subject.name}: {error}")
        return []


def items(found: Sequence[Picture]) -> list[Item]:
    """The results that pictures show, and all that these need, each once, the needed first."""
    return list(with_needs(panel.item for picture in found for panel in picture.panels))


def train(subject: Subject, store: Store, failed: Path, listener: Listener, stop: StopFlag) -> dict[str, str]:
    """Do the trainings of a model that the store lacks; returns the reasons of those that failed by their keys."""
    if subject.cell is None:
        return {}
    cell = replace(subject.cell, steps=subject.training)
    return Worker(store, subject.raw, "final", failed, listener, subject.device, stop).run([cell])


def make(subject: Subject, wanted: Sequence[Item], failed: Path, begins: Begins, stop: StopFlag) -> dict[str, str]:
    """Make what is missing of some results, one thread; returns the reasons of those that failed by their keys.

    What raises is noted under `failed`, what needs it is left out, and the work goes on. Raises Stopped between
    two results where a stop was asked for, and FileError where the store takes none.
    """
    missing = [item for item in wanted if not subject.shelf.has(item)]
    failures: dict[str, str] = {}
    with one_thread():
        for place, item in enumerate(missing):
            if stop.asked:
                raise Stopped
            begins(place, len(missing))
            if any(needed.key in failures for needed in with_needs(item.needs)):
                failures[item.key] = f"{item.step}: what it needs failed"
                continue
            try:
                subject.shelf.get(item)
            except Unavailable:
                continue  # its record says why
            except Lacking as error:  # that it failed is noted
                failures[item.key] = f"{item.step} of {subject.name}: {error}"
            except FileError:
                raise
            except Exception as error:  # as of a GPU without memory left
                failures[item.key] = _note_failure(failed, subject, item, error)
    return failures


def _note_failure(failed: Path, subject: Subject, item: Item, error: Exception) -> str:
    """Note under `failed` why a result could not be made; returns the reason."""
    reason = f"{item.step} of {subject.name}: {type(error).__name__}: {error}"
    about = {"step": item.step, "content": item.full_content, "reason": reason}
    write_note(failed, item.key, {**about, "trace": traceback.format_exc()})
    return reason


def check_model(subject: Subject) -> None:
    """Raise UserError where a model cannot be built here, or asks for published weights that are not at hand."""
    if "weights" not in subject.model.options:
        subject.build_without_numbers()
    else:
        try:
            subject.network()
        except UserError as error:
            advice = "For a look at the figures, --set study.random_weights=true takes random ones instead."
            raise UserError(f"{error} {advice}") from error


def draw(study: Study, subject: Subject, found: Sequence[Picture], folder: Path, index: Index) -> Iterator[Path]:
    """Draw pictures from the store alone, and yield the files; what cannot be drawn is noted in the index."""
    noted: set[str] = set()  # a surface stands in space and as contours
    for picture in found:
        known: dict[str, xr.Dataset] = {}
        for panel in picture.panels:
            try:
                known[panel.item.key] = _kept(subject, panel.item)
            except Unavailable as error:
                named = f"{picture.stem}, {panel.title}" if panel.title else picture.stem
                index.missing.append(f"{subject.name}, {named}: {error}")
            else:
                if panel.item.key not in noted:
                    index.note((subject.name, panel.epoch), known[panel.item.key])
                noted.add(panel.item.key)
        if not known:
            continue
        try:
            text = caption(study, subject, picture, known)
            figure = captioned(drawn(picture, known), text)
        except UserError as error:  # as where nothing is finite
            index.missing.append(f"{subject.name}, {picture.stem}: {error}")
            continue
        stem = f"fig{study.study.figure:02}-{subject.name}-{picture.stem}"
        index.figures.append(Entry(stem, text, tables(picture, known)))
        yield from figures.save(figure, folder / stem)


def _kept(subject: Subject, item: Item) -> xr.Dataset:
    dataset = subject.shelf.look(item)
    if dataset is None:
        raise Unavailable("its result is missing: it failed, or was damaged; run again")
    return dataset


def write_index(study: Study, folder: Path, index: Index) -> Path:
    """Write the page of classes, figures and numbers; returns its path."""
    title = f"[Xu2024] Figure {study.study.figure}: {FIGURES[study.study.figure].title}"
    path = folder / "index.md"
    reduced = [f"{title[0].upper()}{title[1:]}: {told}." for title, told in study.reductions.items()]
    files.write_file(path, index.text(title, reduced or ["At full size."]).encode())
    return path

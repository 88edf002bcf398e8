"""`presets`, `plan` and `run` of studies: local pictures of a few models, each trained once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lossatlas import files
from lossatlas.cli import engines, study_workers
from lossatlas.cli.engines import stopping
from lossatlas.cli.output import duration, note, say, table
from lossatlas.cli.progress import Stages
from lossatlas.cli.running import chosen_device
from lossatlas.errors import FileError, SpecError, UserError
from lossatlas.landscape.checkpoints import StopFlag
from lossatlas.specs.reading import shortened
from lossatlas.studies import reading, work
from lossatlas.studies.catalogue import FIGURES
from lossatlas.studies.cost import beforehand, cost
from lossatlas.studies.index import Index
from lossatlas.studies.schema import Study
from lossatlas.studies.subject import Subject
from lossatlas.sweep import flops
from lossatlas.sweep.engine import Engine
from lossatlas.sweep.flops import Machine
from lossatlas.sweep.plan import Step
from lossatlas.sweep.run import default_folder, differences
from lossatlas.sweep.store import Store
from lossatlas.tasks import models
from lossatlas.training import fine_tuning


def preset_row(name: str, *machines: Machine) -> list[str]:
    """What `lossatlas presets` tells of a study."""
    study = reading.read(name)
    found, shown = beforehand(study, machines), FIGURES[study.study.figure].title
    times = [f"{'> ' * bool(found.unknown)}{duration(seconds)}" for seconds in found.seconds]
    count = f"{len(study.study.models)} models"
    return [name, shown, count, str(len(study.study.seeds)), str(found.trainings), str(found.epochs), *times]


def plan(study: Study) -> None:
    """Print what a study would do and cost."""
    found = beforehand(study, [flops.this_machine()])
    rows = [
        ["name", study.name],
        ["figure", f"{study.study.figure}: {FIGURES[study.study.figure].title}"],
        ["models", " ".join(study.study.models)],
        ["trainings", str(found.trainings)],
        ["epochs", str(found.epochs)],
        ["results", str(found.results)],
        ["time", f"about {duration(found.seconds[0])} in one process on this CPU"],
    ]
    if found.unknown:
        why = models.torchvision_problem() or "they cannot be built here, and `lossatlas run` says why"
        rows.append(["not told", f"{', '.join(found.unknown)}: {why}"])
    rows += [[title, told] for title, told in study.reductions.items()]
    table(["plan", ""], rows)


@dataclass(frozen=True)
class Prepared:
    """A study that is ready to be worked on."""

    study: Study
    folder: Path
    store: Store
    subjects: list[Subject]

    @property
    def failed(self) -> Path:
        """Where failures are noted."""
        return self.folder / "failed"


def run(study: Study, folder: Path, store: Path | None, engine: Engine) -> dict[str, str]:
    """Do what is missing of a study and draw its figures; returns the reasons of what failed, by keys."""
    device = chosen_device(engine.device)
    ready = _prepared(_pinned(study), folder, store, device)
    _announce(ready)
    if engine.name == "processes":
        places = engines.places(engine, device)[: len(ready.subjects)]
        study_workers.shared(folder, places, device.type)
    failures = _worked(ready, ready.subjects)
    index, written = Index(), []
    for subject in ready.subjects:
        found = work.pictures(ready.study, subject, index)
        written += list(work.draw(ready.study, subject, found, folder / "figures", index))
    page = work.write_index(ready.study, folder, index)
    say(f"classes: {', '.join(f'{count} {kind}' for kind, count in index.counts.items()) or 'none to be told'}")
    for text in index.missing:
        note(f"not drawn: {text}")
    say(f"index: {page}")
    for path in written:
        say(f"figure: {path}")
    return failures


def worker(folder: Path, shard: int, of: int, device: str) -> dict[str, str]:
    """Do what is missing of every `of`-th model, from number `shard` on; returns what failed as `run` does."""
    if not shard < of:
        raise UserError(f"--shard {shard} is not one of --of {of} shards. Allowed are 0 to {of - 1}.")
    study = reading.saved(folder)
    ready = _prepared(study, folder, None, chosen_device(device), study.study.models[shard::of])
    return _worked(ready, ready.subjects)


def _prepared(
    study: Study, folder: Path, store: Path | None, device: torch.device, only: Sequence[str] | None = None
) -> Prepared:
    """Check folder, data and weights, and keep the study; a worker has `only` some models, and keeps nothing."""
    _check_folder(study, folder)
    place = str(store.resolve()) if store else reading.saved_store(folder)
    shelf, sources = Store(Path(place or folder / "store")), work.Sources(study)
    known = reading.saved_data(folder) if only is not None else sources.known()
    for line in sources.notes:
        note(line)
    found = work.subjects(study, sources, known, shelf, device)
    subjects = [subject for subject in found if only is None or subject.name in only]
    for subject in subjects:
        work.check_model(subject)
    if only is None:
        files.write_file(folder / reading.STUDY_FILE, reading.as_file(study, place, known))
        shelf.tidy()
    return Prepared(study, folder, shelf, subjects)


def _worked(ready: Prepared, subjects: Sequence[Subject]) -> dict[str, str]:
    """Train and look at models; returns the reasons of what failed."""
    stop, failures = StopFlag(), dict[str, str]()
    for subject in subjects:
        with Stages() as stages, stopping(stop, ready.folder):
            failures |= work.train(subject, ready.store, ready.failed, _Listener(subject, stages), stop)
            wanted = work.items(work.pictures(ready.study, subject))
            failures |= work.make(subject, wanted, ready.failed, _begins(subject, stages), stop)
        subject.objective.cache_clear()  # models and images
    return failures


def _announce(ready: Prepared) -> None:
    """Say how much there is to do."""
    machine = [flops.this_machine()]
    left = cost(ready.study, ready.subjects, machine, lambda step, key: not ready.store.has(step, key))
    count = f"{len(ready.subjects)} model{'s' * (len(ready.subjects) > 1)}"
    took = f"about {duration(left.seconds[0])} in one process on this CPU"
    note(f"{ready.study.name}: {count}, {left.trainings} trainings and {left.results} results to do, {took}.")


def out_of(source: str, out: Path | None, study: Study) -> Path:
    """The folder of a study: what --out says, the one that is continued, or runs/NAME."""
    return out or (Path(source) if Path(source).is_dir() else default_folder(study.name))


def refuse(given: Mapping[str, Any]) -> None:
    """Raise UserError for options of `lossatlas run` that studies do not have."""
    for option, value in given.items():
        if value:
            raise UserError(
                f"{option} was given, and a study knows the engines inline and processes alone. Leave it out; on "
                "a cluster let jobs do parts of it, by --set study.models, on one --store."
            )


class _Listener:
    """Shows the epochs of a training."""

    def __init__(self, subject: Subject, stages: Stages) -> None:
        self._name, self._stages = subject.name, stages
        self._advanced: Callable[[int, int], None] | None = None

    def begins(self, step: Step) -> None:
        """A training is begun."""
        self._advanced = self._stages.stage(f"{self._name}, training of seed {step.seeds[0]}")

    def finished(self, step: Step, status: str) -> None:
        """A training was done."""
        if status != "ok":
            note(f"{self._name}: the training of seed {step.seeds[0]} {status}")

    def skipped(self, step: Step) -> None:
        """A training was there already."""

    def advanced(self, _step: Step, epoch: int, epochs: int, _loss: float) -> None:
        """So many epochs are done."""
        if self._advanced:
            self._advanced(epoch, epochs)


def _begins(subject: Subject, stages: Stages) -> work.Begins:
    advanced = stages.stage(f"{subject.name}, results")

    def begins(place: int, count: int) -> None:
        if place:
            advanced(place, count)

    return begins


def _pinned(study: Study) -> Study:
    """The study with the weights that models start from named by their content; published ones must be at hand."""
    sections = dict(study.models)
    for name, learner in study.learners.items():
        model = study.model_of(learner)
        options = models.pinned_options(model.name, model.options)
        changed: dict[str, Any] = {}
        if options != model.options:
            changed["model"] = learner.model.model_copy(update=options)
        training = study.training_of(learner)
        if learner.train is not None and training is not None:
            sha256 = fine_tuning.pinned(training).train.init_sha256
            changed["train"] = learner.train.model_copy(update={"init_sha256": sha256})
        sections[name] = learner.model_copy(update=changed)
    return study.model_copy(update={"models": sections})


def _content(study: Study) -> dict[str, Any]:
    """What a folder holds: not where the data are, since their content counts."""
    found = study.model_dump(mode="json", include={"study", "data", "models", "sizes"})
    for data in found["data"].values():
        del data["path"]
    return found


def _difference(key: str, old: Any, new: Any) -> str:
    return f"{key}: the folder has {shortened(json.dumps(old))}, this one {shortened(json.dumps(new))}"


def _check_folder(study: Study, folder: Path) -> None:
    """Raise an error for a folder that holds something else."""
    if (folder / reading.STUDY_FILE).is_file():
        old, new = (_content(each) for each in (reading.saved(folder), study))
        if differing := [_difference(*each) for each in differences(old, new)]:
            raise SpecError(
                f"The folder {folder} holds another study: this one",
                differing,
                f"Choose another folder with --out, or continue it with `lossatlas run {folder}`; finished work "
                "is shared by --store.",
            )
    elif folder.is_dir() and any(path.name != "store" for path in folder.iterdir()):
        raise FileError(f"{folder} is not empty and holds no study. Give another folder with --out, or remove it.")

"""What a study is: one figure, its models, how much is looked at. Frozen and validated; builds nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from lossatlas import registry, specs
from lossatlas.errors import SpecError
from lossatlas.registry import Facts
from lossatlas.settings import Count, Positive, Settings
from lossatlas.specs import Data, Model, Spec, Train
from lossatlas.specs.checks import hint
from lossatlas.specs.reading import said, sentences
from lossatlas.studies.catalogue import FIGURES


class Header(Settings):
    """Which figure of which models; `[study]`."""

    figure: int = Field(ge=1, le=17)  # of [Xu2024], as `catalogue.FIGURES` lists them
    models: tuple[str, ...] = Field(min_length=1)  # names of sections `[models.NAME]`, the most telling first
    seeds: tuple[int, int] = (0, 1)  # of the training that is looked at, and of another one
    random_weights: bool = False  # where published weights are asked for, take a random initialisation


class Learner(Settings):
    """A model, its data, and how it was trained; `[models.NAME]`."""

    title: str
    data: str  # the name of a section `[data.NAME]`
    model: Model
    loss: str = "cross_entropy"
    train: Train | None = None  # None: the published weights as they are
    reduced: str = ""  # what `--scale` has taken away

    @property
    def asks_for_weights(self) -> bool:
        """Whether its weights, or those that it starts from, are published ones."""
        return "weights" in self.model.options


class Sizes(Settings):
    """How much is looked at; `[sizes]`."""

    images: Count = 1000  # the first training images: every loss is the mean over them
    points: int = Field(default=41, ge=5)  # of a curve over a range of length 2; odd
    grid: int = Field(default=21, ge=3)  # points of a surface along each side; odd
    gaussians: Count = 5  # in one panel
    pairs: Count = 10  # eigenpairs at either end of the spectrum
    mining_epochs: Count = 20
    mining_images: Count | None = None  # of training; None: all
    mining_lr: Positive = 0.02  # of Algorithm 1
    mining_start: Literal["noise", "eigenvector"] = "noise"  # where it begins; from noise it needs many steps
    draws: int = Field(default=100, ge=4)  # Gaussians of Figs. 5, 6 and 13
    probes: Count = 10  # random vectors of a density
    steps: Count = 50  # of Lanczos, for each of them


class Study(Settings):
    """A whole study. That its sections fit together is checked by `validate`."""

    name: str = Field(min_length=1, max_length=200)
    study: Header
    data: dict[str, Data]
    models: dict[str, Learner]
    sizes: Sizes = Sizes()
    reduced: str = ""  # what `--scale` has taken away, for captions; no result hangs on it

    @property
    def learners(self) -> dict[str, Learner]:
        """The models that are looked at, in their order."""
        return {name: self.models[name] for name in self.study.models}

    @property
    def reductions(self) -> dict[str, str]:
        """What `--scale` has taken away: of all under "reduced", of a model under "reduced NAME"."""
        of_models = {f"reduced {name}": learner.reduced for name, learner in self.learners.items()}
        return {title: told for title, told in {"reduced": self.reduced, **of_models}.items() if told}

    def data_of(self, learner: Learner) -> Data:
        """The data of a model."""
        return self.data[learner.data]

    def model_of(self, learner: Learner) -> Model:
        """The model as it is built: without published weights where random ones are to stand for them."""
        if not (self.study.random_weights and learner.asks_for_weights):
            return learner.model
        return Model(name=learner.model.name, **{k: v for k, v in learner.model.options.items() if k != "weights"})

    def training_of(self, learner: Learner) -> Spec | None:
        """Its training as a grid of one cell, so that its steps are those of any run; None where there is none."""
        if learner.train is None:
            return None
        return specs.validate(training(self, learner), f"{self.name}, {learner.title}")


class KnownData(NamedTuple):
    """What keys hang on, of the data of a model."""

    facts: Facts
    fingerprint: str


def training(study: Study, learner: Learner) -> dict[str, Any]:
    """The plain data of the spec of a training. Its axes say what is the default anyway: they change no key."""
    assert learner.train is not None
    train = learner.train.model_dump(mode="json", exclude_unset=True)
    decay = train.setdefault("optimizer", {}).pop("weight_decay", learner.train.optimizer.weight_decay)
    data = study.data_of(learner).model_dump(mode="json", exclude_unset=True)
    noise = data.pop("label_noise", 0.0)
    model = {"name": learner.model.name, **study.model_of(learner).options}
    return {
        "name": learner.title,
        "seeds": list(study.study.seeds),
        "load": {"label_noise": [noise]},
        "temperature": {"weight_decay": [decay]},
        "task": {"data": data, "model": model, "loss": learner.loss},
        "train": train,
    }


def validate(raw: Mapping[str, Any], source: str) -> Study:
    """A Study from plain data; raises SpecError with every problem."""
    try:
        # Through JSON, where strict mode takes an array for a tuple but still no text for a number.
        study = Study.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise SpecError(source, _once(sentences(error.errors(), _sentence))) from None
    problems = _problems(study)
    if problems:
        raise SpecError(source, problems)
    return study


def _sentence(error: Any) -> str:
    where = ".".join(map(str, error["loc"])) or "the study"
    if error["type"] == "extra_forbidden" and error["loc"] == ("task",):
        of_studies = "of a study it is in the sections data and models, as in data.NAME.path"
        return f"task: unknown key; {of_studies} (task.data.path is of the spec of a grid)"
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key; {_allowed(error['loc'])}"
    return f"{where}: {said(error)}"


def _once(problems: Sequence[str]) -> list[str]:
    """Each problem once; what several models share is told of the first, with the names of the others."""
    found: dict[str, list[str]] = {}
    for line in problems:
        of_model = re.fullmatch(r"models\.([^.:]+)(.*)", line, re.DOTALL)
        name, text = of_model.groups() if of_model else ("", line)
        found.setdefault(text, []).append(name)
    told = []
    for text, (first, *others) in found.items():
        also = f" (and the same of {', '.join(others)})" if first and others else ""
        told.append(f"models.{first}{text}{also}" if first else text)
    return told


def _allowed(loc: tuple[str | int, ...]) -> str:
    """What an unknown key could have been."""
    section: Any = {"study": Header, "sizes": Sizes, "models": Learner, "data": Data}.get(str(loc[0]))
    depth = 3 if section in (Learner, Data) else 2
    if len(loc) == 1:
        known = [*Study.model_fields, "train"]
    elif section is not None and len(loc) == depth:
        known = [*section.model_fields, *(["trained"] if section is Learner else [])]
    else:
        return "remove it, or mend its name"
    return f"allowed are {', '.join(known)}{hint(str(loc[-1]), known)}"


def _problems(study: Study) -> list[str]:
    """All that is wrong with a study whose sections are valid one by one."""
    problems = [
        f"sizes.{name}: {count} was given; allowed are odd numbers, so that the model is a point"
        for name, count in (("points", study.sizes.points), ("grid", study.sizes.grid))
        if count % 2 == 0
    ]
    if len(set(study.study.seeds)) < len(study.study.seeds):
        problems.append(f"study.seeds: {list(study.study.seeds)} was given; allowed are two that differ")
    if len(set(study.study.models)) < len(study.study.models):
        problems.append(f"study.models: {list(study.study.models)} was given; allowed is each model once")
    figure, pairs = study.study.figure, study.sizes.pairs
    if pairs < (least := FIGURES[figure].pairs):
        allowed = (
            f"allowed are integers from {least} on: figure {figure} shows so many eigenvectors of either sign"
        )
        problems.append(f"sizes.pairs: {pairs} was given; {allowed}")
    for name, data in study.data.items():
        problems += _data_problems(name, data)
    for name in study.study.models:
        problems += _model_problems(study, name)
    return _once(problems)  # models may share what is wrong with their data, or with the common recipe


def _is_text(data: Data) -> bool:
    return data.name in registry.DATA and registry.DATA[data.name].text


def _data_problems(name: str, data: Data) -> list[str]:
    if _is_text(data):
        allowed = ", ".join(other for other, entry in registry.DATA.items() if not entry.text)
        return [
            f"data.{name}.name: {data.name} was given, which is text, and a study looks at images; allowed are "
            f"{allowed}, or your own as module:function"
        ]
    if data.test_noise and not (data.label_noise or data.image_noise):
        return [
            f"data.{name}.test_noise: true was given and no noise; give label_noise or image_noise, or remove it"
        ]
    return []


def _model_problems(study: Study, name: str) -> list[str]:
    if name not in study.models:
        known = list(study.models)
        return [f"study.models: there is no [models.{name}]; there are {', '.join(known)}{hint(name, known)}"]
    learner = study.models[name]
    if learner.data not in study.data:
        known = list(study.data)
        return [f"models.{name}.data: there is no [data.{learner.data}]; there are {', '.join(known)}"]
    if learner.train is None and not learner.asks_for_weights:
        return [f"models.{name}.train: missing; a model without published weights has to be trained"]
    if learner.train is None or _is_text(study.data[learner.data]):
        return []
    problems, told = [], ["seeds:"]  # these are the study's
    if 0 not in learner.train.keep or learner.train.epochs not in learner.train.keep:
        given = list(learner.train.keep)
        problems.append(
            f"models.{name}.train.keep: {given} was given; it must hold 0, the initialisation, and "
            f"{learner.train.epochs}, the last epoch, such as [0, {learner.train.epochs}]"
        )
        told.append("train.keep:")
    if learner.train.n_ref is not None:
        problems.append(
            f"models.{name}.train.n_ref: {learner.train.n_ref} was given, and a study looks at checkpoints of "
            "epochs that it gives; remove it"
        )
    try:
        study.training_of(learner)
    except SpecError as error:
        problems += [_of_model(name, learner, each) for each in error.problems if not each.startswith(tuple(told))]
    return problems


def _of_model(name: str, learner: Learner, problem: str) -> str:
    """A problem of the spec of a training, under the key that it has in a study."""
    key = problem.removeprefix("task.")
    if key.startswith("data."):
        return f"data.{learner.data}.{key.removeprefix('data.')}"
    return f"models.{name}.{key}" if key.startswith(("model.", "loss:", "train.")) else f"models.{name}: {problem}"

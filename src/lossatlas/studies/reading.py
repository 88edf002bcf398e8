"""A study from TOML, completed by what all studies share; and the same study, smaller."""

from __future__ import annotations

import copy
import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lossatlas import json_files, presets, registry, specs
from lossatlas.errors import FileError, SpecError
from lossatlas.files import Damaged
from lossatlas.settings import Settings
from lossatlas.specs import Data, Optimizer, Schedule
from lossatlas.specs.checks import OWN
from lossatlas.specs.reading import shortened
from lossatlas.specs.scaling import check_scale, shorten_warmup
from lossatlas.studies.catalogue import DRAWS_OF_ANGLES, FIGURES
from lossatlas.studies.schema import KnownData, Learner, Sizes, Study, validate

STUDY_FILE = "study.json"  # in the folder of a study

# What `--scale` leaves at least, so that a class can still be told.
LEAST = {
    "images": 50,
    "points": 21,
    "grid": 11,
    "gaussians": 3,
    "pairs": 3,
    "mining_epochs": 20,  # of fewer images
    "mining_images": 128,
    "draws": 20,
    "probes": 2,
    "steps": 20,
}
LEAST_EPOCHS, LEAST_WIDTH = 2, 4
WIDTHS = ("width",)  # options of a model that shrink
ODD = ("points", "grid")
NAMED: Mapping[str, type[Settings]] = {"optimizer": Optimizer, "schedule": Schedule}  # have keys by their names
TITLES = {
    "images": "images looked at",
    "grid": "grid points a side",
    "points": "points of a curve",
    "draws": "Gaussians",
    "pairs": "eigenpairs at either end",
    "gaussians": "Gaussians",
    "probes": "random vectors of the density",
    "steps": "steps of Lanczos",
}


def is_study_folder(path: Path) -> bool:
    """Whether a folder holds a study."""
    return (path / STUDY_FILE).is_file()


def is_study(source: str) -> bool:
    """Whether a SPEC of the command line, a preset's name, a TOML file or a folder, is that of a study."""
    path = Path(source)
    if path.is_dir():
        return is_study_folder(path)
    if not path.exists():
        return source in presets.studies()
    try:
        return "study" in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # who reads it as the spec of a grid says what is wrong


def read(source: str, overrides: Mapping[str, Any] | None = None) -> Study:
    """The study of a preset, a TOML file or a folder; raises FileError or SpecError (all problems at once)."""
    path = Path(source)
    if path.is_dir():
        return saved(path, overrides)
    if not path.exists():
        return parse(presets.text(source), f"preset {source}", overrides)
    return parse(path.read_text(encoding="utf-8"), source, overrides)


def parse(text: str, source: str, overrides: Mapping[str, Any] | None = None) -> Study:
    """A Study from TOML text over what all studies share; `overrides` maps dotted keys to values."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(source, [f"it is not valid TOML: {error}"]) from error
    shared = tomllib.loads(presets.shared("xu2024"))
    laid = _overridden(_over(shared, raw), overrides or {})
    if problems := _table_problems(laid):
        raise SpecError(source, problems)
    return validate(_completed(laid), source)


def saved(folder: Path, overrides: Mapping[str, Any] | None = None) -> Study:
    """The study of a folder; raises FileError where its file is damaged."""
    content = _content(folder)
    return validate(_overridden(content["spec"], overrides or {}), str(folder / STUDY_FILE))


def saved_store(folder: Path) -> str:
    """Where the store of a study's folder is; empty: in the folder. Raises FileError as `saved`."""
    return str(_content(folder)["store"]) if (folder / STUDY_FILE).is_file() else ""


def saved_data(folder: Path) -> dict[str, KnownData]:
    """What the keys of a study's folder hang on, of its data; raises FileError as `saved`."""
    found = {}
    for name, (facts, fingerprint) in _content(folder)["data"].items():
        tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
        found[name] = KnownData(registry.Facts(**tuples), fingerprint)
    return found


def as_file(study: Study, store: str, known: Mapping[str, KnownData]) -> bytes:
    """What `saved`, `saved_store` and `saved_data` read."""
    data = {name: [dataclasses.asdict(one.facts), one.fingerprint] for name, one in known.items()}
    content = {"spec": study.model_dump(mode="json", exclude_unset=True), "store": store, "data": data}
    return json_files.sealed(content)


def _content(folder: Path) -> dict[str, Any]:
    path = folder / STUDY_FILE
    try:
        return json_files.read_sealed(path)
    except Damaged as error:
        raise FileError(
            f"{path} {error}, or it is of an earlier version. Restore it, or start a new folder with --out; "
            f"--store {folder / 'store'} keeps what is finished."
        ) from error


def _over(base: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of `raw` over those of `base`, key by key."""
    merged = copy.deepcopy(dict(base))
    for key, value in raw.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _over(_fitting(key, merged[key], value), value) if both else value
    return merged


def _overridden(raw: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The plain data of a study with the values at these dotted keys replaced or added, in place."""
    for dotted, value in overrides.items():
        *place, key = dotted.split(".")
        holder: Any = raw
        for part in place[:-1]:
            holder = holder.get(part) if isinstance(holder, dict) else None
        if place and isinstance(holder, dict) and isinstance(holder.get(place[-1]), dict):
            holder[place[-1]] = _fitting(place[-1], holder[place[-1]], {key: value})
    return specs.overridden(raw, overrides)


def _fitting(section: str, below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """What stays of a section below one of another name: of an optimizer or a schedule what the other has as well.

    Nobody could take it out. A rate is that of its optimizer, and goes as well.
    """
    if section not in NAMED or "name" not in above:
        return dict(below)
    name, owners = above["name"], OWN[f"train.{section}"]
    if name == below.get("name", NAMED[section].model_fields["name"].default):
        return dict(below)
    return {key: value for key, value in below.items() if key != "lr" and name in owners.get(key, (name,))}


def _table_problems(raw: Mapping[str, Any]) -> list[str]:
    """The sections of a study that are no tables, so that nothing can be laid over them."""
    sections = {key: raw[key] for key in ("study", "train", "data", "models") if key in raw}
    for key in ("data", "models"):
        if isinstance(raw.get(key), dict):
            sections |= {f"{key}.{name}": section for name, section in raw[key].items()}
    trainings = {f"{key}.train": each["train"] for key, each in sections.items() if _has_training(key, each)}
    return [
        f"{key}: {shortened(json.dumps(value, default=str))} was given; it must be a table of keys"
        for key, value in (sections | trainings).items()
        if not isinstance(value, dict)
    ]


def _has_training(key: str, section: Any) -> bool:
    return key.startswith("models.") and isinstance(section, dict) and "train" in section


def _completed(raw: dict[str, Any]) -> dict[str, Any]:
    """The sections that are looked at, each model with the common training unless it is `trained = false`."""
    recipe, models, data = raw.pop("train", {}), raw.get("models", {}), raw.get("data", {})
    for model in models.values():
        if model.pop("trained", True):
            model["train"] = _over(recipe, model.get("train", {}))
    for name, section in data.items():
        section.setdefault("name", name)
    wanted = raw.get("study", {}).get("models", [])
    if isinstance(wanted, list) and all(isinstance(name, str) and name in models for name in wanted):
        raw["models"] = {name: models[name] for name in wanted}
        used = [model.get("data") for model in raw["models"].values()]
        raw["data"] = {name: section for name, section in data.items() if name in used}
    return raw


def scaled(study: Study, scale: float) -> Study:
    """The same study, smaller: about `scale` of its models, of their epochs, images and widths, of all sizes.

    The first models stay. Published weights, which may not be at hand, give way to random ones unless
    `study.random_weights` says otherwise. What is less stands in `reduced`, of the study and of each model. Raises
    SpecError unless 0 < scale <= 1.
    """
    check_scale(scale)
    if scale == 1:
        return study
    raw = study.model_dump(mode="json", exclude_unset=True)
    chosen = study.study.models[: max(1, int(scale * len(study.study.models)))]
    raw["study"]["models"] = list(chosen)
    raw["study"].setdefault("random_weights", True)
    sizes = {name: _less(name, value, scale) for name, value in study.sizes.model_dump().items()}
    raw["sizes"] = {name: value for name, value in sizes.items() if value is not None}
    raw["sizes"]["mining_start"] = "eigenvector"  # from noise a few steps lead nowhere
    raw["models"] = {name: _smaller(study, study.models[name], raw["models"][name], scale) for name in chosen}
    used = {learner["data"] for learner in raw["models"].values()}
    raw["data"] = {
        name: {**section, **_fewer(study, name, scale)} for name, section in raw["data"].items() if name in used
    }
    raw["reduced"] = _told(study, Sizes(**raw["sizes"]), len(chosen), scale)
    return validate(raw, f"{study.name} scaled by {scale:g}")


def _less(name: str, value: Any, scale: float) -> Any:
    if name not in LEAST or value is None:
        return value
    least = min(LEAST[name], value)
    found = max(least, round(scale * value))
    return found + 1 if name in ODD and found % 2 == 0 else found


def _loaded(data: Data) -> int | None:
    """The training samples that are loaded, as far as they are known without the data."""
    entry = registry.DATA.get(data.name)
    if entry is None or entry.facts is None:
        return data.limit
    return entry.facts.limited(data.limit).n_train


def _fewer(study: Study, name: str, scale: float) -> dict[str, int]:
    """How many images of a data set are loaded, and trained on, at most: keys of its section.

    Nothing where that is not known, or is up to the data; the digits are always loaded all.
    """
    data = study.data[name]
    trainings = [learner.train for learner in study.models.values() if learner.data == name and learner.train]
    batch = max((train.batch_size for train in trainings), default=1)

    def less(count: int) -> int:
        return min(count, max(batch, LEAST["images"], round(scale * count)))

    loaded, found = _loaded(data), {}
    if loaded is not None and data.name != "digits":
        found["limit"] = less(loaded)
    if data.n_train is not None:
        found["n_train"] = less(data.n_train)
    return found


def _smaller(study: Study, learner: Learner, raw: dict[str, Any], scale: float) -> dict[str, Any]:
    """A model's section with fewer epochs and channels, and with what is less."""
    told = []
    if learner.train is not None:
        epochs = learner.train.epochs
        fewer = min(epochs, max(LEAST_EPOCHS, round(scale * epochs)))
        keep = {min(fewer, max(1, round(scale * epoch))) for epoch in learner.train.keep if epoch}
        raw["train"] |= {"epochs": fewer, "keep": sorted({0, *keep, fewer})}
        shorten_warmup(raw["train"].get("schedule", {}), fewer / epochs, scale)
        told.append(f"epochs {fewer}/{epochs}")
    entry = registry.MODELS.get(learner.model.name)
    defaults = entry.options if entry else {}
    for option in WIDTHS:
        width = learner.model.options.get(option, defaults.get(option))
        if isinstance(width, int):
            raw["model"][option] = max(min(LEAST_WIDTH, width), round(scale * width))
            told.append(f"{option} {raw['model'][option]}/{width}")
    data, fewer_images = study.data_of(learner), _fewer(study, learner.data, scale)
    for title, now, before in (
        ("images of either part", fewer_images.get("limit"), _loaded(data)),
        ("training images", fewer_images.get("n_train"), data.n_train),
    ):
        if now is not None and before is not None and now < before:
            told.append(f"{title} {now}/{before}")
    return {**raw, "reduced": ", ".join(told)}


def _told(study: Study, small: Sizes, models: int, scale: float) -> str:
    """What a scaled study has less of, beside its models' own."""
    told = [f"models {models}/{len(study.study.models)}"] if models < len(study.study.models) else []
    for name in ("images", *FIGURES[study.study.figure].sizes):
        value, now = getattr(study.sizes, name), getattr(small, name)
        if isinstance(value, int) and now < value:
            times = DRAWS_OF_ANGLES if name == "draws" and study.study.figure == 5 else 1
            told.append(f"{TITLES.get(name, name.replace('_', ' '))} {times * now}/{times * value}")
    if "mining_start" in FIGURES[study.study.figure].sizes and small.mining_start != study.sizes.mining_start:
        told.append("Algorithm 1 begins at an eigenvector instead of noise")
    return f"scaled by {scale:g}" + (f": {', '.join(told)}" if told else "")

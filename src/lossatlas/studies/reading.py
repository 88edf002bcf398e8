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
from lossatlas.specs.reading import check_scale, shortened
from lossatlas.studies.catalogue import FIGURES
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
TITLES = {"images": "images looked at", "grid": "grid points a side", "points": "points of a curve"}


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
    laid = specs.overridden(_over(shared, raw), overrides or {})
    if problems := _table_problems(laid):
        raise SpecError(source, problems)
    return validate(_completed(laid), source)


def saved(folder: Path, overrides: Mapping[str, Any] | None = None) -> Study:
    """The study of a folder; raises FileError where its file is damaged."""
    content = _content(folder)
    return validate(specs.overridden(content["spec"], overrides or {}), str(folder / STUDY_FILE))


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
        merged[key] = _over(merged[key], value) if both else value
    return merged


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
    raw["data"] = {
        name: {**section, "limit": limit} if (limit := _limit(study, name, scale)) else section
        for name, section in raw["data"].items()
        if name in {learner["data"] for learner in raw["models"].values()}
    }
    raw["reduced"] = _told(study, Sizes(**raw["sizes"]), len(chosen), scale)
    return validate(raw, f"{study.name} scaled by {scale:g}")


def _less(name: str, value: Any, scale: float) -> Any:
    if name not in LEAST or value is None:
        return value
    least = min(LEAST[name], value)
    found = max(least, round(scale * value))
    return found + 1 if name in ODD and found % 2 == 0 else found


def samples_of(study: Study, learner: Learner) -> int | None:
    """The training samples of a model, as far as they are known without the data."""
    data = study.data_of(learner)
    entry = registry.DATA.get(data.name)
    if entry is None or entry.facts is None:
        return data.limit
    return entry.facts.limited(data.limit).n_train


def _limit(study: Study, name: str, scale: float) -> int | None:
    """How many images of a data set are loaded at most; None where they cannot be limited."""
    learners = [learner for learner in study.models.values() if learner.data == name]
    known = samples_of(study, learners[0])
    if known is None or study.data[name].name == "digits":
        return None
    batch = max((learner.train.batch_size for learner in learners if learner.train), default=1)
    return min(known, max(batch, LEAST["images"], round(scale * known)))


def _smaller(study: Study, learner: Learner, raw: dict[str, Any], scale: float) -> dict[str, Any]:
    """A model's section with fewer epochs and channels, and with what is less."""
    told = []
    if learner.train is not None:
        epochs = learner.train.epochs
        fewer = min(epochs, max(LEAST_EPOCHS, round(scale * epochs)))
        keep = {min(fewer, max(1, round(scale * epoch))) for epoch in learner.train.keep if epoch}
        raw["train"] |= {"epochs": fewer, "keep": sorted({0, *keep, fewer})}
        told.append(f"epochs {fewer}/{epochs}")
    entry = registry.MODELS.get(learner.model.name)
    defaults = entry.options if entry else {}
    for option in WIDTHS:
        width = learner.model.options.get(option, defaults.get(option))
        if isinstance(width, int):
            raw["model"][option] = max(min(LEAST_WIDTH, width), round(scale * width))
            told.append(f"{option} {raw['model'][option]}/{width}")
    limit, known = _limit(study, learner.data, scale), samples_of(study, learner)
    if limit is not None and known is not None and limit < known:
        told.append(f"images of either part {limit}/{known}")
    return {**raw, "reduced": ", ".join(told)}


def _told(study: Study, small: Sizes, models: int, scale: float) -> str:
    """What a scaled study has less of, beside its models' own."""
    told = [f"models {models}/{len(study.study.models)}"] if models < len(study.study.models) else []
    for name in ("images", *FIGURES[study.study.figure].sizes):
        value, now = getattr(study.sizes, name), getattr(small, name)
        if isinstance(value, int) and now < value:
            told.append(f"{TITLES.get(name, name.replace('_', ' '))} {now}/{value}")
    if "mining_start" in FIGURES[study.study.figure].sizes and small.mining_start != study.sizes.mining_start:
        told.append("Algorithm 1 begins at an eigenvector instead of noise")
    return f"scaled by {scale:g}" + (f": {', '.join(told)}" if told else "")

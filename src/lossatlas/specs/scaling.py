"""The same experiment, smaller: what `--scale` makes of a spec."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lossatlas import measures, registry
from lossatlas.errors import SpecError
from lossatlas.specs.reading import validate, variants
from lossatlas.specs.schema import AXES, Model, Spec, Train

MODEL_SIZES = {key for section, key, _ in AXES.values() if section == "model"}
LEAST_TESTED = 1000  # test samples that are kept
LEAST_CURVE = 3  # epochs that a curve is trained: the only one of one epoch has a hundredth of the rate


def check_scale(scale: float) -> None:
    """Raise SpecError unless 0 < scale <= 1."""
    if not 0 < scale <= 1:
        raise SpecError("--scale", [f"{scale:g} was given; allowed are numbers above 0 up to 1"])


def scaled(spec: Spec, scale: float) -> Spec:
    """The same experiment, smaller: about `scale` of each axis's values, of seeds, epochs and training samples.

    Of the sizes of a model the smallest values stay, since the largest take most of the time, and one that is no
    axis shrinks, too; of other axes the ends stay, of batch sizes those up to `scale` of the largest, so that an
    epoch of fewer samples has as many steps. At least two values an axis (where it has them), two seeds and one
    epoch are left. With the epochs the start of early stopping moves, a warm-up stays the same part of the steps,
    and a fixed `embed_dim` an even multiple of the heads. Samples are fewer where the number of all is known, but
    those of training never fewer than a batch, and those of the test never fewer than 1,000, whose error has a
    standard error of 1.6 % at most.
    `reduced` tells what is less. Raises SpecError unless 0 < scale <= 1.
    """
    check_scale(scale)
    if scale == 1:
        return spec
    raw = spec.model_dump(mode="json", exclude_unset=True)
    for role in ("load", "temperature"):
        raw[role] = {name: _some(name, values, scale) for name, values in raw[role].items()}
    for size in MODEL_SIZES & raw["task"]["model"].keys():
        raw["task"]["model"][size] = _smaller(size, spec.task.model, scale)
    raw["seeds"] = list(spec.seeds)[: max(2, round(scale * len(spec.seeds)))]
    raw["train"]["epochs"] = max(1, round(scale * spec.train.epochs))
    if spec.train.keep:
        raw["train"]["keep"] = sorted({min(epoch, raw["train"]["epochs"]) for epoch in spec.train.keep})
    connectivity = raw.get("measures", {}).get("connectivity")
    if connectivity is not None:
        connectivity["epochs"] = spec.measures.model_dump()["connectivity"]["epochs"]
        _scale_curve(connectivity, scale, raw["seeds"])
    for changes in raw.get("variants", {}).values():
        _scale_curve(changes, scale, raw["seeds"], "measures.connectivity.")
    if "n_ref" in raw["train"]:
        raw["train"]["n_ref"] = max(1, round(scale * raw["train"]["n_ref"]))
    fewer_samples = _take_fewer_samples(raw, spec, scale)
    _shorten(raw["train"], spec.train, fewer_samples)
    n_test = _test_samples(spec) or 0
    if n_test > (fewer := max(LEAST_TESTED, round(scale * n_test))):
        raw["task"]["data"]["n_test"] = fewer
    small = validate(raw, f"{spec.name} scaled by {scale:g}")
    return small.model_copy(update={"reduced": _told(spec, small, scale)})


def _scale_curve(settings: dict[str, Any], scale: float, seeds: Sequence[int], prefix: str = "") -> None:
    """Shorten the training of a curve in place, of which these are given; fewer seeds have fewer pairs."""
    for key in ("epochs", "n_ref"):
        if prefix + key in settings:
            given = settings[prefix + key]
            settings[prefix + key] = max(min(given, LEAST_CURVE if key == "epochs" else 1), round(scale * given))
    if isinstance(settings.get(prefix + "pairs"), int | list):
        settings[prefix + "pairs"] = _pairs_left(settings[prefix + "pairs"], seeds)


def _some(axis: str, values: Sequence[Any], scale: float) -> list[Any]:
    """About `scale` of the values of an axis."""
    ordered = sorted(values)
    keep = min(len(ordered), max(2, round(scale * len(ordered))))
    if axis in MODEL_SIZES:
        return ordered[:keep]
    if axis == "batch_size":
        ordered = [size for k, size in enumerate(ordered) if k < keep or size <= scale * ordered[-1]]
    return [ordered[round(i * (len(ordered) - 1) / max(1, keep - 1))] for i in range(keep)]


def _smaller(size: str, model: Model, scale: float) -> int:
    """About `scale` of the size of a model that is no axis; `embed_dim` stays an even multiple of the heads."""
    value: int = model.options[size]
    entry = registry.MODELS.get(model.name)
    heads = {**(entry.options if entry else {}), **model.options}.get("heads")
    unit = math.lcm(2, heads) if size == "embed_dim" and isinstance(heads, int) and heads > 0 else 1
    return min(value, unit * max(1, round(scale * value / unit)))


def _shorten(raw: dict[str, Any], train: Train, fewer_samples: float) -> None:
    """Shorten warm-up and wait for an early stop in place, as the number of epochs or steps has become less."""
    fewer = raw["epochs"] / train.epochs
    raw.setdefault("early_stop", {})["start"] = max(1, round(fewer * train.early_stop.start))
    # With n_ref the number of steps is epochs n_ref / batch, whatever the number of samples.
    of_an_epoch = fewer_samples if train.n_ref is None else raw["n_ref"] / train.n_ref
    shorten_warmup(raw.get("schedule", {}), fewer, of_an_epoch)


def shorten_warmup(schedule: dict[str, Any], epochs: float, samples: float) -> None:
    """Shorten a warm-up in place, of a training of these parts of the epochs and the samples."""
    if schedule.get("warmup_epochs"):
        schedule["warmup_epochs"] *= epochs
    if schedule.get("warmup_steps"):
        schedule["warmup_steps"] = max(1, round(epochs * samples * schedule["warmup_steps"]))


def _take_fewer_samples(raw: dict[str, Any], spec: Spec, scale: float) -> float:
    """Scale the numbers of training samples in place, where they are known; the largest batches that fit stay.

    Returns which part of the largest number is left.
    """
    axis, everything = raw["load"].get("n_train"), _samples(spec)
    batches = raw["temperature"].get("batch_size", [spec.train.batch_size])
    least = int(min(batches))
    if axis is not None:
        raw["load"]["n_train"] = few = sorted({max(least, round(scale * n)) for n in axis})
        fewest, left = few[0], float(few[-1] / max(axis))
    elif everything is not None:
        fewest = raw["task"]["data"]["n_train"] = max(least, round(scale * everything))
        left = fewest / everything
    else:
        return 1.0
    if "batch_size" in raw["temperature"]:
        raw["temperature"]["batch_size"] = [size for size in batches if size <= fewest]
    return left


def _samples(spec: Spec) -> int | None:
    """The training samples of a spec without an axis of them; None where they are not known without the data."""
    entry = registry.DATA.get(spec.task.data.name)
    if spec.task.data.n_train is not None or entry is None or entry.facts is None:
        return spec.task.data.n_train
    return entry.facts.limited(spec.task.data.limit).n_train


def _test_samples(spec: Spec) -> int | None:
    """The test samples of a spec; None where they are not known without the data."""
    entry, asked = registry.DATA.get(spec.task.data.name), spec.task.data.n_test
    if entry is None or entry.facts is None:
        return asked
    there = entry.facts.limited(spec.task.data.limit).n_test
    return there if asked is None else min(asked, there)


def _told(full: Spec, small: Spec, scale: float) -> str:
    """What a scaled spec has less of, for captions."""
    parts = [
        f"{few.name.replace('_', ' ')} {len(few.values)}/{len(many.values)}"
        for many, few in zip(full.axes, small.axes, strict=True)
        if len(few.values) < len(many.values)
    ]
    parts += [
        f"{what} {few}/{many}"
        for what, many, few in (
            ("seeds", len(full.seeds), len(small.seeds)),
            ("epochs", full.train.epochs, small.train.epochs),
            ("early-stop start", _early_stop_start(full), _early_stop_start(small)),
            ("curve epochs", _curve_epochs(full), _curve_epochs(small)),
            ("samples", _most_samples(full), _most_samples(small)),
            ("test samples", _test_samples(full), _test_samples(small)),
            *(
                (size, full.task.model.options.get(size), small.task.model.options.get(size))
                for size in sorted(MODEL_SIZES)
            ),
        )
        if many is not None and few is not None and few < many
    ]
    if _may_stop_early(full) and not _may_stop_early(small):
        parts.append("best weights instead of early-stopped")
    parts += [f"{' and '.join(names)} alike" for names in _made_alike(full, small)]
    return f"scaled by {scale:g} ({', '.join(parts)})" if parts else ""


def _made_alike(full: Spec, small: Spec) -> list[list[str]]:
    """The groups of variants that measure the same now, and did not before."""
    before, now = ({name: _measured(each) for name, each in variants(spec).items()} for spec in (full, small))
    alike = {str(measured): [name for name in now if now[name] == measured] for measured in now.values()}
    return [names for names in alike.values() if any(before[name] != before[names[0]] for name in names)]


def _measured(spec: Spec) -> list[tuple[str, dict[str, Any], list[tuple[int, int]]]]:
    """What is measured, how, and of which pairs."""
    asked = {name: settings for name, settings in spec.measured() if settings is not None}
    return [
        (row.name, row.content(settings), row.pairs(settings, spec.seeds))
        for row in measures.STEPS
        if (settings := asked.get(measures.section_of(row))) is not None
    ]


def _early_stop_start(spec: Spec) -> int | None:
    """Where the stop rule begins to count; None where other weights are measured."""
    return spec.train.early_stop.start if spec.weights == "early-stopped" else None


def _may_stop_early(spec: Spec) -> bool:
    """Whether early-stopped weights are measured and the longest training has the epochs that the rule needs."""
    fewest = min(spec.load["n_train"]) if "n_train" in spec.load else _samples(spec)
    epochs = spec.train.epochs if fewest is None else spec.train.epochs_on(int(fewest))
    rule = spec.train.early_stop
    return spec.weights == "early-stopped" and epochs >= max(rule.start - 1, 1) + rule.patience


def _curve_epochs(spec: Spec) -> int | None:
    connectivity = spec.measures.model_dump()["connectivity"]
    return None if connectivity is None else int(connectivity["epochs"])


def _most_samples(spec: Spec) -> int | None:
    """The training samples of the cells that have most of them."""
    return int(max(spec.load["n_train"])) if "n_train" in spec.load else _samples(spec)


def _pairs_left(pairs: int | list[list[int]], seeds: Sequence[int]) -> int | list[list[int]]:
    """The pairs that fewer seeds leave: as many as there are, or those listed that are whole, else one."""
    if isinstance(pairs, int):
        return min(pairs, max(1, len(seeds) * (len(seeds) - 1) // 2))
    return [pair for pair in pairs if set(pair) <= set(seeds)] or 1

"""Results trees made by hand, cell by cell, for what reads results."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from lossatlas import results
from lossatlas.results import REASON, STATUS, Axis, Quantity

# One cell of every phase by the default thresholds; traces are natural logs.
PHASES: dict[str, dict[str, float]] = {
    "I": {"loss": 1.0, "trace": 8.0, "mc": -5.0, "cka": 0.3},
    "II": {"loss": 1.0, "trace": 8.0, "mc": 1.0, "cka": 0.3},
    "III": {"loss": 0.001, "trace": 4.0, "mc": -5.0, "cka": 0.3},
    "IV-A": {"loss": 0.001, "trace": 4.0, "mc": 0.0, "cka": 0.3},
    "IV-B": {"loss": 0.001, "trace": 4.0, "mc": 0.0, "cka": 0.9},
}
MODEL = {"loss": "train_loss", "trace": "hessian_trace", "accuracy": "test_error", "train_error": "train_error"}
PAIR = {"mc": "mode_connectivity", "cka": "cka", "distance": "distance"}


def pattern(n_seeds: int, place: int) -> np.ndarray:
    """What the seeds of a cell differ by: evenly spaced with mean 0, turned around in every other cell."""
    even = np.arange(n_seeds) - (n_seeds - 1) / 2
    return even if place % 2 == 0 else -even


def build(
    cells: Mapping[tuple, Mapping[str, Any]],
    *,
    axes: tuple[str, ...] = ("width", "batch_size"),
    n_seeds: int = 3,
    noise: float = 0.0,
    spread: float = 0.0,
    one_curve: bool = False,
    attrs: Mapping[str, Any] | None = None,
) -> xr.DataTree:
    """Results from {values of the axes: {phase, accuracy, ...}}; the last axis is the temperature.

    A cell has the numbers of its `phase`, unless it gives its own. Seeds differ by `noise` times the pattern,
    relatively, in loss and trace, and by `spread` times it, in percent, in accuracy. `one_curve`: only the first
    two seeds have a mode connectivity.
    """
    values = [tuple(sorted({key[k] for key in cells})) for k in range(len(axes))]
    roles = ["load"] * (len(axes) - 1) + ["temperature"]
    made = [Axis(name, each, role) for name, each, role in zip(axes, values, roles, strict=True)]
    seeds = tuple(range(n_seeds))
    models: dict = {}
    pairs: dict = {}
    for place, (key, given) in enumerate(cells.items()):
        cell = {**PHASES.get(given.get("phase", ""), {}), **given}
        for seed in seeds:
            off = pattern(n_seeds, place)[seed]
            record: dict[str, Any] = {"status": "ok"}
            for short, name in MODEL.items():
                if short in cell:
                    record[name] = _number(short, cell[short], off, noise, spread)
            models[(*key, seed)] = record
        for a, b in itertools.combinations(seeds, 2):
            found = {name: cell[short] for short, name in PAIR.items() if short in cell}
            if one_curve and (a, b) != (0, 1):
                found.pop("mode_connectivity", None)
            pairs[(*key, a, b)] = found | {"status": "ok"}
    groups = {
        "models": results.group(made, {"seed": seeds}, models, _quantities(MODEL)),
        "pairs": results.group(made, {"seed": seeds, "seed_b": seeds}, pairs, _quantities(PAIR)),
    }
    return results.tree(groups, dict(attrs or {}))


def _number(short: str, value: float, off: float, noise: float, spread: float) -> float:
    if short == "accuracy":
        return 100.0 - (value + spread * off)
    if short == "trace":
        return math.exp(value) * (1 + noise * off)
    return value * (1 + noise * off) if short == "loss" else value


def _quantities(names: Mapping[str, str]) -> list[Quantity]:
    return [*(Quantity(name, "1", name.replace("_", " "), "made up") for name in names.values()), STATUS, REASON]

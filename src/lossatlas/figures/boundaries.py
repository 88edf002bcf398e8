"""Where one phase ends: level sets of the metrics at their thresholds, interpolated between the cells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from lossatlas.figures.grid import Grid

Floats = NDArray[np.float64]

STEPS = 16  # points an interval between two cells
SHORT_NAMES = {"ln_trace": "ln trace", "train_loss": "loss", "mode_connectivity": "mc", "cka": "CKA"}
_SHARP = {"I": 1.0, "II": 1.0, "III": 0.0, "IV-A": 0.0, "IV-B": 0.0}
_POOR = {"I": 1.0, "III": 1.0, "II": 0.0, "IV-A": 0.0, "IV-B": 0.0}


@dataclass(frozen=True)
class Boundary:
    """A boundary is where `field` is zero; NaN where the boundary is not defined."""

    name: str  # sharp, mode_connectivity or cka
    text: str  # the threshold in words
    field: Floats  # (y, x) on the fine mesh

    @property
    def rising(self) -> Floats:
        """The field with such a sign that zero is on the side of what is below: sharp is >, poor <, IV-B >=."""
        return self.field if self.name == "sharp" else -self.field

    @property
    def is_drawn(self) -> bool:
        """Whether any two neighbours of the mesh lie on different sides."""
        side = np.where(np.isfinite(self.field), self.rising > 0, np.nan)
        return any(bool((np.abs(np.diff(side, axis=axis)) == 1).any()) for axis in (0, 1))


@dataclass(frozen=True)
class Boundaries:
    """All boundaries of a phase map over one fine mesh, and a sentence for every test that draws none."""

    x: Floats  # plot coordinates of the mesh
    y: Floats
    found: tuple[Boundary, ...]
    sentences: tuple[str, ...]


def boundaries(labels: xr.Dataset, grid: Grid) -> Boundaries:
    """The boundaries that the thresholds of `labels` draw.

    Each metric (the logarithm of the training loss) is interpolated bilinearly in the logarithms of the axes and
    constantly from the outer cells to the frame; a cell without a value leaves a gap as far as its neighbours.
    Sharp means `ln_trace > a or train_loss > b`, so its boundary is where the larger excess is zero: as both
    excesses are interpolated first, it does not depend on how one is scaled against the other. The CKA boundary
    exists only inside Phase IV, that is where the other interpolants say flat and not poor.

    A test that has all cells on one side draws nothing, nor does a metric without transition: they get a sentence.
    """
    limits = thresholds(labels)
    excess = {
        name: _refined(excess_of(name, grid.floats(labels, name), limit), grid)
        for name, limit in limits.items()
        if limit is not None
    }
    phases = grid.array(labels, "phase").astype(str)
    tests = []
    is_flat = _refined(_side(phases, _SHARP), grid) < 0.5
    sharp = [name for name in ("ln_trace", "train_loss") if name in excess]
    # Where one of the two has no transition it may have made every cell sharp: then the other draws nothing.
    if sharp and len({_SHARP[phase] for phase in phases.flat if phase}) == 2:
        field = largest_of([excess[name] for name in sharp])
        is_flat = field <= 0
        tests.append(Boundary("sharp", _words(sharp, limits, "="), field))
    is_well = _refined(_side(phases, _POOR), grid) < 0.5
    if "mode_connectivity" in excess:
        field = excess["mode_connectivity"]
        is_well = field >= 0
        tests.append(Boundary("mode_connectivity", _words(["mode_connectivity"], limits, "="), field))
    if "cka" in excess:
        field = np.where(is_flat & is_well, excess["cka"], np.nan)
        tests.append(Boundary("cka", _words(["cka"], limits, "="), field))
    found = tuple(test for test in tests if test.is_drawn)
    drawn = {boundary.name for boundary in found}
    without = tuple(f"{SHORT_NAMES[name]}: no transition" for name, limit in limits.items() if limit is None)
    return Boundaries(
        grid.load.from_u(_mesh(grid.load.u, grid.load.u_edges)),
        grid.temperature.from_u(_mesh(grid.temperature.u, grid.temperature.u_edges)),
        found,
        (*_one_sided(phases, limits, drawn), *without),
    )


def _one_sided(phases: NDArray[Any], limits: Mapping[str, float | None], drawn: set[str]) -> list[str]:
    """A sentence for every test that draws no line because all phases lie on one side of it."""
    sharp = [name for name in ("ln_trace", "train_loss") if limits[name] is not None]
    every = {str(phase) for phase in phases.flat if phase}
    fourth = {phase for phase in every if _SHARP[phase] == _POOR[phase] == 0}
    texts = {  # test -> the phases it parts, what passes it, what fails it
        "sharp": (
            [_SHARP[phase] for phase in every],
            # Where one of the two has no transition, that one may have made all sharp.
            f"all sharp: {_words(sharp, limits, '>')}" if len(sharp) == 2 else "all sharp",
            f"all flat: {_words(sharp, limits, '≤', 'and')}",
        ),
        "mode_connectivity": (
            [_POOR[phase] for phase in every],
            f"all poorly connected: {_words(['mode_connectivity'], limits, '<')}",
            f"none poorly connected: {_words(['mode_connectivity'], limits, '≥')}",
        ),
        "cka": (
            [float(phase == "IV-B") for phase in fourth],
            f"IV is all IV-B: {_words(['cka'], limits, '≥')}",
            f"IV is all IV-A: {_words(['cka'], limits, '<')}",
        ),
    }
    sentences = []
    for name, (found, passed, failed) in texts.items():
        decided = sharp if name == "sharp" else limits[name] is not None
        if decided and name not in drawn and len(set(found)) == 1:
            sentences.append(passed if found[0] else failed)
    return sentences


def thresholds(labels: xr.Dataset) -> dict[str, float | None]:
    """The threshold of every metric, None where the grid at hand has no transition in it."""
    limits, origins = (json.loads(labels.attrs[name]) for name in ("thresholds", "origin"))
    return {name: None if origins[name] == "no transition" else float(limits[name]) for name in SHORT_NAMES}


def _words(names: Sequence[str], limits: Mapping[str, float | None], sign: str, link: str = "or") -> str:
    texts = (f"{SHORT_NAMES[name]} {sign} {limit:.3g}" for name in names if (limit := limits[name]) is not None)
    return f" {link} ".join(texts).replace("-", "−")


def excess_of(name: str, values: Floats, limit: float) -> Floats:
    """How far a metric lies above its limit; a loss in nat lies over decades, so its logarithm is compared."""
    if name == "train_loss" and limit > 0 and not (values <= 0).any():
        return np.asarray(np.log(values) - np.log(limit))
    return values - limit


def largest_of(excesses: list[Floats]) -> Floats:
    """The largest excess; where one is unknown, another decides only if it is positive."""
    largest: Floats = np.fmax.reduce(excesses)
    known = np.all(np.isfinite(excesses), axis=0)
    return np.where(known | (largest > 0), largest, np.nan)


def _side(phases: NDArray[Any], side: Mapping[str, float]) -> Floats:
    """1 on one side of a test and 0 on the other, as the phases themselves tell it."""
    return np.array([[side.get(phase, np.nan) for phase in row] for row in phases])


def _mesh(u: Floats, edges: Floats) -> Floats:
    """The fine mesh along one axis, from frame to frame: STEPS steps between neighbouring nodes."""
    nodes = _nodes(u, edges)
    places = np.linspace(0, len(nodes) - 1, (len(nodes) - 1) * STEPS + 1)
    return np.interp(places, np.arange(len(nodes)), nodes)


def _nodes(u: Floats, edges: Floats) -> Floats:
    return np.concatenate([edges[:1], u, edges[-1:]])


def _refined(values: Floats, grid: Grid) -> Floats:
    """`values` (temperature, load) on the fine mesh; NaN where a node with weight has no value."""
    rows = _weights(len(grid.temperature.values) + 2)
    columns = _weights(len(grid.load.values) + 2)
    nodes = np.pad(values, 1, mode="edge")
    finite = np.isfinite(nodes)
    mass = rows @ finite.astype(np.float64) @ columns.T
    # The weights are multiples of 1/STEPS, a power of two, so a full mass is exactly 1.
    return np.where(mass == 1.0, rows @ np.where(finite, nodes, 0.0) @ columns.T, np.nan)


def _weights(nodes: int) -> Floats:
    """Linear interpolation from `nodes` to the fine mesh: (points, nodes), rows sum to 1."""
    places = np.linspace(0, nodes - 1, (nodes - 1) * STEPS + 1)
    return np.clip(1.0 - np.abs(places[:, None] - np.arange(nodes)), 0.0, None)

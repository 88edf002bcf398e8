"""A picture of a study: which results it shows, in which panels, drawn by which function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import xarray as xr
from matplotlib.figure import Figure

from lossatlas import figures
from lossatlas.figures.style import with_error
from lossatlas.studies.items import Item

TOLERANCE = 1e-4  # nat: ripples of ReLU kinks are no valleys

Look = Literal["lines", "surfaces", "surface_3d", "density", "plot"]


@dataclass(frozen=True)
class Panel:
    """One result with its title; its epoch is for the list of classes."""

    title: str
    epoch: int
    item: Item


@dataclass(frozen=True)
class Picture:
    """Panels in rows. Those of `lines` and `surfaces` share a figure; the others have one panel."""

    stem: str
    look: Look
    rows: Sequence[Sequence[Panel]]
    marks: str = ""  # sentences for the caption: what the figure itself cannot explain

    @property
    def panels(self) -> list[Panel]:
        """All of them."""
        return [panel for row in self.rows for panel in row]


def rows_of(panels: Sequence[Panel], columns: int) -> list[list[Panel]]:
    """The panels in rows of so many."""
    return [list(panels[start : start + columns]) for start in range(0, len(panels), columns)]


def drawn(picture: Picture, found: Mapping[str, xr.Dataset]) -> Figure:
    """The figure of a picture from datasets by the keys of their items; panels that have none are left out."""
    rows = [
        {_title(panel, found[panel.item.key]): found[panel.item.key] for panel in row if panel.item.key in found}
        for row in picture.rows
    ]
    rows = [row for row in rows if row]
    several: dict[str, Callable[[Any], Figure]] = {
        "lines": partial(figures.lines, tolerance=TOLERANCE),
        "surfaces": figures.surfaces,
    }
    single: dict[str, Callable[[xr.Dataset], Figure]] = {
        "surface_3d": figures.surface_3d,
        "density": figures.density,
        "plot": figures.plot,
    }
    if picture.look in several:
        return several[picture.look](rows)
    return single[picture.look](next(iter(rows[0].values())))


def _title(panel: Panel, dataset: xr.Dataset) -> str:
    return f"{panel.title}\nΔ = {advantage_of(dataset)}" if "advantage" in dataset else panel.title


def advantage_of(dataset: xr.Dataset) -> str:
    """By how much the first of two directions is lower, in words."""
    return with_error(float(dataset["advantage"]), float(dataset["advantage_se"]), "nat")

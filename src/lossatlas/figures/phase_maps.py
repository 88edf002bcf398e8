"""The phase maps of a grid with further load axes side by side, as in [Yang2021] Fig. 6: a panel a value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from lossatlas.errors import UserError
from lossatlas.figures.boundaries import Boundaries, boundaries
from lossatlas.figures.captions import explained
from lossatlas.figures.grid import Grid, grid_of, inches_of, picked, place_title, prepare
from lossatlas.figures.panels import best_cell
from lossatlas.figures.phase_map import (
    LINES,
    draw_boundaries,
    draw_marks,
    draw_name,
    fill_phases,
    line_key,
    mark_key,
    regions,
    star,
)
from lossatlas.figures.style import FONT, INCH, LETTER, PHASE_COLOURS, SMALL, TITLE, entitle, no_value_key, styled
from lossatlas.findings.columns import places
from lossatlas.results import axes_of

MOST = 12
_COLUMNS = 5
_WIDTH, _WIDEST = 7.2, 2.2  # inches: two columns of a paper, and a panel where there are few
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.52, 0.06, 0.34, 0.05  # inches
_GAP, _NAME = 0.1, 0.2  # inches: between two panels, and the strip above each with its name
_FLATNESS = 0.84  # height of a panel by its width
_LEGEND, _ENTRY = 0.14, 1.2  # inches: one row of the legend, and an entry of average length
_ROOM, _STAR = 3.0, 5.5  # points: between a name and what is around it; the mark of the best cell


@dataclass(frozen=True)
class _Panel:
    """One map, and what is drawn into it."""

    name: str
    grid: Grid
    phases: NDArray[Any]  # (temperature, load)
    lines: Boundaries
    best: NDArray[np.float64]  # (0 or 1, 2)


@styled
def phase_maps(labels: xr.Dataset, *, cells: xr.Dataset | None = None, title: str = "") -> Figure:
    """The phases over the first load axis and the temperature, one map for each value of the other load axes.

    `labels` is what `phases.label` returns. All maps have the same axes, colours and thresholds, hence the same
    legend; a sentence below says what holds in all of them (see `phase_map`). With `cells`, which
    `summary.cells` returns, a star marks the best cell of each map. Labels in doubt are marked in the single maps
    alone. Of more than 12 maps 12 are shown, evenly picked, with both ends.

    Raises UserError if there is no second load axis, or not one temperature axis.
    """
    load, temperature = axes_of(labels)
    if len(load) < 2:
        raise UserError("Phase maps side by side need a second load axis; with one, draw phase_map.")
    every = places(labels, load[0], *temperature)
    panels = [_panel(labels, cells, every[k]) for k in picked(len(every), MOST)]
    rows = math.ceil(len(panels) / _COLUMNS)
    columns = math.ceil(len(panels) / rows)
    across = min(_WIDEST, (_WIDTH - _LEFT - _RIGHT - (columns - 1) * _GAP) / columns)
    up = _FLATNESS * across
    width = _LEFT + columns * (across + _GAP) - _GAP + _RIGHT
    colours, marks = _key(panels, "" if cells is None else best_cell(cells)[1])
    key_columns = max(1, min(len(marks), int(width / _ENTRY)))
    key_rows = math.ceil(len(marks) / key_columns)
    low = _BOTTOM + _LEGEND * (1 + key_rows)
    height = low + rows * (up + _NAME) + _TOP + (TITLE if title else 0.0)
    figure = Figure(figsize=(width, height))
    entitle(figure, title)
    for place, panel in enumerate(panels):
        row, column = divmod(place, columns)
        corner = (_LEFT + column * (across + _GAP), low + (rows - 1 - row) * (up + _NAME))
        axes = figure.add_axes((corner[0] / width, corner[1] / height, across / width, up / height))
        prepare(axes, panel.grid, x_numbers=place + columns >= len(panels), y_numbers=column == 0)
        _draw(axes, panel)
    middle = (_LEFT + width - _RIGHT) / 2 / width
    load_name, temperature_name = panels[0].grid.names
    figure.supxlabel(load_name, x=middle, y=(low - _BOTTOM + 0.02) / height, size=FONT, va="bottom")
    middle_up = (low + rows * (up + _NAME) / 2) / height
    figure.supylabel(temperature_name, x=0.03 / width, y=middle_up, size=FONT)
    for handles, row, ncols in ((colours, key_rows, len(colours)), (marks, 0, key_columns)):
        anchor = (middle, _LEGEND * row / height)
        figure.legend(handles=handles, loc="lower center", bbox_to_anchor=anchor, ncols=ncols, borderaxespad=0.2)
    told = [each for each in panels[0].lines.sentences if all(each in panel.lines.sentences for panel in panels)]
    return explained(
        figure,
        f"{len(panels)} of {len(every)} maps." if len(panels) < len(every) else "",
        f"In every map: {'; '.join(told)}." if told else "",
    )


def _panel(labels: xr.Dataset, cells: xr.Dataset | None, at: dict[str, float]) -> _Panel:
    here = labels.sel(at)
    grid = grid_of(here)
    best = None if cells is None else best_cell(cells.sel(at))[0]
    phases = grid.array(here, "phase").astype(str)
    return _Panel(place_title(at, labels), grid, phases, boundaries(here, grid), star(grid, best))


def _draw(axes: Axes, panel: _Panel) -> None:
    """A map under its name; its regions are named where there is room, the legend has the colours of all."""
    across, _ = inches_of(axes)
    axes.set_title(panel.name, size=min(FONT, across * INCH / (LETTER * len(panel.name))))
    fill_phases(axes, panel.grid, panel.phases)
    draw_boundaries(axes, panel.lines)
    draw_marks(axes, "best", panel.best, size=_STAR)
    for region in regions(panel.phases, panel.grid, inches_of(axes), panel.best):
        if region.is_largest and region.depth * INCH >= LETTER * SMALL * len(region.phase) / 2 + _ROOM:
            draw_name(axes, region, SMALL)


def _key(panels: list[_Panel], best_of: str) -> tuple[list[Artist], list[Artist]]:
    """The phases that occur; the lines of any panel with their thresholds, and the star."""
    there = {str(phase) for panel in panels for phase in panel.phases.flat}
    lines = {line.name: line.text for panel in panels for line in panel.lines.found}
    colours: list[Artist] = [
        Patch(facecolor=colour, label=f"Phase {phase}")
        for phase, colour in PHASE_COLOURS.items()
        if phase in there
    ]
    marks: list[Artist] = [line_key(name, lines[name]) for name in LINES if name in lines]
    if any(len(panel.best) for panel in panels):
        marks.append(mark_key("best", f"best {best_of}"))
    return [*colours, no_value_key("no phase")] if "" in there else colours, marks

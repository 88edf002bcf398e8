"""Figures for papers: pure functions from a dataset to a matplotlib Figure, and one function that saves them."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import matplotlib as mpl
import xarray as xr
from matplotlib.figure import Figure

from lossatlas import files, summary
from lossatlas.figures.columns import column, has_trace_lines, trace_lines
from lossatlas.figures.connectivity import connectivity
from lossatlas.figures.curves import line, lines
from lossatlas.figures.descent import descent
from lossatlas.figures.expansions import expansion, loss_change, quadratic
from lossatlas.figures.local import plot
from lossatlas.figures.panels import Limits, best_cell, panels
from lossatlas.figures.phase_map import phase_map
from lossatlas.figures.phase_maps import phase_maps
from lossatlas.figures.probes import against_gaussians, angles, cosines, mined
from lossatlas.figures.relations import comparison, connection
from lossatlas.figures.spectra import density, smooth_density, spectrum
from lossatlas.figures.style import STYLE
from lossatlas.figures.surfaces import surface, surface_3d, surfaces
from lossatlas.figures.tracks import path, search, trajectory
from lossatlas.figures.variants import variants

__all__ = [
    "against_gaussians",
    "angles",
    "column",
    "comparison",
    "connection",
    "connectivity",
    "cosines",
    "density",
    "descent",
    "draw_all",
    "expansion",
    "line",
    "lines",
    "loss_change",
    "mined",
    "panels",
    "path",
    "phase_map",
    "phase_maps",
    "plot",
    "quadratic",
    "save",
    "search",
    "smooth_density",
    "spectrum",
    "surface",
    "surface_3d",
    "surfaces",
    "trace_lines",
    "trajectory",
    "variants",
]


def draw_all(
    tree: xr.DataTree,
    labels: xr.Dataset,
    *,
    limits: Limits = "data",
    title: str = "",
    over: xr.Dataset | None = None,
) -> dict[str, Figure]:
    """All maps of a results tree and its labels by name, over one load and one temperature axis.

    They are `phase_map`, `panels`, `trace_lines` where two loads and two temperatures have a Hessian trace, and
    if there are curves `connectivity` (the error along them) and `connectivity_loss`. The phase map marks the cell
    of the best test accuracy (of translations: BLEU). `title` stands above each of them; `over` are cells whose
    values set the colour limits (see `panels`). Raises UserError as the figures do.
    """
    cells = summary.cells(tree)
    best, best_of = best_cell(cells)
    drawn = {
        "phase_map": phase_map(labels, best=best, best_of=best_of, title=title),
        "panels": panels(cells, limits=limits, title=title, over=over),
    }
    if has_trace_lines(cells):
        drawn["trace_lines"] = trace_lines(cells, title=title)
    if "curves" in tree.children:
        drawn["connectivity"] = connectivity(tree, title=title)
        drawn["connectivity_loss"] = connectivity(tree, quantity="loss", title=title)
    return drawn


def save(figure: Figure, path_stem: str | PathLike[str]) -> list[Path]:
    """Write `<path_stem>.pdf` (vectors, embedded TrueType fonts) and `<path_stem>.png` (200 dpi).

    The files hold no date and no host, so the same figure gives the same bytes. Returns their paths; raises
    FileError when they cannot be written.
    """
    formats: dict[str, dict[str, Any]] = {
        "pdf": {"metadata": {"CreationDate": None, "Producer": None, "Creator": "lossatlas"}},
        "png": {"metadata": {"Software": "lossatlas"}, "dpi": 200},
    }
    stem, written = Path(path_stem), []
    for suffix, options in formats.items():
        stream = io.BytesIO()
        with mpl.rc_context(STYLE), _quiet_fonts():
            figure.savefig(stream, format=suffix, **options)
        path = stem.with_name(f"{stem.name}.{suffix}")
        files.write_file(path, stream.getvalue())
        written.append(path)
    return written


@contextmanager
def _quiet_fonts() -> Iterator[None]:
    """Hold back the font library's remarks on the dates inside matplotlib's own font."""
    logger = logging.getLogger("fontTools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

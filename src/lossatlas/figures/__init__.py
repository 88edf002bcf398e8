"""Figures for papers: pure functions from a dataset to a matplotlib Figure, and one function that saves them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from lossatlas import files
from lossatlas.figures.panels import panels
from lossatlas.figures.style import STYLE

__all__ = ["panels", "save"]


def save(figure: Figure, path_stem: Path) -> list[Path]:
    """Write `<path_stem>.pdf` (vectors, embedded TrueType fonts) and `<path_stem>.png` (200 dpi); returns the paths.

    The files hold no date and no host, so the same figure gives the same bytes. Raises FileError when they cannot be
    written.
    """
    formats: dict[str, dict[str, Any]] = {
        "pdf": {"metadata": {"CreationDate": None, "Producer": None, "Creator": "lossatlas"}},
        "png": {"metadata": {"Software": "lossatlas"}, "dpi": 200},
    }
    written = []
    for suffix, options in formats.items():
        stream = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            figure.savefig(stream, format=suffix, **options)
        path = path_stem.with_name(f"{path_stem.name}.{suffix}")
        files.write_file(path, stream.getvalue())
        written.append(path)
    return written

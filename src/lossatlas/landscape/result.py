"""What all results share: a line that tells them, and the way to a dataset, a file and a figure; without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


class Result:
    """The base of every result: a frozen dataclass whose repr is one line, its headline number with its error.

    The methods point upwards, to the modules that know names, units and drawings, and load them when they are
    called; nothing in `landscape` uses them, so that the mathematics stands alone (`tests/test_imports.py`).
    """

    def to_dataset(self) -> xr.Dataset:
        """The numbers as an xarray Dataset with names, units and how they were made.

        Vectors of parameter space (eigenvectors, directions, points of a path) and the values of single samples
        are not in it.
        """
        from lossatlas import local_results

        return local_results.to_dataset(self)

    def save(self, path: str | PathLike[str], *, attrs: Mapping[str, Any] | None = None) -> xr.Dataset:
        """Write `to_dataset()` with further attributes to one NetCDF file, atomically; returns what was written.

        `lossatlas.load` reads it. Raises FileError when the file cannot be written.
        """
        from lossatlas import local_results

        return local_results.save(self, path, attrs=attrs)

    def plot(self) -> Figure:
        """The matplotlib Figure of the result, as `lossatlas.figures.plot` draws it.

        Raises UserError for single numbers, which have none.
        """
        from lossatlas import figures

        return figures.plot(self)


def with_error(value: float, stderr: float) -> str:
    """`12.35 +- 0.41`: a value and its standard error for people; without the error where there is none."""
    return f"{value:.4g}" if math.isnan(stderr) else f"{value:.4g} +- {stderr:.2g}"

"""What the claims rest on: the cells of a grid, their phases, and the same without each seed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr

from lossatlas import summary
from lossatlas.findings.columns import Place, places
from lossatlas.findings.verdicts import NotMeasured, jackknife_error, mean_and_error
from lossatlas.results import axes_of
from lossatlas.summary import Floats

Statistic = Callable[[xr.Dataset], float]

MANY = 3  # slices from which their own spread is an error
SAME = math.log(2.0)  # traces within a factor of two count as the same


@dataclass(frozen=True)
class Measured:
    """The margin of a claim, its standard error, and the cells or groups that it rests on."""

    margin: float
    error: float
    rests_on: str


class Evidence:
    """A grid of results with its labels, which stay as they are while seeds are left out.

    `against` are results of the same grid with the other learning-rate schedule, if there are any.
    """

    def __init__(self, tree: xr.DataTree, labels: xr.Dataset, *, against: xr.DataTree | None = None) -> None:
        self.tree = tree
        self.labels = labels
        self.against = against
        self.cells = summary.cells(tree)

    @cached_property
    def without(self) -> list[xr.Dataset]:
        """The cells without each seed; empty with one seed.

        A cell that rests on one seed, or a pair's quantity on one pair, is held fixed. Where most cells are such,
        as with one curve a cell, the quantity is NaN, so that what is made of it has no error.
        """
        seeds = [int(seed) for seed in self.tree["models"].to_dataset()["seed"].values]
        if len(seeds) < 2:
            return []
        return [self._without({seed: float(seed != left_out) for seed in seeds}) for left_out in seeds]

    def _without(self, weights: dict[int, float]) -> xr.Dataset:
        again = summary.cells(self.tree, weights=weights)
        for name in map(str, again.data_vars):
            counts = self.cells[f"{name}_n" if f"{name}_n" in self.cells else "n_ok"]
            if again[name].dtype.kind == "f" and 2 * int((counts == 1).sum()) <= int((counts > 0).sum()):
                again[name] = again[name].where(counts != 1, self.cells[name])
        return again

    def jackknife(self, statistic: Statistic) -> tuple[float, float]:
        """A statistic of the cells and its standard error over the seeds, each left out in all cells at once.

        The error is NaN with one seed.
        """
        return statistic(self.cells), jackknife_error([statistic(cells) for cells in self.without])

    def over_slices(self, values: Callable[[xr.Dataset], Floats]) -> tuple[float, float, str]:
        """Mean of one number a slice, its standard error, and what the error rests on.

        From three slices on the error is that of the mean over slices, which holds their differences too; below
        it is the jackknife over the seeds. Raises NotMeasured if no slice has a number.
        """
        found = values(self.cells)
        known = np.isfinite(found)
        if not known.any():
            raise NotMeasured("no slice has it in two cells")
        n = int(known.sum())
        if n >= MANY:
            return *mean_and_error(found), f"error over {n} slices"
        few = "1 slice" if n == 1 else f"{n} slices"
        return *self.jackknife(lambda cells: float(values(cells)[known].mean())), f"{few}, error over seeds"

    def needs(self, *names: str) -> None:
        """Raise NotMeasured unless some cell has each of these quantities."""
        for name in names:
            if name not in self.cells or not np.isfinite(self.cells[name]).any():
                raise NotMeasured(f"no cell has {name}")

    def axis(self, name: str) -> None:
        """Raise NotMeasured unless this axis has two values or more."""
        if name not in self.labels.dims or self.labels.sizes[name] < 2:
            raise NotMeasured(f"no axis {name} with two values")

    def phase(self, *phases: str, having: str = "") -> xr.DataArray:
        """Which cells are in one of these phases and have a quantity; raises NotMeasured if none is."""
        found = self.labels["phase"].isin(phases)
        if not found.any():
            raise NotMeasured(f"no cell in Phase {' or '.join(phases)}")
        if having:
            found = found & np.isfinite(self.cells[having])
            if not found.any():
                raise NotMeasured(f"no cell in Phase {' or '.join(phases)} has {having}")
        return found

    def slices(self, name: str) -> Iterator[Place]:
        """The places of all slices along an axis."""
        yield from places(self.labels, name)

    @property
    def temperatures(self) -> list[str]:
        """The names of the temperature axes."""
        return axes_of(self.labels)[1]


def schedule(tree: xr.DataTree) -> str:
    """`decayed` or `constant`: how the learning rate of a run went; empty where the results do not say."""
    spec = json.loads(tree.attrs.get("spec", "{}"))
    if "train" in spec:
        name = (spec["train"].get("schedule") or {}).get("name", "constant")
        return "constant" if name == "constant" else "decayed"
    folders = str(spec.get("name", ""))  # of a published archive, after its training type
    return "decayed" if "/lr_decay" in folders else "constant" if "/normal" in folders else ""

"""What of a plan is done and what is left: the plan minus what the store holds. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lossatlas.sweep.plan import Plan, Step
from lossatlas.sweep.store import Store


@dataclass(frozen=True)
class Remaining:
    """How far a plan is."""

    total: dict[str, int]  # steps by kind
    missing: NDArray[np.int64]  # (cells, kinds): how many steps are left
    seconds: float  # predicted, of the steps that are left
    sample: tuple[tuple[int, Step], ...] = ()  # finished steps, spread evenly, each with the index of its cell

    @property
    def done(self) -> dict[str, int]:
        """Finished steps by kind."""
        left = self.missing.sum(axis=0).tolist()
        return {name: total - count for (name, total), count in zip(self.total.items(), left, strict=True)}

    @property
    def cells(self) -> tuple[int, ...]:
        """The indices of the cells that lack a step."""
        return tuple(np.flatnonzero(self.missing.any(axis=1)).tolist())

    @property
    def steps(self) -> int:
        """How many steps are left."""
        return int(self.missing.sum())

    def taking(self, seconds: NDArray[np.float64]) -> Remaining:
        """The same with other predictions."""
        return replace(self, seconds=float((self.missing * seconds).sum()))


def remaining(plan: Plan, store: Store, seconds: NDArray[np.float64], *, sample: int = 0) -> Remaining:
    """What is left of a plan, `seconds` (cells, kinds) being predicted for a step of each kind.

    At most `sample` of the finished steps are handed over. Lists the store's folders and opens no file; keys are
    derived only if there is something to compare them with. Costs some 10 microseconds a step.
    """
    total = plan.counts()
    finished = {name: store.finished(name) for name in total}
    missing = np.tile(per_cell(plan), (len(plan), 1))
    found: list[tuple[int, Step]] = []
    if any(finished.values()):
        most = sum(min(len(finished[name]), total[name]) for name in total)
        stride = -(-most // sample) if sample else 0  # rounded up
        column = plan.columns()
        done = 0
        for index, cell in enumerate(plan.cells):
            for step in plan.steps(cell):
                if step.key in finished[step.name]:
                    missing[index, column[step.name]] -= 1
                    if stride and done % stride == 0:
                        found.append((index, step))
                    done += 1
    return Remaining(total, missing, 0.0, tuple(found)).taking(seconds)


def per_cell(plan: Plan) -> NDArray[np.int64]:
    """How many steps of each kind a cell has, which is the same for all."""
    return np.array([count // max(1, len(plan)) for count in plan.counts().values()], dtype=np.int64)


def longest_first(cells: Sequence[int], plan: Plan, seconds: NDArray[np.float64]) -> list[int]:
    """Cells by what a whole cell is predicted to take, so that no long one is left for the end."""
    took = seconds @ per_cell(plan)
    return sorted(cells, key=lambda index: -took[index])

"""Directions from a model of a study, by what determines them: their vectors are made when a result needs them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lossatlas.landscape import directions
from lossatlas.landscape.directions import Direction, OneDimensional, Scaling
from lossatlas.studies import vectors
from lossatlas.studies.items import Item, Undefined
from lossatlas.studies.subject import Subject


@dataclass(frozen=True, eq=False)
class Way:
    """A direction that is yet to be made, under the name that [Xu2024] uses."""

    name: str
    content: Mapping[str, Any]
    make: Callable[[], Direction]
    needs: tuple[Item, ...] = ()


def made(ways: Sequence[Way]) -> list[Direction]:
    """The directions themselves, by their names."""
    return [replace(way.make(), name=way.name) for way in ways]


def proper(way: Way) -> Direction:
    """The direction itself; raises Undefined unless its length is finite and above 0."""
    (found,) = made([way])
    if not 0 < found.norm < math.inf:
        raise Undefined(
            f"the direction {way.name} has the length {found.norm:g}, so it cannot be given another one"
        )
    return found


def gaussians(
    subject: Subject, epoch: int, scaling: Scaling = "model", one_dimensional: OneDimensional | None = None
) -> list[Way]:
    """The Gaussian directions of one panel."""
    return [gaussian(subject, epoch, k, scaling, one_dimensional) for k in range(subject.sizes.gaussians)]


def gaussian(
    subject: Subject,
    epoch: int,
    k: int = 0,
    scaling: Scaling = "model",
    one_dimensional: OneDimensional | None = None,
) -> Way:
    """The k-th of them."""
    content = {"gaussian": k, "scaling": scaling, "one_dimensional": one_dimensional or "default"}

    def make() -> Direction:
        objective = subject.objective(epoch)
        return directions.gaussian(objective, seed=k, scaling=scaling, one_dimensional=one_dimensional)

    return Way(f"Gau. {k + 1}", content, make)


def eigenvector(subject: Subject, epoch: int, sign: str, rank: int = 1) -> Way:
    """Of length 1: the `rank`-th of positive (P) or of negative eigenvalue (N)."""
    item, name = vectors.pairs(subject, epoch), f"{sign}.E.{rank}"

    def make() -> Direction:
        pairs = vectors.finite_eigenpairs(subject, epoch)
        per_end = len(pairs.eigenvalues) // 2
        if rank > per_end:  # of a model with so few parameters
            raise Undefined(f"there is no {name}: the Hessian has {per_end} eigenpairs at either end")
        column = rank - 1 + (per_end if sign == "N" else 0)
        return directions.eigenvectors(subject.objective(epoch), pairs)[column]

    return Way(name, {"eigenvector": [sign, rank], "of": item.key}, make, (item,))


def gradient(subject: Subject, epoch: int) -> Way:
    """Downhill on the images that are looked at."""
    content = {"negative gradient": subject.images}
    return Way("Neg. Grad.", content, lambda: directions.negative_gradient(subject.objective(epoch)))


def to(subject: Subject, epoch: int, end: int, *, other: bool = False) -> Way:
    """To a checkpoint of the same training (E=) or of the other one (E'=)."""
    subject.needs_training("a direction to another checkpoint")
    content = {"to": subject.of(end, other=other)}

    def make() -> Direction:
        return directions.difference(subject.objective(epoch), subject.theta(end, other=other))

    return Way(f"E{chr(39) if other else ''}={end}", content, make)


def from_start(subject: Subject) -> Way:
    """From the initialisation to the last checkpoint, looked at from there."""
    subject.needs_training("the way from the initialisation")
    content = {"to": subject.of(subject.late), "from": subject.of(0)}

    def make() -> Direction:
        late = subject.late
        return directions.difference(subject.objective(late), subject.theta(late), start=subject.theta(0))

    return Way("θ − θ₀", content, make)


def mined(subject: Subject, epoch: int) -> Way:
    """By Algorithm 1, unscaled."""
    return _mined(subject, epoch, vectors.w_peak(subject, epoch))


def mined_vvv(subject: Subject, gamma: float, half_width: float) -> Way:
    """By Algorithm 2 from the last checkpoint, unscaled."""
    return _mined(subject, subject.late, vectors.vvv_basin(subject, gamma, half_width))


def _mined(subject: Subject, epoch: int, item: Item) -> Way:
    def make() -> Direction:
        return directions.given(subject.objective(epoch), vectors.vector(subject, item), name="Mine")

    return Way("Mine", {"mined": item.key}, make, (item,))


def as_long_as(way: Way, measure: Way) -> Way:
    """The same direction with the length of another one."""

    def make() -> Direction:
        direction = proper(way)
        return longer(direction, measure.make().relative / direction.relative)

    content = {"way": dict(way.content), "as long as": dict(measure.content)}
    return Way(way.name, content, make, (*way.needs, *measure.needs))


def longer(direction: Direction, factor: float) -> Direction:
    """The same direction, so many times as long; as it is where that is no number."""
    if not math.isfinite(factor):
        return direction
    norm, relative = direction.norm * factor, direction.relative * factor
    return replace(direction, vector=direction.vector * factor, norm=norm, relative=relative)

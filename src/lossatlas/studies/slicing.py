"""Curves and surfaces of a study as items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import xarray as xr

from lossatlas.errors import UserError
from lossatlas.landscape import angles, slices
from lossatlas.landscape.objective import BatchNormPolicy
from lossatlas.studies.items import Item, Undefined
from lossatlas.studies.subject import Subject
from lossatlas.studies.ways import Way, made
from lossatlas.sweep.cost import FORWARD

Range = tuple[float, float]


def content(subject: Subject, epoch: int, ways: Sequence[Way], **settings: Any) -> dict[str, Any]:
    """What determines a result along directions: weights, images, directions, settings."""
    own = {"weights": subject.of(epoch), "images": subject.images}
    return {**own, "ways": [dict(way.content) for way in ways], **settings}


def needs(ways: Sequence[Way]) -> tuple[Item, ...]:
    """What the directions are made of."""
    return tuple(item for way in ways for item in way.needs)


def points_of(subject: Subject, reach: Range) -> int:
    """The points of a curve over a range; 0 is one of them, and 1 where the range ends at 2."""
    points = subject.sizes.points
    if reach == (-1.0, 2.0):  # a multiple of three intervals
        return 1 + 3 * ((points - 1) // 2)
    return points if abs(reach[0]) == reach[1] else 1 + (points - 1) // 2


def line(
    subject: Subject,
    epoch: int,
    ways: Sequence[Way],
    reach: Range = (-1.0, 1.0),
    policy: BatchNormPolicy = "eval",
) -> Item:
    """The loss and error along directions from the model of an epoch."""
    points = points_of(subject, reach)
    passes = len(ways) * points * (2 if policy == "recalibrate" else 1)

    def make() -> xr.Dataset:
        objective, classes = subject.objective(epoch, policy), subject.facts.classes
        return slices.line(
            objective, made(ways), a=reach[0], b=reach[1], points=points, classes=classes
        ).to_dataset()

    settings = {"range": list(reach), "points": points, "batchnorm": policy}
    work = passes * FORWARD * subject.images
    return Item("local-line", content(subject, epoch, ways, **settings), work, make, needs(ways))


def surface(subject: Subject, epoch: int, pair: Sequence[Way], reach: float = 1.0) -> Item:
    """The loss on the plane of two directions, made orthogonal."""
    side = subject.sizes.grid

    def make() -> xr.Dataset:
        several = made(pair)
        try:
            first, second = angles.orthogonalised(several)
        except UserError as error:  # they span no plane: of these weights, not of the user
            raise Undefined(str(error)) from error
        extent = ((-reach, reach),) * 2
        found = slices.surface(
            subject.objective(epoch),
            first,
            second,
            extent=(extent[0], extent[1]),
            grid=(side, side),
            classes=subject.facts.classes,
        )
        return found.to_dataset()

    settings = {"reach": reach, "grid": side}
    work = side**2 * FORWARD * subject.images
    return Item("local-surface", content(subject, epoch, pair, **settings), work, make, needs(pair))

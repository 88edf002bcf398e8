"""`connect`, `compare`, `plane`: how two or more models relate."""

from __future__ import annotations

from typing import Annotated

import typer

from lossatlas.cli.output import guarded
from lossatlas.cli.target import Target, targeted


@guarded
@targeted
def connect(
    target: Target,
    *,
    kind: Annotated[str, typer.Option(help="bezier or chain; the straight line is always told too.")] = "bezier",
    bends: Annotated[int, typer.Option(help="Free points between the ends.", min=1)] = 1,
    epochs: Annotated[int, typer.Option(help="Of training the curve.", min=1)] = 50,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.01,
    momentum: Annotated[float, typer.Option(help="Momentum.")] = 0.9,
    l2: Annotated[float, typer.Option(help="Weight decay along the curve.", min=0)] = 5e-4,
    points: Annotated[int, typer.Option(help="Points on every path, the ends included.", min=3)] = 21,
) -> None:
    """Low-loss paths between all pairs of checkpoints, and the straight lines: barrier and mode connectivity."""
    from lossatlas.cli import pair_running

    pair_running.connect(
        target,
        pair_running.Fit(kind=kind, bends=bends, epochs=epochs, lr=lr, momentum=momentum, l2=l2),
        points=points,
    )


@guarded
@targeted
def compare(
    target: Target,
    *,
    mixup_alpha: Annotated[float, typer.Option(help="Of the images that CKA is on; 0: clean ones.", min=0)] = 16.0,
    points: Annotated[int, typer.Option(help="Points on the straight line, the ends included.", min=3)] = 11,
) -> None:
    """Distance, disagreement, divergence, CKA and linear barrier between all pairs of checkpoints."""
    from lossatlas.cli import pair_running

    pair_running.compare(target, mixup_alpha=mixup_alpha, points=points)


@guarded
@targeted
def plane(
    target: Target,
    *,
    margin: Annotated[
        float, typer.Option(help="Shown around the models, as a share of their extent.", min=0)
    ] = 0.2,
    grid: Annotated[tuple[int, int], typer.Option(help="How many points along either axis.")] = (21, 21),
    curve: Annotated[
        str | None,
        typer.Option(
            help="Draw the bezier curve or the chain from the first to the second with the third as bend."
        ),
    ] = None,
) -> None:
    """The loss and error on the plane through three checkpoints, which are marked with their own values."""
    from lossatlas.cli import plane_running

    plane_running.plane(target, margin=margin, grid=grid, curve=curve)

"""What `plane` does with three checkpoints."""

from __future__ import annotations

from typing import cast

import torch

from lossatlas import figures as figures_
from lossatlas import local_results
from lossatlas.cli.local_running import Draw, deliver, partial
from lossatlas.cli.opened import open_target
from lossatlas.cli.output import table
from lossatlas.cli.pair_running import warn_of_eval
from lossatlas.cli.progress import Stages
from lossatlas.cli.target import Target
from lossatlas.errors import UserError
from lossatlas.landscape import planes
from lossatlas.landscape.result import with_error

KINDS = ("bezier", "chain")


def plane(target: Target, *, margin: float, grid: tuple[int, int], curve: str | None) -> None:
    """The loss on the plane through three models, and at each of them."""
    if len(target.weights) != 3:
        raise UserError(f"A plane takes three WEIGHTS; {len(target.weights)} were given.")
    if curve is not None and curve not in KINDS:
        raise UserError(f"--curve {curve!r} is unknown. Allowed are {' and '.join(KINDS)}.")
    opened = open_target(target, at_least=3, batchnorm="recalibrate", needs_finite=True)
    warn_of_eval(opened)
    with Stages() as stages, partial(opened, "plane", [], [margin, grid]) as kept:
        found = planes.plane(
            opened.objective(),
            *opened.thetas,
            margin=margin,
            grid=grid,
            curve=cast("planes.CurveKind | None", curve),
            classes=opened.classes,
            done=dict(kept.done),
            keep=kept.keep,
            progress=stages.stage("plane"),
        )
    quantities = list(found.values)
    unknown = torch.full((len(found.names),), torch.nan)  # of a bare loss
    errors = {name: found.stderrs.get(name, unknown) for name in quantities}
    rows = []
    for k, (name, file) in enumerate(zip(found.names, target.weights, strict=True)):
        alpha, beta = found.coordinates[k].tolist()
        own = [with_error(found.values[q][k].item(), errors[q][k].item()) for q in quantities]
        rows.append([name, file.name, f"{alpha:.4g}", f"{beta:.4g}", *own])
    table(["model", "file", "alpha", "beta", *quantities], rows)
    drawn: dict[str, Draw] = {"plane": figures_.surface, "plane_3d": figures_.surface_3d}
    deliver(opened, "plane", local_results.to_dataset(found), drawn)

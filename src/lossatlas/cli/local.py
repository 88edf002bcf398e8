"""`spectrum`, `line`, `surface`, `mine`: the landscape around one model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lossatlas.cli.output import guarded
from lossatlas.cli.target import Target, targeted

if TYPE_CHECKING:
    from lossatlas.cli.directions import Scale

DirectionOption = Annotated[
    list[str] | None,
    typer.Option(
        help="gaussian[:SEED], gradient, eigen+N, eigen-N, to-checkpoint[:N], pca[:N] or file:PATH; may be "
        "repeated [default: gaussian].",
        metavar="NAME",
    ),
]
ScalingOption = Annotated[
    str | None,
    typer.Option(
        help="To the norm of each: model, layer, filter; or none [default: model for gaussian, else none]."
    ),
]
OneDimensionalOption = Annotated[
    str | None, typer.Option(help="BatchNorm and biases of a scaled direction: zero, rescale or copy.")
]
LeaveOutOption = Annotated[
    str | None, typer.Option(help="Parameters that a direction leaves unmoved, by a regular expression.")
]
TolOption = Annotated[float, typer.Option(help="Residual of an eigenvalue, relative to the largest.", min=0)]
MatvecsOption = Annotated[int, typer.Option(help="Most Hessian-vector products for an estimate.", min=1)]


@guarded
@targeted
def spectrum(
    target: Target,
    *,
    eigenvalues: Annotated[int, typer.Option("--eigenvalues", "-k", help="How many at either end.", min=1)] = 10,
    tol: TolOption = 1e-3,
    max_matvecs: MatvecsOption = 300,
    rel: Annotated[float, typer.Option(help="Relative standard error of the traces.", min=0)] = 0.05,
    probes: Annotated[int, typer.Option(help="Random vectors of the density; 0: no density.", min=0)] = 10,
    steps: Annotated[int, typer.Option(help="Lanczos steps of each.", min=1)] = 50,
) -> None:
    """Hessian eigenvalues at both ends, trace, trace of the square, spectral density, with their errors."""
    from lossatlas.cli import local_running

    local_running.spectrum(
        target, eigenvalues=eigenvalues, tol=tol, max_matvecs=max_matvecs, rel=rel, probes=probes, steps=steps
    )


@guarded
@targeted
def line(
    target: Target,
    *,
    direction: DirectionOption = None,
    scaling: ScalingOption = None,
    one_dimensional: OneDimensionalOption = None,
    leave_out: LeaveOutOption = None,
    extent: Annotated[tuple[float, float], typer.Option("--range", help="From and to which lambda.")] = (
        -1.0,
        1.0,
    ),
    points: Annotated[int, typer.Option(help="How many points.", min=2)] = 41,
    tolerance: Annotated[float, typer.Option(help="Least depth of a valley that counts, in nats.", min=0)] = 1e-5,
    tol: TolOption = 1e-3,
    max_matvecs: MatvecsOption = 300,
) -> None:
    """The loss and error along one or several directions, with the class of every curve."""
    from lossatlas.cli import local_running

    local_running.line(
        target,
        directions=direction or ["gaussian"],
        scale=_scale(scaling, one_dimensional, leave_out, tol, max_matvecs),
        extent=extent,
        points=points,
        tolerance=tolerance,
    )


@guarded
@targeted
def surface(
    target: Target,
    *,
    direction: DirectionOption = None,
    scaling: ScalingOption = None,
    one_dimensional: OneDimensionalOption = None,
    leave_out: LeaveOutOption = None,
    extent: Annotated[
        tuple[float, float] | None,
        typer.Option(
            "--range", help="Along the first direction, and the second [default: -1 1; pca: all WEIGHTS]."
        ),
    ] = None,
    second_range: Annotated[
        tuple[float, float] | None, typer.Option(help="Along the second direction, if it is another one.")
    ] = None,
    grid: Annotated[tuple[int, int], typer.Option(help="How many points along either.")] = (21, 21),
    orthogonal: Annotated[
        bool, typer.Option("--orthogonal", help="Make the second orthogonal to the first.")
    ] = False,
    tol: TolOption = 1e-3,
    max_matvecs: MatvecsOption = 300,
) -> None:
    """The loss and error on a plane through the model; further WEIGHTS are projected onto it."""
    from lossatlas.cli import local_running

    local_running.surface(
        target,
        directions=direction or ["gaussian", "gaussian"],
        scale=_scale(scaling, one_dimensional, leave_out, tol, max_matvecs),
        extent=extent,
        second_extent=second_range,
        grid=grid,
        orthogonal=orthogonal,
    )


@guarded
@targeted
def mine(
    target: Target,
    *,
    algorithm: Annotated[str, typer.Option(help="w-peak or vvv-basin.")] = "w-peak",
    epochs: Annotated[int, typer.Option(help="Of the search.", min=1)] = 20,
    lr: Annotated[float, typer.Option(help="Learning rate of the search.")] = 0.02,
    momentum: Annotated[float, typer.Option(help="Momentum of the search.")] = 0.0,
    start: Annotated[float, typer.Option(help="w-peak: standard deviation of the first direction.")] = 1e-3,
    gamma: Annotated[float, typer.Option(help="vvv-basin: weight of the loss between the two ends.")] = 0.5,
    half_width: Annotated[float, typer.Option(help="vvv-basin: lambda is drawn from 1/2 +- this.")] = 0.1,
    extent: Annotated[
        tuple[float, float] | None,
        typer.Option("--range", help="Of the curve [default: -1 1; vvv-basin: -1 2]."),
    ] = None,
    points: Annotated[int | None, typer.Option(help="Of the curve [default: one every 0.05].", min=2)] = None,
    tolerance: Annotated[float, typer.Option(help="Least depth of a valley that counts, in nats.", min=0)] = 1e-5,
    eigenvalues: Annotated[
        int,
        typer.Option("--eigenvalues", "-k", help="Eigenvectors at either end to compare with; 0: none.", min=0),
    ] = 10,
    tol: TolOption = 1e-3,
    max_matvecs: MatvecsOption = 300,
) -> None:
    """Search a direction along which the loss has a wanted shape, and check it on data not used in the search."""
    from lossatlas.cli import mining_running

    mining_running.mine(
        target,
        mining_running.Search(
            algorithm=algorithm,
            epochs=epochs,
            lr=lr,
            momentum=momentum,
            start=start,
            gamma=gamma,
            half_width=half_width,
        ),
        extent=extent,
        points=points,
        tolerance=tolerance,
        eigenvalues=eigenvalues,
        tol=tol,
        max_matvecs=max_matvecs,
    )


def _scale(
    scaling: str | None, one_dimensional: str | None, leave_out: str | None, tol: float, max_matvecs: int
) -> Scale:
    from lossatlas.cli.directions import Scale

    return Scale(scaling, one_dimensional, leave_out, tol, max_matvecs)

"""What `spectrum`, `line` and `surface` do with what they were given."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor

from lossatlas import figures as figures_
from lossatlas import local_results
from lossatlas.cli.directions import Scale, Watched, extremal, named
from lossatlas.cli.opened import Opened, at_center, open_target
from lossatlas.cli.output import note, say
from lossatlas.cli.partial import Partial
from lossatlas.cli.progress import Stages
from lossatlas.cli.target import Target
from lossatlas.errors import UserError
from lossatlas.landscape import slices
from lossatlas.landscape.angles import orthogonalised
from lossatlas.landscape.density import Density, density
from lossatlas.landscape.directions import Direction
from lossatlas.landscape.hutchinson import MIN_PROBES, TraceEstimate
from lossatlas.landscape.lanczos import Eigenpairs
from lossatlas.landscape.moments import TraceOfSquare, trace_of_square
from lossatlas.landscape.operators import hessian
from lossatlas.landscape.result import with_error
from lossatlas.landscape.shapes import Monotony, curve_shape, gmi, mli
from lossatlas.landscape.surface_shapes import surface_shape
from lossatlas.landscape.trace import trace
from lossatlas.landscape.trajectories import Trajectory, project
from lossatlas.seeding import derive

Draw = Callable[[xr.Dataset], Figure]
Interval = tuple[float, float]

FURTHER = ("to-checkpoint", "pca")  # directions that lead to further WEIGHTS
MARGIN = 0.2  # of a trajectory's extent, shown around it


def spectrum(
    target: Target, *, eigenvalues: int, tol: float, max_matvecs: int, rel: float, probes: int, steps: int
) -> None:
    """Eigenvalues at both ends, traces, density."""
    needed = max(2 * eigenvalues, MIN_PROBES)
    if max_matvecs < needed:
        raise UserError(
            f"--max-matvecs {max_matvecs} is too few for {eigenvalues} eigenvalues at either end and the random "
            f"vectors of the traces, {MIN_PROBES} of them. Give at least {needed}."
        )
    opened = open_target(target, at_most=1)
    objective = opened.objective()
    operator = hessian(objective)
    with Stages() as stages:

        def watched(name: str, budget: int) -> Watched:
            return Watched(operator, budget, stages.stage(name))

        pairs = extremal(
            watched("eigenvalues", max_matvecs),
            eigenvalues,
            "both",
            tol=tol,
            max_matvecs=max_matvecs,
            seed=target.seed,
        )
        tr = trace(objective, rel=rel, max_matvecs=max_matvecs, seed=derive(target.seed, "trace"))
        square = trace_of_square(
            watched("trace of the square", max_matvecs),
            rel=rel,
            max_matvecs=max_matvecs,
            seed=derive(target.seed, "trace of the square"),
        )
        slq = None
        if probes:
            seed = derive(target.seed, "density")
            slq = density(watched("density", probes * steps), probes=probes, steps=steps, seed=seed)
    parts = [f"largest eigenvalue {pairs.eigenvalues[0]:.4g} (residual {pairs.residuals[0]:.2g})"]
    parts += [f"smallest {pairs.eigenvalues[eigenvalues]:.4g} (residual {pairs.residuals[eigenvalues]:.2g})"]
    data = "" if math.isnan(tr.data_stderr) else f", +- {tr.data_stderr:.2g} over the data"
    parts += [f"trace {with_error(tr.value, tr.stderr)} ({tr.method}{data})"]
    if slq is not None:
        parts += [f"share of eigenvalues {slq.signs()}"]
    say("; ".join(parts))
    _note_shortfalls(pairs, tr, square, slq, max_matvecs, rel)
    drawn: dict[str, Draw | None] = {
        "spectrum": figures_.spectrum,
        "density": None if slq is None else figures_.density,
    }
    deliver(opened, "spectrum", local_results.spectrum(pairs, tr, square, slq), drawn)


def _note_shortfalls(
    pairs: Eigenpairs, tr: TraceEstimate, square: TraceOfSquare, slq: Density | None, max_matvecs: int, rel: float
) -> None:
    """What of a spectrum could not be had, and the way out, every cause once."""
    if not bool(pairs.eigenvalues.isfinite().all()) or (slq is not None and slq.status != "ok"):
        note("Products with the Hessian are not finite here: no eigenvalues, random traces or density.")
        return
    short = [] if not pairs.reason else [f"eigenvalues to --tol {pairs.tol:g}"]
    traces = (("trace", tr), ("trace of the square", square))
    short += [f"{name} to --rel {rel:g}" for name, found in traces if not found.converged]
    if short:
        note(f"Not reached within --max-matvecs {max_matvecs}: {', '.join(short)}. Raise the one or the other.")
    if tr.converged and tr.reason:
        note(f"trace: {tr.reason}")


def line(
    target: Target, *, directions: Sequence[str], scale: Scale, extent: Interval, points: int, tolerance: float
) -> None:
    """The loss along lines, and the class of every curve."""
    opened = open_target(target)
    if len(opened.models) > 1 and not any(name.startswith(FURTHER) for name in directions):
        note(f"The further WEIGHTS are not looked at: no --direction is {' or '.join(FURTHER)}.")
    objective = opened.objective()
    classes = opened.classes
    with Stages() as stages:
        along = named(opened, objective, directions, scale, stages.stage("eigenvectors"))
        with partial(opened, "line", along, [extent, points]) as kept:
            curve = slices.line(
                objective,
                along,
                a=extent[0],
                b=extent[1],
                points=points,
                classes=classes,
                done=dict(kept.done),
                keep=kept.keep,
                progress=stages.stage("line"),
            )
    center, parts, shapes = at_center(objective)["loss"], [], []
    has_model = 0.0 in curve.positions.tolist()
    if not has_model:
        note(
            "No classes of the curves: lambda = 0, the model, is none of their points. Give a --range around 0 "
            "and --points that meet it, such as an odd number on both sides alike."
        )
    rows = zip(directions, along, curve.values["loss"], strict=True)
    for name, direction, losses in rows if has_model else ():
        shape = curve_shape(curve.positions, losses, tolerance=tolerance, guessing=curve.guessing)
        told = [f"{direction.name}: {shape.kind} ({shape.reason or f'{shape.count} stationary'})"]
        kept_shape = {"direction": direction.name, "kind": shape.kind, "stationary": shape.count}
        for law, found in _monotony(name, direction, curve.positions, losses, tolerance).items():
            if found.status != "ok":
                continue  # the curve's own reason says so
            told.append(f"{law.upper()} {'holds' if found.holds else 'does not hold'} (margin {found.margin:.3g})")
            kept_shape |= {law: found.holds, f"{law}_margin": found.margin}
        parts.append(", ".join(told))
        shapes.append(kept_shape)
    say("; ".join([f"loss {with_error(center.value, center.stderr)} at lambda = 0", *parts]))
    dataset = local_results.to_dataset(curve)
    dataset = dataset.assign_attrs(center_loss_se=center.stderr, shapes=json.dumps(shapes), tolerance=tolerance)
    deliver(opened, "line", dataset, {"line": figures_.line})


def _monotony(
    name: str, direction: Direction, positions: Tensor, losses: Tensor, tolerance: float
) -> dict[str, Monotony]:
    """GMI of a Gaussian direction; MLI of the whole way from another checkpoint (lambda = 1) to the model."""
    if name.startswith("gaussian") and positions[0] < 0 < positions[-1]:
        return {"gmi": gmi(positions, losses, tolerance=tolerance)}
    if name.startswith("to-checkpoint") and direction.scaling == "none" and 1.0 in positions.tolist():
        way = (positions >= 0) & (positions <= 1)
        return {"mli": mli(-positions[way].flip(0), losses[way].flip(0), tolerance=tolerance)}
    return {}


def surface(
    target: Target,
    *,
    directions: Sequence[str],
    scale: Scale,
    extent: Interval | None,
    second_extent: Interval | None,
    grid: tuple[int, int],
    orthogonal: bool,
) -> None:
    """The loss on a plane, its shape at the model, and the way of further checkpoints on it."""
    if len(directions) != 2:
        raise UserError(f"A surface takes two directions; --direction was given {len(directions)} times.")
    opened = open_target(target, needs_finite=True)
    objective = opened.objective()
    with Stages() as stages:
        along = named(opened, objective, directions, scale, stages.stage("eigenvectors"))
        along = orthogonalised(along) if orthogonal else along
        way = (
            project(objective, (*opened.thetas[1:], opened.thetas[0]), *along) if len(opened.models) > 1 else None
        )
        follows = way is not None and extent is None and all(name.startswith("pca") for name in directions)
        both = _around(way) if way is not None and follows else _extents(extent, second_extent)
        with partial(opened, "surface", along, [both, grid]) as kept:
            found = slices.surface(
                objective,
                *along,
                extent=both,
                grid=grid,
                classes=opened.classes,
                done=dict(kept.done),
                keep=kept.keep,
                progress=stages.stage("surface"),
            )
    center = at_center(objective)["loss"]
    parts = [f"loss {with_error(center.value, center.stderr)} at the model", f"cosine {found.cosine:.2g}"]
    if min(grid) >= 3 and all(low <= 0 <= high for low, high in both):
        lengths = (along[0].norm, along[1].norm)  # curvatures per squared length in parameter space
        shape = surface_shape(found.alphas, found.betas, found.values["loss"], lengths=lengths)
        curvatures = f"curvatures {_curvatures(shape.eigenvalues, shape.stderr)} nat per unit length squared"
        parts += [f"{shape.kind}: {curvatures}"] if shape.status == "ok" else []
        parts += [shape.reason] if shape.reason else []
    dataset = local_results.to_dataset(found).assign_attrs(center_loss_se=center.stderr)
    if way is not None:
        dataset = dataset.merge(local_results.to_dataset(way), combine_attrs="no_conflicts")
        parts.append(f"the plane holds {100 * way.share:.3g}% of the checkpoints' squared distances")
    say("; ".join(parts))
    deliver(opened, "surface", dataset, {"surface": figures_.surface, "surface_3d": figures_.surface_3d})


def deliver(opened: Opened, name: str, dataset: xr.Dataset, draw: Mapping[str, Draw | None]) -> None:
    """Write the results, then the figures drawn of them (None: not this time), and say where they are."""
    out = opened.target.out
    if opened.classes is None:
        dataset = _without_nats(dataset)
    dataset = local_results.save(dataset, out / f"{name}.nc", attrs=opened.provenance(name))
    say(f"results: {out / f'{name}.nc'}")
    for stem, function in draw.items():
        try:
            figure = None if function is None else function(dataset)
        except UserError as error:  # as where nothing is finite: the results say so and are kept
            note(f"no figure {stem}: {error}")
            figure = None
        if figure is None:
            _note_old(out, stem)
            continue
        for path in figures_.save(figure, out / stem):
            say(f"figure: {path}")


def partial(opened: Opened, name: str, along: Sequence[Direction], grid: Any) -> Partial:
    """The points of this very slice that an earlier call has left."""
    content = [opened.provenance(name), [vars(direction.info) for direction in along], grid]
    found = Partial(Path(opened.target.out) / f".{name}-partial.json", content)
    if found.done:
        note(f"{len(found.done)} points were finished before.")
    if found.dropped:
        note(
            f"{found.dropped} points of another {name} that was broken off (other weights, grid or options) are "
            f"given up; another --out than {opened.target.out} would have kept them."
        )
    return found


def _without_nats(dataset: xr.Dataset) -> xr.Dataset:
    """A loss of one's own on data without classes is in units of its own."""
    for array in dataset.variables.values():
        if array.attrs.get("units") in ("nat", "nat^2"):
            array.attrs["units"] = "1"
    return dataset


def _note_old(out: Path, stem: str) -> None:
    old = [path.name for path in (out / f"{stem}.pdf", out / f"{stem}.png") if path.exists()]
    if old:
        note(f"{' and '.join(old)} in {out} are of an earlier call.")


def _extents(first: Interval | None, second: Interval | None) -> tuple[Interval, Interval]:
    first = first or (-1.0, 1.0)
    return first, second or first


def _around(way: Trajectory) -> tuple[Interval, Interval]:
    """The extent of a trajectory with a margin, on numbers of two digits."""
    ends = []
    for column in way.coordinates.T.tolist():
        low, high = min(column), max(column)
        reach = MARGIN * (high - low)
        ends.append((float(f"{low - reach:.1e}"), float(f"{high + reach:.1e}")))
    return ends[0], ends[1]


def _curvatures(values: tuple[float, float], errors: tuple[float, float]) -> str:
    return ", ".join(with_error(value, error) for value, error in zip(values, errors, strict=True))

"""What `mine` does: the search, the curves on both data, what the shape is worth."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import safetensors.numpy
import torch
import xarray as xr
from torch import Tensor

from lossatlas import figures as figures_
from lossatlas import files, local_results, probe_results
from lossatlas.cli.directions import Watched, extremal
from lossatlas.cli.local_running import deliver
from lossatlas.cli.opened import Opened, Part, open_target
from lossatlas.cli.output import note, say
from lossatlas.cli.progress import Stages
from lossatlas.cli.target import Target
from lossatlas.errors import UserError
from lossatlas.landscape import mining, mining_checks, slices
from lossatlas.landscape.descent import has_batchnorm
from lossatlas.landscape.directions import Direction, given
from lossatlas.landscape.estimate import Estimate
from lossatlas.landscape.lanczos import Eigenpairs
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.operators import hessian
from lossatlas.landscape.parameters import flat_parameters
from lossatlas.landscape.result import with_error
from lossatlas.landscape.shapes import CURVE_GRIDS, CurveShape, curve_shape
from lossatlas.seeding import derive

OTHER: dict[str, Part] = {"train": "test", "test": "train"}
SCALES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # at which the direction is set against the most negative eigenvector


@dataclass(frozen=True)
class Search:
    """The hyper-parameters of Algorithms 1 and 2 of [Xu2024]."""

    algorithm: str
    epochs: int
    lr: float
    momentum: float
    start: float
    gamma: float
    half_width: float


def mine(
    target: Target,
    search: Search,
    *,
    extent: tuple[float, float] | None,
    points: int | None,
    tolerance: float,
    eigenvalues: int,
    tol: float,
    max_matvecs: int,
) -> None:
    """A direction of the wanted shape, its curve on the data of the search and on held-out data."""
    if search.algorithm not in ("w-peak", "vvv-basin"):
        raise UserError(f"--algorithm {search.algorithm!r} is unknown. Allowed are w-peak and vvv-basin.")
    opened = open_target(target, at_most=1, needs_finite=True)
    if opened.policy == "recalibrate" and has_batchnorm(opened.models[0]):
        raise UserError(
            "--batchnorm recalibrate would take a pass over the data at every step of the search. Give "
            "--batchnorm eval or batch."
        )
    here, there = opened.objective(), opened.objective(part=OTHER[opened.part])
    with Stages() as stages:
        mined = _searched(opened, here, search, stages.stage("mining"))
        if mined.status != "ok":
            note(f"The search ended early: {mined.reason}.")
        direction = given(here, mined.vector, name=f"mined {search.algorithm}", seed=mined.seed)
        curves = [
            _curve(opened, objective, direction, search, extent, points, stages.stage(f"curve, {name} data"))
            for name, objective in (("mining", here), ("held-out", there))
        ]
        pairs = None
        if eigenvalues:
            operator = Watched(hessian(here), max_matvecs, stages.stage("eigenvectors"))
            pairs = extremal(operator, eigenvalues, "both", tol=tol, max_matvecs=max_matvecs, seed=target.seed)
    shapes = [
        curve_shape(c.positions, c.values["loss"][0], tolerance=tolerance, guessing=c.guessing) for c in curves
    ]
    dataset = _dataset(mined, curves, shapes).assign_attrs(tolerance=tolerance)
    status, text = _survival(here, there, mined.vector, curves[0], shapes, search.algorithm)
    dataset.attrs["status"] = status
    parts = [f"{shapes[0].kind} on the data of the search, {shapes[1].kind} on held-out data: {status}", text]
    if pairs is not None:
        parts.append(_beside_eigenvectors(dataset, here, mined, pairs))
    say("; ".join(part for part in parts if part))
    _write_direction(opened, here, mined.vector)
    deliver(opened, "mined", dataset, {"mined": figures_.mined})


def _searched(
    opened: Opened, objective: Objective, search: Search, progress: Callable[[int, int], None]
) -> mining.MinedDirection:
    target = opened.target
    samples = opened.samples(opened.part, opened.images)
    seed = derive(target.seed, "mining")

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.Generator().manual_seed(derive(target.seed, f"order of epoch {epoch}"))
        return samples.shuffled(target.batch_size, order, drop_last=False)

    def told(epoch: int, _loss: float) -> None:
        progress(epoch + 1, search.epochs)

    if search.algorithm == "w-peak":
        return mining.mine_w_peak(
            objective,
            batches,
            seed=seed,
            epochs=search.epochs,
            lr=search.lr,
            momentum=search.momentum,
            start=search.start,
            progress=told,
        )
    return mining.mine_vvv_basin(
        objective,
        batches,
        flat_parameters(opened.fresh(seed)),
        seed=seed,
        gamma=search.gamma,
        half_width=search.half_width,
        epochs=search.epochs,
        lr=search.lr,
        momentum=search.momentum,
        progress=told,
    )


def _curve(
    opened: Opened,
    objective: Objective,
    direction: Direction,
    search: Search,
    extent: tuple[float, float] | None,
    points: int | None,
    progress: Callable[[int, int], None],
) -> slices.Curve:
    low, high, _ = CURVE_GRIDS[search.algorithm]
    low, high = extent or (low, high)
    count = points or max(2, round((high - low) / 0.05) + 1)
    classes = opened.classes
    return slices.line(objective, direction, a=low, b=high, points=count, classes=classes, progress=progress)


def _dataset(mined: mining.MinedDirection, curves: list[slices.Curve], shapes: list[CurveShape]) -> xr.Dataset:
    both = [local_results.to_dataset(curve) for curve in curves]
    dataset = xr.concat(
        both, dim="data", data_vars=["loss", *({"error"} & set(both[0]))], combine_attrs="override"
    )
    dataset = dataset.assign_coords(data=["mining", "held-out"])
    dataset = dataset.merge(local_results.to_dataset(mined), combine_attrs="no_conflicts")
    found = [
        {"data": name, "kind": s.kind, "stationary": s.count}
        for name, s in zip(dataset["data"].values.tolist(), shapes, strict=True)
    ]
    return dataset.assign_attrs(shapes=json.dumps(found))


def _survival(
    here: Objective,
    there: Objective,
    vector: Tensor,
    curve: slices.Curve,
    shapes: list[CurveShape],
    algorithm: str,
) -> tuple[str, str]:
    """Whether the shape is there on held-out data too; for w-peak by the falls and their standard errors."""
    if not all(bool(vector.isfinite().all()) and shape.status == "ok" for shape in shapes):
        return "non-finite", ""
    if algorithm == "vvv-basin":
        found = [shape.kind == algorithm for shape in shapes]
        return ("survives" if all(found) else "mining-only" if found[0] else "no-shape"), ""
    grid, losses = curve.positions, curve.values["loss"][0]
    sides = [torch.where(side, losses, torch.inf).argmin() for side in (grid < 0, grid > 0)]
    survival = mining_checks.survives(here, there, vector, grid[torch.stack(sides)])
    falls = ((name, fall) for name, fall in (("", survival.mining_fall), ("held-out ", survival.held_out_fall)))
    text = "; ".join(f"{name}fall {_told(fall.left)} left, {_told(fall.right)} right" for name, fall in falls)
    return survival.status, text


def _beside_eigenvectors(
    dataset: xr.Dataset, objective: Objective, mined: mining.MinedDirection, pairs: Eigenpairs
) -> str:
    """Add cosines, and for a w-peak how much lower the loss is than along the most negative eigenvector."""
    found = mining_checks.alignment(mined.vector, pairs)
    dataset.update(local_results.to_dataset(found))
    text = (
        f"projection on {len(pairs.eigenvalues)} eigenvectors {found.projection:.2g} (chance {found.chance:.2g})"
    )
    lowest = pairs.eigenvectors[:, len(pairs.eigenvalues) // 2]
    if mined.algorithm != "w-peak" or not bool(mined.vector.isfinite().all() & lowest.isfinite().all()):
        return text
    beside = mining_checks.compare(objective, mined.vector, lowest, SCALES)
    estimator = "loss along the most negative eigenvector - loss along the direction, mean of both sides"
    probe_results.put_advantages(dataset, beside, estimator)
    best = beside.best_advantage
    told, side = with_error(abs(best.value), best.stderr), "lower" if best.value >= 0 else "higher"
    return f"{text}; {told} {side} than along the most negative eigenvector"


def _write_direction(opened: Opened, objective: Objective, vector: Tensor) -> None:
    """The direction by the names of the parameters: what `--direction file:PATH` reads."""
    named = {name: t.cpu().numpy() for name, t in objective.layout.unflatten(vector).items()}
    path = opened.target.out / "mined.safetensors"
    files.write_file(path, safetensors.numpy.save(named))
    say(f"direction: {path}")


def _told(estimate: Estimate) -> str:
    return with_error(estimate.value, estimate.stderr)

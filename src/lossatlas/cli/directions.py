"""Directions by their names on the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import cast

import torch

from lossatlas.cli.opened import Opened
from lossatlas.cli.output import note
from lossatlas.errors import UserError
from lossatlas.landscape.directions import (
    Direction,
    OneDimensional,
    Scaling,
    difference,
    eigenvectors,
    gaussian,
    given,
    negative_gradient,
)
from lossatlas.landscape.lanczos import Eigenpairs, Which, eigenpairs
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.operators import SymmetricOperator, hessian
from lossatlas.landscape.trajectories import principal_components
from lossatlas.measures.models import BASIS_BYTES
from lossatlas.seeding import derive
from lossatlas.tasks import weights

GRAMMAR = (
    "gaussian, gaussian:SEED, gradient (the negative gradient), eigen+N, eigen-N (the N-th largest or smallest), "
    "to-checkpoint, to-checkpoint:N (the N-th of the further WEIGHTS), pca, pca:N (their N-th principal "
    "component), "
    "file:PATH (a safetensors file with a tensor for every parameter, as `lossatlas mine` writes)"
)
_NAME = re.compile(r"(gaussian|to-checkpoint|pca)(?::(\d+))?|(gradient)|(eigen[+-])([1-9]\d*)|(file):(.+)")


@dataclass(frozen=True)
class Scale:
    """How directions are scaled, and what it costs at most to find eigenvectors."""

    scaling: str | None
    one_dimensional: str | None
    leave_out: str | None
    tol: float
    max_matvecs: int


@dataclass(frozen=True)
class _Name:
    kind: str
    argument: str  # a number, a path, or nothing

    @property
    def number(self) -> int:
        return int(self.argument) if self.argument.isdigit() else 1


class Watched:
    """A symmetric operator that tells how many products were taken, of how many at most."""

    def __init__(self, inner: SymmetricOperator, budget: int, progress: Callable[[int, int], None]) -> None:
        self._inner, self._budget, self._progress, self._done = inner, budget, progress, 0
        self.size, self.dtype, self.device = inner.size, inner.dtype, inner.device

    def __matmul__(self, vectors: torch.Tensor, /) -> torch.Tensor:
        product = self._inner @ vectors
        self._done += 1 if vectors.dim() == 1 else vectors.shape[1]
        self._progress(min(self._done, self._budget), self._budget)
        return product


def extremal(
    operator: SymmetricOperator, k: int, which: Which, *, tol: float, max_matvecs: int, seed: int
) -> Eigenpairs:
    """Eigenpairs with a basis of a gigabyte at most."""
    numbers = BASIS_BYTES // (operator.size * torch.finfo(operator.dtype).bits // 8)
    return eigenpairs(
        operator,
        k,
        which=which,
        tol=tol,
        max_matvecs=max_matvecs,
        max_basis=max(20 * k, numbers),
        seed=derive(seed, "eigenpairs"),
    )


def named(
    opened: Opened,
    objective: Objective,
    names: Sequence[str],
    scale: Scale,
    progress: Callable[[int, int], None],
) -> list[Direction]:
    """The directions of these names, in their order; raises UserError for unknown names and what they lack."""
    wanted = [_parsed(text, opened) for text in names]
    ends: dict[str, Which] = {"eigen+": "largest", "eigen-": "smallest"}
    ready: dict[str, list[Direction]] = {}  # what is found together
    for kind in {name.kind for name in wanted}:
        most = max(name.number for name in wanted if name.kind == kind)
        if kind in ends:
            ready[kind] = _eigenvectors(opened, objective, most, ends[kind], scale, progress)
        elif kind == "pca":
            ready[kind] = _components(opened, objective, most)
    seeds = count(opened.target.seed)
    found = []
    for name in wanted:
        if name.kind == "gaussian":
            seed = int(name.argument) if name.argument else next(seeds)
            direction = gaussian(objective, seed=seed, scaling="none")
        elif name.kind == "gradient":
            direction = negative_gradient(objective)
        elif name.kind == "to-checkpoint":
            direction = _to_checkpoint(opened, objective, name.number)
        elif name.kind == "file":
            direction = _from_file(objective, Path(name.argument))
        else:
            direction = ready[name.kind][name.number - 1]
        found.append(_scaled(objective, direction, scale, "model" if name.kind == "gaussian" else "none"))
    return found


def _parsed(text: str, opened: Opened) -> _Name:
    match = _NAME.fullmatch(text)
    if match is None:
        raise UserError(f"--direction {text!r} is unknown. Allowed are {GRAMMAR}.")
    groups = [group for group in match.groups() if group is not None]
    name = _Name(groups[0], groups[1] if len(groups) > 1 else "")
    further = len(opened.models) - 1
    most = {"to-checkpoint": further, "pca": further}.get(name.kind)
    if most is not None and not 1 <= name.number <= most:
        raise UserError(
            f"--direction {text} needs {max(name.number, 1)} or more WEIGHTS beside the model's own; {further} "
            "were given. Numbers count from 1."
        )
    return name


def _eigenvectors(
    opened: Opened,
    objective: Objective,
    k: int,
    which: Which,
    scale: Scale,
    progress: Callable[[int, int], None],
) -> list[Direction]:
    operator = Watched(hessian(objective), scale.max_matvecs, progress)
    seed = opened.target.seed
    pairs = extremal(operator, k, which, tol=scale.tol, max_matvecs=scale.max_matvecs, seed=seed)
    if pairs.reason:
        note(f"{which} eigenvectors: {pairs.reason}")
    return eigenvectors(objective, pairs)


def _components(opened: Opened, objective: Objective, k: int) -> list[Direction]:
    """Of the way through the further checkpoints to the model itself, seen from the model."""
    return principal_components(objective, (*opened.thetas[1:], opened.thetas[0]), k)


def _to_checkpoint(opened: Opened, objective: Objective, number: int) -> Direction:
    name = f"to {opened.checkpoints[number].path.stem}"
    return difference(objective, opened.thetas[number], name=name)


def _from_file(objective: Objective, path: Path) -> Direction:
    found = weights.fitted(weights.read(path), objective.layout.names)
    shapes = dict(zip(objective.layout.names, objective.layout.shapes, strict=True))
    wrong = [
        n
        for n in shapes.keys() | found.tensors.keys()
        if shapes.get(n) != getattr(found.tensors.get(n), "shape", None)
    ]
    if wrong:
        raise UserError(
            f"{path} is no direction of this model: {len(wrong)} of its tensors are missing, unexpected or of "
            f"another shape ({', '.join(sorted(wrong)[:5])})."
        )
    vector = objective.layout.flatten(found.tensors)
    return given(objective, vector, name=path.stem, details={"sha256": found.sha256})


def _scaled(objective: Objective, raw: Direction, scale: Scale, default: str) -> Direction:
    scaling = scale.scaling or default
    direction = given(
        objective,
        raw.vector,
        name=raw.name,
        scaling=cast("Scaling", scaling),
        one_dimensional=cast("OneDimensional | None", scale.one_dimensional),
        leave_out=scale.leave_out,
        seed=raw.seed,
        details=raw.details,
    )
    if raw.norm > 0 and direction.norm == 0:
        raise UserError(
            f"--scaling {scaling}, --one-dimensional and --leave-out leave nothing of the direction {raw.name}. "
            "Leave out less."
        )
    return direction

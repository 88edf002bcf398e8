"""Directions in parameter space: where they come from, how long they are, how they are scaled.

A slice runs along theta + lambda d, so the length of d belongs to d: every direction says its norm, also in units
of ||theta||. BatchNorm statistics are buffers, not parameters, and are never part of a direction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lossatlas.errors import UserError
from lossatlas.landscape import batches as split
from lossatlas.landscape.batches import Batch
from lossatlas.landscape.lanczos import Eigenpairs
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.parameters import Layout
from lossatlas.landscape.random_state import preserved_rng
from lossatlas.seeding import derive

Scaling = Literal["none", "model", "layer", "filter"]
OneDimensional = Literal["zero", "rescale", "copy"]


@dataclass(frozen=True, kw_only=True)
class DirectionInfo:
    """What is known of a direction beside its vector: what a result keeps of it."""

    name: str
    norm: float  # l2
    relative: float  # ||d|| / ||theta||: the distance of lambda = 1 in units of the parameters' norm
    scaling: Scaling
    one_dimensional: OneDimensional
    seed: int | None = None
    details: Mapping[str, float | str] = field(default_factory=dict)  # eigenvalue, share of variance, ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Direction(DirectionInfo):
    """A vector of parameter space with its name, length and origin."""

    vector: Tensor  # (n,), in the objective's dtype and on its device

    def __repr__(self) -> str:
        return f"Direction({self.name}: length {self.norm:.4g}, {self.relative:.4g} ||theta||)"

    @property
    def info(self) -> DirectionInfo:
        """All but the vector."""
        return DirectionInfo(**{name: getattr(self, name) for name in DirectionInfo.__dataclass_fields__})


def vector_of(direction: Tensor | Direction) -> Tensor:
    """(n,): the vector itself, or that of a Direction; raises UserError for anything else."""
    vector = direction.vector if isinstance(direction, Direction) else direction
    if not isinstance(vector, Tensor):
        raise UserError(
            f"A direction is a Direction or a tensor (n,), not a {type(vector).__name__}. Of parameters by name, "
            "as a state_dict, objective.layout.flatten makes the vector."
        )
    return vector


def given(
    objective: Objective,
    vector: Tensor,
    *,
    name: str,
    theta: Tensor | None = None,
    scaling: Scaling = "none",
    one_dimensional: OneDimensional | None = None,
    leave_out: str | None = None,
    seed: int | None = None,
    details: Mapping[str, float | str] | None = None,
) -> Direction:
    """The direction of a vector (n,), scaled as `scaled` says at theta (default: the objective's centre).

    The caller's vector is copied, never changed. Raises UserError for a vector of another size.
    """
    theta = _center(objective, theta)
    vector = _fitting(objective, vector, "The vector of a direction")
    kept = _one_dimensional(scaling, one_dimensional)
    vector = scaled(vector, theta, objective.layout, scaling, one_dimensional=kept, leave_out=leave_out)
    norm = _norm(vector)
    return Direction(
        vector=vector,
        name=name,
        norm=norm.item(),
        relative=(norm / _norm(theta)).item(),  # infinite at theta = 0
        scaling=scaling,
        one_dimensional=kept,
        seed=seed,
        details=dict(details or {}),
    )


def gaussian(
    objective: Objective,
    *,
    seed: int,
    theta: Tensor | None = None,
    scaling: Scaling = "model",
    one_dimensional: OneDimensional | None = None,
    leave_out: str | None = None,
) -> Direction:
    """A standard normal vector, scaled to the norm of the parameters [Xu2024], or per layer or filter [Li 2018].

    Drawn in float64 on the CPU, so that a seed gives the same direction in every dtype and on every device.
    """
    generator = torch.Generator().manual_seed(derive(seed, "gaussian direction"))
    drawn = torch.randn(objective.layout.size, generator=generator, dtype=torch.float64)
    return given(
        objective,
        drawn,
        name=f"gaussian {seed}",
        theta=theta,
        scaling=scaling,
        one_dimensional=one_dimensional,
        leave_out=leave_out,
        seed=seed,
    )


def negative_gradient(
    objective: Objective, *, theta: Tensor | None = None, batch: Batch | None = None, scaling: Scaling = "none"
) -> Direction:
    """-dL/dtheta of the mean loss over all data or, given a `batch` in the data's format, over that alone.

    BatchNorm follows the objective's policy, its re-estimated statistics held fixed. Cost: one gradient.
    """
    theta = _center(objective, theta)
    if batch is None:
        return given(objective, -objective.gradient(theta), name="negative gradient", theta=theta, scaling=scaling)
    point = theta.clone().requires_grad_()
    moved = split.move(batch, objective.dtype, objective.device)
    with torch.enable_grad(), preserved_rng(objective.device):
        total, count = objective.loss_sum(objective.layout.unflatten(point), objective.buffers(theta), moved)
        gradient = torch.autograd.grad(total, point)[0] / count
    return given(
        objective,
        -gradient,
        name="negative batch gradient",
        theta=theta,
        scaling=scaling,
        details={"samples": count},
    )


def difference(
    objective: Objective,
    end: Tensor,
    *,
    start: Tensor | None = None,
    theta: Tensor | None = None,
    name: str = "to checkpoint",
    scaling: Scaling = "none",
) -> Direction:
    """The step `end` - `start` between checkpoints (n,); unscaled, from theta = `start` (the default), 1 is `end`.

    Give both to look along the step between two checkpoints of a training from a third point theta.
    """
    theta = _center(objective, theta)
    start = theta if start is None else _fitting(objective, start, "A checkpoint")
    return given(
        objective,
        _fitting(objective, end, "A checkpoint") - start,
        name=name,
        theta=theta,
        scaling=scaling,
    )


def eigenvectors(
    objective: Objective, pairs: Eigenpairs, *, theta: Tensor | None = None, scaling: Scaling = "none"
) -> list[Direction]:
    """The eigenvectors of `lanczos.eigenpairs`, in its order, each with its eigenvalue, residual and gap.

    Unscaled they have length 1. Where the gap is not larger than the residual, the single vector is arbitrary
    within its cluster. Raises UserError when the pairs hold no vectors (a product that was not finite).
    """
    if not bool(pairs.eigenvectors.isfinite().all()):
        raise UserError(f"The eigenpairs hold no directions: {pairs.reason}. Look at a point with a finite loss.")
    per_end = len(pairs.eigenvalues) // 2 if pairs.which == "both" else len(pairs.eigenvalues)
    found = []
    for i, vector in enumerate(pairs.eigenvectors.T):
        end = pairs.which if pairs.which != "both" else ("largest" if i < per_end else "smallest")
        details: dict[str, float | str] = {
            "eigenvalue": pairs.eigenvalues[i].item(),
            "residual": pairs.residuals[i].item(),
            "gap": pairs.gaps[i].item(),
            "converged": str(bool(pairs.converged[i])),
        }
        name = f"eigenvector {i % per_end + 1} ({end})"
        found.append(given(objective, vector, name=name, theta=theta, scaling=scaling, details=details))
    return found


def scaled(
    vector: Tensor,
    theta: Tensor,
    layout: Layout,
    scaling: Scaling,
    *,
    one_dimensional: OneDimensional | None = None,
    leave_out: str | None = None,
) -> Tensor:
    """(n,): a copy of `vector`, scaled to the norms of `theta`; norms in float64.

    - `"none"`: as it is
    - `"model"`: to ||theta||
    - `"layer"`: every parameter tensor to the norm of theta's
    - `"filter"`: every filter w[i] (output row; the first index of the tensor) to the norm of theta's [Li 2018].
      The first index of a transposed convolution counts its inputs

    `one_dimensional` says what becomes of tensors with one index or none (BatchNorm, biases): `"zero"` leaves
    them unmoved (default of layer and filter), `"rescale"` treats them like the rest, each as one filter (default
    of none and model), and `"copy"` takes theta's own, as the code of [Li 2018] does, so that lambda = -1 sets
    every one of them to zero (layer and filter only). Parameters whose name matches the regular expression
    `leave_out` stay unmoved. Where vector or theta is zero, the result is. Raises UserError for unknown options
    and a `leave_out` that is no regular expression, or matches no parameter or all.
    """
    kept = _one_dimensional(scaling, one_dimensional)
    parts, own = layout.unflatten(vector), layout.unflatten(theta)
    unmoved = _left_out(leave_out, layout)
    chosen = {}
    for name, part in parts.items():
        if name in unmoved or (part.dim() < 2 and kept == "zero"):
            chosen[name] = torch.zeros_like(part)
        elif part.dim() < 2 and kept == "copy":
            chosen[name] = own[name]
        elif scaling == "layer" or (scaling == "filter" and part.dim() < 2):
            chosen[name] = _to_norm_of(part.reshape(1, -1), own[name].reshape(1, -1)).view_as(part)
        elif scaling == "filter":
            chosen[name] = _to_norm_of(part.flatten(1), own[name].flatten(1)).view_as(part)
        else:
            chosen[name] = part
    result = layout.flatten(chosen)
    if scaling == "model":
        result = _to_norm_of(result.unsqueeze(0), theta.unsqueeze(0))[0]
    return result.to(theta.dtype)


def _left_out(pattern: str | None, layout: Layout) -> set[str]:
    """The names that a regular expression matches: some, but not all."""
    if pattern is None:
        return set()
    try:
        found = {name for name in layout.names if re.search(pattern, name)}
    except re.error as error:
        raise UserError(f"leave_out {pattern!r} is no regular expression: {error}.") from error
    if not 0 < len(found) < len(layout.names):
        what = "all parameters, so nothing would move" if found else "no parameter"
        known = ", ".join(layout.names[:8]) + (", ..." if len(layout.names) > 8 else "")
        raise UserError(f"leave_out {pattern!r} matches {what}. Name some of {known}.")
    return found


def _to_norm_of(rows: Tensor, models: Tensor) -> Tensor:
    """Rows (r, m) scaled to the norms of the rows of `models` (r, m); zero where they are zero."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
    wanted = torch.linalg.vector_norm(models, dim=1, keepdim=True, dtype=torch.float64)
    return rows * torch.where(norms == 0, 0.0, wanted / norms)


def _one_dimensional(scaling: str, choice: str | None) -> OneDimensional:
    if scaling not in get_args(Scaling):
        raise UserError(f"scaling={scaling!r} is not allowed. Give one of {', '.join(get_args(Scaling))}.")
    by_tensor = scaling in ("layer", "filter")
    choice = choice or ("zero" if by_tensor else "rescale")
    if choice not in get_args(OneDimensional) or (choice == "copy" and not by_tensor):
        raise UserError(
            f"one_dimensional={choice!r} does not go with scaling={scaling!r}. Give zero or rescale, or with "
            "layer and filter also copy."
        )
    return choice  # type: ignore[return-value]


def _center(objective: Objective, theta: Tensor | None) -> Tensor:
    return objective.center if theta is None else _fitting(objective, theta, "theta").to(objective.dtype)


def _fitting(objective: Objective, vector: object, what: str) -> Tensor:
    if not isinstance(vector, Tensor):
        make = "dict(model.named_parameters())" if isinstance(vector, nn.Module) else "state_dict"
        raise UserError(
            f"{what} is a {type(vector).__name__}; this objective takes vectors ({objective.layout.size},). Of "
            f"parameters by name objective.layout.flatten({make}) makes one."
        )
    if vector.shape != (objective.layout.size,):
        raise UserError(
            f"{what} has shape {tuple(vector.shape)}; this objective's parameters have ({objective.layout.size},)."
        )
    return vector.detach().to(objective.device)


def _norm(vector: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(vector, dtype=torch.float64)
    return norm

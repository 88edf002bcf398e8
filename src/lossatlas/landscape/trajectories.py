"""A training's checkpoints as a path in parameter space: its principal components, its picture on a plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lossatlas.errors import UserError
from lossatlas.landscape.directions import Direction, given
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.result import Result


@dataclass(frozen=True, eq=False)
class Trajectory(Result):
    """Checkpoints projected onto the plane theta + alpha d1 + beta d2."""

    coordinates: Tensor  # (T, 2) float64: alpha, beta of the nearest point of the plane
    share: float  # of the trajectory's squared distances from theta, what lies in the plane
    shares: Tensor  # (T,) the same of every checkpoint; NaN for one that is theta itself
    loss: Tensor  # (T,) float64: of the checkpoint itself
    plane_loss: Tensor  # (T,) float64: at its projection, which is what a surface shows there
    batchnorm: str

    def __repr__(self) -> str:
        share = f"{100 * self.share:.4g}% of their squared distances in the plane"
        return f"Trajectory({len(self.loss)} checkpoints, {share})"


def principal_components(
    objective: Objective, checkpoints: Tensor | Sequence[Tensor], k: int = 2, *, center: int = -1
) -> list[Direction]:
    """The k principal components of checkpoints (T, n), seen from one of them (default: the last) [Li 2018].

    Right singular vectors of theta_t - theta_center, in float64, of length 1, the component of largest magnitude
    positive. `details["share"]` is sigma_i^2 / sum_j sigma_j^2: the share of the squared distances from the
    centre (not from the mean), so shares speak of the trajectory and not of the loss. A random walk in many
    dimensions gives high shares as well. Cost: O(T^2 n), memory T n float64.
    """
    rows = _rows(objective, checkpoints)
    if not 1 <= k < len(rows):
        raise UserError(
            f"k={k} components cannot be had of {len(rows)} checkpoints. Give a k from 1 to {len(rows) - 1}."
        )
    offsets = rows.double() - rows[center].double()
    _, sigma, basis = torch.linalg.svd(offsets, full_matrices=False)
    # The rank is at most T - 1, since the centre is one of the rows.
    if not sigma[k - 1] > torch.finfo(rows.dtype).eps * sigma[0]:
        raise UserError(f"The checkpoints span fewer than k={k} dimensions. Give more of them, or a smaller k.")
    shares = sigma**2 / (sigma**2).sum()
    found = []
    for i, vector in enumerate(basis[:k]):
        signed = vector * vector[vector.abs().argmax()].sign()
        details = {"share": shares[i].item(), "singular_value": sigma[i].item()}
        name = f"principal component {i + 1}"
        found.append(given(objective, signed, name=name, theta=rows[center], details=details))
    return found


def project(
    objective: Objective,
    checkpoints: Tensor | Sequence[Tensor],
    first: Direction,
    second: Direction,
    *,
    theta: Tensor | None = None,
) -> Trajectory:
    """Checkpoints (T, n) in the coordinates of a plane, and how far the plane tells the truth about them.

    Coordinates are by least squares, so the directions need not be orthogonal. `loss` beside `plane_loss` shows
    what the projection hides. Under `"eval"` every point has the centre model's running statistics, which are not
    those of the other checkpoints: use `"recalibrate"` with BatchNorm. Cost: 2 T passes over the data.
    """
    theta = objective.center if theta is None else theta.detach().to(objective.center)
    rows = _rows(objective, checkpoints)
    basis = torch.stack([first.vector, second.vector]).to(rows).double()  # (2, n)
    offsets = rows.double() - theta.double()
    coordinates = torch.linalg.solve(basis @ basis.T, basis @ offsets.T).T
    inside = coordinates @ basis
    squares, inner = (offsets**2).sum(1), (inside**2).sum(1)
    projected = (theta.double() + inside).to(rows)
    return Trajectory(
        coordinates=coordinates.cpu(),
        share=(inner.sum() / squares.sum()).item(),
        shares=(inner / squares).cpu(),
        loss=objective.values(rows)["loss"].cpu(),
        plane_loss=objective.values(projected)["loss"].cpu(),
        batchnorm=objective.batchnorm,
    )


def _rows(objective: Objective, checkpoints: Tensor | Sequence[Tensor]) -> Tensor:
    rows = checkpoints if isinstance(checkpoints, Tensor) else torch.stack(list(checkpoints))
    if rows.dim() != 2 or rows.shape[1] != objective.layout.size or len(rows) < 2:
        raise UserError(
            f"Checkpoints of shape {tuple(rows.shape)} make no trajectory of this objective. "
            f"Give 2 or more vectors ({objective.layout.size},)."
        )
    return rows.detach().to(objective.center)

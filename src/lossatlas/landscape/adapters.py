"""Operators of other libraries as symmetric operators: those of SciPy and of curvlinops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossatlas.errors import UserError

ASYMMETRY_EPS = 1e3  # x'Ay and y'Ax may differ by so many eps of ||x|| ||Ay||: some hundred operations, with room


@dataclass(frozen=True, eq=False)
class FunctionOperator:
    """A symmetric operator known by a function from vectors (n,) or (n, k) to their images."""

    size: int
    dtype: torch.dtype
    device: torch.device
    function: Callable[[Tensor], Tensor]

    def __matmul__(self, vectors: Tensor, /) -> Tensor:
        return self.function(vectors.to(self.device, self.dtype))


def from_scipy(op: Any) -> FunctionOperator:
    """The symmetric operator of a SciPy LinearOperator, sparse array or NumPy array, on the CPU.

    Works in float32 where `op` does, else in float64. Raises UserError where it is complex, not square, or not
    symmetric by the test of two products that `from_tensors` makes.
    """
    kind = np.dtype(getattr(op, "dtype", None) or np.float64)
    if kind.kind == "c":
        raise UserError(f"A symmetric operator must be real; this one is {kind}.")
    dtype = torch.float32 if kind == np.float32 else torch.float64

    def function(vectors: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(op @ vectors.numpy())).to(dtype)

    return _checked(FunctionOperator(_order(op), dtype, torch.device("cpu"), function))


def from_tensors(op: Any) -> FunctionOperator:
    """The symmetric operator of an object with `shape`, `dtype`, `device` and a product `@` with tensors.

    Such are the operators of curvlinops (`HessianLinearOperator`, `GGNLinearOperator`, ...). Whether they are
    symmetric is tested on two random vectors, x'Ay = y'Ax, at the cost of two products. Raises UserError where
    they are not, or not square.
    """
    return _checked(FunctionOperator(_order(op), op.dtype, torch.device(op.device), lambda vectors: op @ vectors))


def _order(op: Any) -> int:
    shape = tuple(op.shape)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise UserError(f"A symmetric operator must be square; this one has the shape {shape}.")
    return int(shape[0])


def _checked(op: FunctionOperator) -> FunctionOperator:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, op.size, generator=generator, dtype=torch.float64).to(op.device, op.dtype)
    ax, ay = op @ x, op @ y
    difference = ((x.double() @ ay.double()) - (y.double() @ ax.double())).abs()
    scale = x.norm() * ay.norm() + y.norm() * ax.norm()
    if difference > ASYMMETRY_EPS * torch.finfo(op.dtype).eps * scale:
        raise UserError(
            f"The operator is not symmetric: x'Ay and y'Ax differ by {difference.item():.3g} for two random "
            "vectors. Give a symmetric one, as (A + A.T) / 2."
        )
    return op

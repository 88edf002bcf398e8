"""Symmetric linear operators: the one contract of the curvature algorithms, and the Hessian of an Objective."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from lossatlas.errors import UserError
from lossatlas.landscape import batches as split
from lossatlas.landscape.batches import Batch
from lossatlas.landscape.criterion import Criterion
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.parameters import Layout
from lossatlas.landscape.random_state import preserved_rng
from lossatlas.landscape.twice import TwiceDifferentiable

KEPT_BYTES = 1 << 30


class SymmetricOperator(Protocol):
    """A symmetric n x n matrix known by its products; lanczos.py and trace.py ask for nothing else."""

    @property
    def size(self) -> int:
        """The order n."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of the vectors that it takes and gives."""

    @property
    def device(self) -> torch.device:
        """Where those vectors lie."""

    def __matmul__(self, vectors: Tensor, /) -> Tensor:
        """(n,) -> (n,) or (n, k) -> (n, k)."""


@dataclass(frozen=True, eq=False)
class MatrixOperator:
    """A symmetric operator with its matrix (n, n) at hand."""

    matrix: Tensor

    @property
    def size(self) -> int:
        """The order n."""
        return self.matrix.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the matrix."""
        return self.matrix.dtype

    @property
    def device(self) -> torch.device:
        """Where the matrix lies."""
        return self.matrix.device

    def __matmul__(self, vectors: Tensor, /) -> Tensor:
        return self.matrix @ vectors


def from_matrix(matrix: Tensor) -> MatrixOperator:
    """The operator of a symmetric floating-point matrix (n, n).

    Raises UserError for another shape or type, or where entries differ from their mirror image by more than
    rounding (1e3 eps of the largest entry).
    """
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.is_floating_point():
        raise UserError(
            f"A symmetric operator needs a real square matrix; this one is {matrix.dtype} of shape "
            f"{tuple(matrix.shape)}. Give a floating-point tensor of shape (n, n)."
        )
    asymmetry = (matrix - matrix.T).abs().max() if matrix.numel() else matrix.new_zeros(())
    if asymmetry > 1e3 * torch.finfo(matrix.dtype).eps * matrix.abs().max():
        raise UserError(
            f"The matrix is not symmetric: A and its transpose differ by up to {asymmetry.item():.3g}. "
            "Give a symmetric one, as (A + A.T) / 2."
        )
    return MatrixOperator(matrix)


@dataclass(frozen=True, eq=False)
class _Differentiated:
    """The gradient of a piece's summed loss, with the graph to differentiate it once more."""

    parameters: dict[str, Tensor]
    gradients: dict[str, Tensor]
    count: int

    def product(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """(b,): the Hessian of the piece's summed loss in the named parameters times a vector, given by name."""
        parameters = [self.parameters[name] for name in vectors]
        pairs = [(self.gradients[n], v) for n, v in vectors.items() if self.gradients[n].requires_grad]
        if not pairs:  # a loss that is linear in the parameters
            return torch.cat([torch.zeros_like(p).reshape(-1) for p in parameters])
        columns = torch.autograd.grad(
            [g for g, _ in pairs],
            parameters,
            [v for _, v in pairs],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return torch.cat([column.reshape(-1) for column in columns])


class HessianOperator:
    """The Hessian of an Objective's mean loss at theta, by double backward: H v = d(g . v)/d theta.

    Exact for any data, however its batches are cut: the summed losses of the pieces are differentiated, and their
    sum is divided by the number of samples. BatchNorm statistics are those of the objective's policy at theta,
    held fixed ("eval", "recalibrate") or differentiated through ("batch").

    The graph of a piece's first backward pass is kept from product to product while the estimated memory of all
    graphs stays within `memory` bytes, and built anew for the pieces beyond; the products are the same, bit for
    bit. The estimate takes the bytes that autograd saves for the first piece, per sample. Cost of a product, in
    gradient evaluations on the same data: 1.0 (MLP) to 1.7 (ResNet18) with kept graphs, 2.1 to 3.0 without.

    Where a fused kernel cannot be differentiated twice (attention, cuDNN's recurrent layers), the product is taken
    again with plain operations, and a PlainMathsWarning says so, once an objective. Raises UserError where another
    operation cannot. `matvecs` counts the products.
    """

    def __init__(self, objective: Objective, theta: Tensor, *, memory: int = KEPT_BYTES) -> None:
        self._objective = objective
        self._tensors = {n: t.detach().clone() for n, t in objective.unflatten(theta).items()}
        self._buffers = objective.buffers(theta)
        self._kept: list[_Differentiated] = []
        self._memory = memory
        self._is_complete: bool | None = None  # not decided before the first product
        self._is_checked = False
        self._avoided = 0  # kernels, when the kept graphs were built
        self.size = objective.layout.size
        self.dtype = objective.dtype
        self.device = objective.device
        self.matvecs = 0

    @property
    def layout(self) -> Layout:
        """The parameters in the order of the vectors."""
        return self._objective.layout

    def __matmul__(self, vectors: Tensor, /) -> Tensor:
        return self.restricted(vectors, self.layout)

    def restricted(self, vectors: Tensor, layout: Layout) -> Tensor:
        """The diagonal block of the parameters in `layout` times vectors (b,) or (b, k), from the same graphs."""
        if vectors.dim() not in (1, 2) or vectors.shape[0] != layout.size:
            raise UserError(
                f"The Hessian takes vectors of shape ({layout.size},) or ({layout.size}, k), "
                f"not {tuple(vectors.shape)}."
            )
        rows = vectors.to(self.device, self.dtype).reshape(layout.size, -1).T.contiguous()  # (k, b)
        columns = [layout.unflatten(row) for row in rows]
        kernels = self._objective.curvature_kernels
        with torch.enable_grad(), preserved_rng(self.device), _second_derivative():
            mean = kernels.retried(lambda: self._mean_product(rows, columns))
        self.matvecs += len(rows)
        return mean.T.reshape(vectors.shape)

    def _mean_product(self, rows: Tensor, columns: list[dict[str, Tensor]]) -> Tensor:
        """(k, b): the products, from graphs without the kernels that are avoided by now."""
        avoided = len(self._objective.curvature_kernels.avoided)
        if avoided != self._avoided:
            self._kept, self._is_complete, self._avoided = [], None, avoided
        total, count = torch.zeros_like(rows), 0
        for piece in self._pieces():
            for sums, column in zip(total, columns, strict=True):
                sums += piece.product(column)
            count += piece.count
            del piece  # else its graph lives on while the next one is built
        return total.div_(count)

    def _pieces(self) -> Iterator[_Differentiated]:
        """The differentiated pieces of the data in order: the kept ones, then the others, built anew."""
        if self._is_complete is None:
            self._is_complete = self._keep()
        yield from self._kept
        if not self._is_complete:
            for batch in islice(self._objective.batches(), len(self._kept), None):
                yield self._differentiated(batch)

    def _keep(self) -> bool:
        """Differentiate the first pieces, as many as fit the memory, and say whether they are all."""
        self._kept = []
        used = per_sample = 0.0
        for batch in self._objective.batches() if self._memory > 0 else ():
            per_sample = per_sample or self._saved_bytes(batch) / split.count(batch)
            used += per_sample * split.count(batch)
            if used > self._memory:
                return False
            self._kept.append(self._differentiated(batch))
        return self._memory > 0

    def _differentiated(self, batch: Batch) -> _Differentiated:
        parameters = {n: t.detach().requires_grad_() for n, t in self._tensors.items()}
        buffers = {n: b.clone() for n, b in self._buffers.items()}  # batch statistics update them in place
        with TwiceDifferentiable():
            loss, count = self._objective.loss_sum(parameters, buffers, batch)
        leaves = list(parameters.values())
        gradients = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
        if not self._is_checked:
            _refuse_once_differentiable(gradients)
            self._is_checked = True
        return _Differentiated(parameters, dict(zip(parameters, gradients, strict=True)), count)

    def _saved_bytes(self, batch: Batch) -> int:
        """The bytes that the graph of a piece holds: every storage that autograd saves, once."""
        storages: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # an output that its own graph holds would never be freed

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            graph = self._differentiated(batch)  # alive to the end, so that no address is used twice
        del graph
        return max(1, sum(storages.values()))


def checked_operator(op: SymmetricOperator) -> SymmetricOperator:
    """The operator; raises UserError for what is none, such as the Objective itself."""
    if isinstance(op, Objective):
        raise UserError("An Objective is no operator. Give its Hessian: lossatlas.hessian(objective).")
    if missing := [name for name in ("size", "dtype", "device", "__matmul__") if not hasattr(op, name)]:
        raise UserError(
            f"A {type(op).__name__} is no symmetric operator: it lacks {', '.join(missing)}. Give "
            "lossatlas.hessian(objective), or one of lossatlas.from_matrix and its likes."
        )
    return op


def hessian(objective: Objective, theta: Tensor | None = None, *, memory: int = KEPT_BYTES) -> HessianOperator:
    """The Hessian of the objective at theta (default: its centre); `memory` bounds the bytes of kept graphs.

    That of a ReLU network jumps where an input of a ReLU is 0. With an input that is 0 up to float32's rounding,
    float32 and float64, or sums in another order, see either side: of a small ResNet18 on 50 images the second
    eigenvalue differed by 1e-3 of it through a single ReLU (benchmarks/spectrum.py). No residual shows that.
    """
    return HessianOperator(objective, objective.center if theta is None else theta, memory=memory)


def second_order(
    objective: Objective, theta: Tensor | None = None, *, memory: int = KEPT_BYTES
) -> HessianOperator:
    """What the Hessian has beyond the generalised Gauss-Newton matrix: R = H - G = (1/m) sum_x sum_c r_xc d2 f_xc.

    f are the outputs and r = dl/df the slopes of the loss in them; with r held, R is the Hessian of <r, f>, so a
    product costs what one of `hessian` does. Small where the loss is. Raises UserError for an objective with a
    bare loss function, which has no outputs.
    """
    if objective.criterion is None:
        raise UserError(
            "A bare loss function has no outputs to split its Hessian by. Build the Objective with a lossatlas "
            "Criterion, such as supervised(...)."
        )
    held = copy.copy(objective)  # shares the private model, which is only ever called functionally
    held.criterion = Criterion(objective.criterion.predict, _tangent(objective.criterion.loss))
    return hessian(held, theta, memory=memory)


def _tangent(loss: Callable[[Tensor, Batch], Tensor]) -> Callable[[Tensor, Batch], Tensor]:
    """The loss of every sample, linear in its outputs with the slopes of `loss` where they are, held constant."""

    def linear(outputs: Tensor, batch: Batch) -> Tensor:
        point = outputs.detach().requires_grad_()
        total = loss(point, batch).sum()
        (slope,) = torch.autograd.grad(total, point, allow_unused=True, materialize_grads=True)
        return (slope * outputs).reshape(len(outputs), -1).sum(1)

    return linear


def _refuse_once_differentiable(gradients: Iterable[Tensor]) -> None:
    """Raise where a function allows one derivative only; autograd would leave its terms out without a word."""
    pending = [g.grad_fn for g in gradients]
    seen = set(pending)
    while pending:
        node = pending.pop()
        if node is None:
            continue
        if node.name() == "torch::autograd::Error":
            raise RuntimeError("double backward through a function marked with @once_differentiable.")
        new = {following for following, _ in node.next_functions} - seen
        seen |= new
        pending.extend(new)


@contextmanager
def _second_derivative() -> Iterator[None]:
    """Where PyTorch has no second derivative, say so and name the way out."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        missing = text.startswith("derivative for") and "not implemented" in text
        if not missing and "double backward" not in text.lower():
            raise
        raise UserError(
            f"The model uses an operation that PyTorch cannot differentiate twice, so it has no Hessian products: "
            f"{text.splitlines()[0]} Use a plain formulation of it: the uncompiled module instead of a "
            "torch.compile one; or leave its parameters out by params=..."
        ) from error

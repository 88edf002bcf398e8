"""A loss over a data set as a function of the parameters.

An `Objective` owns a private copy of the model, so the caller's model (weights, buffers, gradients, modes) is
never touched, and it puts the random state back. Sums run over samples, not batches, so a ragged last batch is
exact.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lossatlas.errors import UserError
from lossatlas.landscape import batches as split
from lossatlas.landscape.batches import Batch
from lossatlas.landscape.criterion import Criterion, LossFn, check_loss, checked_mean
from lossatlas.landscape.kernels import Kernels
from lossatlas.landscape.parameters import layout_of
from lossatlas.landscape.random_state import preserved_rng

BatchNormPolicy = Literal["eval", "recalibrate", "batch"]
BATCHNORM_POLICIES = ("eval", "recalibrate", "batch")
WHOLE = sys.maxsize  # samples in a piece of batches that are not to be split
CHECKED_SAMPLES = 16  # enough to see Dropout or augmentation, and cheap beside one pass over the data


class ModelCall(nn.Module):
    """The model behind a function of (model, batch), so that `functional_call` reaches its tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[nn.Module, Batch], Tensor], batch: Batch) -> Tensor:
        """`function(model, batch)`."""
        return function(self.model, batch)


class Objective:
    """The mean loss over `data` as a function of theta, the flat vector of the model's trainable parameters.

    `data` is a sequence of batches or a function that yields them anew, in the same order, at every call (a
    generator is refused). `loss` is a `Criterion`, or any function (model, batch) -> mean loss of the batch; it
    may differentiate inside (the residual of a differential equation).
    `batchnorm` says what BatchNorm layers do, and is to be recorded with every result:

    - `"eval"`: they use the running statistics as they are
    - `"recalibrate"`: their statistics are re-estimated at every theta by one pass over `recalibration` (default:
      `data`), as the mean over its batches weighted by samples ([Garipov 2018]'s `update_bn`, [Xu2024]'s UpBN)
    - `"batch"`: they use the statistics of each of the caller's batches (which are then never split)

    `params` is a regular expression that chooses parameters by name. `chunk` splits batches into pieces of as many
    samples; by default the piece whose largest activation takes some 4 MB, found without timing so that it is
    the same everywhere. Without `chunk`, batches stay whole where the loss of the first one is not the mean over
    its pieces (a bare function that averages over tokens, or couples samples). `dtype` and `device` move the
    private copy and the batches; on MPS there is no float64. On construction the loss and gradient of the first
    samples are computed twice: a difference (Dropout, augmentation) raises UserError.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Sequence[Batch] | Callable[[], Iterable[Batch]],
        loss: LossFn | Criterion,
        *,
        batchnorm: BatchNormPolicy = "eval",
        recalibration: Sequence[Batch] | Callable[[], Iterable[Batch]] | None = None,
        params: str | None = None,
        chunk: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if batchnorm not in BATCHNORM_POLICIES:
            allowed = ", ".join(BATCHNORM_POLICIES)
            raise UserError(f"batchnorm={batchnorm!r} is not a BatchNorm policy. Allowed are {allowed}.")
        first = next(iter(model.parameters()), None)
        if first is None:
            raise UserError(
                "The model has no parameters, so it has no loss landscape. Give a model with parameters."
            )
        self.batchnorm = batchnorm
        self.dtype = dtype or first.dtype
        self.device = torch.device(device) if device is not None else first.device
        if self.device.type == "mps" and self.dtype == torch.float64:
            raise UserError(
                "The device mps has no float64, the dtype of this objective. Give dtype=torch.float32, or "
                "device='cpu'."
            )
        check_loss(loss)
        self.layout = layout_of(model, params)
        self.criterion = loss if isinstance(loss, Criterion) else None
        self._loss = loss
        self._kernels = Kernels()  # settled below, so that values and gradients are those of one function
        self.curvature_kernels = Kernels()  # for second derivatives
        self._call = ModelCall(copy.deepcopy(model).to(dtype=self.dtype, device=self.device)).requires_grad_(False)
        self._norms = [m for m in self._call.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if batchnorm != "batch" and any(norm.running_mean is None for norm in self._norms):
            raise UserError(
                f"batchnorm={batchnorm!r} needs running statistics, and a BatchNorm layer keeps none "
                "(track_running_stats=False). Give batchnorm='batch', which uses those of each batch."
            )
        self._call.eval()
        for norm in self._norms:
            norm.train(batchnorm == "batch")
        self._source = split.reiterable(data, "data")
        self._recalibration = (
            split.reiterable(recalibration, "recalibration") if recalibration is not None else None
        )
        tensors = dict(self._call.model.named_parameters())
        self.center = self.layout.flatten({n: tensors[n].detach() for n in self.layout.names})  # (n,)
        self.chunk = self._choose_chunk(chunk)
        self._check_determinism()

    # ---- what the algorithms need -------------------------------------------------------------------------

    @property
    def model(self) -> nn.Module:
        """The private copy of the model, for hooks and the tensors that theta lacks; not to be changed."""
        return self._call.model

    def batches(self) -> Iterator[Batch]:
        """The data in pieces of at most `chunk` samples, on the objective's device and in its dtype."""
        for batch in self._source():
            moved = split.move(batch, self.dtype, self.device)
            yield from [moved] if self.batchnorm == "batch" else split.pieces(moved, self.chunk)

    def buffers(self, theta: Tensor) -> dict[str, Tensor]:
        """The buffers to use at theta: the model's own, or with BatchNorm statistics re-estimated there."""
        own = self._own_buffers()
        if self.batchnorm != "recalibrate" or not self._norms:
            return own
        with torch.no_grad(), preserved_rng(self.device):
            return self._recalibrated(theta, own)

    def predict(self, tensors: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """(n, C): the outputs on a batch, differentiable in `tensors` (name -> parameter)."""
        return self._functional(self._criterion("outputs").predict, tensors, buffers, batch)

    def loss_sum(
        self, tensors: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, int]:
        """The summed loss of a batch, differentiable in `tensors`, and the number of samples it sums over."""
        if self.criterion is None:
            count = split.count(batch)
            return checked_mean(self._functional(self._loss, tensors, buffers, batch)) * count, count
        losses = self.criterion.loss(self.predict(tensors, buffers, batch), batch)
        return losses.sum(), losses.numel()

    def means(
        self, tensors: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batches: Iterable[Batch]
    ) -> dict[str, Tensor]:
        """The mean over the samples of `batches` of the loss and of every extra, each a float64 scalar."""
        sums: dict[str, Tensor] = {}
        count = 0
        for batch in batches:
            if self.criterion is None:
                total, samples = self.loss_sum(tensors, buffers, batch)
                terms = {"loss": total}
            else:
                terms = self.criterion.terms(self.predict(tensors, buffers, batch), batch)
                samples = terms["loss"].numel()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0) + split.wide(term).sum()
            count += samples
        return {name: total / count for name, total in sums.items()}

    # ---- what people call ---------------------------------------------------------------------------------

    def __call__(self, theta: Tensor) -> Tensor:
        """The mean loss at theta (n,), as a float64 scalar."""
        return self.values(theta.unsqueeze(0))["loss"][0]

    def values(self, thetas: Tensor) -> dict[str, Tensor]:
        """(p, n) -> the mean over the data of the loss and of every extra, each (p,) in float64."""
        rows = [self._means(theta) for theta in thetas]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def scores(self, theta: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs (N, C) at theta, and the loss and every extra of each sample, each (N,); needs a Criterion."""
        criterion = self._criterion("outputs or values of single samples")
        outputs: list[Tensor] = []
        parts: list[dict[str, Tensor]] = []
        with torch.no_grad(), preserved_rng(self.device):
            tensors, buffers = self.unflatten(theta), self.buffers(theta)
            for batch in self.batches():
                outputs.append(self.predict(tensors, buffers, batch))
                parts.append(criterion.terms(outputs[-1], batch))
        return torch.cat(outputs), {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def samples(self, theta: Tensor) -> dict[str, Tensor]:
        """The loss and every extra of each of the N samples at theta, each (N,); needs a Criterion."""
        return self.scores(theta)[1]

    def outputs(self, theta: Tensor) -> Tensor:
        """(N, C): the outputs on all samples at theta; needs a Criterion."""
        self._criterion("outputs")
        with torch.no_grad(), preserved_rng(self.device):
            tensors, buffers = self.unflatten(theta), self.buffers(theta)
            return torch.cat([self.predict(tensors, buffers, batch) for batch in self.batches()])

    def gradient(self, theta: Tensor) -> Tensor:
        """(n,): the gradient of the mean loss at theta."""
        theta = self._checked(theta)
        total, count = torch.zeros_like(theta), 0
        with torch.enable_grad(), preserved_rng(self.device):
            buffers = self.buffers(theta)
            for batch in self.batches():
                point = theta.detach().requires_grad_()
                loss, samples = self.loss_sum(self.layout.unflatten(point), buffers, batch)
                total += torch.autograd.grad(loss, point)[0]
                count += samples
        return total / count

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """The parameters by name at theta (n,); raises UserError for a vector of another size."""
        return self.layout.unflatten(self._checked(theta))

    # ---- private ------------------------------------------------------------------------------------------

    def _own_buffers(self) -> dict[str, Tensor]:
        return {name: buffer.clone() for name, buffer in self._call.model.named_buffers()}

    def _checked(self, theta: Tensor) -> Tensor:
        if theta.shape != (self.layout.size,):
            raise UserError(f"theta has shape {tuple(theta.shape)}; this objective takes ({self.layout.size},).")
        return theta.to(dtype=self.dtype, device=self.device)

    def _criterion(self, what: str) -> Criterion:
        if self.criterion is None:
            raise UserError(
                f"A bare loss function gives no {what}. Build the Objective with a lossatlas Criterion, such as "
                "supervised(...), which says how the model predicts."
            )
        return self.criterion

    def _functional(
        self,
        function: Callable[[nn.Module, Batch], Tensor],
        tensors: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        batch: Batch,
    ) -> Tensor:
        swapped = {f"model.{name}": t for name, t in (*tensors.items(), *buffers.items())}
        wanted = torch.is_grad_enabled()
        with self._kernels.plain(), torch.enable_grad():  # a loss may differentiate inside, under no_grad too
            result: Tensor = functional_call(self._call, swapped, (function, batch))
        return result if wanted else result.detach()

    def _means(self, theta: Tensor) -> dict[str, Tensor]:
        with torch.no_grad(), preserved_rng(self.device):
            return self.means(self.unflatten(theta), self.buffers(theta), self.batches())

    def _recalibrated(self, theta: Tensor, buffers: dict[str, Tensor]) -> dict[str, Tensor]:
        """Statistics of one pass: each batch enters the running mean with its share of the samples seen so far."""
        tensors = self.unflatten(theta)
        momenta = [norm.momentum for norm in self._norms]
        seen = 0
        try:
            for norm in self._norms:
                norm.train()
            for batch in (self._recalibration or self._source)():
                moved = split.move(batch, self.dtype, self.device)
                count = split.count(moved)
                seen += count
                for norm in self._norms:
                    norm.momentum = count / seen
                function = self.criterion.predict if self.criterion else self._loss
                self._functional(function, tensors, buffers, moved)
        finally:
            for norm, momentum in zip(self._norms, momenta, strict=True):
                norm.momentum = momentum
                norm.eval()
        return buffers

    def _choose_chunk(self, chunk: int | None) -> int:
        if chunk is not None:
            if chunk < 1:
                raise UserError(
                    f"chunk={chunk} is no number of samples. Give 1 or more, or None to have it chosen."
                )
            return chunk
        function = self.criterion.predict if self.criterion else self._loss
        with torch.no_grad(), preserved_rng(self.device):  # beginning a DataLoader draws a number
            first = next(iter(self._source()), None)
            if first is None:
                raise UserError("data holds no batch. Give at least one batch.")
            moved = split.move(first, self.dtype, self.device)
            single = next(split.pieces(moved, 1))
            was_training = [norm.training for norm in self._norms]
            for norm in self._norms:
                norm.eval()  # one sample has no batch statistics
            try:
                size = split.chunk_for(
                    self._call, lambda: self._functional(function, {}, self._own_buffers(), single)
                )
            except Exception:
                if self.criterion is not None:
                    raise
                return WHOLE  # the loss needs more than one sample; if it is broken, the next check says so
            finally:
                for norm, training in zip(self._norms, was_training, strict=True):
                    norm.train(training)
            return size if self._is_mean_of_pieces(moved, size) else WHOLE

    def _is_mean_of_pieces(self, batch: Batch, size: int) -> bool:
        """Whether a bare loss is a mean over samples, as far as a batch tells; `loss_sum` relies on it."""
        pieces = list(split.pieces(batch, size))
        if self.criterion is not None or self.batchnorm == "batch" or len(pieces) < 2:
            return True
        tensors, buffers = self.layout.unflatten(self.center), self._own_buffers()
        (whole,), parts = ([self.loss_sum(tensors, buffers, b)[0] for b in bs] for bs in ([batch], pieces))
        rounding = min(0.05, 1e3 * torch.finfo(self.dtype).eps) * torch.stack(parts).abs().sum()
        return not bool((whole - torch.stack(parts).sum()).abs() > rounding)

    def _first_piece(self) -> tuple[Tensor, Tensor]:
        """The mean loss of the first few samples and its gradient, both detached."""
        point = self.center.clone().requires_grad_()
        buffers = self._own_buffers()
        first = next(iter(self.batches()))
        if self.batchnorm != "batch" and self.chunk != WHOLE:
            first = next(split.pieces(first, CHECKED_SAMPLES))
        loss, count = self.loss_sum(self.layout.unflatten(point), buffers, first)
        if loss.grad_fn is None:
            raise UserError("The loss does not depend on the chosen parameters: its graph is empty.")
        return loss.detach() / count, torch.autograd.grad(loss, point)[0]

    def _check_determinism(self) -> None:
        """Two passes over the first samples must agree, up to the non-associativity of parallel sums on a GPU."""
        with torch.enable_grad(), preserved_rng(self.device):
            (loss_a, grad_a), (loss_b, grad_b) = (self._kernels.retried(self._first_piece) for _ in range(2))
        tolerance = 1e-4 if self.device.type != "cpu" else 1e-6
        same = torch.allclose(loss_a, loss_b, rtol=tolerance, atol=0, equal_nan=True) and (
            (grad_a - grad_b).norm() <= tolerance * grad_a.norm() or not bool(grad_a.isfinite().all())
        )
        if not same:
            raise UserError(
                "The loss is not a function of the parameters: two passes over the same batch gave "
                f"{loss_a.item():.6g} and {loss_b.item():.6g}. Switch off what is random (functional dropout, "
                "augmentation, a shuffled loader) and build the Objective again."
            )

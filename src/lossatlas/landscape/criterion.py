"""What a model predicts for a batch and how that is scored, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from lossatlas.errors import UserError
from lossatlas.landscape.batches import Batch

LossFn = Callable[[nn.Module, Batch], Tensor]  # the mean over the samples of the batch


@dataclass(frozen=True)
class Criterion:
    """What to predict and how to score it, sample by sample; callable as a LossFn (the mean over the batch).

    A sample is whatever `loss` gives a number for: with one loss a token, means run over tokens, and tokens that
    it leaves out (padding) do not count.
    """

    predict: Callable[[nn.Module, Batch], Tensor]  # outputs (n, C)
    loss: Callable[[Tensor, Batch], Tensor]  # outputs -> loss of every sample (n,)
    extras: Mapping[str, Callable[[Tensor, Batch], Tensor]] = field(default_factory=dict)  # each (n,)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss over the samples of the batch."""
        return self.loss(self.predict(model, batch), batch).mean()

    def terms(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The loss and the extras of every sample, each (n,)."""
        return {"loss": self.loss(outputs, batch)} | {k: f(outputs, batch) for k, f in self.extras.items()}


def supervised(
    loss: Callable[..., Tensor], extras: Mapping[str, Callable[[Tensor, Batch], Tensor]] | None = None
) -> Criterion:
    """The Criterion of batches (inputs, targets) for a loss with a `reduction` argument, as `F.cross_entropy`.

    Outputs are `model(inputs)`. Losses with a `(n, C)` result, as `F.mse_loss`, are averaged over each sample.
    Raises UserError for a module of torch.nn, and when called for outputs and floating-point targets of different
    shapes, which would be compared each with each.
    """
    if isinstance(loss, nn.Module):
        raise UserError(
            f"supervised takes a function with an argument `reduction`, not the module {type(loss).__name__}. "
            "Give its function, such as torch.nn.functional.cross_entropy."
        )

    def losses(outputs: Tensor, batch: Batch) -> Tensor:
        targets = batch[1]
        if targets.is_floating_point() and targets.shape != outputs.shape:
            raise UserError(
                f"The outputs have shape {tuple(outputs.shape)} and the targets {tuple(targets.shape)}. Give both "
                "the same, as by model(inputs).squeeze(1) or targets.unsqueeze(1)."
            )
        values = loss(outputs, targets, reduction="none")
        return values if values.dim() < 2 else values.flatten(1).mean(1)

    return Criterion(predict=lambda model, batch: model(batch[0]), loss=losses, extras=dict(extras or {}))


def check_loss(loss: object) -> None:
    """Raise UserError for what is no LossFn, above all the losses of PyTorch, which take (outputs, targets)."""
    inner = getattr(loss, "func", loss)  # of a functools.partial
    of_torch = isinstance(inner, nn.modules.loss._Loss) or getattr(inner, "__module__", "") == F.__name__
    if of_torch or not callable(loss):
        name = getattr(inner, "__name__", type(inner).__name__)
        raise UserError(
            f"The loss {name} is no function of (model, batch). Wrap the function of PyTorch that scores "
            "(outputs, targets): lossatlas.supervised(torch.nn.functional.cross_entropy); or give a Criterion, or "
            "your own function (model, batch) -> mean loss."
        )


def checked_mean(mean: object) -> Tensor:
    """What a LossFn gave, as a scalar; raises UserError for anything but one number."""
    if isinstance(mean, Tensor) and mean.numel() == 1:
        return mean.reshape(())
    found = f"a tensor of shape {tuple(mean.shape)}" if isinstance(mean, Tensor) else f"a {type(mean).__name__}"
    raise UserError(
        f"The loss function gave {found}; it must give one number, the mean over the batch (reduction='mean'). "
        "For losses of single samples wrap PyTorch's: lossatlas.supervised(torch.nn.functional.cross_entropy)."
    )

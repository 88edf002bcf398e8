"""What a model predicts for a batch and how that is scored, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

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
    """

    def losses(outputs: Tensor, batch: Batch) -> Tensor:
        values = loss(outputs, batch[1], reduction="none")
        return values if values.dim() < 2 else values.flatten(1).mean(1)

    return Criterion(predict=lambda model, batch: model(batch[0]), loss=losses, extras=dict(extras or {}))

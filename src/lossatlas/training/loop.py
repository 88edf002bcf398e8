"""One training: from a model, samples and a recipe to weights and history."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from lossatlas.errors import UserError
from lossatlas.landscape.batches import Batch
from lossatlas.landscape.checkpoints import Checkpoints, State
from lossatlas.landscape.criterion import Criterion
from lossatlas.landscape.descent import Walk
from lossatlas.landscape.random_state import seeded
from lossatlas.measures.jobs import Samples
from lossatlas.seeding import derive
from lossatlas.specs import EarlyStop, Train
from lossatlas.tasks.augmentation import Augmentation
from lossatlas.training import fine_tuning, optimizers
from lossatlas.training.schedules import rates

_NUMBERS = ("epochs", "best_epoch", "early_stopped_epoch", "history")  # of a TrainedModel that is still ok

Weights = dict[str, Tensor]  # the state_dict: parameters and buffers
Progress = Callable[[int, float], None]  # (epochs done, running training loss)


@dataclass
class TrainedModel:
    """What training one model gave.

    `weights` holds `best` (lowest running training loss), `final`, `epoch-N` for each N of the recipe's `keep`
    (`epoch-0`: the initialisation), and `early-stopped` where the stop rule of
    [Yang2021] came true; it is empty when the model diverged. `history` holds one number an epoch: the running
    means of loss and error over the epoch in train mode ([Yang2021]'s "training loss"; not the loss of any saved
    weights; on augmented images where the recipe asks for them), and the learning rate of its last step. `about`
    tells what is out of the ordinary: `precision`, and as `fresh_layer` the head that the given weights lacked.
    """

    status: str = "ok"  # or "diverged"
    reason: str = ""
    epochs: int = 0
    best_epoch: int = 0
    early_stopped_epoch: int | None = None
    weights: dict[str, Weights] = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=lambda: {"loss": [], "error": [], "lr": []})
    about: dict[str, str] = field(default_factory=dict)


def train(
    model: nn.Module,
    samples: Samples,
    criterion: Criterion,
    recipe: Train,
    *,
    seed: int,
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
) -> TrainedModel:
    """Train `model` in place on mini-batches; incomplete batches are dropped [Yang2021].

    The order of the samples, Dropout and augmentation have streams of their own, drawn from `seed`; the global
    random state is put back. A running loss or a weight that is not finite ends the training with status
    `diverged`. Costs epochs * (N // B) steps. `checkpoints` are left between batches and continued from, with the
    same bits as without a stop; Stopped then passes through. In bfloat16 the forward pass runs under
    torch.autocast, on a GPU or a CPU; weights, gradients, losses and BatchNorm's statistics stay float32. Raises
    UserError when the batch is larger than the data, the warm-up longer than the training, the inputs are no
    images to be augmented, or the weights to start from do not fit.
    """
    if recipe.batch_size > len(samples):
        raise UserError(
            f"batch_size = {recipe.batch_size} is larger than the {len(samples)} training samples, so that no "
            "batch would be complete. Give a smaller batch_size or more data."
        )
    order = torch.Generator().manual_seed(derive(seed, "order"))
    augment = Augmentation(recipe.augment, samples, seed) if recipe.augment else None
    generators = [order] if augment is None else [order, augment.generator]
    device = samples.targets.device
    with seeded(derive(seed, "dropout")):
        about = _begun(model, recipe)
        descent = _Descent(model.train(), samples, criterion, recipe, augment)
        walk = Walk(checkpoints, descent.state, sums=2, generators=generators, device=device)
        if walk.resumed:
            descent.restore(walk.resumed)
        elif 0 in recipe.keep:
            descent.trained.weights["epoch-0"] = _copy(model)
        trained = descent.trained
        trained.about = about
        for epoch in walk.remaining(range(1, recipe.epochs_on(len(samples)) + 1)):
            descent.epoch(walk, epoch, order)
            if progress:
                progress(epoch, trained.history["loss"][-1])
            if trained.status != "ok":
                return trained
    trained.weights["final"] = _copy(model)
    return trained


def _begun(model: nn.Module, recipe: Train) -> dict[str, str]:
    """Load the weights to start from, if there are any; returns what is out of the ordinary."""
    about: dict[str, str] = {} if recipe.precision == "float32" else {"precision": recipe.precision}
    fresh = fine_tuning.start(model, recipe) if recipe.init is not None else ""
    return {**about, "fresh_layer": fresh} if fresh else about


class _Descent:
    """A training in the middle of its epochs."""

    def __init__(
        self,
        model: nn.Module,
        samples: Samples,
        criterion: Criterion,
        recipe: Train,
        augment: Augmentation | None,
    ) -> None:
        self.trained = TrainedModel()
        self._model, self._samples, self._criterion, self._recipe = model, samples, criterion, recipe
        self._augment = augment
        self._optimizer = optimizers.build(model, recipe.optimizer)
        self._rates = rates(recipe, len(samples))
        self._is_autocast = recipe.precision == "bfloat16"

    def epoch(self, walk: Walk, epoch: int, order: torch.Generator) -> None:
        """One pass (or the rest of one); the running means of loss and error are read from the device once."""
        running, optimizer = walk.running, self._optimizer
        shuffled = partial(self._samples.shuffled, self._recipe.batch_size, order, drop_last=True)
        for batch in walk.batches(epoch, shuffled):
            terms = self._step(batch)
            running.sums[0] += terms["loss"].detach().sum()
            running.sums[1] += terms["error"].sum()
            running.count += terms["loss"].numel()
        loss_mean, error_mean = (running.sums / running.count).tolist()
        lr = self._rates(optimizer.steps - 1)
        for name, value in (("loss", loss_mean), ("error", error_mean), ("lr", lr)):
            self.trained.history[name].append(value)
        _record(self.trained, self._model, self._recipe, finite=optimizer.is_finite())

    def _step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """One step on a batch; returns the loss and the error of every sample before it."""
        optimizer = self._optimizer
        if self._augment:
            batch = self._augment(batch[0]), batch[1]
        optimizer.lr = self._rates(optimizer.steps)
        optimizer.zero_grad()
        terms = self._criterion.terms(self._outputs(batch), batch)
        terms["loss"].mean().backward()
        if self._recipe.clip is not None:
            optimizer.clip(self._recipe.clip)
        optimizer.step()
        return terms

    def _outputs(self, batch: Batch) -> Tensor:
        if not self._is_autocast:
            return self._criterion.predict(self._model, batch)
        with torch.autocast(self._samples.targets.device.type, torch.bfloat16):
            outputs = self._criterion.predict(self._model, batch)
        return outputs.float()

    def state(self) -> State:
        """What the training needs to continue, besides its samples and recipe."""
        trained = self.trained
        tensors = self._own()
        for kept, weights in trained.weights.items():
            tensors |= {f"{kept}/{name}": tensor for name, tensor in weights.items()}
        numbers = {name: getattr(trained, name) for name in _NUMBERS}
        return State(tensors, {**numbers, "kept": list(trained.weights)})

    def restore(self, state: State) -> None:
        """Continue from a state."""
        with torch.no_grad():
            for name, tensor in self._own().items():
                tensor.copy_(state.tensor(name, tensor))
        for name in _NUMBERS:
            setattr(self.trained, name, state.numbers[name])
        place = state.numbers["walk"]
        self._optimizer.steps = (place["epoch"] - 1) * self._rates.per_epoch + place["batches"]
        self.trained.weights = {
            kept: {name: state.tensor(f"{kept}/{name}", like) for name, like in self._model.state_dict().items()}
            for kept in state.numbers["kept"]
        }

    def _own(self) -> dict[str, Tensor]:
        """What it changes: parameters, all buffers (a state_dict may lack some), the optimiser's state."""
        named = [*self._model.named_parameters(), *self._model.named_buffers()]
        return {**self._optimizer.state, **{f"model/{name}": tensor for name, tensor in named}}


def _record(trained: TrainedModel, model: nn.Module, recipe: Train, *, finite: bool) -> None:
    """What the last epoch of the history means: divergence, a new best, an early stop, weights to be kept."""
    losses = trained.history["loss"]
    epoch = trained.epochs = len(losses)
    if not (finite and math.isfinite(losses[-1])):
        what = (
            "a weight was not finite after"
            if math.isfinite(losses[-1])
            else "the running training loss was not finite in"
        )
        trained.status, trained.reason = "diverged", f"{what} epoch {epoch}"
        trained.weights.clear()
        return
    if losses[-1] < min(losses[:-1], default=math.inf):
        trained.best_epoch = epoch
        trained.weights["best"] = _copy(model)
    if trained.early_stopped_epoch is None and stops_early(losses, recipe.early_stop):
        trained.early_stopped_epoch = epoch
        trained.weights["early-stopped"] = _copy(model)
    if epoch in recipe.keep:
        trained.weights[f"epoch-{epoch}"] = _copy(model)


def stops_early(losses: list[float], rule: EarlyStop) -> bool:
    """Whether the loss moved less than `tolerance` in each of the last `patience` epochs, none before `start`."""
    if len(losses) - rule.patience < max(rule.start - 1, 1):
        return False
    recent = losses[-rule.patience - 1 :]
    return all(abs(a - b) < rule.tolerance for a, b in pairwise(recent))


def _copy(model: nn.Module) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

"""Train one model: samples and a recipe in, weights and history out. Bit-identical on repetition."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from lossatlas.errors import UserError
from lossatlas.landscape.checkpoints import Checkpoints, State
from lossatlas.landscape.criterion import Criterion
from lossatlas.landscape.descent import Walk
from lossatlas.measures.jobs import Samples
from lossatlas.seeding import derive
from lossatlas.specs import EarlyStop, Schedule, Train

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
    weights), and the learning rate.
    """

    status: str = "ok"  # or "diverged"
    reason: str = ""
    epochs: int = 0
    best_epoch: int = 0
    early_stopped_epoch: int | None = None
    weights: dict[str, Weights] = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=lambda: {"loss": [], "error": [], "lr": []})


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
    """Train `model` in place by SGD on mini-batches; incomplete batches are dropped [Yang2021].

    The order of the samples and Dropout have streams of their own, drawn from `seed`; the global random state is
    put back. A running loss or a weight that is not finite ends the training with status `diverged`. Costs
    epochs * (N // B) steps. `checkpoints` are left between batches and continued from, with the same bits as
    without a stop; Stopped then passes through. Raises UserError when the batch is larger than the data.
    """
    if recipe.batch_size > len(samples):
        raise UserError(
            f"batch_size = {recipe.batch_size} is larger than the {len(samples)} training samples, so that no "
            "batch would be complete. Give a smaller batch_size or more data."
        )
    order = torch.Generator().manual_seed(derive(seed, "order"))
    device = samples.targets.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive(seed, "dropout"))
        descent = _Descent(model.train(), samples, criterion, recipe)
        walk = Walk(checkpoints, descent.state, sums=2, generators=[order], device=device)
        if walk.resumed:
            descent.restore(walk.resumed)
        elif 0 in recipe.keep:
            descent.trained.weights["epoch-0"] = _copy(model)
        trained = descent.trained
        for epoch in walk.remaining(range(1, recipe.epochs + 1)):
            descent.epoch(walk, epoch, order)
            if progress:
                progress(epoch, trained.history["loss"][-1])
            if trained.status != "ok":
                return trained
    trained.weights["final"] = _copy(model)
    return trained


def learning_rate(lr: float, schedule: Schedule, epoch: int, epochs: int) -> float:
    """The rate of an epoch (counted from 1): `step` multiplies it by `factor` when `at` of the epochs are over."""
    if schedule.name == "step" and epoch > schedule.at * epochs:
        return lr * schedule.factor
    return lr


class FlatSGD:
    """torch.optim.SGD on one flat vector that the parameters are views of: three operations a step in all.

    v <- momentum v + (g + weight_decay theta), theta <- theta - lr v, with v = 0 at first. A parameter that the
    loss does not reach has gradient 0 here and still decays. For networks of a few layers a step of batch 8 takes
    0.6 times as long as with torch.optim.SGD (benchmarks/training.py).
    """

    def __init__(self, model: nn.Module, *, momentum: float, weight_decay: float) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.lr = 0.0
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._theta = torch.cat([p.detach().reshape(-1) for p in parameters])
        self._gradient = torch.zeros_like(self._theta)
        self._velocity = torch.zeros_like(self._theta)
        sizes = [p.numel() for p in parameters]
        for p, value, gradient in zip(
            parameters, self._theta.split(sizes), self._gradient.split(sizes), strict=True
        ):
            p.data = value.view_as(p)
            p.grad = gradient.view_as(p)

    def zero_grad(self) -> None:
        """Set the gradient to 0; backward then adds to it in place."""
        self._gradient.zero_()

    def step(self) -> None:
        """One update from the gradient in place."""
        if self._weight_decay:
            self._gradient.add_(self._theta, alpha=self._weight_decay)
        self._velocity.mul_(self._momentum).add_(self._gradient)
        self._theta.add_(self._velocity, alpha=-self.lr)

    def is_finite(self) -> bool:
        """Whether all weights are finite."""
        return bool(self._theta.isfinite().all())

    @property
    def velocity(self) -> Tensor:
        """(n,): the state beside the weights, to be saved and changed in place."""
        return self._velocity


class _Descent:
    """A training in the middle of its epochs."""

    def __init__(self, model: nn.Module, samples: Samples, criterion: Criterion, recipe: Train) -> None:
        sgd = recipe.optimizer
        self.trained = TrainedModel()
        self._model, self._samples, self._criterion, self._recipe = model, samples, criterion, recipe
        self._optimizer = FlatSGD(model, momentum=sgd.momentum, weight_decay=sgd.weight_decay)

    def epoch(self, walk: Walk, epoch: int, order: torch.Generator) -> None:
        """One pass (or the rest of one); the running means of loss and error are read from the device once."""
        model, criterion, optimizer, recipe = self._model, self._criterion, self._optimizer, self._recipe
        optimizer.lr = learning_rate(recipe.optimizer.lr, recipe.schedule, epoch, recipe.epochs)
        running = walk.running
        shuffled = partial(self._samples.shuffled, recipe.batch_size, order, drop_last=True)
        for batch in walk.batches(epoch, shuffled):
            optimizer.zero_grad()
            terms = criterion.terms(criterion.predict(model, batch), batch)
            loss = terms["loss"].mean()
            loss.backward()
            optimizer.step()
            running.sums[0] += terms["loss"].detach().sum()
            running.sums[1] += terms["error"].sum()
            running.count += terms["loss"].numel()
        loss_mean, error_mean = (running.sums / running.count).tolist()
        for name, value in (("loss", loss_mean), ("error", error_mean), ("lr", optimizer.lr)):
            self.trained.history[name].append(value)
        _record(self.trained, model, recipe, finite=optimizer.is_finite())

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
        self.trained.weights = {
            kept: {name: state.tensor(f"{kept}/{name}", like) for name, like in self._model.state_dict().items()}
            for kept in state.numbers["kept"]
        }

    def _own(self) -> dict[str, Tensor]:
        """What the training changes: parameters, all buffers (a state_dict may lack some), the velocity."""
        named = [*self._model.named_parameters(), *self._model.named_buffers()]
        return {"velocity": self._optimizer.velocity, **{f"model/{name}": tensor for name, tensor in named}}


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

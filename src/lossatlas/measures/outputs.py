"""Forward passes that several measures share: each is done once a cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from lossatlas.errors import UserError
from lossatlas.measures.jobs import Job, TrainedSeed
from lossatlas.measures.settings import CKA, Part

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lossatlas.landscape.batches import Batch
    from lossatlas.landscape.criterion import Criterion
    from lossatlas.landscape.estimate import Estimate
    from lossatlas.landscape.layers import Side
    from lossatlas.landscape.objective import Objective

FORWARD_BATCH = 1024  # cut further by the objective; part of no key, since sums over samples are in float64

Comparison = Callable[
    [Sequence["Tensor"], "Tensor"], dict[str, "Estimate"]
]  # outputs (n, C) of models, targets (n,)


def on_samples(job: Job, trained: TrainedSeed, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs (N, C) of a model on the training or test samples, and the loss and extras of every sample (N,)."""
    from lossatlas.landscape.objective import Objective

    def make() -> tuple[Tensor, dict[str, Tensor]]:
        objective = Objective(trained.model, job.samples(part).batches(FORWARD_BATCH), job.criterion)
        return objective.scores(objective.center)

    scores: tuple[Tensor, dict[str, Tensor]] = job.remember(("scores", trained.seed, part), make)
    return scores


def sample_values(job: Job, trained: TrainedSeed, part: Part) -> dict[str, Tensor]:
    """The loss and extras of every independent sample (N,), to take means and standard errors of.

    Of sequences a sample is a sentence, and its values are those of `sequences.token_means`: their mean is that
    over tokens. Their outputs, a number a token and word of the vocabulary, are not kept.
    """
    from lossatlas.landscape.objective import Objective
    from lossatlas.landscape.sequences import per_sentence, token_means

    if not job.sequences:
        return on_samples(job, trained, part)[1]
    criterion = per_sentence(job.criterion)
    objective = Objective(trained.model, job.samples(part).batches(FORWARD_BATCH), criterion)
    return token_means(objective.samples(objective.center))


def on_inputs(job: Job, trained: TrainedSeed, inputs: Tensor, name: object) -> Tensor:
    """Outputs (n, C) of a model on inputs that are known by `name`."""
    import torch

    from lossatlas.landscape.objective import Objective

    def make() -> Tensor:
        targets = torch.zeros(len(inputs), dtype=torch.long, device=inputs.device)  # not looked at
        objective = Objective(trained.model, [(inputs, targets)], job.criterion)
        return objective.outputs(objective.center)

    outputs: Tensor = job.remember(("outputs", trained.seed, name), make)
    return outputs


def features(job: Job, trained: TrainedSeed, inputs: Tensor, layer: str, side: Side) -> Tensor:
    """What goes into a module of the model, or comes out of it, on inputs: (n, ...).

    Not kept: of feature maps it is as large as thousands of outputs.
    """
    import torch

    from lossatlas.landscape.layers import watched
    from lossatlas.landscape.objective import Objective

    targets = torch.zeros(len(inputs), dtype=torch.long, device=inputs.device)  # not looked at
    objective = Objective(trained.model, [(inputs, targets)], job.criterion)
    with watched(objective.model, layer, side) as found:
        return torch.cat([found() for _ in _piecewise(objective)])


def layer_problem(model: nn.Module, criterion: Criterion, batch: Batch, settings: CKA) -> str:
    """Why the layer that CKA is asked of cannot be compared, known from a small batch; empty if it can."""
    import torch

    from lossatlas.landscape.layers import watched

    if settings.layer is None:
        return ""
    try:
        with watched(model, settings.layer, settings.side) as found, torch.no_grad():
            criterion.predict(model.eval(), batch)
            shape = tuple(found().shape)
    except UserError as error:
        return f"measures.cka.outputs: {settings.outputs} was given. {error}"
    if settings.positions == "samples" and len(shape) != 4:
        of = f"{settings.outputs} has features of shape {shape[1:]}"
        return f"measures.cka.positions: samples was given, and {of}; allowed of these is flattened"
    return ""


def at_tokens(job: Job, trained: TrainedSeed, batch: Batch, name: object) -> Tensor:
    """Outputs (N, C) of a model at one target token of each sentence, of (source, target, place of the token)."""
    import torch

    from lossatlas.landscape.objective import Objective
    from lossatlas.landscape.sequences import lengths

    def make() -> Tensor:
        found = []
        for outputs, (_, target, place) in _piecewise(Objective(trained.model, [batch], job.criterion)):
            counts = lengths(target)
            found.append(outputs[counts.cumsum(0) - counts + place])
        return torch.cat(found)

    outputs: Tensor = job.remember(("outputs", trained.seed, name), make)
    return outputs


def compared(job: Job, models: Sequence[TrainedSeed], part: Part, compare: Comparison) -> dict[str, Estimate]:
    """What `compare` estimates of the outputs of models (in float64) and the targets, over all samples of a part.

    Of sequences over all target tokens, as the ratio of sums over sentences; sentence by sentence, so that memory
    holds the outputs of a few of them.
    """
    import torch

    from lossatlas.landscape.estimate import sample_mean
    from lossatlas.landscape.objective import Objective
    from lossatlas.landscape.sequences import lengths, real, token_means

    samples = job.samples(part)
    if not job.sequences:
        return compare([on_samples(job, m, part)[0].double() for m in models], samples.targets)
    objectives = [Objective(m.model, samples.batches(FORWARD_BATCH), job.criterion) for m in models]
    sums: dict[str, list[float]] = {"tokens": []}
    for found in zip(*map(_piecewise, objectives), strict=True):
        target = found[0][1][1]
        counts = lengths(target).tolist()
        rows = [outputs.double().split(counts) for outputs, _ in found]
        for *outputs, labels in zip(*rows, real(target).split(counts), strict=True):
            estimates = compare(outputs, labels)
            if any(estimate.status != "ok" for estimate in estimates.values()):
                return estimates
            sums["tokens"].append(len(labels))
            for name, estimate in estimates.items():
                sums.setdefault(name, []).append(estimate.value * len(labels))
    means = token_means({name: torch.tensor(column, dtype=torch.float64) for name, column in sums.items()})
    return {name: sample_mean(column) for name, column in means.items()}


def _piecewise(objective: Objective) -> Iterator[tuple[Tensor, Batch]]:
    """The outputs on every piece of the data, and the piece."""
    import torch

    tensors, buffers = objective.unflatten(objective.center), objective.buffers(objective.center)
    for piece in objective.batches():
        with torch.no_grad():
            outputs = objective.predict(tensors, buffers, piece)
        yield outputs, piece

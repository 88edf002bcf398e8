"""Measures of pairs of models (mode connectivity, distance, disagreement) and of all seeds of a cell."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lossatlas.measures.jobs import Job, Outcome, TrainedSeed, Values
from lossatlas.measures.models import evaluate
from lossatlas.measures.outputs import FORWARD_BATCH, compared
from lossatlas.measures.settings import Connectivity, Disagreement, Distance, Ensemble, Evaluation
from lossatlas.results import Quantity
from lossatlas.seeding import derive

if TYPE_CHECKING:
    from torch import Tensor

    from lossatlas.landscape.estimate import Estimate

LEAST_MEMBERS = 2  # of an ensemble
RECALIBRATION_BATCH = 128  # the batches whose statistics BatchNorm averages; part of the definition

_CURVE = "at the points of the curve, BatchNorm re-estimated at each"
_TRAPEZOID = "trapezoid over arc length"
CURVE_QUANTITIES = (
    *(
        quantity
        for part, people in (("train", "training"), ("test", "test"))
        for name, units in (("loss", "nat"), ("error", "%"))
        for quantity in (
            Quantity(f"{part}_{name}", units, f"{people} {name} along the curve", _CURVE),
            Quantity(f"{part}_{name}_min", units, f"smallest {people} {name} along the curve", _CURVE),
            Quantity(f"{part}_{name}_max", units, f"largest {people} {name} along the curve", _CURVE),
            Quantity(f"{part}_{name}_mean", units, f"mean {people} {name} over the points", _CURVE),
            Quantity(f"{part}_{name}_integral", units, f"length-weighted mean {people} {name}", _TRAPEZOID),
        )
    ),
    Quantity("arc_length", "1", "arc length of the curve in parameter space", "Gauss quadrature of the speed"),
)

CONNECTIVITY_QUANTITIES = (
    Quantity("mode_connectivity", "%", "mode connectivity", "[Yang2021] eq. 4"),
    Quantity(
        "mode_connectivity_se", "%", "standard error of mode connectivity", "paired over samples, t* as found"
    ),
    Quantity("t_star", "1", "where the curve deviates most", "argmax |h - E(t)|"),
    Quantity("t_star_at_end", "1", "1: an end deviates more than every inner point", "argmax over all points"),
    Quantity("curve_train_loss", "nat", "training loss of the curve's last epoch, at random t", "running mean"),
)

DISTANCE_QUANTITIES = (Quantity("distance", "1", "l2 distance of the parameters", "exact"),)
DISAGREEMENT_QUANTITIES = (
    Quantity("disagreement", "%", "disagreement of predictions", "test samples; of text, of target tokens"),
    Quantity(
        "disagreement_se",
        "%",
        "standard error of the disagreement",
        "binomial; of text as of a ratio, over the sentences",
    ),
    Quantity(
        "jensen_shannon",
        "nat",
        "Jensen-Shannon divergence of the softmax outputs",
        "mean over samples or target tokens",
    ),
    Quantity("jensen_shannon_se", "nat", "standard error of the Jensen-Shannon divergence", "s / sqrt(N)"),
    Quantity("output_cosine", "1", "cosine of the outputs before softmax", "mean over samples or target tokens"),
    Quantity("output_cosine_se", "1", "standard error of the cosine", "s / sqrt(N)"),
)
ENSEMBLE_QUANTITIES = (
    Quantity("ensemble_error", "%", "test error of the ensemble of all ok seeds", "argmax of the mean softmax"),
    Quantity("ensemble_error_se", "%", "standard error of the ensemble's error", "s / sqrt(N)"),
    Quantity("ensemble_size", "1", "seeds in the ensemble", "count"),
)


def chosen_pairs(settings: Connectivity, seeds: Sequence[int]) -> list[tuple[int, int]]:
    """The pairs of seeds to connect: all, the ring (0,1)(1,2)...(n-1,0), its first ones, or those listed."""
    ordered = sorted(seeds)
    ring = [(min(a, b), max(a, b)) for a, b in zip(ordered, [*ordered[1:], *ordered[:1]], strict=True) if a != b]
    ring = list(dict.fromkeys(ring))  # of two seeds, the ring is one pair
    if settings.pairs == "all":
        return list(itertools.combinations(ordered, 2))
    if settings.pairs == "ring":
        return ring
    if isinstance(settings.pairs, int):
        rest = [pair for pair in itertools.combinations(ordered, 2) if pair not in ring]
        return [*ring, *rest][: settings.pairs]
    return list(settings.pairs)


def fit_curve(
    job: Job, settings: Connectivity, models: Sequence[TrainedSeed], _inputs: Mapping[str, Tensor]
) -> Outcome:
    """The bends of a low-loss curve between two models; see `landscape.curve_fitting.fit`."""
    import torch

    from lossatlas.landscape import curve_fitting
    from lossatlas.landscape.parameters import flat_parameters

    first, second = models
    seed = derive(first.seed, f"curve to {second.seed}")
    order = torch.Generator().manual_seed(derive(seed, "order"))
    bends = [flat_parameters(job.initialise(derive(seed, f"bend {i}"))) for i in range(settings.bends)]
    fitted = curve_fitting.fit(
        first.model,
        (first.theta, second.theta),
        lambda _epoch: job.train.shuffled(settings.batch_size, order, drop_last=False),
        job.criterion,
        seed=seed,
        bends=settings.bends,
        epochs=settings.epochs_on(len(job.train)),
        lr=settings.lr,
        momentum=settings.momentum,
        l2=settings.l2,
        kind=settings.kind,
        start=torch.stack(bends).to(first.theta) if settings.start == "random" else "midpoint",
        progress=lambda epoch, loss: job.progress and job.progress(epoch + 1, loss),
        checkpoints=job.checkpoints,
        generators=[order],
    )
    values: Values = {"curve_train_loss": fitted.losses[-1]}
    return Outcome(values, fitted.status, fitted.reason, {"bends": fitted.points[1:-1].cpu().contiguous()})


def connectivity(
    job: Job, settings: Connectivity, models: Sequence[TrainedSeed], inputs: Mapping[str, Tensor]
) -> Outcome:
    """Loss and error along the fitted curve on training and test samples, and mode connectivity.

    BatchNorm is re-estimated on the training samples at every point, once for both parts. An end no better than
    guessing by its error is `collapsed`, also where mc is that of the loss.
    """
    import torch

    from lossatlas.landscape import paths
    from lossatlas.landscape.objective import Objective
    from lossatlas.landscape.sequences import per_sentence, token_means

    first, second = models
    points = torch.stack([first.theta, *inputs["bends"].to(first.theta), second.theta])
    objective = Objective(
        first.model,
        lambda: itertools.chain(job.train.batches(FORWARD_BATCH)(), job.test.batches(FORWARD_BATCH)()),
        per_sentence(job.criterion) if job.sequences else job.criterion,
        batchnorm="recalibrate",
        recalibration=job.train.batches(RECALIBRATION_BATCH),
    )
    ts = torch.linspace(0, 1, settings.points, dtype=torch.float64)
    along = paths.evaluate(objective, points, ts, kind=settings.kind)
    split = {"train": slice(0, len(job.train)), "test": slice(len(job.train), None)}
    parts = {part: {name: rows[:, index] for name, rows in along.samples.items()} for part, index in split.items()}
    if job.sequences:
        parts = {part: token_means(sums) for part, sums in parts.items()}
    values: Values = {"arc_length": along.positions[-1].item()}
    for part, columns in parts.items():
        for name, rows in columns.items():
            values |= _curve_values(f"{part}_{name}", ts, rows.mean(1), along.positions)
    errors, losses = (parts[settings.data][name] for name in ("error", "loss"))
    mc = paths.connectivity(
        errors.mean(1), ts, rule=settings.rule, samples=errors, guessing=job.guessing(settings.data)
    )
    if settings.on == "loss" and mc.status == "ok":
        mc = paths.connectivity(losses.mean(1), ts, rule=settings.rule, samples=losses)
    values |= {"mode_connectivity": mc.value, "mode_connectivity_se": mc.stderr, "t_star": mc.t_star}
    values["t_star_at_end"] = float(mc.t_star_at_end)
    return Outcome(values, mc.status, mc.reason)


def _curve_values(name: str, ts: Tensor, values: Tensor, positions: Tensor) -> Values:
    from lossatlas.landscape import paths

    summary = paths.summary(ts, values, positions)
    return {
        name: values.tolist(),
        f"{name}_min": summary.min,
        f"{name}_max": summary.max,
        f"{name}_mean": summary.mean,
        f"{name}_integral": summary.integral,
    }


def distance(
    _job: Job, _settings: Distance, models: Sequence[TrainedSeed], _inputs: Mapping[str, Tensor]
) -> Outcome:
    """l2 distance of the parameters."""
    from lossatlas.landscape import similarity

    return _outcome({"distance": similarity.distance(models[0].theta, models[1].theta)})


def disagreement(
    job: Job, settings: Disagreement, models: Sequence[TrainedSeed], _inputs: Mapping[str, Tensor]
) -> Outcome:
    """Disagreement in percent, Jensen-Shannon divergence and cosine of the outputs, with standard errors."""
    from lossatlas.landscape import similarity

    def compare(outputs: Sequence[Tensor], _targets: Tensor) -> dict[str, Estimate]:
        a, b = outputs
        p, q = a.softmax(dim=1), b.softmax(dim=1)
        return {
            "disagreement": similarity.disagreement(p, q),
            "jensen_shannon": similarity.jensen_shannon(p, q),
            "output_cosine": similarity.cosine(a, b),
        }

    return _outcome(compared(job, models, settings.data, compare))


def ensemble(
    job: Job, settings: Ensemble, models: Sequence[TrainedSeed], _inputs: Mapping[str, Tensor]
) -> Outcome:
    """The error of the averaged softmax outputs of all seeds but those that collapsed."""
    from lossatlas.landscape import similarity

    kept = [model for model in models if evaluate(job, Evaluation(), [model], {}).status == "ok"]
    if len(kept) < LEAST_MEMBERS:
        return Outcome({}, "collapsed", f"{len(kept)} of {len(models)} models are better than guessing")

    def compare(outputs: Sequence[Tensor], targets: Tensor) -> dict[str, Estimate]:
        members = [logits.softmax(dim=1) for logits in outputs]
        return {"ensemble_error": similarity.ensemble_error(members, targets)}

    outcome = _outcome(compared(job, kept, settings.data, compare))
    outcome.values["ensemble_size"] = float(len(kept))
    return outcome


def _outcome(estimates: Mapping[str, Estimate]) -> Outcome:
    """Values and standard errors; the first estimate that failed gives the status."""
    values: Values = {}
    for name, estimate in estimates.items():
        values |= {name: estimate.value, f"{name}_se": estimate.stderr}
    bad = [e for e in estimates.values() if e.status != "ok"]
    return Outcome(values, bad[0].status, bad[0].reason) if bad else Outcome(values)

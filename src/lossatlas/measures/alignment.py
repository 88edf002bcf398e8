"""The measure CKA: which samples both models of a pair are shown, and what of them is compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lossatlas.measures.jobs import Job, Outcome, TrainedSeed
from lossatlas.measures.outputs import at_tokens, features, on_inputs
from lossatlas.measures.settings import CKA
from lossatlas.results import Quantity
from lossatlas.seeding import derive

if TYPE_CHECKING:
    from torch import Tensor

    from lossatlas.landscape.batches import Batch
    from lossatlas.landscape.estimate import Estimate

PUBLISHED_BATCH = 128

CKA_QUANTITIES = (
    Quantity("cka", "1", "CKA similarity", "as the settings say"),
    Quantity("cka_se", "1", "standard error of CKA over samples", "jackknife that leaves out runs"),
)


def cka(job: Job, settings: CKA, models: Sequence[TrainedSeed], _inputs: Mapping[str, Tensor]) -> Outcome:
    """CKA of a pair of seeds; see `landscape.alignment`.

    `published`: the samples are drawn anew for (a, b) and for (b, a), and the two values averaged.
    """
    from lossatlas.landscape import alignment

    first, second = models
    draws = ["all pairs"]
    if settings.protocol == "published":
        draws = [f"{first.seed} {second.seed}", f"{second.seed} {first.seed}"]
    estimates = [
        alignment.cka(
            *_compared(job, settings, models, draw),
            kernel=settings.kernel,
            bandwidth=settings.bandwidth,
            debiased=settings.debiased,
            positions=settings.positions == "samples",
            blocks=_runs(job, settings),
        )
        for draw in draws
    ]
    return _mean_outcome("cka", estimates)


def _runs(job: Job, settings: CKA) -> int:
    """The runs of samples that the jackknife leaves out: of mixup images those that share a lambda.

    In the published protocol they are batches of 128.
    """
    from lossatlas.landscape import alignment, similarity

    if job.sequences or not settings.mixup_alpha:
        return alignment.BLOCKS
    count = min(settings.images, len(job.samples(settings.data)))
    if settings.protocol == "published":
        return min(count, max(2, math.ceil(count / PUBLISHED_BATCH)))
    return similarity.mixup_runs(count)


def _compared(job: Job, settings: CKA, models: Sequence[TrainedSeed], draw: str) -> list[Tensor]:
    """What is compared of each model, on the samples of a draw."""
    if job.sequences:
        drawn = _tokens(job, settings, draw)
        logits = [at_tokens(job, m, drawn, ("tokens", draw)) for m in models]
    else:
        images = _images(job, settings, draw)
        if settings.layer is not None:
            return [features(job, m, images, settings.layer, settings.side) for m in models]
        logits = [on_inputs(job, m, images, ("mixup", draw)) for m in models]
    return [each.double().softmax(dim=1) if settings.outputs == "softmax" else each for each in logits]


def _tokens(job: Job, settings: CKA, draw: str) -> Batch:
    """(source, target, place of one target token a sentence) of a draw; all pairs share one, as of `_images`."""
    import torch

    from lossatlas.landscape.sequences import lengths

    def make() -> Batch:
        generator = np.random.default_rng(derive(0, f"tokens of {draw}"))
        samples = job.samples(settings.data)
        source, target = samples.head(settings.images)
        if settings.protocol == "published":
            chosen = generator.permutation(len(samples))[: settings.images]
            source, target = samples.take(torch.from_numpy(chosen).to(samples.targets.device))
        places = generator.integers(lengths(target).cpu().numpy())  # from 0 up to each length, that excluded
        return source, target, torch.from_numpy(places).to(target.device)

    return job.remember(("inputs", draw), make)


def _images(job: Job, settings: CKA, draw: str) -> Tensor:
    """The images of a draw, mixed and noisy; all pairs share one, unless the published protocol is asked for."""
    import torch

    from lossatlas.landscape import similarity

    def make() -> Tensor:
        generator = np.random.default_rng(derive(0, f"mixup of {draw}"))
        samples = job.samples(settings.data)
        inputs = samples.head(settings.images)[0]
        if settings.protocol == "published":
            images = generator.permutation(len(samples))[: settings.images]
            inputs = samples.take(torch.from_numpy(images).to(samples.targets.device))[0]
        if settings.mixup_alpha:
            alpha, runs = settings.mixup_alpha, _runs(job, settings)
            inputs = similarity.mixup(inputs, alpha=alpha, runs=runs, generator=generator)
        if settings.noise:
            draws = np.random.default_rng(derive(0, f"noise of {draw}"))
            inputs = similarity.noisy(inputs, settings.noise, generator=draws)
        return inputs

    found: Tensor = job.remember(("inputs", draw), make)
    return found


def _mean_outcome(name: str, estimates: Sequence[Estimate]) -> Outcome:
    """The mean of independent estimates of the same quantity."""
    bad = [e for e in estimates if e.status != "ok"]
    if bad:
        return Outcome({}, bad[0].status, bad[0].reason)
    count = len(estimates)
    stderr = sum(e.stderr**2 for e in estimates) ** 0.5 / count
    return Outcome({name: sum(e.value for e in estimates) / count, f"{name}_se": stderr})

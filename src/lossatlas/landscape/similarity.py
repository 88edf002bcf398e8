"""How alike two trained models are: CKA, agreement, divergence, cosine, distance; and their ensemble.

Functions of outputs (N, C) on the same samples in the same order, of any floating-point dtype; arithmetic is in
float64. Every standard error is over samples, for two fixed models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lossatlas.errors import UserError
from lossatlas.landscape import alignment
from lossatlas.landscape.alignment import cka as cka
from lossatlas.landscape.estimate import Estimate, sample_mean

RUNS, SHORTEST = 20, 16  # of mixup: at most so many runs of images, and images a run


def mixup_runs(samples: int) -> int:
    """The runs of images that share a lambda: 20, or fewer that have 16 images to be mixed with; at least 2."""
    return min(RUNS, max(2, samples // SHORTEST), samples)


def mixup(
    inputs: Tensor, *, alpha: float = 16.0, runs: int | None = None, generator: np.random.Generator
) -> Tensor:
    """(m, ...): lambda x_i + (1 - lambda) x_pi(i) [Zhang 2018], inputs only, as [Yang2021] feeds to CKA.

    One lambda ~ Beta(alpha, alpha) and one random permutation pi for each of `runs` runs of consecutive inputs
    of equal length (None: `mixup_runs`), which are the `blocks` that the jackknife of `cka` has to leave out.
    """
    if not inputs.is_floating_point():
        raise UserError(f"Inputs of dtype {inputs.dtype} cannot be mixed. Give floating-point inputs.")
    runs = mixup_runs(len(inputs)) if runs is None else runs
    if not alpha > 0 or not 1 <= runs <= len(inputs):
        raise UserError(
            f"alpha={alpha}, runs={runs}, {len(inputs)} inputs: mixup needs alpha > 0 and at least 1 input a run."
        )
    mixed = []
    for part in inputs.tensor_split(runs):
        share = generator.beta(alpha, alpha)
        partner = torch.from_numpy(generator.permutation(len(part))).to(inputs.device)
        mixed.append(share * part + (1 - share) * part[partner])
    return torch.cat(mixed)


def noisy(inputs: Tensor, deviation: float, *, generator: np.random.Generator) -> Tensor:
    """(m, ...): inputs + `deviation` z, z ~ N(0, 1) independent for every number; nothing is clipped."""
    if not inputs.is_floating_point():
        raise UserError(f"Inputs of dtype {inputs.dtype} take no noise. Give floating-point inputs.")
    noise = torch.from_numpy(generator.standard_normal(tuple(inputs.shape), dtype=np.float32))
    return inputs + deviation * noise.to(inputs)


def distance(theta_a: Tensor, theta_b: Tensor) -> Estimate:
    """|theta_a - theta_b|_2 of two parameter vectors (n,): exact, so with standard error 0 (no sampling)."""
    if theta_a.shape != theta_b.shape:
        raise UserError(
            f"Parameter vectors of shapes {tuple(theta_a.shape)} and {tuple(theta_b.shape)} have no distance."
        )
    if (failure := alignment.non_finite(theta_a, theta_b)) is not None:
        return failure
    return Estimate(torch.linalg.vector_norm(theta_a.double() - theta_b.double()).item(), 0.0, theta_a.numel())


def agreement(p: Tensor, q: Tensor) -> Estimate:
    """The percentage of samples for which both outputs (N, C) are largest at the same class; ties: the first.

    The standard error is the binomial one, 100 sqrt(f (1 - f) / (N - 1)): 0 where all samples do the same.
    """
    _check_pair(p, q)
    return alignment.non_finite(p, q) or sample_mean(100.0 * (p.argmax(1) == q.argmax(1)))


def disagreement(p: Tensor, q: Tensor) -> Estimate:
    """The percentage of samples for which the outputs (N, C) are largest at different classes."""
    _check_pair(p, q)
    return alignment.non_finite(p, q) or sample_mean(100.0 * (p.argmax(1) != q.argmax(1)))


def jensen_shannon(p: Tensor, q: Tensor) -> Estimate:
    """The mean over samples of the Jensen-Shannon divergence of probabilities (N, C), in nats: 0 to ln 2.

    sum_c [p log(p/m) + q log(q/m)] / 2 with m = (p + q)/2 and 0 log 0 = 0. Rows are normalised to sum to one in
    float64. Raises UserError for rows that are no probabilities.
    """
    _check_pair(p, q)
    if (failure := alignment.non_finite(p, q)) is not None:
        return failure
    p, q = _normalised(p), _normalised(q)
    middle = (p + q) / 2
    middle = middle.where(middle > 0, 1.0)  # where both are 0 the term is 0 log(0/1)
    terms = torch.xlogy(p, p / middle) + torch.xlogy(q, q / middle)
    return sample_mean(terms.sum(1) / 2)


def cosine(outputs_a: Tensor, outputs_b: Tensor) -> Estimate:
    """The mean over samples of the cosine between both outputs (N, C) of a sample (not of flattened batches).

    A zero output has no direction: status `"degenerate"`.
    """
    _check_pair(outputs_a, outputs_b)
    if (failure := alignment.non_finite(outputs_a, outputs_b)) is not None:
        return failure
    a, b = outputs_a.double(), outputs_b.double()
    norms = a.norm(dim=1) * b.norm(dim=1)
    if zero := int((norms == 0).sum()):
        return Estimate.failed("degenerate", f"{zero} of {len(a)} samples have a zero output", len(a))
    return sample_mean((a * b).sum(1) / norms)


def ensemble_error(probabilities: Sequence[Tensor], labels: Tensor) -> Estimate:
    """The 0-1 error in percent of the averaged probabilities, each (N, C), against labels (N,)."""
    if not probabilities:
        raise UserError("An ensemble of no model has no error. Give the probabilities of at least one.")
    for member in probabilities:
        _check_pair(probabilities[0], member)
    if labels.shape != probabilities[0].shape[:1]:
        raise UserError(f"labels of shape {tuple(labels.shape)} do not fit {len(probabilities[0])} samples.")
    if (failure := alignment.non_finite(*probabilities)) is not None:
        return failure
    average = torch.stack([member.double() for member in probabilities]).mean(0)
    return sample_mean(100.0 * (average.argmax(1) != labels))


def _normalised(p: Tensor) -> Tensor:
    sums = p.double().sum(1, keepdim=True)
    # A softmax in float16 sums to one within some 1e-2; logits do not.
    if bool((p < 0).any()) or bool(((sums - 1).abs() > 0.02).any()):
        raise UserError("The Jensen-Shannon divergence is of probabilities: give softmax outputs, not logits.")
    return p.double() / sums


def _check_pair(a: Tensor, b: Tensor) -> None:
    fits = a.dim() == b.dim() == 2 and len(a) > 0 and a.shape == b.shape
    if not fits or not (a.is_floating_point() and b.is_floating_point()):
        raise UserError(alignment.unlike(a, b))

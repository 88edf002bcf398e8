"""Measures of one model: loss and error, Hessian, density of its eigenvalues, BLEU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lossatlas.measures.jobs import Job, Outcome, TrainedSeed, Values
from lossatlas.measures.outputs import sample_values
from lossatlas.measures.settings import Bleu, Density, Evaluation, Hessian, Part
from lossatlas.results import Quantity
from lossatlas.seeding import derive

if TYPE_CHECKING:
    from torch import Tensor

    from lossatlas.landscape.density import Density as FoundDensity
    from lossatlas.landscape.hutchinson import TraceEstimate
    from lossatlas.landscape.lanczos import Eigenpairs

ROUNDING = 1e-12  # relative: an error and a share of the same samples are rounded differently
BASIS_BYTES = 1 << 30  # memory of the Krylov basis; a full one is compressed and goes on

_MEAN = "mean over all samples (of text, over target tokens), eval mode"
_SE = "s / sqrt(N) over the samples; of text that of a ratio, over the sentences"

EVALUATION_QUANTITIES = tuple(
    quantity
    for part, people in (("train", "training"), ("test", "test"))
    for quantity in (
        Quantity(f"{part}_loss", "nat", f"{people} loss", _MEAN),
        Quantity(f"{part}_loss_se", "nat", f"standard error of the {people} loss", _SE),
        Quantity(f"{part}_error", "%", f"{people} error", _MEAN),
        Quantity(f"{part}_error_se", "%", f"standard error of the {people} error", _SE),
    )
)

_LANCZOS = "Lanczos with full reorthogonalisation"
HESSIAN_QUANTITIES = (
    Quantity("hessian_eig", "nat", "largest Hessian eigenvalue", _LANCZOS),
    Quantity("hessian_eig_residual", "nat", "residual |Hv - ev| of the largest eigenvalue", _LANCZOS),
    Quantity("hessian_eig_min", "nat", "smallest Hessian eigenvalue", _LANCZOS),
    Quantity("hessian_eig_min_converged", "1", "1: the smallest eigenvalue met its tolerance", "as the largest"),
    Quantity("hessian_eig_min_residual", "nat", "residual |Hv - ev| of the smallest eigenvalue", _LANCZOS),
    Quantity(
        "hessian_eig_converged", "1", "1: the largest eigenvalue met its tolerance", "residual <= tol max|e|"
    ),
    Quantity("hessian_eigs", "nat", "largest Hessian eigenvalues, descending", _LANCZOS),
    Quantity("hessian_matvecs", "1", "Hessian-vector products spent on eigenvalues", "count"),
    Quantity("hessian_trace", "nat", "Hessian trace", "tr H = tr GGN where exact, else Hutchinson"),
    Quantity("hessian_trace_se", "nat", "standard error of the trace's estimator", "0: exact; else over probes"),
    Quantity("hessian_trace_data_se", "nat", "standard error of the trace over samples", "s / sqrt(m), if exact"),
    Quantity("hessian_trace_exact", "1", "1: the trace has no estimator error", "tr H = tr GGN detected"),
    Quantity(
        "hessian_trace_converged", "1", "1: the trace met its relative error", "standard error <= rel |trace|"
    ),
)

_SLQ = "stochastic Lanczos quadrature"
DENSITY_QUANTITIES = (
    *(
        quantity
        for sign, people in (
            ("negative", "surely negative"),
            ("undecided", "of undecided sign"),
            ("positive", "surely positive"),
        )
        for quantity in (
            Quantity(f"{sign}_share", "1", f"share of eigenvalues {people}", f"bounds on {_SLQ}"),
            Quantity(f"{sign}_share_se", "1", f"standard error of the {sign} share", "s / sqrt(probes)"),
        )
    ),
    Quantity("density_matvecs", "1", "Hessian-vector products spent on the density", "count"),
)
NODE_QUANTITIES = (
    Quantity("ritz_value", "nat", "Ritz value", _SLQ),
    Quantity("ritz_weight", "1", "share of the eigenvalues that a probe puts there", _SLQ),
    Quantity("ritz_residual", "nat", "an eigenvalue lies within it of the Ritz value", _SLQ),
)
OPERATOR_QUANTITIES = (
    Quantity("hessian_order", "1", "order of the Hessian: trained parameters", "count"),
    Quantity("sign_threshold", "nat", "what rounding may make of an eigenvalue 0", "100 eps max|Ritz value|"),
)

BLEU_QUANTITIES = (
    Quantity("bleu", "1", "BLEU", "sacrebleu, corpus level, tokens 13a; from 0 to 100"),
    Quantity("bleu_se", "1", "standard error of BLEU", "over 1,000 resamplings of the sentences"),
    Quantity("bleu_sentences", "1", "sentences translated", "count"),
)


def evaluate(
    job: Job, _settings: Evaluation, models: Sequence[TrainedSeed], _inputs: Mapping[str, Tensor]
) -> Outcome:
    """Mean loss and error of all samples; a model no better than a constant prediction is `collapsed`."""
    from lossatlas.landscape.estimate import sample_mean

    (trained,) = models
    values: Values = {}
    parts: tuple[Part, ...] = ("train", "test")
    for part in parts:
        for name, column in sample_values(job, trained, part).items():
            estimate = sample_mean(column)
            values[f"{part}_{name}"], values[f"{part}_{name}_se"] = estimate.value, estimate.stderr
    infinite = [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
    if infinite:
        return Outcome(values, "failed", f"{', '.join(infinite)} is not finite")
    guessing = job.guessing("train")
    error = values["train_error"]
    if isinstance(error, float) and error >= guessing * (1 - ROUNDING):
        reason = f"the training error of {error:.4g}% is no better than a constant prediction ({guessing:.4g}%)"
        return Outcome(values, "collapsed", reason)
    return Outcome(values)


def bleu(job: Job, settings: Bleu, models: Sequence[TrainedSeed], _inputs: Mapping[str, Tensor]) -> Outcome:
    """BLEU of the translations of all sentences of a part; see `measures.bleu` and `measures.decoding`."""
    from lossatlas.measures.bleu import corpus_bleu, translations

    (trained,) = models
    samples = job.samples(settings.data)
    found, wanted = translations(trained.model, samples, beam=settings.beam, max_length=settings.max_length)
    estimate = corpus_bleu(found, wanted, seed=derive(trained.seed, "bleu"))
    return Outcome({"bleu": estimate.value, "bleu_se": estimate.stderr, "bleu_sentences": float(estimate.count)})


def hessian(job: Job, settings: Hessian, models: Sequence[TrainedSeed], _inputs: Mapping[str, Tensor]) -> Outcome:
    """Extremal eigenvalues and trace on `images` samples; see `landscape.lanczos` and `landscape.trace`."""
    from lossatlas.landscape.lanczos import eigenpairs
    from lossatlas.landscape.objective import Objective
    from lossatlas.landscape.operators import hessian as operator_of
    from lossatlas.landscape.trace import trace

    (trained,) = models
    seed = derive(trained.seed, "hessian")
    objective = Objective(trained.model, [_images(job, settings, seed)], job.criterion)
    operator = operator_of(objective)
    pairs = eigenpairs(
        operator,
        settings.eigenvalues,
        which="both",
        tol=settings.tol,
        max_matvecs=settings.max_matvecs,
        max_basis=max(20 * settings.eigenvalues, BASIS_BYTES // (4 * operator.size)),
        seed=seed,
    )
    tr = trace(objective, rel=settings.trace_rel, max_matvecs=settings.max_matvecs, seed=seed)
    values = _hessian_values(pairs, tr, published=settings.protocol == "published")
    bad = [name for name in ("hessian_eig", "hessian_trace") if not math.isfinite(float(values[name]))]  # type: ignore[arg-type]
    if bad:
        return Outcome({}, "failed", f"{' and '.join(bad)} is not finite ({pairs.reason or tr.reason})")
    late = [text for done, text in ((pairs.converged.all(), pairs.reason), (tr.converged, tr.reason)) if not done]
    return Outcome(values, "unconverged", "; ".join(late)) if late else Outcome(values)


def _images(job: Job, settings: Hessian, seed: int) -> tuple[Tensor, Tensor]:
    import torch

    samples = job.samples(settings.data)
    if settings.protocol == "lossatlas":
        return samples.head(settings.images)
    generator = torch.Generator().manual_seed(seed)
    return samples.take(torch.randperm(len(samples), generator=generator)[: settings.images])


def _hessian_values(pairs: Eigenpairs, tr: TraceEstimate, *, published: bool) -> Values:
    k = len(pairs.eigenvalues) // 2  # the k largest, then the k smallest
    top = 0
    if published and abs(pairs.eigenvalues[k]) > abs(pairs.eigenvalues[0]):
        top = k  # [Yang2021]'s power iteration finds the largest magnitude, whatever its sign
    values: Values = {
        "hessian_eig": pairs.eigenvalues[top].item(),
        "hessian_eig_residual": pairs.residuals[top].item(),
        "hessian_eig_converged": float(pairs.converged[top]),
        "hessian_eig_min": pairs.eigenvalues[k].item(),
        "hessian_eig_min_residual": pairs.residuals[k].item(),
        "hessian_eig_min_converged": float(pairs.converged[k]),
        "hessian_eigs": pairs.eigenvalues[:k].tolist(),
        "hessian_matvecs": float(pairs.matvecs),
        "hessian_trace": tr.value,
        "hessian_trace_se": tr.stderr,
        "hessian_trace_data_se": tr.data_stderr,
        "hessian_trace_exact": float(tr.method == "exact-ggn"),
        "hessian_trace_converged": float(tr.converged),
    }
    return values


def density(job: Job, settings: Density, models: Sequence[TrainedSeed], _inputs: Mapping[str, Tensor]) -> Outcome:
    """Density of the eigenvalues on `images` samples, as the quadrature of every probe; see `landscape.density`.

    The values are flat lists of Ritz values, weights and residuals, probe after probe, of `ritz_nodes` each.
    """
    from lossatlas.landscape.density import density as density_of
    from lossatlas.landscape.objective import Objective
    from lossatlas.landscape.operators import hessian as operator_of

    (trained,) = models
    objective = Objective(trained.model, [job.samples(settings.data).head(settings.images)], job.criterion)
    found = density_of(
        operator_of(objective),
        probes=settings.probes,
        steps=settings.steps,
        seed=derive(trained.seed, "density"),
    )
    if found.status != "ok":
        return Outcome({}, "failed", f"the density of the eigenvalues is {found.status} ({found.reason})")
    return Outcome(_density_values(found))


def _density_values(found: FoundDensity) -> Values:
    signs = found.signs()
    values: Values = {
        "density_matvecs": float(found.matvecs),
        "hessian_order": float(found.size),
        "sign_threshold": signs.threshold,
        "ritz_nodes": [len(ritz) for ritz in found.ritz],
    }
    for sign, share in (
        ("negative", signs.negative),
        ("undecided", signs.undecided),
        ("positive", signs.positive),
    ):
        values[f"{sign}_share"], values[f"{sign}_share_se"] = share.value, share.stderr
    for name, probes in (("value", found.ritz), ("weight", found.weights), ("residual", found.residuals)):
        values[f"ritz_{name}"] = [number for probe in probes for number in probe.tolist()]
    return values

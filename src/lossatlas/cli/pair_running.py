"""What `connect` and `compare` do with two or more checkpoints."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, product
from typing import cast

import numpy as np
import safetensors.numpy
import torch
import xarray as xr
from torch import Tensor, nn

from lossatlas import files, pair_results
from lossatlas.cli.local_running import deliver
from lossatlas.cli.opened import DTYPES, Opened, at_center, open_target
from lossatlas.cli.output import note, say, table
from lossatlas.cli.progress import Stages
from lossatlas.cli.target import Target
from lossatlas.errors import UserError
from lossatlas.figures.relations import comparison, connection
from lossatlas.landscape import alignment, curve_fitting, paths, similarity
from lossatlas.landscape.descent import has_batchnorm
from lossatlas.landscape.estimate import Estimate, sample_mean
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.parameters import layout_of
from lossatlas.landscape.result import with_error
from lossatlas.seeding import derive

CKA_IMAGES = 2560  # 20 runs of 128 mixup images


@dataclass(frozen=True)
class Fit:
    """How a path is trained; see `curve_fitting.fit`."""

    kind: str
    bends: int
    epochs: int
    lr: float
    momentum: float
    l2: float


def connect(target: Target, fit: Fit, *, points: int) -> None:
    """The straight line and a trained path between every pair."""
    if fit.kind not in ("bezier", "chain"):
        raise UserError(f"--kind {fit.kind!r} is unknown. Allowed are bezier and chain.")
    opened = open_target(target, at_least=2, batchnorm="recalibrate", images=None, needs_error=True)
    warn_of_eval(opened)
    objective = opened.objective()
    pairs = list(combinations(range(len(opened.models)), 2))
    ts = torch.linspace(0, 1, points, dtype=torch.float64)
    guessing = paths.guessing_error(opened.samples(opened.part, opened.images).targets)
    found = []
    with Stages() as stages:
        for a, b in pairs:
            name = f"{a + 1} - {b + 1}"
            fitted = _fitted(opened, fit, a, b, stages.stage(f"path {name}"))
            if fitted.status != "ok":
                note(f"{name}: {fitted.reason}")
            _write_bends(opened, fitted, f"bend-{a + 1}-{b + 1}", opened.models[a])
            ends = torch.stack([fitted.points[0], fitted.points[-1]])
            for kind, control in (("line", ends), (fit.kind, fitted.points)):
                values = paths.evaluate(objective, control, ts, kind=cast("paths.Kind", kind))
                found.append(
                    pair_results.Connection((a + 1, b + 1), kind, values, _connectivity(values, guessing))
                )
    dataset = pair_results.connections(found)
    for pair, kind in product(dataset["pair"].values.tolist(), dataset["path"].values.tolist()):
        say(_connection_text(dataset.sel(pair=pair, path=kind)))
    fitting = {"fit": vars(fit), "points": points}
    deliver(opened, "connection", dataset.assign_attrs(fit=json.dumps(fitting)), {"connection": connection})


def compare(target: Target, *, mixup_alpha: float, points: int) -> None:
    """How alike all pairs of models are."""
    opened = open_target(target, at_least=2, batchnorm="recalibrate", needs_error=True)
    warn_of_eval(opened)
    objectives = [opened.objective(model) for model in opened.models]
    mixed = _mixed(opened, mixup_alpha)
    outputs = [objective.outputs(objective.center).double() for objective in objectives]
    shares = [logits.softmax(dim=1) for logits in outputs]
    runs = similarity.mixup_runs(len(mixed)) if mixup_alpha else alignment.BLOCKS
    on_mixed = [_outputs_on(opened, objective, mixed).softmax(dim=1) for objective in objectives]
    thetas = opened.thetas
    ts = torch.linspace(0, 1, points, dtype=torch.float64)
    found = {}
    with Stages() as stages:
        progress = stages.stage("pairs")
        pairs = list(combinations(range(len(objectives)), 2))
        for done, (a, b) in enumerate(pairs, 1):
            found[a + 1, b + 1] = {
                "distance": similarity.distance(thetas[a], thetas[b]),
                "disagreement": similarity.disagreement(shares[a], shares[b]),
                "jensen_shannon": similarity.jensen_shannon(shares[a], shares[b]),
                "output_cosine": similarity.cosine(outputs[a], outputs[b]),
                "cka": similarity.cka(on_mixed[a], on_mixed[b], blocks=runs),
                "linear_barrier": _linear_barrier(objectives[0], torch.stack([thetas[a], thetas[b]]), ts),
            }
            progress(done, len(pairs))
    models = [at_center(objective) for objective in objectives]
    ensemble = similarity.ensemble_error(shares, opened.samples(opened.part, opened.images).targets)
    header = ["models", *pair_results.COMPARED]
    rows = [[f"{a} - {b}", *(_told(values[name]) for name in header[1:])] for (a, b), values in found.items()]
    table(header, rows)
    say(f"ensemble error {_told(ensemble)} %")
    dataset = pair_results.comparison(models, found, ensemble)
    deliver(opened, "comparison", dataset, {"comparison": comparison})


def warn_of_eval(opened: Opened) -> None:
    """Say that running statistics belong to one model only."""
    if opened.policy == "eval" and has_batchnorm(opened.models[0]):
        note(
            "With --batchnorm eval a whole path or plane has the running statistics of the first model; "
            "better recalibrate."
        )


def _fitted(
    opened: Opened, fit: Fit, a: int, b: int, progress: Callable[[int, int], None]
) -> curve_fitting.CurveFit:
    target = opened.target
    samples = opened.samples(opened.part, opened.images)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.Generator().manual_seed(derive(target.seed, f"order of epoch {epoch}"))
        return samples.shuffled(target.batch_size, order, drop_last=False)

    dtype = DTYPES[target.dtype]
    return curve_fitting.fit(
        opened.models[a],
        (opened.thetas[a].to(dtype), opened.thetas[b].to(dtype)),
        batches,
        opened.loss,
        seed=derive(target.seed, f"path {a + 1} - {b + 1}"),
        bends=fit.bends,
        epochs=fit.epochs,
        lr=fit.lr,
        momentum=fit.momentum,
        l2=fit.l2,
        kind=cast("paths.Kind", fit.kind),
        progress=lambda epoch, _loss: progress(epoch + 1, fit.epochs),
    )


def _write_bends(opened: Opened, fitted: curve_fitting.CurveFit, stem: str, model: nn.Module) -> None:
    """The bends as weights that every command takes; of their BatchNorm statistics those of the first end."""
    bent, bends = copy.deepcopy(model), fitted.points[1:-1]
    own = dict(bent.named_parameters())
    for number, bend in enumerate(bends, 1):
        with torch.no_grad():
            for name, part in layout_of(bent).unflatten(bend).items():
                own[name].copy_(part)
        named = {name: t.cpu().numpy() for name, t in bent.state_dict().items()}  # tied tensors by every name
        path = opened.target.out / f"{stem}{f'-{number}' if len(bends) > 1 else ''}.safetensors"
        files.write_file(path, safetensors.numpy.save(named))
        say(f"bend: {path}")


def _connectivity(values: paths.PathValues, guessing: float) -> paths.Connectivity:
    errors = values.samples["error"]
    return paths.connectivity(values.values["error"], values.ts, samples=errors, guessing=guessing)


def _connection_text(found: xr.Dataset) -> str:
    name = f"models {found['pair'].item()}, {found['path'].item()}"
    if found["status"].item() != "ok":
        return f"{name}: {found['status'].item()} ({found['reason'].item()})"
    mc = with_error(found["mode_connectivity"].item(), found["mode_connectivity_se"].item())
    at, barrier = found["t_star"].item(), found["loss_barrier"].item()
    return f"{name}: mode connectivity {mc} % at t = {at:.3g}, barrier of the loss {barrier:.4g}"


def _mixed(opened: Opened, alpha: float) -> Tensor:
    inputs = opened.samples(opened.part, min(CKA_IMAGES, opened.images)).head(opened.images)[0]
    if alpha == 0:
        return inputs
    generator = np.random.default_rng(derive(opened.target.seed, "mixup"))
    return similarity.mixup(inputs, alpha=alpha, generator=generator)


def _outputs_on(opened: Opened, objective: Objective, inputs: Tensor) -> Tensor:
    """Outputs on other inputs, BatchNorm by the objective's policy."""
    inputs = inputs.to(dtype=objective.dtype)
    tensors, buffers = objective.unflatten(objective.center), objective.buffers(objective.center)
    size = opened.target.batch_size
    with torch.no_grad():
        parts = [
            objective.predict(tensors, buffers, (part, torch.zeros(len(part), dtype=torch.long)))
            for part in inputs.split(size)
        ]
    return torch.cat(parts).double()


def _linear_barrier(objective: Objective, ends: Tensor, ts: Tensor) -> Estimate:
    """max_t of the loss over the straight line between the losses at its ends, paired over the samples."""
    samples = paths.evaluate(objective, ends, ts, kind="line").samples["loss"]
    excess = samples - torch.lerp(samples[:1], samples[-1:], ts.unsqueeze(1))
    return sample_mean(excess[excess.mean(1).argmax()])


def _told(estimate: Estimate) -> str:
    return with_error(estimate.value, estimate.stderr) if estimate.status == "ok" else estimate.status

"""The models, data and objective that a command on single models was given; checks all of it before any work."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lossatlas import files, registry
from lossatlas.cli.output import note
from lossatlas.cli.running import chosen_device
from lossatlas.cli.sweep import assignment
from lossatlas.cli.target import Target
from lossatlas.errors import FileError, UserError
from lossatlas.landscape.criterion import Criterion, LossFn
from lossatlas.landscape.estimate import Estimate, sample_mean
from lossatlas.landscape.objective import BATCHNORM_POLICIES, BatchNormPolicy, Objective
from lossatlas.landscape.parameters import flat_parameters
from lossatlas.specs.checks import hint, missing_options, option_problems
from lossatlas.sweep.collect import VERSIONED
from lossatlas.tasks import data, losses, models, weights
from lossatlas.tasks.data import RawData
from lossatlas.tasks.samples import Samples

Part = Literal["train", "test"]

IMAGES = 1000  # unless told: curves, surfaces and spectra hardly change with more [Xu2024]
FORWARD_BATCH = 1024  # where batches have no meaning; cut further by the objective
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, eq=False)
class Opened:
    """Models with their weights, samples, and the loss."""

    target: Target
    raw: RawData
    loss: Criterion | LossFn
    models: tuple[nn.Module, ...]  # one a checkpoint, in their order
    options: dict[str, Any]  # of the model
    policy: BatchNormPolicy
    device: torch.device
    checkpoints: tuple[weights.Weights, ...]

    @property
    def classes(self) -> int | None:
        """How many; None where the targets are numbers to be met."""
        return self.raw.classes or None

    @property
    def part(self) -> Part:
        """Which samples are looked at."""
        return cast("Part", self.target.part)

    @property
    def images(self) -> int:
        """How many of them."""
        return self.target.images or min(IMAGES, len(self._targets(self.part)))

    @cached_property
    def thetas(self) -> tuple[Tensor, ...]:
        """The parameters of every checkpoint, each (n,)."""
        return tuple(flat_parameters(model) for model in self.models)

    def _targets(self, part: Part) -> Any:
        return self.raw.train_targets if part == "train" else self.raw.test_targets

    def samples(self, part: Part, count: int) -> Samples:
        """The first samples of a part, at most `count`."""
        inputs = self.raw.train_inputs if part == "train" else self.raw.test_inputs
        return Samples(inputs[:count], self._targets(part)[:count], self.raw, self.device)

    def objective(self, model: nn.Module | None = None, part: Part | None = None) -> Objective:
        """The loss of a model (default: the first) over the chosen samples, or as many of another part.

        BatchNorm is re-estimated on the first training samples, as many, in batches of `--batch-size`.
        """
        samples = self.samples(part or self.part, self.images)
        recalibration = self.samples("train", self.images) if self.policy == "recalibrate" else None
        size = FORWARD_BATCH if self.policy == "eval" else self.target.batch_size
        target = self.target
        with registry.blamed(f"model {target.model!r} with data {target.data!r} and loss {target.loss!r}"):
            return Objective(
                model or self.models[0],
                samples.batches(size),
                self.loss,
                batchnorm=self.policy,
                recalibration=recalibration.batches(target.batch_size) if recalibration else None,
                dtype=DTYPES[target.dtype],
                device=self.device,
            )

    def fresh(self, seed: int) -> nn.Module:
        """A freshly initialised model of the same kind."""
        return _built(self.target, self.options, self.raw, seed).to(self.device)

    def provenance(self, command: str) -> dict[str, Any]:
        """What the numbers rest on, as attributes of the results: no time, no host, no folder."""
        batches = {} if self.policy == "eval" else {"batch_size": self.target.batch_size}
        return {
            "command": command,
            "model": registry.model_content(self.target.model, self.options),
            "weights": [{"file": found.path.name, "sha256": found.sha256} for found in self.checkpoints],
            "data": self.target.data,
            "data_fingerprint": self.raw.fingerprint(),
            "loss_name": self.target.loss,
            "part": self.part,
            "images": self.images,
            "seed": self.target.seed,
            "batchnorm": self.policy,
            **batches,
            "dtype": self.target.dtype,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "lossatlas_version": version("lossatlas"),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in VERSIONED},
        }


def open_target(
    target: Target,
    *,
    at_least: int = 1,
    at_most: int | None = None,
    batchnorm: BatchNormPolicy = "eval",
    images: int | None = IMAGES,
    needs_error: bool = False,
    needs_finite: bool = False,
) -> Opened:
    """Load and check everything that a command was given; raises UserError or FileError.

    `at_least` and `at_most` are numbers of weights. `batchnorm` and `images` (None: all) are what the command does
    unless told otherwise. With `needs_error` data without classes and losses without an error are refused, with
    `needs_finite` weights that are not finite, which else are noted.
    """
    options = dict(assignment(text, "--option", "width=128") for text in target.option or [])
    policy = _checked(target, options, at_least, at_most) or batchnorm
    options = models.pinned_options(target.model, options)
    device = chosen_device(target.device)
    probe = target.out / files.temporary_name("probe")  # before the work, not after it
    files.write_file(probe, b"")
    probe.unlink(missing_ok=True)
    checkpoints = tuple(weights.read(path) for path in target.weights)
    for found in checkpoints:
        _check_finite(found, needs_finite)
    given = dict(assignment(text, "--data-option", "limit=1000") for text in target.data_option or [])
    raw = data.load(target.data, target.data_path, given, regression=True)
    for line in raw.notes:
        note(line)
    loss = losses.build(target.loss) if needs_error else losses.load(target.loss)
    _check_task(target, raw, needs_error)
    _check_images(target, raw)
    if images is None and target.images is None:
        available = len(raw.train_targets if target.part == "train" else raw.test_targets)
        target = Target(**{**vars(target), "images": available})
    loaded = []
    for found in checkpoints:
        model = _built(target, options, raw, seed=0)
        for line in weights.fitted(found, model.state_dict()).notes:
            note(line)
        weights.load(model, found)
        loaded.append(model.to(device).eval())
    return Opened(target, raw, loss, tuple(loaded), options, policy, device, checkpoints)


def at_center(objective: Objective) -> dict[str, Estimate]:
    """The mean loss and extras of the model itself, with their standard errors over the samples.

    A bare loss has no samples, and its mean no standard error.
    """
    if objective.criterion is None:
        return {"loss": sample_mean(objective(objective.center).reshape(1))}
    return {name: sample_mean(column) for name, column in objective.samples(objective.center).items()}


def _built(target: Target, options: dict[str, Any], raw: RawData, seed: int) -> nn.Module:
    return models.build(target.model, options, input_shape=raw.input_shape, classes=raw.classes or None, seed=seed)


def _checked(
    target: Target, options: dict[str, Any], at_least: int, at_most: int | None
) -> BatchNormPolicy | None:
    """Refuse wrong words, all at once; the BatchNorm policy asked for, if any."""
    problems = []
    if len(target.weights) < at_least:
        problems.append(f"{len(target.weights)} WEIGHTS were given; this command takes {at_least} or more")
    if at_most is not None and len(target.weights) > at_most:
        problems.append(f"{len(target.weights)} WEIGHTS were given; this command takes {at_most}")
    for name, given, allowed in (
        ("--part", target.part, ("train", "test")),
        ("--dtype", target.dtype, tuple(DTYPES)),
        ("--batchnorm", target.batchnorm or "eval", BATCHNORM_POLICIES),
    ):
        if given not in allowed:
            problems.append(f"{name} {given!r} is unknown; allowed are {', '.join(allowed)}{hint(given, allowed)}")
    problems += option_problems(target.model, options, "--option ")
    for name in missing_options(target.model, options):
        problems.append(f"--option {name}=NUMBER is missing; the model {target.model} needs it")
    if problems:
        raise UserError("; ".join(problems) + ".")
    return cast("BatchNormPolicy | None", target.batchnorm)


def _check_finite(found: weights.Weights, is_needed: bool) -> None:
    bad = sum(int((~t.isfinite()).sum()) for t in found.tensors.values() if t.is_floating_point())
    if not bad:
        return
    text = f"The weights of {found.path.name} hold {bad} entries that are not finite"
    if is_needed:
        raise FileError(f"{text}, so there is nothing to look at around them. Give weights that did not diverge.")
    note(f"{text}: neither will the results be.")


def _check_task(target: Target, raw: RawData, needs_error: bool) -> None:
    """Refuse what takes classes where the data have none, and one target a sample where they have sequences."""
    if raw.sequences and needs_error:
        raise UserError(
            f"The targets of data {target.data!r} are sequences, and connect and compare take one class a sample. "
            "Compare translations in a sweep (`lossatlas run`)."
        )
    if raw.classes:
        return
    if needs_error:
        raise UserError(
            f"The targets of data {target.data!r} are no classes, which connect and compare take. For other data "
            "there are spectrum, line, surface, mine and plane."
        )
    if target.loss in registry.LOSSES:
        raise UserError(
            f"The targets of data {target.data!r} are no classes, which the loss {target.loss} takes. Give "
            "--loss module:function of your own."
        )


def _check_images(target: Target, raw: RawData) -> None:
    available = len(raw.train_targets if target.part == "train" else raw.test_targets)
    if target.images is not None and target.images > available:
        raise UserError(
            f"--images {target.images} was given, but data {target.data!r} have {available} {target.part} "
            f"samples. Give at most {available}."
        )

"""The settings of the measures: their budgets and protocols, as they stand in the spec's `[measures]`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from lossatlas.settings import Count, NonNegative, Positive, Settings, equal_steps

Protocol = Literal["lossatlas", "published"]
Part = Literal["train", "test"]


def _pairs(value: Any) -> Any:
    """A count, "all", "ring", or pairs of seeds as tuples; one sentence for what is none of them."""
    if value in ("all", "ring") or (type(value) is int and value >= 1):
        return value
    if isinstance(value, list | tuple) and value and all(_is_pair(item) for item in value):
        return tuple(dict.fromkeys((min(pair), max(pair)) for pair in value))  # (0, 2) and (2, 0) are one pair
    raise ValueError('allowed are a count from 1 on, "all", "ring", or a list of pairs of seeds such as [[0, 1]]')


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(type(seed) is int for seed in value)


Pairs = Annotated[int | Literal["all", "ring"] | tuple[tuple[int, int], ...], BeforeValidator(_pairs)]


def _published(settings: Connectivity | CKA, **defaults: Any) -> None:
    """With `protocol = "published"`, what [Yang2021]'s code does becomes the default of what is not given.

    It stays unset, so that another protocol given later (by a variant, by `--set`) has its own defaults.
    """
    if settings.protocol == "published":
        missing = defaults.keys() - settings.model_fields_set
        settings.__dict__.update({name: defaults[name] for name in missing})


class Evaluation(Settings):
    """Loss and error on all training and test samples; always measured."""


class Hessian(Settings):
    """Extremal eigenvalues and trace of the Hessian of the mean cross entropy, in eval mode.

    `published`: one random batch of `images` a model, and the eigenvalue of the largest magnitude.
    """

    protocol: Protocol = "lossatlas"
    data: Part = "train"
    images: Count = 200  # the first of the subset in its fixed order
    eigenvalues: Count = 1  # how many of the largest
    tol: Positive = 1e-3  # residual, relative to the largest magnitude
    trace_rel: Positive = 0.05  # standard error of a stochastic trace, relative to it
    max_matvecs: int = Field(default=200, ge=16)  # the least number of probes

    @property
    def told(self) -> dict[str, dict[str, str]]:
        """What the results tell of which eigenvalue it is, and of which samples."""
        if self.protocol == "published":
            samples = f"a random batch of at most {self.images} {self.data} samples a model"
            largest = {"long_name": "Hessian eigenvalue of the largest magnitude"}
        else:
            samples, largest = f"at most the first {self.images} {self.data} samples", {}
        eigenvalues = {"estimator": f"Lanczos with full reorthogonalisation; {samples}"}
        return {
            "hessian_eig": {**eigenvalues, **largest},
            "hessian_eig_min": eigenvalues,
            "hessian_eigs": eigenvalues,
            "hessian_trace": {"estimator": f"tr H = tr GGN where exact, else Hutchinson; {samples}"},
        }


class Density(Settings):
    """Density of the Hessian's eigenvalues by stochastic Lanczos quadrature, in eval mode.

    Few probes are enough: what they read off spreads as 1 / sqrt(n) with the parameters n, and every seed of a
    cell draws its own. `steps` part eigenvalues from each other and from 0, which more probes do not.
    """

    data: Part = "train"
    images: Count = 200  # the first of the subset in its fixed order, as of `Hessian`
    probes: int = Field(default=4, ge=2)  # of one there is no standard error
    steps: Count = 64  # of Lanczos, a probe: so many eigenvalues and weights; each is one product

    @property
    def told(self) -> dict[str, dict[str, str]]:
        """What the results tell of how the shares were estimated."""
        how = f"bounds on stochastic Lanczos quadrature, beyond sign_threshold; {self.images} {self.data} samples"
        return {f"{sign}_share": {"estimator": how} for sign in ("negative", "undecided", "positive")}


class Connectivity(Settings):
    """Mode connectivity along a trained curve.

    On the error in percent, or on the loss in nats as [Yang2021] do for translation.

    `published`: pair (0, 1), five points, the first argmax over all of them, the bend starts from a fresh
    initialisation.
    """

    protocol: Protocol = "lossatlas"
    pairs: Pairs = 1
    kind: Literal["bezier", "chain"] = "bezier"
    bends: Count = 1
    start: Literal["midpoint", "random"] = "midpoint"
    epochs: Count = 50
    n_ref: Count | None = None  # `epochs` are those of so many samples: fewer get more epochs, and as many steps
    lr: Positive = 0.01
    momentum: float = Field(default=0.9, ge=0, lt=1)
    batch_size: Count = 128
    l2: NonNegative = 5e-4
    points: int = Field(default=9, ge=3)
    rule: Literal["inner", "published"] = "inner"
    data: Part = "train"  # whose error (or loss) makes mc
    on: Literal["error", "loss"] = "error"  # what mc is a difference of

    @model_validator(mode="after")
    def _protocol(self) -> Self:
        _published(self, points=5, rule="published", start="random", pairs=1)
        return self

    @property
    def told(self) -> dict[str, dict[str, str]]:
        """What the results tell of quantities that are not always in the same units."""
        unit = {"units": "nat" if self.on == "loss" else "%"}
        return {"mode_connectivity": unit, "mode_connectivity_se": unit}

    def epochs_on(self, samples: int) -> int:
        """The epochs of a curve on so many samples: `epochs`, or with `n_ref` as many as give equal steps."""
        return equal_steps(self.epochs, self.n_ref, samples)


class CKA(Settings):
    """CKA of what two seeds make of the same images: of the softmax outputs, logits, or features of a layer.

    Of text, at one target token of each of the first `images` sentences, drawn once for all pairs; tokens are not
    mixed.

    `published`: 6 batches of 128, drawn anew for each ordered pair.
    """

    protocol: Protocol = "lossatlas"
    data: Part = "train"
    images: Count = 2560
    mixup_alpha: NonNegative = 16.0  # 0: clean images
    noise: NonNegative = 0.0  # standard deviation, of normalised pixels
    outputs: str = Field(default="softmax", min_length=1)  # or logits, the name of a module, or input:MODULE
    positions: Literal["flattened", "samples"] = "flattened"  # of feature maps
    kernel: Literal["linear", "rbf"] = "linear"
    bandwidth: Positive = 1.0  # of rbf: times the median distance
    debiased: bool = False

    @model_validator(mode="after")
    def _protocol(self) -> Self:
        _published(self, images=768)
        return self

    @property
    def layer(self) -> str | None:
        """The name of the module whose features are compared; None where it is outputs of the model."""
        return None if self.outputs in ("softmax", "logits") else self.outputs.removeprefix("input:")

    @property
    def side(self) -> Literal["inputs", "outputs"]:
        """Which features of the module."""
        return "inputs" if self.outputs.startswith("input:") else "outputs"

    @property
    def told(self) -> dict[str, dict[str, str]]:
        """What the results tell of how it was estimated."""
        kernel = "linear" if self.kernel == "linear" else f"RBF, {self.bandwidth:g} times the median distance"
        of = {"softmax": "softmax outputs", "logits": "logits"}.get(self.outputs, f"features {self.outputs}")
        if self.positions == "samples":
            of += " by position"
        images = f"at most {self.images} {'mixup' if self.mixup_alpha else 'clean'} images"
        if self.mixup_alpha not in (0.0, 16.0):
            images += f" (alpha {self.mixup_alpha:g})"
        if self.noise:
            images = f"{images.replace(' clean', '')} with noise {self.noise:g}"
        hsic = ", unbiased HSIC" if self.debiased else ""
        test = " of the test part" if self.data == "test" else ""
        test += ", drawn anew for each ordered pair" if self.protocol == "published" else ""
        how = f"{kernel}, centred, float64{hsic}, {of} on {images}{test}; of text at a token a sentence"
        return {"cka": {"estimator": how}}


class Distance(Settings):
    """l2 distance of the parameter vectors."""


class Disagreement(Settings):
    """How the predictions of two seeds differ, on the test samples."""

    data: Part = "test"


class Ensemble(Settings):
    """The error of the mean softmax output of all ok seeds (two at least), on the test samples."""

    data: Part = "test"


class Bleu(Settings):
    """BLEU of translations by greedy decoding, or beam search."""

    data: Part = "test"
    beam: Count = 1  # beginnings of a sentence that go on; 1: greedy
    max_length: Count = 100  # tokens of a translation at most

"""The sections of a spec: frozen, typed, hashable data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, create_model

from lossatlas import measures, registry
from lossatlas.results import Axis, Cell
from lossatlas.settings import Count, Finite, Fraction, NonNegative, Positive, Settings, equal_steps
from lossatlas.specs.slurm import Slurm

# Which section and key of the spec an axis varies, and what its values may be.
AXES: dict[str, tuple[str, str, Literal["count", "fraction", "positive", "non-negative"]]] = {
    "width": ("model", "width", "count"),
    "embed_dim": ("model", "embed_dim", "count"),
    "n_train": ("data", "n_train", "count"),
    "label_noise": ("data", "label_noise", "fraction"),
    "batch_size": ("train", "batch_size", "count"),
    "lr": ("optimizer", "lr", "positive"),
    "weight_decay": ("optimizer", "weight_decay", "non-negative"),
}
LOADS = ("width", "embed_dim", "n_train", "label_noise")
TEMPERATURES = ("batch_size", "lr", "weight_decay")


class ImageNoise(Settings):
    """Noise on pixels; `tasks.corruption.noisy_images` says what each word means."""

    kind: Literal["bernoulli", "gaussian", "uniform", "positive_uniform"]
    magnitude: Positive  # in levels of a pixel from 0 to 255; scaled to the range of other data
    mode: Literal["add", "replace"] = "add"
    fraction: Fraction = 1.0  # each image is noisy with this probability


class Data(Settings):
    """Which data, how many of them, and what was done to them."""

    name: str
    path: str | None = None  # where the files are; the content counts for the key, not the place
    limit: Count | None = None  # only so many images of each part are loaded, the first
    vocabulary: Count | None = None  # of text: tokens; None: what the data take. In the key as the content is
    max_length: Count | None = None  # of text: training pairs with more tokens are left out. In the key likewise
    n_train: Count | None = None  # the first n of a fixed order; None: all
    n_test: int | None = Field(default=None, ge=2)  # at most the first n of a fixed order; None: all
    label_noise: Fraction = 0.0  # each training label is replaced with this probability
    definition: Literal["incorrect", "uniform"] = (
        "incorrect"  # by another class ([Yang2021]'s text), or any (its code)
    )
    image_noise: ImageNoise | None = None  # on the training images
    test_noise: bool = False  # the same noise on the test data too

    @property
    def options(self) -> dict[str, Any]:
        """What the function behind the name is asked for beside the path; the content counts for the key."""
        given = {"limit": self.limit, "vocabulary": self.vocabulary, "max_length": self.max_length}
        return {name: value for name, value in given.items() if value is not None}


class Model(Settings, extra="allow"):
    """Which model; its options stand beside the name."""

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Everything beside the name."""
        return dict(self.__pydantic_extra__ or {})

    def content(self) -> dict[str, Any]:
        """What determines it, as keys hold it."""
        return registry.model_content(self.name, self.options)


class Task(Settings):
    """What is learnt, by what."""

    data: Data
    model: Model
    loss: str = "cross_entropy"


def _several(value: Any) -> Any:
    """A fraction, or several as an ascending tuple; one sentence for what is neither."""
    found = tuple(value) if isinstance(value, list | tuple) else (value,)
    are_fractions = all(type(each) in (int, float) and 0 < each < 1 for each in found)
    if not found or not are_fractions or any(a >= b for a, b in itertools.pairwise(found)):
        raise ValueError("input should be less than 1 and greater than 0, or an ascending list of such numbers")
    return tuple(map(float, found)) if len(found) > 1 else float(found[0])


def _betas(value: Any) -> Any:
    """Two numbers; one sentence for anything else."""
    found = tuple(value) if isinstance(value, list | tuple) else ()
    if len(found) != 2 or not all(type(each) in (int, float) and 0 <= each < 1 for each in found):
        raise ValueError("allowed are two numbers from 0 on and below 1")
    return tuple(map(float, found))


def _sorted(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Their order does not matter, so no key must hang on it."""
    return tuple(sorted(set(kinds)))


Betas = Annotated[tuple[float, float], BeforeValidator(_betas)]
Moments = Annotated[float | tuple[float, ...], BeforeValidator(_several)]
Augmentations = Annotated[tuple[Literal["crop", "flip"], ...], AfterValidator(_sorted)]


class Optimizer(Settings):
    """SGD, Adam or AdamW; `training.optimizers` has the formulas.

    `lr` is multiplied by batch_size / `batch_ref` where that is given (linear scaling).
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive = 0.05  # of SGD; the others must be given theirs
    momentum: float = Field(default=0.9, ge=0, lt=1)  # of SGD
    weight_decay: NonNegative = 5e-4
    nesterov: bool = False  # of SGD
    betas: Betas = (0.9, 0.999)  # of Adam and AdamW
    eps: Positive = 1e-8  # of Adam and AdamW
    batch_ref: Count | None = None


class Schedule(Settings):
    """How the rate changes; `training.schedules` has the formulas.

    `step`: multiplied by `factor` after each fraction `at` of the epochs, rounded down to whole epochs. `cosine`:
    step by step to `final` times the rate. `inverse-sqrt`: falls as the square root of the step after the warm-up
    [Vaswani2017]. Before them all a linear warm-up, step by step, if one is given.
    """

    name: Literal["constant", "step", "cosine", "inverse-sqrt"] = "constant"
    factor: float = Field(default=0.1, gt=0, le=1)
    at: Moments = 0.75
    final: Fraction = 0.0
    warmup_epochs: NonNegative = 0.0  # one of the two
    warmup_steps: int = Field(default=0, ge=0)

    @property
    def moments(self) -> tuple[float, ...]:
        """The fractions of the epochs, rounded down to whole epochs, after which `step` lowers the rate."""
        return self.at if isinstance(self.at, tuple) else (self.at,)


class EarlyStop(Settings):
    """[Yang2021]: the running training loss moved less than `tolerance` for `patience` epochs, from `start` on."""

    tolerance: Positive = 1e-4
    patience: Count = 5
    start: Count = 30


class Train(Settings):
    """The training recipe."""

    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    batch_size: Count = 128
    epochs: Count
    early_stop: EarlyStop = EarlyStop()
    keep: tuple[int, ...] = ()  # epochs whose weights are kept as well; 0: the initialisation
    n_ref: Count | None = None  # `epochs` are those of so many samples: fewer get more epochs, and as many steps
    augment: Augmentations = ()  # of the training images
    clip: Positive | None = None  # the largest norm of a gradient
    precision: Literal["float32", "bfloat16"] = "float32"  # of the forward pass
    init: str | None = None  # a file of weights that all seeds start from; the content counts for the key
    init_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")  # a run fills it in

    @property
    def lr(self) -> float:
        """The rate: that of the optimiser, by linear scaling times the batch size over its reference."""
        given = self.optimizer
        return given.lr if given.batch_ref is None else given.lr * self.batch_size / given.batch_ref

    def epochs_on(self, samples: int) -> int:
        """The epochs of a training on so many samples: `epochs`, or with `n_ref` as many as give equal steps."""
        return equal_steps(self.epochs, self.n_ref, samples)

    def content(self) -> dict[str, Any]:
        """As of every section, with the resulting rate, and the weights to start from named by their content."""
        if self.optimizer.batch_ref is not None:
            optimizer = self.optimizer.model_copy(update={"lr": self.lr, "batch_ref": None})
            return self.model_copy(update={"optimizer": optimizer}).content()
        content = super().content()
        if self.init_sha256 is not None:
            content["init"] = content.pop("init_sha256")
        return content


_SECTIONS: dict[str, Any] = {row.name: (row.settings | None, None) for row in measures.TABLE if not row.always}
Measures = create_model("Measures", __base__=Settings, **_SECTIONS)


class Phases(Settings):
    """Where one phase ends and the next begins: `auto`, or thresholds (those not given are the defaults)."""

    auto: bool = False  # derived from the grid at hand
    ln_trace: Finite | None = None
    train_loss: Finite | None = None
    mode_connectivity: Finite | None = None
    cka: Finite | None = None


def _dotted(value: Any) -> Any:
    """What each variant changes, by dotted keys: in TOML `a.b = 1` is a table in a table, `"a.b" = 1` is not."""
    if not isinstance(value, dict):
        return value
    return {
        name: dict(_leaves(changes)) if isinstance(changes, dict) else changes for name, changes in value.items()
    }


def _leaves(table: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        inner = _leaves(value) if isinstance(value, dict) else [("", value)]
        yield from ((f"{key}.{rest}" if rest else key, leaf) for rest, leaf in inner)


Variants = Annotated[dict[str, dict[str, Any]], BeforeValidator(_dotted)]


class Spec(Settings):
    """A whole run: the grid, its seeds, the task, the training and the measures.

    Every section is valid by itself; that they fit together is checked by `validate`.
    """

    name: str = Field(min_length=1, max_length=200)
    seeds: tuple[int, ...]
    load: dict[str, tuple[float, ...]]
    temperature: dict[str, tuple[float, ...]]
    task: Task
    train: Train
    weights: Literal["best", "early-stopped", "final"] = (
        "best"  # what is measured; early-stopped falls back to best
    )
    measures: Measures = Measures()
    phases: Phases = Phases()
    slurm: Slurm = Slurm()
    variants: Variants = Field(default_factory=dict)  # the models measured in several ways: keys of `measures`
    reduced: str = ""  # what `--scale` has taken away, for captions; no result hangs on it

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The load axes and the temperature axis, their values ascending."""
        return tuple(
            Axis(name, tuple(sorted(_typed(name, values))), role)  # type: ignore[arg-type]
            for role, group in (("load", self.load), ("temperature", self.temperature))
            for name, values in group.items()
        )

    def cells(self) -> list[Cell]:
        """Every point of the grid, one value an axis."""
        return list(itertools.product(*(axis.values for axis in self.axes)))

    def at(self, cell: Cell) -> tuple[Task, Train]:
        """The task and the training of one cell: the axes' values put in their places."""
        task, train = self.task.model_dump(), self.train.model_dump()
        sections = {"model": task["model"], "data": task["data"], "train": train, "optimizer": train["optimizer"]}
        for axis, value in zip(self.axes, cell, strict=True):
            section, key, _ = AXES[axis.name]
            sections[section][key] = value
        entry = registry.MODELS.get(task["model"]["name"])
        if entry:  # spelled out, so that a key does not hang on a default
            task["model"] = {**entry.options, **task["model"]}
        return Task.model_validate(task), Train.model_validate(train)

    def measured(self) -> list[tuple[str, Settings | None]]:
        """The measures' names and settings; None where the spec does not ask for one."""
        return [(name, getattr(self.measures, name)) for name in type(self.measures).model_fields]


def _typed(axis: str, values: Sequence[float]) -> tuple[float | int, ...]:
    return tuple(int(v) for v in values) if AXES[axis][2] == "count" else tuple(values)

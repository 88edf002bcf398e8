"""What a study looks at: one model with its checkpoints, its loss, and the vectors that took long to find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from lossatlas.landscape.objective import BatchNormPolicy, Objective
from lossatlas.landscape.parameters import flat_parameters
from lossatlas.registry import Facts
from lossatlas.settings import canonical
from lossatlas.specs import Data, Model
from lossatlas.studies.items import Lacking, Shelf, Unavailable
from lossatlas.studies.schema import KnownData, Learner, Sizes, Study
from lossatlas.sweep.cost import model_of
from lossatlas.sweep.plan import DATA_KEYS, CellPlan, Plan, Step
from lossatlas.sweep.store import Store
from lossatlas.tasks import losses, models
from lossatlas.tasks.data import RawData
from lossatlas.tasks.samples import Samples

FORWARD_BATCH = 1024  # where batches have no meaning; cut further by the objective
BATCH = 128  # that BatchNorm statistics are taken of


class Subject:
    """One model of a study; its data are loaded when they are first needed.

    `load` gives them as they come, for trainings, which take the subset and add noise themselves; `learnt` as they
    are then, which is what is looked at.
    """

    def __init__(
        self,
        name: str,
        study: Study,
        known: KnownData,
        store: Store,
        load: Callable[[], RawData],
        learnt: Callable[[], RawData],
        device: torch.device,
    ) -> None:
        self.name = name
        self.learner: Learner = study.models[name]
        self.sizes: Sizes = study.sizes
        self.asked: Data = study.data_of(self.learner)
        self.facts, self.fingerprint = _used(known.facts, self.asked), known.fingerprint
        self.device = device
        self.shelf = Shelf(store, device)
        self.model = study.model_of(self.learner)
        self.seeds = study.study.seeds
        self.images = min(self.sizes.images, self.facts.n_train)
        spec = study.training_of(self.learner)
        self.cell: CellPlan | None = None if spec is None else Plan(spec, self.fingerprint, known.facts.n_train)[0]
        self._store, self._load, self._learnt = store, load, learnt
        # Objectives hold a copy of the model each: only those of one panel are kept.
        self.objective = lru_cache(4)(self._objective)

    # ---- its training

    @property
    def training(self) -> tuple[Step, ...]:
        """The steps of its two trainings; none where it is looked at as published."""
        return () if self.cell is None else tuple(step for step in self.cell.steps if step.name == "train")

    @property
    def epochs(self) -> tuple[int, ...]:
        """Of the checkpoints that are looked at, from the initialisation on."""
        return (0,) if self.learner.train is None else tuple(sorted(self.learner.train.keep))

    @property
    def early(self) -> int:
        """The first checkpoint after the initialisation."""
        return self.epochs[min(1, len(self.epochs) - 1)]

    @property
    def late(self) -> int:
        """The last checkpoint."""
        return self.epochs[-1]

    def of(self, epoch: int, *, other: bool = False) -> dict[str, Any]:
        """What determines the weights at an epoch, of the first training or of the other one, and their data."""
        seed, noise = self.seeds[other], self._noise
        told = {"noise": noise} if noise else {}
        if self.cell is None:
            model = canonical(self.model.content())
            return {"model": model, "seed": seed, "data": self.fingerprint, "loss": self.learner.loss, **told}
        return {"train": self.training[other].key, "epoch": epoch, **told}

    @property
    def _noise(self) -> dict[str, Any]:
        """What sets the first samples apart from those of the fingerprint, if anything does."""
        if not (self.asked.label_noise or self.asked.image_noise):
            return {}
        given = self.asked.content()
        return {name: given[name] for name in DATA_KEYS if name in given and name != "n_train"}

    def held_out(self) -> dict[str, Any]:
        """What sets the first test samples apart from those of the fingerprint, if anything does."""
        test_noise = {"test_noise": True} if self.asked.test_noise else {}
        n_test = self.asked.n_test or self.images
        return test_noise | ({"n_test": n_test} if n_test < self.images else {})

    def needs_training(self, what: str) -> None:
        """Raise Unavailable for a model that is looked at as published: there are no checkpoints."""
        if self.cell is None:
            raise Unavailable(f"{what} takes a training, and {self.learner.title} is looked at as published")

    def network(self, epoch: int | None = None, *, other: bool = False, seed: int | None = None) -> nn.Module:
        """The model at an epoch, or (None) freshly initialised."""
        seed = self.seeds[other] if seed is None else seed
        shape, classes = self.facts.input_shape, self.facts.classes
        model = models.build(self.model.name, self.model.options, input_shape=shape, classes=classes, seed=seed)
        if epoch is not None and self.cell is not None:
            model.load_state_dict(self._state(epoch, other=other))
        return model.to(self.device)

    def _state(self, epoch: int, *, other: bool) -> dict[str, Tensor]:
        step = self.training[other]
        record = self._store.read("train", step.key)
        if record is not None and record.status != "ok":
            raise Unavailable(f"the training of seed {self.seeds[other]} {record.status}: {record.reason}")
        arrays = self._store.arrays("train", step.key, f"epoch-{epoch}") if record is not None else None
        if arrays is None:
            raise Lacking(f"the weights of epoch {epoch}, seed {self.seeds[other]}, are not in the store")
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    @property
    def has_batchnorm(self) -> bool:
        """Whether the two BatchNorm policies differ here."""
        return any(
            isinstance(part, nn.modules.batchnorm._BatchNorm) for part in self.build_without_numbers().modules()
        )

    def build_without_numbers(self) -> nn.Module:
        """The model without its weights; raises UserError where it cannot be built."""
        return _without_numbers(self.model.model_dump_json(), self.facts)

    @property
    def policies(self) -> tuple[BatchNormPolicy, ...]:
        """How BatchNorm is treated: both ways where there is any."""
        return ("eval", "recalibrate") if self.has_batchnorm else ("eval",)

    # ---- its loss

    @property
    def raw(self) -> RawData:
        """The data as they come."""
        return self._load()

    def samples(self, count: int, part: str = "train") -> Samples:
        """The first samples of a part, as they were learnt."""
        data = self._learnt()
        inputs, targets = getattr(data, f"{part}_inputs"), getattr(data, f"{part}_targets")
        return Samples(inputs[:count], targets[:count], data, self.device)

    def _objective(
        self, epoch: int, batchnorm: BatchNormPolicy = "eval", part: str = "train", images: int | None = None
    ) -> Objective:
        """The loss on the first images of a part, around the model of an epoch.

        BatchNorm is re-estimated on as many training images, also for the loss on test images.
        """
        images = images or self.images
        head = self.samples(images).batches(BATCH) if batchnorm == "recalibrate" else None
        size = FORWARD_BATCH if batchnorm == "eval" else BATCH
        return Objective(
            self.network(epoch),
            self.samples(images, part).batches(size),
            losses.build(self.learner.loss),
            batchnorm=batchnorm,
            recalibration=head,
        )

    def theta(self, epoch: int, *, other: bool = False) -> Tensor:
        """The parameters at an epoch, flat."""
        return flat_parameters(self.network(epoch, other=other))


@cache
def _without_numbers(model_json: str, facts: Facts) -> nn.Module:
    with torch.device("meta"):
        return model_of(Model.model_validate_json(model_json), facts)


def _used(facts: Facts, asked: Data) -> Facts:
    """The sizes of what is left of data with these sizes."""
    n_train = min(facts.n_train, asked.n_train or facts.n_train)
    return replace(facts, n_train=n_train, n_test=min(facts.n_test, asked.n_test or facts.n_test))

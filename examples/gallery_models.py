"""What the gallery looks at: a network trained here, its checkpoints, objectives and directions, kept in files."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossatlas import files
from lossatlas.landscape import directions, lanczos, mining
from lossatlas.landscape.directions import Direction
from lossatlas.landscape.lanczos import Eigenpairs
from lossatlas.landscape.objective import BatchNormPolicy, Objective
from lossatlas.landscape.operators import hessian
from lossatlas.sweep.worker import one_thread
from lossatlas.tasks import losses, models
from lossatlas.tasks.data import RawData
from lossatlas.tasks.samples import Samples

BATCH = 128
LR = 0.1
WEIGHT_DECAY = 5e-4


@dataclass(frozen=True)
class Size:
    """How much is computed."""

    name: str
    model: str
    train_images: int
    epochs: tuple[int, int, int]  # of the checkpoints that are looked at: initialisation, early, late
    every: int  # epochs between the checkpoints of the trajectory
    images: int  # that every loss is a mean of
    points: int  # of a curve over a range of length 2
    grid: int  # of a surface, along each side
    curves: int  # Gaussians in one panel
    pairs: int  # eigenpairs at either end
    mining_epochs: int
    mining_images: int
    changes: int  # Gaussian draws in Figs. 6 and 13
    probes: tuple[int, int]  # of the density: vectors, Lanczos steps
    hessian_epochs: tuple[int, ...] = (0, 10, 50)  # where eigenvectors are looked at
    start: float = 1e-3  # of mining: of a Gaussian, or if 0 a tenth of the most negative eigenvector


STANDARD = Size("standard", "mlp", 50_000, (0, 10, 50), 5, 1000, 41, 21, 5, 10, 20, 50_000, 100, (10, 50))
QUICK = replace(
    STANDARD, name="quick", train_images=5000, images=500, grid=11, curves=3, pairs=5, mining_epochs=5, changes=20
)
FULL = replace(STANDARD, name="full", images=5000, grid=41)
RESNET = Size("standard", "resnet32", 2000, (0, 4, 10), 2, 200, 21, 11, 2, 3, 8, 1000, 20, (2, 20), (4,), 0.0)
RESNET_QUICK = replace(RESNET, name="quick", train_images=500, images=50, points=11, grid=5, mining_epochs=2)
RESNET_FULL = replace(
    RESNET, name="full", train_images=50_000, epochs=(0, 10, 50), every=10, images=1000, points=41, grid=21,
    curves=5, pairs=10, mining_epochs=20, mining_images=50_000, changes=100, probes=(10, 50),
    hessian_epochs=(0, 10, 50),
    start=1e-3,
)  # fmt: skip


class DivergedError(Exception):
    """A search for a direction ended in numbers that are not finite."""


class Study:
    """One architecture, trained from two seeds; whatever took long is kept in `folder`."""

    def __init__(self, size: Size, raw: RawData, folder: Path) -> None:
        self.size = size
        self.raw = raw
        self.folder = folder / f"{size.model}-{size.name}"
        self.early, self.late = size.epochs[1:]
        cut = slice(size.train_images)
        self.samples = Samples(raw.train_inputs[cut], raw.train_targets[cut], raw)
        # Memoised per study: each takes seconds.
        self.objective = cache(self._objective)
        self.pairs = cache(self._pairs)

    # ---- checkpoints

    @cached_property
    def states(self) -> dict[int, dict[str, Tensor]]:
        """The state of the first training by epoch."""
        return self._trained(seed=0)

    @cached_property
    def others(self) -> dict[int, dict[str, Tensor]]:
        """The state of the second training by epoch."""
        return self._trained(seed=1)

    def network(self, state: dict[str, Tensor] | None = None, *, seed: int = 0) -> nn.Module:
        """A network of this study, with the given state or freshly initialised."""
        options = {"width": 128} if self.size.model == "mlp" else {}
        shape, classes = self.raw.input_shape, self.raw.classes
        model = models.build(self.size.model, options, input_shape=shape, classes=classes, seed=seed)
        if state is not None:
            model.load_state_dict(state)
        return model

    @property
    def has_batchnorm(self) -> bool:
        """Whether the two BatchNorm policies differ here."""
        return any(isinstance(m, nn.BatchNorm2d) for m in self.network().modules())

    def theta(self, epoch: int, *, other: bool = False) -> Tensor:
        """The parameters at an epoch, flat."""
        state = (self.others if other else self.states)[epoch]
        layout = self.objective(self.late).layout
        return layout.flatten({name: state[name] for name in layout.names})

    @property
    def is_scaled_down(self) -> bool:
        """Whether only a part of the figures is made, of few epochs."""
        return len(self.size.hessian_epochs) == 1

    def _objective(
        self, epoch: int, batchnorm: BatchNormPolicy = "eval", part: str = "train", images: int | None = None
    ) -> Objective:
        """The loss on the first images, around the model of an epoch."""
        images = images or self.size.images
        inputs, targets = getattr(self.raw, f"{part}_inputs"), getattr(self.raw, f"{part}_targets")
        samples = Samples(inputs[:images], targets[:images], self.raw)
        model = self.network(self.states[epoch])
        recalibration = self.samples_head(images).batches(BATCH) if batchnorm == "recalibrate" else None
        batches = samples.batches(1024 if batchnorm == "eval" else BATCH)
        return Objective(model, batches, losses.cross_entropy(), batchnorm=batchnorm, recalibration=recalibration)

    def samples_head(self, images: int) -> Samples:
        """The first training images: BatchNorm is re-estimated on them, also for the loss on test images."""
        return Samples(self.raw.train_inputs[:images], self.raw.train_targets[:images], self.raw)

    def _trained(self, seed: int) -> dict[int, dict[str, Tensor]]:
        def make() -> dict[str, Tensor]:
            found = {}
            for epoch, state in self._train(seed):
                found |= {f"{epoch}/{name}": tensor for name, tensor in state.items()}
            return found

        flat = self.kept(f"training-{seed}", make)
        states: dict[int, dict[str, Tensor]] = {}
        for key, tensor in flat.items():
            epoch, _, name = key.partition("/")
            states.setdefault(int(epoch), {})[name] = tensor
        return dict(sorted(states.items()))

    def _train(self, seed: int):
        """SGD without momentum, as [Xu2024] does not state any; yields the state at every few epochs."""
        model = self.network(seed=seed)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
        generator = torch.Generator().manual_seed(seed)
        wanted = set(range(0, self.late + 1, self.size.every)) | set(self.size.epochs)
        for epoch in range(self.late + 1):
            if epoch in wanted:
                yield epoch, {name: t.detach().clone() for name, t in model.state_dict().items()}
            if epoch == self.late:
                return
            with one_thread():  # batches this small gain nothing from a second one
                for inputs, targets in self.samples.shuffled(BATCH, generator, drop_last=True):
                    optimizer.zero_grad()
                    F.cross_entropy(model(inputs), targets).backward()
                    optimizer.step()

    # ---- directions

    def _pairs(self, epoch: int) -> Eigenpairs:
        print(f"  eigenpairs at epoch {epoch} ...", flush=True)
        operator = hessian(self.objective(epoch))
        return lanczos.eigenpairs(
            operator, self.size.pairs, which="both", max_matvecs=20 * self.size.pairs, seed=0
        )

    def gaussians(self, epoch: int, scaling: directions.Scaling = "model", **options: str) -> list[Direction]:
        """The Gaussian directions of one panel."""
        objective = self.objective(epoch)
        drawn = [
            directions.gaussian(objective, seed=k, scaling=scaling, **options) for k in range(self.size.curves)
        ]
        return [named(d, f"Gau. {k + 1}") for k, d in enumerate(drawn)]

    def eigenvectors(self, epoch: int, count: int, scaling: directions.Scaling = "none") -> list[Direction]:
        """The first positive, then the first negative ones; of length 1, unless scaled."""
        found = directions.eigenvectors(self.objective(epoch), self.pairs(epoch), scaling=scaling)
        half = len(found) // 2
        count = min(count, half)
        names = [f"P.E.{k + 1}" for k in range(count)] + [f"N.E.{k + 1}" for k in range(count)]
        return [named(d, n) for d, n in zip(found[:count] + found[half : half + count], names, strict=True)]

    def gradient(self, epoch: int, scaling: directions.Scaling = "none") -> Direction:
        """Downhill on the images looked at."""
        return named(directions.negative_gradient(self.objective(epoch), scaling=scaling), "Neg. Grad.")

    def to(self, epoch: int, end: int, *, other: bool = False) -> Direction:
        """To a checkpoint of the same training (E=) or of the other one (E'=)."""
        prime = "'" if other else ""
        name = f"E{prime}={end}"
        return directions.difference(self.objective(epoch), self.theta(end, other=other), name=name)

    def mined(self, epoch: int) -> Direction:
        """Algorithm 1 from a checkpoint, on the training images."""
        start = self.size.start or 0.1 * self.eigenvectors(epoch, 1)[1].vector
        return self._mined(f"w-peak-{epoch}", epoch, lambda o, batches: mining.mine_w_peak(
            o, batches, seed=0, epochs=self.size.mining_epochs, lr=0.02, start=start
        ))  # fmt: skip

    def mined_vvv(self, gamma: float, half_width: float) -> Direction:
        """Algorithm 2 from the last checkpoint, on a fifth of the images; phi begins at a fresh initialisation."""
        objective = self.objective(self.late)
        fresh = dict(self.network(seed=2).named_parameters())
        start = objective.layout.flatten({name: fresh[name].detach() for name in objective.layout.names})
        return self._mined(f"vvv-{gamma}-{half_width}", self.late, lambda o, batches: mining.mine_vvv_basin(
            o, batches, start, seed=0, gamma=gamma, half_width=half_width, epochs=self.size.mining_epochs, lr=0.1
        ), share=5)  # fmt: skip

    def _mined(self, name: str, epoch: int, search: Callable, share: int = 1) -> Direction:
        # Running statistics are those of theta: with BatchNorm those of the batch are used while mining.
        objective = self.objective(epoch, "batch" if self.has_batchnorm else "eval", images=BATCH)
        images = min(self.size.mining_images, len(self.samples)) // share
        part = self.samples_head(images)

        def batches(number: int):
            return part.shuffled(BATCH, torch.Generator().manual_seed(number), drop_last=images >= BATCH)

        def make() -> dict[str, Tensor]:
            found = search(objective, batches)
            if found.status != "ok":
                raise DivergedError(f"{name}: {found.reason}")
            return {"vector": found.vector}

        vector = self.kept(name, make)["vector"]
        return directions.given(self.objective(epoch), vector, name="Mine")

    # ---- what is kept

    def kept(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors of that name from the folder; made, and timed, if they are not there."""
        path = self.folder / "kept" / f"{name}.safetensors"
        if path.is_file():
            return safetensors.torch.load_file(path)
        print(f"  {name} ...", flush=True)
        start = time.perf_counter()
        made = {key: tensor.contiguous() for key, tensor in make().items()}
        files.write_file(path, safetensors.torch.save(made))
        print(f"  {name}: {time.perf_counter() - start:.0f} s", flush=True)
        return made


def named(direction: Direction, name: str) -> Direction:
    """The same direction under the name that [Xu2024] uses."""
    return replace(direction, name=name)


def of_length(direction: Direction, relative: float) -> Direction:
    """The same direction, so long that lambda = 1 is `relative` ||theta|| away."""
    factor = relative / direction.relative
    norm = direction.norm * factor
    if not math.isfinite(factor):
        return direction
    return replace(direction, vector=direction.vector * factor, norm=norm, relative=relative)

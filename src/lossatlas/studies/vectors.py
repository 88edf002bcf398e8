"""The vectors of a study that take long to find, as items: eigenvectors of the Hessian, mined directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lossatlas.landscape import lanczos, mining
from lossatlas.landscape.lanczos import Eigenpairs
from lossatlas.landscape.mining import MinedDirection
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.operators import hessian
from lossatlas.landscape.parameters import flat_parameters
from lossatlas.studies.items import Item, Unavailable, Undefined
from lossatlas.studies.subject import BATCH, Subject
from lossatlas.sweep.cost import MATVEC

VVV_LR, VVV_SHARE = 0.1, 5  # of Algorithm 2: its rate, and the part of the images that it is given
NOISE, EIGENVECTOR = 1e-3, 0.1  # where Algorithm 1 begins: of a Gaussian, of the most negative eigenvector
PRODUCTS = 20  # Hessian products a pair, at most
USUAL_PRODUCTS = 8  # a pair, until it has converged


def pairs(subject: Subject, epoch: int) -> Item:
    """The eigenpairs of the Hessian at both ends."""
    count = subject.sizes.pairs
    content = {"weights": subject.of(epoch), "images": subject.images, "pairs": count}
    work = USUAL_PRODUCTS * count * MATVEC * subject.images

    def make() -> xr.Dataset:
        operator = hessian(subject.objective(epoch))
        k = min(count, operator.size // 2)
        if k == 0:
            raise Undefined("the Hessian of a single parameter has no eigenpairs at either end")
        return _packed(lanczos.eigenpairs(operator, k, which="both", max_matvecs=PRODUCTS * count, seed=0))

    return Item("local-eigenpairs", content, work, make)


@lru_cache(1)
def eigenpairs(subject: Subject, epoch: int) -> Eigenpairs:
    """Them themselves; those of the last model are kept."""
    return _unpacked(subject.shelf.get(pairs(subject, epoch)))


def finite_eigenpairs(subject: Subject, epoch: int) -> Eigenpairs:
    """The same; raises Undefined where the Hessian is not finite, and there are none."""
    pairs = eigenpairs(subject, epoch)
    if not bool(pairs.eigenvectors.isfinite().all()):
        raise Undefined(f"there are no eigenvectors at epoch {epoch}: {pairs.reason}")
    return pairs


def w_peak(subject: Subject, epoch: int) -> Item:
    """The vector of Algorithm 1 from an epoch, mined on training images."""
    sizes = subject.sizes
    images = min(sizes.mining_images or subject.facts.n_train, subject.facts.n_train)
    settings = {"algorithm": "w-peak", "epochs": sizes.mining_epochs, "images": images, "lr": sizes.mining_lr}
    needs = (pairs(subject, epoch),) if sizes.mining_start == "eigenvector" else ()
    settings["start"] = [item.key for item in needs] or NOISE

    def search(objective: Objective, batches: mining.Batches) -> MinedDirection:
        start: float | torch.Tensor = NOISE
        if needs:
            vectors = finite_eigenpairs(subject, epoch).eigenvectors
            start = EIGENVECTOR * vectors[:, vectors.shape[1] // 2]  # the first of the smallest
        return mining.mine_w_peak(
            objective, batches, seed=0, epochs=sizes.mining_epochs, lr=sizes.mining_lr, start=start
        )

    return _mined(subject, epoch, settings, search, needs)


def vvv_basin(subject: Subject, gamma: float, half_width: float) -> Item:
    """The vector of Algorithm 2 from the last epoch; phi begins at a fresh initialisation."""
    sizes = subject.sizes
    everything = min(sizes.mining_images or subject.facts.n_train, subject.facts.n_train)
    settings = {
        "algorithm": "vvv-basin",
        "epochs": sizes.mining_epochs,
        "images": max(min(BATCH, everything), everything // VVV_SHARE),
        "lr": VVV_LR,
        "gamma": gamma,
        "half_width": half_width,
        "start": max(subject.seeds) + 1,
    }

    def search(objective: Objective, batches: mining.Batches) -> MinedDirection:
        start = flat_parameters(subject.network(seed=max(subject.seeds) + 1))
        return mining.mine_vvv_basin(
            objective,
            batches,
            start,
            seed=0,
            gamma=gamma,
            half_width=half_width,
            epochs=sizes.mining_epochs,
            lr=VVV_LR,
        )

    return _mined(subject, subject.late, settings, search)


def _mined(
    subject: Subject,
    epoch: int,
    settings: Mapping[str, Any],
    search: Callable[[Objective, mining.Batches], MinedDirection],
    needs: tuple[Item, ...] = (),
) -> Item:
    images = int(settings["images"])
    work = settings["epochs"] * images * (2.0 if settings["algorithm"] == "vvv-basin" else 1.0)

    def make() -> xr.Dataset:
        # Running statistics are those of theta: with BatchNorm those of the batch are used while mining.
        objective = subject.objective(epoch, "batch" if subject.has_batchnorm else "eval", images=BATCH)
        part = subject.samples(images)

        def batches(number: int) -> Any:
            return part.shuffled(BATCH, torch.Generator().manual_seed(number), drop_last=images >= BATCH)

        found = search(objective, batches)
        if found.status != "ok":
            raise Unavailable(f"the search for a {settings['algorithm']} at epoch {epoch}: {found.reason}")
        return found.to_dataset().assign(vector=("parameter", found.vector.cpu().numpy()))

    return Item("local-mined", {"weights": subject.of(epoch), **settings}, work, make, needs)


def vector(subject: Subject, item: Item) -> Tensor:
    """The vector of such an item."""
    return torch.from_numpy(np.array(subject.shelf.get(item)["vector"].values))


def _packed(pairs: Eigenpairs) -> xr.Dataset:
    """Eigenpairs as a dataset with all that they are made of."""
    names = ("eigenvalues", "residuals", "gaps")
    dataset = xr.Dataset({name: ("pair", getattr(pairs, name).cpu().numpy()) for name in names})
    dataset["converged"] = ("pair", pairs.converged.cpu().numpy().astype(np.int8))
    dataset["eigenvectors"] = (("parameter", "pair"), pairs.eigenvectors.cpu().numpy())
    told = {f.name: getattr(pairs, f.name) for f in dataclasses.fields(pairs) if f.name not in (*names, *dataset)}
    return dataset.assign_attrs(told)


def _unpacked(dataset: xr.Dataset) -> Eigenpairs:
    tensors: dict[str, Any] = {str(name): torch.from_numpy(np.array(dataset[name].values)) for name in dataset}
    told = {
        field.name: np.asarray(dataset.attrs[field.name]).item()
        for field in dataclasses.fields(Eigenpairs)
        if field.name in dataset.attrs
    }
    return Eigenpairs(**{**tensors, **told, "converged": tensors["converged"].bool()})

"""The results of a study, a committed step each: kept in the store under the key of what determines it.

STORE/<step>/<k0k1>/<key>/{spec,meta,result}.json, dataset.nc, SHA256SUMS
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import xarray as xr

from lossatlas import files
from lossatlas.files import Damaged
from lossatlas.settings import content_key
from lossatlas.slice_results import SCHEMA_VERSION
from lossatlas.sweep.store import Record, Store

DATASET = "dataset.nc"

# To be raised by hand whenever the same content gives other numbers.
VERSIONS = {
    "local-line": 1,
    "local-surface": 1,
    "local-eigenpairs": 1,
    "local-mined": 1,
    "local-spectrum": 1,
    "local-changes": 1,
    "local-angles": 1,
    "local-distances": 1,
    "local-rivals": 2,
    "local-held-out": 1,
    "local-pieces": 1,
}


class Unavailable(Exception):
    """A result that cannot be had, and why: a training or a search that diverged. Data, not a mistake."""

    status = "diverged"


class Undefined(Unavailable):
    """A result that these weights do not have, such as the plane of two parallel directions."""

    status = "undefined"


class Lacking(Exception):
    """What a result is made of is not there, since it failed; nothing is kept, and the next run tries again."""


@dataclass(frozen=True, eq=False)
class Item:
    """One result: what determines it, what it takes, and how it is made of the results that it needs."""

    step: str
    content: Mapping[str, Any]  # plain data: keys of inputs and settings, without names
    gradients: float  # about: of single samples
    make: Callable[[], xr.Dataset]
    needs: tuple[Item, ...] = ()
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", content_key(self.full_content))

    @property
    def full_content(self) -> dict[str, Any]:
        """What the key is the hash of."""
        return {"step": self.step, "version": VERSIONS[self.step], **self.content}


def with_needs(items: Iterable[Item]) -> Iterator[Item]:
    """Each of the items and of all that they need once, the needed first."""
    known: set[str] = set()

    def walk(item: Item) -> Iterator[Item]:
        if item.key not in known:
            known.add(item.key)
            for needed in item.needs:
                yield from walk(needed)
            yield item

    for item in items:
        yield from walk(item)


class Shelf:
    """The finished items of a store."""

    def __init__(self, store: Store, device: torch.device) -> None:
        self._store, self._device = store, device

    def has(self, item: Item) -> bool:
        """Whether it is finished."""
        return self._store.has(item.step, item.key)

    def get(self, item: Item) -> xr.Dataset:
        """Its dataset, made if it is not there; raises Unavailable where it cannot be had.

        That is kept, and not tried again; whatever else is raised is not.
        """
        found = self.look(item)
        return self._made(item) if found is None else found

    def look(self, item: Item) -> xr.Dataset | None:
        """Its dataset if it is there; one that is damaged is set aside, and not there."""
        record = self._store.read(item.step, item.key)
        if record is None:
            return None
        if record.status != "ok":
            raise Unavailable(record.reason)
        try:
            content = files.read_checked(self._store.folder(item.step, item.key), DATASET)
        except Damaged:
            self._store.set_aside(item.step, item.key)
            return None
        return xr.load_dataset(io.BytesIO(content), engine="h5netcdf")

    def _made(self, item: Item) -> xr.Dataset:
        started = time.time()
        dataset, record = None, Record({}, "ok", "")
        try:
            dataset = item.make()
        except Unavailable as error:
            record = Record({}, error.status, str(error))
        meta = {"seconds": round(time.time() - started, 3), "started": started, "device": str(self._device)}
        meta |= {"torch": str(torch.__version__), "threads": torch.get_num_threads()}
        others = {} if dataset is None else {DATASET: _bytes(dataset)}
        self._store.commit(item.step, item.full_content, record, meta=meta, others=others)
        if dataset is None:
            raise Unavailable(record.reason)
        return dataset


def _bytes(dataset: xr.Dataset) -> bytes:
    """The file of a dataset, as `local_results.load` reads it."""
    return bytes(dataset.assign_attrs(schema_version=SCHEMA_VERSION).to_netcdf(engine="h5netcdf"))

"""Other people's published results, read into the results schema.

One layout is known: the archive (or the folder it unpacks to) of nsfzyzz/loss_landscape_taxonomy [Yang2021].
Values are kept as published: where this package defines a quantity otherwise, its `estimator` tells. Nothing is
unpacked to disk, and pickles pass only through `unpickle.loads`.
"""

from __future__ import annotations

import io
import math
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lossatlas import results, unpickle
from lossatlas.errors import FileError
from lossatlas.results import REASON, STATUS, Axis, Quantity, Value

CLASSES = 10
MAX_MEMBER = 16 * 2**20  # bytes; the largest published metrics file has 9 kB
MAX_ARCHIVE = 4 * 2**30  # bytes after decompression, members that are skipped included

_LAYOUT = re.compile(
    r"(?P<root>(?:.*/)?different_knobs_subset_[^/]+)/bs_(?P<batch>\d{1,9})/(?P<schedule>.+)/"
    r"ResNet18_w(?P<width>\d{1,9})/metrics/(?P<file>[^/]+)"
)
_ARCHIVES = (".tar.gz", ".tgz", ".tar")

_LOSS = "mean cross entropy of the saved model in eval mode, all samples"
_ERROR = "100 - accuracy"
_BATCH = "one random batch of 200 training images"
MODEL_QUANTITIES = (
    Quantity("train_loss", "nat", "training loss", _LOSS),
    Quantity("test_loss", "nat", "test loss", _LOSS),
    Quantity("train_error", "%", "training error", _ERROR),
    Quantity("test_error", "%", "test error", _ERROR),
    Quantity("hessian_eig", "nat", "top Hessian eigenvalue", f"power iteration, largest magnitude, {_BATCH}"),
    Quantity("hessian_trace", "nat", "Hessian trace", f"Hutchinson until its mean hardly moves, {_BATCH}"),
    STATUS,
    REASON,
)
_BARRIER = "h - E(t*): h mean training error of the curve's own ends, t* first maximum of |h - E(t)|, 5 points"
_CKA = "linear CKA of softmax outputs on mixup (alpha 16) of training images, mean of two draws (both orders)"
PAIR_QUANTITIES = (
    Quantity("mode_connectivity", "%", "mode connectivity", f"{_BARRIER}, [Yang2021] eq. 4"),
    Quantity("t_star_at_end", "1", "t* is an end point of the curve", "1 where mode_connectivity rests on it"),
    Quantity("cka", "1", "CKA similarity", _CKA),
    Quantity("cka_se", "1", "standard error of CKA similarity", "half the difference of the two draws"),
    Quantity("distance", "1", "l2 distance", "Euclidean norm of the difference of the parameter vectors"),
    STATUS,
    REASON,
)
_CURVE_KEYS = {"train_loss": "tr_nll", "train_error": "tr_err", "test_loss": "te_nll", "test_error": "te_err"}
CURVE_QUANTITIES = tuple(
    Quantity(name, "nat" if "loss" in name else "%", f"{name} on the curve", "BatchNorm re-estimated at t")
    for name in _CURVE_KEYS
)

Records = dict[tuple[Value, ...], dict[str, Any]]  # one record a model, a pair or a curve of a cell


class _Member(NamedTuple):
    name: str
    place: re.Match[str]
    content: bytes

    @property
    def cell(self) -> tuple[int, int]:
        return int(self.place["width"]), int(self.place["batch"])


def load_source(path: Path, *, also: str = "") -> xr.DataTree:
    """Read results from a run folder, a results file, or the published archive or folder of [Yang2021].

    Raises FileError if `path` is none of them, or is damaged; `also` are words for what else the caller takes.
    """
    from lossatlas.sweep.run import check_ordinary  # 0.3 s to import, for a message

    if (path / "results.nc").is_file():
        return results.load(path / "results.nc")
    if path.suffix == ".nc" and not path.is_dir():
        return results.load(path)
    if is_published(path):
        return read(path)
    check_ordinary(path)
    what = "does not exist" if not path.exists() else "holds no results"
    raise FileError(
        f"{path} {what}. Give a run folder, a results.nc, or the published archive or folder of "
        f"nsfzyzz/loss_landscape_taxonomy{also}."
    )


def is_published(source: Path) -> bool:
    """Whether a path looks like the published archive (by its ending) or its folder; reads no content."""
    if source.is_file():
        return source.name.endswith(_ARCHIVES)
    folder = "different_knobs_subset_*"
    own = source.resolve().name.startswith(folder[:-1])
    return source.is_dir() and (
        own or any(next(source.glob(pattern), None) for pattern in (folder, f"*/{folder}"))
    )


def read(source: Path) -> xr.DataTree:
    """Read the published results into the groups `models`, `pairs` and `curves` over (width, batch_size).

    A collapsed model (training error >= 100 - 100/C) has the status `collapsed`, and so has the pair whose curve
    ends in one: its mode connectivity is NaN, the curve itself stays. A pair whose CKA is 0/0, since a model's
    outputs are constant, is `degenerate`. Raises FileError if the source is missing, is damaged, holds no such
    results or several sets of them, or has a pickle that asks for more than plain data.
    """
    if not source.exists():
        raise FileError(f"{source} does not exist. Give the published archive or the folder it unpacks to.")
    members = list(_members(source))
    sets = sorted({f"{member.place['root']}/bs_*/{member.place['schedule']}" for member in members})
    if len(sets) != 1:
        found = "several sets of results: " + ", ".join(sets) if sets else "no published results"
        raise FileError(
            f"{source} holds {found}. Point at one `different_knobs_subset_*` folder with one schedule: its "
            "metrics are expected in bs_<batch>/<schedule>/ResNet18_w<width>/metrics."
        )
    records = Records(), Records(), Records()  # of models, pairs, curves
    for member in members:
        _read_member(member, *records)
    _judge(*records)
    return _tree(sets[0], *records)


def _tree(name: str, models: Records, pairs: Records, curves: Records) -> xr.DataTree:
    keys = [key[:2] for key in (*models, *pairs)]
    axes = (
        Axis("width", tuple(sorted({int(key[0]) for key in keys})), "load"),
        Axis("batch_size", tuple(sorted({int(key[1]) for key in keys})), "temperature"),
    )
    seeds = tuple(sorted({int(s) for key in (*models, *pairs) for s in key[2:]}))
    both: dict[str, tuple[Value, ...]] = {"seed": seeds, "seed_b": seeds}
    groups = {
        "models": results.group(axes, {"seed": seeds}, models, MODEL_QUANTITIES),
        "pairs": results.group(axes, both, pairs, PAIR_QUANTITIES),
    }
    if curves:
        grid = tuple(next(iter(curves.values()))["t"])
        groups["curves"] = results.group(axes, {**both, "t": grid}, curves, CURVE_QUANTITIES, along="t")
    attrs = {
        "source": "nsfzyzz/loss_landscape_taxonomy [Yang2021], as published",
        "spec": {"name": name[name.index("different_knobs") :], "model": "ResNet18", "data": "CIFAR-10"},
        "batchnorm": "models: eval; curves: recalibrate",
    }
    return results.tree(groups, attrs)


def _members(source: Path) -> Iterator[_Member]:
    """Every metrics file of the layout, whatever else there is."""
    try:
        yield from _folder_members(source) if source.is_dir() else _archive_members(source)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise FileError(f"{source} is damaged: it cannot be read to its end ({error}). Get it again.") from error


def _folder_members(source: Path) -> Iterator[_Member]:
    base = source.resolve()
    for folder, _, names in os.walk(base):
        for name in names:
            path = Path(folder, name)
            # The folder's own name takes part: one may point at a `different_knobs_subset_*` itself.
            place = _LAYOUT.fullmatch(path.relative_to(base.parent).as_posix())
            if place and place["file"] in _READERS and path.is_file():
                _check_size(str(path), path.stat().st_size, limit=MAX_MEMBER)
                yield _Member(str(path), place, path.read_bytes())


def _archive_members(source: Path) -> Iterator[_Member]:
    total = 0
    with tarfile.open(source) as archive:
        for info in archive:
            total += info.size
            _check_size(f"{source}, unpacked,", total, limit=MAX_ARCHIVE)
            place = _LAYOUT.fullmatch(info.name.removeprefix("./"))
            if place and place["file"] in _READERS and info.isreg():
                name = f"{source}: {info.name}"
                _check_size(name, info.size, limit=MAX_MEMBER)
                stream = archive.extractfile(info)
                if stream is not None:
                    yield _Member(name, place, stream.read())
        # What follows the last member is padding, but only at its end gzip compares its checksum.
        while archive.fileobj and (padding := archive.fileobj.read(2**16)):
            total += len(padding)
            _check_size(f"{source}, unpacked,", total, limit=MAX_ARCHIVE)


def _check_size(name: str, size: int, *, limit: int) -> None:
    if size > limit:
        raise FileError(f"{name} has {size} bytes, too many for published metrics: at most {limit} are read.")


def _read_member(member: _Member, models: Records, pairs: Records, curves: Records) -> None:
    """Read one file into the records; one that is laid out otherwise is an error."""
    try:
        _READERS[member.place["file"]](member, models, pairs, curves)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        problem = f"is not laid out as the published metrics are ({type(error).__name__}: {error})"
        raise FileError(f"{member.name} {problem}. It is damaged or of another version: get it again.") from error


def _read_accuracies(member: _Member, models: Records, split: str) -> None:
    for seed, found in unpickle.loads(member.content, name=member.name).items():
        record = models.setdefault((*member.cell, _seed(seed)), {})
        record[f"{split}_loss"] = float(found["loss"])
        record[f"{split}_error"] = 100.0 - float(found["accuracy"])


def _read_hessian(member: _Member, models: Records) -> None:
    for seed, found in unpickle.loads(member.content, name=member.name).items():
        record = models.setdefault((*member.cell, _seed(seed)), {})
        record["hessian_eig"] = float(found["top_eigenvalue"][0])
        record["hessian_trace"] = float(found["trace"])


def _read_cka(member: _Member, pairs: Records) -> None:
    similarity = unpickle.loads(member.content, name=member.name)["representation_similarity"]
    for key in _pairs_of(similarity):
        draws = [float(similarity[a][b][-1]) for a, b in (key, key[::-1])]
        record = pairs.setdefault((*member.cell, *key), {})
        record |= {"cka": sum(draws) / 2, "cka_se": abs(draws[0] - draws[1]) / 2}


def _read_distances(member: _Member, pairs: Records) -> None:
    distances = unpickle.loads(member.content, name=member.name)["model_distance"]
    for a, b in _pairs_of(distances):
        pairs.setdefault((*member.cell, a, b), {})["distance"] = float(distances[a][b]["dist"])


def _read_curve(member: _Member, pairs: Records, curves: Records) -> None:
    """Read the one curve of a cell, between seeds 0 and 1, and what the authors' notebook makes of it."""
    try:
        with np.load(io.BytesIO(member.content), allow_pickle=False) as arrays:
            unpacked = sum(info.file_size for info in arrays.zip.infolist())  # no more than that is ever unpacked
            _check_size(f"{member.name}, unpacked,", unpacked, limit=MAX_MEMBER)
            wanted = {name: arrays[key] for name, key in (*_CURVE_KEYS.items(), ("t", "ts"))}
    except (OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise FileError(f"{member.name} is damaged: it is no npz file ({error}). Get it again.") from error
    curve = {name: np.asarray(array, dtype=np.float64) for name, array in wanted.items()}
    if not np.array_equal(curve["t"], np.linspace(0, 1, 5)) or any(x.shape != (5,) for x in curve.values()):
        raise ValueError("a curve has 5 values of each quantity, at t = 0, .25, .5, .75, 1")
    key = (*member.cell, 0, 1)
    deviation = (curve["train_error"][0] + curve["train_error"][-1]) / 2 - curve["train_error"]
    star = int(np.argmax(np.abs(deviation)))
    record = pairs.setdefault(key, {})
    record |= {"mode_connectivity": float(deviation[star]), "t_star_at_end": float(star in (0, 4))}
    curves[key] = {name: array.tolist() for name, array in curve.items()}


_READERS: Mapping[str, Callable[[_Member, Records, Records, Records], None]] = {
    "loss_acc.pkl": lambda member, models, _pairs, _curves: _read_accuracies(member, models, "train"),
    "loss_acc_test.pkl": lambda member, models, _pairs, _curves: _read_accuracies(member, models, "test"),
    "hessian.pkl": lambda member, models, _pairs, _curves: _read_hessian(member, models),
    "CKA_mixup_alpha_16.0.pkl": lambda member, _models, pairs, _curves: _read_cka(member, pairs),
    "model_dist.pkl": lambda member, _models, pairs, _curves: _read_distances(member, pairs),
    "curve_test.npz": lambda member, _models, pairs, curves: _read_curve(member, pairs, curves),
}


def _judge(models: Records, pairs: Records, curves: Records) -> None:
    """Give every model and every pair its status and its reason."""
    guessing = 100.0 - 100.0 / CLASSES
    for record in models.values():
        broken = [name for name, value in record.items() if not math.isfinite(value)]
        status, reason = ("diverged", f"not finite: {', '.join(broken)}") if broken else ("ok", "")
        if record.get("train_error", 0.0) >= guessing:
            status, reason = "collapsed", f"training error {record['train_error']:g} %, that of guessing"
        record |= {"status": status, "reason": reason}
    for key, record in pairs.items():
        found = []
        if not math.isfinite(record.get("cka", 0.0)):
            found.append(("degenerate", "CKA is 0/0 where a model's outputs are constant"))
        ends = [models.get((*key[:2], seed), {}).get("status") for seed in key[2:]]
        on_curve = [curves[key]["train_error"][t] for t in (0, -1)] if key in curves else []
        if not math.isfinite(record.get("mode_connectivity", 0.0)):
            found.insert(0, ("diverged", "the error on the curve is not finite"))
        elif on_curve and ("collapsed" in ends or max(on_curve) >= guessing):
            record |= {"mode_connectivity": math.nan, "t_star_at_end": math.nan}
            found.insert(0, ("collapsed", "the curve ends in a collapsed model, so it shows no barrier"))
        record["status"] = found[0][0] if found else "ok"
        record["reason"] = "; ".join(reason for _, reason in found)


def _seed(seed: object) -> int:
    if type(seed) is not int:
        raise TypeError(f"a seed is expected as an integer, not {seed!r}")
    return seed


def _pairs_of(table: Mapping[int, Any]) -> list[tuple[int, int]]:
    return [(_seed(a), _seed(b)) for a in table for b in table[a] if a < b]

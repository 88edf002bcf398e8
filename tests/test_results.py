"""The results schema: where numbers lie, what is missing, and that a file gives back what was saved."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from lossatlas import results
from lossatlas.errors import FileError
from lossatlas.results import REASON, STATUS, Axis, Quantity

AXES = (Axis("width", (2, 4), "load"), Axis("lr", (0.1, 0.5, 1.0), "temperature"))
LOSS = Quantity("loss", "nat", "training loss", "mean")
EIGS = Quantity("eigs", "nat", "eigenvalues", "Lanczos")


def models() -> xr.Dataset:
    records = {
        (2, 0.5, 0): {"loss": 1.5, "status": "ok"},
        (4, 1.0, 7): {"loss": float("inf"), "status": "failed", "reason": "train_loss is not finite"},
        (4, 0.1, 0): {"status": "diverged", "reason": "in epoch 3"},
    }
    return results.group(AXES, {"seed": [0, 7]}, records, [LOSS, STATUS, REASON])


def test_every_number_lies_where_its_key_says() -> None:
    found = models()
    assert found["loss"].dims == ("width", "lr", "seed")
    assert found["loss"].shape == (2, 3, 2)
    assert found["loss"].sel(width=2, lr=0.5, seed=0) == 1.5
    assert np.isinf(found["loss"].sel(width=4, lr=1.0, seed=7))
    assert np.isnan(found["loss"]).sum() == 10
    assert found["width"].dtype.kind == "i"
    assert found["lr"].values.tolist() == [0.1, 0.5, 1.0]


def test_what_is_not_measured_is_missing() -> None:
    found = models()
    assert found["status"].sel(width=2, lr=0.5).values.tolist() == ["ok", "missing"]
    assert found["reason"].sel(width=2, lr=0.5).values.tolist() == ["", ""]
    assert found["reason"].sel(width=4, lr=0.1, seed=0) == "in epoch 3"
    assert (found["status"] == "missing").sum() == 9


def test_every_variable_and_axis_is_described() -> None:
    found = models()
    assert found["loss"].attrs == {"units": "nat", "long_name": "training loss", "estimator": "mean"}
    assert found["width"].attrs == {"role": "load", "long_name": "width", "units": "1"}
    assert found["lr"].attrs["role"] == "temperature"
    assert results.axes_of(found) == (["width"], ["lr"])


def test_sequences_lie_along_their_dimension_and_may_be_ragged() -> None:
    records = {(2, 0.1, 0): {"loss": 1.0, "eigs": [3.0, 2.0, 1.0]}, (2, 0.5, 0): {"eigs": [5.0]}}
    found = results.group(AXES, {"seed": [0], "rank": [1, 2, 3]}, records, [LOSS, EIGS], along="rank")
    assert found["loss"].dims == ("width", "lr", "seed")
    assert found["eigs"].dims == ("width", "lr", "seed", "rank")
    assert found["eigs"].sel(width=2, lr=0.1, seed=0).values.tolist() == [3.0, 2.0, 1.0]
    ragged = found["eigs"].sel(width=2, lr=0.5, seed=0).values
    assert ragged[0] == 5.0
    assert np.isnan(ragged[1:]).all()


def test_a_group_without_records_is_empty_and_described() -> None:
    found = results.group(AXES, {"seed": [0]}, {}, [LOSS, STATUS])
    assert np.isnan(found["loss"]).all()
    assert (found["status"] == "missing").all()


def tree() -> xr.DataTree:
    labels = xr.Dataset({"phase": (("width",), np.array(["I", ""], dtype=object))}, {"width": [2, 4]})
    attrs = {"name": "a test", "spec": {"b": [1, 2.5], "a": None}, "threads": 1, "float": 0.1}
    return results.tree({"models": models(), "phases": labels}, attrs)


def test_attributes_are_text_or_numbers() -> None:
    attrs = tree().attrs
    assert attrs["schema_version"] == results.SCHEMA_VERSION
    assert attrs["spec"] == '{"a": null, "b": [1, 2.5]}'
    assert (attrs["name"], attrs["threads"], attrs["float"]) == ("a test", 1, 0.1)


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    results.save(tree(), tmp_path / "results.nc")
    assert [path.name for path in tmp_path.iterdir()] == ["results.nc"]
    found = results.load(tmp_path / "results.nc")
    xr.testing.assert_identical(found["models"].to_dataset(), models())
    assert found["phases"]["phase"].values.tolist() == ["I", ""]
    assert json.loads(found.attrs["spec"]) == {"a": None, "b": [1, 2.5]}
    xr.testing.assert_identical(xr.load_datatree(tmp_path / "results.nc", engine="h5netcdf"), found)
    results.save(found, tmp_path / "again.nc")
    xr.testing.assert_identical(results.load(tmp_path / "again.nc"), found)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema_is_refused(version: object, tmp_path: Path) -> None:
    other = tree()
    if version is None:
        del other.attrs["schema_version"]
    else:
        other.attrs["schema_version"] = version
    results.save(other, tmp_path / "results.nc")
    with pytest.raises(FileError, match=f"has schema version {version}; this lossatlas reads version 1"):
        results.load(tmp_path / "results.nc")


def test_a_damaged_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    results.save(tree(), tmp_path / "results.nc")
    content = (tmp_path / "results.nc").read_bytes()
    for keep in (0, 1, 8, 100, len(content) // 4, len(content) // 2, len(content) - 100, len(content) - 1):
        (tmp_path / "part.nc").write_bytes(content[:keep])
        with pytest.raises(FileError, match="cannot be read as a results file"):
            results.load(tmp_path / "part.nc")
    (tmp_path / "text.nc").write_text("no results")
    with pytest.raises(FileError, match="damaged, or was not written by lossatlas"):
        results.load(tmp_path / "text.nc")
    for nothing in (tmp_path, tmp_path / "nothing.nc"):
        with pytest.raises(FileError, match="does not exist or is no file"):
            results.load(nothing)


def test_a_scrambled_file_is_refused_or_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "results.nc"
    results.save(tree(), path)
    content, right = path.read_bytes(), results.load(path)
    generator = np.random.default_rng(0)
    refused = 0
    for count in [1] * 40 + [64] * 20:  # one bit, or a run of bytes
        scrambled = np.frombuffer(content, np.uint8).copy()
        start = generator.integers(0, len(content) - count)
        flips = generator.integers(0, 256, count) if count > 1 else 1 << generator.integers(0, 8)
        scrambled[start : start + count] ^= np.uint8(flips)
        path.write_bytes(scrambled.tobytes())
        try:
            found = results.load(path)
        except FileError:
            refused += 1
        else:
            xr.testing.assert_identical(found, right)  # bytes that mean nothing: gaps, time stamps, padding
    assert refused > 15  # or this test has shown nothing


def test_every_byte_of_a_number_or_a_text_counts(tmp_path: Path) -> None:
    path = tmp_path / "results.nc"
    results.save(tree(), path)
    content = path.read_bytes()
    loss = np.array(models()["loss"].values, "<f8").tobytes()
    numbers = [content.index(loss) + i for i in range(0, len(loss), 9)]
    texts = (b"in epoch 3", b"diverged", b"training loss", b"a test", b"2.5]")
    for place in [*numbers, *(content.index(text) + 1 for text in texts)]:
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(FileError, match="damaged"):
            results.load(path)
        if place in numbers:  # HDF5 itself tells, whoever reads
            with pytest.raises(OSError, match="filter returned failure"), h5py.File(path) as opened:
                opened["models/loss"][:]


def test_two_files_of_the_same_results_are_the_same_bytes(tmp_path: Path) -> None:
    results.save(tree(), tmp_path / "one.nc")
    results.save(results.load(tmp_path / "one.nc"), tmp_path / "other.nc")
    results.save(tree(), tmp_path / "again.nc")
    assert (tmp_path / "one.nc").read_bytes() == (tmp_path / "again.nc").read_bytes()
    digests = {results.load(path).attrs[results.DIGEST] for path in tmp_path.iterdir()}
    assert digests == {results.digest(tree())}


def test_the_digest_sees_every_kind_of_change() -> None:
    def changed(change: Callable[[xr.DataTree], None]) -> str:
        other = tree().copy(deep=True)
        change(other)
        return results.digest(other)

    changes: list[Callable[[xr.DataTree], None]] = [
        lambda t: t.attrs.update(name="another test"),
        lambda t: t["models"].attrs.update(new=1),
        lambda t: t["models"]["loss"].attrs.update(units="bit"),
        lambda t: t["models"]["loss"].values.__setitem__((0, 1, 0), np.nextafter(1.5, 2)),
        lambda t: t["models"]["status"].values.__setitem__((0, 0, 0), "ok"),
        lambda t: t["phases"]["phase"].values.__setitem__(0, "II"),
        lambda t: t["models"].__setitem__("loss", t["models"]["loss"].astype("float32")),
        lambda t: t.__delitem__("phases"),
        lambda t: t["models"].__setitem__("seed", [0, 8]),
    ]
    digests = [changed(change) for change in changes]
    assert len({*digests, results.digest(tree())}) == len(changes) + 1
    assert changed(lambda _: None) == results.digest(tree())


def test_a_file_that_others_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.nc"
    results.save(tree(), path)
    found = results.load(path)
    found["models"]["loss"][0, 0, 0] = 3.0
    found.to_netcdf(path, engine="h5netcdf")
    with pytest.raises(FileError, match="was changed after lossatlas wrote it"):
        results.load(path)
    tree().to_netcdf(path, engine="h5netcdf")  # it never had a digest
    with pytest.raises(FileError, match="does not match its content_sha256"):
        results.load(path)
    results.save(found, path)
    assert results.load(path)["models"]["loss"][0, 0, 0] == 3.0

"""The results schema: where numbers lie, what is missing, and that a file gives back what was saved."""

import json
from pathlib import Path

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


def test_a_file_with_scrambled_bytes_never_gives_a_traceback(tmp_path: Path) -> None:
    results.save(tree(), tmp_path / "results.nc")
    content = (tmp_path / "results.nc").read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        scrambled = np.frombuffer(content, np.uint8).copy()
        start = generator.integers(0, len(content) - 64)
        scrambled[start : start + 64] = generator.integers(0, 256, 64)
        (tmp_path / "scrambled.nc").write_bytes(scrambled.tobytes())
        try:
            results.load(tmp_path / "scrambled.nc")
        except FileError:
            refused += 1
    assert refused > 10  # bytes of numbers may be scrambled unseen, those of the form may not

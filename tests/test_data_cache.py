"""Data kept as arrays for the workers: as they were, or not used."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import command
from lossatlas.sweep.data_cache import ARRAYS, keep, kept
from lossatlas.tasks.data import RawData


def some(classes: int = 3) -> RawData:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (8, 3, 4, 4), dtype=np.uint8)
    labels = generator.integers(0, 3, 8)
    return RawData(
        images[:5], labels[:5], images[5:], labels[5:], classes, 255.0, (0.5, 0.25, 0.1), (0.1, 0.2, 0.3)
    )


@pytest.mark.parametrize(
    "raw",
    [
        some(),
        replace(some(), train_inputs=np.asfortranarray(some().train_inputs)),
        replace(some(), train_inputs=some().train_inputs[:, ::-1]),
        replace(some(), train_inputs=np.float32(some().train_inputs), scale=1.0, mean=(0.0,), std=(1.0,)),
    ],
)
def test_data_come_back_as_they_were(raw: RawData, tmp_path: Path) -> None:
    fingerprint = raw.fingerprint()
    assert kept(tmp_path, fingerprint) is None
    keep(tmp_path, raw, fingerprint)
    back = kept(tmp_path, fingerprint)
    assert back is not None
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(back, name), getattr(raw, name), strict=True)
    assert [(back.classes, back.scale, back.mean, back.std)] == [(raw.classes, raw.scale, raw.mean, raw.std)]
    before = {path: path.stat() for path in tmp_path.rglob("*")}
    keep(tmp_path, raw, fingerprint)  # is there already
    assert {path: path.stat() for path in tmp_path.rglob("*")} == before
    assert kept(tmp_path, "another") is None


@pytest.mark.parametrize(
    "facts", [{"classes": np.int64(3)}, {"scale": np.float64(255)}, {"mean": tuple(np.float32([0.5, 0.25, 0.1]))}]
)
def test_data_that_would_not_come_back_as_they_were_are_not_kept(facts: dict[str, object], tmp_path: Path) -> None:
    raw = replace(some(), **facts)  # type: ignore[arg-type]
    keep(tmp_path, raw, raw.fingerprint())
    assert kept(tmp_path, raw.fingerprint()) is None
    assert list(tmp_path.iterdir()) == []  # nor damaged


def test_whatever_is_damaged_is_set_aside_and_can_be_kept_anew(tmp_path: Path) -> None:
    raw = some()
    fingerprint = raw.fingerprint()
    keep(tmp_path, raw, fingerprint)
    folder = tmp_path / "data" / fingerprint
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(whole) == 5
    generator = np.random.default_rng(0)
    aside = 0
    for name, content in whole.items():
        changes = [None, b"", content[:-1], content[: len(content) // 2], b"[1, 2]"]
        for where in range(0, len(content), 3):
            flipped = bytearray(content)
            flipped[where] ^= 1 << generator.integers(8)
            changes.append(bytes(flipped))
        for change in changes:
            if change is None:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes(change)
            back = kept(tmp_path, fingerprint)
            if back is not None:  # a blank in the header, perhaps; what counts is as it was
                assert back.fingerprint() == fingerprint
                (folder / name).write_bytes(content)
                continue
            aside += 1
            assert not folder.exists()
            assert len(list((tmp_path / "damaged").iterdir())) == aside
            keep(tmp_path, raw, fingerprint)
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert aside > 100


OWN = """
import numpy as np
generator = np.random.default_rng({seed})
def digits():
    x, y = generator.random((100, 1, 4, 4), dtype=np.float32), generator.integers(0, 3, 100)
    return x[:80], y[:80], x[80:], y[80:]
"""


def test_a_worker_refuses_data_that_have_changed_since_the_plan(tmp_path: Path) -> None:
    (tmp_path / "own_data.py").write_text(OWN.format(seed=0))
    spec = command.edited(
        tmp_path,
        data='data = { name = "own_data:digits" }',
        hessian="",
        connectivity="",
        load="load = { width = [2] }",
        temperature="temperature = { batch_size = [16] }",
    )
    done = command.run(tmp_path, "run", spec, "--out", "out")
    assert done.code == 0, done.err
    assert not (tmp_path / "out" / "store" / "data").exists()  # quickly made: not kept
    (tmp_path / "own_data.py").write_text(OWN.format(seed=1))
    refused = command.run(tmp_path, "worker", "out")
    assert refused.code == 2
    assert "The data 'own_data:digits' are not those that out was planned with" in refused.err
    assert "`lossatlas run out`" in refused.err

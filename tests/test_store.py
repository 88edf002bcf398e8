"""The store: what was put in comes out, what is damaged is set aside, a step is there iff it is finished."""

import json
import math
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from lossatlas import files
from lossatlas.errors import FileError
from lossatlas.files import Damaged
from lossatlas.settings import content_key
from lossatlas.sweep.store import Record, Store

CONTENT = {"step": "train", "seed": 0}
KEY = content_key(CONTENT)
ARRAYS = {
    "best": {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": np.array(7)},
    "final": {"weight": np.full((2, 3), np.nan, np.float32)},
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    filled = Store(tmp_path / "store")
    filled.commit("train", CONTENT, Record({"loss": 0.1}, "ok", ""), meta={"seconds": 1.0}, arrays=ARRAYS)
    return filled


def test_a_step_is_there_once_it_is_committed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert not store.has("train", KEY)
    assert store.read("train", KEY) is None
    assert store.arrays("train", KEY, "best") is None
    store.commit("train", CONTENT, Record({}, "ok", ""), meta={})
    assert store.has("train", KEY)
    assert not store.has("train", content_key({"step": "train", "seed": 1}))
    assert not store.has("hessian", KEY)
    assert store.folder("train", KEY) == tmp_path / "train" / KEY[:2] / KEY
    assert store.damaged == []


def test_values_come_back_as_they_were(tmp_path: Path) -> None:
    values = {
        "nan": math.nan,
        "infinite": [1.0, math.inf, -math.inf],
        "tenth": 0.1,
        "small": 5e-324,
        "whole": 3,
        "text": "nan",
        "history": [0.1 + 0.2, 1 / 3],
    }
    store = Store(tmp_path)
    store.commit("cka", CONTENT, Record(values, "degenerate", "0/0"), meta={})
    record = store.read("cka", KEY)
    assert record is not None
    assert (record.status, record.reason) == ("degenerate", "0/0")
    assert repr(record.values) == repr(dict(sorted(values.items())))  # repr: NaN equals itself, 3 is not 3.0
    text = (store.folder("cka", KEY) / "result.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_arrays_come_back_as_they_were(store: Store) -> None:
    for name, arrays in ARRAYS.items():
        found = store.arrays("train", KEY, name)
        assert found is not None
        assert found.keys() == arrays.keys()
        for key, array in arrays.items():
            assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape)
            assert found[key].tobytes() == array.tobytes()


def test_a_step_says_what_it_is(store: Store) -> None:
    folder = store.folder("train", KEY)
    assert json.loads((folder / "spec.json").read_text()) == CONTENT
    assert json.loads((folder / "meta.json").read_text()) == {"seconds": 1.0}
    assert sorted(path.name for path in folder.iterdir()) == [
        "SHA256SUMS",
        "best.safetensors",
        "final.safetensors",
        "meta.json",
        "result.json",
        "spec.json",
    ]


def test_the_first_commit_stays(store: Store) -> None:
    store.commit("train", CONTENT, Record({"loss": 0.2}, "ok", ""), meta={})
    record = store.read("train", KEY)
    assert record is not None
    assert record.values == {"loss": 0.1}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b'{"values": {}}',
        b'{"values": 3, "status": "ok", "reason": ""}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_result_is_set_aside(content: bytes, store: Store) -> None:
    folder = store.folder("train", KEY)
    (folder / "result.json").write_bytes(content)
    assert store.read("train", KEY) is None
    assert not store.has("train", KEY)
    (aside,) = store.damaged
    assert aside.parent == store.root / "damaged"
    assert (aside / "result.json").read_bytes() == content
    assert (aside / "best.safetensors").exists()
    store.commit("train", CONTENT, Record({}, "ok", ""), meta={})  # it can be made again, and be damaged again
    (folder / "result.json").write_bytes(content)
    assert store.read("train", KEY) is None
    assert len(store.damaged) == 2


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_looking_at_a_damaged_step_changes_nothing(store: Store) -> None:
    record = store.look("train", KEY)
    assert record == store.read("train", KEY) == Record({"loss": 0.1}, "ok", "")
    assert store.look("train", "0" * 32) is None
    (store.folder("train", KEY) / "result.json").write_bytes(b"{}")
    before = contents(store.root)
    with pytest.raises(Damaged, match=r"result\.json is damaged: its check sum differs"):
        store.look("train", KEY)
    assert store.verify("train", KEY) == [
        f"{store.folder('train', KEY)}/result.json is damaged: its check sum differs"
    ]
    assert contents(store.root) == before
    assert store.damaged == []


def test_a_flipped_bit_in_any_byte_of_a_json_file_is_found(store: Store) -> None:
    folder = store.folder("train", KEY)
    tried = 0
    for name in ("result.json", "spec.json", "meta.json", "SHA256SUMS"):
        whole = (folder / name).read_bytes()
        for where in range(len(whole)):
            flipped = bytearray(whole)
            flipped[where] ^= 1 << where % 8
            (folder / name).write_bytes(flipped)
            assert len(store.verify("train", KEY)) == 1, (name, where)
            if name in ("result.json", "SHA256SUMS"):
                with pytest.raises(Damaged):
                    store.look("train", KEY)
            tried += 1
        (folder / name).write_bytes(whole)
    assert tried > 500
    assert store.verify("train", KEY) == []


def test_every_damage_of_a_step_is_told(store: Store) -> None:
    folder = store.folder("train", KEY)
    assert store.verify("train", "0" * 32) == []  # not finished: nothing to be wrong
    (folder / "best.safetensors").write_bytes(b"")
    (folder / "meta.json").unlink()
    (folder / "foreign").touch()
    assert store.verify("train", KEY) == [
        f"{folder}/foreign is not in SHA256SUMS",
        f"{folder}/best.safetensors is damaged: its check sum differs",
        f"{folder}/meta.json is missing",
    ]
    assert store.has("train", KEY)


def test_a_step_under_a_wrong_key_is_told(store: Store) -> None:
    wrong = store.folder("train", "0" * 32)
    shutil.copytree(store.folder("train", KEY), wrong)
    assert store.verify("train", "0" * 32) == [f"{wrong} is not where its spec.json belongs"]


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="coreutils are not here")
def test_sha256sum_reads_the_check_sums_too(store: Store) -> None:
    folder = store.folder("train", KEY)
    call = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(call, cwd=folder, capture_output=True).returncode == 0
    (folder / "meta.json").write_bytes(b"{}")
    assert subprocess.run(call, cwd=folder, capture_output=True).returncode == 1


def test_time_stamps_do_not_matter(store: Store) -> None:
    for moment in (0.0, time.time() + 1e8):
        for path in (store.root, *store.root.rglob("*")):
            os.utime(path, (moment, moment))
        assert store.read("train", KEY) == Record({"loss": 0.1}, "ok", "")
        assert store.arrays("train", KEY, "best") is not None
        assert store.verify("train", KEY) == []
    assert store.damaged == []


def test_what_the_dead_left_does_not_matter_and_is_tidied_up(store: Store) -> None:
    finished = subprocess.Popen(["true"])
    finished.wait()
    stem, host, _pid, rest = files.temporary_name(f"{KEY}").rsplit("-", 3)
    left = [parent / f"{stem}-{host}-{finished.pid}-{rest}" for parent in (store.root, store.root / "unfinished")]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "result.json").touch()
    other = content_key({"step": "train", "seed": 1})
    finished_one, going_on = store.unfinished("train", KEY), store.unfinished("train", other)
    finished_one.write_bytes(b"of a worker that died between the commit and this file")
    going_on.write_bytes(b"of a step that is not finished")
    store.commit("train", {"seed": 2}, Record({}, "ok", ""), meta={})
    assert store.read("train", KEY) is not None
    store.tidy()
    assert [p.name for p in (store.root / "unfinished").iterdir()] == [going_on.name]
    assert not [path for path in left if path.exists()]
    assert store.has("train", KEY)
    assert store.damaged == []


@pytest.mark.parametrize("missing", ["result.json", "best.safetensors", "SHA256SUMS"])
def test_a_step_that_lacks_a_file_is_set_aside(missing: str, store: Store) -> None:
    (store.folder("train", KEY) / missing).unlink()
    assert store.read("train", KEY) is None or store.arrays("train", KEY, "best") is None
    assert not store.has("train", KEY)


@pytest.mark.parametrize("where", [0, 20, -1])
def test_weights_with_a_wrong_bit_are_set_aside(where: int, store: Store) -> None:
    path = store.folder("train", KEY) / "best.safetensors"
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    assert store.read("train", KEY) is not None
    assert store.arrays("train", KEY, "final") is not None
    assert store.arrays("train", KEY, "best") is None
    assert not store.has("train", KEY)


def test_what_cannot_be_read_is_told_and_not_set_aside(store: Store) -> None:
    path = store.folder("train", KEY) / "result.json"
    path.unlink()
    path.mkdir()  # reading it fails, as a lack of permission would, but also for root
    with pytest.raises(FileError, match="cannot be read: Is a directory"):
        store.read("train", KEY)
    assert store.has("train", KEY)

"""What a worker tells of its work, and what of it is believed."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lossatlas import files
from lossatlas.sweep import journal
from lossatlas.sweep.journal import Journal, running, tidy
from lossatlas.sweep.plan import Step

TRAIN = Step("train", (64, 0.1), (3,), "key", "{}")
CKA = Step("cka", (1281167, 1e-5), (0, 1), "other", "{}")


def note_of(folder: Path) -> Path:
    return folder / "running" / f"{socket.gethostname()}-{os.getpid()}.json"


def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_log_has_a_line_an_epoch_and_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = Journal(tmp_path, "pipe")
    told.begins(TRAIN)
    told.advanced(TRAIN, 1, 150, 2.3025)
    told.advanced(TRAIN, 2, 150, float("nan"))
    told.finished(TRAIN, "diverged")
    told.begins(CKA)
    told.finished(CKA, "ok")
    told.skipped(CKA)
    lines = capsys.readouterr().err.splitlines()
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
    expected = [
        r"cell 64 0\.1, train of seed 3: epoch 1 of 150, loss 2\.3025",
        r"cell 64 0\.1, train of seed 3: epoch 2 of 150, loss nan",
        r"cell 64 0\.1, train of seed 3: diverged, \d+\.\d s",
        r"cell 1281167 1e-05, cka of seed 0 1: ok, \d+\.\d s",
    ]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(when + pattern, line), line


def test_the_note_tells_the_step_in_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    told = Journal(tmp_path, "shard 1 of 4")
    assert running(tmp_path) == []
    before = time.time()
    told.begins(TRAIN)
    (note,) = running(tmp_path)
    assert before - 0.1 <= note["since"] <= note["at"] <= time.time() + 0.1
    assert {
        name: note[name] for name in ("worker", "pid", "host", "job", "step", "cell", "seeds", "fraction")
    } == {
        "worker": "shard 1 of 4",
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "job": "17",
        "step": "train",
        "cell": [64, 0.1],
        "seeds": [3],
        "fraction": 0.0,
    }
    told.advanced(TRAIN, 1, 4, 1.0)
    assert running(tmp_path)[0]["fraction"] == 0.0  # not at every epoch
    monkeypatch.setattr(journal, "PULSE", 0.0)
    told.advanced(TRAIN, 2, 4, 1.0)
    assert running(tmp_path)[0]["fraction"] == 0.5
    monkeypatch.setattr(journal, "PULSE", 1e9)
    told.begins(CKA)  # at once, for it may take long and tell nothing
    assert running(tmp_path)[0]["step"] == "cka"
    told.leaves()
    assert running(tmp_path) == []
    assert list((tmp_path / "running").iterdir()) == []
    told.leaves()


def test_slurm_jobs_are_named_as_scancel_knows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "19")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    Journal(tmp_path, "").begins(TRAIN)
    assert running(tmp_path)[0]["job"] == "17_2"


def test_notes_of_the_dead_are_not_believed_and_taken_away(tmp_path: Path) -> None:
    Journal(tmp_path, "mine").begins(TRAIN)
    mine = note_of(tmp_path)
    note = json.loads(mine.read_text())
    gone, elsewhere, broken = (mine.with_name(f"{name}.json") for name in ("gone", "elsewhere", "broken"))
    gone.write_text(json.dumps({**note, "pid": dead()}))
    elsewhere.write_text(json.dumps({**note, "host": "another", "pid": dead()}))  # one cannot know
    broken.write_text("{")
    temporary = mine.with_name(f"{files.TEMPORARY}x-{socket.gethostname().replace('-', '_')}-{dead()}-0")
    temporary.write_text("")
    assert sorted(note["host"] for note in running(tmp_path)) == sorted([socket.gethostname(), "another"])
    assert gone.exists()  # who only looks changes nothing
    tidy(tmp_path)
    assert {path.name for path in (tmp_path / "running").iterdir()} == {mine.name, "elsewhere.json", "broken.json"}
    tidy(tmp_path / "nowhere")


def test_notes_of_other_hosts_go_when_they_are_a_day_old(tmp_path: Path) -> None:
    Journal(tmp_path, "mine").begins(TRAIN)
    mine = note_of(tmp_path)
    note = json.loads(mine.read_text())
    young, old, broken = (mine.with_name(f"{name}.json") for name in ("young", "old", "broken"))
    written = mine.with_name(f"{files.TEMPORARY}x-another-1-0")
    for path in (young, old, broken, written):
        path.write_text(json.dumps({**note, "host": "another"}) if path != broken else "{")
    for path, age in ((young, 0.9), (old, 1.1), (broken, 1.1), (written, 1.1)):
        os.utime(path, (time.time() - age * journal.STALE,) * 2)
    assert len(running(tmp_path)) == 3  # who only looks believes them
    tidy(tmp_path)
    assert set((tmp_path / "running").iterdir()) == {mine, young}
    # A living worker that was silent for so long is seen again with its next step.
    os.utime(mine, (time.time() - 2 * journal.STALE,) * 2)
    tidy(tmp_path)
    assert set((tmp_path / "running").iterdir()) == {young}
    Journal(tmp_path, "mine").begins(CKA)
    assert mine.exists()


def test_neither_a_note_nor_a_log_is_worth_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "running").write_text("a file, not a folder")
    told = Journal(tmp_path, "")
    full = Path("/dev/full").open("w")  # noqa: SIM115  # it cannot be closed without an error
    monkeypatch.setattr(sys, "stderr", full)
    told.begins(TRAIN)
    told.advanced(TRAIN, 1, 2, 1.0)
    told.finished(TRAIN, "ok")
    told.leaves()
    monkeypatch.undo()
    with pytest.raises(OSError, match="No space left"):
        full.close()
    assert (tmp_path / "running").is_file()

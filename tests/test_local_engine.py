"""Workers as processes: places for them, and the engine that hands them cells; they only pretend to work here."""

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keeper
from lossatlas.cli import progress
from lossatlas.cli.progress import RunProgress
from lossatlas.errors import UserError
from lossatlas.sweep import local
from lossatlas.sweep.local import LocalEngine, Slot, slots, visible_gpus
from lossatlas.sweep.remaining import Remaining

# ---- places -------------------------------------------------------------------------------------------------


def test_every_worker_has_one_thread_and_its_gpu() -> None:
    assert [slot.number for slot in slots(None, 3)] == [0, 1, 2]  # one a core
    assert [slot.number for slot in slots(5, 3)] == [0, 1, 2, 3, 4]
    for slot in (*slots(2, 1), *slots(None, 1, ["0"])):
        assert slot.environment["OMP_NUM_THREADS"] == slot.environment["MKL_NUM_THREADS"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in slots(1, 1)[0].environment

    def pinned(*arguments: Any) -> list[str]:
        return [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots(*arguments)]

    assert pinned(None, 64, ["2", "GPU-5e"]) == ["2", "GPU-5e"]  # cores do not count
    assert pinned(None, 64, ["2", "3"], 3) == ["2", "3", "2", "3", "2", "3"]
    assert pinned(5, 64, ["2", "3"], 1) == ["2", "3", "2", "3", "2"]  # --workers wins over --per-gpu


def test_gpus_are_named_as_the_driver_sees_them() -> None:
    assert visible_gpus(None, 2) == ["0", "1"]
    assert visible_gpus("3, 1", 2) == ["3", "1"]
    assert visible_gpus("MIG-a,GPU-b", 2) == ["MIG-a", "GPU-b"]
    assert visible_gpus("1,-1,0", 1) == ["1"]  # CUDA stops at the first name that it does not know
    assert visible_gpus("", 0) == visible_gpus(None, 0) == []


# ---- the engine, with workers that only pretend -----------------------------------------------------------------

PRETENDER = """
import json, os, signal, sys, time
acts, folder = json.loads(sys.argv[1]), sys.argv[2]

def tell(**event):
    os.write(1, json.dumps(event).encode() + b"\\n")

def count(name):  # how often this was called, by all workers
    handle = os.open(f"{folder}/{name}", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(handle, b"x")
    return os.fstat(handle).st_size

def leave(*_):
    tell(event="left")
    os._exit(85)

signal.signal(signal.SIGTERM, leave)
print("starts with", os.environ.get("PLACE"), file=sys.stderr, flush=True)
if count("starts") in acts.get("stillborn", []):
    sys.exit("no such library")
tell(event="ready")
while line := os.read(0, 100):
    cell = int(line)
    what = acts.get(str(cell), "do")
    many = count(f"cell-{cell}")
    print("begins cell", cell, file=sys.stderr, flush=True)
    if what == "die" or (what == "die twice" and many < 3):
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "exit":
        os._exit(0)
    elif what == "leave five times" and many < 6:
        leave()
    elif what == "full":
        tell(event="error", reason="the disk is full")
        sys.exit(2)
    elif what == "leave a child behind" and many < 2:
        child = os.fork()
        if not child:
            time.sleep(20)
        with open(f"{folder}/child", "w") as file:
            file.write(str(child))
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "last words" and many < 2:
        tell(event="cell", cell=cell, failures={})
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "hang":
        tell(event="hangs")
        while True:
            time.sleep(1)
    elif what == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        tell(event="hangs")
        while True:
            time.sleep(1)
    tell(event="cell", cell=cell, failures={"key": "why"} if what == "fail" else {})
leave()
"""


class Pretended:
    """An engine of pretenders, and what it said."""

    def __init__(self, folder: Path, acts: Mapping[str, Any], workers: int = 1) -> None:
        self.folder = folder
        self.heard: list[Mapping[str, Any]] = []
        self.on: dict[str, Callable[[], None]] = {}  # what to do when this is first heard
        self.workers: set[keeper.Process] = set()
        script = [sys.executable, "-I", "-S", "-c", PRETENDER, json.dumps(acts), str(folder)]
        places = [Slot(k, {"PLACE": str(k)}) for k in range(workers)]
        self.engine = LocalEngine(script, folder / "logs", places, self._hear)

    def _hear(self, event: Mapping[str, Any]) -> None:
        self.heard.append(event)
        for each in self.engine._processes:
            with contextlib.suppress(OSError):  # it has been reaped
                self.workers.add(keeper.Process.named(each.popen.pid))
        self.on.pop(event["event"], lambda: None)()

    def run(self, *cells: int) -> None:
        try:
            self.engine.run(cells)
        finally:
            assert not any(process.runs() for process in self.workers)

    def told(self, kind: str) -> list[Any]:
        return [event["cell"] for event in self.heard if event["event"] == kind]

    def begun(self, cell: int) -> int:
        return (self.folder / f"cell-{cell}").stat().st_size


def test_cells_are_begun_in_their_order_and_all_done(tmp_path: Path) -> None:
    pretended = Pretended(tmp_path, {"3": "fail"})
    pretended.run(4, 2, 3, 1)
    assert pretended.told("cell") == [4, 2, 3, 1]
    assert pretended.engine.failures == {"key": "why"}
    assert pretended.engine.given_up == {}
    several = Pretended(tmp_path, {}, workers=3)
    several.run(*range(20))
    assert sorted(several.told("cell")) == list(range(20))
    assert {event["worker"] for event in several.heard} == {0, 1, 2}
    for k in range(3):
        assert f"starts with {k}\n" in (tmp_path / "logs" / f"worker-{k}.log").read_text()
    nothing = Pretended(tmp_path, {}, workers=3)
    nothing.run()
    assert nothing.heard == []


def test_no_more_workers_start_than_there_are_cells(tmp_path: Path) -> None:
    Pretended(tmp_path, {}, workers=8).run(1, 2)
    assert len(list((tmp_path / "logs").iterdir())) == 2


def test_a_cell_is_given_up_after_three_deaths_and_the_others_are_done(tmp_path: Path) -> None:
    pretended = Pretended(tmp_path, {"1": "die", "5": "exit", "6": "die twice"}, workers=2)
    pretended.run(1, 2, 3, 4, 5, 6)
    assert sorted(pretended.told("cell")) == [2, 3, 4, 6]
    assert [pretended.begun(cell) for cell in (1, 2, 5, 6)] == [3, 1, 3, 3]
    assert set(pretended.engine.given_up) == {1, 5}
    reason = pretended.engine.given_up[1].splitlines()
    assert reason[0].startswith("given up after 3 attempts: its worker ended with signal SIGKILL; the end of ")
    assert reason[-1] == "begins cell 1"
    assert "exit code 0" in pretended.engine.given_up[5]
    deaths = [event for event in pretended.heard if event["event"] == "handed on"]
    assert [event["again"] for event in deaths if event["cell"] == 1] == [True, True, False]
    assert all(event["died"] for event in deaths)


def test_a_worker_that_leaves_has_not_died(tmp_path: Path) -> None:
    pretended = Pretended(tmp_path, {"1": "leave five times"})
    pretended.run(1, 2)
    assert pretended.told("cell") == [1, 2]
    assert pretended.begun(1) == 6
    assert [event["died"] for event in pretended.heard if event["event"] == "handed on"] == [False] * 5
    assert pretended.engine.given_up == {}


def test_last_words_count(tmp_path: Path) -> None:
    pretended = Pretended(tmp_path, {"1": "last words"})
    pretended.run(1, 2)  # the worker dies with cell 2 in hand, or before it is handed over
    assert pretended.told("cell") == [1, 2]
    assert pretended.begun(1) == 1


def test_a_death_is_noticed_though_a_child_of_the_dead_holds_its_output(tmp_path: Path) -> None:
    pretended = Pretended(tmp_path, {"1": "leave a child behind"})
    start = time.monotonic()
    try:
        pretended.run(1)
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)
    assert time.monotonic() - start < 10  # the child lives longer
    assert pretended.told("cell") == [1]


def test_workers_that_cannot_start_end_the_run_with_their_log(tmp_path: Path) -> None:
    pretended = Pretended(tmp_path, {"stillborn": list(range(100))}, workers=2)
    with pytest.raises(
        UserError, match=r"cannot start: its worker ended with exit code 1;(.|\n)*no such library$"
    ):
        pretended.run(1, 2, 3)
    assert (tmp_path / "starts").stat().st_size <= 4
    (tmp_path / "later").mkdir()
    now_and_then = Pretended(tmp_path / "later", {"stillborn": [1, 2, 4, 5]})
    now_and_then.run(1)
    assert now_and_then.told("cell") == [1]


def test_what_no_worker_would_be_spared_ends_the_run(tmp_path: Path) -> None:
    pretended = Pretended(tmp_path, {"2": "full", "1": "hang"}, workers=2)
    with pytest.raises(UserError, match=r"^the disk is full$"):
        pretended.run(1, 2, 3)
    assert pretended.begun(2) == 1
    assert not (tmp_path / "cell-3").exists()


def interrupt() -> None:
    raise KeyboardInterrupt


def test_stopped_the_engine_lets_its_workers_leave(tmp_path: Path) -> None:
    pretended = Pretended(tmp_path, {"1": "hang", "2": "hang"}, workers=2)
    pretended.on = {"hangs": interrupt}
    with pytest.raises(KeyboardInterrupt):
        pretended.run(1, 2, 3)
    assert [event["event"] for event in pretended.heard].count("leaving") == 1
    hang, leave = (
        {each["worker"] for each in pretended.heard if each["event"] == kind} for kind in ("hangs", "left")
    )
    assert hang  # the other may have been up by then, or not
    assert hang <= leave
    assert pretended.engine.given_up == {}


def test_stopped_twice_it_kills_them(tmp_path: Path) -> None:
    pretended = Pretended(tmp_path, {"1": "ignore"})
    pretended.on = {"hangs": interrupt, "leaving": interrupt}
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pretended.run(1)
    assert time.monotonic() - start < 5


def test_a_worker_that_does_not_leave_is_killed_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "GRACE", 0.2)
    monkeypatch.setattr(local, "PULSE", 0.1)
    pretended = Pretended(tmp_path, {"1": "ignore"})
    pretended.on = {"hangs": interrupt}
    with pytest.raises(KeyboardInterrupt):
        pretended.run(1)
    assert pretended.workers


def test_the_driver_says_how_far_its_workers_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", -1.0)
    left = Remaining({"train": 8}, np.array([[2], [4]]), 6.0)

    def heard(**event: Any) -> str:
        shown.hear(event)
        return capsys.readouterr().err

    with RunProgress(lambda _name, _cell: 1.0, left) as shown:
        assert heard(event="ready", worker=0) == ""
        step = {"step": "train", "cell": [2, 16], "worker": 1}
        assert re.fullmatch(
            r"2 of 8 steps done, about \d+ s left\n", heard(event="advanced", fraction=0.5, **step)
        )
        done = heard(event="finished", seeds=[0], status="diverged", **step)
        assert re.fullmatch(r"diverged: cell \(2, 16\), seed 0\n3 of 8 steps done, about \d+ s left\n", done)
        lost = {"event": "handed on", "worker": 1, "cell": 0}
        assert (
            heard(**lost, died=False, again=True, reason="x") == "Worker 1 left; another goes on with its cell.\n"
        )
        gone = heard(**lost, died=True, again=False, reason="its worker ended with signal SIGKILL")
        assert gone == "Worker 1 died; its cell is given up: its worker ended with signal SIGKILL\n"
        assert "once more to leave at once" in heard(event="leaving")

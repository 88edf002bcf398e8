"""Status: the facts are those of the files, the time left follows what was measured, nothing is changed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import command
from command import TINY, Running
from lossatlas import specs
from lossatlas.sweep import journal
from lossatlas.sweep.cost import Estimate
from lossatlas.sweep.measured import Finished, refined
from lossatlas.sweep.plan import Plan, Step
from lossatlas.sweep.remaining import remaining
from lossatlas.sweep.run import open_folder, write_plan
from lossatlas.sweep.status import SILENT, Observer
from lossatlas.sweep.store import Record, Store
from lossatlas.sweep.worker import note_failure

PREDICTED = 2.0  # s a step


class Folder:
    """A run folder of the tiny spec whose steps are done by hand."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.plan = Plan(specs.read(TINY, {}), "f" * 32)
        self.store = Store(root / "store")
        names = tuple(name for name, _ in self.plan.kinds())
        seconds = np.full((len(self.plan), len(names)), PREDICTED)
        write_plan(open_folder(root, None), self.plan, Estimate(names, seconds, 0, np.ones(len(self.plan))))

    def steps(self, name: str = "") -> list[Step]:
        return [s for cell in self.plan for s in cell.steps if name in ("", s.name)]

    def do(self, steps: Sequence[Step], seconds: float = PREDICTED, status: str = "ok", ago: float = 60.0) -> None:
        for step in steps:
            meta = {"seconds": seconds, "started": time.time() - ago}
            self.store.commit(step.name, step.content, Record({}, status, ""), meta=meta)

    def tell(self, name: str, **changes: Any) -> dict[str, Any]:
        """A note as a worker of another host writes it."""
        step = self.steps("train")[0]
        hand = {"step": "train", "cell": list(step.cell), "seeds": list(step.seeds), "fraction": 0.25}
        about = {"worker": name, "host": "elsewhere", "pid": 1, "job": "7_1"}
        note = {**about, **hand, "since": time.time() - 30, "at": time.time(), **changes}
        (self.root / "running").mkdir(exist_ok=True)
        (self.root / "running" / f"{name}.json").write_text(json.dumps(note))
        return note

    def fail(self, steps: Sequence[Step], ago: float = 0.0) -> None:
        """Notes of failures as a worker leaves them, so many seconds before the run was last started."""
        for step in steps:
            note_failure(self.root / "failed", step, "out of luck")
            for path in (self.root / "failed").glob(f"{step.key}-*.json"):
                started = (self.root / "plan.json").stat().st_mtime_ns
                os.utime(path, ns=(started - round(ago * 1e9),) * 2)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "run")


def test_an_untouched_run(folder: Folder) -> None:
    found = Observer(folder.root).look()
    assert (found.left.steps, found.share, found.looked_at) == (48, 0.0, 0)
    assert found.seconds_left == pytest.approx(48 * PREDICTED)
    assert (found.at_work, found.silent, found.failed, found.damaged, found.per_minute) == ((), (), (), (), None)


def test_the_time_left_follows_what_was_measured(folder: Folder) -> None:
    folder.do(folder.steps("train")[:4], seconds=3 * PREDICTED)  # of 8: all four of width 2
    folder.do(folder.steps("hessian")[:2], seconds=PREDICTED / 2, status="diverged")  # which tells nothing
    found = Observer(folder.root).look()
    left = 4 * 3 * PREDICTED + (48 - 8 - 2) * PREDICTED
    assert found.seconds_left == pytest.approx(left)
    assert found.share == pytest.approx(1 - left / (8 * 3 * PREDICTED + 40 * PREDICTED))
    assert found.statuses == {"train": {"ok": 4}, "hessian": {"diverged": 2}}
    assert found.per_minute == pytest.approx(6, rel=0.05)  # 6 steps since the first began, a minute ago
    for name in "abc":
        folder.tell(name)
    assert Observer(folder.root).look().seconds_to_go == pytest.approx(left / 3)


def test_a_finished_run_is_all_of_it(folder: Folder) -> None:
    folder.do(folder.steps())
    found = Observer(folder.root).look()
    assert (found.left.steps, found.share, found.seconds_left) == (0, 1.0, 0.0)
    assert found.to_dict()["cells"] == {"done": 4, "total": 4}


def test_predictions_are_scaled_by_model_and_kind(folder: Folder) -> None:
    steps = {step.name: step for step in folder.plan[0].steps}
    seconds = np.full((4, len(steps)), PREDICTED)
    column = {name: k for k, (name, _) in enumerate(folder.plan.kinds())}

    def done(name: str, index: int, took: float, status: str = "ok") -> Finished:
        return Finished(steps[name], index, status, took, 0.0)

    scaled = refined(
        folder.plan,
        seconds,
        [done("train", 0, 4.0), done("train", 1, 8.0), done("cka", 2, 1.0), done("hessian", 3, 0.1, "diverged")],
    )
    cells = [cell[0] for cell in folder.plan.cells]  # the widths, which are the models
    assert cells == [2, 2, 4, 4]
    np.testing.assert_allclose(
        scaled[:, column["train"]], [6.0, 6.0, 6.0, 6.0]
    )  # (4 + 8) / 2 of one model, and so all
    np.testing.assert_allclose(scaled[:, column["cka"]], [1.0] * 4)
    np.testing.assert_allclose(scaled[:, column["hessian"]], [PREDICTED] * 4)
    both = refined(folder.plan, seconds, [done("train", 0, 4.0), done("train", 2, 1.0)])
    np.testing.assert_allclose(both[:, column["train"]], [4.0, 4.0, 1.0, 1.0])
    np.testing.assert_array_equal(seconds, np.full((4, len(steps)), PREDICTED))  # the argument stays
    np.testing.assert_allclose(refined(folder.plan, seconds, []), seconds)
    # Steps too short to be measured, in a plan that was refined by such steps.
    nothing = refined(folder.plan, np.zeros_like(seconds), [done("train", 0, 0.0)])
    np.testing.assert_allclose(nothing, np.full((4, len(steps)), 1e-3))


@pytest.mark.parametrize(("asked", "given"), [(0, 0), (1, 1), (5, 5), (7, 7), (48, 40), (1000, 40)])
def test_a_sample_of_finished_steps_is_spread_evenly(asked: int, given: int, folder: Folder) -> None:
    done = [step for k, step in enumerate(folder.steps()) if k % 6]  # 40 of 48
    folder.do(done)
    left = remaining(folder.plan, folder.store, np.ones((4, 9)), sample=asked)
    keys = [step.key for _, step in left.sample]
    stride = -(-40 // asked) if asked else 41
    assert keys == [step.key for step in done][::stride][: len(keys)]
    assert len(keys) == given <= asked
    assert all(folder.plan.cells[index] == step.cell for index, step in left.sample)
    assert left.steps == left.seconds == 8
    assert sum(left.done.values()) == 40


def test_workers_at_work_are_told_from_the_silent_and_the_dead(folder: Folder) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    here = journal._host()
    folder.tell("elsewhere")
    folder.tell("here", host=here, pid=os.getpid())
    folder.tell("ahead", at=time.time() + 3600, since=time.time() + 3600)  # its clock is
    folder.tell("quiet", at=time.time() - SILENT - 60)
    folder.tell("dead", host=here, pid=dead.pid)
    (folder.root / "running" / "damaged.json").write_text('{"host": "elsewhere"}')
    folder.tell("broken", at=float("nan"))
    folder.tell("wrong", since="yesterday")
    (folder.root / "running" / "cut.json").write_text('{"ho')
    found = Observer(folder.root).look()
    assert [note["worker"] for note in found.at_work] == ["ahead", "elsewhere", "here"]
    assert [note["worker"] for note in found.silent] == ["quiet"]
    folder.do(folder.steps("train")[1:2], seconds=10 * SILENT)  # such a step takes long: one is patient
    assert not Observer(folder.root).look().silent


def test_what_failed_is_told_until_it_is_done(folder: Folder) -> None:
    first, second = folder.steps("train")[:2]
    failed = folder.root / "failed"
    failed.mkdir()
    for step, attempt in ((first, 1), (first, 2), (first, 10), (second, 1)):
        place = {"cell": list(step.cell), "seeds": list(step.seeds)}
        note = {"step": "train", **place, "reason": f"reason {attempt}"}
        (failed / f"{step.key}-{attempt}.json").write_text(json.dumps(note))
    (failed / "cut-1.json").write_text("{")
    folder.do([second])
    (failure,) = Observer(folder.root).look().failed
    assert failure == {
        "step": "train",
        "key": first.key,
        "cell": [2, 16],
        "seeds": [0],
        "reason": "reason 10",
        "attempts": 3,
    }


def test_a_run_is_over_when_what_is_missing_has_failed_and_nobody_works(folder: Folder) -> None:
    def is_over() -> bool:
        return Observer(folder.root).look().is_over

    first, *others = folder.steps("train")
    needing = [step for step in folder.steps() if first.key in step.inputs]
    assert len(needing) > 3
    folder.do([step for step in folder.steps() if step != first and step not in needing])
    assert not is_over()  # nothing has begun yet: no worker is at work, and no failure
    folder.fail([first], ago=60)
    assert not is_over()  # it failed before the last start
    folder.fail([first])
    assert is_over()
    folder.tell("elsewhere")
    assert not is_over()
    folder.tell("elsewhere", at=time.time() - 2 * SILENT)
    assert is_over()
    shutil.rmtree(folder.store.folder("train", others[0].key))
    assert not is_over()  # this one nobody has tried
    folder.fail(others[:1])
    assert is_over()


def test_what_fails_after_a_step_that_is_done_is_lost_alone(folder: Folder) -> None:
    missing = folder.steps("hessian")[:1]
    folder.do([step for step in folder.steps() if step not in missing])
    folder.fail(folder.steps("train")[:1])  # done since
    assert not Observer(folder.root).look().is_over
    folder.fail(missing)
    assert Observer(folder.root).look().is_over


def test_a_step_is_lost_with_the_arrays_that_it_takes(folder: Folder) -> None:
    (curve, *_), (after, *_) = folder.steps("curve"), [s for s in folder.steps() if s.arrays]
    assert (curve.name, curve.key) in after.arrays
    folder.do([step for step in folder.steps() if step not in (curve, after)])
    folder.fail([curve])
    assert Observer(folder.root).look().is_over
    folder.do([curve])
    assert not Observer(folder.root).look().is_over


def test_damaged_steps_are_named_and_left(folder: Folder) -> None:
    folder.do(folder.steps("train"))
    step = folder.steps("train")[3]
    (folder.store.folder("train", step.key) / "meta.json").write_text("{}")
    before = {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}
    observer = Observer(folder.root)
    for _ in range(2):  # the second look takes nothing for sound that it has not read
        (broken,) = observer.look().damaged
        assert broken.step.key == step.key
        assert "meta.json is damaged: its check sum differs" in broken.problem
    assert {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()} == before


def test_files_from_the_future_do_not_matter(folder: Folder) -> None:
    folder.do(folder.steps("train"), ago=-1e8)
    for path in (folder.root, *folder.root.rglob("*")):
        os.utime(path, (time.time() + 1e8,) * 2)
    found = Observer(folder.root).look()
    assert (found.left.done["train"], found.per_minute, found.damaged) == (8, None, ())


def test_the_command_tells_it_in_tables(folder: Folder, tmp_path: Path) -> None:
    folder.do(folder.steps("train"))
    (folder.store.folder("train", folder.steps("train")[0].key) / "result.json").write_text("{}")
    folder.tell("shard 3 of 8")
    folder.tell("quiet", at=time.time() - 2 * SILENT)
    listed = command.run(tmp_path, "status", folder.root)
    assert listed.code == 0, listed.err
    rows = [line.split("\t") for line in listed.out.splitlines()]
    assert ["train", "8", "8", "7 ok"] in rows
    assert ["evaluation", "0", "8", ""] in rows
    where = rows.index(["worker", "where", "state", "step in hand", "done", "for"])
    assert rows[where + 1][:5] == [
        "shard 3 of 8",
        "elsewhere 7_1",
        "at work",
        "train of cell 2 16, seeds 0",
        "25%",
    ]
    assert rows[where + 2][2] == "silent"
    assert rows[-1][:2] == ["train", "damaged"]
    assert "8 of 48 steps done (16%), 0 of 4 cells; about 80 s left on 1 worker, " in listed.err
    assert " steps a minute.\nDamaged steps: 1. " in listed.err
    state = command.status(tmp_path, folder.root)
    assert (state["workers"], state["seconds_left"], state["share_done"]) == (1, 80.0, 0.1667)
    assert state["damaged"][0]["seeds"] == [0]


def refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def test_what_does_not_exist_is_null_in_json(folder: Folder, tmp_path: Path) -> None:
    names = tuple(name for name, _ in folder.plan.kinds())
    endless = Estimate(names, np.full((4, len(names)), np.inf), 0, np.ones(4))
    write_plan(open_folder(folder.root, None), folder.plan, endless)
    told = command.run(tmp_path, "status", folder.root, "--json")
    assert told.code == 0, told.err
    found = json.loads(told.out, parse_constant=refuse)
    assert [found[name] for name in ("seconds_left", "predicted_seconds_left", "share_done")] == [None] * 3
    plain = command.run(tmp_path, "status", folder.root)
    assert plain.code == 0, plain.err
    assert "0 of 48 steps done (?%), 0 of 4 cells; about an unknown time left on one process." in plain.err


def test_watching_ends_with_the_run(folder: Folder, tmp_path: Path) -> None:
    folder.do(folder.steps()[1:])
    watching = Running(tmp_path, ["status", folder.root, "--watch"], cwd=tmp_path)
    plain = Running(tmp_path, ["status", folder.root, "--watch", "--json"], cwd=tmp_path)
    for one in (watching, plain):
        one.wait_for(lambda one=one: "\n" in one.out)  # type: ignore[misc]
    folder.do(folder.steps()[:1])
    told = watching.finish()
    assert told.code == 0, told.err
    assert told.out.splitlines()[0].startswith(
        "47 of 48 steps done (97%), 3 of 4 cells; about 2 s left on one process"
    )
    assert told.out.splitlines()[-1] == "48 of 48 steps done (100%), 4 of 4 cells."
    lines = [json.loads(line) for line in plain.finish().out.splitlines()]
    assert [line["cells"]["done"] for line in lines] == [3, 4]


def test_watching_ends_when_what_is_missing_has_failed(folder: Folder, tmp_path: Path) -> None:
    last = folder.steps("ensemble")[-1]
    folder.do([step for step in folder.steps() if step != last])
    watching = Running(tmp_path, ["status", folder.root, "--watch"], cwd=tmp_path)
    as_json = Running(tmp_path, ["status", folder.root, "--watch", "--json"], cwd=tmp_path)
    for one in (watching, as_json):
        one.wait_for(lambda one=one: "\n" in one.out)  # type: ignore[misc]
        assert one.process.is_alive()  # nobody is at work yet
    folder.fail([last])
    told = watching.finish()
    assert told.code == 1
    assert told.out.splitlines()[-1].startswith("47 of 48 steps done")
    assert told.err.startswith("No worker tells that it is at work; `lossatlas run ")
    assert "Failed steps: 1. " in told.err
    listed = as_json.finish()
    assert listed.code == 1
    assert [json.loads(line)["over"] for line in listed.out.splitlines()] == [False, True]


def test_leaving_a_watch_is_no_error(folder: Folder, tmp_path: Path) -> None:
    watching = Running(tmp_path, ["status", folder.root, "--watch"], cwd=tmp_path)
    watching.wait_for(lambda: "\n" in watching.out)
    assert watching.process.pid is not None
    os.kill(watching.process.pid, signal.SIGINT)
    left = watching.finish()
    assert (left.code, left.err) == (0, "")


def test_a_run_in_one_process_tells_its_step_too(tmp_path: Path) -> None:
    run = Running(tmp_path, ["run", TINY, "--out", tmp_path / "run"], cwd=tmp_path)
    run.wait_for(lambda: bool(list((tmp_path / "run").glob("running/[!.]*"))))
    (note,) = Observer(tmp_path / "run").look().at_work
    assert (note["worker"], note["pid"]) == ("inline", run.process.pid)
    assert run.finish().code == 0
    assert not list((tmp_path / "run" / "running").iterdir())


def test_a_large_run_is_looked_at_in_parts(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    from lossatlas.sweep import status

    monkeypatch.setattr(status, "MOST_READ", 10)
    folder.do(folder.steps()[:40])
    found = Observer(folder.root).look()
    assert found.looked_at == 10
    assert sum(sum(counts.values()) for counts in found.statuses.values()) == 10
    assert sum(found.left.done.values()) == 40
    assert found.per_minute == pytest.approx(40, rel=0.05)  # of all that are done


def test_status_loads_no_torch() -> None:
    program = "import sys, lossatlas.sweep.status, lossatlas.cli.status; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

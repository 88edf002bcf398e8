"""The Slurm engine on a real Slurm: whatever happens to its jobs or to itself, the run ends complete and equal.

The fast tests let jobs copy the steps of a run that is done (fake workers, which start at once) and misbehave as
they are told; the results of real workers are compared bit for bit, in one fast test and in the slow ones.
"""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import command
from command import TINY
from lossatlas import results
from lossatlas.errors import UserError
from lossatlas.landscape.checkpoints import Stopped
from lossatlas.sweep import slurm as slurm_commands
from lossatlas.sweep.slurm import NotNow
from lossatlas.sweep.slurm_files import attempts
from slurm_bench import INTERVAL, Background, Bench, bench_made, env, finished_run, until  # noqa: F401  # fixtures
from slurm_cluster import Cluster, obstacle
from slurm_conf import Shape

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=obstacle() or "")


def assert_equal(run: Path, finished: Path) -> None:
    """All values of two runs are the same, bit for bit, whoever computed them."""
    ours, theirs = (results.load(folder / "results.nc") for folder in (run, finished))
    xr.testing.assert_identical(ours, theirs)


def logs(run: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((run / "logs").rglob("*.log")))


def test_a_run_on_slurm_equals_one_without_and_each_job_sees_its_own_gpu(
    slurm: Cluster, finished: Path, tmp_path: Path
) -> None:
    given = ("--slurm", "gres=gpu:1", "--slurm", "shard_minutes=0.001", "--device", "cpu")
    # All four at once: none begins to work before all four run.
    gate = tmp_path / "gate"
    gate.mkdir()
    wait = f"touch {gate}/$SLURM_ARRAY_TASK_ID; while [ $(ls {gate} | wc -l) -lt 4 ]; do sleep 0.1; done"
    done = command.run(
        tmp_path,
        "run",
        TINY,
        "--out",
        "run",
        "--engine",
        "slurm",
        *given,
        "--slurm",
        f"setup={wait}",
        env=env(slurm),
    )
    assert done.code == 0, done.err
    assert_equal(tmp_path / "run", finished)
    seen = re.findall(r"begins on cpu in job (\S+) on (n\d) with GPU (\d)", logs(tmp_path / "run"))
    assert sorted(place for _, *place in seen) == [["n1", "0"], ["n1", "1"], ["n2", "0"], ["n2", "1"]]
    (attempt,) = attempts(tmp_path / "run")
    assert {job for job, *_ in seen} == {f"{attempt.array}_{index}" for index in range(4)}
    before = command.steps_done(tmp_path / "run" / "store")
    again = command.run(tmp_path, "run", "run", env=env(slurm))
    assert again.code == 0, again.err
    assert len(attempts(tmp_path / "run")) == 1  # nothing was left to submit
    assert command.steps_done(tmp_path / "run" / "store") == before


def test_a_plan_larger_than_an_array_may_be(bench: Bench, slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(f"{slurm.folder}-small")
    try:
        small = Cluster(folder).start(Shape(nodes=1, cpus=4, gpus=0, settings={"MaxArraySize": "3"}))
        monkeypatch.setenv("SLURM_CONF", small.env["SLURM_CONF"])
        assert slurm_commands.limits().array == 3
        bench.run()
        assert bench.missing() == 0
        assert [len(attempt.shards()) for attempt in attempts(bench.root)] == [3, 1]
    finally:
        Cluster(folder).stop()


def test_no_more_tasks_are_in_the_queue_than_allowed(bench: Bench, slurm: Cluster) -> None:
    for cell in bench.plan.cells:
        bench.rule("-".join(map(str, cell)), "wait")
    engine = Background(bench.engine(max_shards=2))
    until(lambda: sorted(job.state for job in slurm.jobs()) == ["RUNNING", "RUNNING"])
    time.sleep(5 * INTERVAL)
    assert len(attempts(bench.root)) == 1
    for path in bench.rules.glob("[0-9]*"):
        path.unlink()
    engine.join()
    assert bench.missing() == 0
    assert sum(len(attempt.shards()) for attempt in attempts(bench.root)) == 4


def test_what_a_task_did_not_do_is_done_by_another(bench: Bench, slurm: Cluster) -> None:
    """An element of the array is cancelled while it waits, one while it runs, and one worker is killed."""
    waits = [bench.rule(cell, "wait") for cell in ("2-16", "2-64")]
    engine = Background(bench.engine(throttle=2))
    until(lambda: bench.begun("2-16") or bench.begun("2-64"))
    until(lambda: len(slurm.jobs()) >= 2)
    running = [job for job in slurm.jobs() if job.state == "RUNNING"]
    pids = [int(path.read_text()) for path in bench.rules.glob("begun-2-*")]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    slurm.run("scancel", running[-1].id)
    for path in waits:
        path.unlink()
    engine.join()
    assert engine.error is None
    assert bench.missing() == 0
    assert len(attempts(bench.root)) > 1


def test_another_driver_adopts_what_is_in_the_queue(bench: Bench, slurm: Cluster) -> None:
    waits = [bench.rule(cell, "wait") for cell in ("2-16", "4-64")]
    first = bench.engine()
    first._limits = slurm_commands.limits()
    first._round()  # and then it dies
    until(lambda: bench.begun("2-16") and bench.begun("4-64"))
    second = Background(bench.engine())
    time.sleep(5 * INTERVAL)
    assert len(attempts(bench.root)) == 1
    assert len(slurm.jobs()) == 2
    for path in waits:
        path.unlink()
    second.join()
    assert second.error is None
    assert bench.missing() == 0
    assert len(attempts(bench.root)) == 1


def test_scripts_submitted_by_hand_are_not_submitted_again(bench: Bench, slurm: Cluster) -> None:
    wait = bench.rule("2-16", "wait")
    (attempt,) = bench.engine().write()
    slurm.run("sbatch", attempt.script)
    until(lambda: bench.begun("2-16"))
    assert bench.engine().write() == []  # but what waits, everything is done or will be
    engine = Background(bench.engine())
    time.sleep(5 * INTERVAL)
    wait.unlink()
    engine.join()
    assert bench.missing() == 0
    assert attempts(bench.root) == [attempt]


def test_cancel_ends_the_jobs_and_their_driver(bench: Bench, slurm: Cluster) -> None:
    wait = bench.rule("2-16", "wait")
    other = slurm.run("sbatch", "--parsable", "--array=0-1", "--output=/dev/null", "--wrap=sleep 60")
    engine = Background(bench.engine())
    until(lambda: bench.begun("2-16"))
    done = command.run(bench.root.parent, "cancel", "run", env=env(slurm))
    assert (done.code, done.err) == (0, "")
    assert re.search(r"^[1-4] jobs were cancelled", done.out)
    engine.join()
    assert isinstance(engine.error, Stopped)
    assert not list((bench.root / "slurm" / "001").glob("cancelled*"))
    until(lambda: {job.id for job in slurm.jobs()} == {f"{other}_0", f"{other}_1"})
    wait.unlink()
    bench.run()
    assert bench.missing() == 0


def test_a_cell_that_ends_every_worker_is_given_up_and_the_others_are_done(bench: Bench) -> None:
    bench.rule("4-16", "die")
    engine = bench.run(shard_minutes=60.0)  # one shard: the others come after it at first
    assert {bench.plan.cells[index] for index in engine.given_up} == {(4, 16)}
    (reason,) = engine.given_up.values()
    assert "given up after 3 attempts" in reason
    assert "cell [4, 16]" in reason.splitlines()[-1] or "Killed" in reason
    assert bench.missing() == len(bench.plan[0].steps)
    assert 3 <= len(attempts(bench.root)) <= 4


def test_jobs_that_cannot_start_end_the_driver_with_their_log(bench: Bench) -> None:
    with pytest.raises(UserError, match="3 times jobs have left the queue") as error:
        bench.run(python="/nothing/python")
    assert "/nothing/python: No such file or directory" in str(error.value)


def test_what_slurm_refuses_is_said_in_its_words(bench: Bench) -> None:
    with pytest.raises(UserError, match=r"Slurm refuses .*job\.sbatch: .*invalid partition"):
        bench.run(partition="nowhere")


def test_a_silent_controller_is_no_empty_queue(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real, silent = slurm_commands._output, iter([False, False, True, True, True])

    def flaky(*words: str, **options: Any) -> str:
        if words[0] == "squeue" and next(silent, False):
            raise NotNow("Unable to contact slurm controller (connect failure)")
        return real(*words, **options)

    monkeypatch.setattr(slurm_commands, "_output", flaky)
    wait = bench.rule("2-16", "wait")
    engine = Background(bench.engine())
    until(lambda: len(bench.said) == 1)
    wait.unlink()
    engine.join()
    assert bench.said == [
        "Slurm does not answer (Unable to contact slurm controller (connect failure)); waiting for it."
    ]
    assert bench.missing() == 0
    assert len(attempts(bench.root)) == 1


def slow_spec(folder: Path) -> Path:
    """A spec of two cells whose models take seconds to train."""
    epochs = "epochs = 2500"
    return command.edited(
        folder,
        load="load = { width = [64] }",
        epochs=epochs,
        connectivity="",
        hessian="",
        temperature="temperature = { batch_size = [16, 64] }",
    )


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A spec whose models train for long, and its run without Slurm."""
    folder = tmp_path_factory.mktemp("slow")
    spec = slow_spec(folder)
    done = command.Running(folder, ("run", spec, "--out", "run"), cwd=folder).finish(900)
    assert done.code == 0, done.err
    return spec, folder / "run"


class Driver:
    """`lossatlas run` on the slow spec, in a process of its own."""

    def __init__(self, cluster: Cluster, folder: Path, spec: Path, *options: str) -> None:
        self.cluster, self.folder, self.run = cluster, folder, folder / "run"
        given = ("--slurm", "shard_minutes=0.001", "--device", "cpu", *options)
        self._arguments: tuple[object, ...] = ("run", spec, "--out", "run", "--engine", "slurm", *given)
        self.start()

    def start(self) -> None:
        self.process = command.Running(self.folder, self._arguments, cwd=self.folder, env=env(self.cluster))
        self._arguments = ("run", "run")

    def trains(self) -> bool:
        """Whether both workers do."""
        begun = [re.search(r"epoch [1-9]\d of", path.read_text()) for path in (self.run / "logs").glob("*.log")]
        return len([found for found in begun if found]) == 2

    def finish(self, finished: Path) -> None:
        done = self.process.finish(900)
        assert done.code == 0, done.err
        assert_equal(self.run, finished)
        assert not list((self.run / "store").rglob(".tmp-*"))


@pytest.fixture
def drive(slurm: Cluster, slow: tuple[Path, Path], tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    drivers: list[Driver] = []

    def started(*options: str) -> Driver:
        drivers.append(Driver(slurm, tmp_path, slow[0], *options))
        return drivers[-1]

    yield started
    for driver in drivers:
        driver.process.process.kill()  # if the test has failed


@pytest.mark.slow
def test_worker_killed_element_cancelled_driver_killed(
    drive: Callable[..., Driver], slurm: Cluster, slow: tuple[Path, Path]
) -> None:
    driver = drive()
    until(driver.trains, 120)
    first, second = sorted((driver.run / "running").glob("*.json"))[:2]
    os.kill(json.loads(first.read_text())["pid"], signal.SIGKILL)
    slurm.run("scancel", json.loads(second.read_text())["job"])  # it leaves a checkpoint behind
    until(lambda: list((driver.run / "store" / "unfinished").glob("*.safetensors")), 60)
    until(lambda: len(attempts(driver.run)) > 1, 120)
    os.kill(driver.process.process.pid or 0, signal.SIGKILL)
    driver.start()
    driver.finish(slow[1])


@pytest.mark.slow
def test_a_node_is_lost_and_back(drive: Callable[..., Driver], slurm: Cluster, slow: tuple[Path, Path]) -> None:
    driver = drive("--slurm", "gres=gpu:2")  # one task a node
    until(driver.trains, 120)
    slurm.node_down("n1")
    until(lambda: [job for job in slurm.jobs() if job.reason == "BeginTime"], 60)
    slurm.node_up("n1")
    assert slurm.hurry() == 1  # Slurm itself put it back into the queue
    driver.finish(slow[1])


@pytest.mark.slow
def test_preempted_and_requeued(drive: Callable[..., Driver], slurm: Cluster, slow: tuple[Path, Path]) -> None:
    driver = drive("--slurm", "gres=gpu:2")
    until(driver.trains, 120)
    slurm.run("sbatch", "--partition=high", "--gres=gpu:2", "--nodelist=n2", "--wrap=sleep 5", cwd=driver.folder)
    until(lambda: "leaves" in logs(driver.run), 60)  # warned, it left a checkpoint
    until(lambda: not [job for job in slurm.jobs() if job.name == "wrap"], 60)
    slurm.hurry()
    driver.finish(slow[1])


@pytest.mark.slow
def test_a_time_limit_shorter_than_a_cell(slurm: Cluster, tmp_path: Path) -> None:
    def one_model(epochs: int) -> Path:
        one = {"seeds": "seeds = [0]", "temperature": "temperature = { batch_size = [16] }", "cka": ""}
        load = "load = { width = [64] }"
        return command.edited(tmp_path, load=load, epochs=f"epochs = {epochs}", connectivity="", hessian="", **one)

    # As long as it takes here: 75 s without a stop, and the limit is a minute.
    probe = command.Running(tmp_path, ("run", one_model(400), "--out", "probe"), cwd=tmp_path).finish(600)
    assert probe.code == 0, probe.err
    (meta,) = (tmp_path / "probe" / "store" / "train").rglob("meta.json")
    spec = one_model(round(400 * 75 / json.loads(meta.read_text())["seconds"]))

    inline = command.Running(tmp_path, ("run", spec, "--out", "inline"), cwd=tmp_path)
    driver = Driver(slurm, tmp_path, spec, "--slurm", "time=1")
    done, alone = driver.process.finish(1500), inline.finish(1500)
    assert (done.code, alone.code) == (0, 0), done.err + alone.err
    assert "given up" not in done.err
    (meta,) = (driver.run / "store" / "train").rglob("meta.json")
    assert json.loads(meta.read_text())["stops"] >= 1  # it was continued from its checkpoint
    assert_equal(driver.run, tmp_path / "inline")


@pytest.mark.slow
def test_two_workers_share_a_task(slurm: Cluster, finished: Path, tmp_path: Path) -> None:
    given = ("--slurm", "per_task=2", "--slurm", "gres=gpu:1", "--device", "cpu")
    done = command.run(tmp_path, "run", TINY, "--out", "run", "--engine", "slurm", *given, env=env(slurm))
    assert done.code == 0, done.err
    assert_equal(tmp_path / "run", finished)
    assert len(re.findall(r"begins on cpu in job (\S+) on n\d with GPU 0", logs(tmp_path / "run"))) == 2

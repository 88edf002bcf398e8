"""Whole runs by worker processes: whatever ends them, the bytes are the same, and nobody is left behind."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import command
import keeper
from command import TINY, Finished, Running
from lossatlas import results
from lossatlas.cli.running import machine_memory
from lossatlas.sweep.cost import VECTORS


def processes(folder: Path, *arguments: object, workers: int = 2, **options: Any) -> Running:
    """`lossatlas run ... --engine processes`, in a process group of its own, as a shell starts it."""
    chosen = ["--engine", "processes", "--workers", workers]
    return Running(folder, ["run", *arguments, *chosen], cwd=folder, group=True, **options)


def run(folder: Path, *arguments: object, workers: int = 2) -> Finished:
    return processes(folder, *arguments, workers=workers).finish()


def workers_of(driver: Running) -> list[keeper.Process]:
    assert driver.process.pid is not None
    return keeper.descendants(driver.process.pid)


def wait(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def logs(out: Path) -> str:
    return "".join(path.read_text() for path in sorted((out / "logs").glob("*.log")))


def committed(store: Path) -> dict[str, tuple[int, int]]:
    """Every finished step, with the number and the time of its folder: one that is done again has others."""
    found = {path: path.parent.stat() for path in store.glob("[!.]*/??/*/result.json")}
    return {str(path.relative_to(store)): (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}


def assert_kept(before: Mapping[str, tuple[int, int]], store: Path) -> None:
    after = committed(store)
    assert {name: after.get(name) for name in before} == dict(before)


def assert_nothing_is_left(out: Path) -> None:
    """No temporary, no checkpoint, no note of a worker that is gone, nothing damaged."""
    assert not list(out.rglob(".tmp-*"))
    assert not list((out / "store" / "unfinished").glob("*"))
    assert not list((out / "running").glob("*"))
    assert not (out / "store" / "damaged").exists()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny spec, inline, with as many threads as the machine has."""
    folder = tmp_path_factory.mktemp("undisturbed")
    executable = Path(sys.executable).with_name("lossatlas")
    threads = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS") and k != "LOSSATLAS_STORE"}
    subprocess.run([executable, "run", TINY, "--out", folder], env=threads, capture_output=True, check=True)
    return folder


def test_two_workers_give_the_bytes_of_one_process(undisturbed: Path, tmp_path: Path) -> None:
    done = run(tmp_path, TINY, "--out", "out")
    assert done.code == 0, done.err
    out = tmp_path / "out"
    assert (out / "results.nc").read_bytes() == (undisturbed / "results.nc").read_bytes()
    assert_nothing_is_left(out)
    assert "48 of 48 steps to do" in done.err
    assert f"on 2 cpu workers, whose logs are in {Path('out', 'logs')}." in done.err
    told = logs(out)
    assert told.count("begins on cpu") == told.count("leaves") == 2
    for epoch in range(1, 9):  # a line an epoch, with the loss
        assert (
            len(
                re.findall(
                    rf"^\d+-\d\d-\d\d \d\d:\d\d:\d\d cell 2 16, train of seed 0: epoch {epoch} of 8, loss \d",
                    told,
                    re.M,
                )
            )
            == 1
        )
    assert len(re.findall(r"^.* cell 4 64, curve of seed 0 1: epoch 2 of 2, loss \d", told, re.M)) == 1
    assert len(re.findall(r": ok, \d+\.\d s$", told, re.M)) == 48


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a spec of two cells whose trainings take seconds, and its undisturbed run."""
    folder = tmp_path_factory.mktemp("long")
    command.edited(
        folder,
        "long.toml",
        seeds="seeds = [0]",
        load="load = { width = [2] }",
        temperature="temperature = { batch_size = [16, 17] }",
        epochs="epochs = 800",
        hessian="",
        connectivity="",
        cka="",
        distance="",
        disagreement="",
        ensemble="",
    )
    done = command.run(folder, "run", "long.toml", "--out", "undisturbed")
    assert done.code == 0, done.err
    return folder


def training(out: Path) -> bool:
    """Whether both workers are in the midst of a training."""
    found = [path.read_text() for path in (out / "logs").glob("*.log")]
    return len(found) == 2 and all("epoch 20 of" in text for text in found)


def assert_continued(folder: Path, out: Path, tmp_path: Path) -> None:
    """What was stopped lies in the store as checkpoints, from which another engine goes on with the same bits."""
    unfinished = list((out / "store" / "unfinished").glob("train-*.safetensors"))
    assert unfinished
    assert not list((out / "failed").glob("*"))
    before = committed(out / "store")
    done = command.run(tmp_path, "run", out, "--engine", "inline")
    assert done.code == 0, done.err
    assert_kept(before, out / "store")
    assert_nothing_is_left(out)
    assert (out / "results.nc").read_bytes() == (folder / "undisturbed" / "results.nc").read_bytes()
    stops = [json.loads(path.read_text())["stops"] for path in out.glob("store/train/??/*/meta.json")]
    assert sorted(stops) == sorted([1] * len(unfinished) + [0] * (2 - len(unfinished)))


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM to the driver", "kill -9 of the driver"])
def test_a_stopped_run_leaves_no_orphan_and_goes_on_with_the_same_bits(
    how: str, long: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    driver = processes(tmp_path, long / "long.toml", "--out", out)
    driver.wait_for(lambda: training(out))
    workers, pid = workers_of(driver), driver.process.pid
    assert len(workers) == 2
    assert pid is not None
    if how == "Ctrl-C":
        os.killpg(pid, signal.SIGINT)
    else:
        os.kill(pid, signal.SIGTERM if how.startswith("SIGTERM") else signal.SIGKILL)
    stopped = driver.finish()
    assert stopped.code == {"C": 130, "S": 143, "k": -9}[how[0]]
    wait(lambda: not any(worker.runs() for worker in workers), 20)
    if how[0] != "k":
        assert stopped.err.count("Stopping as soon as") == 1
        assert f"`lossatlas run {out}` continues" in stopped.err
        assert not list(out.rglob(".tmp-*"))
    assert "Traceback" not in stopped.err
    assert_continued(long, out, tmp_path)


STUBBORN = """
import os, time, torch
from torch import nn

class Slow(nn.Module):
    # A batch of 64 that never ends, which the probe that predicts the costs does not try.
    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Linear(64, classes)

    def forward(self, x):
        if len(x) == 64:
            print("stuck", flush=True)
            while True:
                time.sleep(1)
        return self.layer(x.flatten(1))

def slow(width, classes):
    return Slow(classes)
"""


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    spec = command.edited(tmp_path, model='model = { name = "stubborn:slow" }', load="load = { width = [2] }")
    out = tmp_path / "out"
    driver = processes(tmp_path, spec, "--out", out)
    driver.wait_for(lambda: "stuck" in logs(out))  # what a model prints goes to the log
    workers, pid = workers_of(driver), driver.process.pid
    assert pid is not None
    os.killpg(pid, signal.SIGINT)
    driver.wait_for(lambda: "once more" in driver.err)
    time.sleep(0.5)
    assert driver.process.is_alive()
    assert any(worker.runs() for worker in workers)
    os.killpg(pid, signal.SIGINT)
    start = time.monotonic()
    assert driver.finish(10).code == 130
    assert time.monotonic() - start < 3
    assert not any(worker.runs() for worker in workers)


DEADLY = """
import os, signal, torch
from torch import nn

class Deadly(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.width, self.layer = width, nn.Linear(64, classes)

    def forward(self, x):
        if len(x) == 64 and self.width == 2 and self.training:
            print('{"event": "cell", "a line that": is not for the driver}', flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return self.layer(x.flatten(1))

def deadly(width, classes):
    return Deadly(width, classes)
"""


def test_a_cell_that_kills_its_workers_fails_and_the_others_are_done(tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text(DEADLY)
    spec = command.edited(tmp_path, model='model = { name = "deadly:deadly" }', hessian="", connectivity="")
    done = run(tmp_path, spec, "--out", "out")
    assert done.code == 1, done.err
    assert "Traceback" not in done.err
    assert done.err.count("another goes on with its cell: its worker ended with signal SIGKILL") == 2
    assert done.err.count("its cell is given up: its worker ended with signal SIGKILL") == 1
    tree = results.load(tmp_path / "out" / "results.nc")
    models = tree["models"].to_dataset()
    failed = models["status"] == "failed"
    assert failed.sum() == 2
    assert failed.sel(width=2, batch_size=64).all()
    assert (models["status"].where(~failed, "ok") == "ok").all()
    reason = models["reason"].sel(width=2, batch_size=64, seed=0).item()
    assert "given up after 3 attempts: its worker ended with signal SIGKILL" in reason
    assert "is not for the driver" in reason  # the tail of its log
    noted = [json.loads(path.read_text()) for path in (tmp_path / "out" / "failed").glob("*.json")]
    assert len([note for note in noted if note["step"] == "train"]) == 2
    assert all("SIGKILL" in note["reason"] for note in noted)
    # What is mended is done by the next run, and nothing else.
    (tmp_path / "deadly.py").write_text(DEADLY.replace("self.width == 2", "False"))
    before = committed(tmp_path / "out" / "store")
    again = command.run(tmp_path, "run", "out", "--engine", "inline")
    assert again.code == 0, again.err
    assert_kept(before, tmp_path / "out" / "store")
    assert_nothing_is_left(tmp_path / "out")


DATA = """
import sys, time
from sklearn.datasets import load_digits

def digits():
    if "worker" in sys.argv:
        {worker}
    {driver}
    bunch = load_digits()
    x, y = bunch.images.astype("float32")[:, None], bunch.target
    return x[:300], y[:300], x[300:400], y[300:400]
"""


def own_data(folder: Path, *, worker: str = "pass", driver: str = "pass") -> Path:
    (folder / "own_data.py").write_text(DATA.format(worker=worker, driver=driver))
    return command.edited(folder, data='data = { name = "own_data:digits" }', hessian="", connectivity="")


def test_workers_that_cannot_load_the_data_end_the_run_at_once(tmp_path: Path) -> None:
    spec = own_data(tmp_path, worker="import no_such_library")
    done = run(tmp_path, spec, "--out", "out")
    assert done.code == 2
    assert "No module named 'no_such_library'" in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out" / "failed").exists()


def test_slow_data_are_kept_as_arrays_for_the_workers(tmp_path: Path) -> None:
    spec = own_data(tmp_path, worker="raise RuntimeError('decoded again')", driver="time.sleep(1.1)")
    done = run(tmp_path, spec, "--out", "out")
    assert done.code == 0, done.err
    assert len(list((tmp_path / "out" / "store" / "data").iterdir())) == 1


GREEDY = """
import torch
from torch import nn

class Greedy(nn.Module):
    # As many parameters as asked for, which nothing ever touches: they take no memory.
    def __init__(self, classes):
        super().__init__()
        self.layer, self.unused = nn.Linear(64, classes), nn.Parameter(torch.empty(PARAMETERS))

    def forward(self, x):
        return self.layer(x.flatten(1))

def greedy(width, classes):
    return Greedy(classes)
"""


def test_workers_that_do_not_fit_into_memory_are_refused_before_they_start(tmp_path: Path) -> None:
    half = machine_memory() // 2 // (4 * VECTORS)  # of the memory, by the estimate
    (tmp_path / "greedy.py").write_text(GREEDY.replace("PARAMETERS", str(half)))
    spec = command.edited(tmp_path, model='model = { name = "greedy:greedy" }', hessian="", connectivity="")
    done = run(tmp_path, spec, "--out", "out", workers=4)
    assert done.code == 2
    assert re.search(
        r"Error: 4 workers of this run need about .+ of memory, and this machine has .+\. Give --workers 1\.",
        done.err,
    )
    assert not (tmp_path / "out" / "logs").exists()


@pytest.mark.slow
def test_one_that_leaves_hands_its_cell_on(long: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    driver = processes(tmp_path, long / "long.toml", "--out", out)
    driver.wait_for(lambda: training(out))
    os.kill(workers_of(driver)[0].pid, signal.SIGUSR1)
    done = driver.finish()
    assert done.code == 0, done.err
    assert done.err.count("left; another goes on with its cell.") == 1
    assert "died" not in done.err
    assert logs(out).count("begins on") == logs(out).count("leaves") == 3
    assert (out / "results.nc").read_bytes() == (long / "undisturbed" / "results.nc").read_bytes()
    assert_nothing_is_left(out)


def test_a_worker_at_a_pipe_leaves_with_its_own_code(long: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepared = Running(tmp_path, ["run", long / "long.toml", "--out", out], cwd=tmp_path)
    prepared.wait_for(lambda: (out / "plan.json").exists())
    prepared.process.kill()
    prepared.finish()
    arguments = [sys.executable, "-m", "lossatlas", "worker", out, "--pipe"]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as worker:
        assert worker.stdin
        assert worker.stdout
        assert json.loads(worker.stdout.readline()) == {"event": "ready"}
        worker.stdin.write(b"1\n")
        worker.stdin.flush()
        assert json.loads(worker.stdout.readline())["event"] == "advanced"
        worker.send_signal(signal.SIGUSR1)
        *_, last = map(json.loads, worker.stdout)
        assert last == {"event": "left"}
        assert worker.wait(10) == 85
    assert len(list((out / "store" / "unfinished").iterdir())) == 1


def disturbed(tmp_path: Path, spec: Path, out: Path, workers: int, drivers: int, pause: float) -> None:
    """A run whose workers and driver are killed at random moments, `workers` and `drivers` times, to its end."""
    moments = random.Random(0)
    everybody: set[keeper.Process] = set()
    kills = ["worker"] * workers + ["driver"] * drivers
    moments.shuffle(kills)
    driver = None
    done_before: dict[str, tuple[int, int]] = {}
    for kind in kills:
        if driver is None or not driver.process.is_alive():
            driver = processes(tmp_path, spec, "--out", out)
        target: list[keeper.Process] = []

        def at_work(driver: Running = driver, target: list[keeper.Process] = target) -> bool:
            """Wait for a worker that has begun, as its note tells."""
            notes = [int(path.stem.rsplit("-", 1)[1]) for path in (out / "running").glob("[!.]*.json")]
            target[:] = [worker for worker in workers_of(driver) if worker.pid in notes]
            return bool(target)

        driver.wait_for(at_work)
        assert driver.process.is_alive()
        time.sleep(moments.uniform(0, pause))
        everybody.update(workers_of(driver))
        assert_kept(done_before, out / "store")
        done_before = committed(out / "store")
        if kind == "driver":
            driver.process.kill()
            driver.finish()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(moments.choice(target).pid, signal.SIGKILL)
    assert driver is not None
    driver.finish()
    assert len(committed(out / "store")) >= len(done_before)
    wait(lambda: not any(process.runs() for process in everybody), 20)
    done_before = committed(out / "store")
    done = command.run(tmp_path, "run", spec, "--out", out, "--engine", "inline")
    assert done.code == 0, done.err
    assert_kept(done_before, out / "store")
    assert_nothing_is_left(out)


def test_killed_workers_and_drivers_change_nothing(long: Path, tmp_path: Path) -> None:
    disturbed(tmp_path, long / "long.toml", tmp_path / "out", 3, 1, pause=0.4)
    same = (tmp_path / "out" / "results.nc").read_bytes()
    assert same == (long / "undisturbed" / "results.nc").read_bytes()


@pytest.mark.slow
def test_twenty_killed_workers_and_five_killed_drivers_change_nothing(tmp_path: Path) -> None:
    spec = command.edited(
        tmp_path,
        load="load = { width = [2, 3, 4, 5, 6] }",
        temperature="temperature = { batch_size = [16, 24, 32, 48, 64] }",
        epochs="epochs = 60",
    )
    disturbed(tmp_path, spec, tmp_path / "out", 20, 5, pause=1.0)
    done = command.run(tmp_path, "run", spec, "--out", "undisturbed")
    assert done.code == 0, done.err
    same = (tmp_path / "out" / "results.nc").read_bytes()
    assert same == (tmp_path / "undisturbed" / "results.nc").read_bytes()


def test_shards_by_hand(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    planned = Running(tmp_path, ["run", TINY, "--out", out], cwd=tmp_path)
    planned.wait_for(lambda: "steps to do" in planned.err)
    planned.process.kill()
    planned.finish()
    arguments = ["worker", out, "--of", 2, "--shard"]
    for worker in [Running(tmp_path, [*arguments, k], cwd=tmp_path) for k in (0, 1)]:
        done = worker.finish()
        assert done.code == 0, done.err
        assert "epoch 8 of 8, loss" in done.err
    finished = committed(out / "store")
    assert len(finished) == 48
    done = command.run(tmp_path, "run", out, "--engine", "inline")
    assert "0 of 48 steps to do" in done.err
    assert committed(out / "store") == finished
    assert (out / "results.nc").read_bytes() == (undisturbed / "results.nc").read_bytes()
    refused = command.run(tmp_path, "worker", out, "--shard", 2, "--of", 2)
    assert refused.code == 2
    assert "--shard 2 is not one of --of 2 shards. Allowed are 0 to 1." in refused.err

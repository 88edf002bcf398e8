"""A run folder on the throw-away Slurm cluster whose jobs are quick and misbehave as they are told; its fixtures.

A test module imports the fixtures that it uses, `bench` and `finished`, as `bench_made` and `finished_run`.
"""

import functools
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import command
from command import TINY
from lossatlas.specs import Slurm
from lossatlas.sweep.remaining import remaining
from lossatlas.sweep.run import saved_plan
from lossatlas.sweep.slurm_driver import SlurmEngine
from lossatlas.sweep.slurm_tasks import Work
from lossatlas.sweep.store import Store
from slurm_cluster import Cluster

INTERVAL = 0.1  # s between looks at the queue

# A worker that does each cell by copying its steps. `rules` says of a cell what it does before: die, or wait.
WORKER = """#!{python}
import json, os, pathlib, shutil, sys, time
root, file, shard = sys.argv[5], sys.argv[7], int(sys.argv[9])
done, table = pathlib.Path({done!r}), json.loads(pathlib.Path({table!r}).read_text())
rules = pathlib.Path({rules!r})
node = os.environ["SLURMD_NODENAME"]
if (rules / f"broken-{{node}}").exists():
    sys.exit("no GPU here")
print(f"now begins on cpu in job 0_{{shard}} on {{node}}", flush=True)
for cell in json.loads(pathlib.Path(root, file).read_text())[shard]:
    rule = rules / "-".join(map(str, cell))
    print("cell", cell, flush=True)
    (rules / f"begun-{{rule.name}}").write_text(str(os.getpid()))
    while rule.exists():
        if rule.read_text() == "die":
            os.kill(os.getpid(), 9)
        time.sleep(0.02)
    for step in table[rule.name]:
        to = pathlib.Path(root, "store", step)
        if not to.exists():
            to.parent.mkdir(parents=True, exist_ok=True)
            new = to.parent / f".new-{{os.getpid()}}"
            shutil.copytree(done / step, new)
            new.rename(to)
"""


@pytest.fixture(name="finished", scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny run, done by this machine without Slurm."""
    return _finished(tmp_path_factory.getbasetemp())


@functools.cache  # once for all modules that import the fixture
def _finished(base: Path) -> Path:
    folder = base / "inline"
    folder.mkdir()
    done = command.run(folder, "run", TINY, "--out", "run")
    assert done.code == 0, done.err
    return folder / "run"


class Bench:
    """A run folder whose jobs copy from one that is done, and the engine on it."""

    def __init__(self, folder: Path, finished: Path) -> None:
        self.root = folder / "run"
        self.rules = folder / "rules"
        self.rules.mkdir()
        self.root.mkdir()
        for name in ("spec.json", "plan.json"):
            shutil.copy(finished / name, self.root / name)
        self.plan, self.seconds = saved_plan(self.root).plan, saved_plan(self.root).seconds
        self.store = Store(self.root / "store")
        table = {
            "-".join(map(str, cell.cell)): [f"{s.name}/{s.key[:2]}/{s.key}" for s in cell.steps]
            for cell in self.plan
        }
        (folder / "table.json").write_text(json.dumps(table))
        worker = folder / "worker"
        places = {"done": str(finished / "store"), "table": str(folder / "table.json"), "rules": str(self.rules)}
        worker.write_text(WORKER.format(python=sys.executable, **places))
        worker.chmod(0o755)
        self.settings: dict[str, Any] = {"python": str(worker), "shard_minutes": 1e-6}
        self.said: list[str] = []

    def engine(self, **settings: Any) -> SlurmEngine:
        work = Work(self.root, self.plan, self.store, self.seconds, Slurm(**self.settings | settings), "cpu")
        return SlurmEngine(work, say=self.said.append, interval=INTERVAL)

    def run(self, **settings: Any) -> SlurmEngine:
        engine = self.engine(**settings)
        engine.run()
        return engine

    def rule(self, cell: str, text: str) -> Path:
        path = self.rules / cell
        path.write_text(text)
        return path

    def breaks(self, node: str) -> None:
        (self.rules / f"broken-{node}").touch()

    def begun(self, cell: str) -> bool:
        return (self.rules / f"begun-{cell}").exists()

    def missing(self) -> int:
        return remaining(self.plan, self.store, self.seconds).steps


class Background:
    """An engine at work in a thread."""

    def __init__(self, engine: SlurmEngine) -> None:
        self.error: BaseException | None = None

        def run() -> None:
            try:
                engine.run()
            except BaseException as error:
                self.error = error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture(name="bench")
def bench_made(slurm: Cluster, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("SLURM_CONF", slurm.env["SLURM_CONF"])
    bench = Bench(tmp_path, finished)
    yield bench
    for rule in bench.rules.glob("[0-9]*"):
        rule.unlink()


def env(cluster: Cluster) -> dict[str, str]:
    """What a command needs to speak to the cluster, often."""
    return {"SLURM_CONF": cluster.env["SLURM_CONF"], "LOSSATLAS_SLURM_POLL": "0.2"}


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.02)


def drive_bench(bench: Bench, slurm: Cluster) -> command.Running:
    """`lossatlas run` on a bench, in a process of its own."""
    given = [f"--slurm={key}={value}" for key, value in bench.settings.items()]
    arguments = ("run", "run", "--engine", "slurm", *given)
    folder = bench.root.parent
    return command.Running(folder, arguments, cwd=folder, env=env(slurm))

"""A real Slurm cluster on one machine, to be thrown away: emulated nodes, fake GPUs; for tests and for trying out.

    python tests/slurm_cluster.py start             # then: eval "$(python tests/slurm_cluster.py env)"
    python tests/slurm_cluster.py node-down n1      # pull the plug of a node
    python tests/slurm_cluster.py hurry             # start requeued jobs now; Slurm lets them wait for two minutes
    python tests/slurm_cluster.py stop              # kill every job and daemon, remove the folder

It needs Linux and the programs of Debian's slurm-wlm and munge; no root, no systemd, no cgroups. All it writes is
in one private folder, all it listens on is 127.0.0.1 or a Unix socket; it runs jobs of the user who started it.
Partition `high` preempts `low` (the default) by requeueing its jobs.
"""

import argparse
import contextlib
import os
import pwd
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

import keeper
import slurm_conf
from slurm_conf import PATH, Shape

_PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
_LONGEST = 60  # a Unix socket's path has 107 bytes; Slurm's part of it, spool/n1/n1_4194304.4294967291, under 40
_READY = ("idle", "mix", "alloc")


class Job(NamedTuple):
    """A line of the queue; an element of an array is a job of its own."""

    id: str  # 7, or 7_0 for an element of the array 7
    state: str  # PENDING, RUNNING, COMPLETING, ...
    node: str  # empty while it waits
    reason: str  # why it waits
    name: str


class Failed(RuntimeError):
    """The cluster, or a command to it, did not do what it should; the text says what was written."""


def obstacle() -> str | None:
    """Why no cluster can be started here, or None if nothing is known to stand against it."""
    if not sys.platform.startswith("linux"):
        return "a throw-away Slurm cluster needs Linux"
    if missing := [program for program in _PROGRAMS if not shutil.which(program, path=PATH)]:
        return f"no {', '.join(missing)} here (Debian: apt-get install --no-install-recommends slurm-wlm munge)"
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return f"user {os.geteuid()} has no name, and Slurm asks for one"
    return None


class Cluster:
    """A throw-away cluster. As a context manager it runs inside, and even `kill -9` of this process ends it.

    `folder`: where it lives: new, or that of a cluster which runs already (default: a new temporary folder).
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="slurm-", dir=_base())) / "cluster"
        self._temporary = folder is None
        self._with_parent = False

    def __enter__(self) -> Self:
        self._with_parent = True
        if not (self.folder / "run").exists():
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def env(self) -> dict[str, str]:
        """The environment in which `sbatch` and the like speak to this cluster; for `subprocess`."""
        others = ("SLURM", "SBATCH_", "SQUEUE_", "SCANCEL_", "SINFO_", "SALLOC_", "SRUN_")  # of another cluster
        kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        return kept | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the nodes, up or down: n1, n2, ..."""
        return tuple(sorted(folder.name for folder in (self.folder / "spool").iterdir()))

    def start(self, shape: Shape | None = None) -> Self:
        """Start the daemons and wait until all nodes are idle (1 s); raises Failed, and then nothing is left."""
        if reason := obstacle():
            raise Failed(reason)
        if len(os.fsencode(self.folder)) > _LONGEST:
            raise Failed(f"{self.folder} is too long for Unix sockets, which leave it {_LONGEST} bytes")
        try:
            self.folder.mkdir(mode=0o700)
        except FileExistsError:
            raise Failed(f"{self.folder} exists; stop the cluster in it first") from None
        try:
            slurm_conf.write(self.folder, shape or Shape())
            self._start_munged()
            self._daemon("slurmctld", "slurmctld", "-D")
            for node in self.nodes:
                self._daemon(node, "slurmd", "-D", "-N", node)
            self._wait(lambda: self.states() == dict.fromkeys(self.nodes, "idle"), "idle nodes")
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Kill every job and daemon, remove the folder. It is no error if there is no cluster."""
        for file in self._keepers():
            keeper.end(_recorded(file))
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._temporary:
            with contextlib.suppress(FileNotFoundError):
                self.folder.parent.rmdir()

    def run(self, *command: object, cwd: Path | None = None) -> str:
        """What a command to this cluster prints; raises Failed with its error output."""
        words = [str(word) for word in command]
        done = subprocess.run(words, env=self.env, cwd=cwd, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise Failed(f"{shlex.join(words)}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip()

    def jobs(self) -> list[Job]:
        """The queue: jobs that wait, run or are just ending, each element of an array for itself."""
        lines = self.run("squeue", "-h", "-r", "-o", "%i|%T|%N|%r|%j").splitlines()
        return [Job(*line.split("|", maxsplit=4)) for line in lines]

    def states(self) -> dict[str, str]:
        """The state of each node in short: idle, mix, alloc, down, ...; with a '*' it does not answer."""
        words = self.run("sinfo", "-h", "-N", "-p", "low", "-o", "%N %t").split()
        return dict(zip(words[::2], words[1::2], strict=True))

    def hurry(self) -> int:
        """Let jobs that were requeued start now, not after two minutes; returns how many there were."""
        waiting = [job.id for job in self.jobs() if job.reason == "BeginTime"]
        for job in waiting:
            self.run("scontrol", "update", f"JobId={job}", "StartTime=now")
        return len(waiting)

    def node_down(self, node: str, *, noticed: bool = True) -> None:
        """Pull the plug of a node: its slurmd and all processes of its jobs are gone at once.

        Slurm takes half a minute to see it, then requeues the jobs; `noticed` tells it straight away.
        """
        file = self._node(node)
        if not file.exists():
            raise Failed(f"node {node} is down already")
        keeper.end(_recorded(file))
        file.unlink()
        if noticed:
            self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=unplugged")

    def node_up(self, node: str) -> None:
        """Bring back a node that is down, and wait until it takes jobs."""
        if self._node(node).exists():
            raise Failed(f"node {node} is up already")
        self._daemon(node, "slurmd", "-D", "-N", node)
        self._wait(lambda: self.states()[node] in _READY, f"node {node}")

    def clear(self) -> None:
        """Back to the beginning: no jobs, all nodes up."""
        for node in self.nodes:
            if not self._node(node).exists():
                self.node_up(node)
        self.run("scancel", f"--user={os.geteuid()}")
        self._wait(lambda: not self.jobs(), "an empty queue")

    def processes(self) -> list[keeper.Process]:
        """Every process of the cluster and of its jobs."""
        roots = [_recorded(file) for file in self._keepers()]
        return roots + [process for root in roots for process in keeper.descendants(root.pid)]

    def _keepers(self) -> list[Path]:
        return sorted((self.folder / "run").glob("*"))

    def _node(self, name: str) -> Path:
        if name not in self.nodes:
            raise Failed(f"there is no node {name!r}, but {', '.join(self.nodes)}")
        return self.folder / "run" / name

    def _daemon(self, name: str, *command: str) -> None:
        env = self.env | {"PATH": PATH}
        log = self.folder / "log" / f"{name}.out"
        process = keeper.keep(command, env=env, cwd=self.folder, log=log, with_parent=self._with_parent)
        (self.folder / "run" / name).write_text(f"{process.pid} {process.born}\n")

    def _start_munged(self) -> None:
        files = {"key": "munge.key", "pid": "munge.pid", "seed": "munge.seed", "log": "log/munged.log"}
        options = [f"--{name}-file={self.folder / file}" for name, file in files.items()]
        where = f"--socket={self.folder}/munge.sock"
        # The folder is private; without --force munged wants one that everybody may enter.
        self._daemon("munged", "munged", "--foreground", "--force", where, *options)
        self._wait(lambda: bool(self.run("munge", "--no-input", where)), "munged")

    def _wait(self, condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
        """Wait for a condition; one that raises Failed is not yet true."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(Failed):
                if condition():
                    return
            if time.monotonic() > end:
                raise Failed(f"waited {seconds:g} s in vain for {what}; the ends of the logs:\n{self._logs()}")
            time.sleep(0.05)

    def _logs(self, lines: int = 10) -> str:
        texts = [(file.name, file.read_text(errors="replace")) for file in sorted(self.folder.glob("log/*.out"))]
        return "\n".join(f"{name}: {line}" for name, text in texts for line in text.splitlines()[-lines:])


def _recorded(file: Path) -> keeper.Process:
    pid, born = map(int, file.read_text().split())
    return keeper.Process(pid, born)


def _base() -> str:
    """The system's folder of temporary files, unless its path is too long."""
    return tempfile.gettempdir() if len(tempfile.gettempdir()) <= _LONGEST // 2 else "/tmp"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(_base(), f"lossatlas-slurm-{os.geteuid()}")
    parser.add_argument("--folder", type=Path, default=folder, help="where it lives (default: %(default)s)")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    start = actions.add_parser("start", help="start the cluster and wait until its nodes are idle")
    start.add_argument("--nodes", type=int, default=2, help="emulated nodes (default: %(default)s)")
    start.add_argument("--cpus", type=int, default=4, help="CPUs that each claims (default: %(default)s)")
    start.add_argument("--gpus", type=int, default=2, help="fake GPUs that each claims (default: %(default)s)")
    start.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a line of slurm.conf")
    actions.add_parser("stop", help="kill every job and daemon, remove the folder")
    actions.add_parser("env", help="print the line for the shell that makes sbatch speak to the cluster")
    actions.add_parser("status", help="show nodes and queue")
    actions.add_parser("hurry", help="start requeued jobs now")
    actions.add_parser("node-down", help="pull the plug of a node").add_argument("node")
    actions.add_parser("node-up", help="bring a node back").add_argument("node")
    return parser.parse_args()


def _act(options: argparse.Namespace) -> str:
    """Do what the command line says; returns what to print."""
    cluster = Cluster(options.folder.absolute())
    if options.action == "start":
        settings = dict(line.split("=", maxsplit=1) for line in options.set)
        cluster.start(Shape(options.nodes, options.cpus, options.gpus, settings))
        return f"A cluster of {options.nodes} nodes is up in {cluster.folder}."
    if options.action == "stop":
        cluster.stop()
        return f"No cluster is left in {cluster.folder}."
    if not cluster.folder.exists():
        raise Failed(f"no cluster in {cluster.folder}; start one first")
    match options.action:
        case "env":
            return f"export SLURM_CONF={shlex.quote(cluster.env['SLURM_CONF'])}"
        case "hurry":
            return f"{cluster.hurry()} requeued jobs may start now."
        case "node-down":
            cluster.node_down(options.node)
        case "node-up":
            cluster.node_up(options.node)
    return "\n".join(" ".join(line) for line in (*cluster.states().items(), *cluster.jobs()))


def _main() -> int:
    try:
        sys.stdout.write(_act(_arguments()) + "\n")
    except (Failed, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())

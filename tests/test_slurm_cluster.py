"""The throw-away Slurm cluster does what tests of the launcher rely on, and leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keeper import Process
from slurm_cluster import Cluster, Failed, obstacle
from slurm_conf import Shape

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=obstacle() or "")
SCRIPT = Path(__file__).parent / "slurm_cluster.py"


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.05)


def submit(cluster: Cluster, folder: Path, body: str, *options: object) -> str:
    """The number of a job that runs some lines of shell in `folder`."""
    script = folder / "job.sh"
    script.write_text(f"#!/bin/sh\n{body}\n")
    return cluster.run("sbatch", "--parsable", "--output=out-%a", *options, script, cwd=folder)


def ended(cluster: Cluster, job: str) -> str:
    """How a job has ended, or an empty text if it has not."""
    states = "BOOT_FAIL,CANCELLED,COMPLETED,FAILED,NODE_FAIL,PREEMPTED,TIMEOUT"
    return cluster.run("squeue", "-h", "-t", states, "-j", job, "-o", "%T")


def test_two_idle_nodes_with_gpus(slurm: Cluster) -> None:
    assert slurm.states() == {"n1": "idle", "n2": "idle"}
    assert slurm.run("sinfo", "-h", "-N", "-p", "high", "-o", "%N %G").split() == ["n1", "gpu:2", "n2", "gpu:2"]
    assert slurm.jobs() == []


def test_an_array_runs_at_once_each_element_with_a_gpu_of_its_own(slurm: Cluster, tmp_path: Path) -> None:
    body = (
        "I=$SLURM_ARRAY_TASK_ID; echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES > new-$I; mv new-$I seen-$I; sleep 60"
    )
    array = submit(slurm, tmp_path, body, "--array=0-3", "--gres=gpu:1")
    # Each sleeps for longer than this waits, so all four run at the same time.
    until(lambda: len(list(tmp_path.glob("seen-*"))) == 4)
    jobs = slurm.jobs()
    assert {job.id for job in jobs} == {f"{array}_{index}" for index in range(4)}
    assert {job.state for job in jobs} == {"RUNNING"}
    seen = [(tmp_path / f"seen-{index}").read_text() for index in range(4)]
    assert sorted(seen) == ["n1 0\n", "n1 1\n", "n2 0\n", "n2 1\n"]


def test_a_fifth_job_waits_for_a_gpu(slurm: Cluster, tmp_path: Path) -> None:
    submit(slurm, tmp_path, "sleep 60", "--array=0-4", "--gres=gpu:1")
    until(lambda: sorted(job.state for job in slurm.jobs()) == ["PENDING", *["RUNNING"] * 4])


def test_a_lost_node_requeues_its_job_and_comes_back(slurm: Cluster, tmp_path: Path) -> None:
    body = "echo $SLURM_RESTART_COUNT >> starts; setsid sleep 60 & echo $$ $! > new; mv new pids; sleep 60"
    job = submit(slurm, tmp_path, body, "--nodelist=n1")
    until((tmp_path / "pids").exists)
    processes = [Process.named(int(pid)) for pid in (tmp_path / "pids").read_text().split()]
    slurm.node_down("n1")
    assert not any(process.runs() for process in processes)
    assert slurm.states()["n1"].startswith("down")
    with pytest.raises(Failed, match="n1 is down already"):
        slurm.node_down("n1")
    until(lambda: [job.reason for job in slurm.jobs()] == ["BeginTime"])
    slurm.node_up("n1")
    assert slurm.hurry() == 1
    until(lambda: (tmp_path / "starts").read_text() == "\n1\n")  # the restart count is not set the first time
    assert [entry.id for entry in slurm.jobs()] == [job]


@pytest.mark.slow
def test_slurm_notices_a_lost_node_by_itself(slurm: Cluster, tmp_path: Path) -> None:
    submit(slurm, tmp_path, "touch started; sleep 60", "--nodelist=n2")
    until((tmp_path / "started").exists)
    slurm.node_down("n2", noticed=False)
    assert [job.state for job in slurm.jobs()] == ["RUNNING"]
    until(lambda: slurm.states()["n2"].startswith("down"), seconds=90)
    until(lambda: [job.reason for job in slurm.jobs()] == ["BeginTime"])


def preempt(cluster: Cluster, folder: Path, trap: str) -> tuple[str, str]:
    """Submit a job that does `trap` on SIGUSR1, then one that preempts it; returns their numbers."""
    options = ("--gres=gpu:2", "--nodelist=n1", "--signal=B:USR1@30")
    low = submit(cluster, folder, f"trap '{trap}' USR1; touch started; while true; do sleep 0.1; done", *options)
    until((folder / "started").exists)
    return low, submit(cluster, folder, "sleep 60", *options, "--partition=high")


def test_a_preempted_job_that_ends_when_warned_makes_way_at_once(slurm: Cluster, tmp_path: Path) -> None:
    low, high = preempt(slurm, tmp_path, "exit 0")
    until(lambda: (high, "RUNNING") in [(job.id, job.state) for job in slurm.jobs()])
    # Slurm 22.05 takes its word for it; 24.11 requeues it all the same.
    assert ended(slurm, low) == "COMPLETED" or [job.reason for job in slurm.jobs() if job.id == low] == [
        "BeginTime"
    ]


@pytest.mark.slow
def test_a_preempted_job_that_goes_on_is_requeued(slurm: Cluster, tmp_path: Path) -> None:
    low, high = preempt(slurm, tmp_path, "echo warned >> signals")
    until(lambda: {job.id: job.state for job in slurm.jobs()} == {low: "PENDING", high: "RUNNING"}, seconds=60)
    assert (tmp_path / "signals").read_text() == "warned\n"
    assert [job.reason for job in slurm.jobs() if job.id == low] == ["BeginTime"]


def test_a_second_cluster_beside_it_with_other_settings(slurm: Cluster, tmp_path: Path) -> None:
    folder = Path(f"{slurm.folder}-b")
    second = Cluster(folder)
    try:
        second.start(Shape(nodes=1, cpus=1, gpus=0, settings={"MaxArraySize": "3"}))
        assert second.states() == {"n1": "idle"}
        assert submit(second, tmp_path, "exit 3", "--array=0-2") == "1"
        with pytest.raises(Failed, match="Invalid job array specification"):
            submit(second, tmp_path, "exit 3", "--array=0-3")
        assert slurm.jobs() == []
        with pytest.raises(Failed, match="exists; stop the cluster in it first"):
            Cluster(folder).start()
        until(lambda: not second.jobs())  # and it works on
    finally:
        second.stop()
    assert slurm.states() == {"n1": "idle", "n2": "idle"}


def listeners(processes: list[Process]) -> Iterator[str]:
    """The addresses, in hexadecimal, of the TCP sockets on which processes listen."""
    inodes = {link.removeprefix("socket:[").rstrip("]") for link in links(processes) if link.startswith("socket:")}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                yield fields[1].split(":")[0]


def links(processes: list[Process]) -> list[str]:
    """What those file descriptors of processes point to that are open for writing."""
    infos = [info for process in processes for info in Path(f"/proc/{process.pid}/fdinfo").iterdir()]
    flags = {info: int(re.findall(r"flags:\s+(\d+)", info.read_text())[0], base=8) for info in infos}
    written = [info for info in infos if flags[info] & os.O_ACCMODE != os.O_RDONLY]
    return [str((info.parent.parent / "fd" / info.name).readlink()) for info in written]


def test_it_touches_only_its_folder_and_loopback(slurm: Cluster) -> None:
    until(lambda: len(slurm.processes()) == 9)  # a step of an earlier test may be just ending
    processes = slurm.processes()
    assert list(listeners(processes)) == ["0100007F"] * 3
    files = [link for link in links(processes) if link.startswith("/")]
    written = [file for file in files if not file.startswith((f"{slurm.folder}/", "/dev/null"))]
    assert written == []


def test_stop_leaves_nothing(tmp_path: Path) -> None:
    watched = [
        path
        for name in ("/etc", "/run", "/var/log", "/var/lib", "/var/spool", "/var/run")
        for path in Path(name).glob("*")
        if path.name.startswith(("slurm", "munge"))
    ]
    before = {path: sorted(path.rglob("*")) for path in watched}
    with Cluster() as cluster:
        body = "trap '' TERM; setsid sleep 60 & echo $$ $! > new; mv new pids; sleep 60; sleep 60"
        submit(cluster, tmp_path, body)
        until((tmp_path / "pids").exists)
        processes = cluster.processes()
        assert all(process.runs() for process in processes)
        assert {Process.named(int(pid)) for pid in (tmp_path / "pids").read_text().split()} <= set(processes)
        start = time.monotonic()
        cluster.stop()
        assert time.monotonic() - start < 5
        assert not any(process.runs() for process in processes)
        assert not cluster.folder.parent.exists()
        assert {path: sorted(path.rglob("*")) for path in watched} == before
        cluster.stop()  # once more is no error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_process_that_holds_it(slurm: Cluster, number: signal.Signals) -> None:
    folder = Path(f"{slurm.folder}-{number.name}")
    code = f"""
import sys, pathlib, slurm_cluster
with slurm_cluster.Cluster(pathlib.Path({str(folder)!r})) as cluster:
    print(*(f"{{process.pid}} {{process.born}}" for process in cluster.processes()), sep=",", flush=True)
    sys.stdin.read()
"""
    env = os.environ | {"PYTHONPATH": str(SCRIPT.parent)}
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    try:
        with subprocess.Popen(command, env=env, text=True, stdin=pipe, stdout=pipe, stderr=pipe) as holder:
            assert holder.stdout
            words = holder.stdout.readline().strip().split(",")
            processes = [Process(*map(int, word.split())) for word in words]
            assert len(processes) == 9
            holder.send_signal(number)
        until(lambda: not any(process.runs() for process in processes), seconds=10)
        assert folder.exists() == (number != signal.SIGINT)
    finally:
        Cluster(folder).stop()

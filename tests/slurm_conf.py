"""The files of a throw-away Slurm cluster: its configuration, a key for munge, fake GPUs."""

import contextlib
import os
import pwd
import random
import re
import secrets
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])  # users may lack the latter
SETTINGS = {
    "ClusterName": "test",
    "CommunicationParameters": "NoInAddrAny,NoCtldInAddrAny",  # listen on the addresses named here, on no other
    "ProctrackType": "proctrack/linuxproc",
    "TaskPlugin": "task/none",
    # As on real clusters, several jobs share a node and GPUs are used up. Nodes may claim CPUs that do not exist.
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_Core",
    "SlurmdParameters": "config_overrides",
    "GresTypes": "gpu",
    "MaxArraySize": "1001",
    # Quick reactions, so that tests are short.
    "SchedulerType": "sched/backfill",
    "SchedulerParameters": "sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=200000",
    "KillWait": "2",
    "SlurmdTimeout": "10",
    "ReturnToService": "2",
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "REQUEUE",
    "SlurmctldParameters": "preempt_send_user_signal",
}
PARTITIONS = """\
PartitionName=low  Nodes=ALL Default=YES MaxTime=1-0 DefaultTime=10 PriorityTier=1  PreemptMode=REQUEUE GraceTime=5
PartitionName=high Nodes=ALL Default=NO  MaxTime=1-0 DefaultTime=10 PriorityTier=10 PreemptMode=OFF
"""


@dataclass(frozen=True)
class Shape:
    """What a cluster is made of; `settings` replace or add lines of slurm.conf."""

    nodes: int = 2
    cpus: int = 4  # that each node claims
    gpus: int = 2  # likewise
    settings: Mapping[str, str] = field(default_factory=dict)


def write(folder: Path, shape: Shape) -> None:
    """Fill the folder of a new cluster."""
    nodes = [f"n{number + 1}" for number in range(shape.nodes)]
    for name in ("dev", "log", "run", "state", *(f"spool/{node}" for node in nodes)):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    gpus = [folder / "dev" / f"gpu{gpu}" for gpu in range(shape.gpus)]
    for gpu in gpus:  # Slurm wants to see a device
        gpu.symlink_to(os.devnull)
    lines = [f"NodeName={node} Name=gpu AutoDetect=off File={gpu}\n" for node in nodes for gpu in gpus]
    (folder / "gres.conf").write_text("".join(lines))
    if _version() >= (24, 5):  # which asks for a cgroup of its own otherwise; older ones do not know the word
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    (folder / "slurm.conf").write_text(_slurm_conf(folder, nodes, shape))


def _version() -> tuple[int, int]:
    """Slurm's major and minor version: year and month."""
    text = subprocess.run(["slurmd", "-V"], env=os.environ | {"PATH": PATH}, capture_output=True, text=True).stdout
    year, month = re.findall(r"\d+", text)[:2]
    return int(year), int(month)


def _slurm_conf(folder: Path, nodes: list[str], shape: Shape) -> str:
    port, *ports = _free_ports(1 + len(nodes))
    user = pwd.getpwuid(os.geteuid()).pw_name
    own = {
        "SlurmctldHost": f"{socket.gethostname().split('.')[0]}(127.0.0.1)",
        "SlurmctldPort": str(port),
        "AuthInfo": f"socket={folder}/munge.sock",
        "SlurmUser": user,
        "SlurmdUser": user,
        "StateSaveLocation": f"{folder}/state",
        "SlurmdSpoolDir": f"{folder}/spool/%n",
        "SlurmctldPidFile": f"{folder}/slurmctld.pid",
        "SlurmdPidFile": f"{folder}/slurmd-%n.pid",
        "SlurmctldLogFile": f"{folder}/log/slurmctld.log",
        "SlurmdLogFile": f"{folder}/log/slurmd-%n.log",
    }
    text = "".join(f"{key}={value}\n" for key, value in (SETTINGS | own | dict(shape.settings)).items())
    claims = f"CPUs={shape.cpus} RealMemory=4000" + (f" Gres=gpu:{shape.gpus}" if shape.gpus else "")
    for node, port in zip(nodes, ports, strict=True):
        text += f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} {claims} State=UNKNOWN\n"
    return text + PARTITIONS


def _free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, below those that the system gives away by itself."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: list[int] = []
    with contextlib.ExitStack() as taken:
        for port in random.sample(range(10_000, lowest if lowest > 11_000 else 65_536), 1_000):
            listener = taken.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    raise OSError(f"only {len(found)} of {count} free ports were found")

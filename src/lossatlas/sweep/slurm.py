"""Slurm's own commands: `sbatch --parsable`, `squeue`, `scancel ARRAY_TASK`, `scontrol show config`, and no other.

What they say is trusted only when they succeed: a controller that does not answer is never an empty queue.
Accounting (`sacct`) is not needed: what is done is what the store holds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lossatlas.errors import UserError
from lossatlas.sweep.slurm_files import Attempt, attempts

PATIENCE = 120.0  # s for a command
MOST_CANCELLED = 500  # tasks in one command line
# Of the environment, what would contradict the script or hide jobs; other SBATCH_ variables are the user's wish.
CONTRADICTING = tuple(
    f"SBATCH_{name}"
    for name in ("ARRAY_INX", "JOB_NAME", "NO_REQUEUE", "OPEN_MODE", "OUTPUT", "ERROR", "SIGNAL", "WAIT")
)
HIDING = "SQUEUE_"
# Words of Slurm's refusals that pass: the controller is away or busy; the queue is full of this user's own jobs.
AWAY = re.compile(
    r"contact|timed out|temporarily|connection|communicat|unexpected message|zero bytes", re.IGNORECASE
)
FULL = re.compile(r"limit", re.IGNORECASE)


class NotNow(Exception):
    """Slurm cannot do it at the moment; the text is what it said."""


class Full(NotNow):
    """The queue holds as many jobs of this user as it may."""


@dataclass(frozen=True)
class Task:
    """An element of an array in the queue."""

    name: str  # of the job
    array: str
    index: int
    state: str  # PENDING, RUNNING, COMPLETING, ...
    reason: str  # why it waits

    @property
    def id(self) -> str:
        """As scancel takes it: a raw job number would be passed over in silence."""
        return f"{self.array}_{self.index}"


@dataclass(frozen=True)
class Limits:
    """What the controller allows; Slurm's defaults where it does not tell."""

    array: int = 1001  # tasks in an array
    jobs: int = 10_000  # in the queue, of all users


def check_installed() -> None:
    """Raise UserError where Slurm's commands are missing."""
    if missing := [name for name in ("sbatch", "squeue", "scancel") if not shutil.which(name)]:
        raise UserError(
            f"Slurm's {', '.join(missing)} cannot be found here. Run this on a login node of the cluster; "
            "elsewhere --write-only writes the batch scripts, and --engine processes needs no Slurm."
        )


def limits() -> Limits:
    """The limits of this cluster."""
    if not shutil.which("scontrol"):
        return Limits()
    try:
        told = _output("scontrol", "show", "config")
    except NotNow:
        return Limits()
    found = dict(re.findall(r"^(MaxArraySize|MaxJobCount)\s*=\s*(\d+)", told, re.MULTILINE))
    return Limits(
        int(found.get("MaxArraySize", Limits.array)) or Limits.array,
        int(found.get("MaxJobCount", Limits.jobs)) or Limits.jobs,
    )


def queue() -> list[Task]:
    """All tasks of arrays that this user has in the queue; raises NotNow if the controller does not tell."""
    lines = _output("squeue", "-h", "-r", "-u", str(os.getuid()), "-o", "%F|%K|%T|%j|%r").splitlines()
    found = [line.split("|", maxsplit=4) for line in lines]
    return [
        Task(name, array, int(index), state, reason)
        for array, index, state, name, reason in found
        if index.isdigit()
    ]


def submit(attempt: Attempt, *, waiting: bool) -> str:
    """Submit an attempt; returns the number of its array.

    Raises NotNow if it should be tried again later, Full if that is after some of the user's own jobs, which are
    `waiting`, have left the queue; UserError with Slurm's words if it would be refused again.
    """
    try:
        array = _output("sbatch", "--parsable", str(attempt.script)).split(";")[0]
    except NotNow as error:
        if AWAY.search(str(error)):
            raise
        if waiting and FULL.search(str(error)):
            raise Full(str(error)) from error
        raise UserError(
            f"Slurm refuses {attempt.script}: {error}. Change [slurm] in the spec or the site file, or give "
            "--slurm KEY=VALUE."
        ) from error
    attempt.note("submitted", array=array)
    return array


def cancel(root: Path) -> list[Task]:
    """End all tasks of a run folder; returns them. A driver of theirs leaves, too.

    Raises NotNow if the controller does not answer.
    """
    known = {attempt.name: attempt for attempt in attempts(root)}
    found = [task for task in queue() if task.name in known]
    for attempt in known.values():
        if not attempt.cancelled:
            attempt.note("cancelled", tasks=[task.id for task in found if task.name == attempt.name])
    for start in range(0, len(found), MOST_CANCELLED):
        _output("scancel", *(task.id for task in found[start : start + MOST_CANCELLED]))
    return found


def _output(*command: str) -> str:
    """What a command prints; raises NotNow with what it complains of."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith((*CONTRADICTING, HIDING))
    }
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise NotNow(f"{command[0]} timed out") from error
    except OSError as error:
        raise NotNow(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        said = "; ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
        raise NotNow(said or f"{command[0]} ended with exit code {done.returncode}")
    return done.stdout.strip()


def by_name(found: Sequence[Task]) -> dict[tuple[str, int], Task]:
    """Tasks by the name of their job and their number in the array."""
    return {(task.name, task.index): task for task in found}

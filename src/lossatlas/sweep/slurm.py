"""Slurm's own commands: `sbatch --parsable`, `squeue`, `scancel ARRAY_TASK`, `scontrol show config`, and no other.

What they say is trusted only when they succeed: a controller that does not answer is never an empty queue.
Accounting (`sacct`) is not needed: what is done is what the store holds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lossatlas.errors import UserError
from lossatlas.sweep.slurm_files import Attempt, Key, job_prefix, note_cancelled

PATIENCE = 120.0  # s for a command
SUBMITTING = 60.0  # s for sbatch, which tries for two minutes to get into a full queue by itself
MOST_CANCELLED = 500  # tasks in one command line
# Of the environment, what would contradict the script or hide jobs; other SBATCH_ variables are the user's wish.
_OWN = ("ARRAY_INX", "CLUSTERS", "ERROR", "JOB_NAME", "NO_REQUEUE", "OPEN_MODE", "OUTPUT", "SIGNAL", "WAIT")
CONTRADICTING = tuple(f"SBATCH_{name}" for name in _OWN)
HIDING = "SQUEUE_"
# Words of Slurm's refusals that pass: the controller is away or busy.
AWAY = re.compile(
    r"contact|timed out|temporarily|connection|communicat|unexpected message|zero bytes", re.IGNORECASE
)
# Words for too many jobs: MaxJobCount is reached; a limit of a QOS or an association, which newer versions name
# before the text that stands for all of them (acct_policy.c, sbatch.c).
FULL = re.compile(r"unable to accept|queue full|resource temporarily unavailable|accounting/QOS", re.IGNORECASE)
NAMED = re.compile(r"\b(?:QOS|Assoc|Max)\w*(?:Limit|Per)\w*")
ALONE = " (one task, with no job of yours in the queue: no smaller max_shards helps, another qos or account may)"
# States of jobs that are no longer in the queue; the controller tells them for some minutes (MinJobAge).
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
ENDED |= {"REVOKED", "TIMEOUT"}


class NotNow(Exception):
    """Slurm cannot do it at the moment; the text is what it said."""


class Full(NotNow):
    """The queue does not take so many jobs."""


@dataclass(frozen=True)
class Task:
    """A job of this user, or an element of an array, that is in the queue or has left it lately."""

    name: str  # of the job
    array: str
    index: int  # -1: no element of an array
    state: str  # PENDING, RUNNING, COMPLETING, ...
    reason: str = ""  # why it waits
    node: str = ""  # where it runs or ran

    @property
    def id(self) -> str:
        """As scancel takes it: a raw job number would be passed over in silence."""
        return f"{self.array}_{self.index}"

    @property
    def ended(self) -> bool:
        """Whether it has left the queue."""
        return self.state in ENDED


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
    """All jobs of this user, those that ended lately, too; raises NotNow if the controller does not tell."""
    words = "%F|%K|%T|%N|%j|%r"
    lines = _output("squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", words).splitlines()
    found = [line.split("|", maxsplit=5) for line in lines if line.count("|") >= 5]
    return [
        Task(name, array, int(index) if index.isdigit() else -1, state, reason, node)
        for array, index, state, node, name, reason in found
    ]


def of_run(root: Path, tasks: Iterable[Task]) -> dict[Key, Task]:
    """The tasks of a run folder, by attempt and number; one that is in the queue before one that has left it."""
    return dict(_named(root, sorted(tasks, key=lambda task: not task.ended)))


def _named(root: Path, tasks: Iterable[Task]) -> Iterator[tuple[Key, Task]]:
    """The tasks of a run folder; a script that was submitted twice has two of each number."""
    prefix = job_prefix(root)
    for task in tasks:
        number = task.name.removeprefix(prefix)
        if task.name != number and number.isdigit() and task.index >= 0:
            yield (int(number), task.index), task


def submit(attempt: Attempt, *, alone: bool) -> str:
    """Submit an attempt; returns the number of its array.

    Raises NotNow if it should be tried again later; Full if that should be with fewer tasks, or after some have
    left the queue (the attempt is withdrawn), unless it is one task, `alone` in the queue; UserError with Slurm's
    words if it would be refused again.
    """
    try:
        answer = _output("sbatch", "--parsable", str(attempt.script), patience=SUBMITTING)
    except Full:
        raise
    except NotNow as error:
        too_many = _too_many(str(error))
        if too_many and not alone:
            attempt.withdraw()
            raise Full(str(error)) from error
        if AWAY.search(str(error)):
            raise
        raise _refused(attempt, f"{error}{ALONE if too_many else ''}") from error
    array = answer.split(";")[0]
    if not array.isdigit():
        raise _refused(attempt, f"sbatch answered {answer!r}, which is no number of a job")
    attempt.note("submitted", array=array)
    return array


def _refused(attempt: Attempt, said: str) -> UserError:
    """The error for a script that Slurm does not take."""
    return UserError(
        f"Slurm refuses {attempt.script}: {said}. Change [slurm] in the spec or the site file, or give "
        "--slurm KEY=VALUE."
    )


def _too_many(said: str) -> bool:
    """Whether a refusal is for the number of jobs: the limit that it names, if it names any, is on submitting."""
    named = NAMED.findall(said)
    return any("Submit" in name for name in named) if named else bool(FULL.search(said))


def cancel(root: Path) -> list[Task]:
    """End all tasks of a run folder; returns them. Drivers of theirs leave, too.

    Looks again until it finds no others: an array may be on its way into the queue. A driver whose array comes
    later cancels it itself. Raises NotNow if the controller does not answer.
    """
    note_cancelled(root, [], again=True)
    ended: dict[str, Task] = {}
    while found := [task for _, task in _named(root, queue()) if not (task.ended or task.id in ended)]:
        end(root, found)
        ended |= {task.id: task for task in found}
    return list(ended.values())


def end(root: Path, tasks: Sequence[Task]) -> None:
    """Cancel tasks of a run folder, which no driver of it waits for then."""
    note_cancelled(root, [task.id for task in tasks])
    for start in range(0, len(tasks), MOST_CANCELLED):
        _output("scancel", *(task.id for task in tasks[start : start + MOST_CANCELLED]))


def _output(*command: str, patience: float = PATIENCE) -> str:
    """What a command prints; raises NotNow with what it complains of, Full if it waits for room in the queue."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith((*CONTRADICTING, HIDING))
    }
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=patience, check=False
        )
    except subprocess.TimeoutExpired as error:
        said = _sentence((error.stderr or b"").decode(errors="replace"))
        raise (Full(said) if FULL.search(said) else NotNow(f"{command[0]} timed out")) from error
    except OSError as error:
        raise NotNow(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise NotNow(_sentence(done.stderr) or f"{command[0]} ended with exit code {done.returncode}")
    return done.stdout.strip()


def _sentence(lines: str) -> str:
    return "; ".join(line.strip() for line in lines.splitlines() if line.strip())

"""What is written for Slurm: which cells a task does, and the batch script of an array of tasks.

    DIR/slurm/<attempt>/shards.json      the cells of each task, as their values on the axes
    DIR/slurm/<attempt>/job.sbatch       the array; `sbatch` takes it as it is
    DIR/slurm/<attempt>/submitted.json   its number in Slurm, once it was submitted
    DIR/slurm/cancelled.json             the tasks that `lossatlas cancel` has ended, and how often it was called
    DIR/logs/slurm-<array>_<task>.log

An attempt is one array; it is known in the queue by its job name, which holds a hash of the folder's path.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import math
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossatlas import files, json_files
from lossatlas.errors import FileError, UserError
from lossatlas.results import Cell
from lossatlas.settings import text_key
from lossatlas.specs import Slurm

# s before the time limit that the worker is warned; a tenth of a short one, and Slurm may be 60 s early.
LEAD = 300
LARGEST_ARRAY = 1000

Key = tuple[int, int]  # of a task: the number of its attempt and its own in the array


def deal(cells: Sequence[int], seconds: Mapping[int, float], settings: Slurm) -> list[list[int]]:
    """Deal cells, in their order, to shards of `shard_minutes` of predicted work for the workers of a task.

    Each goes to the shard with the least work so far: given longest first, no shard has more than the mean and one
    cell. A time limit halves itself off, since predictions err. A cell that takes longer has a shard to itself.
    """
    if not cells:
        return []
    target = 60 * settings.shard_minutes
    if settings.limit is not None:
        target = min(target, settings.limit / 2)
    total = sum(seconds[cell] for cell in cells)
    count = max(1, math.ceil(total / (target * settings.per_task)))
    count = min(count, math.ceil(len(cells) / settings.per_task))
    shards: list[list[int]] = [[] for _ in range(count)]
    loads = [(0.0, k) for k in range(count)]
    for cell in cells:
        load, k = heapq.heappop(loads)
        shards[k].append(cell)
        heapq.heappush(loads, (load + seconds[cell], k))
    return [shard for shard in shards if shard]


@dataclass(frozen=True)
class Attempt:
    """An array of tasks of a run folder, submitted or not."""

    root: Path  # of the run
    number: int

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.root / "slurm" / f"{self.number:03d}"

    @property
    def script(self) -> Path:
        """The batch script."""
        return self.folder / "job.sbatch"

    @property
    def name(self) -> str:
        """The name of its jobs: no other folder has the same."""
        return f"{job_prefix(self.root)}{self.number:03d}"

    def shards(self) -> list[list[Cell]]:
        """The cells of its tasks; raises FileError if they cannot be read."""
        return read_shards(self.folder / "shards.json")

    @property
    def array(self) -> str | None:
        """Its number in Slurm; None if it was not submitted by a driver."""
        try:
            return str(json.loads((self.folder / "submitted.json").read_text())["array"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def note(self, name: str, **content: Any) -> None:
        """Write `submitted` beside the script."""
        files.write_file(self.folder / f"{name}.json", json_files.encoded(content))

    def withdraw(self) -> None:
        """Remove it: Slurm has not taken it."""
        for path in self.folder.glob("*"):
            files.remove(path)
        with contextlib.suppress(OSError):
            self.folder.rmdir()


@dataclass(frozen=True)
class Cancelled:
    """What `lossatlas cancel` has done to a run."""

    times: int = 0  # that it was called
    tasks: frozenset[str] = frozenset()  # that were ended, as Slurm names them: <array>_<index>


def cancelled(root: Path) -> Cancelled:
    """What was cancelled of a run so far; nothing if that cannot be read."""
    try:
        content = json.loads((root / "slurm" / "cancelled.json").read_text(encoding="utf-8"))
        return Cancelled(int(content["times"]), frozenset(content["tasks"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Cancelled()


def note_cancelled(root: Path, tasks: Iterable[str], *, again: bool = False) -> None:
    """Note tasks that are ended; `again`: that `lossatlas cancel` was called, which drivers of the run heed."""
    before = cancelled(root)
    now = {"times": before.times + again, "tasks": sorted({*before.tasks, *tasks})}
    files.write_file(root / "slurm" / "cancelled.json", json_files.encoded(now))


def attempts(root: Path) -> list[Attempt]:
    """The attempts of a run folder, in their order."""
    numbers = (path.name for path in (root / "slurm").glob("*"))
    return [Attempt(root, number) for number in sorted(int(name) for name in numbers if name.isdigit())]


def write_attempt(
    root: Path, shards: Sequence[Sequence[Cell]], settings: Slurm, device: str, seconds: Sequence[float]
) -> Attempt:
    """Write a new attempt, `seconds` being predicted for each shard; raises UserError or FileError if not."""
    (root / "logs").mkdir(parents=True, exist_ok=True)  # Slurm drops the output of a job if it is missing
    known = attempts(root)
    attempt = Attempt(root, known[-1].number + 1 if known else 1)
    while True:
        parts = {
            "shards.json": _shards_json(shards),
            "job.sbatch": batch_script(attempt, settings, device, seconds).encode(),
        }
        if files.commit_folder(attempt.folder, parts, scratch=root / "slurm"):
            return attempt
        attempt = Attempt(root, attempt.number + 1)  # another driver was faster


def batch_script(attempt: Attempt, settings: Slurm, device: str, seconds: Sequence[float]) -> str:
    """The batch script of an array with one task a shard, predicted to take so many seconds in one worker."""
    workers = settings.per_task
    lead = LEAD if settings.limit is None else min(LEAD, settings.limit // 10)
    throttle = f"%{settings.throttle}" if settings.throttle else ""
    asked = {
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "gres": settings.gres,
        "time": settings.time,
        "mem": settings.memory,
    }
    options = [
        f"--job-name={attempt.name}",
        f"--array=0-{len(seconds) - 1}{throttle}",
        f"--chdir={_quoted(str(Path.cwd()))}",
        f"--output={_quoted(str(attempt.root / 'logs').replace('%', '%%') + '/slurm-%A_%a.log')}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{lead}",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={settings.cpus or workers}",
        *(f"--{name}={value}" for name, value in asked.items() if value is not None),
        *settings.sbatch,
    ]
    python = settings.python or shlex.quote(sys.executable)
    shards = attempt.folder.relative_to(attempt.root) / "shards.json"
    command = [f"exec {python} -P -m lossatlas worker {shlex.quote(str(attempt.root))}"]
    command += [f"--shards {shards}", '--shard "$SLURM_ARRAY_TASK_ID"']
    command += [f"--workers {workers}"] if workers > 1 else []
    command += [f"--device {shlex.quote(device)}"] if device != "auto" else []
    lines = [
        "#!/bin/bash",
        f"# {len(seconds)} tasks; the longest is predicted to take {max(seconds) / workers / 60:.3g} min.",
        *(f"#SBATCH {option}" for option in options),
        "",
        "trap '' USR1  # the warning before the time limit must not end this shell; the worker heeds it",
        "export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE",
        *settings.setup.strip().splitlines(),
        " \\\n  ".join(command),
    ]
    return "\n".join(lines) + "\n"


def job_prefix(root: Path) -> str:
    """What the names of all jobs of a run folder begin with: `lossatlas-<folder>-<hash of its path>-`."""
    slug = re.sub(r"[^\w.]+", "-", root.name, flags=re.ASCII)
    return f"lossatlas-{slug}-{text_key(str(root.resolve()))[:6]}-"


def read_shards(path: Path) -> list[list[Cell]]:
    """The cells of each task; raises FileError if they cannot be read."""
    try:
        return [[tuple(cell) for cell in shard] for shard in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or f"it is damaged: {error}"
        raise FileError(
            f"The shards {path} cannot be read ({reason}). `lossatlas cancel` ends their jobs, then "
            "`lossatlas run` writes new ones."
        ) from error


def numbers(shard: Sequence[Cell], place: Mapping[Cell, int]) -> list[int]:
    """The numbers of the cells of a shard in a plan, `place`; those that it no longer has are left out."""
    return [place[cell] for cell in shard if cell in place]


def places_of(cells: Sequence[Cell]) -> dict[Cell, int]:
    """The numbers of the cells of a plan."""
    return {cell: index for index, cell in enumerate(cells)}


def _quoted(path: str) -> str:
    """A path as a part of an #SBATCH line."""
    if any(character in path for character in '"\\\n'):
        raise UserError(f"The path {path!r} has a character that Slurm's options cannot hold. Rename the folder.")
    return f'"{path}"' if re.search(r"[^\w./@%:+,=-]", path) else path


def _shards_json(shards: Sequence[Sequence[Cell]]) -> bytes:
    """One line a shard."""
    return ("[\n" + ",\n".join(json.dumps([list(cell) for cell in shard]) for shard in shards) + "\n]\n").encode()

"""How a run asks a Slurm cluster for its jobs. No part of any key, since it changes no result."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field

from lossatlas.settings import Count, Settings

# What the launcher writes itself and relies on.
RESERVED = ("array", "chdir", "error", "job-name", "open-mode", "output", "parsable", "signal", "wait", "wrap")
# What would have jobs submitted elsewhere, or none.
REFUSED = dict.fromkeys(RESERVED, "lossatlas sets it itself")
REFUSED |= dict.fromkeys(("help", "test-only", "usage", "version"), "with it Slurm takes no job")
REFUSED |= {"clusters": "lossatlas looks at the queue of the cluster that it runs on; run it on the other one"}
REFUSED |= {"uid": "lossatlas looks for jobs of the user who runs it"}
SHORT = {"a": "array", "D": "chdir", "e": "error", "h": "help", "J": "job-name", "M": "clusters", "o": "output"}
SHORT |= {"V": "version", "W": "wait"}
FLAGS = "HIkOQsv"  # short options without a value, behind which others may stand
BYTES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _word(text: str) -> str:
    if not re.fullmatch(r"[^\s\"'\\]+", text):
        raise ValueError("allowed is one word without quotes")
    return text


def _time(text: str) -> str:
    if not re.fullmatch(r"\d+|\d+:\d{1,2}|\d+:\d{1,2}:\d{1,2}|\d+-\d+(:\d{1,2}){0,2}", text) or not seconds_of(
        text
    ):
        raise ValueError("allowed are minutes, hours:minutes:seconds, days-hours and days-hours:minutes:seconds")
    return text


def _memory(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*[KMGT]?", text):
        raise ValueError("allowed are megabytes, or a number with K, M, G or T, such as 8G")
    return text


def _option(text: str) -> str:
    if not re.match(r"--?[a-zA-Z]", text) or not text.isprintable():
        raise ValueError("allowed is an option of sbatch in one line, such as --exclude=node7")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"a quote is open: {error}") from error
    for word in words:
        for name in _named(word):
            raise ValueError(f"--{name} is refused: {REFUSED[name]}. Leave it out")
    return text


def _named(word: str) -> list[str]:
    """Those of the refused options that a word of a command line may mean; sbatch takes abbreviations."""
    if found := re.match(r"--([a-zA-Z][\w-]*)", word):
        return [name for name in REFUSED if name.startswith(found[1])]
    found = re.match(rf"-([{FLAGS}]*)([a-zA-Z])", word)
    return [SHORT[letter] for letter in (found[1] + found[2] if found else "") if letter in SHORT]


def seconds_of(time: str) -> int:
    """The seconds of a time limit as Slurm reads it: `90` is 90 min, `1:30` 90 s, `2-12` 60 h."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = [*parts, 0, 0][:3]
        return ((24 * int(days) + hours) * 60 + minutes) * 60 + seconds
    hours, minutes, seconds = (0, *parts, 0)[:3] if len(parts) < 3 else parts
    return (60 * hours + minutes) * 60 + seconds


def _text(value: object) -> object:
    return str(value) if type(value) is int else value  # as it is natural to write


Word = Annotated[str, BeforeValidator(_text), AfterValidator(_word)]
Time = Annotated[str, BeforeValidator(_text), AfterValidator(_time)]
Memory = Annotated[str, BeforeValidator(_text), AfterValidator(_memory)]
Option = Annotated[str, AfterValidator(_option)]


def _several(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


class Slurm(Settings):
    """What a job asks for, and how much work it is given; what is not given is left to the site's defaults."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    gres: Word | None = None  # of one task, such as gpu:1
    time: Time | None = None  # limit of one task
    memory: Memory | None = None  # of one task
    cpus: Count | None = None  # of one task; None: one a worker
    per_task: Count = 1  # workers that share a task and its GPUs
    throttle: Count | None = None  # tasks of an array that run at once
    # further options, each as on the command line; one may be given without a list
    sbatch: Annotated[tuple[Option, ...], BeforeValidator(_several)] = ()
    setup: str = ""  # lines of shell before the worker: modules, an environment
    python: Word | None = None  # the interpreter there; None: that of the driver
    shard_minutes: float = Field(default=30.0, gt=0, le=60)  # of predicted work in a task; below 10 start-up shows
    max_shards: Count = 1000  # tasks in the queue at once

    def without(self, nodes: Collection[str]) -> Self:
        """The same without these nodes and those that `sbatch` leaves out, of which the last --exclude counts."""
        if not nodes:
            return self
        found = [re.match(r"(?:--exclude[= ]|-x ?)(\S+)", option) for option in self.sbatch]
        own = [match[1] for match in found if match][-1:]
        return self.model_copy(update={"sbatch": (*self.sbatch, f"--exclude={','.join([*own, *nodes])}")})

    @property
    def limit(self) -> int | None:
        """The time limit in seconds."""
        return None if self.time is None else seconds_of(self.time)

    @property
    def bytes(self) -> int | None:
        """The memory of a task in bytes."""
        if self.memory is None:
            return None
        number, unit = re.fullmatch(r"(\d+)([KMGT]?)", self.memory).groups()  # type: ignore[union-attr]
        return int(number) * BYTES[unit or "M"]

"""How a run asks a Slurm cluster for its jobs. No part of any key, since it changes no result."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from lossatlas.settings import Count, Settings

# What the launcher writes itself and relies on.
RESERVED = ("array", "chdir", "error", "job-name", "open-mode", "output", "parsable", "signal", "wait", "wrap")
SHORT = {"a": "array", "D": "chdir", "e": "error", "J": "job-name", "o": "output", "W": "wait"}
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
    found = re.match(r"--([a-zA-Z-]+)|-([a-zA-Z])", text)
    if not found or not text.isprintable():
        raise ValueError("allowed is an option of sbatch in one line, such as --exclude=node7")
    if (name := found[1] or SHORT.get(found[2])) in RESERVED:
        raise ValueError(f"lossatlas sets --{name} itself; leave it out")
    return text


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
    sbatch: tuple[Option, ...] = ()  # further options, each as on the command line
    setup: str = ""  # lines of shell before the worker: modules, an environment
    python: Word | None = None  # the interpreter there; None: that of the driver
    shard_minutes: float = Field(default=30.0, gt=0, le=60)  # of predicted work in a task; below 10 start-up shows
    max_shards: Count = 1000  # tasks in the queue at once

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

"""Who does the work of a run: this process, worker processes of this machine, or jobs of a Slurm cluster."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
import typer

from lossatlas.cli.output import LEFT, Terminated, note, size
from lossatlas.cli.progress import STOPPING, RunProgress
from lossatlas.cli.running import (
    Prepared,
    announce,
    check_memory,
    chosen_device,
    collected,
    finish,
    keep_data,
    prepare,
)
from lossatlas.errors import UserError
from lossatlas.landscape.checkpoints import StopFlag, Stopped
from lossatlas.specs import Spec, slurm_settings
from lossatlas.sweep import slurm
from lossatlas.sweep.engine import Engine, remember
from lossatlas.sweep.journal import Journal
from lossatlas.sweep.local import LocalEngine, Slot, slots, visible_gpus
from lossatlas.sweep.plan import Step
from lossatlas.sweep.remaining import longest_first
from lossatlas.sweep.slurm_driver import SlurmEngine
from lossatlas.sweep.slurm_tasks import Work
from lossatlas.sweep.worker import Worker, note_given_up

PASSES = 3  # over what is missing: a damaged step is only found when it is read


def run(spec: Spec, out: Path, store: Path | None, engine: Engine) -> dict[str, str]:
    """Do what is missing of a run and write its results; returns the reasons of failed steps by their keys."""
    if engine.name == "slurm":
        slurm_settings(spec, engine.slurm)  # before the work, what is wrong with them
        slurm.check_installed()
    prepared = prepare(spec, out, store)
    work = {"inline": _inline, "processes": _processes, "slurm": _slurm}[engine.name]
    for _ in range(PASSES):
        failures = work(prepared, engine)
        tree = collected(prepared, failures)
        prepared = prepared.again()
        lacking = _lacking(prepared)
        failures = {key: reason for key, reason in failures.items() if key in lacking}
        missing = len(lacking) - len(failures)
        if not missing:
            break
        note(f"{missing} steps are missing or damaged; they are made again.")
    finish(prepared, tree)
    if missing:
        raise UserError(
            f"{missing} steps are missing after {PASSES} passes: something damages "
            f"what is written to {prepared.opened.store.root}. `lossatlas verify {out}` names what is damaged now."
        )
    return failures


def _lacking(run: Prepared) -> set[str]:
    """The keys of the steps that the store lacks."""
    store, plan = run.opened.store, run.plan
    steps = (step for index in run.left.cells for step in plan.steps(plan.cells[index]))
    return {step.key for step in steps if not store.has(step.name, step.key)}


def write_only(spec: Spec, out: Path, store: Path | None, engine: Engine) -> list[Path]:
    """Write the batch scripts of what is missing of a run and submit nothing; returns the scripts."""
    slurm_settings(spec, engine.slurm)
    prepared = prepare(spec, out, store)
    work = _work(prepared, engine)
    remember(out, engine)
    keep_data(prepared)
    return [attempt.script for attempt in SlurmEngine(work, say=note).write()]


def _inline(run: Prepared, engine: Engine) -> dict[str, str]:
    check_memory(run, 1)
    device = chosen_device(engine.device)
    remember(run.opened.root, engine)
    announce(run, f"one {device.type} process", 1)
    stop = StopFlag()
    with RunProgress(run.predicted.of(run.plan), run.left) as progress, stopping(stop, run.opened.root):
        told = _Noted(run.opened.root, progress)
        worker = Worker(run.opened.store, run.raw, run.plan.spec.weights, run.opened.failed, told, device, stop)
        try:
            return worker.run(run.plan)
        finally:
            told.leaves()


class _Noted(Journal):
    """The progress of a run in this process, with the note that `lossatlas status` reads, and without a log."""

    def __init__(self, folder: Path, progress: RunProgress) -> None:
        super().__init__(folder, "inline")
        self._progress = progress

    def finished(self, step: Step, status: str) -> None:
        self._progress.finished(step, status)

    def advanced(self, step: Step, epoch: int, epochs: int, loss: float) -> None:
        super().advanced(step, epoch, epochs, loss)
        self._progress.advanced(step, epoch, epochs, loss)

    def line(self, text: str) -> None:
        pass


def _processes(run: Prepared, engine: Engine) -> dict[str, str]:
    device = chosen_device(engine.device)
    root, cells = run.opened.root, longest_first(run.left.cells, run.plan, run.predicted.seconds)
    slots = places(engine, device)[: max(1, len(cells))]
    check_memory(run, len(slots))
    keep_data(run)
    remember(root, engine)
    several = "workers" if len(slots) > 1 else "worker"
    announce(run, f"{len(slots)} {device.type} {several}, whose logs are in {root / 'logs'}", len(slots))
    with RunProgress(run.predicted.of(run.plan), run.left) as progress:
        local = LocalEngine(worker_command(root, device.type), root / "logs", slots, progress.hear)
        with _saying_how_to_go_on(f"Stopped. `lossatlas run {root}` continues."):
            local.run(cells)
    given_up = note_given_up(run.opened.failed, run.plan, run.opened.store, local.given_up)
    return {**local.failures, **given_up}


def _slurm(run: Prepared, engine: Engine) -> dict[str, str]:
    work = _work(run, engine)
    keep_data(run)
    root = run.opened.root
    remember(root, engine)
    announce(run, f"one worker if they were as fast as this machine; Slurm's logs are in {root / 'logs'}", 1)
    words = f"The jobs go on. `lossatlas run {root}` comes back to them, `lossatlas cancel {root}` ends them."
    with RunProgress(run.predicted.of(run.plan), run.left) as progress, _saying_how_to_go_on(words):
        driver = SlurmEngine(work, progress.looked, note, float(os.environ.get("LOSSATLAS_SLURM_POLL", 2.0)))
        try:
            driver.run()
        except Stopped:
            note(f"The jobs of this run were cancelled. What is finished is kept; `lossatlas run {root}` goes on.")
            raise typer.Exit(LEFT) from None
    given_up = note_given_up(run.opened.failed, run.plan, run.opened.store, driver.given_up)
    return {**driver.failures, **given_up}


def _work(run: Prepared, engine: Engine) -> Work:
    """What a Slurm engine needs to know; raises UserError if workers cannot fit into what a task asks for."""
    settings = slurm_settings(run.plan.spec, engine.slurm)
    need = settings.per_task * run.predicted.memory
    if settings.bytes is not None and need > settings.bytes:
        raise UserError(
            f"A task asks Slurm for memory = {settings.memory!r}, and its {settings.per_task} workers need about "
            f"{size(need)}. Ask for more, or for fewer workers with per_task."
        )
    root, opened = run.opened.root.absolute(), run.opened
    return Work(root, run.plan, opened.store, run.predicted.seconds, settings, engine.device)


def worker_command(folder: Path, device: str, *share: str) -> list[str]:
    """What starts a worker that does its `share`; without one, it is handed cells through a pipe."""
    # -P: as for the command itself, a file in the current folder never stands in for a library.
    command = [sys.executable, "-P", "-m", "lossatlas", "worker", str(folder)]
    return [*command, *(share or ["--pipe"]), "--device", device]


def places(engine: Engine, device: torch.device) -> list[Slot]:
    """Where workers may be, on all GPUs or the one that `--device cuda:N` names."""
    gpus = []
    if device.type == "cuda":
        gpus = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count())
        gpus = gpus if device.index is None else [gpus[device.index]]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return slots(engine.workers, cores, gpus, engine.per_gpu)


@contextmanager
def stopping(stop: StopFlag, folder: Path) -> Iterator[None]:
    """Within it, the first SIGINT or SIGTERM asks for a stop at the next good place, the second leaves at once."""
    got: list[int] = []

    def ask(number: int, _frame: object) -> None:
        got.append(number)
        if stop.asked:
            raise _error(number)
        stop.asked = True
        note(STOPPING)

    with _heard_by(ask):
        try:
            yield
        except (Stopped, KeyboardInterrupt, Terminated) as error:
            note(f"Stopped. `lossatlas run {folder}` continues.")
            raise _error(got[0] if got else signal.SIGINT) from error


@contextmanager
def _saying_how_to_go_on(words: str) -> Iterator[None]:
    """As `_stopping` for a driver of workers, which does what is left to do when it is stopped by itself."""

    def leave(number: int, _frame: object) -> None:
        raise _error(number)

    with _heard_by(leave):
        try:
            yield
        except (KeyboardInterrupt, Terminated):
            note(words)
            raise


@contextmanager
def _heard_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within it, SIGINT and SIGTERM go to `handler`."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _error(number: int) -> BaseException:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()

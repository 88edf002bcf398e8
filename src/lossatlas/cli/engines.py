"""Who does the work of a run: this process, or worker processes of this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lossatlas.cli.output import Terminated, note
from lossatlas.cli.progress import RunProgress
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
from lossatlas.landscape.checkpoints import StopFlag, Stopped
from lossatlas.specs import Spec
from lossatlas.sweep.local import LocalEngine, slots
from lossatlas.sweep.remaining import longest_first
from lossatlas.sweep.worker import Worker, note_failure

PASSES = 3  # over what is missing: a damaged step is only found when it is read


@dataclass(frozen=True)
class Engine:
    """How the work is to be done: the options of `lossatlas run`."""

    name: str = "inline"
    workers: int | None = None
    per_gpu: int = 1
    device: str = "auto"


def run(spec: Spec, out: Path, store: Path | None, engine: Engine) -> dict[str, str]:
    """Do what is missing of a run and write its results; returns the reasons of failed steps by their keys."""
    prepared = prepare(spec, out, store)
    work = {"inline": _inline, "processes": _processes}[engine.name]
    for _ in range(PASSES):
        failures = work(prepared, engine)
        tree = collected(prepared, failures)
        prepared = prepared.again()
        if prepared.left.steps <= len(failures):
            break
        note(f"{prepared.left.steps - len(failures)} steps are missing or damaged; they are made again.")
    finish(prepared, tree)
    return failures


def _inline(run: Prepared, engine: Engine) -> dict[str, str]:
    check_memory(run, 1)
    device = chosen_device(engine.device)
    announce(run, f"one {device.type} process", 1)
    stop = StopFlag()
    with RunProgress(run.predicted.of(run.plan), run.left) as progress, _stopping(stop, run.opened.root):
        worker = Worker(
            run.opened.store, run.raw, run.plan.spec.weights, run.opened.failed, progress, device, stop
        )
        return worker.run(run.plan)


def _processes(run: Prepared, engine: Engine) -> dict[str, str]:
    device = chosen_device(engine.device)
    gpus = _gpus() if device.type == "cuda" else []
    places = slots(engine.workers or len(os.sched_getaffinity(0)), gpus, engine.per_gpu)
    check_memory(run, len(places))
    keep_data(run)
    announce(run, f"{len(places)} {device.type} workers", len(places))
    cells = longest_first(run.left.cells, run.plan, run.predicted.seconds)
    with RunProgress(run.predicted.of(run.plan), run.left) as progress:
        local = LocalEngine(run.opened.root, places, device.type, progress.hear)
        with _saying_how_to_go_on(run.opened.root):
            local.run(cells)
    failures = dict(local.failures)
    for index, reason in local.given_up.items():
        for step in run.plan[index].steps:
            if not run.opened.store.has(step.name, step.key):
                failures[step.key] = note_failure(run.opened.failed, step, reason)
    return failures


def _gpus() -> list[str]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(k) for k in range(torch.cuda.device_count())]


@contextmanager
def _stopping(stop: StopFlag, folder: Path) -> Iterator[None]:
    """Within it, the first SIGINT or SIGTERM asks for a stop at the next good place, the second leaves at once."""
    got: list[int] = []

    def ask(number: int, _frame: object) -> None:
        got.append(number)
        if stop.asked:
            raise _error(number)
        stop.asked = True
        note("Stopping as soon as the step in hand is done or can be continued later; once more to leave at once.")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except (Stopped, KeyboardInterrupt, Terminated) as error:
        note(f"Stopped. `lossatlas run {folder}` continues.")
        raise _error(got[0] if got else signal.SIGINT) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _saying_how_to_go_on(folder: Path) -> Iterator[None]:
    """As `_stopping` for a driver of workers, which are asked to leave when it is stopped."""

    def leave(number: int, _frame: object) -> None:
        raise _error(number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        note(f"Stopped. `lossatlas run {folder}` continues.")
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _error(number: int) -> BaseException:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()

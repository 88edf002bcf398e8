"""The idempotent worker: walks cells, skips every step whose result exists, commits each step when it is done."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from lossatlas import files
from lossatlas.errors import FileError
from lossatlas.landscape.checkpoints import Checkpoints, DoesNotFit, StopFlag, Stopped
from lossatlas.landscape.parameters import flat_parameters
from lossatlas.measures.jobs import Job, Outcome, TrainedSeed
from lossatlas.measures.settings import Connectivity
from lossatlas.settings import canonical
from lossatlas.specs import Task, Train
from lossatlas.sweep.plan import CellPlan, Plan, Step
from lossatlas.sweep.store import Record, Store
from lossatlas.sweep.unfinished import INTERVAL, Unfinished
from lossatlas.tasks import losses, models
from lossatlas.tasks.corruption import corrupted
from lossatlas.tasks.data import RawData
from lossatlas.tasks.samples import Samples
from lossatlas.training import TrainedModel, train


class Listener(Protocol):
    """Hears of the work; for progress bars and logs."""

    def begins(self, step: Step) -> None:
        """A step is begun."""

    def finished(self, step: Step, status: str) -> None:
        """A step was done and committed."""

    def skipped(self, step: Step) -> None:
        """A step was already in the store."""

    def advanced(self, step: Step, epoch: int, epochs: int, loss: float) -> None:
        """Of a long step so many epochs are done, with this training loss in the last one."""


@dataclass
class Worker:
    """Does the steps of cells: `run` is all that an engine calls."""

    store: Store
    raw: RawData
    weights: str  # which checkpoint is measured
    failed: Path  # the folder where failures are noted
    listener: Listener
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    stop: StopFlag = field(default_factory=StopFlag)
    interval: float = INTERVAL  # s between checkpoints of a long step
    _tasks: dict[str, tuple[Samples, Samples]] = field(default_factory=dict)

    def run(self, cells: Iterable[CellPlan]) -> dict[str, str]:
        """Do what is missing of the cells, one thread; returns the reasons of the steps that failed by their keys.

        A step that raises is noted under `failed/`, its dependants are left out, and the work goes on; only what
        cannot be written or read (FileError) ends it. When a stop is asked for, a training (of a model or a curve)
        leaves a checkpoint, any other step is done to its end, and Stopped is raised.
        """
        failures: dict[str, str] = {}
        self.store.tidy()
        with one_thread():
            for cell in cells:
                missing = []
                for step in cell.steps:
                    if self.store.read(step.name, step.key) is None:
                        missing.append(step)
                    else:
                        self.listener.skipped(step)
                if missing:
                    failures |= self._cell(cell, missing)
        return failures

    def _cell(self, cell: CellPlan, missing: Sequence[Step]) -> dict[str, str]:
        failures: dict[str, str] = {}
        bench = _Bench(self, cell)
        for step in missing:
            if self.stop.asked:
                raise Stopped
            needed = [key for key in (*step.inputs, *(key for _, key in step.arrays)) if key in failures]
            if needed:
                failures[step.key] = failures[needed[0]]
                continue
            try:
                record = bench.do(step)
            except FileError:
                raise
            except Exception as error:  # whatever a user's model raises is data of the sweep
                reason = f"{type(error).__name__}: {error}"
                failures[step.key] = note_failure(self.failed, step, reason, traceback.format_exc())
            else:
                self.listener.finished(step, record.status)
        return failures

    def samples(self, task: Task) -> tuple[Samples, Samples]:
        """Training and test samples of a task, kept while the worker lives."""
        key = canonical(task.data.model_dump(mode="json"))
        if key not in self._tasks:
            data = corrupted(self.raw, task.data)
            self._tasks = {  # of one task at a time: cells are walked load by load
                key: (
                    Samples(data.train_inputs, data.train_targets, data, self.device),
                    Samples(data.test_inputs, data.test_targets, data, self.device),
                )
            }
        return self._tasks[key]


def note_failure(failed: Path, step: Step, reason: str, trace: str = "") -> str:
    """Note under `failed` why a step failed; returns the reason with the name of the step."""
    named = f"{step.name} of cell {step.cell}, seeds {list(step.seeds)}: {reason}"
    place = {"cell": list(step.cell), "seeds": list(step.seeds)}
    write_note(
        failed,
        step.key,
        {"step": step.name, **place, "content": step.content, "reason": named, "trace": trace},
    )
    return named


def write_note(failed: Path, key: str, note: Mapping[str, Any]) -> None:
    """Write `failed`/<key>-<n>.json, n being one more than there are of this key."""
    attempt = len(list(failed.glob(f"{key}-*.json"))) + 1
    files.write_file(failed / f"{key}-{attempt}.json", canonical(note).encode())


def note_given_up(failed: Path, plan: Plan, store: Store, cells: Mapping[int, str]) -> dict[str, str]:
    """Note why cells were given up, for each step that they lack; returns the reasons by the keys of the steps."""
    lacking = [
        (step, reason)
        for index, reason in cells.items()
        for step in plan[index].steps
        if not store.has(step.name, step.key)
    ]
    return {step.key: note_failure(failed, step, reason) for step, reason in lacking}


class _Bench:
    """The work on one cell, with the models and outputs that its steps share."""

    def __init__(self, worker: Worker, cell: CellPlan) -> None:
        self._worker, self._cell = worker, cell
        self._training = {step.seeds[0]: step for step in cell.steps if step.name == "train"}
        self._by_key = {step.key: step for step in cell.steps}
        self._step: Step | None = None
        self._seeds: dict[int, TrainedSeed] = {}
        samples, test = worker.samples(cell.task)
        self._job = Job(
            criterion=losses.build(cell.task.loss),
            train=samples,
            test=test,
            classes=worker.raw.classes,
            initialise=self._fresh,
            progress=self._progress,
        )

    def do(self, step: Step) -> Record:
        """Do one step, or what is left of it, and commit it."""
        try:
            return self._do(step)
        except DoesNotFit:  # a model of one's own that has changed under its name
            self._worker.store.set_unfinished_aside(step.name, step.key)
            return self._do(step)

    def _do(self, step: Step) -> Record:
        self._step = step
        self._worker.listener.begins(step)
        worker, started = self._worker, time.time()
        unfinished = Unfinished(
            worker.store, step.name, step.key, worker.device, stop=worker.stop, interval=worker.interval
        )
        about: dict[str, str] = {}
        if step.name == "train":
            record, arrays, about = self._train(step, unfinished)
        else:
            record, arrays = self._measure(step, unfinished)
        meta: dict[str, Any] = {
            **about,
            "seconds": round(unfinished.seconds, 3),
            "started": started,  # after the last stop
            "stops": unfinished.stops,
        }
        meta |= {
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "device": str(self._worker.device),
        }
        self._worker.store.commit(step.name, step.content, record, meta=meta, arrays=arrays)
        return record

    def _train(
        self, step: Step, checkpoints: Checkpoints
    ) -> tuple[Record, dict[str, dict[str, Any]], dict[str, str]]:
        """The record of a training, its weights, and what is to be told of it beside."""
        seed = step.seeds[0]
        trained = train(
            self._fresh(seed),
            self._job.train,
            self._job.criterion,
            self._cell.train,
            seed=seed,
            progress=self._progress,
            checkpoints=checkpoints,
        )
        arrays = {
            name: {key: tensor.cpu().numpy() for key, tensor in weights.items()}
            for name, weights in trained.weights.items()
        }
        return Record(_training_values(trained), trained.status, trained.reason), arrays, trained.about

    def _measure(self, step: Step, checkpoints: Checkpoints) -> tuple[Record, dict[str, dict[str, Any]]]:
        assert step.measure is not None
        models_ = [self._trained(seed) for seed in step.seeds]
        alive = [m for m in models_ if m is not None]
        dead = [seed for seed, m in zip(step.seeds, models_, strict=True) if m is None]
        if dead and (step.measure.scope != "cell" or len(alive) < 2):
            return Record({}, "diverged", f"training of seed {', '.join(map(str, dead))} diverged"), {}
        inputs: dict[str, torch.Tensor] = {}
        for name, key in step.arrays:
            status, reason, arrays = self._arrays(name, key)
            if status != "ok":
                return Record({}, status, reason), {}
            inputs |= {k: torch.from_numpy(v) for k, v in arrays.items()}
        outcome: Outcome = step.measure.run(
            replace(self._job, checkpoints=checkpoints), step.settings, alive, inputs
        )
        arrays = {k: v.cpu().numpy() for k, v in outcome.arrays.items()}
        return Record(outcome.values, outcome.status, outcome.reason), {"arrays": arrays} if arrays else {}

    def _arrays(self, name: str, key: str) -> tuple[str, str, dict[str, Any]]:
        """Status, reason and arrays of an earlier step; done again if its files were damaged."""
        record = self._worker.store.read(name, key)
        arrays = self._worker.store.arrays(name, key, "arrays") if record and record.status == "ok" else {}
        if record is None or arrays is None:
            self.do(self._by_key[key])
            return self._arrays(name, key)
        return record.status, record.reason, arrays

    def _trained(self, seed: int) -> TrainedSeed | None:
        """The model of a seed with the weights to be measured; None if its training diverged."""
        if seed not in self._seeds:
            step = self._training[seed]
            record = self._worker.store.read("train", step.key)
            if record is not None and record.status == "diverged":
                return None
            weights = self._weights(record, step.key) if record is not None else None
            if weights is None:
                self.do(step)
                return self._trained(seed)
            model = self._fresh(seed)
            model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
            model.to(self._worker.device).eval()
            self._seeds[seed] = TrainedSeed(seed, model, flat_parameters(model))
        return self._seeds[seed]

    def _weights(self, record: Record, key: str) -> dict[str, Any] | None:
        """The weights to be measured; None if they were damaged or lost. Without an early stop the best ones."""
        wanted = self._worker.weights
        if wanted == "early-stopped" and "early_stopped_epoch" not in record.values:
            wanted = "best"
        return self._worker.store.arrays("train", key, wanted)

    def _fresh(self, seed: int) -> nn.Module:
        task, raw = self._cell.task, self._worker.raw
        model = models.build(
            task.model.name, task.model.options, input_shape=raw.input_shape, classes=raw.classes, seed=seed
        )
        return model.to(self._worker.device)

    def _progress(self, epoch: int, loss: float) -> None:
        step = self._step
        if step is None:
            return
        settings = self._cell.train if step.name == "train" else step.settings
        epochs = settings.epochs_on(len(self._job.train)) if isinstance(settings, Train | Connectivity) else 1
        self._worker.listener.advanced(step, epoch, epochs, loss)


def _training_values(trained: TrainedModel) -> dict[str, Any]:
    values: dict[str, Any] = {"epochs": trained.epochs, "best_epoch": trained.best_epoch}
    if trained.early_stopped_epoch is not None:
        values["early_stopped_epoch"] = trained.early_stopped_epoch
    return values | {f"running_{name}": list(column) for name, column in trained.history.items()}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread, in every engine: the number of threads changes the bits of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

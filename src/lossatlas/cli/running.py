"""What `lossatlas run` does, from a spec and a folder to results and figures in it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from lossatlas import files, registry, results, summary
from lossatlas.cli.explore import draw, labelled, note_rule
from lossatlas.cli.output import duration, note, say, size
from lossatlas.errors import SpecError, UserError
from lossatlas.measures.outputs import layer_problem
from lossatlas.measures.settings import CKA
from lossatlas.settings import canonical
from lossatlas.specs import Spec
from lossatlas.sweep import data_cache, journal, measured
from lossatlas.sweep.collect import collect
from lossatlas.sweep.cost import Estimate, estimate, example, model_of
from lossatlas.sweep.plan import Plan
from lossatlas.sweep.remaining import Remaining, remaining
from lossatlas.sweep.run import RunFolder, check_same_experiment, left_out, open_folder, write_plan
from lossatlas.tasks import data, losses, models
from lossatlas.tasks.data import RawData
from lossatlas.training import fine_tuning

SLOW_DATA = 1.0  # s: what takes longer to load is kept as arrays for the workers


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to begin: what its engine needs to know."""

    opened: RunFolder
    raw: RawData
    slow_data: bool
    plan: Plan
    predicted: Estimate
    left: Remaining
    aside: set[Path]  # what had been set aside before

    def again(self) -> Prepared:
        """The same run with what is left of it now."""
        return replace(self, left=remaining(self.plan, self.opened.store, self.predicted.seconds))


def prepare(spec: Spec, out: Path, store: Path | None) -> Prepared:
    """Check the folder and the data, and write the plan; raises UserError where something does not fit."""
    spec = fine_tuning.pinned(models.pinned(spec))
    opened = open_folder(out, store)
    check_same_experiment(opened, spec)
    if gone := left_out(opened, spec):
        note(
            f"This spec leaves out what {out} holds: {'; '.join(gone)}. The store keeps it, the results will not "
            "hold it; `lossatlas run` with the full spec brings it back without doing it again."
        )
    _prepare_folders(opened)
    aside = opened.store.aside()
    began = time.monotonic()
    raw = _loaded(spec)
    for line in raw.notes:
        note(line)
    fingerprint = raw.fingerprint()
    slow = time.monotonic() - began > SLOW_DATA
    planned = Plan(spec, fingerprint, len(raw.train_inputs))
    _check_sizes(planned, raw.facts())
    fine_tuning.check(spec, [planned.task(cell).model for cell in planned.cells], raw.facts())
    probed = estimate(planned, raw.facts())
    left = remaining(planned, opened.store, probed.seconds, sample=measured.MOST_MEASURED)
    found = [measured.look(opened.store, index, step) for index, step in left.sample]
    finished = [one for one in found if isinstance(one, measured.Finished)]
    predicted = replace(probed, seconds=measured.refined(planned, probed.seconds, finished))
    write_plan(opened, planned, predicted)
    return Prepared(opened, raw, slow, planned, predicted, left.taking(predicted.seconds), aside)


_kept: dict[str, RawData] | None = None  # by the settings that the data were loaded with


@contextmanager
def keeping_data() -> Iterator[None]:
    """Within it, runs on the same data load them once."""
    global _kept
    _kept = {}
    try:
        yield
    finally:
        _kept = None


def _loaded(spec: Spec) -> RawData:
    settings = spec.task.data
    kept = {} if _kept is None else _kept
    key = canonical([settings.name, settings.path, settings.options])
    if key not in kept:
        kept[key] = data.load(settings.name, settings.path, settings.options)
    return kept[key]


def keep_data(run: Prepared) -> None:
    """Keep the data as arrays for the workers, if they take long to load."""
    if run.slow_data:
        data_cache.keep(run.opened.store.root, run.raw, run.plan.fingerprint)


def announce(run: Prepared, where: str, workers: int) -> None:
    """Say how much there is to do."""
    spec, left = run.plan.spec, run.left
    note(
        f"{spec.name}: {len(run.plan) * len(spec.seeds)} models in {len(run.plan)} cells, {left.steps} of "
        f"{sum(left.total.values())} steps to do, about {duration(left.seconds / workers)} on {where}."
    )


def check_memory(run: Prepared, workers: int) -> None:
    """Raise UserError, before anything is trained, for processes that cannot fit into this machine's memory.

    At worst the workers have the largest cells in hand that are left.
    """
    if not run.left.steps:
        return
    have = machine_memory()
    memory = run.predicted.memories[list(run.left.cells)]
    largest = -np.sort(-memory)[:workers]
    needed = np.cumsum(largest)
    if needed[0] > have:
        cell = run.plan.cells[run.left.cells[int(memory.argmax())]]
        named = ", ".join(f"{axis.name} {value:g}" for axis, value in zip(run.plan.spec.axes, cell, strict=True))
        raise UserError(
            f"The cell {named} needs about {size(needed[0])} of memory, and this machine has {size(have)}. "
            "Use a larger machine, or leave it out of the spec."
        )
    if needed[-1] > have:
        raise UserError(
            f"{workers} workers of this run need about {size(needed[-1])} of memory, and this machine has "
            f"{size(have)}. Give --workers {int((needed <= have).sum())}."
        )


def machine_memory() -> int:
    """Bytes of this machine's memory, or of what its container may use."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # Of cgroups 2; elsewhere, and without a limit, no number stands there.
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(physical, int(text)) if text.isdigit() else physical


def load_data(planned: Plan, opened: RunFolder) -> RawData:
    """The data of a plan, decoded before if they were kept; raises UserError if they have changed since."""
    kept = data_cache.kept(opened.store.root, planned.fingerprint)
    if kept is not None:
        return kept
    task = planned.spec.task.data
    raw = data.load(task.name, task.path, task.options)
    if raw.fingerprint() != planned.fingerprint:
        raise UserError(
            f"The data {task.name!r} are not those that {opened.root} was planned with. Restore them, or run "
            f"`lossatlas run {opened.root}` to plan it anew."
        )
    return raw


def collected(run: Prepared, failures: Mapping[str, str]) -> xr.DataTree:
    """The results of all finished steps; a step that is found damaged is set aside, and missing from then on."""
    return collect(run.plan.spec, run.plan, run.opened.store, fingerprint=run.plan.fingerprint, failures=failures)


def finish(run: Prepared, tree: xr.DataTree) -> None:
    """Write the results with their phases, draw the figures, and say where they are."""
    opened = run.opened
    labels = labelled(tree)
    tree["phases"] = labels
    results.save(tree, opened.results_file)
    written = draw(tree, labels, opened.root / "figures")
    statuses = Counter(tree["models"].to_dataset()["status"].values.ravel().tolist())
    phases = Counter(p for p in labels["phase"].values.ravel().tolist() if p)
    named = ", ".join(f"{count} {name}" for name, count in sorted(phases.items()))
    for damaged in sorted(opened.store.aside() - run.aside):
        note(f"A damaged step was made again; it lies in {damaged}.")
    say(f"models: {', '.join(f'{count} {state}' for state, count in sorted(statuses.items()))}")
    if not statuses.keys() & {*summary.USABLE, "missing"}:
        note(
            "No model has learnt anything, so there is nothing to map. Train longer or at a lower rate, or take a "
            "larger --scale."
        )
    say(f"phases: {named or 'none could be told'}")
    note_rule(labels)
    say(f"results: {opened.results_file}")
    for path in sorted(written, key=lambda p: (p.name.startswith("phase_map"), p.suffix)):
        say(f"figure: {path}")


def plan_without_data(spec: Spec) -> tuple[registry.Facts, Plan]:
    """The plan from what is known of the data set; one's own data are loaded to learn their sizes."""
    entry = registry.DATA.get(spec.task.data.name)
    text_options = spec.task.data.vocabulary or spec.task.data.max_length  # make other sizes
    known = entry.facts if entry and not text_options else None
    facts = known or data.load(spec.task.data.name, spec.task.data.path, spec.task.data.options).facts()
    facts = facts.limited(spec.task.data.limit)
    planned = Plan(spec, "", facts.n_train)
    _check_sizes(planned, facts)
    return facts, planned


def _check_sizes(cells: Plan, facts: registry.Facts) -> None:
    """Refuse, before anything is trained, what does not fit the sizes of the data."""
    spec = cells.spec
    subset = "load.n_train" if "n_train" in spec.load else "task.data.n_train"
    batch = "temperature.batch_size" if "batch_size" in spec.temperature else "train.batch_size"
    problems: dict[str, None] = {}  # in their order, each once
    for cell in cells.cells:
        asked, batch_size = cells.task(cell).data.n_train or facts.n_train, cells.train(cell).batch_size
        if asked > facts.n_train:
            most = f"allowed are at most {facts.n_train}, the training samples"
            problems[f"{subset}: {asked} was given; {most}"] = None
        if batch_size > asked:
            most = f"allowed are at most {asked}, the training samples"
            problems[f"{batch}: {batch_size} was given; {most}"] = None
    if spec.train.augment and len(facts.input_shape) != 3:
        problems[
            f"train.augment: {list(spec.train.augment)} was given; it is for images (channels, height, width), "
            f"and the inputs have shape {facts.input_shape}"
        ] = None
    if not problems and (problem := _layer_problem(cells, facts)):
        problems[problem] = None
    if problems:
        raise SpecError(f"The spec {spec.name!r}", list(problems))


def _layer_problem(plan: Plan, facts: registry.Facts) -> str:
    """What is wrong with the layer that CKA is asked of, from a forward pass of the first cell's model."""
    settings = dict(plan.spec.measured()).get("cka")
    if not isinstance(settings, CKA) or settings.layer is None:
        return ""
    task = plan.task(plan.cells[0])
    with torch.random.fork_rng(devices=[]):
        return layer_problem(model_of(task.model, facts), losses.build(task.loss), example(2, facts), settings)


def _prepare_folders(opened: RunFolder) -> None:
    """Find out before the work, not after it, whether the folders take files; remove what the dead left there."""
    for folder in (opened.root, opened.store.root):
        probe = folder / files.temporary_name("probe")
        files.write_file(probe, b"")
        probe.unlink(missing_ok=True)
        files.remove_dead_temporaries(folder)
    for folder in (opened.root / "figures", opened.failed):
        files.remove_dead_temporaries(folder)
    opened.store.tidy()
    journal.tidy(opened.root)


def chosen_device(name: str) -> torch.device:
    """The device of a `--device` option; raises UserError where there is none such."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name!r} is unknown. Allowed are auto, cpu, cuda, cuda:N.")
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise UserError(
            f"--device {name!r}: PyTorch finds {found} GPUs here. Use --device cpu, or install a CUDA build."
        )
    return device

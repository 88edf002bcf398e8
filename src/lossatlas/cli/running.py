"""What `lossatlas run` does, from a spec and a folder to results and figures in it."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from lossatlas import files, registry, results
from lossatlas.cli.explore import draw, labelled, note_rule
from lossatlas.cli.output import Terminated, duration, note, say
from lossatlas.cli.progress import RunProgress
from lossatlas.errors import SpecError, UserError
from lossatlas.specs import Spec
from lossatlas.sweep.collect import collect
from lossatlas.sweep.cost import estimate
from lossatlas.sweep.plan import CellPlan, Plan, plan
from lossatlas.sweep.remaining import remaining
from lossatlas.sweep.run import RunFolder, check_same_experiment, left_out, open_folder, write_plan
from lossatlas.sweep.worker import Worker
from lossatlas.tasks import data


def run(spec: Spec, out: Path, store: Path | None, device: str) -> dict[str, str]:
    """Do a run in this process; returns the reasons of failed steps by their keys."""
    opened = open_folder(out, store)
    check_same_experiment(opened, spec)
    if gone := left_out(opened, spec):
        note(
            f"This spec leaves out what {out} holds: {'; '.join(gone)}. The store keeps it, the results will not "
            "hold it; `lossatlas run` with the full spec brings it back without doing it again."
        )
    _prepare(opened)
    chosen = chosen_device(device)
    raw = data.load(spec.task.data.name, spec.task.data.path)
    fingerprint = raw.fingerprint()
    cells = plan(spec, fingerprint)
    _check_sizes(cells, raw.facts())
    predicted = estimate(cells, raw.facts())
    write_plan(opened, cells, predicted)
    left = remaining(cells, opened.store, predicted.seconds)
    note(
        f"{spec.name}: {len(cells) * len(spec.seeds)} models in {len(cells)} cells, {left.steps} of "
        f"{sum(left.total.values())} steps to do, about {duration(left.seconds)} on one {chosen.type} process."
    )
    with RunProgress(predicted.of(cells), left) as progress:
        worker = Worker(opened.store, raw, spec.weights, out / "failed", progress, chosen)
        try:
            failures = worker.run(cells)
        except (KeyboardInterrupt, Terminated):
            note(f"Stopped. `lossatlas run {out}` continues.")
            raise
    _finish(spec, cells, opened, fingerprint, failures)
    return failures


def _finish(
    spec: Spec, cells: Sequence[CellPlan], opened: RunFolder, fingerprint: str, failures: Mapping[str, str]
) -> None:
    """Write the results with their phases, draw the figures, and say where they are."""
    tree = collect(spec, cells, opened.store, fingerprint=fingerprint, failures=failures)
    labels = labelled(tree)
    tree["phases"] = labels
    results.save(tree, opened.results_file)
    written = draw(tree, labels, opened.root / "figures")
    statuses = Counter(tree["models"].to_dataset()["status"].values.ravel().tolist())
    phases = Counter(p for p in labels["phase"].values.ravel().tolist() if p)
    named = ", ".join(f"{count} {name}" for name, count in sorted(phases.items()))
    for damaged in opened.store.damaged:
        note(f"A damaged step was made again; it lies in {damaged}.")
    say(f"models: {', '.join(f'{count} {state}' for state, count in sorted(statuses.items()))}")
    say(f"phases: {named or 'none could be told'}")
    note_rule(labels)
    say(f"results: {opened.results_file}")
    for path in sorted(written, key=lambda p: (p.name.startswith("phase_map"), p.suffix)):
        say(f"figure: {path}")


def plan_without_data(spec: Spec) -> tuple[registry.Facts, Plan]:
    """The plan from what is known of the data set; one's own data are loaded to learn their sizes."""
    entry = registry.DATA.get(spec.task.data.name)
    known = entry.facts if entry else None
    facts = known or data.load(spec.task.data.name, spec.task.data.path).facts()
    cells = plan(spec, "")
    _check_sizes(cells, facts)
    return facts, cells


def catch_termination() -> None:
    """Let SIGTERM raise Terminated, so that it ends a run as Ctrl-C does."""

    def stop(_signal: int, _frame: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, stop)


def _check_sizes(cells: Plan, facts: registry.Facts) -> None:
    """Refuse, before anything is trained, batches and subsets that are larger than the data."""
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
    if problems:
        raise SpecError(f"The spec {spec.name!r}", list(problems))


def _prepare(opened: RunFolder) -> None:
    """Find out before the work, not after it, whether the folders take files; remove what the dead left there."""
    for folder in (opened.root, opened.store.root):
        probe = folder / files.temporary_name("probe")
        files.write_file(probe, b"")
        probe.unlink(missing_ok=True)
        files.remove_dead_temporaries(folder)
    files.remove_dead_temporaries(opened.root / "figures")


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

"""`presets`, `plan`, `run`, `status`: from a spec to results."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lossatlas import presets as presets_
from lossatlas import specs
from lossatlas.cli.output import SOME_FAILED, duration, guarded, note, say, size, table
from lossatlas.errors import FileError, UserError
from lossatlas.specs import Spec

if TYPE_CHECKING:
    from lossatlas.sweep.cost import Estimate
    from lossatlas.sweep.plan import Plan
    from lossatlas.sweep.store import Store

SourceArgument = Annotated[
    str, typer.Argument(help="A TOML file, a preset's name, or a run folder.", metavar="SPEC")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Replace a key of the spec; may be repeated.", metavar="KEY=VALUE"),
]
ScaleOption = Annotated[float | None, typer.Option(help="Shrink axes, seeds and epochs to this fraction.")]
StoreOption = Annotated[
    Path | None,
    typer.Option(help="Keep finished steps here, to share them between runs.", envvar="LOSSATLAS_STORE"),
]
FolderArgument = Annotated[Path, typer.Argument(help="A run folder.", metavar="DIR", readable=False)]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
ENGINES = ("inline", "processes")
EngineOption = Annotated[
    str, typer.Option(help="inline: this process does the work; processes: worker processes of this machine.")
]

MOST_READ = 20_000  # steps whose records `status` opens to count how they ended


@guarded
def presets() -> None:
    """The named experiments, with the number of models they train."""
    rows = []
    for name in presets_.names():
        spec = specs.parse(presets_.text(name), f"preset {name}")
        cells = len(spec.cells())
        axes = " x ".join(f"{len(axis.values)} {axis.name}" for axis in spec.axes)
        models = cells * len(spec.seeds)
        task = f"{spec.task.model.name} on {spec.task.data.name}"
        rows.append([name, task, axes, str(len(spec.seeds)), str(models), str(models * spec.train.epochs)])
    table(["name", "task", "axes", "seeds", "models", "epochs"], rows)
    note("`lossatlas plan NAME` tells the time and disk that one takes here.")


@guarded
def plan(source: SourceArgument, settings: SetOption = None, scale: ScaleOption = None) -> None:
    """What a run would do and cost: models, epochs, time, memory, disk. Runs nothing."""
    from lossatlas.cli import running
    from lossatlas.sweep.cost import estimate

    spec = _spec(source, settings, scale)
    facts, cells = running.plan_without_data(spec)
    _print_plan(cells, estimate(cells, facts))


@guarded
def run(
    source: SourceArgument,
    out: Annotated[Path | None, typer.Option(help="The run folder [default: runs/NAME].")] = None,
    store: StoreOption = None,
    engine: EngineOption = "inline",
    workers: Annotated[
        int | None,
        typer.Option(help="Worker processes [default: one a core, or as many as the GPUs take].", min=1),
    ] = None,
    per_gpu: Annotated[int, typer.Option("--per-gpu", help="Worker processes on each GPU.", min=1)] = 1,
    device: DeviceOption = "auto",
    settings: SetOption = None,
    scale: ScaleOption = None,
) -> None:
    """Train and measure what is missing of a grid, label its phases and draw it. Run again, it continues."""
    from lossatlas.cli import engines

    spec = _spec(source, settings, scale)
    if engine not in ENGINES:
        raise UserError(f"--engine {engine!r} is unknown. Allowed are {', '.join(ENGINES)}.")
    chosen = engines.Engine(engine, workers, per_gpu, device)
    failures = engines.run(spec, _out(source, out, spec), store, chosen)
    if failures:
        note(f"{len(failures)} steps failed; the first: {next(iter(failures.values()))}")
        note("`lossatlas run` again tries them again; their traces are in the folder failed/.")
        raise typer.Exit(SOME_FAILED)


@guarded
def worker(
    folder: FolderArgument,
    shard: Annotated[int, typer.Option(help="Which shard, from 0 on.", min=0)] = 0,
    of: Annotated[int, typer.Option(help="Of how many shards; the cells are dealt to them in turn.", min=1)] = 1,
    pipe: Annotated[bool, typer.Option("--pipe", help="Take cells from standard input.", hidden=True)] = False,
    device: DeviceOption = "auto",
) -> None:
    """Do the cells of one shard of a planned run: what `lossatlas run` starts, and any other scheduler may."""
    from lossatlas.cli import working

    if shard >= of:
        raise UserError(f"--shard {shard} is not one of --of {of} shards. Allowed are 0 to {of - 1}.")
    if pipe:
        working.from_pipe(folder, device)
        return
    failures = working.of_shard(folder, device, f"shard {shard} of {of}", working.shard(folder, shard, of))
    if failures:
        note(f"{len(failures)} steps failed; the first: {next(iter(failures.values()))}")
        raise typer.Exit(SOME_FAILED)


@guarded
def status(
    folder: FolderArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """How far a run is: steps done, models diverged, steps failed."""
    from lossatlas.sweep.remaining import remaining
    from lossatlas.sweep.run import open_folder, saved_plan

    saved = saved_plan(folder)
    store = open_folder(folder, None).store
    left = remaining(saved.plan, store, saved.seconds)
    states, damaged = _statuses(saved.plan, store) if sum(left.done.values()) <= MOST_READ else ({}, [])
    failed = sorted({path.name.split("-")[0] for path in (folder / "failed").glob("*.json")})
    if as_json:
        steps = {
            name: {"done": left.done[name], "total": total, "status": dict(states.get(name, {}))}
            for name, total in left.total.items()
        }
        facts = {"steps": steps, "failed": failed, "damaged": damaged}
        say(json.dumps({**facts, "predicted_seconds_left": round(left.seconds, 1)}, indent=1))
        return
    rows = []
    for name, total in left.total.items():
        found = ", ".join(f"{count} {state}" for state, count in sorted(states.get(name, {}).items()))
        rows.append([name, str(left.done[name]), str(total), found])
    table(["step", "done", "of", "status"], rows)
    finished, of = sum(left.done.values()), sum(left.total.values())
    share = f"{finished} of {of} steps done ({100 * finished // of}%)"
    note(f"{share}, about {duration(left.seconds)} left in one process." if finished < of else f"{share}.")
    if failed:
        note(f"{len(failed)} steps have failed at least once: see {folder / 'failed'}.")
    if damaged:
        note(f"{len(damaged)} steps are damaged; `lossatlas run {folder}` sets them aside and makes them again.")


def _statuses(plan: Plan, store: Store) -> tuple[dict[str, Counter[str]], list[str]]:
    """How the finished steps ended, by their names, and the keys of those that are damaged; changes nothing."""
    from lossatlas.files import Damaged

    states: dict[str, Counter[str]] = {}
    damaged = []
    for cell in plan.cells:
        for step in plan.steps(cell):
            try:
                record = store.look(step.name, step.key)
            except Damaged:
                damaged.append(step.key)
                continue
            if record is not None:
                states.setdefault(step.name, Counter())[record.status] += 1
    return states, damaged


def _spec(source: str, settings: list[str] | None, scale: float | None) -> Spec:
    """The spec of a preset, a file or a run folder, with --set and --scale applied."""
    overrides = dict(assignment(text, "--set", "train.epochs=10") for text in settings or [])
    path = Path(source)
    if source in presets_.names() and not path.exists():
        spec = specs.parse(presets_.text(source), f"preset {source}", overrides)
    elif path.is_dir():
        from lossatlas.sweep.run import saved_spec

        raw = saved_spec(path).model_dump(mode="json", exclude_unset=True)
        spec = specs.validate(specs.overridden(raw, overrides), str(path))
    elif path.is_file():
        spec = specs.read(path, overrides)
    else:
        raise FileError(
            f"{source!r} is neither a file, nor a folder, nor a preset. Presets are {', '.join(presets_.names())}."
        )
    return spec if scale is None else specs.scaled(spec, scale)


def assignment(text: str, option: str, example: str) -> tuple[str, Any]:
    """The key and the value of an option KEY=VALUE: a TOML value, or else a text, which needs no quotes."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(
            f"{option} {text!r} is no assignment. Write {option} key=value, such as {option} {example}."
        )
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _out(source: str, out: Path | None, spec: Spec) -> Path:
    from lossatlas.sweep.run import default_folder

    if out is None and Path(source).is_dir():
        return Path(source)
    return out or default_folder(spec.name)


def _print_plan(plan: Plan, estimate: Estimate) -> None:
    spec = plan.spec
    models = len(plan) * len(spec.seeds)
    epochs = sum(plan.train(cell).epochs for cell in plan.cells) * len(spec.seeds)
    rows = [
        ["name", spec.name],
        *[[f"{axis.role} axis", f"{axis.name}: {_listed(axis.values)}"] for axis in spec.axes],
        ["cells", str(len(plan))],
        ["models", str(models)],
        ["epochs", str(epochs)],
        ["steps", ", ".join(f"{count} {name}" for name, count in plan.counts().items())],
        ["time", f"about {duration(estimate.total(plan))} in one process on this CPU"],
        ["memory", f"about {size(estimate.memory)}"],
        ["disk", f"up to {size(estimate.disk)}"],
    ]
    table(["plan", ""], rows)


def _listed(values: Sequence[float]) -> str:
    """All values, or the first and the last of many."""
    shown = [f"{v:g}" for v in values]
    return " ".join(shown if len(shown) <= 20 else [*shown[:3], "...", *shown[-1:], f"({len(shown)} values)"])

"""`plan`, `run`, `worker`, `cancel`: from a spec to results."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lossatlas import presets as presets_
from lossatlas import specs
from lossatlas.cli.output import SOME_FAILED, duration, guarded, note, say, size, table
from lossatlas.errors import FileError, UserError
from lossatlas.specs import Spec
from lossatlas.specs.checks import hint
from lossatlas.studies.reading import is_study, is_study_folder

if TYPE_CHECKING:
    from lossatlas.cli.variants import Needs
    from lossatlas.registry import Facts
    from lossatlas.studies.schema import Study
    from lossatlas.sweep.engine import Engine
    from lossatlas.sweep.plan import Plan

SourceArgument = Annotated[
    str,
    typer.Argument(
        help="A TOML file (or the spec.json of a run), a preset's name, or a run folder.", metavar="SPEC"
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Replace a key of the spec; may be repeated.", metavar="KEY=VALUE"),
]
ScaleOption = Annotated[
    float | None,
    typer.Option(
        help="Shrink a preset or a spec file to about this fraction: axes, seeds, epochs, samples, test samples "
        "and a model's width; of a study models, epochs, images, widths and all sizes. It comes after --set: what "
        "is given there shrinks, too."
    ),
]
StoreOption = Annotated[
    Path | None,
    typer.Option(help="Keep finished steps here, to share them between runs.", envvar="LOSSATLAS_STORE"),
]
FolderArgument = Annotated[Path, typer.Argument(help="A run folder.", metavar="DIR", readable=False)]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
EngineOption = Annotated[
    str | None,
    typer.Option(
        help="inline: this process does the work; processes: worker processes of this machine; slurm: jobs of a "
        "cluster [default: as the run folder was last worked on, else inline]."
    ),
]


@guarded
def plan(source: SourceArgument, settings: SetOption = None, scale: ScaleOption = None) -> None:
    """What a run would do and cost: models, epochs, time, memory, disk. Runs nothing."""
    from lossatlas.cli import variants

    if is_study(source):
        from lossatlas.cli import study

        study.plan(_study(source, settings, scale))
        return
    spec = _spec(source, settings, scale)
    facts, plans = variants.plans(spec)
    _print_plan(spec, plans[0], facts, variants.together(plans, facts))


@guarded
def run(
    source: SourceArgument,
    out: Annotated[Path | None, typer.Option(help="The run folder [default: runs/NAME].")] = None,
    store: StoreOption = None,
    engine: EngineOption = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="With --engine processes: how many [default: one a core, or as many as the GPUs take].", min=1
        ),
    ] = None,
    per_gpu: Annotated[
        int | None,
        typer.Option("--per-gpu", help="With --engine processes: how many on each GPU [default: 1].", min=1),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N [default: auto].")] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            "--slurm", help="A setting of [slurm], over those of the spec; may be repeated.", metavar="KEY=VALUE"
        ),
    ] = None,
    write_only: Annotated[
        bool, typer.Option("--write-only", help="With --engine slurm: write the batch scripts, submit nothing.")
    ] = False,
    settings: SetOption = None,
    scale: ScaleOption = None,
) -> None:
    """Train and measure what is missing of a grid, label its phases and draw it. Run again, it continues."""
    from lossatlas.sweep.engine import chosen as chosen_engine

    if is_study(source):
        from lossatlas.cli import study

        asked = _study(source, settings, scale)
        folder = study.out_of(source, out, asked)
        wanted = {"name": engine, "workers": workers, "per_gpu": per_gpu, "device": device}
        study.refuse({"--engine slurm": engine == "slurm", "--slurm": slurm, "--write-only": write_only})
        chosen = chosen_engine(folder, wanted)
        _check_workers(chosen, workers, per_gpu)
        if failures := study.run(asked, folder, store, chosen):
            note(f"{len(failures)} steps failed; the first: {next(iter(failures.values()))}")
            raise typer.Exit(SOME_FAILED)
        return
    spec = _spec(source, settings, scale)
    folder = _out(source, out, spec)
    flags = dict(assignment(text, "--slurm", "partition=gpu") for text in slurm or [])
    given = {"name": engine, "workers": workers, "per_gpu": per_gpu, "device": device, "slurm": flags}
    chosen = chosen_engine(folder, given)
    _check_workers(chosen, workers, per_gpu)
    if write_only and chosen.name != "slurm":
        raise UserError(f"--write-only was given, and the engine is {chosen.name}. Give --engine slurm.")
    from lossatlas.cli import engines, variants

    kind = variants if spec.variants else engines
    if write_only:
        for script in kind.write_only(spec, folder, store, chosen):
            say(f"sbatch {shlex.quote(str(script))}")
        note(f"These lines submit it. When the jobs are done, `lossatlas run {folder}` writes the results.")
        return
    failures = kind.run(spec, folder, store, chosen)
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
    shards: Annotated[
        Path | None, typer.Option(help="A file of shards, as in DIR/slurm/001/shards.json, seen from DIR.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Worker processes that share the shard.", min=1)] = 1,
    device: DeviceOption = "auto",
) -> None:
    """Do the cells of one shard of a planned run: what `lossatlas run` starts, and any other scheduler may."""
    from lossatlas.cli import working

    if is_study_folder(folder):
        from lossatlas.cli import study

        if failures := study.worker(folder, shard, of, device):
            note(f"{len(failures)} steps failed; the first: {next(iter(failures.values()))}")
            raise typer.Exit(SOME_FAILED)
        return
    if pipe:
        working.from_pipe(folder, device)
        return
    if shards is not None:
        name, cells = f"{shards.parent.name}-{shard}", working.dealt(folder, shards, shard)
    elif shard < of:
        name, cells = f"{shard} of {of}", working.shard(folder, shard, of)
    else:
        raise UserError(f"--shard {shard} is not one of --of {of} shards. Allowed are 0 to {of - 1}.")
    if workers > 1:
        failures = working.shared(folder, device, name, cells, workers)
    else:
        failures = working.of_shard(folder, device, f"shard {name}", cells)
    if failures:
        note(f"{len(failures)} steps failed; the first: {next(iter(failures.values()))}")
        raise typer.Exit(SOME_FAILED)


@guarded
def cancel(folder: FolderArgument) -> None:
    """End all jobs of a run in Slurm; what is finished is kept, and `lossatlas run` continues."""
    from lossatlas.sweep import slurm
    from lossatlas.sweep.run import run_folders

    if is_study_folder(folder):
        raise UserError(f"{folder} holds a study, which has no jobs: Ctrl-C ends the command that works on it.")
    if not (folder / "spec.json").is_file():
        raise FileError(
            f"{folder} is no run folder: it holds no spec.json. Give a folder that `lossatlas run` made."
        )
    slurm.check_installed()
    try:
        ended = [task for each in run_folders(folder) for task in slurm.cancel(each)]
    except slurm.NotNow as error:
        raise UserError(f"Slurm does not answer ({error}). Try again later.") from error
    say(f"{len(ended)} jobs were cancelled. `lossatlas run {folder}` continues.")


def _check_workers(engine: Engine, workers: int | None, per_gpu: int | None) -> None:
    """Refuse a number of worker processes for an engine that starts none."""
    for option, given in (("--workers", workers), ("--per-gpu", per_gpu)):
        if given is not None and engine.name != "processes":
            others = ", or for the workers of a task --slurm per_task=N" if engine.name == "slurm" else ""
            raise UserError(
                f"{option} {given} was given, and the engine is {engine.name}, which starts no worker processes. "
                f"Give --engine processes{others}, or leave it out."
            )


def _spec(source: str, settings: list[str] | None, scale: float | None) -> Spec:
    """The spec of a preset, a file or a run folder, with --set and --scale applied."""
    overrides = dict(assignment(text, "--set", "train.epochs=10") for text in settings or [])
    path = Path(source)
    _check_scaled(path, scale)
    if source in presets_.names() and not path.exists():
        spec = specs.parse(presets_.text(source), f"preset {source}", overrides)
    elif path.is_dir():
        from lossatlas.sweep.run import saved_spec

        raw = saved_spec(path).model_dump(mode="json", exclude_unset=True)
        spec = specs.validate(specs.overridden(raw, overrides), str(path))
    elif path.is_file():
        spec = specs.read(path, overrides)
    else:
        raise FileError(f"{source!r} is neither a file, nor a folder, nor a preset. {presets_for(source)}")
    if scale is not None and spec.reduced:
        raise UserError(
            f"--scale {scale:g} was given, and {source} is smaller already: {spec.reduced}. Leave it out."
        )
    return spec if scale is None else specs.scaled(spec, scale)


def _check_scaled(path: Path, scale: float | None) -> None:
    """Refuse to scale a folder: what it holds was made at its own size."""
    if scale is not None and path.is_dir():
        raise UserError(
            f"--scale {scale:g} was given for the folder {path}, which has a size of its own; --scale is for a "
            "preset or a spec file. Leave it out to continue the folder, or give its preset or spec file and "
            "another --out."
        )


def presets_for(name: str) -> str:
    """The presets in a sentence, and which of them was probably meant."""
    known = [*presets_.names(), *presets_.studies()]
    same = [each for each in known if each.endswith(f"/{name}")]
    meant = f". Did you mean {' or '.join(same)}?" if same else hint(name, known) or "."
    return f"Presets are {', '.join(known)}{meant}"


def _study(source: str, settings: list[str] | None, scale: float | None) -> Study:
    """The study of a preset, a file or a folder, with --set and --scale applied."""
    from lossatlas.studies import reading

    _check_scaled(Path(source), scale)
    found = reading.read(source, dict(assignment(text, "--set", "sizes.images=100") for text in settings or []))
    return found if scale is None else reading.scaled(found, scale)


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


def epochs(plan: Plan, facts: Facts) -> int:
    """The epochs of all models of a plan."""
    samples = [plan.task(cell).data.n_train or facts.n_train for cell in plan.cells]
    each = [plan.train(cell).epochs_on(n) for cell, n in zip(plan.cells, samples, strict=True)]
    return sum(each) * len(plan.spec.seeds)


def _print_plan(spec: Spec, plan: Plan, facts: Facts, needs: Needs) -> None:
    models = len(plan) * len(spec.seeds)
    rows = [
        ["name", spec.name],
        *[[f"{axis.role} axis", f"{axis.name}: {_listed(axis.values)}"] for axis in spec.axes],
        *([["variants", ", ".join(spec.variants)]] if spec.variants else []),
        *([["reduced", spec.reduced]] if spec.reduced else []),
        ["cells", str(len(plan))],
        ["models", str(models)],
        ["epochs", str(epochs(plan, facts))],
        ["steps", ", ".join(f"{count} {name}" for name, count in needs.steps.items())],
        ["time", f"about {duration(needs.seconds)} in one process on this CPU"],
        ["memory", f"about {size(needs.memory)}"],
        ["disk", f"up to {size(needs.disk)}"],
    ]
    table(["plan", ""], rows)


def _listed(values: Sequence[float]) -> str:
    """All values, or the first and the last of many."""
    shown = [f"{v:g}" for v in values]
    return " ".join(shown if len(shown) <= 20 else [*shown[:3], "...", *shown[-1:], f"({len(shown)} values)"])

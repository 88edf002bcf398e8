"""`presets`: the named experiments, as a table or as the text of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lossatlas import presets as presets_
from lossatlas import specs
from lossatlas.cli.output import duration, guarded, note, say, table
from lossatlas.cli.sweep import epochs, presets_for
from lossatlas.errors import UserError

if TYPE_CHECKING:
    from lossatlas.sweep.flops import Machine


@guarded
def presets(
    name: Annotated[
        str | None,
        typer.Argument(help="Print the TOML text of this one: the start of a spec of your own.", metavar="NAME"),
    ] = None,
) -> None:
    """The named experiments, with the number of models they train and what that takes; or the text of one."""
    if name is not None:
        _print(name)
        return
    from lossatlas.cli import study
    from lossatlas.cli.progress import Stages
    from lossatlas.sweep import flops

    machines = flops.this_machine(), flops.GPU
    grids, studies = presets_.names(), presets_.studies()
    rows = []
    with Stages() as progress:
        counted = progress.stage("counting operations")
        for name in (*grids, *studies):
            rows.append(study.preset_row(name, *machines) if name in studies else _row(name, *machines))
            counted(len(rows), len(grids) + len(studies))
    table(["name", "task", "axes", "seeds", "models", "epochs", "one core here", "one GPU"], rows)
    note(
        "Times are from the operations counted: of one process at the speed of a small ResNet18 measured here, "
        "and of a GPU assumed to sustain 10 TFLOP/s. `lossatlas plan NAME` looks closer."
    )
    if any(row[-1].startswith(">") for row in rows):
        from lossatlas.tasks.models import torchvision_problem

        why = torchvision_problem() or "`lossatlas plan NAME` names them"
        note(f"After > the models that cannot be built here are not counted: {why}.")


def _print(name: str) -> None:
    """The file of a preset as it is: its comments say what was chosen where the papers are silent."""
    if name not in presets_.texts():
        raise UserError(f"There is no preset {name!r}. {presets_for(name)}")
    say(presets_.text(name).rstrip("\n"))
    folder = name.split("/")[0]
    if name in presets_.studies():
        shared = f"{folder}/{presets_.SHARED}"
        note(f"All studies share a recipe, data and models, which stand in `lossatlas presets {shared}`.")


def _row(name: str, *machines: Machine) -> list[str]:
    """What `presets` tells of a grid."""
    from lossatlas.cli import variants
    from lossatlas.sweep import flops

    spec = specs.parse(presets_.text(name), f"preset {name}")
    facts, plans = variants.plans(spec)
    models = len(plans[0]) * len(spec.seeds)
    axes = " x ".join(f"{len(axis.values)} {axis.name}" for axis in spec.axes)
    task = f"{spec.task.model.name} on {spec.task.data.name}"
    costs = [flops.costs_on(machine) for machine in machines]
    times = [duration(variants.together(plans, facts, each).seconds) for each in costs]
    return [name, task, axes, str(len(spec.seeds)), str(models), str(epochs(plans[0], facts)), *times]

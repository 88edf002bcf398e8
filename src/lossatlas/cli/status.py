"""`status` and `verify`: how far a run is, and whether what it stored is sound. Neither changes a run unasked."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lossatlas.cli.output import SOME_FAILED, drawn, duration, guarded, note, say, strict_json, table
from lossatlas.cli.sweep import FolderArgument
from lossatlas.studies.reading import is_study_folder

if TYPE_CHECKING:
    from rich.console import Group

    from lossatlas.sweep.status import Status

REDRAW = 3.0  # s between two looks, at least; a look itself may take a tenth of the time
SHOWN = 20  # workers, failures and damaged steps that are listed; `--json` has them all

Table = tuple[Sequence[str], list[list[str]]]


@guarded
def status(
    folder: FolderArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Look until all is done, or has failed and nobody is at work: exit code 1. "
            "Of a study: until all is done.",
        ),
    ] = False,
) -> None:
    """How far a run is: steps done and how they ended, what runs where, what failed and why, the time left."""
    if other := _of_other_kind(folder):
        if watch:
            _follow(other, folder, as_json=as_json)
        else:
            other.status(folder, as_json=as_json)
        return
    from lossatlas.sweep.status import Observer

    observer = Observer(folder)
    if watch:
        _watch(observer.look, folder, as_json=as_json)
        return
    found = observer.look()
    if as_json:
        say(strict_json(found.to_dict(), indent=1))
        return
    for header, rows in _tables(found):
        table(header, rows)
    for sentence in _sentences(found, folder):
        note(sentence)


@guarded
def verify(
    folder: FolderArgument,
    repair: Annotated[bool, typer.Option("--repair", help="Set damaged steps aside, to be made again.")] = False,
) -> None:
    """Read all that a run stored and compare it with its check sums: exit code 1 if something is damaged."""
    from lossatlas.cli.progress import Stages
    from lossatlas.sweep.verify import Checked, verify

    if is_study_folder(folder):
        from lossatlas.cli import study_status

        if study_status.verify(folder, repair=repair):
            raise typer.Exit(SOME_FAILED)
        return
    checked, damaged, mendable, aside = Checked(), 0, 0, 0
    with Stages() as progress:
        for damage in verify(folder, checked, progress.stage):
            damaged += 1
            for problem in damage.problems:
                say(f"{damage.what}: {problem}")
            mendable += damage.set_aside is not None
            if repair and damage.set_aside is not None:
                damage.set_aside()
                aside += 1
    steps, checkpoints = len(checked.steps), len(checked.checkpoints)
    note(f"{steps} steps and {checkpoints} checkpoints read, {damaged or 'nothing'} damaged.")
    if not damaged:
        return
    if aside:
        note(f"{aside} set aside in the store's damaged/; `lossatlas run {folder}` makes again what is missing.")
    elif mendable:
        note(
            f"Nothing was changed. `lossatlas verify {folder} --repair` sets {mendable} of these aside, "
            f"`lossatlas run {folder}` then makes again what is missing."
        )
    else:
        note("Nothing was changed, and nothing can be set aside: the lines say what helps.")
    raise typer.Exit(SOME_FAILED)


def _of_other_kind(folder: Path) -> Any:
    """The module that tells of a folder of variants, or of a study; None for an ordinary run."""
    from lossatlas.sweep.run import variant_folders

    if variant_folders(folder):
        from lossatlas.cli import variants_status

        return variants_status
    if is_study_folder(folder):
        from lossatlas.cli import study_status

        return study_status
    return None


def _follow(other: Any, folder: Path, *, as_json: bool) -> None:
    """Tell how many steps are done whenever that has changed, until the run is over; Ctrl-C ends it too."""
    told = None
    try:
        while True:
            began = time.monotonic()
            found = other.state(folder)
            done, total = other.counted(found)
            if found != told:
                say(strict_json(found) if as_json else f"{done} of {total} steps done.")
            if done == total:
                return
            if other.is_over(folder):
                note(f"The others have failed, and nobody is at work. `lossatlas run {folder}` tries them again.")
                raise typer.Exit(SOME_FAILED)
            told = found
            time.sleep(max(REDRAW, 9 * (time.monotonic() - began)))
    except KeyboardInterrupt:
        return


def _watch(look: Any, folder: Path, *, as_json: bool) -> None:
    """Look until the run is over; Ctrl-C ends it too, which is no error."""
    if as_json or not sys.stdout.isatty():
        last = _look_on(look, lambda found: say(strict_json(found.to_dict()) if as_json else _line(found)))
    else:
        from rich.live import Live

        with Live(auto_refresh=False) as live:
            last = _look_on(look, lambda found: live.update(_drawn(found), refresh=True))
    if last is not None and last.left.steps:
        for sentence in _sentences(last, folder)[1:]:
            note(sentence)
        raise typer.Exit(SOME_FAILED)


def _look_on(look: Any, show: Any) -> Status | None:
    """The state in which the run is over; None if Ctrl-C came before."""
    try:
        while True:
            began = time.monotonic()
            found: Status = look()
            show(found)
            if found.is_over:
                return found
            time.sleep(max(REDRAW, 9 * (time.monotonic() - began)))
    except KeyboardInterrupt:
        return None


def _drawn(found: Status) -> Group:
    from rich.console import Group
    from rich.text import Text

    return Group(*(drawn(header, rows) for header, rows in _tables(found)), Text(_line(found)))


def _tables(found: Status) -> list[Table]:
    """The steps, and, as far as there are some, the workers and what failed or is damaged."""
    tables = [_steps(found), _workers(found), _failures(found)]
    return [(header, rows) for header, rows in tables if rows]


def _steps(found: Status) -> Table:
    done = found.left.done
    some = f" of {found.looked_at} looked at" if found.looked_at < sum(done.values()) else ""
    rows = []
    for name, total in found.left.total.items():
        ended = ", ".join(f"{count} {state}" for state, count in sorted(found.statuses.get(name, {}).items()))
        rows.append([name, str(done[name]), str(total), ended])
    return ["step", "done", "of", f"status{some}"], rows


def _workers(found: Status) -> Table:
    rows = []
    for state, notes in (("at work", found.at_work), ("silent", found.silent)):
        for told in notes[:SHOWN]:
            now = time.time()
            age = now - (told["since"] if state == "at work" else told["at"])
            hand = f"{told['step']} of cell {_values(told['cell'])}, seeds {_values(told['seeds'])}"
            part = f"{100 * told['fraction']:.0f}%" if told["fraction"] else ""
            where = f"{told['host']} {told['job'] or told['pid']}"
            rows.append([told["worker"], where, state, hand, part, duration(max(0.0, age))])
    return ["worker", "where", "state", "step in hand", "done", "for"], rows


def _failures(found: Status) -> Table:
    rows = []
    for failure in found.failed[:SHOWN]:
        rows.append([failure["step"], "failed", f"{failure['reason']} (attempt {failure['attempts']})"])
    for broken in found.damaged[:SHOWN]:
        rows.append([broken.step.name, "damaged", broken.problem])
    return ["step", "state", "why"], rows


def _line(found: Status) -> str:
    """Where it is, in one sentence."""
    left = found.left
    done, total = sum(left.done.values()), sum(left.total.values())
    cells = f"{len(left.missing) - len(left.cells)} of {len(left.missing)} cells"
    told = f"{done} of {total} steps done ({_percent(found.share)}), {cells}"
    if not left.steps:
        return f"{told}."
    workers = len(found.at_work)
    where = f"{workers} worker{'s' * (workers > 1)}" if workers else "one process"
    rate = f", {found.per_minute:.3g} steps a minute" if found.per_minute is not None and workers else ""
    return f"{told}; about {duration(found.seconds_to_go)} left on {where}{rate}."


def _percent(share: float) -> str:
    return f"{int(100 * share)}%" if math.isfinite(share) else "?%"  # rounded down: 100% is all


def _sentences(found: Status, folder: Path) -> list[str]:
    told = [_line(found)]
    if found.left.steps and not found.at_work:
        told.append(f"No worker tells that it is at work; `lossatlas run {folder}` continues.")
    if found.failed:
        told.append(
            f"Failed steps: {len(found.failed)}. `lossatlas run {folder}` tries them again; their traces are in "
            f"{folder / 'failed'}."
        )
    if found.damaged:
        told.append(
            f"Damaged steps: {len(found.damaged)}. `lossatlas run {folder}` sets them aside and makes them again."
        )
    return told


def _values(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)

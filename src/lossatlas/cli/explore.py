"""`phases`, `figures`: from results to labels and pictures; reads files only, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lossatlas.cli.output import guarded, note, say, table
from lossatlas.errors import FileError, UserError

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from lossatlas.findings.columns import Place

_MOST_SLICES = 3

Source = Annotated[
    Path,
    typer.Argument(
        help="A run folder, a results.nc, or the published archive or folder.",
        metavar="SOURCE",
        readable=False,  # whoever opens it says what is wrong
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A threshold: ln_trace, train_loss, mode_connectivity or cka. "
        "It wins over --auto and the run's spec.",
        metavar="KEY=VALUE",
    ),
]
AutoOption = Annotated[
    bool | None,
    typer.Option(
        "--auto/--no-auto",
        help="Derive from the grid the thresholds that neither --set nor the run's spec gives "
        "[default: as the run's spec says].",
        show_default=False,
    ),
]
OutOption = Annotated[Path | None, typer.Option(help="Write the table here as CSV.")]


@guarded
def phases(source: Source, out: OutOption = None, settings: SetOption = None, auto: AutoOption = None) -> None:
    """Label every cell with its phase, its margin and its probability under resampling of the seeds."""
    from lossatlas import files
    from lossatlas import phases as phases_

    labels = labelled(opened(source), settings, auto=auto)
    header, rows = phases_.table(labels)
    if out is not None:
        files.write_file(out, phases_.to_csv(labels).encode())
    flat = {name: labels[name].transpose(*header[:-3]).values.ravel() for name in ("status", "reason")}
    full = [[*row, *map(str, notes)] for row, *notes in zip(rows, flat["status"], flat["reason"], strict=True)]
    table([*header, "status", "reason"], full)
    note_rule(labels)
    if out is not None:
        note(f"written: {out}")


@guarded
def figures(
    source: Source,
    out: Annotated[Path, typer.Option(help="The folder for the figures.")],
    settings: SetOption = None,
    auto: AutoOption = None,
    limits: Annotated[str, typer.Option(help="Colour limits: data, or published as in [Yang2021].")] = "data",
) -> None:
    """Draw phase maps, the seven panels, traces, slices through Phase III and connectivity curves (PDF, PNG)."""
    if limits not in ("data", "published"):
        raise UserError(f"--limits {limits!r} is unknown. Allowed are data and published.")
    tree = opened(source)
    for path in draw(
        tree, labelled(tree, settings, auto=auto), out, limits="data" if limits == "data" else "published"
    ):
        say(str(path))


def opened(source: Path, *, also: str = "") -> xr.DataTree:
    """The results of a grid; of a run that is not finished those that are there, with a note.

    Raises FileError where there are none, with the way out; `also` are words for what else may be given.
    """
    from lossatlas.published import load_source
    from lossatlas.studies.reading import is_study_folder, saved_store
    from lossatlas.sweep.run import is_begun

    if is_begun(source):
        from lossatlas.cli.unfinished import results_of

        return results_of(source)
    if is_study_folder(source):
        store = saved_store(source) or source / "store"
        raise FileError(
            f"{source} is the folder of a study, which has no grid and no phases: {source / 'index.md'} tells its "
            f"results, {source / 'figures'} shows them, and `lossatlas run {source}` draws them anew. `lossatlas "
            f"report` takes one of them: give a file {store}/local-*/*/*/dataset.nc."
        )
    return load_source(source, also=also)


def labelled(tree: xr.DataTree, settings: list[str] | None = None, *, auto: bool | None = None) -> xr.Dataset:
    """The phases of results; a threshold is that of the options, else of the run's spec, else auto or the default.

    `auto` None: as the run's spec says.
    """
    from lossatlas import phases as phases_

    asked: dict[str, Any] = json.loads(tree.attrs["spec"]).get("phases", {}) if "spec" in tree.attrs else {}
    given = {name: value for name, value in asked.items() if name != "auto" and value is not None}
    if settings:
        given |= dict(_threshold(text) for text in settings)
    automatic = bool(asked.get("auto")) if auto is None else auto
    return phases_.label(tree, thresholds=given, auto=automatic)


def _threshold(text: str) -> tuple[str, float]:
    from dataclasses import fields

    from lossatlas.phases import Thresholds

    allowed = [f.name for f in fields(Thresholds)]
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or name not in allowed:
        raise UserError(
            f"--set {text!r} sets no threshold. Write --set NAME=NUMBER with one of {', '.join(allowed)}."
        )
    try:
        return name, float(value)
    except ValueError:
        raise UserError(f"--set {text!r}: {value!r} is no number.") from None


def note_rule(labels: xr.Dataset) -> None:
    """Say on standard error what labels rest on: thresholds with their origin, and what resampling holds fixed."""
    thresholds, origins, sides = (json.loads(labels.attrs[name]) for name in ("thresholds", "origin", "sides"))
    meanings = {"auto": "auto: derived from this grid"}
    for name, threshold in thresholds.items():
        if labels[name].isnull().all():
            note(f"{name} has no value in any cell.")
        elif name in sides:
            note(f"{name} shows no transition in this grid (auto): by it all cells are {sides[name]}.")
        else:
            note(f"Threshold of {name}: {threshold:.6g} ({meanings.get(origins[name], origins[name])}).")
    fixed = labels.attrs["held_fixed"] or "nothing is held fixed"
    note(f"Probabilities resample the seeds at these thresholds; {fixed}.")


def lacking(tree: xr.DataTree) -> str:
    """What results lack, for captions: the steps that are not done, and what `--scale` has taken away."""
    reduced = str(json.loads(tree.attrs.get("spec", "{}")).get("reduced", ""))
    unfinished = f"unfinished: {tree.attrs['unfinished']}" if "unfinished" in tree.attrs else ""
    return "; ".join(filter(None, [unfinished, reduced]))


def draw(
    tree: xr.DataTree, labels: xr.Dataset, folder: Path, *, limits: Literal["data", "published"] = "data"
) -> list[Path]:
    """Draw all figures of results into a folder; returns the files."""
    from lossatlas import figures as figures_
    from lossatlas.figures.captions import captioned

    written = []
    lacks = lacking(tree)
    for name, figure in _every_figure(tree, labels, limits):
        written += figures_.save(captioned(figure, lacks) if lacks else figure, folder / name)
    return written


def _every_figure(
    tree: xr.DataTree, labels: xr.Dataset, limits: Literal["data", "published"]
) -> Iterator[tuple[str, Figure]]:
    """A set for every value of further load axes, the phase maps of all of them, the slices through Phase III."""
    from lossatlas import figures as figures_
    from lossatlas import summary
    from lossatlas.figures.grid import place_title
    from lossatlas.findings import columns
    from lossatlas.results import axes_of

    load, temperature = axes_of(labels)
    planes = columns.places(labels, load[0], *temperature)  # one of nothing where there is one load
    cells = summary.cells(tree)
    over = cells if len(planes) > 1 else None  # the same colours for the same values in all planes
    for at in planes:
        part = tree.map_over_datasets(lambda group, at=at: group.sel(at) if set(at) <= set(group.dims) else group)
        title = place_title(at, labels)
        drawn = figures_.draw_all(part, labels.sel(at), limits=limits, title=title, over=over)
        for name, figure in drawn.items():
            yield f"{name}{columns.place_suffix(at)}", figure
    if len(planes) > 1:
        yield "phase_maps", figures_.phase_maps(labels, cells=cells)
    for at in slices_through_third(labels):
        figure = figures_.column(columns.cut(cells, labels, at), title=place_title(at, labels))
        yield f"slice{columns.place_suffix(at)}", figure


def slices_through_third(labels: xr.Dataset) -> list[Place]:
    """The columns through Phase III that are drawn, those with most of it; a note says if there are more."""
    from lossatlas.figures.columns import through_third

    found = through_third(labels)
    if len(found) > _MOST_SLICES:
        other = ",".join(f"{name}={value:g}" for name, value in found[_MOST_SLICES].items())
        note(
            f"{len(found)} columns pass through Phase III; slices are drawn of the {_MOST_SLICES} with most. "
            f"`lossatlas findings SOURCE --out DIR --at {other}` draws another."
        )
    return found[:_MOST_SLICES]

"""`report`: one self-contained HTML page of any results; reads files only, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from lossatlas.cli.explore import AutoOption, SetOption, labelled, opened
from lossatlas.cli.output import guarded, note, say
from lossatlas.errors import UserError

NAMES = (
    "spectrum",
    "line",
    "surface",
    "plane",
    "mined",
    "connection",
    "comparison",
)  # what commands on models write
ALSO = f", or a file or the folder of results of single models ({', '.join(f'{name}.nc' for name in NAMES)})"


@guarded
def report(
    source: Annotated[
        Path,
        typer.Argument(
            help="A run folder, a results.nc, the published archive or folder; or a file or the folder of results "
            "of single models (line.nc, spectrum.nc, ...).",
            metavar="SOURCE",
            readable=False,
        ),
    ],
    other: Annotated[
        Path | None,
        typer.Argument(
            help="A second run on the same axes, to be compared.", metavar="[SOURCE_B]", readable=False
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    settings: SetOption = None,
    auto: AutoOption = None,
) -> None:
    """Write one HTML page: phases, how sure they are, why, and every cell's story; or two runs side by side."""
    from lossatlas import files
    from lossatlas import report as report_

    given = [path for path in (source, other) if path is not None]
    local = {path: _local_files(path) for path in given}
    _check_out(out, [*given, *(path / "results.nc" for path in given), *chain(*local.values())])
    if any(local.values()):
        page = _of_local(local, is_alone=other is None and not settings and auto is None)
    else:
        runs = []
        for each in given:
            tree = opened(each, also=ALSO)
            runs.append((str(each), tree, labelled(tree, settings, auto=auto)))
        if len(runs) == 2:
            page = report_.of_two(runs[0], runs[1])
        else:
            name, tree, labels = runs[0]
            page = report_.of_grid(tree, labels, source=name)
    files.write_file(out, page.encode())
    say(str(out))
    note(f"{len(page) / 1e6:.1f} MB; opens from disk, without a network.")


def _check_out(out: Path, read: Iterable[Path]) -> None:
    """Before any work: the page never takes the place of a folder or of what it is made from."""
    if out.is_dir():
        raise UserError(f"--out {out} is a folder. Name a file, such as --out {out / 'report.html'}.")
    if out.resolve() in {path.resolve() for path in read}:
        raise UserError(f"--out {out} would replace what the page is made from. Name another file.")


def _of_local(local: Mapping[Path, list[Path]], *, is_alone: bool) -> str:
    from lossatlas import local_results
    from lossatlas import report as report_

    if not is_alone:
        named = next(path for path, found in local.items() if found)
        raise UserError(
            f"{named} holds results of single models, which have no phases. "
            "Give it alone, without --set and --auto."
        )
    (paths,) = local.values()
    return report_.of_local({path.name: local_results.load(path) for path in paths})


def _local_files(source: Path) -> list[Path]:
    """The files of single models' results at a place; none where a grid's results are."""
    if source.is_dir() and not (source / "results.nc").exists():
        return [path for name in NAMES if (path := source / f"{name}.nc").is_file()]
    if source.is_file() and source.suffix == ".nc":
        return [] if _is_grid(source) else [source]
    return []


def _is_grid(path: Path) -> bool:
    """Whether a file is a tree of groups; what cannot be read is left to the reader of grids, which says why."""
    import h5py  # type: ignore[import-untyped]

    try:
        with h5py.File(path) as opened:
            return any(isinstance(opened[name], h5py.Group) for name in opened) or not len(opened)
    except OSError:
        return True

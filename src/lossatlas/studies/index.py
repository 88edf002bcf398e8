"""The page of a study: which class of curve or surface appeared where, and every figure with its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import xarray as xr

from lossatlas.figures.curves import shapes_of
from lossatlas.figures.planes import shape_of
from lossatlas.studies.catalogue import CURVES
from lossatlas.studies.numbers import Table
from lossatlas.studies.pictures import TOLERANCE

SURFACES = ("bowl", "gutter", "saddle", "wine-bottle", "peak")

Place = tuple[str, int]  # model, epoch


class Entry(NamedTuple):
    """A figure that was drawn."""

    stem: str  # of its files
    caption: str
    tables: Sequence[Table]


class Index:
    """Counts of classes by model and epoch, the figures, and what could not be drawn."""

    def __init__(self) -> None:
        self._seen: dict[str, Counter[Place]] = {}
        self._total: Counter[Place] = Counter()
        self.figures: list[Entry] = []
        self.missing: list[str] = []  # what could not be drawn, and why

    def note(self, place: Place, dataset: xr.Dataset) -> None:
        """Classify every curve of a dataset, or its surface, if it holds any."""
        for kind in kinds_of(dataset):
            self._seen.setdefault(kind, Counter())[place] += 1
            self._total[place] += 1

    @property
    def counts(self) -> dict[str, int]:
        """How often each class was seen."""
        return {kind: places.total() for kind, places in sorted(self._seen.items())}

    def text(self, title: str, about: Iterable[str]) -> str:
        """The page, `about` in paragraphs."""
        lines = [f"# {title}", ""]
        for paragraph in about:
            lines += [paragraph, ""]
        for heading, expected in (("Curves", CURVES), ("Surfaces", SURFACES)):
            rows = [(kind, self._places(kind) or "not seen") for kind in expected]
            if any(kind in self._seen for kind in expected):
                table = Table(("class", "model (epoch: how many of all there)"), rows)
                lines += [f"## {heading}", "", *_markdown(table), ""]
        rest = [kind for kind in self._seen if kind not in CURVES + SURFACES]
        if rest:
            lines += ["## Neither", "", *(f"- {kind}: {self._places(kind)}" for kind in rest), ""]
        if self.missing:
            lines += ["## Not drawn", "", *(f"- {text}" for text in self.missing), ""]
        if self.figures:
            lines += ["## Figures", ""]
        for entry in self.figures:
            lines += _section(entry)
        return "\n".join(lines)

    def _places(self, kind: str) -> str:
        found: dict[str, list[str]] = {}
        for (model, epoch), count in sorted(self._seen.get(kind, Counter()).items()):
            found.setdefault(model, []).append(f"{epoch}: {count} of {self._total[model, epoch]}")
        return "; ".join(f"{model} ({', '.join(places)})" for model, places in found.items())


def kinds_of(dataset: xr.Dataset) -> list[str]:
    """The classes of the curves of a dataset, or of its surface; none where it is something else."""
    if dataset.attrs.get("slice") == "surface":
        return [str(shape_of(dataset).kind)]
    if dataset.attrs.get("slice") != "curve" or "direction" not in dataset["loss"].dims or "data" in dataset.dims:
        return []
    return [s.kind if s.status == "ok" else "not finite" for s in shapes_of(dataset, TOLERANCE)]


def _section(entry: Entry) -> list[str]:
    path = f"figures/{entry.stem}"
    lines = [f"### {entry.stem}", "", f"![{entry.stem}]({path}.png)", "", f"{entry.caption} [PDF]({path}.pdf)", ""]
    for table in entry.tables:
        lines += [*_markdown(table), ""]
    return lines


def _markdown(table: Table) -> Iterator[str]:
    yield _row(table.head)
    yield _row(["---"] * len(table.head))
    yield from map(_row, table.rows)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

"""Which class of curve or surface appeared where, as a page of markdown."""

from __future__ import annotations

from collections import Counter

import xarray as xr

from lossatlas.figures.curves import shapes_of
from lossatlas.figures.planes import shape_of
from lossatlas.studies.pictures import TOLERANCE

CURVES = ("v-basin", "v-side", "w-basin", "w-peak", "vvv-basin")
SURFACES = ("bowl", "gutter", "saddle", "wine-bottle", "peak")

Place = tuple[str, int]  # model, epoch


class Index:
    """Counts of classes by model and epoch, and what could not be drawn."""

    def __init__(self) -> None:
        self._seen: dict[str, Counter[Place]] = {}
        self._total: Counter[Place] = Counter()
        self.missing: list[str] = []  # what could not be drawn, and why

    def note(self, place: Place, dataset: xr.Dataset) -> None:
        """Classify every curve of a dataset, or its surface, if it holds any."""
        for kind in _kinds(dataset):
            self._seen.setdefault(kind, Counter())[place] += 1
            self._total[place] += 1

    @property
    def counts(self) -> dict[str, int]:
        """How often each class was seen."""
        return {kind: places.total() for kind, places in sorted(self._seen.items())}

    def text(self, title: str, about: str) -> str:
        """The page."""
        lines = [f"# {title}", "", about, ""]
        for heading, expected in (("Curves", CURVES), ("Surfaces", SURFACES)):
            rows = [f"| {kind} | {self._places(kind) or 'not seen'} |" for kind in expected]
            if any(kind in self._seen for kind in expected):
                lines += [f"## {heading}", "", "| class | model (epoch: how many of all there) |", "| --- | --- |"]
                lines += [*rows, ""]
        rest = [kind for kind in self._seen if kind not in CURVES + SURFACES]
        if rest:
            lines += ["## Neither", "", *(f"- {kind}: {self._places(kind)}" for kind in rest), ""]
        if self.missing:
            lines += ["## Not drawn", "", *(f"- {text}" for text in self.missing), ""]
        return "\n".join(lines)

    def _places(self, kind: str) -> str:
        found: dict[str, list[str]] = {}
        for (model, epoch), count in sorted(self._seen.get(kind, Counter()).items()):
            found.setdefault(model, []).append(f"{epoch}: {count} of {self._total[model, epoch]}")
        return "; ".join(f"{model} ({', '.join(places)})" for model, places in found.items())


def _kinds(dataset: xr.Dataset) -> list[str]:
    """The classes of the curves of a dataset, or of its surface; none where it is something else."""
    if dataset.attrs.get("slice") == "surface":
        return [str(shape_of(dataset).kind)]
    if dataset.attrs.get("slice") != "curve" or "direction" not in dataset["loss"].dims or "data" in dataset.dims:
        return []
    return [s.kind if s.status == "ok" else "not finite" for s in shapes_of(dataset, TOLERANCE)]

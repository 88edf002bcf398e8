"""The numbers that a picture of a study shows, as tables: with units, and with errors where they have one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lossatlas.figures.curves import center_of, shapes_of
from lossatlas.figures.expansions import monotony
from lossatlas.figures.local import kind_of
from lossatlas.figures.planes import shape_of
from lossatlas.figures.probes import eigenvector_names, lengths_of
from lossatlas.figures.spectra import measured
from lossatlas.figures.style import number, plain, with_error
from lossatlas.studies.pictures import TOLERANCE, Panel, Picture, advantage_of

Row = tuple[str, ...]
Shown = tuple[Panel, xr.Dataset]

_LOSSES = ("loss of the model (nat)", "least (nat)", "greatest (nat)")
_FEW = 2  # curves of one panel that have a row each


class Table(NamedTuple):
    """A head and rows of the same length."""

    head: Row
    rows: Sequence[Row]


def tables(picture: Picture, found: Mapping[str, xr.Dataset]) -> list[Table]:
    """Those of a picture that was drawn from datasets by the keys of their items.

    A surface in space has none, since its contours show the same numbers.
    """
    shown = [(panel, found[panel.item.key]) for panel in picture.panels if panel.item.key in found]
    if picture.look == "lines":
        return [_curves(shown)]
    if picture.look == "surfaces":
        return [_surfaces(shown)]
    if picture.look == "surface_3d":
        return []
    dataset = shown[0][1]
    if picture.look == "density":
        return [_shares(dataset)]
    kind = str(kind_of(dataset))
    return [_surfaces(shown)] if kind == "surface" else _OF_KIND[kind](dataset)


def _curves(shown: Sequence[Shown]) -> Table:
    """Of up to two curves a row each, of more one for all; and by how much the first of two is lower."""
    has_rivals = any("advantage" in dataset for _, dataset in shown)
    head = ("panel", "direction", "class", "stationary points", *_LOSSES, *(["Δ"] if has_rivals else []))
    rows = []
    for panel, dataset in shown:
        tail = ((advantage_of(dataset),) if "advantage" in dataset else ("",)) if has_rivals else ()
        rows += [(panel.title, *row, *tail) for row in _classes(dataset)]
    return Table(head, rows)


def _classes(dataset: xr.Dataset) -> Iterator[Row]:
    """Direction, class, stationary points, losses."""
    names, shapes = [str(name) for name in dataset["direction"].values], shapes_of(dataset, TOLERANCE)
    kinds = [shape.kind if shape.status == "ok" else "not finite" for shape in shapes]
    model = _four(center_of(dataset).get("loss", math.nan))
    losses = dataset["loss"].transpose("direction", "lambda").values
    if len(names) <= _FEW:
        for name, kind, shape, values in zip(names, kinds, shapes, losses, strict=True):
            yield name, kind, str(shape.count) if shape.status == "ok" else "", model, *_ends_of(values)
        return
    counts = np.array([shape.count for shape in shapes if shape.status == "ok"], dtype=float)
    several = ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).most_common())
    yield f"{len(names)} directions", several, _mean(counts, "on average"), model, *_ends_of(losses)


def _ends_of(values: Any) -> tuple[str, str]:
    finite = values[np.isfinite(values)]
    return (_four(finite.min()), _four(finite.max())) if finite.size else ("not finite", "not finite")


def _mean(values: Any, unit: str = "") -> str:
    """The mean of independent numbers with its standard error."""
    if len(values) < 2:
        return with_error(float(values.mean()), math.nan, unit) if len(values) else "none"
    return with_error(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)), unit)


def _surfaces(shown: Sequence[Shown]) -> Table:
    head = ("plane", "class", "lower curvature (nat)", "upper curvature (nat)", *_LOSSES)
    rows = []
    for panel, dataset in shown:
        shape = shape_of(dataset)
        curvatures = (with_error(*each) for each in zip(shape.eigenvalues, shape.stderr, strict=True))
        kind = shape.kind if shape.status == "ok" else "not finite"
        model = _four(center_of(dataset).get("loss", math.nan))
        rows.append((panel.title, kind, *curvatures, model, *_ends_of(dataset["loss"].values)))
    return Table(head, rows)


def _shares(dataset: xr.Dataset) -> Table:
    """Of the eigenvalues by sign."""
    names = (
        ("surely below 0", "negative"),
        ("so near 0 that the sign is open", "undecided"),
        ("surely above 0", "positive"),
    )
    rows = [(title, measured(dataset, f"{name}_share")) for title, name in names if f"{name}_share" in dataset]
    return Table(("eigenvalues", "share"), rows)


def _spectrum(dataset: xr.Dataset) -> list[Table]:
    """Traces and both ends."""
    whole = [
        (title, measured(dataset, name, unit))
        for title, name, unit in (("tr H", "trace", "nat"), ("tr H²", "trace_of_square", "nat²"))
        if name in dataset
    ]
    if "gradient_norm" in dataset.attrs:
        whole.append(("norm of the gradient", f"{_four(dataset.attrs['gradient_norm'])} nat"))
    rows = []
    for sign, name in (("P", "eigenvalue"), ("N", "eigenvalue_min")):
        columns = (dataset[column].values.tolist() for column in (name, f"{name}_residual", f"{name}_converged"))
        for rank, (value, residual, converged) in enumerate(zip(*columns, strict=True), 1):
            rows.append((f"{sign}.E.{rank}", _four(value), plain(residual, 2), "yes" if converged else "no"))
    ends = Table(("eigenvector", "eigenvalue (nat)", "residual (nat)", "converged"), rows)
    return [Table(("Hessian", "value"), whole), ends]


def _changes(dataset: xr.Dataset) -> list[Table]:
    head = ("λ", "mean change", "predicted", "variance", "predicted")
    rows = []
    for k, scale in enumerate(dataset["scale"].values.tolist()):
        here = dataset.isel(scale=k)
        row = [number(scale)]
        for name, unit in (("mean", "nat"), ("variance", "nat²")):
            predicted = with_error(float(here[f"predicted_{name}"]), math.nan, unit)
            row += [measured(here, f"change_{name}", unit), predicted]
        rows.append(tuple(row))
    return [Table(head, rows)]


def _angles(dataset: xr.Dataset) -> list[Table]:
    """Between all directions, and of some to Gaussian ones."""
    names = [str(name) for name in dataset["direction"].values]
    matrix = dataset["angle"].transpose("direction", "direction_b").values.tolist()
    between = [(name, *(f"{angle:.1f}" for angle in row)) for name, row in zip(names, matrix, strict=True)]
    draws = dataset["gaussian_angle"].transpose("watched", "draw").values
    size = float(dataset.attrs["size"])
    watched = [
        (str(name), plain(length), _mean(angles), plain(float(angles.std(ddof=1))))
        for name, length, angles in zip(dataset["watched"].values, lengths_of(dataset), draws, strict=True)
    ]
    law = plain(math.degrees(1 / math.sqrt(size)))
    watched.append(("law of a Gaussian", with_error(math.sqrt(size), math.sqrt(0.5)), "90", law))
    head = ("direction", "‖v‖", f"mean angle to {draws.shape[1]} Gaussians (°)", "standard deviation (°)")
    return [Table(("angle (°)", *names), between), Table(head, watched)]


def _distances(dataset: xr.Dataset) -> list[Table]:
    """Six digits of the losses: steps are short."""
    draws = dataset["gaussian_loss"].transpose("distance", "draw").values
    along = str(dataset.attrs.get("name", "direction"))
    columns = zip(dataset["distance"].values.tolist(), dataset["loss"].values.tolist(), draws, strict=True)
    rows = [
        (number(distance), plain(loss, 6), plain(others.min(), 6), _mean(others), str((others < loss).sum()))
        for distance, loss, others in columns
    ]
    head = ("step (‖θ‖)", f"loss along {along} (nat)", f"least of {draws.shape[1]} Gaussians (nat)")
    return [Table((*head, "their mean (nat)", "Gaussians that are lower"), rows)]


def _mined(dataset: xr.Dataset) -> list[Table]:
    """The curves on both data, the cosines, and how much of the direction the eigenvectors hold."""
    curves = []
    for name in dataset["data"].values.tolist():
        loss = dataset["loss"].sel(data=name).squeeze()
        model = _four(loss.sel({"lambda": 0.0}, method="nearest").item())
        curves.append((name, model, *_ends_of(loss.values)))
    found = [Table(("curve", *_LOSSES), curves)]
    if "cosine" not in dataset:
        return found
    eigenvalues = dataset["eigenvalue"].values
    columns = (eigenvalues.tolist(), dataset["cosine"].values.tolist(), dataset["ambiguous"].values.tolist())
    cosines = [
        (name, _four(value), plain(cosine), "no" if ambiguous else "yes")
        for name, value, cosine, ambiguous in zip(eigenvector_names(eigenvalues < 0), *columns, strict=True)
    ]
    found.append(Table(("eigenvector", "eigenvalue (nat)", "cosine", "apart from its neighbours"), cosines))
    spans = [
        (title, plain(float(dataset[f"projection{ending}"])))
        for title, ending in (
            ("all of them", ""),
            ("positive eigenvalues", "_positive"),
            ("negative eigenvalues", "_negative"),
            ("a random direction on all (root mean square)", "_chance"),
        )
    ]
    return [*found, Table(("projection on the span of", "share of the length"), spans)]


def _pieces(dataset: xr.Dataset) -> list[Table]:
    """The curve, whether it is monotone, and the pieces."""
    curves = [(*row, monotony(dataset)) for row in _classes(dataset)]
    head = ("direction", "class", "stationary points", *_LOSSES, "monotony")
    columns = (dataset[f"piece_{name}"].values.tolist() for name in ("center", "slope", "curvature"))
    rows = [(plain(center), _four(slope), _four(bend)) for center, slope, bend in zip(*columns, strict=True)]
    return [Table(head, curves), Table(("λ", "slope (nat)", "curvature (nat)"), rows)]


def _four(value: float) -> str:
    """Four digits, zeros at the end as well."""
    if not math.isfinite(value):
        return "not finite"
    return plain(value, 4) if "e" in f"{value:.4g}" else f"{value:#.4g}".removesuffix(".").replace("-", "−")


_OF_KIND: dict[str, Callable[[xr.Dataset], list[Table]]] = {
    "spectrum": _spectrum,
    "loss-change": _changes,
    "angles": _angles,
    "against-gaussians": _distances,
    "mined": _mined,
    "expansion": _pieces,
}

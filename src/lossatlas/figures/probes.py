"""Directions under scrutiny: mined ones, angles, and Gaussians beside them; [Xu2024] Figs. 5, 6 and 9."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lossatlas.errors import UserError
from lossatlas.figures.curves import check_curve, describe, draw_curves, label_of, shapes_of
from lossatlas.figures.style import LINE_COLOURS, SMALL, line_style, plain, styled, with_error

Floats = NDArray[np.float64]

_STATUS = {
    "survives": "the shape survives on held-out data",
    "mining-only": "the shape does not survive on held-out data",
    "no-fall": "the loss does not fall significantly on both sides",
    "non-finite": "some values are not finite",
}
_BINS = 25  # at most


@styled
def mined(dataset: xr.Dataset, *, tolerance: float | None = None) -> Figure:
    """The loss along a mined direction on the data of the mining and on held-out data; [Xu2024] Fig. 9.

    `dataset` has `loss` over (data, lambda), the coordinate `data` naming the curves, and maybe over `direction`
    of length 1, else as for `line`; its attribute `status` is that of `mining_checks.survives`. Where it holds
    `cosine` over `eigenvector` (as `local_results` makes it of `mining_checks.alignment`), they are drawn beside
    the curves, red for the eigenvectors of negative `eigenvalue`, hatched where `ambiguous`; dashed lines are what
    a random direction has (root mean square). Raises UserError for a dataset without such a loss.
    """
    curve = _by_data(dataset)
    has_cosines = "cosine" in dataset
    figure = Figure(figsize=(6.4 if has_cosines else 3.5, 2.6), layout="constrained")
    ratios = {"width_ratios": [1.0, 1.1]} if has_cosines else {}
    panes = figure.subplots(1, 2 if has_cosines else 1, squeeze=False, gridspec_kw=ratios)[0]
    draw_curves(panes[0], curve, "loss")
    panes[0].set_xlabel("Position λ along the direction")
    panes[0].set_ylabel(label_of(curve, "loss"))
    first = shapes_of(curve.isel(direction=[0]), tolerance)
    panes[0].set_title(f"{curve['direction'].values[0]}:\n{describe(first)}")
    figure.legend(*panes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4 if has_cosines else 2)
    if has_cosines:
        _draw_cosines(panes[1], dataset)
    status = str(dataset.attrs.get("status", ""))
    if status:
        figure.suptitle(_STATUS.get(status, status).capitalize(), size=SMALL + 1)
    return figure


@styled
def cosines(dataset: xr.Dataset) -> Figure:
    """The cosines of a direction with eigenvectors of the Hessian, as `mined` draws them beside its curves.

    `dataset` has `cosine` over `eigenvector` (`mining_checks.alignment`). Raises UserError for one without.
    """
    if "cosine" not in dataset:
        raise UserError("This dataset lacks cosine, which the figure is drawn from.")
    figure = Figure(figsize=(3.5, 2.6), layout="constrained")
    _draw_cosines(figure.add_subplot(), dataset)
    return figure


@styled
def angles(dataset: xr.Dataset) -> Figure:
    """Angles between directions, and how those to Gaussians are spread about 90 degrees; [Xu2024] Fig. 5.

    `dataset` has `angle` in degrees over (direction, direction_b), and `gaussian_angle` over (watched, draw): the
    angles of some of the directions, named by the coordinate `watched`, to Gaussian ones; its attribute `size` is
    the number n of parameters. Beside the histograms stands the law for any fixed direction, of standard deviation
    57.3 / sqrt(n) degrees. Where it has `log_density` over watched (`angles.log_density`: ln N(v; 0, I) of a
    direction v), the legend has the length that it tells, ||v||, on which alone it depends; a draw from N(0, I)
    has sqrt(n), of standard deviation 1 / sqrt(2). Raises UserError for a dataset without them.
    """
    _need(dataset, ("angle", "gaussian_angle"), attr="size")
    figure = Figure(figsize=(6.6, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.1, 1.0]})
    _draw_angles(left, dataset)
    sd = math.degrees(1 / math.sqrt(float(dataset.attrs["size"])))
    draws = dataset["gaussian_angle"].transpose("watched", "draw").values.astype(np.float64)
    reach = max(4 * sd, float(np.nanmax(np.abs(draws - 90))))
    bins = min(_BINS, max(8, round(2 * math.sqrt(draws.shape[1]))))
    edges = np.linspace(90 - reach, 90 + reach, bins + 1)
    lengths = lengths_of(dataset)
    for i, name in enumerate(dataset["watched"].values):
        right.hist(
            draws[i],
            edges,
            density=True,
            histtype="step",
            label=f"{name}, ‖v‖ = {plain(lengths[i])}" if len(lengths) else f"{name}",
            linewidth=0.8,
            gid="gaussian",
            **line_style(i),
        )
    x = np.linspace(edges[0], edges[-1], 200)
    law = np.exp(-(((x - 90) / sd) ** 2) / 2) / (sd * math.sqrt(2 * math.pi))
    right.plot(x, law, color="black", linewidth=1.0, linestyle="--", gid="law", label=_law(dataset, sd))
    right.set(
        xlabel="Angle to a Gaussian direction (degrees)",
        ylabel="Density (1/degree)",
        title=f"To {draws.shape[1]} Gaussian directions",
    )
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def lengths_of(dataset: xr.Dataset) -> Floats:
    """The lengths ||v|| of the watched directions of `angles`, from ln N(v; 0, I) = -n/2 ln(2 pi) - ||v||^2 / 2.

    Empty where that is not known; NaN where the length is lost in the rounding of the logarithm.
    """
    if "log_density" not in dataset:
        return np.empty(0)
    at_zero = -float(dataset.attrs["size"]) / 2 * math.log(2 * math.pi)
    squares = 2 * (at_zero - dataset["log_density"].values.astype(np.float64))
    lengths: Floats = np.sqrt(np.where(squares > 0, squares, np.nan))
    return lengths


@styled
def against_gaussians(dataset: xr.Dataset) -> Figure:
    """The loss after steps of one length along a direction and along Gaussian ones; [Xu2024] Fig. 6.

    `dataset` has `loss` over `distance` (in units of ||theta||), `gaussian_loss` over (distance, draw), and the
    attributes `start`, the loss at the model, and `name`, that of the direction. The title says at how many of the
    distances the direction beats every Gaussian; for a single distance, the losses along Gaussians are a histogram
    and the title says how many of them are lower. `xr.concat` along `distance` joins what `local_results` makes of
    single distances (`angles.against_gaussians`). Raises UserError for a dataset without them.
    """
    _need(dataset, ("loss", "gaussian_loss"), attr="start")
    x = dataset["distance"].values.astype(np.float64)
    along = dataset["loss"].values.astype(np.float64)
    draws = dataset["gaussian_loss"].transpose("distance", "draw").values.astype(np.float64)
    figure = Figure(figsize=(3.5, 2.6), layout="constrained")
    axes = figure.add_subplot()
    name, start = str(dataset.attrs.get("name", "direction")), float(dataset.attrs["start"])
    if len(x) == 1:
        _draw_one_distance(axes, name, start, float(along[0]), draws[0])
        beaten_by = int((draws[0] < along[0]).sum())
        axes.set_title(f"{beaten_by} of {draws.shape[1]} Gaussians lower, at {plain(x[0])} ‖θ‖")
        return figure
    axes.plot(
        np.repeat(x, draws.shape[1]),
        draws.ravel(),
        ".",
        color="#a0a0a0",
        markersize=2.0,
        gid="gaussians",
        label="Gaussian",
    )
    axes.plot(x, draws.min(axis=1), color="#5a5a5a", linewidth=0.9, gid="best", label=f"best of {draws.shape[1]}")
    axes.plot(x, along, "o-", color=LINE_COLOURS[1], markersize=2.5, linewidth=1.0, gid="direction", label=name)
    axes.axhline(start, color="black", linewidth=0.6, linestyle=":", gid="start", label="model")
    axes.set_xscale("log")
    if (
        (along > 0).all()
        and (draws > 0).all()
        and max(along.max(), draws.max()) > 100 * min(along.min(), draws.min())
    ):
        axes.set_yscale("log")
    won = int((along < draws.min(axis=1)).sum())
    axes.set(xlabel="Distance of the step (‖θ‖)", ylabel="Loss (nat)")
    axes.set_title(f"lower than every Gaussian at {won} of {len(x)} distances")
    axes.legend()
    return figure


def _draw_one_distance(axes: Axes, name: str, start: float, along: float, draws: Floats) -> None:
    axes.hist(draws, _BINS, color="#c0c0c0", gid="gaussians", label="Gaussian")
    for value, label, gid, colour in (
        (float(draws.min()), f"best of {len(draws)}", "best", "#5a5a5a"),
        (along, name, "direction", LINE_COLOURS[1]),
        (start, "model", "start", "black"),
    ):
        line = ":" if gid == "start" else "-"
        axes.axvline(value, linewidth=1.0, gid=gid, label=label, color=colour, linestyle=line)
    axes.set(xlabel="Loss (nat)", ylabel="Gaussian directions")
    axes.legend()


def _by_data(dataset: xr.Dataset) -> xr.Dataset:
    """A line dataset whose directions are the data."""
    if "loss" not in dataset or "data" not in dataset["loss"].dims or dataset.sizes.get("direction", 1) != 1:
        raise UserError(
            "A mined direction is drawn from the variable loss over (data, lambda), of one direction. "
            f"This dataset has the dimensions {dict(dataset.sizes)}."
        )
    kept = dataset[[name for name in ("loss", "distance") if name in dataset]]
    if "direction" in kept.dims:
        kept = kept.isel(direction=0, drop=True)
    curve = kept.drop_vars("direction", errors="ignore").rename({"data": "direction"})
    if "distance" in curve:  # the same for all data
        curve["distance"] = curve["distance"].broadcast_like(curve["loss"])
    curve.attrs = dataset.attrs
    check_curve(curve)
    return curve


def _draw_cosines(axes: Axes, dataset: xr.Dataset) -> None:
    values = dataset["cosine"].values.astype(np.float64)
    places = np.arange(len(values))
    negative = dataset["eigenvalue"].values < 0 if "eigenvalue" in dataset else np.zeros(len(values), dtype=bool)
    ambiguous = (
        dataset["ambiguous"].values.astype(bool) if "ambiguous" in dataset else np.zeros(len(values), dtype=bool)
    )
    colours = np.where(negative, LINE_COLOURS[1], LINE_COLOURS[0])
    bars = axes.bar(places, values, color=colours, width=0.75, gid="cosine")
    for bar, is_ambiguous in zip(bars, ambiguous, strict=True):
        if is_ambiguous:
            bar.set(hatch="////", edgecolor="white")
    axes.axhline(0.0, color="black", linewidth=0.5)
    if "projection_chance" in dataset:
        chance = float(dataset["projection_chance"]) / math.sqrt(len(values))  # of k vectors -> of one
        for sign in (-1, 1):
            axes.axhline(sign * chance, color="#808080", linewidth=0.6, linestyle="--", gid="chance")
    names = eigenvector_names(negative)
    axes.set_xticks(places, names, rotation=90 if len(names) > 8 else 0)
    axes.set_ylabel("Cosine with the eigenvector")
    if "projection" in dataset:
        share = f"{plain(float(dataset['projection']), 2)} of its length lies in their span"
        if "projection_chance" in dataset:
            share += f"\n(of a random direction: {plain(float(dataset['projection_chance']), 2)})"
        axes.set_title(share)


def eigenvector_names(negative: NDArray[np.bool_]) -> list[str]:
    """P.E.1, P.E.2, ..., N.E.1, ...: as [Xu2024] calls them, counted apart in the order given."""
    return [f"{'NP'[int(not n)]}.E.{int((negative[: i + 1] == n).sum())}" for i, n in enumerate(negative)]


def _law(dataset: xr.Dataset, sd: float) -> str:
    """The law of the angle, and beside lengths that of a Gaussian's own: sqrt(n) +- 1 / sqrt(2)."""
    own = (
        f", ‖v‖ = {with_error(math.sqrt(dataset.attrs['size']), math.sqrt(0.5))}"
        if len(lengths_of(dataset))
        else ""
    )
    return f"law of a Gaussian: sd {plain(sd)}°{own}"


def _draw_angles(axes: Axes, dataset: xr.Dataset) -> None:
    """The matrix of angles, with the numbers in it."""
    values = dataset["angle"].transpose("direction", "direction_b").values.astype(np.float64)
    names = [str(name) for name in dataset["direction"].values]
    axes.imshow(values, cmap="RdBu", vmin=0, vmax=180, gid="angle")
    size = SMALL if len(names) < 9 else SMALL - 1.5
    for (i, j), value in np.ndenumerate(values):
        colour = "white" if abs(value - 90) > 60 else "black"
        axes.text(j, i, f"{value:.1f}".replace("-", "−"), ha="center", va="center", size=size, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_title("Angles (degrees)")


def _need(dataset: xr.Dataset, names: tuple[str, ...], *, attr: str) -> None:
    missing: list[Any] = [name for name in names if name not in dataset]
    missing += [f"attribute {attr}"] if attr not in dataset.attrs else []
    if missing:
        raise UserError(f"This dataset lacks {', '.join(missing)}, which the figure is drawn from.")

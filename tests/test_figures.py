"""The figures: what is drawn and where, not which pixels are set."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from grids import build
from lossatlas import figures, phases, published, summary
from lossatlas.errors import UserError
from lossatlas.figures.boundaries import STEPS, boundaries
from lossatlas.figures.grid import grid_of, place_title
from lossatlas.figures.panels import METRICS
from lossatlas.figures.style import number

WIDTHS = (1, 2, 4, 8, 16, 32)
BATCHES = (16, 32, 64, 128, 256)
LIMITS = {"ln_trace": 5.5, "train_loss": 0.02, "mode_connectivity": -1.75, "cka": 0.7}
LONG_NAMES = {"width": "width", "label_noise": "fraction of randomised labels", "weight_decay": "weight decay"}


def coords(load="width", loads=WIDTHS, temperature="batch_size", temperatures=BATCHES):
    def coord(name, values, role):
        long_name = LONG_NAMES.get(name, name.replace("_", " "))
        return (name, list(values), {"role": role, "long_name": long_name, "units": "1"})

    return {load: coord(load, loads, "load"), temperature: coord(temperature, temperatures, "temperature")}


def make_cells(**axes):
    """Cells with a different number in every variable and every place, over (load, temperature)."""
    where = coords(**axes)
    shape = tuple(len(values) for _, values, _ in where.values())
    rng = np.random.default_rng(0)
    values = {metric.name: rng.normal(size=shape) for metric in METRICS}
    return xr.Dataset({name: (tuple(where), array) for name, array in values.items()}, coords=where)


def make_labels(*, trace, loss=1e-9, mc=0.0, cka=0.9, origin=None, **axes):
    """Labels of metrics that are given as functions of ln(load) and ln(temperature), or as numbers."""
    where = coords(**axes)
    (_, loads, _), (_, temperatures, _) = where.values()
    u, v = np.meshgrid(np.log(loads), np.log(temperatures), indexing="ij")
    fields = {"ln_trace": trace, "train_loss": loss, "mode_connectivity": mc, "cka": cka}
    values = {
        name: np.asarray(field(u, v) if callable(field) else np.full(u.shape, field), dtype=float)
        for name, field in fields.items()
    }
    sharp = (values["ln_trace"] > LIMITS["ln_trace"]) | (values["train_loss"] > LIMITS["train_loss"])
    poor = values["mode_connectivity"] < LIMITS["mode_connectivity"]
    fourth = np.where(values["cka"] >= LIMITS["cka"], "IV-B", "IV-A")
    phase = np.where(sharp, np.where(poor, "I", "II"), np.where(poor, "III", fourth)).astype(object)
    phase[np.isnan(sum(values.values()))] = ""
    values |= {"phase": phase, "probability": np.ones(u.shape), "margin": np.ones(u.shape)}
    values |= {"status": np.full(u.shape, "ok", dtype=object)}
    attrs = {
        "thresholds": json.dumps(LIMITS),
        "origin": json.dumps(dict.fromkeys(LIMITS, "default") | (origin or {})),
    }
    return xr.Dataset({name: (tuple(where), array) for name, array in values.items()}, coords=where, attrs=attrs)


def by_gid(figure: Figure, gid: str) -> list:
    return figure.findobj(lambda artist: artist.get_gid() == gid)


def vertices(figure: Figure, gid: str):
    """All points of a boundary line in ln(load), ln(temperature)."""
    (line,) = by_gid(figure, gid)
    return np.log(np.concatenate([segment for segment in line.allsegs[0] if len(segment)]))


def drawn(figure: Figure) -> Figure:
    FigureCanvasAgg(figure).draw()
    return figure


def key_of(figure: Figure) -> str:
    """What stands below a figure about its marks, in one line."""
    (text,) = by_gid(figure, "key")
    return " ".join(text.get_text().split())


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def sentences(figure: Figure) -> list[str]:
    """From the top downwards."""
    return [text.get_text() for text in sorted(by_gid(figure, "sentence"), key=lambda t: -t.get_position()[1])]


def heights(axes, values) -> list[float]:
    return [axes.transData.transform((1.0, value))[1] for value in values]


# ---- panels


def test_panels_draw_the_arrays_as_temperature_by_load():
    cells = make_cells()
    figure = figures.panels(cells)
    for metric in METRICS:
        (mesh,) = by_gid(figure, metric.name)
        np.testing.assert_array_equal(mesh.get_array(), cells[metric.name].transpose("batch_size", "width"))


def test_panels_do_not_depend_on_the_order_of_dimensions_or_values():
    cells = make_cells()
    turned = cells.transpose("batch_size", "width").isel(width=slice(None, None, -1))
    (mesh,), (again,) = (by_gid(figures.panels(data), "cka") for data in (cells, turned))
    np.testing.assert_array_equal(mesh.get_array(), again.get_array())


def test_edges_are_geometric_midpoints():
    (mesh,) = by_gid(figures.panels(make_cells()), "cka")
    edges = mesh.get_coordinates()[0, :, 0]
    np.testing.assert_allclose(edges, np.sqrt(2.0) * np.array([0.5, *WIDTHS]), rtol=1e-12)  # a few roundings


@pytest.mark.parametrize(
    ("name", "values", "hottest"),
    [
        ("batch_size", (16, 64, 256), 16),
        ("lr", (0.01, 0.05, 0.1), 0.1),
        ("weight_decay", (0.0, 5e-4, 1e-3), 1e-3),
    ],
)
def test_the_hottest_row_is_on_top(name, values, hottest):
    figure = drawn(figures.panels(make_cells(temperature=name, temperatures=values)))
    axes = figure.axes[0]
    labels = {label.get_text(): label.get_window_extent().y0 for label in axes.get_yticklabels()}
    assert max(labels, key=labels.get) == number(hottest)
    assert figure.get_supylabel() == f"{name.replace('_', ' ').capitalize()} (hotter →)"
    (mesh,) = by_gid(figure, "test_accuracy")
    rows = mesh.get_coordinates()[:, 0, 1]
    top = np.argmax(heights(axes, (rows[:-1] + rows[1:]) / 2))
    row = mesh.get_array()[top]
    cells = make_cells(temperature=name, temperatures=values)
    np.testing.assert_array_equal(row, cells["test_accuracy"].sel({name: hottest}))


@pytest.mark.parametrize(
    "axes",
    [
        {},
        {"loads": (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128), "temperatures": (16, 24, 32, 64, 1024)},
        {"load": "n_train", "loads": range(5000, 50001, 5000)},
        {"temperature": "weight_decay", "temperatures": (1e-5, 2e-5, 5e-5, 1e-4, 5e-4, 1e-3, 0.0123)},
        {"load": "label_noise", "loads": (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.85, 0.9, 0.95, 1.0)},
    ],
    ids=["plain", "dense", "n_train", "weight_decay", "label_noise"],
)
def test_every_value_has_a_tick_and_no_label_touches_another(axes):
    cells = make_cells(**axes)
    figure = drawn(figures.panels(cells))
    panel = figure.axes[[a.get_title(loc="left")[:3] for a in figure.axes].index("(e)")]
    for axis, name in zip((panel.xaxis, panel.yaxis), cells.dims, strict=True):
        assert len(axis.get_majorticklocs()) == cells.sizes[name]
        assert len(axis.get_minorticklocs()) == 0
        labels = [label for label in axis.get_ticklabels() if label.get_text()]
        texts = [label.get_text() for label in labels]
        values = [number(float(value)) for value in cells[name].values]
        assert texts == [text for text in values if text in texts]
        assert texts[0] == values[0]
        assert len(texts) >= min(3, len(values))
        boxes = [label.get_window_extent() for label in labels]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_mode_connectivity_is_centred_at_zero_and_loss_over_decades_is_logarithmic():
    cells = make_cells()
    cells["mode_connectivity"] = cells["mode_connectivity"] - 3.0  # far from symmetric
    cells["train_loss"] = np.exp(3 * cells["train_loss"])
    figure = figures.panels(cells)
    (mc,), (loss,), (cka,) = (by_gid(figure, name) for name in ("mode_connectivity", "train_loss", "cka"))
    reach = float(abs(cells["mode_connectivity"]).max())
    assert (mc.norm.vmin, mc.norm.vmax) == (-reach, reach)
    assert mc.norm(0.0) == 0.5
    assert isinstance(loss.norm, LogNorm)
    assert (cka.norm.vmin, cka.norm.vmax) == (float(cells["cka"].min()), float(cells["cka"].max()))


def test_published_limits():
    figure = figures.panels(make_cells(), limits="published")
    limits = {}
    for metric in METRICS:
        (mesh,) = by_gid(figure, metric.name)
        assert not isinstance(mesh.norm, LogNorm)
        limits[metric.name] = (mesh.norm.vmin, mesh.norm.vmax)
    assert limits == {
        "test_accuracy": (56, 91),
        "train_loss": (0, 3),
        "ln_hessian_eig": (0, 6),
        "ln_hessian_trace": (3, 8),
        "mode_connectivity": (-30, 30),
        "cka": (0.3, 0.8),
        "distance": (0, 100),
    }
    with pytest.raises(UserError, match='Use "data" or "published"'):
        figures.panels(make_cells(), limits="paper")


def test_translations_have_bleu_in_the_place_of_the_accuracy():
    cells = make_cells()
    cells["bleu"] = (20 + cells["cka"]).assign_attrs(units="1")
    figure = figures.panels(cells)
    (mesh,) = by_gid(figure, "bleu")
    np.testing.assert_array_equal(mesh.get_array(), cells["bleu"].transpose("batch_size", "width"))
    assert mesh.axes.get_title(loc="left") == "(a) BLEU"
    assert mesh.colorbar.ax.get_ylabel() == "BLEU"
    assert by_gid(figure, "test_accuracy") == []
    (mesh,) = by_gid(figures.panels(cells, limits="published"), "bleu")  # of which there are no published limits
    assert (mesh.norm.vmin, mesh.norm.vmax) == (float(cells["bleu"].min()), float(cells["bleu"].max()))
    cells["bleu"][:] = np.nan
    assert by_gid(figures.panels(cells), "bleu") == []
    assert len(by_gid(figures.panels(cells), "test_accuracy")) == 1


def test_the_star_is_at_the_best_bleu_where_there_is_one():
    tree = build({(width, 16): {"phase": "IV-B", "accuracy": 90 - width} for width in (2, 4)})
    labels = phases.label(tree)
    figure = figures.draw_all(tree, labels)["phase_map"]
    np.testing.assert_allclose(by_gid(figure, "best")[0].get_xydata(), [[2, 16]], rtol=1e-12)
    assert "best test accuracy" in legend_texts(figure)
    tree["models"]["bleu"] = (tree["models"]["test_error"] / 2).assign_attrs(units="1")  # the other way round
    figure = figures.draw_all(tree, labels)["phase_map"]
    np.testing.assert_allclose(by_gid(figure, "best")[0].get_xydata(), [[4, 16]], rtol=1e-12)
    assert "best BLEU" in legend_texts(figure)


def test_a_colour_bar_is_pointed_where_values_lie_beyond_it():
    cells = make_cells()
    cells["cka"][0, 0], cells["cka"][1:, :], cells["cka"][0, 1:] = 0.1, 0.5, 0.5
    cells["distance"][:] = 50.0
    figure = figures.panels(cells, limits="published")
    assert by_gid(figure, "cka")[0].colorbar.extend == "min"
    assert by_gid(figure, "distance")[0].colorbar.extend == "neither"


def test_a_cell_without_value_is_hatched_and_a_missing_metric_is_named():
    cells = make_cells().drop_vars("distance")
    cells["cka"][2, 3] = np.nan
    figure = figures.panels(cells)
    sizes = [len(holes.get_paths()) for holes in by_gid(figure, "no-value")]
    assert sizes == [1, len(WIDTHS) * len(BATCHES)]
    (hole, _) = by_gid(figure, "no-value")
    assert hole.get_hatch()
    box = hole.get_paths()[0].get_extents()
    assert box.x0 < WIDTHS[2] < box.x1
    assert box.y0 < BATCHES[3] < box.y1
    (mesh,) = by_gid(figure, "cka")
    assert mesh.get_array().mask.sum() == 1
    assert by_gid(figure, "distance") == []
    said = [a.get_title(loc="left") for a in figure.axes for t in a.texts if t.get_text() == "not measured"]
    assert [title[:3] for title in said] == ["(g)"]
    assert legend_texts(figure) == ["no value"]
    assert legend_texts(figures.panels(make_cells())) == []


def test_a_metric_that_no_cell_has_is_not_called_unmeasured():
    cells = make_cells()
    cells["train_loss"][:] = np.nan  # as where every model has diverged
    figure = figures.panels(cells)
    said = [a.get_title(loc="left") for a in figure.axes for t in a.texts if t.get_text() == "no value"]
    assert [title[:3] for title in said] == ["(b)"]


def test_slices_of_a_run_share_their_colours():
    parts = [make_cells(), make_cells()]
    parts[1]["cka"] = parts[1]["cka"] * 3.0
    parts[1]["mode_connectivity"] = parts[1]["mode_connectivity"] * 3.0
    whole = xr.concat(parts, dim=xr.Variable("label_noise", [0.0, 0.2]))
    for name in ("cka", "mode_connectivity"):
        limits = [by_gid(figures.panels(part, over=whole), name)[0].norm for part in parts]
        assert (limits[0].vmin, limits[0].vmax) == (limits[1].vmin, limits[1].vmax)
        assert limits[0].vmax == float(abs(whole[name]).max() if name != "cka" else whole[name].max())
        assert limits[0].vmax > by_gid(figures.panels(parts[0]), name)[0].norm.vmax


def test_a_title_names_the_slice_and_touches_nothing():
    for figure in (
        figures.panels(make_cells(), title="label_noise = 0.2"),
        figures.phase_map(make_labels(trace=0.0), title="label_noise = 0.2"),
        figures.connectivity(make_tree(), title="label_noise = 0.2"),
    ):
        drawn(figure)
        assert figure.get_suptitle() == "label_noise = 0.2"
        (title,) = [text for text in figure.texts if text.get_text() == "label_noise = 0.2"]
        box = title.get_window_extent()
        assert box.y1 <= figure.bbox.y1
        others = [text.get_window_extent() for text in figure.texts if text is not title and text.get_text()]
        assert not any(box.overlaps(other) for other in [*others, *(a.get_tightbbox() for a in figure.axes)])


@pytest.mark.parametrize(
    "axes",
    [
        {"loads": (4,), "temperatures": (32,)},
        {"temperatures": (32,)},
        {"loads": (4,)},
        {"load": "label_noise", "loads": (0.0,), "temperatures": (32,)},
    ],
)
def test_grids_of_one_cell_row_or_column(axes):
    drawn(figures.panels(make_cells(**axes)))
    if axes.get("load") != "label_noise":
        figure = drawn(figures.phase_map(make_labels(trace=lambda u, v: 5.5 + u - 1.0 + 0 * v, **axes)))
        assert len(by_gid(figure, "name")) >= 1


def test_one_load_and_one_temperature_axis_are_asked_for():
    cells = make_cells()
    two = xr.concat([cells, cells], dim=xr.Variable("panel", [1, 2], {"role": "load"}))
    with pytest.raises(UserError, match=r"one load axis, these results have 2 \(panel, width\)"):
        figures.panels(two)
    drawn(figures.panels(two.sel(panel=1)))
    with pytest.raises(UserError, match="one temperature axis, these results have none"):
        figures.panels(cells.isel(batch_size=0))


@pytest.mark.parametrize(
    ("place", "title"),
    [
        ({"batch_size": 64.0}, "Batch size 64"),
        ({"n_train": 1000}, "1,000 training samples"),
        ({"width": 8, "n_train": 50000.0}, "Width 8, 50,000 training samples"),
        ({"label_noise": 0.05}, "5 % randomised labels"),
        ({"weight_decay": 5e-4}, "Weight decay 5e-4"),
        ({"embed_dim": 512}, "Embedding dimension 512"),
        ({}, ""),
    ],
)
def test_places_have_names_for_people(place, title):
    tree = build({(*place.values(), 0.1): {"loss": 1.0}}, axes=(*place, "lr"))
    assert place_title(place, tree["models"].to_dataset()) == title


# ---- the phase map


def test_the_sharp_boundary_is_the_level_set():
    # ln trace is linear in the logarithms of the axes, so interpolation is exact: u = 2 + (v - ln 64) / 2.
    labels = make_labels(trace=lambda u, v: 5.5 + 2.0 - u + (v - np.log(64)) / 2)
    points = vertices(figures.phase_map(labels), "sharp")
    inside = (points[:, 1] >= np.log(16)) & (points[:, 1] <= np.log(256))
    u, v = points[inside].T
    # Within a step h = ln(2)/16 of the mesh the contour is linear in width and batch size: off by h^2/8 in each.
    np.testing.assert_allclose(u, 2.0 + (v - np.log(64)) / 2, atol=1.5 * (np.log(2) / STEPS) ** 2 / 8)
    assert points[:, 1].min() == pytest.approx(np.log(16) - np.log(2) / 2)  # it reaches the frame
    assert points[:, 1].max() == pytest.approx(np.log(256) + np.log(2) / 2)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_two_tests_for_sharp_make_one_boundary_whatever_their_scales(scale):
    # Sharp by the trace for width > 6, by the loss for batch < 40: the boundary is an L with its corner there.
    corner = np.log([6.0, 40.0])
    labels = make_labels(
        trace=lambda u, v: 5.5 + scale * (u - corner[0]) + 0 * v,
        loss=lambda u, v: 0.02 * np.exp(corner[1] - v + 0 * u),
    )
    points = vertices(figures.phase_map(labels), "sharp")
    off = points - corner
    assert (
        np.abs(off).min(axis=1) < np.log(2) / STEPS
    ).all()  # on one of the arms, the corner cut by one mesh step
    assert off[:, 0].max() < 0.02
    assert off[:, 1].min() > -0.02
    assert off[:, 0].min() < -1
    assert off[:, 1].max() > 1


def test_the_cka_boundary_is_only_in_phase_four():
    labels = make_labels(
        trace=lambda u, v: 5.5 + np.log(10.0) - u + 0 * v,  # flat for width > 10
        mc=lambda u, v: -1.75 + np.log(100.0) - v + 0 * u,  # well connected for batch < 100
        cka=lambda u, v: 0.7 + 0.1 * (v - np.log(48.0)) + 0.05 * (u - np.log(16.0)),
    )
    figure = figures.phase_map(labels)
    u, v = vertices(figure, "cka").T
    step = np.log(2) / STEPS
    assert u.min() == pytest.approx(np.log(10.0), abs=2 * step)  # it starts at the sharp boundary, within the mesh
    assert u.min() >= np.log(10.0) - 1e-12
    assert v.max() <= np.log(100.0)
    assert vertices(figure, "mode_connectivity")[:, 0].min() < 0  # the mc boundary crosses the whole map


def test_boundaries_pass_between_cells_of_different_sides():
    rng = np.random.default_rng(1)
    noise = {name: rng.normal(size=(len(WIDTHS), len(BATCHES))) for name in ("trace", "loss", "mc")}
    labels = make_labels(
        trace=lambda *_: 5.5 + noise["trace"],
        loss=lambda *_: 0.02 * np.exp(noise["loss"]),
        mc=lambda *_: -1.75 + noise["mc"],
    )
    lines = {line.name: line.field for line in boundaries(labels, grid_of(labels)).found}
    at_cells = np.s_[STEPS:-STEPS:STEPS, STEPS:-STEPS:STEPS]
    phase = labels["phase"].transpose("batch_size", "width")
    np.testing.assert_array_equal(lines["sharp"][at_cells] > 0, phase.isin(["I", "II"]))
    np.testing.assert_array_equal(lines["mode_connectivity"][at_cells] < 0, phase.isin(["I", "III"]))


def test_a_cell_without_value_breaks_the_lines_and_is_hatched():
    def trace(u, v):
        values = 5.5 + np.log(6.0) - u + 0 * v
        values[2, 2] = np.nan  # width 4, batch size 64: beside the boundary at width 6
        return values

    figure = drawn(figures.phase_map(make_labels(trace=trace)))
    (line,) = by_gid(figure, "sharp")
    v = np.sort(vertices(figure, "sharp")[:, 1])
    assert len([segment for segment in line.allsegs[0] if len(segment)]) == 2
    assert not ((v > np.log(32) + 0.05) & (v < np.log(128) - 0.05)).any()  # the gap reaches to both neighbours
    (hole,) = by_gid(figure, "no-value")
    assert len(hole.get_paths()) == 1
    assert "no phase" in legend_texts(figure)


def test_a_loss_above_its_limit_decides_without_a_trace():
    loss = lambda u, v: 0.02 * np.exp(np.log(6.0) - u + 0 * v)  # noqa: E731
    labels = make_labels(trace=np.nan, loss=loss)
    nothing = boundaries(labels, grid_of(labels))
    assert (nothing.found, nothing.sentences) == ((), ())  # without any label there is nothing to part
    labels = make_labels(trace=lambda u, v: np.where(v < np.log(48.0), 0.0 * u, np.nan), loss=loss)
    labels["phase"][:] = np.where(labels["train_loss"] > 0.02, "II", "IV-A")
    sharp = boundaries(labels, grid_of(labels)).found[0]
    field = sharp.field[STEPS:-STEPS:STEPS, STEPS:-STEPS:STEPS]
    decided = (labels["train_loss"] > 0.02) | labels["ln_trace"].notnull()
    np.testing.assert_array_equal(np.isfinite(field), decided.transpose("batch_size", "width"))


def test_a_metric_without_transition_has_no_line_and_a_sentence_says_so():
    origin = {"train_loss": "no transition", "cka": "no transition"}
    cka = lambda u, v: 0.7 + 0.1 * (v - 4) + 0 * u  # noqa: E731
    labels = make_labels(trace=lambda u, v: 5.5 + 2 - u + 0 * v, cka=cka, origin=origin)
    figure = figures.phase_map(labels)
    assert by_gid(figure, "cka") == []
    assert legend_texts(figure) == ["ln trace = 5.5"]
    assert sentences(figure) == ["none poorly connected: mc ≥ −1.75", "loss: no transition", "CKA: no transition"]


def test_no_transition_may_have_made_every_cell_sharp():
    labels = make_labels(trace=lambda u, v: 5.5 + 2 - u + 0 * v, loss=1.0, origin={"train_loss": "no transition"})
    assert set(labels["phase"].values.flat) == {"II"}
    figure = figures.phase_map(labels)
    assert by_gid(figure, "sharp") == []
    # It is not the trace that made them sharp, so its threshold is not named.
    assert sentences(figure) == ["all sharp", "none poorly connected: mc ≥ −1.75", "loss: no transition"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"trace": 8.0, "loss": 1.0, "mc": -9.0},
            ["all sharp: ln trace > 5.5 or loss > 0.02", "all poorly connected: mc < −1.75"],
        ),
        (
            {"trace": 0.0, "mc": 0.0, "cka": 0.9},
            [
                "all flat: ln trace ≤ 5.5 and loss ≤ 0.02",
                "none poorly connected: mc ≥ −1.75",
                "IV is all IV-B: CKA ≥ 0.7",
            ],
        ),
        (
            {"trace": lambda u, v: 5.5 + 2 - u + 0 * v, "mc": -9.0},
            ["all poorly connected: mc < −1.75"],
        ),
    ],
)
def test_a_test_with_all_cells_on_one_side_is_a_sentence_and_no_line(values, said):
    figure = drawn(figures.phase_map(make_labels(**values)))
    lines = [gid for gid in ("sharp", "mode_connectivity", "cka") if by_gid(figure, gid)]
    assert lines == (["sharp"] if callable(values["trace"]) else [])
    assert legend_texts(figure) == (["ln trace = 5.5 or loss = 0.02"] if lines else [])
    assert sentences(figure) == said
    frame = figure.bbox
    boxes = [text.get_window_extent() for text in by_gid(figure, "sentence")]
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 for box in boxes)
    boxes += [figure.axes[0].get_tightbbox(), *(legend.get_window_extent() for legend in figure.legends if lines)]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_a_line_has_its_style_in_the_legend():
    labels = make_labels(trace=0.0, mc=lambda u, v: -1.75 + np.log(48.0) - v + 0 * u)
    figure = figures.phase_map(labels)
    (line,), (legend,) = by_gid(figure, "mode_connectivity"), figure.legends
    (entry,) = legend.get_lines()
    assert [text.get_text() for text in legend.get_texts()] == ["mc = −1.75"]
    assert entry.get_linewidth() == line.get_linewidths()[0]
    # The contour's dashes are (offset, lengths) in points, those of the entry the same in line widths.
    np.testing.assert_allclose(line.get_linestyles()[0][1], np.multiply(entry._dash_pattern[1], 1.0), rtol=1e-12)


def test_values_on_a_threshold_are_parted_by_a_line():
    # mc = 0 is not poor at the threshold 0: a line runs although no cell lies above it.
    labels = make_labels(trace=0.0, mc=lambda u, v: np.where(v > np.log(48.0), -9.0, -1.75) + 0 * u)
    figure = figures.phase_map(labels)
    assert set(labels["phase"].values.flat) == {"III", "IV-B"}
    assert legend_texts(figure) == ["mc = −1.75"]
    assert len(vertices(figure, "mode_connectivity")) > 1


def test_cells_have_the_colour_of_their_phase_and_names_stand_in_their_region():
    labels = make_labels(
        trace=lambda u, v: 5.5 + np.log(6.0) - u + 0 * v,
        mc=lambda u, v: -1.75 + np.log(48.0) - v + 0 * u,
        cka=lambda u, v: 0.7 + 0.1 * (u - np.log(24.0)) + 0 * v,
    )
    figure = figures.phase_map(labels)
    (mesh,) = by_gid(figure, "phases")
    names = np.array(["I", "II", "III", "IV-A", "IV-B"])
    assert (names[mesh.get_array()] == labels["phase"].transpose("batch_size", "width")).all()
    places = {text.get_text(): text.get_position() for text in by_gid(figure, "name")}
    assert set(places) == set(names)
    for name, (x, y) in places.items():
        # In these grids of factors 2 the nearest value in the logarithm is the cell.
        cell = (np.abs(np.log(WIDTHS) - np.log(x)).argmin(), np.abs(np.log(BATCHES) - np.log(y)).argmin())
        assert labels["phase"].values[cell] == name


def test_the_name_stands_at_the_pole_of_the_region():
    figure = figures.phase_map(make_labels(trace=0.0))  # one region, the whole map, wider than high on paper
    (name,) = by_gid(figure, "name")
    np.testing.assert_allclose(np.log(name.get_position()), [np.log(32) / 2, np.log(64)], atol=0.02)  # a pixel


def test_labels_in_doubt_and_bad_statuses_are_marked_in_their_cells():
    labels = make_labels(trace=0.0)
    labels["probability"][1, 2], labels["probability"][0, 0], labels["margin"][3, 4] = 0.8, np.nan, 0.05
    labels["status"][5, 0], labels["status"][5, 1] = "collapsed", "missing"
    figure = figures.phase_map(labels)

    def marked(gid):
        (mark,) = by_gid(figure, gid)
        u, v = np.log(mark.get_xydata()).T
        return {
            (WIDTHS[np.abs(np.log(WIDTHS) - a).argmin()], BATCHES[np.abs(np.log(BATCHES) - b).argmin()])
            for a, b in zip(u, v, strict=True)
        }

    assert marked("uncertain") == {(2, 64), (8, 256)}
    assert marked("not-ok") == {(32, 16)}
    assert "probability < 0.9 or margin < 0.1" in legend_texts(figure)
    strict = figures.phase_map(labels, min_probability=0.5, min_margin=0.0)
    assert by_gid(strict, "uncertain") == []


def test_the_best_cell_is_starred_and_must_exist():
    labels = make_labels(trace=0.0)
    (star,) = by_gid(figures.phase_map(labels, best={"width": 8, "batch_size": 32}), "best")
    np.testing.assert_allclose(star.get_xydata(), [[8, 32]], rtol=1e-12)
    for wrong in ({"width": 8}, {"width": 9, "batch_size": 32}):
        with pytest.raises(UserError, match=r"Give one value of each axis \(width: 1, 2, 4"):
            figures.phase_map(labels, best=wrong)


# ---- connectivity


def make_tree(loads=WIDTHS, temperatures=BATCHES, seeds=3):
    where = coords(loads=loads, temperatures=temperatures)
    dims = (*where, "seed", "seed_b", "t")
    shape = (len(loads), len(temperatures), seeds, seeds, 4)
    rng = np.random.default_rng(2)
    upper = np.triu(np.ones((seeds, seeds), dtype=bool), 1)[:, :, None]
    where |= {"seed": np.arange(seeds), "seed_b": np.arange(seeds)}
    names = [f"{split}_{kind}" for split in ("train", "test") for kind in ("error", "loss")]
    arrays = {name: (dims, np.where(upper, rng.uniform(0, 50, shape), np.nan)) for name in names}
    curves = xr.Dataset(arrays, coords=where | {"t": [0.0, 0.2, 0.6, 1.0]})
    mc = xr.Dataset({"mode_connectivity": curves["train_error"].isel(t=0, drop=True) - 25.0})
    return xr.DataTree.from_dict({"/curves": curves, "/pairs": mc})


@pytest.mark.parametrize(("quantity", "most"), [("error", 5), ("loss", 3)])
def test_every_pair_is_a_line_and_the_corners_are_shown(quantity, most):
    tree = make_tree()
    figure = figures.connectivity(tree, quantity=quantity, max_panels=most)
    shown = sorted(axes.get_gid() for axes in figure.axes)
    assert len(shown) == min(most, len(BATCHES)) * min(most, len(WIDTHS))
    corners = {"cell-0-0", "cell-0-5", "cell-4-0", "cell-4-5"}
    assert corners <= set(shown)
    for axes in figure.axes:
        _, row, column = axes.get_gid().split("-")
        for split in ("train", "test"):
            data = tree["curves"][f"{split}_{quantity}"].isel(batch_size=int(row), width=int(column))
            lines = [line for line in axes.lines if line.get_gid() == split]
            expected = [data.values[a, b] for a, b in itertools.combinations(range(3), 2)]
            np.testing.assert_array_equal([line.get_ydata() for line in lines], expected)
            np.testing.assert_array_equal(lines[0].get_xdata(), [0.0, 0.2, 0.6, 1.0])
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    mean = float(tree["pairs"]["mode_connectivity"].isel(batch_size=0, width=5).mean())
    (corner,) = by_gid(figure, "cell-0-5")
    assert [text.get_text() for text in corner.texts] == [f"mc {mean:.1f} %".replace("-", "−")]


def test_mode_connectivity_has_its_unit_and_is_explained():
    tree = make_tree(loads=(1, 2), temperatures=(16,))
    mean = "mc: mode connectivity of the error, mean over these pairs."
    assert key_of(figures.connectivity(tree)) == f"One line for each pair of seeds. {mean}"
    values = tree["pairs"]["mode_connectivity"] * 0 - 0.0312
    tree["pairs"]["mode_connectivity"] = values.assign_attrs(units="nat")  # of the loss, as of translation
    figure = figures.connectivity(tree)
    assert {text.get_text() for text in by_gid(figure, "mc")} == {"mc −0.031 nat"}
    assert "mode connectivity of the loss" in key_of(figure)
    without = xr.DataTree.from_dict({"/curves": tree["curves"].to_dataset()})
    assert key_of(figures.connectivity(without)) == "One line for each pair of seeds."


def test_the_hottest_cells_come_first():
    figure = drawn(figures.connectivity(make_tree()))
    (hot,), (cold,) = by_gid(figure, "cell-0-0"), by_gid(figure, "cell-4-0")  # batch sizes 16 and 256
    assert hot.get_position().y0 > cold.get_position().y0
    (wide,) = by_gid(figure, "cell-0-5")
    assert wide.get_position().x0 > hot.get_position().x0
    assert (wide.get_title(), wide.get_ylabel()) == ("32", "16")


def test_a_cell_without_curves_says_so_and_has_no_mc():
    tree = make_tree(loads=(1, 2), temperatures=(16,))
    for name in tree["curves"].data_vars:
        tree["curves"][name][0] = np.nan
    tree["pairs"]["mode_connectivity"][0] = np.nan
    figure = figures.connectivity(tree)
    (empty,) = by_gid(figure, "cell-0-0")
    assert [text.get_text() for text in empty.texts] == ["no value"]
    assert len(empty.lines) == 0


def test_connectivity_refuses_what_it_cannot_draw():
    tree = make_tree()
    with pytest.raises(UserError, match="hold no curves"):
        figures.connectivity(xr.DataTree.from_dict({"/pairs": tree["pairs"].to_dataset()}))
    with pytest.raises(UserError, match='Use "error" or "loss"'):
        figures.connectivity(tree, quantity="accuracy")
    with pytest.raises(UserError, match="Give 2 or more"):
        figures.connectivity(tree, max_panels=1)


# ---- all of them


def test_the_published_archive(shared_data, tmp_path):
    tree = published.load_source(shared_data / "taxonomy" / "results.tar.gz")
    labels = phases.label(tree)
    every = figures.draw_all(tree, labels, limits="published")
    assert list(every) == ["phase_map", "panels", "trace_lines", "connectivity", "connectivity_loss"]
    accuracy = summary.cells(tree)["test_accuracy"]
    (star,) = by_gid(every["phase_map"], "best")
    width, batch = star.get_xydata()[0]
    assert float(accuracy.sel(width=round(width), batch_size=round(batch))) == float(accuracy.max())
    names = {text.get_text() for text in by_gid(every["phase_map"], "name")}
    assert names == set(labels["phase"].values.flat) - {""}
    without = tree.to_dict()
    del without["/curves"]
    without["/models"] = without["/models"].drop_vars("hessian_trace")
    assert list(figures.draw_all(xr.DataTree.from_dict(without), labels)) == ["phase_map", "panels"]


def test_drawing_leaves_the_users_style_alone():
    before = dict(mpl.rcParams)
    figures.panels(make_cells())
    figures.phase_map(make_labels(trace=0.0))
    assert dict(mpl.rcParams) == before


SCRIPT = """
import sys
from pathlib import Path
import logging
logging.basicConfig(level=logging.WARNING)
import test_figures as t
from lossatlas import figures
labels = t.make_labels(trace=lambda u, v: 5.5 + 2 - u + 0 * v)
labels["probability"][0, 0], labels["phase"][2, 3] = 0.1, ""
every = {
    "map.v1": figures.phase_map(labels, best={"width": 8, "batch_size": 32}),
    "panels": figures.panels(t.make_cells()),
    "curves": figures.connectivity(t.make_tree()),
}
for name, figure in every.items():  # the dot in a name is no suffix
    for path in figures.save(figure, Path(sys.argv[1]) / name):
        print(path.name)
"""


def test_saved_files_are_the_same_to_the_byte_in_every_process(tmp_path):
    digests = []
    for salt in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": salt, "PYTHONPATH": os.pathsep.join(sys.path)}
        folder = tmp_path / salt
        command = [sys.executable, "-c", SCRIPT, str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parent)
        assert done.stderr == ""  # no remarks of the font library either
        names = done.stdout.split()
        assert names == [f"{stem}.{kind}" for stem in ("map.v1", "panels", "curves") for kind in ("pdf", "png")]
        digests.append([hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names])
    assert digests[0] == digests[1]
    pdf, png = ((folder / f"map.v1.{kind}").read_bytes() for kind in ("pdf", "png"))
    assert b"CreationDate" not in pdf
    assert b"/Subtype /Type3" not in pdf  # TrueType, as journals ask
    assert b"/Subtype /Image" not in pdf  # vectors only
    width = int.from_bytes(png[16:20], "big")
    assert width == 700  # 3.5 in at 200 dpi


def test_figures_need_neither_pyplot_nor_torch():
    code = "import sys, lossatlas.figures; print({'matplotlib.pyplot', 'torch', 'sklearn'} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"

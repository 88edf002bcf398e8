"""The figure of a slice and the traces against the temperature: what is drawn and where."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from grids import build
from lossatlas import figures, phases, summary
from lossatlas.errors import UserError
from lossatlas.figures.columns import has_trace_lines, through_third
from lossatlas.figures.style import PHASE_COLOURS
from lossatlas.findings.columns import cut

BATCHES = (16, 32, 64, 128)
SIDES = ("I", "II", "III", "IV-B")


def grid(**more):
    cells = {
        (width, batch): {"phase": phase, "accuracy": 50 + width + k, "trace": (8, 7, 5, 4)[k] - width / 10, **more}
        for width in (2, 4, 8)
        for k, (batch, phase) in enumerate(zip(BATCHES, SIDES, strict=True))
    }
    return build(cells, noise=0.05, spread=0.5)


def one_slice(tree, **at):
    return cut(summary.cells(tree), phases.label(tree), at)


def by_gid(figure: Figure, gid: str) -> list:
    return figure.findobj(lambda artist: artist.get_gid() == gid)


def test_a_slice_draws_every_metric_with_its_error():
    cells = one_slice(grid(), width=4)
    figure = figures.column(cells)
    for name in ("test_error", "train_loss", "ln_hessian_trace", "mode_connectivity", "cka"):
        (line,) = by_gid(figure, name)
        np.testing.assert_allclose(line.get_xdata(), BATCHES, rtol=1e-12)  # through logarithms
        np.testing.assert_array_equal(line.get_ydata(), cells[name])
    band = by_gid(figure, "band")[0].get_paths()[0].vertices[:, 1]
    error = float(cells["test_error_se"][0])
    assert band.max() == pytest.approx(float(cells["test_error"].max()) + error, rel=1e-12)
    assert band.min() == pytest.approx(float(cells["test_error"].min()) - error, rel=1e-12)


def test_mode_connectivity_is_told_in_its_units():
    cells = one_slice(grid(), width=4)
    assert by_gid(figures.column(cells), "mode_connectivity")[0].axes.get_ylabel() == "mc (%)"
    cells["mode_connectivity"].attrs["units"] = "nat"  # of the loss, as of translation
    assert by_gid(figures.column(cells), "mode_connectivity")[0].axes.get_ylabel() == "mc (nat)"
    whole = summary.cells(grid())
    whole["mode_connectivity"].attrs["units"] = "nat"
    assert by_gid(figures.panels(whole), "mode_connectivity")[0].colorbar.ax.get_ylabel() == "mc (nat)"


def test_phases_stand_above_the_slice_and_edges_between():
    figure = figures.column(one_slice(grid(), width=4))
    for phase in SIDES:
        (patch,) = by_gid(figure, f"phase {phase}")
        assert to_hex(patch.get_facecolor()) == PHASE_COLOURS[phase]
    assert [text.get_text() for text in by_gid(figure, "name")] == list(SIDES)
    edges = by_gid(figure, "edge")
    assert len(edges) == 5
    assert edges[0].get_xdata()[0] == pytest.approx(np.sqrt(32 * 64), rel=1e-12)  # between II and III


def test_a_peak_is_marked_in_every_panel():
    cells = one_slice(grid(), width=4)
    assert not by_gid(figures.column(cells), "peak")
    assert [line.get_xdata()[0] for line in by_gid(figures.column(cells, peak=32), "peak")] == [32] * 5
    with pytest.raises(UserError, match="peak=33 is no value of batch_size: 16, 32, 64, 128"):
        figures.column(cells, peak=33)


def test_an_axis_with_zero_has_ranks():
    cells = {(2, decay): {"phase": "I", "accuracy": 50} for decay in (0.0, 5e-4, 1e-3)}
    tree = build(cells, axes=("width", "weight_decay"))
    figure = figures.column(one_slice(tree, width=2), peak=5e-4)
    (line,) = by_gid(figure, "test_error")
    np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2])
    assert by_gid(figure, "peak")[0].get_xdata()[0] == 1


def test_what_was_not_measured_is_said():
    tree = build({(2, batch): {"phase": "I", "cka": np.nan} for batch in BATCHES})
    figure = figures.column(one_slice(tree, width=2))
    FigureCanvasAgg(figure).draw()
    said = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert said.count("not measured") == 2  # the test error and CKA
    with pytest.raises(UserError, match="along width, batch_size"):
        figures.column(summary.cells(tree))


def test_traces_have_a_line_for_every_load():
    cells = summary.cells(grid())
    figure = figures.trace_lines(cells)
    lines = by_gid(figure, "line")
    assert [line.get_label() for line in lines] == ["2", "4", "8"]
    for line, width in zip(lines, (2, 4, 8), strict=True):
        np.testing.assert_allclose(line.get_xdata(), BATCHES, rtol=1e-12)  # through logarithms
        np.testing.assert_array_equal(line.get_ydata(), cells["ln_hessian_trace"].sel(width=width))
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 3
    assert figure.axes[0].get_xlim()[0] < figure.axes[0].get_xlim()[1]  # against the batch size, as in the paper
    with pytest.raises(UserError, match="hold no Hessian trace"):
        figures.trace_lines(cells.drop_vars("ln_hessian_trace"))


def test_the_style_is_only_inside():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    figures.column(one_slice(grid(), width=4), title="width = 4")
    figures.trace_lines(summary.cells(grid()), title="n_train = 5000")
    assert dict(mpl.rcParams) == before


# ---- what the marks mean


def key_of(figure: Figure) -> str:
    """What stands below a figure about its marks, in one line."""
    (text,) = by_gid(figure, "key")
    return " ".join(text.get_text().split())


def test_bands_and_lines_of_a_slice_are_explained_where_they_occur():
    cells = one_slice(grid(), width=4)
    means = "Means over 3 seeds; bands: one standard error to either side."
    assert (
        key_of(figures.column(cells)) == f"{means} Dotted: where I or II meets III or IV. mc: mode connectivity."
    )
    cells["phase"][:] = "III"
    cells["phase"][0] = ""
    told = key_of(figures.column(cells, peak=32))
    assert "Dashed: the peak of the double descent. Hatched: no phase." in told
    assert "Dotted" not in told


def test_what_has_no_band_is_told():
    single = build({(2, b): {"phase": "I", "accuracy": 50} for b in BATCHES}, spread=1.0, one_curve=True)
    assert "one standard error to either side (none of mc: a single value a cell)." in key_of(
        figures.column(one_slice(single, width=2))
    )
    alone = build({(2, b): {"phase": "I", "accuracy": 50} for b in BATCHES}, n_seeds=1)
    assert key_of(figures.column(one_slice(alone, width=2))).startswith("One seed, so no standard errors.")
    some = summary.cells(grid())
    some["n_ok"][0, 0] = 2
    assert (
        key_of(figures.trace_lines(some)) == "Means over up to 3 seeds; bands: one standard error to either side."
    )


def test_a_slice_of_translations_shows_bleu():
    cells = one_slice(grid(), width=4)
    cells["bleu"] = 30 - cells["test_error"] / 10
    figure = figures.column(cells)
    (line,) = by_gid(figure, "bleu")
    np.testing.assert_array_equal(line.get_ydata(), cells["bleu"])
    assert line.axes.get_ylabel() == "BLEU"
    assert by_gid(figure, "test_error") == []


@pytest.mark.parametrize("figure", ["column", "trace_lines"])
def test_nothing_touches_the_words_below(figure):
    if figure == "column":
        drawn = figures.column(one_slice(grid(), width=4), peak=32, title="Width 4")
    else:
        drawn = figures.trace_lines(summary.cells(grid()), title="5,000 training samples")
    FigureCanvasAgg(drawn).draw()
    (key,) = by_gid(drawn, "key")
    box = key.get_window_extent()
    assert drawn.bbox.x0 <= box.x0
    assert box.x1 <= drawn.bbox.x1
    assert box.y0 >= drawn.bbox.y0
    assert not any(box.overlaps(axes.get_tightbbox()) for axes in drawn.axes)
    heights = [axes.get_tightbbox().y1 for axes in drawn.axes]
    (title,) = [text for text in drawn.texts if text.get_text() == drawn.get_suptitle()]
    assert title.get_window_extent().y0 >= max(heights)


def test_the_numbers_of_the_temperature_do_not_touch():
    batches = [16, 19, 24, 27, 32, 44, 64, 92, 128, 180, 256, 364, 512, 724, 1024]
    noises = (0.0, 0.1, 0.8)
    cells = {(noise, batch): {"trace": 4.0 + noise} for noise in noises for batch in batches}
    figure = figures.trace_lines(summary.cells(build(cells, axes=("label_noise", "batch_size"))))
    FigureCanvasAgg(figure).draw()
    labels = [label for label in figure.axes[0].get_xticklabels() if label.get_text()]
    boxes = [label.get_window_extent() for label in labels]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    (legend,) = figure.legends
    assert legend.get_window_extent().x1 <= figure.bbox.x1
    assert not legend.get_window_extent().overlaps(figure.axes[0].get_window_extent())


# ---- which are drawn


def test_columns_through_the_third_phase_come_with_most_of_it_first():
    sides = {  # width: phases from hot to cold
        2: ("I", "I", "I", "III"),
        4: ("II", "III", "III", "IV-A"),
        8: ("III", "III", "III", "III"),  # no I or II: nothing to compare it with
        16: ("I", "II", "IV-A", "IV-B"),
        32: ("I", "III", "III", "III"),
    }
    cells = {(w, b): {"phase": side} for w, row in sides.items() for b, side in zip(BATCHES, row, strict=True)}
    assert through_third(phases.label(build(cells))) == [{"width": 32}, {"width": 4}, {"width": 2}]


@pytest.mark.parametrize(
    ("having", "expected"),
    [
        ({(2, 16), (2, 32), (4, 16), (4, 32)}, True),
        ({(2, 16), (4, 32)}, True),
        ({(2, 16), (2, 32)}, False),
        ({(2, 16), (4, 16)}, False),
        (set(), False),
    ],
)
def test_traces_need_two_loads_and_two_temperatures(having, expected):
    cells = {
        (w, b): {"loss": 1.0, **({"trace": 4.0} if (w, b) in having else {})} for w in (2, 4) for b in (16, 32)
    }
    assert has_trace_lines(summary.cells(build(cells))) is expected

"""The figure of a slice and the traces against the temperature: what is drawn and where."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from grids import build
from lossatlas import figures, phases, summary
from lossatlas.errors import UserError
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

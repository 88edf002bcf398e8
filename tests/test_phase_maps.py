"""The phase maps of several amounts of data in one figure: what is drawn and where."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from grids import build
from lossatlas import figures, phases, summary
from lossatlas.errors import UserError
from lossatlas.figures.style import PHASE_COLOURS

WIDTHS = (2, 4, 8, 16)
BATCHES = (16, 32, 64)
NAMES = np.array(list(PHASE_COLOURS))


def grid(amounts=(1000, 5000), *, sides=None, **more):
    """I above III, the edge now one, now two batches down, or one of `sides` an amount; wide models are best."""

    def phase(k, batch):
        return ("I" if BATCHES.index(batch) <= k % 2 else "III") if sides is None else sides[k]

    cells = {
        (width, amount, batch): {"phase": phase(k, batch), "accuracy": 50 + width + k - batch / 1000}
        for width in WIDTHS
        for k, amount in enumerate(amounts)
        for batch in BATCHES
    }
    return build(cells, axes=("width", "n_train", "batch_size"), **more)


def by_gid(figure: Figure, gid: str) -> list:
    return figure.findobj(lambda artist: artist.get_gid() == gid)


def drawn(tree, **more) -> Figure:
    figure = figures.phase_maps(phases.label(tree), cells=summary.cells(tree), **more)
    FigureCanvasAgg(figure).draw()
    return figure


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_each_amount_has_its_map_with_its_name():
    tree = grid()
    labels = phases.label(tree)
    figure = drawn(tree)
    assert [axes.get_title() for axes in figure.axes] == ["1,000 training samples", "5,000 training samples"]
    for mesh, amount in zip(by_gid(figure, "phases"), (1000, 5000), strict=True):
        expected = labels["phase"].sel(n_train=amount).transpose("batch_size", "width")
        np.testing.assert_array_equal(NAMES[mesh.get_array()], expected)


def test_axes_and_legend_are_shared():
    figure = drawn(grid())
    first, second = figure.axes
    assert (first.get_xlim(), first.get_ylim()) == (second.get_xlim(), second.get_ylim())
    assert [label.get_text() for label in first.get_yticklabels()] == ["16", "32", "64"]
    assert not any(label.get_text() for label in second.get_yticklabels())
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("Width (load →)", "Batch size (hotter →)")
    assert legend_texts(figure) == [
        "Phase I",
        "Phase III",
        "ln trace = 5.5 or loss = 0.02",
        "best test accuracy",
    ]
    edges = [np.concatenate(line.allsegs[0])[:, 1].mean() for line in by_gid(figure, "sharp")]
    assert edges[0] < edges[1]  # the edge lies one batch size further


def test_a_star_marks_the_best_cell_of_each_map():
    figure = drawn(grid())
    for star in by_gid(figure, "best"):
        np.testing.assert_allclose(star.get_xydata(), [[16, 16]], rtol=1e-12)
    assert len(by_gid(figure, "best")) == 2
    bare = figures.phase_maps(phases.label(grid()))
    assert by_gid(bare, "best") == []
    assert "best test accuracy" not in legend_texts(bare)


def test_the_words_below_hold_in_every_map():
    (key,) = by_gid(drawn(grid()), "key")
    assert key.get_text() == "In every map: all poorly connected: mc < −1.75."
    mixed = grid(sides=("IV-A", "III"))  # one well, the other poorly connected
    (key,) = by_gid(drawn(mixed), "key")
    assert key.get_text() == "In every map: all flat: ln trace ≤ 5.5 and loss ≤ 0.02."


def test_a_map_without_phases_is_hatched():
    tree = grid()
    tree["models"]["status"].loc[{"n_train": 1000}] = "missing"
    figure = drawn(tree)
    (holes,) = by_gid(figure, "no-value")
    assert holes.axes is figure.axes[0]
    assert len(holes.get_paths()) == len(WIDTHS) * len(BATCHES)
    assert "no phase" in legend_texts(figure)


@pytest.mark.parametrize("count", [2, 3, 5, 6, 10, 12])
def test_up_to_twelve_maps_fit_two_columns_of_a_paper(count):
    figure = drawn(grid([1000 * (k + 1) for k in range(count)], n_seeds=1), title="A run")
    assert len(figure.axes) == count
    assert figure.get_size_inches()[0] <= 7.2 + 1e-9
    texts = [
        figure.texts,
        *([axes.title for axes in figure.axes],),
        *(legend.get_texts() for legend in figure.legends),
    ]
    boxes = [text.get_window_extent() for text in itertools.chain(*texts) if text.get_text()]
    boxes += [axes.get_window_extent() for axes in figure.axes]
    boxes += [
        label.get_window_extent()
        for axes in figure.axes
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels())
        if label.get_text()
    ]
    touching = [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    assert not touching
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_of_more_maps_twelve_are_picked():
    figure = drawn(grid([100 * (k + 1) for k in range(20)], n_seeds=1))
    names = [axes.get_title() for axes in figure.axes]
    assert len(names) == 12
    assert (names[0], names[-1]) == ("100 training samples", "2,000 training samples")
    (key,) = by_gid(figure, "key")
    assert key.get_text().startswith("12 of 20 maps.")


def test_one_load_axis_is_refused():
    labels = phases.label(grid()).sel(n_train=1000, drop=True)
    with pytest.raises(UserError, match="need a second load axis"):
        figures.phase_maps(labels)

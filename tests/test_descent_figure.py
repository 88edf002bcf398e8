"""The figure of a double descent: what is drawn and where."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from grids import build
from lossatlas import figures, phases, summary
from lossatlas.errors import UserError
from lossatlas.findings.columns import cut
from lossatlas.findings.double_descent import search

ACCURACIES = [50, 60, 70, 65, 55, 70, 80, 85]  # the test error falls, rises and falls again
FITS = [60, 50, 40, 20, 5, 0.4, 0, 0]
SIDES = ["I", "I", "I", "I", "III", "III", "IV-A", "IV-B"]


def drawn(axis: str = "width", *, accuracies=ACCURACIES, sides=SIDES, values=None, **more) -> tuple[Figure, dict]:
    values = values or [2**k for k in range(len(accuracies))]
    cells = {}
    for value, accuracy, fit, phase in zip(values, accuracies, FITS, sides, strict=True):
        place = (value, 16) if axis == "width" else (4, value)
        cells[place] = {"accuracy": accuracy, "train_error": fit, **({"phase": phase} if phase else {})}
    tree = build(cells, axes=("width", "batch_size" if axis == "width" else axis), spread=0.2, n_seeds=4)
    labels = phases.label(tree)
    (found,) = [each for each in search(tree, labels, draws=199) if each.axis == axis]
    sliced = cut(summary.cells(tree), labels, found.at)
    figure = figures.descent(sliced, found, **more)
    FigureCanvasAgg(figure).draw()
    return figure, {"cells": sliced, "found": found}


def by_gid(figure: Figure, gid: str) -> list:
    return figure.findobj(lambda artist: artist.get_gid() == gid)


def test_both_errors_with_their_bars() -> None:
    figure, about = drawn()
    for name in ("test_error", "train_error"):
        (line,) = by_gid(figure, name)
        np.testing.assert_allclose(line.get_xdata(), [2**k for k in range(8)], rtol=1e-12)  # through logarithms
        np.testing.assert_array_equal(line.get_ydata(), about["cells"][name])
    (container,) = by_gid(figure, "test_error")[0].axes.containers
    (bars,) = container[2]
    lengths = [float(np.ptp(each[:, 1])) for each in bars.get_segments()]
    np.testing.assert_allclose(lengths, 2 * about["cells"]["test_error_se"], rtol=1e-9)


def test_the_steps_stand_above() -> None:
    figure, about = drawn()
    assert [text.get_text() for text in by_gid(figure, "step")] == ["fall", "rise", "fall"]
    middles = [text.get_position()[0] for text in by_gid(figure, "step")]
    assert middles == pytest.approx([2.0, 8.0, np.sqrt(16 * 128)])  # geometric means of 1 4 16 128
    error = np.hypot(*about["cells"]["test_error_se"].values[[2, 4]])
    (sizes,) = by_gid(figure, "sizes")
    assert f"falls 20.00 ± {error:.2f}, rises 15.00 ± {error:.2f}, falls 30.00 ±" in sizes.get_text()
    assert [line.get_xdata()[0] for line in by_gid(figure, "peak")] == [16, 16]


def test_where_the_data_are_fitted() -> None:
    figure, _ = drawn(wrong_labels=0.2)
    assert [line.get_xdata()[0] for line in by_gid(figure, "fitted")] == pytest.approx([np.sqrt(16 * 32)] * 2)
    (level,) = by_gid(figure, "wrong labels")
    assert level.get_ydata()[0] == 20.0
    texts = [text.get_text() for text in by_gid(figure, "train_error")[0].axes.texts]
    assert texts == ["< 0.5 %", "20 % wrong labels"]
    for none in (0.0, np.nan):
        assert not by_gid(drawn(wrong_labels=none)[0], "wrong labels")


def test_from_hot_to_cold_the_fitted_side_is_the_other() -> None:
    """Learning rates: the cold ones, at the left, fit their data."""
    rates = [2.0**-k for k in range(8)]
    figure, about = drawn("lr", values=rates)
    assert about["found"].peak == rates[4]
    assert by_gid(figure, "fitted")[0].get_xdata()[0] == pytest.approx(np.sqrt(rates[4] * rates[5]))
    figure, _ = drawn("batch_size")
    assert by_gid(figure, "fitted")[0].get_xdata()[0] == pytest.approx(np.sqrt(16 * 32))


def test_without_a_double_descent_there_are_the_curves_alone() -> None:
    figure, about = drawn(accuracies=sorted(ACCURACIES))
    assert about["found"].found == "no"
    for gid in ("step", "sizes", "peak"):
        assert not by_gid(figure, gid)
    assert len(by_gid(figure, "test_error")) == 1


def test_phases_only_where_there_are_any() -> None:
    assert len(drawn()[0].axes) == 3
    assert len(drawn(sides=[""] * 8)[0].axes) == 2


def test_a_grid_is_no_slice() -> None:
    _, about = drawn()
    tree = build({(w, b): {"phase": "I", "accuracy": 50} for w in (2, 4) for b in (16, 32)})
    cells = summary.cells(tree).assign(phase=phases.label(tree)["phase"])
    with pytest.raises(UserError, match="along width, batch_size"):
        figures.descent(cells, about["found"])


def test_bars_and_lines_are_explained_where_they_occur() -> None:
    figure, _ = drawn(wrong_labels=0.2, title="Batch size 16")
    (key,) = by_gid(figure, "key")
    assert " ".join(key.get_text().split()) == (
        "Means over 4 seeds; bars: one standard error to either side. Dotted: where the training error falls "
        "below 0.5 %. Dashed, upright: the peak. Dashed, level: the share of wrong training labels."
    )
    others = [axes.get_tightbbox() for axes in figure.axes]
    assert not any(key.get_window_extent().overlaps(other) for other in others)
    (title,) = [text for text in figure.texts if text.get_text() == "Batch size 16"]
    (sizes,) = by_gid(figure, "sizes")
    assert title.get_window_extent().y0 >= sizes.get_window_extent().y1
    figure, about = drawn(accuracies=[50, 55, 60, 65, 70, 75, 80, 85])  # no descent
    assert about["found"].found == "no"
    (key,) = by_gid(figure, "key")
    assert "Dashed" not in key.get_text()

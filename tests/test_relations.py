"""Datasets and figures of how models relate."""

import math

import numpy as np
import pytest
import torch
import xarray as xr

from lossatlas import figures, pair_results
from lossatlas.errors import UserError
from lossatlas.landscape import paths
from lossatlas.landscape.estimate import Estimate

TS = torch.linspace(0, 1, 5, dtype=torch.float64)


def connection(models: tuple[int, int], path: str, errors: list[float]) -> pair_results.Connection:
    error = torch.tensor(errors, dtype=torch.float64)
    along = paths.PathValues(TS, 3 * TS, {"loss": error / 10, "error": error}, {}, "line", "eval")
    return pair_results.Connection(models, path, along, paths.connectivity(error, TS, guessing=90))


@pytest.fixture
def connections() -> xr.Dataset:
    return pair_results.connections(
        [
            connection((1, 2), "line", [1, 4, 9, 4, 3]),
            connection((1, 2), "bezier", [1, 1, 1, 2, 3]),
            connection((1, 3), "line", [1, 30, 60, 70, 90]),  # ends where nothing was learnt
            connection((1, 3), "bezier", [1, 2, 3, 4, 5]),
        ]
    )


def test_connections_hold_barriers_and_connectivity_of_every_path(connections: xr.Dataset) -> None:
    first = connections.sel(pair="1 - 2")
    # At t = 1/2 the line lies 7 above the mean of its ends, which is the straight line's value there.
    assert first["error_barrier"].values.tolist() == [7, 0]
    assert first["loss_barrier"].values == pytest.approx([0.7, 0])
    assert first["mode_connectivity"].values.tolist() == [-7, 1]
    assert first["t_star"].values.tolist() == [0.5, 0.25]
    assert first["arc_length"].values[0].tolist() == (3 * TS).tolist()
    bad = connections.sel(pair="1 - 3", path="line")
    assert bad["status"].item() == "collapsed"
    assert math.isnan(bad["mode_connectivity"].item())
    assert connections.sel(pair="1 - 3", path="bezier")["status"].item() == "ok"


def test_the_figure_of_connections_draws_every_path(connections: xr.Dataset) -> None:
    figure = figures.plot(connections)
    lines = {line.get_gid(): line for axes in figure.axes for line in axes.lines}
    assert len(lines) == 2 * 2 * 2
    for pair in ("1 - 2", "1 - 3"):
        for path in ("line", "bezier"):
            drawn = lines[f"error {pair} {path}"]
            assert np.array_equal(drawn.get_ydata(), connections["error"].sel(pair=pair, path=path))
            assert np.array_equal(drawn.get_xdata(), TS)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles[0] == "models 1 - 2\nline: mc −7 %\nbezier: mc 1 %"
    assert "line: collapsed" in titles[1]


def test_many_pairs_fill_several_rows() -> None:
    pairs = [(a, b) for a in range(1, 5) for b in range(a + 1, 5)]
    figure = figures.plot(pair_results.connections([connection(p, "line", [1, 2, 3, 2, 1]) for p in pairs]))
    assert sum(axes.get_visible() for axes in figure.axes) == 2 * len(pairs)


def test_a_comparison_stands_in_the_upper_half_and_is_drawn_with_its_errors() -> None:
    model = {"loss": Estimate(0.5, 0.1, 9), "error": Estimate(20.0, 2.0, 9)}
    found = {
        pair: {name: Estimate(sum(pair) + k, 0.5, 9) for k, name in enumerate(pair_results.COMPARED)}
        for pair in ((1, 2), (1, 3), (2, 3))
    }
    dataset = pair_results.comparison([model] * 3, found, Estimate(10.0, 1.0, 9))
    assert dataset["distance"].values[0, 1] == 3
    assert np.isnan(dataset["distance"].values).tolist() == (~np.triu(np.ones((3, 3), bool), 1)).tolist()
    assert dataset["cka_se"].sel(model=2, model_b=3).item() == 0.5
    assert (dataset["ensemble_error"].item(), dataset["loss"].values.tolist()) == (10, [0.5] * 3)
    figure = figures.plot(dataset)
    texts = {(axes.get_title(), t.get_text()) for axes in figure.axes for t in axes.texts}
    assert len(texts) == 6 * 3
    assert ("disagreement (%)", "4.00\n± 0.50") in texts


def test_other_datasets_are_refused() -> None:
    for draw in (figures.connection, figures.comparison):
        with pytest.raises(UserError):
            draw(xr.Dataset({"loss": ("x", [1.0])}))

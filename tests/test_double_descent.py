"""Double descent: the statistic against loops, the fit against an independent library, rates by simulation."""

import itertools
import math

import numpy as np
import pytest
import xarray as xr
from sklearn.isotonic import IsotonicRegression

from grids import build
from lossatlas import phases, published
from lossatlas.findings.double_descent import Descent, fit_without, holm, pattern, search

SEEDS = 5


def by_loops(samples: np.ndarray) -> float:
    y, s = samples.mean(axis=1), samples.std(axis=1, ddof=1) / math.sqrt(samples.shape[1])

    def t(i: int, j: int) -> float:
        return (y[i] - y[j]) / math.hypot(s[i], s[j])

    return max(min(t(a, b), t(c, b), t(c, d)) for a, b, c, d in itertools.combinations(range(len(y)), 4))


@pytest.mark.parametrize("seed", range(5))
def test_the_statistic_is_that_of_all_four_cells(seed: int) -> None:
    samples = np.random.default_rng(seed).normal(size=(7, SEEDS))
    found = pattern(samples, draws=1)
    assert found.statistic == pytest.approx(by_loops(samples), rel=1e-12)
    a, b, c, d = found.cells
    assert a < b < c < d
    y = samples.mean(axis=1)
    assert found.sizes == pytest.approx((y[a] - y[b], y[c] - y[b], y[c] - y[d]), rel=1e-12)
    assert min(np.divide(found.sizes, found.size_errors)) == pytest.approx(found.statistic, rel=1e-12)


def isotonic_loss(y: np.ndarray, w: np.ndarray, increasing: bool) -> float:
    if not len(y):
        return 0.0
    fit = IsotonicRegression(increasing=increasing).fit(np.arange(len(y)), y, w).predict(np.arange(len(y)))
    return float((w * (y - fit) ** 2).sum())


@pytest.mark.parametrize("seed", range(5))
def test_the_fit_without_is_the_best_of_all_splits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, errors = rng.normal(size=8), rng.uniform(0.5, 1.5, size=8)
    w = errors**-2
    fitted = fit_without(y, errors)
    steps = np.sign(np.diff(fitted))
    changes = [int(s) for s, _ in itertools.groupby(steps[steps != 0])]
    assert changes in ([1, -1, 1], [1, -1], [-1, 1], [1], [-1], [])
    losses = [
        isotonic_loss(y[:p], w[:p], True)
        + isotonic_loss(y[p:q], w[p:q], False)
        + isotonic_loss(y[q:], w[q:], True)
        for p, q in itertools.combinations_with_replacement(range(9), 2)
    ]
    assert (w * (y - fitted) ** 2).sum() == pytest.approx(min(losses), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "curve", [[5, 4, 3, 2, 1], [1, 2, 3], [3, 1, 2], [1, 3, 2], [1, 4, 2, 3], [2, 2, 2], [1, 1, 3, 3, 0, 5]]
)
def test_a_curve_without_double_descent_fits_itself(curve: list[float]) -> None:
    y = np.array(curve, dtype=float)
    np.testing.assert_array_equal(fit_without(y, np.ones(len(y))), y)


def test_holm_by_hand() -> None:
    # Sorted .01 .02 .03 .5: times 4, 3, 2, 1, then the running maximum.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([]) == []


# ---- rates

N = 12
FALLING = np.linspace(50, 20, N)
NULLS = {
    "constant": np.zeros(N),
    "falling": FALLING,
    "gently falling": np.linspace(2, 0, N),
    "fall and plateau": np.concatenate([np.linspace(30, 0, 5), np.zeros(N - 5)]),
    "valley": np.abs(np.arange(N) - 5.0) * 4,
    "fall, rise and plateau": np.concatenate([[30, 15, 0], np.full(N - 3, 25.0)]),
    "plateau, rise, fall, rise": np.array([0, 0, 0, 10, 20, 10, 0, 0, 10, 20, 20, 20.0]),
}
PLANTED = np.array([40, 30, 22, 18, 18, 18, 18, 17, 15, 12, 10, 9.0])


def found_share(curve: np.ndarray, repeats: int, *, sigma: float = 1.0, seeds: int = SEEDS) -> float:
    rng = np.random.default_rng(0)
    hits = 0
    for k in range(repeats):
        samples = curve[:, None] + sigma * rng.normal(size=(len(curve), seeds))
        hits += pattern(samples, draws=199, seed=k).is_found()
    return hits / repeats


@pytest.mark.parametrize("name", NULLS)
def test_noise_is_rarely_called_double_descent(name: str) -> None:
    """At most 5 %: of 150 curves 14 or more would be found once in a hundred tests if it were 5 % exactly."""
    assert found_share(NULLS[name], 150) * 150 <= 13


def peaked(height: float) -> np.ndarray:
    """A falling curve with a peak whose rise and second fall are `height`."""
    curve = PLANTED.copy()
    curve[5] += height
    return curve


def test_a_planted_double_descent_is_found() -> None:
    """A difference of two means of five seeds has the error 0.63 sigma; a peak of 4 sigma is 6.3 errors high."""
    assert found_share(peaked(4.0), 60) > 0.9


# ---- slices of results


def one_slice(accuracies: list[float], *, spread: float = 0.2, fits: list[float] | None = None, **cells: str):
    widths = [2**k for k in range(len(accuracies))]
    grid = {(width, 16): {"accuracy": a} for width, a in zip(widths, accuracies, strict=True)}
    for k, (cell, phase) in enumerate(zip(grid.values(), cells.get("phases", ["I"] * len(grid)), strict=True)):
        cell["phase"] = phase
        if fits is not None:
            cell["train_error"] = fits[k]
    return build(grid, spread=spread, n_seeds=4)


ACCURACIES = [50, 60, 70, 65, 55, 70, 80, 85]  # the test error falls to width 4, rises to 16, falls again


def along(tree, axis: str) -> Descent:
    (found,) = [each for each in search(tree, phases.label(tree), draws=499) if each.axis == axis]
    return found


def test_the_peak_is_placed_beside_the_edges() -> None:
    sides = ["I", "I", "I", "I", "III", "III", "IV-A", "IV-B"]
    tree = one_slice(ACCURACIES, phases=sides, fits=[40, 30, 20, 10, 1, 0.1, 0.0, 0.0])
    found = along(tree, "width")
    assert found.found == "yes"
    assert (found.start, found.valley, found.peak, found.end) == (1, 4, 16, 128)
    assert (found.fall, found.rise, found.second_fall) == pytest.approx((20, 15, 30))
    error = math.sqrt(2 * 0.2**2 * np.var([-1.5, -0.5, 0.5, 1.5], ddof=1) / 4)  # of two means of four seeds
    assert (found.fall_se, found.rise_se, found.second_fall_se) == pytest.approx((error, error, error))
    assert found.from_boundary == 0.5  # the edge lies between the fourth and the fifth cell, the peak is the fifth
    assert found.from_interpolation == -0.5  # the sixth cell is the first to fit its data
    assert (found.order, found.at) == ("upwards", {"batch_size": 16})


def test_a_falling_error_is_no_double_descent() -> None:
    found = along(one_slice([50, 55, 60, 65, 70, 75, 80, 85]), "width")
    assert found.found == "no"
    assert found.p_adjusted > 0.05
    assert math.isnan(found.from_boundary)
    assert math.isnan(found.from_interpolation)


def test_temperature_runs_from_hot_to_cold() -> None:
    """The same errors by rising batch size, and by falling learning rate."""
    for axis, values in (("batch_size", [2**k for k in range(8)]), ("lr", [2.0**-k for k in range(8)])):
        cells = {(4, v): {"phase": "I", "accuracy": a} for v, a in zip(values, ACCURACIES, strict=True)}
        found = along(build(cells, axes=("width", axis), spread=0.2, n_seeds=4), axis)
        assert (found.found, found.order) == ("yes", "hot to cold")
        assert (found.valley, found.peak) == (values[2], values[4])


def test_what_cannot_be_told() -> None:
    few = along(one_slice([50, 60, 55]), "width")
    assert (few.found, few.reason) == ("not measured", "3 cells with two seeds or more; 4 are needed")
    tree = one_slice(ACCURACIES)
    labels = phases.label(tree)
    single = tree.map_over_datasets(lambda group: group.isel(seed=slice(1)) if "seed" in group.dims else group)
    assert {each.found for each in search(single, labels)} == {"not measured"}
    blind = build({(2**k, 16): {"phase": "I"} for k in range(5)})
    assert along(blind, "width").reason == "0 cells with two seeds or more; 4 are needed"
    unmeasured = xr.DataTree.from_dict({"/models": blind["models"].to_dataset().drop_vars("test_error")})
    assert [each.reason for each in search(unmeasured, labels.isel(width=slice(5)))] == ["no test errors"]
    alone = build({(2, 16): {"phase": "I", "accuracy": 50}})
    assert search(alone, phases.label(alone)) == []


def test_seeds_that_agree_exactly() -> None:
    tree = one_slice(ACCURACIES, spread=0.0)
    found = along(tree, "width")
    assert found.found == "yes"
    assert found.statistic == math.inf


def test_many_slices_share_the_chance_of_error() -> None:
    cells = {
        (2**k, batch): {"phase": "I", "accuracy": a}
        for k, a in enumerate(ACCURACIES)
        for batch in (16, 32, 64, 128)
    }
    tree = build(cells, spread=0.2, n_seeds=4)
    found = search(tree, phases.label(tree), draws=99)
    assert len(found) == 4 + 8
    assert {each.found for each in found if each.axis == "width"} == {"no"}  # 12 / 100 is above alpha
    assert all(each.p_adjusted == pytest.approx(0.12) for each in found if each.axis == "width")
    assert {each.found for each in search(tree, phases.label(tree), draws=99, alpha=0.2)} == {"yes", "no"}


def test_the_archive_shows_none(shared_data) -> None:
    """Clean labels and a decayed rate: no slice of [Yang2021]'s own data has a clear double descent."""
    tree = published.load_source(shared_data / "taxonomy" / "results.tar.gz")
    found = search(tree, phases.label(tree), draws=199)
    assert len(found) == 8 + 14
    assert {each.found for each in found} == {"no"}
    assert max(each.statistic for each in found) == pytest.approx(1.487, abs=5e-4)  # along the batch size, width 4

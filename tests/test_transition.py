"""Otsu against brute force and scikit-image's definition; noise and ramps are no transition, steps are."""

import numpy as np
import pytest

from lossatlas import transition


def best_split(values: np.ndarray) -> tuple[float, float]:
    """Every cut between two sorted values, by the definition: the largest variance between two classes."""
    ordered = np.sort(values)
    best = (-1.0, np.nan)
    for k in range(1, len(ordered)):
        low, high = ordered[:k], ordered[k:]
        if low[-1] == high[0]:
            continue
        weights = np.array([k, len(ordered) - k]) / len(ordered)
        between = weights @ (np.array([low.mean(), high.mean()]) - ordered.mean()) ** 2
        if between > best[0] * (1 + 1e-12):
            best = (between, (low[-1] + high[0]) / 2)
    return best[1], best[0] / ordered.var()


@pytest.mark.parametrize("n", [2, 3, 10, 57])
def test_otsu_against_every_split(n: int) -> None:
    rng = np.random.default_rng(n)
    samples = np.stack([rng.normal(size=n), rng.exponential(size=n), 1e6 + rng.uniform(size=n)])
    thresholds, explained = transition.otsu(samples)
    expected = [best_split(row) for row in samples]
    # The row around 1e6 has lost 10 of its 16 digits.
    np.testing.assert_allclose(thresholds, [e[0] for e in expected], rtol=1e-13)
    np.testing.assert_allclose(explained, [e[1] for e in expected], rtol=1e-6)


def test_otsu_never_cuts_between_equal_values() -> None:
    thresholds, explained = transition.otsu(np.array([[0.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]]))
    assert (thresholds[0], explained[0]) == (0.5, 1.0)
    assert np.isnan(thresholds[1])
    assert np.isnan(explained[1])


@pytest.mark.parametrize("kind", ["random", "standard_normal"])
@pytest.mark.parametrize("shape", [(14, 8), (5, 5)])
def test_noise_is_no_transition(kind: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    cuts = [transition.find_cut(getattr(rng, kind)(shape), seed=k) for k in range(60)]
    # At most 1 % each by the permutation test: four or more of 60 have a chance of 0.3 %.
    assert sum(cut.is_transition for cut in cuts) <= 3
    # What makes this necessary: Otsu explains .75 and .64 of their variance in large grids, more in small ones.
    assert np.mean([cut.explained for cut in cuts]) > 0.6


@pytest.mark.parametrize("shape", [(14, 8), (5, 5)])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_ramp_is_no_transition(shape: tuple[int, int], noise: float) -> None:
    i, j = np.indices(shape)
    rng = np.random.default_rng(3)
    ramp = i / shape[0] + 0.5 * j / shape[1]
    for k in range(10):
        cut = transition.find_cut(ramp / ramp.std() + noise * rng.standard_normal(shape), seed=k)
        assert not cut.is_transition
        assert cut.ramp > cut.explained


@pytest.mark.parametrize("where", ["half", "diagonal", "corner"])
def test_a_step_is_a_transition(where: str) -> None:
    i, j = np.indices((5, 5))
    high = {"half": i >= 2, "diagonal": i + j >= 4, "corner": (i >= 2) & (j >= 2)}[where]
    rng = np.random.default_rng(4)
    for k in range(10):
        cut = transition.find_cut(high + 0.1 * rng.standard_normal((5, 5)), seed=k)
        assert cut.is_transition
        assert 0.3 < cut.threshold < 0.7  # ten standard deviations part the levels


def test_an_isolated_outlier_is_no_transition() -> None:
    grid = np.zeros((5, 5))
    grid[2, 2] = 100.0
    assert not transition.find_cut(grid).is_transition


def test_the_join_count_on_a_line() -> None:
    # 0000 1111 in a row has one unequal pair of neighbours; so have 2 of the C(8, 4) = 70 arrangements.
    cut = transition.find_cut(np.array([0.0, 0, 0, 0, 1, 1, 1, 1]), seed=1)
    # 999 permutations of a share of 2/70 = .029 spread by .005.
    assert cut.p_value == pytest.approx(2 / 70, abs=4 * 0.0053)
    assert cut.changed < 0.02  # only a resample of one level moves anything
    assert cut.ramp == pytest.approx(1 - 10 / 42, rel=1e-12)  # R^2 of a step of 4 + 4 on a line: 16/21


def test_missing_cells_take_no_part() -> None:
    i, _ = np.indices((6, 5))
    grid = (i >= 3) + 0.05 * np.random.default_rng(6).standard_normal((6, 5))
    grid[0, 0] = grid[5, 4] = grid[3, 2] = np.nan
    assert transition.find_cut(grid).is_transition


@pytest.mark.parametrize("grid", [np.full((5, 5), np.nan), np.ones((5, 5)), np.array([[1.0]]), np.zeros((0, 3))])
def test_nothing_to_cut(grid: np.ndarray) -> None:
    cut = transition.find_cut(grid)
    assert np.isnan(cut.threshold)
    assert not cut.is_transition


def test_the_answer_is_repeatable() -> None:
    grid = np.random.default_rng(9).normal(size=(6, 6))
    assert transition.find_cut(grid, seed=1) == transition.find_cut(grid, seed=1)

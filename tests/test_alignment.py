"""CKA with its options: dense matrices with explicit centring, scikit-learn's kernel, laws of the estimators."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel
from torch import Tensor

from lossatlas.errors import UserError
from lossatlas.landscape.alignment import cka

Array = np.ndarray


def outputs(m: int, p: int, seed: int = 0) -> Tensor:
    return torch.randn(m, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(m: int, p: int, q: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two features that share a part, with an offset that centring must remove."""
    x, y = outputs(m, p, seed), outputs(m, q, seed + 10_000)
    shared = min(p, q)
    y[:, :shared] += x[:, :shared]
    return x + 3, y - 7


# ---- oracles: m x m matrices, written out -------------------------------------------------------------------


def median_square(x: Array) -> float:
    """The square of the median distance of two different samples (the lower one of two medians)."""
    distances = sorted(np.linalg.norm(a - b) for a, b in itertools.combinations(x, 2))
    return float(distances[(len(distances) - 1) // 2] ** 2)


def gram(x: Array, kernel: str, bandwidth: float) -> Array:
    if kernel == "linear":
        return np.asarray(x @ x.T)
    return np.asarray(rbf_kernel(x, gamma=1 / (2 * bandwidth**2 * median_square(x))))


def hsic(k: Array, l: Array) -> float:  # noqa: E741
    """tr(K H L H): H centres, H = 1 - 11'/m."""
    m = len(k)
    h = np.eye(m) - np.ones((m, m)) / m
    return float(np.trace(k @ h @ l @ h))


def hsic_unbiased(k: Array, l: Array) -> float:  # noqa: E741
    """[Song 2012] as the mean of K_ij L_ij - 2 K_ij L_ik + K_ij L_kl over all different i, j, k, l."""
    m = len(k)
    two = [k[i, j] * l[i, j] for i, j in itertools.permutations(range(m), 2)]
    three = [k[i, j] * l[i, r] for i, j, r in itertools.permutations(range(m), 3)]
    four = [k[i, j] * l[r, s] for i, j, r, s in itertools.permutations(range(m), 4)]
    return float(np.mean(two) - 2 * np.mean(three) + np.mean(four))


def oracle(
    x: Tensor, y: Tensor, *, kernel: str = "linear", bandwidth: float = 1.0, debiased: bool = False
) -> float:
    k, l = (gram(f.numpy(), kernel, bandwidth) for f in (x, y))  # noqa: E741
    of = hsic_unbiased if debiased else hsic
    return of(k, l) / math.sqrt(of(k, k) * of(l, l))


# ---- values -------------------------------------------------------------------------------------------------

KINDS = [
    {"debiased": False},
    {"debiased": True},
    {"kernel": "rbf", "bandwidth": 0.4},
    {"kernel": "rbf", "bandwidth": 2.0, "debiased": True},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("p", "q"), [(4, 3), (9, 3), (9, 30)])
def test_it_is_the_dense_form_with_few_features_and_with_many(kind, p, q):
    x, y = related(8, p, q)
    # By features where p, q <= 8, else by kernel matrices. Rounding of sums of 8^4 terms.
    assert cka(x, y, **kind).value == pytest.approx(oracle(x, y, **kind), rel=1e-10)


@pytest.mark.parametrize("debiased", [False, True])
def test_both_ways_are_the_same(debiased):
    """Columns of zeros change nothing but the way; both agree to rounding, far from the origin too."""
    x, y = related(60, 8, 5)
    wide = torch.cat([x + 1000, torch.zeros(60, 90, dtype=torch.float64)], dim=1)
    a, b = cka(x + 1000, y, debiased=debiased), cka(wide, y, debiased=debiased)
    assert b.value == pytest.approx(a.value, rel=1e-10)
    assert b.stderr == pytest.approx(a.stderr, rel=1e-8)


def test_debiased_by_hand():
    x = torch.tensor([[1.0], [2], [3], [4], [6], [9]], dtype=torch.float64)
    assert cka(x, x, debiased=True).value == pytest.approx(1, abs=1e-14)
    assert cka(x, -5 * x + 7, debiased=True).value == pytest.approx(1, abs=1e-14)
    # Of two uncorrelated columns the biased form is exactly 0, the unbiased one negative.
    plus = torch.tensor([[1.0], [1], [1], [1], [-1], [-1], [-1], [-1]], dtype=torch.float64)
    other = torch.tensor([[1.0], [1], [-1], [-1], [1], [1], [-1], [-1]], dtype=torch.float64)
    assert cka(plus, other).value == 0
    # K~_ij = x_i x_j off the diagonal: <K~, L~> = (sum x y)^2 - m = -8, rows sum to -1, so
    # HSIC = -8 - 2/6 * 8 + 64/42 = -64/7, and with itself 8^2 - 8 - 8/3 + 64/42 = 384/7.
    assert cka(plus, other, debiased=True).value == pytest.approx(-1 / 6, rel=1e-13)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_invariances(kind):
    x, y = related(40, 6, 4)
    value = cka(x, y, **kind).value
    assert cka(x, x, **kind).value == pytest.approx(1, abs=1e-12)
    assert cka(y, x, **kind).value == pytest.approx(value, rel=1e-12)
    rotation = torch.linalg.qr(outputs(6, 6, 5)).Q
    # An offset of 100 costs two digits of the distances.
    assert cka(x @ rotation * 1e3 + 100, y * -1e-3, **kind).value == pytest.approx(value, rel=1e-9)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert cka(x[order], y[order], **kind).value == pytest.approx(value, rel=1e-12)


def test_the_median_is_of_different_samples_and_scales_the_bandwidth():
    x, y = related(9, 3, 3)
    assert cka(x, y, kernel="rbf", bandwidth=0.5).value == pytest.approx(
        oracle(x, y, kernel="rbf", bandwidth=0.5), rel=1e-12
    )
    narrow, wide = (cka(x, y, kernel="rbf", bandwidth=b).value for b in (0.01, 1e3))
    assert narrow == pytest.approx(1, abs=1e-6)  # every sample is like itself alone, in both
    assert wide == pytest.approx(cka(x, y).value, rel=1e-5)  # K is 1 - |d|^2 / (2 s^2): the linear one


def test_maps_are_flattened_or_every_position_is_a_sample():
    maps = outputs(6, 3 * 4 * 5).reshape(6, 3, 4, 5)
    other = maps[:, :2] + 0.5 * outputs(6, 2 * 4 * 5, 1).reshape(6, 2, 4, 5)
    assert cka(maps, other).value == pytest.approx(oracle(maps.flatten(1), other.flatten(1)), rel=1e-12)
    rows = [
        torch.stack([m[i, :, r, c] for i in range(6) for r in range(4) for c in range(5)]) for m in (maps, other)
    ]
    by_position = cka(maps, other, positions=True)
    assert by_position.value == pytest.approx(oracle(*rows), rel=1e-12)
    assert by_position.count == 6
    narrow = outputs(6, 80).reshape(6, 40, 1, 2)  # more channels than positions of all samples
    found = cka(narrow, narrow[:, :5] + 1, positions=True)
    pixels = narrow.permute(0, 2, 3, 1).reshape(12, 40)
    assert found.value == pytest.approx(oracle(pixels, pixels[:, :5]), rel=1e-12)
    assert found.stderr == pytest.approx(jackknife(narrow, narrow[:, :5], 20, positions=True), rel=1e-9)


# ---- standard errors ----------------------------------------------------------------------------------------


def jackknife(x: Tensor, y: Tensor, blocks: int, **kind: bool | float | str) -> float:
    """The jackknife with each remainder computed from nothing."""
    m = len(x)
    left = []
    for run in torch.arange(m).tensor_split(min(blocks, m)):
        kept = torch.tensor([i for i in range(m) if i not in run])
        left.append(cka(x[kept], y[kept], **kind).value)
    n = len(left)
    return math.sqrt((n - 1) / n * sum((v - np.mean(left)) ** 2 for v in left))


@pytest.mark.parametrize("p", [5, 60])
@pytest.mark.parametrize("debiased", [False, True])
def test_the_jackknife_leaves_out_runs_of_samples(p, debiased):
    x, y = related(42, p, 4)
    assert cka(x, y, debiased=debiased, blocks=5).stderr == pytest.approx(
        jackknife(x, y, 5, debiased=debiased), rel=1e-8
    )


def test_the_jackknife_by_position_leaves_out_whole_samples():
    maps = outputs(21, 3 * 4).reshape(21, 3, 2, 2)
    other = maps + outputs(21, 3 * 4, 1).reshape(21, 3, 2, 2)
    assert cka(maps, other, positions=True, blocks=4).stderr == pytest.approx(
        jackknife(maps, other, 4, positions=True), rel=1e-9
    )


@pytest.mark.parametrize("kind", KINDS[1:], ids=str)
def test_the_standard_error_is_calibrated(kind):
    values, errors = [], []
    for seed in range(120):
        x = outputs(200, 5, seed)
        found = cka(x, x + 0.7 * outputs(200, 5, seed + 1000), **kind)
        values.append(found.value)
        errors.append(found.stderr)
    # 120 runs know their scatter to 6.5%, the mean of their jackknifes to 2%; the fixed bandwidth adds less.
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.25)


@pytest.mark.parametrize("p", [5, 60])
def test_independent_features_have_zero_in_the_mean_without_bias_only(p):
    values = {kind: [] for kind in (False, True)}
    for seed in range(200):
        for kind, found in values.items():
            found.append(cka(outputs(30, p, seed), outputs(30, p, seed + 1000), debiased=kind).value)
    mean, error = np.mean(values[True]), np.std(values[True], ddof=1) / math.sqrt(200)
    assert abs(mean) < 4 * error
    assert np.mean(values[False]) == pytest.approx(p / (30 + p), rel=0.2)  # of normal features, about
    assert np.mean(values[False]) > 10 * abs(mean)


# ---- what has no value --------------------------------------------------------------------------------------


def test_constant_outputs_are_degenerate():
    other = outputs(30, 3).float()
    for kind in KINDS:
        found = cka(torch.full((30, 3), 1 / 3), other, **kind)
        assert found.status == "degenerate"
        assert "first" in found.reason
    mostly = torch.zeros(30, 3)
    mostly[:4] = other[:4]
    assert cka(mostly, other).status == "ok"
    found = cka(other, mostly, kernel="rbf")  # most distances are 0: there is no bandwidth
    assert (found.status, "second" in found.reason) == ("degenerate", True)
    assert cka(other, other.clone().fill_(math.nan), kernel="rbf").status == "non-finite"


def test_what_does_not_fit_is_refused():
    x = outputs(8, 3)
    maps = outputs(8, 12).reshape(8, 3, 2, 2)
    for message, arguments, options in (
        ("on the same samples", (x, outputs(7, 3)), {}),
        ("on the same samples", (x[:, 0], x[:, 0]), {}),
        ("kernel='cosine' is unknown. Allowed are linear, rbf", (x, x), {"kernel": "cosine"}),
        ("bandwidth=0", (x, x), {"kernel": "rbf", "bandwidth": 0}),
        ("4 samples beside each of the 4 blocks; 4 samples", (x[:4], x[:4]), {"debiased": True}),
        ("have no positions", (x, x), {"positions": True}),
        ("Maps of 4 and 2 positions", (maps, maps[..., :1]), {"positions": True}),
        ("for the linear kernel", (maps, maps), {"positions": True, "kernel": "rbf"}),
    ):
        with pytest.raises(UserError, match=message):
            cka(*arguments, **options)
    assert cka(x[:5], x[:5], debiased=True).value == pytest.approx(1)

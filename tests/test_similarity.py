"""Similarity: the Gram form of CKA, SciPy's divergence, sums by hand, and standard errors against real scatter."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from lossatlas.errors import UserError
from lossatlas.landscape import similarity
from lossatlas.landscape.estimate import Estimate, sample_mean
from lossatlas.landscape.similarity import (
    agreement,
    cka,
    cosine,
    disagreement,
    distance,
    ensemble_error,
    jensen_shannon,
    mixup,
    noisy,
)


def outputs(m: int, p: int, seed: int = 0) -> Tensor:
    return torch.randn(m, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(m: int, seed: int, p: int = 6, q: int = 4) -> tuple[Tensor, Tensor]:
    """Two outputs that share a part, with an offset that centring must remove."""
    x = outputs(m, p, seed) @ torch.diag(torch.arange(1.0, p + 1).double())
    return x + 3, 0.3 * x[:, :q] + outputs(m, q, seed + 10_000) - 7


def hsic_form(x: Tensor, y: Tensor) -> float:
    """CKA by centred m x m Gram matrices [Kornblith 2019]."""
    m = len(x)
    center = torch.eye(m, dtype=torch.float64) - 1 / m
    gram_x, gram_y = center @ x @ x.T @ center, center @ y @ y.T @ center
    return ((gram_x * gram_y).sum() / (gram_x.norm() * gram_y.norm())).item()


# ---- CKA ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "p", "q"), [(50, 6, 4), (7, 6, 4), (5, 9, 12)])
def test_cka_is_the_gram_form(m, p, q):
    x, y = outputs(m, p) + 5, outputs(m, q, 1)
    y[:, :3] += x[:, :3]
    assert cka(x, y).value == pytest.approx(hsic_form(x, y), rel=1e-12)


def test_cka_jackknife_leaves_out_blocks_of_consecutive_rows():
    """Oracle: the Gram form of what is left, recomputed from nothing; ragged blocks of 9, 9, 8, 8, 8."""
    x, y = related(42, 0)
    bounds = np.cumsum([0, 9, 9, 8, 8, 8])
    left = []
    for a, b in itertools.pairwise(bounds):
        left.append(hsic_form(torch.cat([x[:a], x[b:]]), torch.cat([y[:a], y[b:]])))
    expected = math.sqrt(4 / 5 * sum((v - np.mean(left)) ** 2 for v in left))
    result = cka(x, y, blocks=5)
    assert result.stderr == pytest.approx(expected, rel=1e-9)
    assert result.count == 42


def test_cka_invariances():
    x, y = related(80, 1)
    value = cka(x, y).value
    assert cka(y, x).value == pytest.approx(value, rel=1e-13)
    rotation = torch.linalg.qr(outputs(6, 6, 5)).Q
    assert cka(x @ rotation * 1e3 + 2, y * -1e-3).value == pytest.approx(value, rel=1e-10)
    stretched = x @ torch.diag(torch.tensor([100.0, 1, 1, 1, 1, 1]).double())
    assert abs(cka(stretched, y).value - value) > 0.01  # orthogonal maps only
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    assert cka(x[order], y[order]).value == pytest.approx(value, rel=1e-13)
    assert cka(x, y, blocks=3).value == value  # the value knows nothing of blocks


def test_cka_with_itself_is_one_without_error():
    result = cka(*(2 * [outputs(100, 5)]))
    assert result.value == pytest.approx(1, abs=1e-14)
    assert result.stderr < 1e-14


def test_cka_of_independent_outputs_is_small_and_of_a_linear_map_is_not():
    assert cka(outputs(4000, 3, 1), outputs(4000, 3, 2)).value < 0.01  # about p/m


def test_cka_is_in_float64_whatever_comes_in():
    """Float32 outputs far from zero: their centred products cancel in float32."""
    x, y = related(500, 3)
    x, y = (x + 1000).float(), (y + 1000).float()
    assert cka(x, y).value == pytest.approx(hsic_form(x.double(), y.double()), rel=1e-10)


@pytest.mark.parametrize("constant", [torch.full((30, 3), 1 / 3), torch.zeros(30, 3)])
@pytest.mark.parametrize("first", [True, False])
def test_cka_of_a_constant_output_is_degenerate(constant, first):
    other = outputs(30, 3).float()
    result = cka(constant, other) if first else cka(other, constant)
    assert result.status == "degenerate"
    assert ("first" if first else "second") in result.reason
    assert math.isnan(result.value)
    assert math.isnan(result.stderr)


def test_cka_of_a_constant_output_up_to_rounding_is_degenerate():
    constant = torch.full((30, 3), 1 / 3)
    constant[::2] = torch.nextafter(constant[::2], torch.ones(()))
    assert cka(constant, outputs(30, 3)).status == "degenerate"
    assert cka(constant.double() + 1e-9 * outputs(30, 3), outputs(30, 3)).status == "ok"


@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_cka_standard_error_is_calibrated_on_independent_samples(noise):
    values, errors = [], []
    for seed in range(200):
        x = outputs(400, 5, seed).softmax(1)
        y = (x.log() + noise * outputs(400, 5, seed + 1000)).softmax(1)
        result = cka(x, y)
        values.append(result.value)
        errors.append(result.stderr)
    # 200 runs know their scatter to 5%, the mean of their jackknifes to 1%; 600 runs gave a ratio of 0.99 to 1.02.
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.2)


def test_cka_standard_error_knows_that_a_mixup_batch_shares_its_lambda_and_partners():
    """Blocks that are the batches see what the samples of a batch share; with shuffled rows they do not."""
    networks = [outputs(4, 3, seed) for seed in (1, 2)]
    values, by_batch, shuffled = [], [], []
    for run in range(150):
        mixed = mixup(outputs(320, 4, run), runs=20, generator=np.random.default_rng(run))
        x, y = ((mixed @ w * 3).softmax(1) for w in networks)
        order = torch.randperm(320, generator=torch.Generator().manual_seed(run))
        values.append(cka(x, y).value)
        by_batch.append(cka(x, y).stderr)
        shuffled.append(cka(x[order], y[order]).stderr)
    assert np.mean(by_batch) == pytest.approx(np.std(values, ddof=1), rel=0.2)  # 150 runs: 6%
    assert np.mean(shuffled) < 0.95 * np.mean(by_batch)  # 14% too small here


def test_cka_refuses_what_does_not_fit():
    with pytest.raises(UserError, match="on the same samples"):
        cka(outputs(5, 2), outputs(6, 2))
    with pytest.raises(UserError, match="2 samples and 2 blocks"):
        cka(outputs(1, 2), outputs(1, 2))
    with pytest.raises(UserError, match="dtypes"):
        cka(torch.ones(4, 2, dtype=torch.int64), outputs(4, 2))


# ---- mixup --------------------------------------------------------------------------------------------------


def test_mixup_by_hand():
    inputs = torch.arange(14.0, dtype=torch.float64).reshape(7, 2)
    mixed = mixup(inputs, alpha=16.0, runs=2, generator=np.random.default_rng(3))
    twin = np.random.default_rng(3)
    for rows in (slice(0, 4), slice(4, 7)):  # the ragged last batch has its own lambda
        share, part = twin.beta(16.0, 16.0), inputs[rows]
        expected = share * part + (1 - share) * part[torch.from_numpy(twin.permutation(len(part)))]
        torch.testing.assert_close(mixed[rows], expected, rtol=1e-15, atol=0)


def test_mixup_mixes_within_a_batch_with_one_lambda():
    inputs = torch.eye(12)  # each row of the mixed matrix names its two parents
    mixed = mixup(inputs, runs=2, generator=np.random.default_rng(0))
    assert torch.equal(mixed[:6, 6:], torch.zeros(6, 6))
    assert torch.equal(mixed[6:, :6], torch.zeros(6, 6))
    for block in (mixed[:6, :6], mixed[6:, 6:]):
        torch.testing.assert_close(block.sum(0), torch.ones(6))  # a permutation: each is partner once
        torch.testing.assert_close(block.sum(1), torch.ones(6))
        assert len({round(v, 5) for v in block[block > 0].tolist()} - {1.0}) == 2  # lambda and 1 - lambda
    assert not torch.allclose(mixed[:6, :6].max(), mixed[6:, 6:].max())


def test_mixup_law_of_lambda():
    """Beta(16, 16): mean 1/2, variance 1/(4 * 33)."""
    pairs = torch.tensor([[0.0], [1.0]]).repeat(4000, 1)
    mixed = mixup(pairs, runs=4000, generator=np.random.default_rng(1)).reshape(-1, 2)
    share = mixed[:, 1][mixed[:, 0] > 0]  # where the two were swapped: lambda
    assert 1800 < len(share) < 2200  # half of 4000, within 6 deviations
    # The mean of 2000 such lambda is known to 0.087 / sqrt(2000) = 0.002.
    assert share.mean().item() == pytest.approx(0.5, abs=0.008)
    # E (lambda - 1/2)^2 from about 2000 swaps: relative error sqrt(2/2000) = 3%.
    assert (share - 0.5).square().mean().item() == pytest.approx(1 / 132, rel=0.12)


def test_mixup_is_seeded_and_leaves_the_inputs_and_torchs_generator():
    inputs = torch.randn(20, 3, 2, generator=torch.Generator().manual_seed(0))
    before, state = inputs.clone(), torch.get_rng_state()
    first, again = (mixup(inputs, generator=np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == inputs.shape
    assert first.dtype == torch.float32
    assert torch.equal(inputs, before)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(UserError, match="alpha=0"):
        mixup(inputs, alpha=0, generator=np.random.default_rng(5))
    with pytest.raises(UserError, match="int64"):
        mixup(torch.ones(3, dtype=torch.int64), generator=np.random.default_rng(5))


def test_noise_is_normal_seeded_and_added():
    inputs = torch.randn(200, 3, 4, generator=torch.Generator().manual_seed(0)) + 5
    before = inputs.clone()
    first, again = (noisy(inputs, 0.5, generator=np.random.default_rng(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(inputs, before)
    assert first.dtype == inputs.dtype
    noise = first - inputs
    # 2,400 numbers: mean within 4 x 0.5/sqrt(2400), deviation within 4 x 0.5/sqrt(4800)
    assert abs(noise.mean().item()) < 0.041
    assert noise.std().item() == pytest.approx(0.5, abs=0.029)
    with pytest.raises(UserError, match="int64"):
        noisy(torch.ones(3, dtype=torch.int64), 0.5, generator=np.random.default_rng(1))


# ---- distance, agreement, divergence, cosine, ensemble ------------------------------------------------------


def test_distance():
    assert distance(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])) == Estimate(5.0, 0.0, 2)
    # A difference that float32 would round away, and a sum of 10^6 squares that it would round too.
    a, b = torch.full((10**6,), 1.0), torch.full((10**6,), 1.0 + 2**-23)
    assert distance(a, b).value == pytest.approx(1000 * 2**-23, rel=1e-12)
    assert distance(torch.tensor([math.inf]), torch.tensor([1.0])).status == "non-finite"
    with pytest.raises(UserError, match="no distance"):
        distance(torch.zeros(2), torch.zeros(3))


def test_agreement_and_disagreement_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])
    q = torch.tensor([[0.8, 0.2], [0.7, 0.3], [0.9, 0.1], [0.9, 0.1]])  # the tie goes to the first class
    assert agreement(p, q).value == 75
    assert disagreement(p, q).value == 25
    expected = 100 * math.sqrt(0.75 * 0.25 / 3)
    assert agreement(p, q).stderr == pytest.approx(expected, rel=1e-14)
    assert disagreement(p, q).stderr == pytest.approx(expected, rel=1e-14)
    assert disagreement(p, p) == Estimate(0.0, 0.0, 4)


def test_jensen_shannon_is_scipys_and_its_error_is_the_scatter_of_samples():
    p, q = outputs(40, 7, 1).softmax(1), (2 * outputs(40, 7, 2)).softmax(1)
    rows = jensenshannon(p.numpy(), q.numpy(), axis=1) ** 2  # SciPy gives its square root
    result = jensen_shannon(p, q)
    assert result.value == pytest.approx(rows.mean(), rel=1e-12)
    assert result.stderr == pytest.approx(rows.std(ddof=1) / math.sqrt(40), rel=1e-10)
    assert jensen_shannon(q, p).value == pytest.approx(result.value, rel=1e-14)


def test_jensen_shannon_at_its_bounds():
    certain = torch.eye(4)
    assert jensen_shannon(certain, certain.roll(1, 1)).value == pytest.approx(math.log(2), rel=1e-15)
    assert jensen_shannon(certain, certain) == Estimate(0.0, 0.0, 4)
    half = torch.tensor([[0.5, 0.5, 0.0]])
    by_hand = 0.5 * (math.log(1 / 0.75) + 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    result = jensen_shannon(torch.tensor([[1.0, 0.0, 0.0]]), half)
    assert result.value == pytest.approx(by_hand, rel=1e-14)
    assert math.isnan(result.stderr)  # of one sample


def test_jensen_shannon_in_float32_stays_within_its_bounds():
    logits = outputs(500, 10, 3).float()
    near = jensen_shannon(logits.softmax(1), (logits + 1e-6 * outputs(500, 10, 4)).softmax(1)).value
    assert -1e-15 < near < 1e-9
    far = jensen_shannon((100 * logits).softmax(1), (100 * logits.flip(1)).softmax(1)).value
    assert 0.5 < far <= math.log(2) + 1e-15
    with pytest.raises(UserError, match="not logits"):
        jensen_shannon(logits, logits)


def test_cosine_is_by_sample_not_over_the_flattened_batch():
    a = torch.tensor([[1.0, 0.0], [100.0, 0.0], [3.0, 4.0]])
    b = torch.tensor([[0.0, 1.0], [100.0, 0.0], [4.0, 3.0]])
    result = cosine(a, b)
    by_hand = torch.tensor([0.0, 1.0, 24 / 25], dtype=torch.float64)
    assert result.value == pytest.approx(by_hand.mean().item(), rel=1e-15)
    assert result.stderr == pytest.approx(by_hand.std().item() / math.sqrt(3), rel=1e-14)
    assert cosine(a, -a).value == pytest.approx(-1, rel=1e-15)
    a[0] = 0
    assert cosine(a, b).status == "degenerate"
    assert "1 of 3" in cosine(a, b).reason


def test_ensemble_error_by_hand():
    """Two members that are wrong on different samples; only the average of probabilities decides."""
    first = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.1, 0.9], [0.3, 0.7]])
    second = torch.tensor([[0.4, 0.6], [0.1, 0.9], [0.8, 0.2], [0.4, 0.6]])
    labels = torch.tensor([0, 1, 1, 0])
    assert ensemble_error([first], labels).value == 50  # samples 1, 3
    assert ensemble_error([second], labels).value == 75  # samples 0, 2, 3
    both = ensemble_error([first, second], labels)
    assert both.value == 25  # sample 3
    assert both.stderr == pytest.approx(100 * math.sqrt(0.25 * 0.75 / 3), rel=1e-14)
    with pytest.raises(UserError, match="no model"):
        ensemble_error([], labels)
    with pytest.raises(UserError, match="labels of shape"):
        ensemble_error([first], labels[:3])
    with pytest.raises(UserError, match="same samples"):
        ensemble_error([first, second[:3]], labels)


@pytest.mark.parametrize("measure", ["cka", "agreement", "disagreement", "jensen_shannon", "cosine"])
def test_outputs_that_are_not_finite_are_a_status(measure):
    good, bad = outputs(8, 3).softmax(1), outputs(8, 3, 1).softmax(1)
    bad[2, 1] = math.nan
    result = getattr(similarity, measure)(good, bad)
    assert result.status == "non-finite"
    assert "1 of 24 numbers of model 2" in result.reason
    assert math.isnan(result.value)
    assert ensemble_error([good, bad], torch.zeros(8)).status == "non-finite"


def test_mean_of_samples():
    assert sample_mean(torch.tensor([1.0, 2.0, 6.0])).value == 3
    assert sample_mean(torch.tensor([1.0, 2.0, 6.0])).stderr == pytest.approx(math.sqrt(7 / 3), rel=1e-14)
    assert math.isnan(sample_mean(torch.tensor([2.0])).stderr)
    broken = sample_mean(torch.tensor([1.0, math.inf, math.nan]))
    assert broken.status == "non-finite"
    assert "2 of 3" in broken.reason

"""The Transformer: what sees what, PyTorch's own layers as the oracle, and its curvature."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lossatlas.errors import UserError
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.operators import hessian
from lossatlas.landscape.parameters import layout_of
from lossatlas.landscape.sequences import BOS, EOS, PAD, lengths, real
from lossatlas.landscape.trace import trace
from lossatlas.tasks import losses, models
from lossatlas.tasks.transformer import Transformer, sinusoids
from oracles.dense import mean_loss

VOCABULARY = 11
# The same sums in another order, or with more zeros in them: float64 rounding with room.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def network(
    dim: int = 8, layers: int = 2, heads: int = 2, seed: int = 0, vocabulary: int = VOCABULARY
) -> Transformer:
    options = {"embed_dim": dim, "layers": layers, "heads": heads}
    model = models.build("transformer", options, input_shape=(9,), classes=vocabulary, seed=seed)
    assert isinstance(model, Transformer)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # away from norms that do nothing and biases of zero
        for name, p in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model.double().eval()


def rows(*counts: int, seed: int = 0, vocabulary: int = VOCABULARY) -> Tensor:
    """Random rows of as many tokens, the last of each EOS."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.full((len(counts), max(counts)), PAD)
    for row, count in zip(table, counts, strict=True):
        row[: count - 1] = torch.randint(EOS + 1, vocabulary, (count - 1,), generator=generator)
        row[count - 1] = EOS
    return table


def padded(tokens: Tensor, more: int) -> Tensor:
    return nn.functional.pad(tokens, (0, more), value=PAD)


@pytest.mark.parametrize(("dim", "layers", "heads"), [(8, 2, 2), (16, 1, 8), (512, 6, 8)])
def test_it_has_the_parameters_that_it_says(dim: int, layers: int, heads: int) -> None:
    with torch.device("meta"):
        model = Transformer(VOCABULARY, dim, layers, heads, 0.0)
    expected = VOCABULARY * dim + layers * (28 * dim**2 + 20 * dim) + 4 * dim
    assert layout_of(model).size == expected == sum(p.numel() for p in model.state_dict().values())


@torch.no_grad()
def test_a_token_sees_the_source_and_those_before_it() -> None:
    model, source, target = network(), rows(5), rows(7)
    before = model(source, target)
    assert before.shape == (7, VOCABULARY)
    for place in range(7):
        other = target.clone()
        other[0, place] = 3 if target[0, place] != 3 else 4
        after = model(source, other)
        torch.testing.assert_close(after[: place + 1], before[: place + 1], **CLOSE)
        assert place == 6 or ((after - before)[place + 1 :].abs().amax(1) > 1e-6).all()
    for place in range(5):
        other = source.clone()
        other[0, place] = 3 if source[0, place] != 3 else 4
        assert ((model(other, target) - before).abs().amax(1) > 1e-6).all()


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    model, source, target = network(), rows(5, 2, 8), rows(3, 6, 1, seed=1)
    together = model(source, target)
    torch.testing.assert_close(model(padded(source, 4), padded(target, 7)), together, **CLOSE)
    alone = [
        model(source[i : i + 1, : int(lengths(source)[i])], target[i : i + 1, : int(lengths(target)[i])])
        for i in range(3)
    ]
    torch.testing.assert_close(torch.cat(alone), together, **CLOSE)


def pytorchs(model: Transformer, dim: int, heads: int, layers: int) -> nn.Transformer:
    """PyTorch's Transformer with the same weights."""
    theirs = nn.Transformer(
        dim, heads, layers, layers, 4 * dim, 0.0, norm_first=True, batch_first=True, dtype=torch.float64
    ).eval()
    ours, named = model.state_dict(), {}
    for side, norms in (
        ("encoder", ("attention", "feed_forward")),
        ("decoder", ("attention", "cross", "feed_forward")),
    ):
        for k in range(layers):
            here, there = f"{side}.{k}.", f"{side}.layers.{k}."
            for number, norm in enumerate(norms, 1):
                for kind in ("weight", "bias"):
                    named[f"{there}norm{number}.{kind}"] = ours[f"{here}norm_{norm}.{kind}"]
            for kind in ("weight", "bias"):
                named[f"{there}linear1.{kind}"] = ours[f"{here}feed_forward.0.{kind}"]
                named[f"{there}linear2.{kind}"] = ours[f"{here}feed_forward.2.{kind}"]
            for attention, other in (("attention", "self_attn"), ("cross", "multihead_attn"))[: len(norms) - 1]:
                query, key_value = (ours[f"{here}{attention}.{part}.weight"] for part in ("query", "key_value"))
                named[f"{there}{other}.in_proj_weight"] = torch.cat([query, key_value])
                named[f"{there}{other}.in_proj_bias"] = torch.zeros(3 * dim, dtype=torch.float64)
                named[f"{there}{other}.out_proj.weight"] = ours[f"{here}{attention}.output.weight"]
                named[f"{there}{other}.out_proj.bias"] = torch.zeros(dim, dtype=torch.float64)
        for kind in ("weight", "bias"):
            named[f"{side}.norm.{kind}"] = ours[f"norm_{'source' if side == 'encoder' else 'target'}.{kind}"]
    theirs.load_state_dict(named)
    return theirs


@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")
@torch.no_grad()
def test_it_is_pytorchs_transformer() -> None:
    model, source, target = network(dim=8, layers=2), rows(5, 2, 8), rows(3, 6, 4, seed=1)
    table = model.embedding.weight

    def embedded(tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])
        return table[tokens] * 8**0.5 + sinusoids(places, 8)

    before = torch.cat([torch.full((3, 1), BOS), target[:, :-1]], dim=1)
    hidden = pytorchs(model, 8, 2, 2)(
        embedded(source),
        embedded(before),
        tgt_mask=torch.ones(6, 6, dtype=torch.bool).triu(1),
        src_key_padding_mask=source == PAD,
        memory_key_padding_mask=source == PAD,
    )
    torch.testing.assert_close(model(source, target), (hidden @ table.T)[target != PAD], **CLOSE)


def test_positions_are_sines_and_cosines() -> None:
    found = sinusoids(torch.tensor([0, 3, 250]), 6).numpy()
    expected = [[f(p / 10_000 ** (2 * i / 6)) for f in (np.sin, np.cos) for i in range(3)] for p in (0, 3, 250)]
    # Angles up to 250 are rounded to 250 eps.
    np.testing.assert_allclose(found, expected, atol=1e-13)


@torch.no_grad()
def test_token_by_token_is_teacher_forcing() -> None:
    model, source, target = network(), rows(5, 2, 8), rows(6, 6, 6, seed=1)
    expected = model(source, target).view(3, 6, VOCABULARY)
    begun, last = model.begin(source), torch.full((3,), BOS)
    for place in range(6):
        logits, begun = model.advance(begun, last)
        torch.testing.assert_close(logits, expected[:, place], **CLOSE)
        last = target[:, place]


@torch.no_grad()
def test_translations_that_are_begun_can_be_picked() -> None:
    model, source = network(), rows(5, 2, 8)
    begun = model.advance(model.begin(source), torch.full((3,), BOS))[1]
    picked = begun.select(torch.tensor([2, 0, 0]))
    one, other = (
        model.advance(each, torch.tensor(last))[0] for each, last in ((begun, [3, 4, 5]), (picked, [5, 3, 3]))
    )
    torch.testing.assert_close(other, one[[2, 0, 0]], **CLOSE)


@pytest.mark.parametrize(("options", "shape", "problem"), [
    ({"embed_dim": 12}, (9,), "embed_dim = 12 was given; with heads = 8 it must be an even multiple of 8"),
    ({"embed_dim": 3, "heads": 3}, (9,), "even multiple of 3"),
    ({"embed_dim": 16}, (3, 32, 32), r"takes sequences of tokens; the data have inputs of shape \(3, 32, 32\)"),
])  # fmt: skip
def test_what_it_does_not_take(options: dict[str, int], shape: tuple[int, ...], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        models.build("transformer", options, input_shape=shape, classes=VOCABULARY, seed=0)


# ---- as a loss landscape --------------------------------------------------------------------------------------

SMALL = 7  # words


def ragged() -> list[tuple[Tensor, Tensor]]:
    """Batches of sentences of different length and number."""
    sizes = [((3, 5, 2), (4, 1, 3)), ((2, 2), (2, 5))]
    return [
        (rows(*s, seed=k, vocabulary=SMALL), rows(*t, seed=9 + k, vocabulary=SMALL))
        for k, (s, t) in enumerate(sizes)
    ]


def tiny() -> Transformer:
    return network(dim=4, layers=1, heads=2, vocabulary=SMALL)


def dense() -> Tensor:
    """(n, n), backward twice by torch.func: forward over reverse errs on LayerNorm's weights (PyTorch 2.13)."""
    function, theta = mean_loss(tiny(), ragged(), losses.translation())
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.jacrev(torch.func.grad(function), chunk_size=64)(theta)


@pytest.mark.filterwarnings("ignore::lossatlas.PlainMathsWarning")
def test_the_hessian_is_the_dense_one_and_that_of_finite_differences() -> None:
    objective = Objective(tiny(), ragged(), losses.translation(), chunk=2)
    operator, theta, step = hessian(objective), objective.center, 1e-5
    found = operator @ torch.eye(operator.size, dtype=torch.float64)
    torch.testing.assert_close(found, dense(), rtol=1e-10, atol=1e-12)
    assert found.abs().max() > 0.1
    for column in range(0, operator.size, 29):
        move = step * torch.eye(operator.size, dtype=torch.float64)[column]
        slope = (objective.gradient(theta + move) - objective.gradient(theta - move)) / (2 * step)
        # Central differences err by step^2 times a third derivative, and by rounding, eps / step.
        torch.testing.assert_close(found[:, column], slope, rtol=0, atol=1e-8)


@pytest.mark.filterwarnings("ignore::lossatlas.PlainMathsWarning")
def test_its_trace_is_estimated_by_probes() -> None:
    objective = Objective(tiny(), ragged(), losses.translation())
    found = trace(objective, rel=0.02, max_matvecs=400, seed=0)
    assert found.method == "hutchinson"
    assert abs(found.value - dense().trace().item()) < 4 * found.stderr


def test_the_gradient_is_that_of_finite_differences() -> None:
    objective = Objective(tiny(), ragged(), losses.translation())
    theta = objective.center
    direction = torch.randn(len(theta), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-5 * direction / direction.norm()
    slope = (objective(theta + step) - objective(theta - step)) / 2
    # Central differences err by step^2 |f'''| / 6, some 1e-10 of the slope, and by rounding, eps / 1e-5.
    torch.testing.assert_close(objective.gradient(theta) @ step, slope, rtol=1e-6, atol=1e-15)


def test_dropout_is_off_in_eval_mode_and_on_in_training() -> None:
    options = {"embed_dim": 8, "layers": 1, "heads": 2, "dropout": 0.5}
    model = models.build("transformer", options, input_shape=(9,), classes=VOCABULARY, seed=0)
    source, target = rows(5), rows(7)
    Objective(model, [(source, target)], losses.translation())  # its check of determinism
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(model(source, target), model(source, target))


def test_the_embedding_is_the_output_layer() -> None:
    model, source, target = network(), rows(5), rows(7)
    logits = model(source, target)
    slope = torch.autograd.grad(logits[0, PAD], model.embedding.weight)[0]
    assert slope[PAD].abs().max() > 0  # the word PAD, which nothing embeds
    assert real(target).tolist() == target[0].tolist()

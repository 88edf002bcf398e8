"""Translation: losses a token, their standard errors, beam search, BLEU, the measures, and a whole sweep."""

import itertools
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import command
from lossatlas import measures, results, specs
from lossatlas.errors import UserError
from lossatlas.landscape import similarity
from lossatlas.landscape.criterion import Criterion
from lossatlas.landscape.estimate import sample_mean
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.parameters import flat_parameters
from lossatlas.landscape.sequences import BOS, EOS, PAD, lengths, per_sentence, real, token_means
from lossatlas.measures import alignment as alignment_measures
from lossatlas.measures import models as model_measures
from lossatlas.measures import pairs as pair_measures
from lossatlas.measures import settings as s
from lossatlas.measures.decoding import translate
from lossatlas.measures.jobs import Job, TrainedSeed
from lossatlas.tasks import losses
from lossatlas.tasks.data import RawData
from lossatlas.tasks.samples import Samples
from test_transformer import CLOSE, VOCABULARY, network, rows

TRAIN = (rows(5, 2, 8, 3, 6, 4, 7, 2), rows(3, 6, 2, 5, 4, 2, 7, 3, seed=1))
TEST = (rows(4, 4, 9, seed=2), rows(2, 7, 5, seed=3))


def alone(model: nn.Module, source: Tensor, target: Tensor) -> list[Tensor]:
    """The logits (T, V) of every sentence, computed without any other and without padding."""
    return [
        model(x[x != PAD].unsqueeze(0), y[y != PAD].unsqueeze(0)).detach()
        for x, y in zip(source, target, strict=True)
    ]


def plain_losses(model: nn.Module, source: Tensor, target: Tensor) -> list[Tensor]:
    """The losses of the tokens of every sentence."""
    return [
        torch.stack([-logits[t].log_softmax(0)[y[t]] for t in range(len(logits))])
        for logits, y in zip(alone(model, source, target), target, strict=True)
    ]


def cut(pair: tuple[Tensor, Tensor], *sizes: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(half.split(list(sizes)) for half in pair), strict=True))


def test_the_mean_runs_over_tokens_however_batches_are_cut() -> None:
    model, criterion = network(), losses.translation()
    every = torch.cat(plain_losses(model, *TRAIN))
    wrong = torch.cat(
        [logits.argmax(1) != y[: len(logits)] for logits, y in zip(alone(model, *TRAIN), TRAIN[1], strict=True)]
    )
    assert 0 < wrong.sum() < len(wrong)
    for batches, chunk in (([TRAIN], None), (cut(TRAIN, 5, 2, 1), None), (cut(TRAIN, 7, 1), 2)):
        found = Objective(model, batches, criterion, chunk=chunk)
        values = found.values(found.center.unsqueeze(0))
        torch.testing.assert_close(values["loss"][0], every.mean(), **CLOSE)
        torch.testing.assert_close(values["error"][0], 100 * wrong.double().mean(), **CLOSE)
        _, count = found.loss_sum({}, {}, batches[0])
        assert count == len(real(batches[0][1]))
    gradients = [
        Objective(model, batches, criterion).gradient(flat_parameters(model))
        for batches in ([TRAIN], cut(TRAIN, 3, 1, 4))
    ]
    torch.testing.assert_close(*gradients, **CLOSE)


def test_sums_of_sentences_are_those_of_their_tokens() -> None:
    model = network()
    criterion = per_sentence(losses.translation())
    objective = Objective(model, cut(TRAIN, 5, 3), criterion, chunk=2)
    found = objective.samples(objective.center)
    expected = plain_losses(model, *TRAIN)
    torch.testing.assert_close(found["loss"], torch.stack([each.sum() for each in expected]), **CLOSE)
    assert found["tokens"].tolist() == [len(each) for each in expected]
    means = token_means(found)
    assert set(means) == {"loss", "error"}
    torch.testing.assert_close(means["loss"].mean(), torch.cat(expected).mean(), **CLOSE)


def test_a_loss_that_is_not_one_a_token_is_refused() -> None:
    whole = Criterion(lambda model, batch: model(*batch), lambda outputs, _batch: outputs.mean().reshape(1))
    with pytest.raises(UserError, match=r"shape \(1,\) for 3 target tokens. Give one number for every"):
        Objective(network(), [TRAIN], per_sentence(whole))


def test_the_standard_error_is_that_of_a_ratio() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 20, (50,), generator=generator).double()
    sums = tokens * torch.randn(50, generator=generator).double() + 3
    found = sample_mean(token_means({"loss": sums, "tokens": tokens})["loss"])
    ratio = (sums.sum() / tokens.sum()).item()
    residuals = sums - ratio * tokens
    stderr = math.sqrt(50 / 49 * residuals.square().sum()) / tokens.sum().item()  # Cochran's, spelled out
    assert found.value == pytest.approx(ratio, rel=1e-12)
    assert found.stderr == pytest.approx(stderr, rel=1e-12)


def test_the_standard_error_covers_what_tokens_of_a_sentence_share() -> None:
    generator = np.random.default_rng(0)

    def corpus() -> tuple[Tensor, Tensor]:
        """Sentences whose tokens share half of their variance, long ones with larger losses."""
        counts = generator.integers(2, 20, 200)
        shared = generator.normal(size=200) + 0.1 * counts
        sums = counts * shared + np.sqrt(counts) * generator.normal(size=200)
        return torch.from_numpy(sums), torch.from_numpy(counts.astype(float))

    estimates = [
        sample_mean(token_means({"loss": sums, "tokens": tokens})["loss"])
        for sums, tokens in (corpus() for _ in range(2000))
    ]
    spread = np.std([each.value for each in estimates], ddof=1)
    # The spread of 2,000 estimates is known to 1.6%; the first-order formula errs by some 1 / 200.
    assert np.mean([each.stderr for each in estimates]) == pytest.approx(spread, rel=0.06)


# ---- decoding ---------------------------------------------------------------------------------------------------


def next_logs(model: nn.Module, source: Tensor, beginning: list[int]) -> Tensor:
    """(V,): the log probabilities of what follows a beginning, by teacher forcing; PAD and BOS are no words."""
    row = torch.tensor([[*beginning, EOS]])  # the last one is not looked at
    logits = model(source.unsqueeze(0), row)[-1].detach()
    logits[[PAD, BOS]] = -torch.inf
    return logits.log_softmax(0)


def greedily(model: nn.Module, source: Tensor, limit: int) -> list[int]:
    beginning: list[int] = []
    while len(beginning) < limit:
        word = int(next_logs(model, source, beginning).argmax())
        if word == EOS:
            break
        beginning.append(word)
    return beginning


def test_a_beam_of_one_is_greedy() -> None:
    ended = 0
    for seed in range(4):
        model, source = network(seed=seed), rows(5, 2, 8, 3, seed=seed)
        expected = [greedily(model, x[x != PAD], 12) for x in source]
        assert translate(model, source, beam=1, max_length=12) == expected
        ended += sum(len(each) < 12 for each in expected)
    assert 0 < ended < 16  # some end by themselves, some at the limit


def test_a_wide_beam_finds_the_best_of_all() -> None:
    words, limit = range(EOS + 1, 6), 3
    differs = 0
    for seed in range(6):
        model, source = network(seed=seed, vocabulary=6), rows(4, 2, seed=seed, vocabulary=6)
        expected = []
        for x in source:
            scored = []
            for count in range(limit):
                for sentence in itertools.product(words, repeat=count):
                    steps = [*sentence, EOS]
                    logs = [next_logs(model, x[x != PAD], steps[:t])[steps[t]].item() for t in range(count + 1)]
                    scored.append((sum(logs) / len(logs), list(sentence)))
            expected.append(max(scored)[1])
        assert translate(model, source, beam=40, max_length=limit) == expected
        differs += translate(model, source, beam=1, max_length=limit) != expected
    assert differs > 0


def test_a_translation_hangs_on_no_other_sentence() -> None:
    model, source = network(seed=1), rows(5, 2, 8, 3)
    for beam in (1, 3):
        together = translate(model, source, beam=beam, max_length=9)
        assert together == [translate(model, x[None, x != PAD], beam=beam, max_length=9)[0] for x in source]
        assert together == translate(model, source, beam=beam, max_length=9)


# ---- BLEU -------------------------------------------------------------------------------------------------------

WORDS = [
    "a",
    "red",
    "dog",
    "runs",
    "over",
    "the",
    "green",
    "grass",
    "while",
    "two",
    "men",
    "watch",
    "it",
    "closely",
]


def sentences(count: int, seed: int) -> tuple[list[str], list[str]]:
    """References, and translations with some words replaced."""
    generator = np.random.default_rng(seed)
    wanted = [list(generator.choice(WORDS, generator.integers(3, 15))) for _ in range(count)]
    found = [[w if generator.random() < 0.7 else str(generator.choice(WORDS)) for w in each] for each in wanted]
    return [f"{' '.join(each)}." for each in found], [f"{' '.join(each)}." for each in wanted]


def test_bleu_is_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu", reason="the extra [text] is not installed")
    from lossatlas.measures.bleu import corpus_bleu

    found, wanted = sentences(300, seed=0)
    estimate = corpus_bleu(found, wanted, seed=0)
    assert estimate.value == sacrebleu.corpus_bleu(found, [wanted]).score
    assert 20 < estimate.value < 60
    assert corpus_bleu(found, wanted, seed=0) == estimate
    assert corpus_bleu(wanted, wanted, seed=0).value == pytest.approx(100)
    assert corpus_bleu(wanted, wanted, seed=0).stderr == pytest.approx(0, abs=1e-9)
    # Against the library on resampled corpora: of 200 the spread is known to 5%, of our 1,000 to 2%.
    generator = np.random.default_rng(1)
    scores = []
    for _ in range(200):
        chosen = generator.integers(300, size=300)
        score = sacrebleu.corpus_bleu([found[i] for i in chosen], [[wanted[i] for i in chosen]]).score
        scores.append(score)
    assert estimate.stderr == pytest.approx(np.std(scores, ddof=1), rel=0.2)


def test_a_missing_sacrebleu_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from lossatlas.measures.bleu import corpus_bleu

    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match=r"needs sacrebleu, of the extra: pip install 'lossatlas\[text\]'"):
        corpus_bleu(["a"], ["a"], seed=0)


# ---- the measures -----------------------------------------------------------------------------------------------


def job() -> Job:
    raw = RawData(*(half.numpy() for half in (*TRAIN, *TEST)), classes=VOCABULARY, sequences=True)
    train = Samples(raw.train_inputs, raw.train_targets, raw)
    test = Samples(raw.test_inputs, raw.test_targets, raw)
    return Job(losses.translation(), train, test, VOCABULARY, lambda seed: network(seed=seed))


def trained(seed: int) -> TrainedSeed:
    """A model that predicts a little better than a constant."""
    model = network(seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(15):
        optimizer.zero_grad()
        losses.translation()(model, TRAIN).backward()
        optimizer.step()
    return TrainedSeed(seed, model.eval(), flat_parameters(model))


@pytest.fixture(scope="module")
def two() -> list[TrainedSeed]:
    return [trained(0), trained(1)]


def test_evaluation_is_that_of_all_tokens(two: list[TrainedSeed]) -> None:
    outcome = model_measures.evaluate(job(), s.Evaluation(), two[:1], {})
    assert outcome.status == "ok"
    for part, pair in (("train", TRAIN), ("test", TEST)):
        every = plain_losses(two[0].model, *pair)
        assert outcome.values[f"{part}_loss"] == pytest.approx(torch.cat(every).mean().item(), rel=1e-12)
        ratio = torch.cat(every).mean()
        residuals = torch.stack([each.sum() - ratio * len(each) for each in every])
        count, tokens = len(every), sum(map(len, every))
        stderr = math.sqrt(count / (count - 1) * residuals.square().sum()) / tokens
        assert outcome.values[f"{part}_loss_se"] == pytest.approx(stderr, rel=1e-10)


def test_guessing_is_the_commonest_token_and_padding_is_none() -> None:
    counts = np.bincount(real(TRAIN[1]))
    assert job().guessing("train") == pytest.approx(100 * (1 - counts.max() / counts.sum()))
    constant = TrainedSeed(0, network(), torch.zeros(0))
    with torch.no_grad():
        constant.model.norm_target.weight.zero_()  # the same logits for every token
    assert model_measures.evaluate(job(), s.Evaluation(), [constant], {}).status == "collapsed"


def test_comparisons_run_over_tokens(two: list[TrainedSeed]) -> None:
    a, b = (alone(each.model, *TEST) for each in two)
    p, q = (torch.cat(each).softmax(1) for each in (a, b))
    found = pair_measures.disagreement(job(), s.Disagreement(), two, {}).values
    assert found["disagreement"] == pytest.approx(similarity.disagreement(p, q).value)
    assert found["jensen_shannon"] == pytest.approx(similarity.jensen_shannon(p, q).value)
    assert found["output_cosine"] == pytest.approx(similarity.cosine(torch.cat(a), torch.cat(b)).value)
    sums = [100.0 * (x.argmax(1) != y.argmax(1)).sum() for x, y in zip(a, b, strict=True)]
    expected = token_means({"x": torch.stack(sums), "tokens": lengths(TEST[1])})["x"]
    assert found["disagreement_se"] == pytest.approx(sample_mean(expected).stderr)
    ensemble = pair_measures.ensemble(job(), s.Ensemble(), two, {}).values
    error = similarity.ensemble_error([p, q], real(TEST[1])).value
    assert ensemble["ensemble_error"] == pytest.approx(error)


def test_cka_takes_one_token_a_sentence(two: list[TrainedSeed]) -> None:
    settings = s.CKA(images=6)
    work = job()
    outcome = alignment_measures.cka(work, settings, two, {})
    source, target, places = work.memory["inputs", "all pairs"]
    assert len(source) == 6
    assert ((places >= 0) & (places < lengths(target))).all()
    a, b = (
        torch.stack(
            [logits[place] for logits, place in zip(alone(each.model, source, target), places, strict=True)]
        )
        for each in two
    )
    expected = similarity.cka(a.softmax(1), b.softmax(1))
    assert outcome.values["cka"] == pytest.approx(expected.value, rel=1e-10)
    assert outcome.values["cka_se"] == pytest.approx(expected.stderr, rel=1e-8)
    published = alignment_measures.cka(job(), s.CKA(protocol="published", images=6), two, {})
    assert 0 < published.values["cka"] < 1


def curve(two: list[TrainedSeed], **settings: Any) -> tuple[s.Connectivity, dict[str, Tensor]]:
    asked = s.Connectivity.model_validate({"epochs": 1, "points": 5, "batch_size": 4, **settings})
    return asked, dict(pair_measures.fit_curve(job(), asked, two, {}).arrays)


def test_connectivity_may_be_that_of_the_loss(two: list[TrainedSeed]) -> None:
    settings, arrays = curve(two, on="loss")
    outcome = pair_measures.connectivity(job(), settings, two, arrays)
    assert outcome.status == "ok"
    along = outcome.values["train_loss"]
    points = [two[0].theta, arrays["bends"][0], two[1].theta]
    expected = []
    for t in np.linspace(0, 1, 5):
        theta = (1 - t) ** 2 * points[0] + 2 * t * (1 - t) * points[1] + t**2 * points[2]
        objective = Objective(two[0].model, [TRAIN], losses.translation())
        expected.append(objective(theta).item())
    assert along == pytest.approx(expected, rel=1e-10)
    deviations = (expected[0] + expected[-1]) / 2 - np.array(expected[1:-1])
    star = np.abs(deviations).argmax()
    assert outcome.values["mode_connectivity"] == pytest.approx(deviations[star], rel=1e-9)
    by_error = pair_measures.connectivity(job(), replace_on(settings), two, arrays)
    assert by_error.values["train_loss"] == along
    assert by_error.values["mode_connectivity"] != outcome.values["mode_connectivity"]


def replace_on(settings: s.Connectivity) -> s.Connectivity:
    return settings.model_copy(update={"on": "error"})


def test_the_error_of_connectivity_is_that_of_paired_sentences(two: list[TrainedSeed]) -> None:
    settings, arrays = curve(two, on="loss")
    outcome = pair_measures.connectivity(job(), settings, two, arrays)
    star = float(outcome.values["t_star"])  # type: ignore[arg-type]
    objective = Objective(two[0].model, [TRAIN], per_sentence(losses.translation()))
    bend = arrays["bends"][0]
    middle = (1 - star) ** 2 * two[0].theta + 2 * star * (1 - star) * bend + star**2 * two[1].theta
    ends, inner = ([objective.samples(p)["loss"] for p in ps] for ps in ((two[0].theta, two[1].theta), (middle,)))
    sums = (ends[0] + ends[1]) / 2 - inner[0]
    tokens = lengths(TRAIN[1]).double()
    ratio, count = sums.sum() / tokens.sum(), len(sums)
    stderr = math.sqrt(count / (count - 1) * (sums - ratio * tokens).square().sum()) / tokens.sum().item()
    assert outcome.values["mode_connectivity_se"] == pytest.approx(stderr, rel=1e-8)


def test_a_collapsed_end_is_no_barrier_of_the_loss_either(two: list[TrainedSeed]) -> None:
    flat = network(seed=3)
    with torch.no_grad():
        flat.norm_target.weight.zero_()
    pair = [two[0], TrainedSeed(3, flat, flat_parameters(flat))]
    settings, arrays = curve(pair, on="loss")
    outcome = pair_measures.connectivity(job(), settings, pair, arrays)
    assert outcome.status == "collapsed"
    assert math.isnan(float(outcome.values["mode_connectivity"]))  # type: ignore[arg-type]


def test_units_follow_what_connectivity_is_of() -> None:
    row = next(step for step in measures.STEPS if step.name == "connectivity")
    for on, unit in (("error", "%"), ("loss", "nat")):
        described = {each.name: each.units for each in row.described(s.Connectivity(on=on))["pairs"]}  # type: ignore[arg-type]
        assert described["mode_connectivity"] == described["mode_connectivity_se"] == unit
        assert described["t_star"] == "1"
    assert row.content(s.Connectivity()) == {}
    assert row.content(s.Connectivity(on="loss")) == {"on": "loss"}


@pytest.mark.filterwarnings("ignore::lossatlas.PlainMathsWarning")
def test_the_hessian_is_measured(two: list[TrainedSeed]) -> None:
    outcome = model_measures.hessian(job(), s.Hessian(images=8, max_matvecs=40), two[:1], {})
    assert outcome.status in ("ok", "unconverged")
    assert float(outcome.values["hessian_eig"]) > 0  # type: ignore[arg-type]
    assert outcome.values["hessian_trace_exact"] == 0.0


def test_measures_without_meaning_are_refused() -> None:
    asked = {"bleu": s.Bleu(), "cka": s.CKA(mixup_alpha=16.0)}
    assert measures.problems(asked, [0, 1], text=None) == []
    assert [line.split(":")[0] for line in measures.problems(asked, [0, 1], text=False)] == ["measures.bleu"]
    assert [line.split(":")[0] for line in measures.problems(asked, [0, 1], text=True)] == [
        "measures.cka.mixup_alpha"
    ]
    for cka in (s.CKA(), s.CKA(mixup_alpha=0.0)):
        assert measures.problems({"cka": cka}, [0, 1], text=True) == []


def test_bleu_needs_a_model_that_translates_and_texts(two: list[TrainedSeed]) -> None:
    with pytest.raises(UserError, match="data with a tokenizer"):
        model_measures.bleu(job(), s.Bleu(), two[:1], {})
    with pytest.raises(UserError, match="methods `begin` and `advance`; Linear has none"):
        model_measures.bleu(job(), s.Bleu(), [replace(two[0], model=nn.Linear(1, 1))], {})


# ---- whole tasks ------------------------------------------------------------------------------------------------


def copying(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Sentences that are their own translations."""
    generator = np.random.default_rng(seed)
    lines = [" ".join(generator.choice(WORDS, generator.integers(3, 8))) for _ in range(count)]
    return lines, lines


def test_a_model_learns_to_copy() -> None:
    pytest.importorskip("tokenizers", reason="the extra [text] is not installed")
    pytest.importorskip("sacrebleu", reason="the extra [text] is not installed")
    from lossatlas.tasks.text import from_sentences
    from lossatlas.tasks.transformer import transformer

    raw = from_sentences(copying(2000, 0), copying(50, 1), vocabulary=320, max_length=20)
    samples, criterion = Samples(raw.train_inputs, raw.train_targets, raw), losses.translation()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformer(input_shape=raw.input_shape, classes=raw.classes, embed_dim=32, layers=1, heads=4)
    order = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(12):
        for batch in samples.shuffled(32, order, drop_last=True):
            optimizer.zero_grad()
            criterion(model, batch).backward()
            optimizer.step()
    test = Samples(raw.test_inputs, raw.test_targets, raw)
    work = Job(criterion, samples, test, raw.classes, lambda _seed: model)
    seed = TrainedSeed(0, model.eval(), flat_parameters(model))
    found = {beam: model_measures.bleu(work, s.Bleu(beam=beam), [seed], {}).values for beam in (1, 4)}
    assert found[1]["bleu"] > 90
    assert found[4]["bleu"] > 90
    assert found[1]["bleu_sentences"] == 50


SPEC = """
name = "copying"
seeds = [0, 1]
load = {{ embed_dim = [8, 16] }}
temperature = {{ batch_size = [16] }}

[task]
data = {{ name = "iwslt", path = "{path}"{options} }}
model = {{ name = "transformer", layers = 1, heads = 2 }}
loss = "translation"

[train]
optimizer = {{ name = "adam", lr = 3e-3, weight_decay = 0.0 }}
epochs = 6

[measures]
hessian = {{ images = 20, max_matvecs = 30 }}
bleu = {{ max_length = 12 }}
connectivity = {{ epochs = 2, points = 5, on = "loss" }}
cka = {{ images = 100 }}
distance = {{}}
disagreement = {{}}
ensemble = {{}}

[phases]
mode_connectivity = -0.1
"""


def spec(folder: Path, options: str = "", changes: Mapping[str, str] | None = None) -> Path:
    """The spec beside its corpus, with pieces of its text replaced."""
    text = folder / "text"
    text.mkdir(exist_ok=True)
    for part, count, seed in (("train", 200, 0), ("test", 20, 1)):
        for language, lines in zip(("de", "en"), copying(count, seed), strict=True):
            (text / f"{part}.{language}").write_text("\n".join(lines) + "\n")
    content = SPEC.format(path=text, options=options)
    for old, new in (changes or {}).items():
        assert old in content
        content = content.replace(old, new)
    path = folder / "spec.toml"
    path.write_text(content)
    return path


def test_a_sweep_of_translations(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="the extra [text] is not installed")
    pytest.importorskip("sacrebleu", reason="the extra [text] is not installed")
    done = command.run(tmp_path, "run", spec(tmp_path, ", vocabulary = 300, max_length = 20"), "--out", "out")
    assert done.code == 0, done.err
    tree = results.load(tmp_path / "out" / "results.nc")
    models, pairs = tree["models"].to_dataset(), tree["pairs"].to_dataset()
    assert set(models["status"].values.ravel()) <= {"ok", "unconverged"}, models["reason"].values
    for name in ("train_loss", "train_loss_se", "test_error", "hessian_eig", "hessian_trace", "bleu", "bleu_se"):
        assert np.isfinite(models[name]).all(), name
    assert (models["bleu_sentences"] == 20).all()
    upper = pairs.isel(seed=0, seed_b=1)
    for name in ("mode_connectivity", "mode_connectivity_se", "cka", "distance", "disagreement", "jensen_shannon"):
        assert np.isfinite(upper[name]).all(), name
    assert pairs["mode_connectivity"].attrs["units"] == "nat"
    assert tree["phases"]["mode_connectivity"].attrs["units"] == "nat"
    assert np.isfinite(tree["cells"]["ensemble_error"]).all()
    again = command.run(tmp_path, "run", "out")
    assert "0 of" in again.err


@pytest.mark.parametrize(
    ("options", "changes", "problem"),
    [
        ("", {'loss = "translation"': 'loss = "cross_entropy"'}, "task.loss: cross_entropy"),
        (
            "",
            {'name = "transformer", layers = 1, heads = 2': 'name = "mlp"', "embed_dim": "width"},
            "task.model.name: mlp",
        ),
        (", label_noise = 0.1", {}, "task.data.label_noise"),
        ("", {"images = 100": "mixup_alpha = 8.0"}, "measures.cka.mixup_alpha"),
        ("", {"[phases]\nmode_connectivity = -0.1": ""}, "phases.mode_connectivity: missing"),
        (", vocabulary = 100", {}, "vocabulary = 100 was given; allowed are integers from 259 on"),
    ],
)
def test_what_has_no_meaning_for_text_is_refused(
    options: str, changes: dict[str, str], problem: str, tmp_path: Path
) -> None:
    pytest.importorskip("tokenizers", reason="the extra [text] is not installed")
    refused = command.run(tmp_path, "run", spec(tmp_path, options, changes), "--out", "out")
    assert refused.code == 2
    assert problem in refused.err
    assert "Traceback" not in refused.err


def test_images_are_not_translated(tmp_path: Path) -> None:
    refused = command.run(tmp_path, "plan", command.edited(tmp_path, cka="bleu = {}"))
    assert refused.code == 2
    assert "measures.bleu: it is of translations" in refused.err


EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("name", ["translation", "translation-connectivity"])
def test_the_examples_are_specs_of_one_cell(name: str) -> None:
    spec = specs.read(EXAMPLES / f"{name}.toml")
    assert spec.name == name
    assert len(spec.cells()) == 1


@pytest.mark.slow
def test_real_sentences_are_learnt_by_heart(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="the extra [text] is not installed")
    pytest.importorskip("sacrebleu", reason="the extra [text] is not installed")
    changes = {
        "task.data.path": shared_data / "multi30k",
        "task.data.n_train": 64,
        "load.embed_dim": [64],
        "temperature.batch_size": [16],
        "train.epochs": 100,
        "measures.bleu.data": "train",
    }
    given = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    words = ["run", EXAMPLES / "translation.toml", "--out", "out", *given]
    done = command.Running(tmp_path, words, cwd=tmp_path).finish(900)
    assert done.code == 0, done.err
    tree = results.load(tmp_path / "out" / "results.nc")
    model = tree["models"].to_dataset().squeeze()
    running = tree["history"]["running_loss"].values.ravel()
    assert running[0] > 5  # guessing among some 4,000 tokens has log(4000) = 8.3, among the commonest less
    assert float(model["train_loss"]) < 0.1
    # Of the tokens of a sentence that is known by heart each is nearly certain, so greedy decoding finds them all.
    assert float(model["bleu"]) > 95
    assert int(model["bleu_sentences"]) == 64
    assert float(model["test_loss"]) > 3  # 64 sentences teach no German

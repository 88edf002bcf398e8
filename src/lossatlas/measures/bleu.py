"""BLEU of translations, by sacrebleu; its standard error by resampling sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lossatlas import registry
from lossatlas.errors import UserError
from lossatlas.landscape.estimate import Estimate
from lossatlas.landscape.sequences import EOS, PAD
from lossatlas.measures.decoding import translate
from lossatlas.measures.jobs import Samples

if TYPE_CHECKING:
    from torch import Tensor, nn

RESAMPLES = 1000  # of the sentences: 2% of the standard error
BATCH = 256  # sentences translated at once; changes the speed only


def corpus_bleu(translations: Sequence[str], references: Sequence[str], *, seed: int) -> Estimate:
    """BLEU of a corpus [Papineni 2002] as sacrebleu's `corpus_bleu` defines it (tokens 13a, case kept, 0 to 100).

    The standard error is the spread of BLEU over 1,000 resamplings of the sentences [Koehn 2004], drawn from
    `seed`. Raises UserError where sacrebleu is missing.
    """
    kind = library("sacrebleu.metrics").BLEU
    metric = kind(force=True)  # no advice on texts that look tokenized
    whole = metric.corpus_score(list(translations), [list(references)])
    single = kind(force=True, effective_order=True)  # the same counts, and no advice on sentences either
    rows = [_statistics(single, *pair) for pair in zip(translations, references, strict=True)]
    table = np.array(rows, dtype=np.int64)  # (N, 2 + 2 orders)
    count = len(table)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    scores = [_score(metric, sums) for sums in weights @ table]
    return Estimate(whole.score, float(np.std(scores, ddof=1)), count)


def translations(model: nn.Module, samples: Samples, *, beam: int, max_length: int) -> tuple[list[str], list[str]]:
    """The translations of all sources by a model in eval mode, and the references, as texts.

    Raises UserError for a model that does not translate, and data without a tokenizer.
    """
    if not (hasattr(model, "begin") and hasattr(model, "advance")):
        raise UserError(
            f"BLEU takes a model that translates, with methods `begin` and `advance`; {type(model).__name__} has "
            "none. Take the model transformer, or remove measures.bleu."
        )
    if not samples.tokenizer:
        raise UserError("BLEU takes data with a tokenizer, which makes texts of token ids; these have none.")
    tokenizer = library("tokenizers").Tokenizer.from_str(samples.tokenizer)
    found: list[list[int]] = []
    wanted: list[list[int]] = []
    for source, target in samples.batches(BATCH)():
        found += translate(model, source, beam=beam, max_length=max_length)  # type: ignore[arg-type]
        wanted += _without_ends(target)
    return [_text(tokenizer, ids) for ids in found], [_text(tokenizer, ids) for ids in wanted]


def library(name: str) -> Any:
    """A module of the extra `text`; raises UserError where it is missing."""
    return registry.extra(name, f"Translation needs {name.split('.')[0]}, of", "text")


def _without_ends(target: Tensor) -> list[list[int]]:
    words = (target != PAD) & (target != EOS)
    return [row[is_word].tolist() for row, is_word in zip(target, words, strict=True)]


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids))
    return text.strip()


def _statistics(metric: Any, translation: str, reference: str) -> list[int]:
    """What BLEU is a function of the sums of: the lengths, and matches and totals of n-grams by their order."""
    one = metric.sentence_score(translation, [reference])
    return [one.sys_len, one.ref_len, *one.counts, *one.totals]


def _score(metric: Any, sums: Any) -> float:
    orders = metric.max_ngram_order
    system, reference, *ngrams = sums.tolist()
    score: float = metric.compute_bleu(
        ngrams[:orders],
        ngrams[orders:],
        system,
        reference,
        smooth_method=metric.smooth_method,
        smooth_value=metric.smooth_value,
        effective_order=False,
        max_ngram_order=orders,
    ).score
    return score

"""Sentences as rows of token ids, scored token by token.

A batch is (source (B, S), target (B, T)) of token ids; padding stands at the end of a row. The mean loss is that
over the target tokens, so a batch weighs as many tokens as it has. Tokens of one sentence depend on one another,
sentences do not: a mean over tokens is the ratio of two sums over sentences, and has the standard error of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from lossatlas.errors import UserError
from lossatlas.landscape import batches as split
from lossatlas.landscape.batches import Batch
from lossatlas.landscape.criterion import Criterion

PAD, BOS, EOS = 0, 1, 2  # ids that every vocabulary shares: padding, beginning and end of a sentence


def lengths(tokens: Tensor) -> Tensor:
    """(B,): the number of tokens of every row (B, T), padding left out."""
    return (tokens != PAD).sum(1)


def real(tokens: Tensor) -> Tensor:
    """(n,): the tokens of the rows (B, T) one after another, padding left out."""
    return tokens[tokens != PAD]


def per_sentence(criterion: Criterion) -> Criterion:
    """The sums of the loss and of every extra over the tokens of each sentence, and their number, in float64.

    `criterion` scores every target token. The outputs are the sums themselves, so that what keeps the outputs of
    all sentences (`Objective.samples`) keeps a few numbers each, not one a token and word of the vocabulary. The
    extra `tokens` is the number; `token_means` makes means of the sums. Raises UserError when called for a
    criterion that does not give one number a target token.
    """
    names = ("loss", *criterion.extras, "tokens")

    def predict(model: nn.Module, batch: Batch) -> Tensor:
        terms = criterion.terms(criterion.predict(model, batch), batch)
        counts = lengths(batch[1])
        sums = [_summed(split.wide(term), counts) for term in terms.values()]
        return torch.stack([*sums, counts.to(sums[0])], dim=1)

    def column(index: int, outputs: Tensor, _batch: Batch) -> Tensor:
        return outputs[:, index]

    columns = {name: partial(column, index) for index, name in enumerate(names)}
    return Criterion(predict, columns.pop("loss"), columns)


def token_means(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of sums over sentences (..., N), values of the sentences whose mean is that over all tokens.

    With s the sums, n their `tokens` and r = sum s / sum n: w = r + (s - r n) / mean(n). The mean of w is r, and
    std(w) / sqrt(N) is the standard error of the ratio r to first order [Cochran 1977, section 6.4]; the same
    holds for linear combinations of several, such as differences between points of a curve.
    """
    tokens = sums["tokens"].double()

    def values(total: Tensor) -> Tensor:
        ratio = total.sum(-1, keepdim=True) / tokens.sum(-1, keepdim=True)
        return ratio + (total - ratio * tokens) / tokens.mean(-1, keepdim=True)

    return {name: values(total.double()) for name, total in sums.items() if name != "tokens"}


def _summed(terms: Tensor, counts: Tensor) -> Tensor:
    """(B,): the sums of the terms (n,) of B sentences, counts[i] of them each."""
    if terms.shape != (int(counts.sum()),):
        raise UserError(
            f"The loss or an extra gave numbers of shape {tuple(terms.shape)} for {int(counts.sum())} target "
            "tokens. Give one number for every target token that is no padding, in their order."
        )
    owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    return terms.new_zeros(len(counts)).index_add(0, owner.to(terms.device), terms)

"""Translations by beam search, of any model that says how probable the next tokens are."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from lossatlas.landscape.sequences import BOS, EOS, PAD


class Translator(Protocol):
    """A model that translates token by token."""

    def begin(self, source: Tensor) -> Any:
        """The empty translations of source (B, S), with a method `select(rows)` that picks some, also twice."""

    def advance(self, begun: Any, tokens: Tensor) -> tuple[Tensor, Any]:
        """(B, V): the logits of what follows when tokens (B,) are the last ones; and the longer translations."""


def translate(model: Translator, source: Tensor, *, beam: int = 1, max_length: int = 100) -> list[list[int]]:
    """The translations of source (B, S) as token ids without BOS and EOS.

    Beam search: the `beam` most probable beginnings of every sentence go on. One that ends is scored by its mean
    log probability a token (EOS counts), and the best of the first `beam` that end is taken; if none has ended
    after `max_length` tokens, the most probable beginning. beam = 1 is greedy decoding. Ties go to the lower rank;
    the same call gives the same tokens. Costs one decoder step a token, for `beam` rows a sentence at most.
    """
    search = _Search(model, source, beam)
    with torch.no_grad():
        for _ in range(max_length):
            if not search.sentences:
                break
            search.step()
    return search.found()


class _Search:
    """The sentences that are not over, `beam` consecutive rows each."""

    def __init__(self, model: Translator, source: Tensor, beam: int) -> None:
        count, device = len(source), source.device
        self._model, self._beam = model, beam
        self.sentences = list(range(count))  # of every group of rows
        self._ended: list[list[tuple[float, list[int]]]] = [[] for _ in range(count)]
        with torch.no_grad():
            begun = model.begin(source)
        self._begun = begun.select(torch.arange(count, device=device).repeat_interleave(beam))
        self._tokens = torch.full((count * beam, 1), BOS, device=device)  # so far
        self._scores = torch.full((count, beam), -torch.inf, dtype=torch.float64, device=device)
        self._scores[:, 0] = 0.0  # the beginnings of a sentence are still one and the same

    def step(self) -> None:
        """One token more."""
        logits, self._begun = self._model.advance(self._begun, self._tokens[:, -1])
        logits[:, [PAD, BOS]] = -torch.inf  # no words
        groups, words = len(self.sentences), logits.shape[1]
        logs = logits.to(self._scores.dtype).log_softmax(1).view(groups, self._beam, words)
        # Of twice as many as go on at most half end.
        scores, places = (self._scores.unsqueeze(2) + logs).flatten(1).topk(2 * self._beam)
        first_rows = torch.arange(groups, device=places.device).unsqueeze(1) * self._beam
        rows, tokens = first_rows + places // words, places % words
        self._take_ended(scores, rows, tokens)
        open_first = (tokens == EOS).long().argsort(dim=1, stable=True)[:, : self._beam]
        left = [i for i, sentence in enumerate(self.sentences) if len(self._ended[sentence]) < self._beam]
        kept = torch.tensor(left, dtype=torch.long, device=places.device)
        rows, tokens, scores = (each.gather(1, open_first)[kept] for each in (rows, tokens, scores))
        self.sentences = [self.sentences[i] for i in left]
        self._scores = scores
        self._tokens = torch.cat([self._tokens[rows.flatten()], tokens.flatten().unsqueeze(1)], dim=1)
        self._begun = self._begun.select(rows.flatten())

    def _take_ended(self, scores: Tensor, rows: Tensor, tokens: Tensor) -> None:
        """Note the translations that end among the `beam` best candidates of every sentence."""
        ends = (tokens[:, : self._beam] == EOS) & scores[:, : self._beam].isfinite()
        for group, rank in ends.nonzero().tolist():
            beginning = self._tokens[rows[group, rank], 1:].tolist()
            score = scores[group, rank].item() / (len(beginning) + 1)
            self._ended[self.sentences[group]].append((score, beginning))

    def found(self) -> list[list[int]]:
        """The best translation of every sentence."""
        for group, sentence in enumerate(self.sentences):
            if not self._ended[sentence]:  # over-long
                self._ended[sentence].append((0.0, self._tokens[group * self._beam, 1:].tolist()))
        return [max(ended, key=lambda one: one[0])[1] for ended in self._ended]

"""The encoder-decoder Transformer of [Vaswani 2017] for pairs of token sequences, in plain PyTorch.

Departures from the paper: LayerNorm stands before every sub-layer and once after the last one ("pre-norm"), which
trains without a warm-up; source, target and output share one embedding (the paper's shared case). As there:
sinusoidal positions, embeddings times sqrt(d), no biases in attention, ReLU in feed-forward layers of 4 d units.

Everything but attention works on the tokens alone, one after another, so padding costs next to nothing; attention
sees rows with their padding, and masks it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossatlas.errors import UserError
from lossatlas.landscape.batches import map_tensors
from lossatlas.landscape.sequences import BOS, PAD

KeysValues = tuple[Tensor, Tensor]  # each (B, heads, length, d / heads)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Where tokens that stand one after another (n,) belong in rows with padding (B, T)."""

    count: int
    width: int
    places: Tensor  # (n,) among the B * T

    @classmethod
    def of(cls, tokens: Tensor) -> _Rows:
        count, width = tokens.shape
        return cls(count, width, (tokens != PAD).flatten().nonzero().squeeze(1))

    @property
    def positions(self) -> Tensor:
        """(n,): the place of every token in its row."""
        return self.places % self.width

    def packed(self, padded: Tensor) -> Tensor:
        """(B, T, ...) -> (n, ...)."""
        return padded.flatten(0, 1).index_select(0, self.places)

    def padded(self, packed: Tensor) -> Tensor:
        """(n, d) -> (B, T, d), with zeros in the padding."""
        empty = packed.new_zeros(self.count * self.width, packed.shape[1])
        return empty.index_copy(0, self.places, packed).view(self.count, self.width, -1)


class _Attention(nn.Module):
    """Multi-head scaled dot-product attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)

    def keys_values(self, x: Tensor, rows: _Rows) -> KeysValues:
        """Of tokens (n, d), the keys and values of their rows."""
        keys, values = rows.padded(self.key_value(x)).chunk(2, dim=2)
        return self._split(keys), self._split(values)

    def forward(
        self, x: Tensor, rows: _Rows, seen: KeysValues, *, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """(n, d): what the tokens (n, d) take from what they may see; `mask` is True where they may."""
        queries = self._split(rows.padded(self.query(x)))
        found = F.scaled_dot_product_attention(queries, *seen, attn_mask=mask, is_causal=causal)
        out: Tensor = self.output(rows.packed(found.transpose(1, 2).flatten(2)))
        return out

    def _split(self, x: Tensor) -> Tensor:
        split: Tensor = x.unflatten(2, (self._heads, -1)).transpose(1, 2)
        return split


def _feed_forward(dim: int) -> nn.Module:
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))


class _EncoderLayer(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention, self.attention = nn.LayerNorm(dim), _Attention(dim, heads)
        self.norm_feed_forward, self.feed_forward = nn.LayerNorm(dim), _feed_forward(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rows: _Rows, mask: Tensor) -> Tensor:
        h = self.norm_attention(x)
        x = x + self.dropout(self.attention(h, rows, self.attention.keys_values(h, rows), mask=mask))
        out: Tensor = x + self.dropout(self.feed_forward(self.norm_feed_forward(x)))
        return out


class _DecoderLayer(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention, self.attention = nn.LayerNorm(dim), _Attention(dim, heads)
        self.norm_cross, self.cross = nn.LayerNorm(dim), _Attention(dim, heads)
        self.norm_feed_forward, self.feed_forward = nn.LayerNorm(dim), _feed_forward(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, rows: _Rows, past: KeysValues | None, source: KeysValues, mask: Tensor
    ) -> tuple[Tensor, KeysValues]:
        """The tokens after this layer, and the keys and values of all so far.

        Padding of the target needs no mask: it stands after every token, where causality hides it already.
        """
        h = self.norm_attention(x)
        own = self.attention.keys_values(h, rows)
        if past is not None:
            own = torch.cat([past[0], own[0]], dim=2), torch.cat([past[1], own[1]], dim=2)
        x = x + self.dropout(self.attention(h, rows, own, causal=past is None))
        x = x + self.dropout(self.cross(self.norm_cross(x), rows, source, mask=mask))
        return x + self.dropout(self.feed_forward(self.norm_feed_forward(x))), own


class _Logits(nn.Module):
    """The product with the embedding, as a module of its own, so that hooks see the largest activation."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return F.linear(x, embedding)


@dataclass(frozen=True, eq=False)
class Beginnings:
    """Translations that are begun: all that their next tokens hang on."""

    source: tuple[KeysValues, ...]  # of every layer
    mask: Tensor  # (B, 1, 1, S): True at the tokens of the source
    past: tuple[KeysValues | None, ...]  # of every layer: the tokens so far
    length: int = 0

    def select(self, rows: Tensor) -> Beginnings:
        """Those at `rows`, each as often as it stands there."""

        def chosen(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, rows)

        source, mask, past = map_tensors((self.source, self.mask, self.past), chosen)
        return replace(self, source=source, mask=mask, past=past)


class Transformer(nn.Module):
    """`model(source, target)` is teacher forcing; `begin` and `advance` translate token by token."""

    def __init__(self, vocabulary: int, dim: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.encoder = nn.ModuleList(_EncoderLayer(dim, heads, dropout) for _ in range(layers))
        self.decoder = nn.ModuleList(_DecoderLayer(dim, heads, dropout) for _ in range(layers))
        self.norm_source, self.norm_target = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout, self.logits = nn.Dropout(dropout), _Logits()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)  # logits of unit variance, and inputs, times sqrt(d)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """(n, V): the logits of the n tokens of target (B, T), given source (B, S) and the tokens before each."""
        rows = _Rows.of(target)
        before = F.pad(target[:, :-1], (1, 0), value=BOS)
        begun = self.begin(source)
        return self._decoded(before, rows, begun)[0]

    def begin(self, source: Tensor) -> Beginnings:
        """The empty translations of source (B, S)."""
        rows, mask = _Rows.of(source), (source != PAD)[:, None, None, :]
        x = self._embedded(rows.packed(source), rows.positions)
        for layer in self.encoder:
            x = layer(x, rows, mask)
        x = self.norm_source(x)
        seen = tuple(layer.cross.keys_values(x, rows) for layer in self.decoder)  # type: ignore[union-attr,operator]
        return Beginnings(seen, mask, (None,) * len(seen))

    def advance(self, begun: Beginnings, tokens: Tensor) -> tuple[Tensor, Beginnings]:
        """(B, V): the logits of the tokens that follow when tokens (B,) are the last ones (BOS at first)."""
        rows = _Rows(len(tokens), 1, torch.arange(len(tokens), device=tokens.device))
        logits, past = self._decoded(tokens.unsqueeze(1), rows, begun)
        return logits, replace(begun, past=past, length=begun.length + 1)

    def _decoded(self, before: Tensor, rows: _Rows, begun: Beginnings) -> tuple[Tensor, tuple[KeysValues, ...]]:
        x = self._embedded(rows.packed(before), rows.positions + begun.length)
        seen = []
        for layer, past, source in zip(self.decoder, begun.past, begun.source, strict=True):
            x, own = layer(x, rows, past, source, begun.mask)
            seen.append(own)
        return self.logits(self.norm_target(x), self.embedding.weight), tuple(seen)

    def _embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        x = self.embedding(tokens)
        places = sinusoids(positions, x.shape[1]).to(x.dtype)
        out: Tensor = self.dropout(x * math.sqrt(x.shape[1]) + places)
        return out


def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """(n, d): sin and cos of p / 10000^(2i/d), i < d/2, at positions p (n,), in float64 where the device has it.

    All sines stand before all cosines, which is the paper's order but for a permutation of the coordinates.
    """
    kind = torch.float32 if positions.device.type == "mps" else torch.float64
    rates = torch.exp(torch.arange(0, dim, 2, device=positions.device, dtype=kind) * (-math.log(10_000) / dim))
    angles = positions.to(kind).unsqueeze(1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def transformer(
    *,
    input_shape: Sequence[int],
    classes: int,
    embed_dim: int,
    layers: int = 6,
    heads: int = 8,
    dropout: float = 0.0,
) -> nn.Module:
    """The Transformer of [Yang2021]'s translations: six layers a side, eight heads, `embed_dim` the load.

    `classes` is the size V of the joint vocabulary. With d = `embed_dim` there are V d + layers (28 d^2 + 20 d)
    + 4 d parameters. Dropout, if asked for, is on embeddings and on what every sub-layer adds; by default there is
    none, so that training and measures are of the same loss (the source publishes no code of its translations).
    """
    if len(input_shape) != 1:
        raise UserError(
            f"The transformer takes sequences of tokens; the data have inputs of shape {tuple(input_shape)}. "
            "Choose data that are text, such as multi30k, or another model."
        )
    if embed_dim % heads or embed_dim % 2:
        raise UserError(
            f"embed_dim = {embed_dim} was given; with heads = {heads} it must be an even multiple of {heads}: "
            "every head takes as many dimensions, and positions take them in pairs."
        )
    return Transformer(classes, embed_dim, layers, heads, dropout)

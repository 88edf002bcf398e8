"""Numbers in sentences: a value as precise as its error (as figures tell it), lists, counted nouns."""

from __future__ import annotations

from collections.abc import Sequence

from lossatlas.figures.style import with_error as with_error


def listed(texts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))


def counted(n: int, noun: str) -> str:
    """`1 cell`, `3 cells`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"

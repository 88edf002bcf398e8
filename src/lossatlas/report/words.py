"""Numbers in sentences: a value as precise as its error, lists, counted nouns."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lossatlas.figures.style import plain


def with_error(value: float, error: float, unit: str = "") -> str:
    """`86.26 ± 0.13 %`: the error with two digits and the value with as many decimals; else four digits."""
    if math.isnan(value):
        return "not measured"
    tail = f" {unit}" if unit else ""
    if not math.isfinite(error) or error <= 0:
        return f"{plain(value, 4)}{' ± 0' if error == 0 else ''}{tail}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    if decimals > 6:
        return f"{plain(value, 4)} ± {plain(error, 2)}{tail}"
    return f"{value:.{decimals}f} ± {error:.{decimals}f}{tail}".replace("-", "−")


def listed(texts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))


def counted(n: int, noun: str) -> str:
    """`1 cell`, `3 cells`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"

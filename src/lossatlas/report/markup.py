"""HTML as small pure functions: every text is escaped, whatever it holds; what these functions made is not."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

_VOID = ("br", "meta")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str) -> Markup:
    """An element; `class_` and `for_` are the attributes that Python has words for, `data_x` is `data-x`."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items()
    )
    return Markup(f"<{name}{given}>" if name in _VOID else f"<{name}{given}>{join(*children)}</{name}>")


def join(*children: str) -> Markup:
    """Texts and elements one after another."""
    return Markup("".join(each if isinstance(each, Markup) else html.escape(each) for each in children))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table whose first row is its header; columns of numbers alone stand to the right."""
    numeric = [all(_is_number(row[k]) for row in rows) for k in range(len(header))]
    sides = ["number" if each else "text" for each in numeric]
    heads = (tag("th", name, scope="col", class_=side) for name, side in zip(header, sides, strict=True))
    lines = (
        tag("tr", *(tag("td", text, class_=side) for text, side in zip(row, sides, strict=True))) for row in rows
    )
    return tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *lines))


def _is_number(text: str) -> bool:
    try:
        float(text or 0)
    except ValueError:
        return False
    return True


def script_json(content: Any) -> Markup:
    """Plain data as JSON that can stand inside a script element: nothing in it ends the element or a line.

    Raises ValueError for NaN, which JSON does not have.
    """
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":  # U+2028 and U+2029 are escaped by `ensure_ascii`
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)

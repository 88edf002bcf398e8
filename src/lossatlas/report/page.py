"""One HTML file out of its parts: the texts, the numbers, the style, the scripts. It asks for nothing else.

The content security policy names the scripts by their SHA-256, so a browser runs these and no other, and it
forbids the network altogether. plotly is compressed and unpacked when the first chart needs it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from lossatlas.report.arrays import Arrays, compressed
from lossatlas.report.markup import Markup, join, script_json, tag


@dataclass
class Page:
    """What one page holds: its title, its body, and for the scripts names (`content`) and numbers (`arrays`)."""

    title: str
    body: Markup
    content: Mapping[str, Any]
    arrays: Arrays
    scripts: Sequence[str]  # the files of `assets`, in the order in which they run
    plotly: str = field(default="", repr=False)  # the source of plotly.js; empty: the page has no chart


def plotly_source() -> str:
    """The JavaScript of plotly, as its package brings it along."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def render(page: Page) -> str:
    """The whole file."""
    program = "\n".join(["'use strict';(() => {", *(asset(name) for name in page.scripts), "})();"])
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash(program)} {_hash(page.plotly)}",
            "style-src 'unsafe-inline'",
            "img-src data: blob:",
            "font-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    fields = {
        "title": join(page.title),
        "policy": join(policy),
        "style": Markup(asset("report.css")),
        "body": page.body,
        "content": script_json({**page.content, "arrays": page.arrays.index}),
        "numbers": Markup(page.arrays.encoded()),
        "plotly": Markup(compressed(page.plotly.encode()) if page.plotly else ""),
        "program": Markup(program),
    }
    # In one pass: what is put in is not searched again.
    parts = asset("page.html").split("{{")
    return parts[0] + "".join(fields[name] + rest for name, rest in (part.split("}}", 1) for part in parts[1:]))


def asset(name: str) -> str:
    """The text of a file of this package's folder `assets`."""
    return resources.files("lossatlas.report").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def section(name: str, heading: str, *children: str) -> Markup:
    """A part of the page with its heading; `name` is its anchor."""
    return tag("section", tag("h2", heading), *children, id=name)

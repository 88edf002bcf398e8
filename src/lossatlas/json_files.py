"""Tables in JSON files; one that matters carries a check sum of all else in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lossatlas.errors import FileError
from lossatlas.files import Damaged

SEAL = "sha256"


def encoded(content: Any, *, indent: int | None = 1) -> bytes:
    """Plain data as a JSON file, in the order given."""
    return (json.dumps(content, indent=indent) + "\n").encode()


def sealed(content: Mapping[str, Any], *, indent: int | None = 1) -> bytes:
    """A table as a JSON file with its check sum in it, which `read_sealed` compares."""
    return encoded({**content, SEAL: _sum(content)}, indent=indent)


def read(path: Path) -> dict[str, Any]:
    """The table in a file; raises Damaged when it holds none, FileError when it cannot be read at all.

    The text of Damaged says how, without the path: "is damaged: it holds no table".
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error}).") from error
    except ValueError as error:
        raise Damaged(f"is damaged ({error})") from error
    if not isinstance(content, dict):
        raise Damaged("is damaged: it holds no table")
    return content


def read_sealed(path: Path) -> dict[str, Any]:
    """The table in a file that `sealed` made; raises as `read`, also when the check sum is another."""
    content = read(path)
    if content.pop(SEAL, None) != _sum(content):
        raise Damaged("is damaged: its check sum differs")
    return content


def _sum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(encoded(content, indent=None)).hexdigest()

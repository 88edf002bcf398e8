"""What every section of a spec shares: frozen, strict, no unknown keys; and its content as a canonical text."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """A frozen section of a spec; builds nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def content(self) -> dict[str, Any]:
        """What is not the default, as plain data: a later version may add settings without changing any key."""
        return self.model_dump(mode="json", exclude_defaults=True)


def equal_steps(epochs: int, n_ref: int | None, samples: int) -> int:
    """The epochs on so many samples: those given, or as many as make the steps of `epochs` on `n_ref` samples."""
    return epochs if n_ref is None else max(1, round(epochs * n_ref / samples))


def canonical(content: Any) -> str:
    """The one text of plain data: sorted keys, no spaces, shortest exact floats; NaN is refused."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def without_nan(content: Any) -> Any:
    """Plain data for JSON, which has no NaN or infinity: a number that does not exist is null."""
    if isinstance(content, dict):
        return {str(key): without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content.item() if hasattr(content, "item") else content


def content_key(content: Any) -> str:
    """The key of plain data: that of its canonical text."""
    return text_key(canonical(content))


def text_key(text: str) -> str:
    """128 bits of SHA-256 over a canonical text, as 32 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]

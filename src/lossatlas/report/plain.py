"""Plain data for JSON."""

from __future__ import annotations

import math
from typing import Any


def without_nan(content: Any) -> Any:
    """JSON has no NaN and no infinity: what is not a number is null."""
    if isinstance(content, dict):
        return {str(key): without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content.item() if hasattr(content, "item") else content

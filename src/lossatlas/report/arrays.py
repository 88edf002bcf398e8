"""The numbers of a page: typed arrays one after another, compressed, in base64; and where each of them lies."""

from __future__ import annotations

import base64
import gzip
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_NAMES = {"<f8": "Float64Array", "<f4": "Float32Array", "|u1": "Uint8Array", "<u2": "Uint16Array"}
_ALIGNED = 8  # bytes: a typed array begins at a multiple of the size of its numbers


class Arrays:
    """Arrays by name, each kept once; the page reads them by their type, offset and shape."""

    def __init__(self) -> None:
        self.index: dict[str, dict[str, Any]] = {}
        self._blocks: list[bytes] = []
        self._size = 0

    def add(self, name: str, values: ArrayLike, dtype: str = "<f8") -> None:
        """Keep an array under a name of its own, in one of the types of JavaScript."""
        array: NDArray[Any] = np.ascontiguousarray(np.asarray(values), dtype=dtype)
        block = array.tobytes()
        block += bytes(-len(block) % _ALIGNED)
        self.index[name] = {"type": _NAMES[dtype], "at": self._size, "shape": list(array.shape)}
        self._blocks.append(block)
        self._size += len(block)

    def add_texts(self, name: str, values: ArrayLike) -> list[str]:
        """Keep texts as numbers, and return the texts that the numbers stand for: there are few of them."""
        texts, codes = np.unique(np.asarray(values).astype(str), return_inverse=True)
        self.add(name, codes.reshape(np.shape(values)), "<u2")
        return [str(text) for text in texts]

    def encoded(self) -> str:
        """All of them, in base64; the same numbers give the same text."""
        return compressed(b"".join(self._blocks))


def compressed(content: bytes) -> str:
    """Bytes as gzip in base64, without a date."""
    return base64.b64encode(gzip.compress(content, compresslevel=9, mtime=0)).decode()

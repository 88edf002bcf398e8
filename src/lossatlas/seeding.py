"""Separate random streams by name, so that adding one use of randomness shifts no other."""

from __future__ import annotations

import hashlib


def derive(seed: int, name: str) -> int:
    """A 63-bit seed for the stream `name` of `seed`: the head of SHA-256 over both."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1

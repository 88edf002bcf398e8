"""Decoded data beside the store, so that every worker opens arrays instead of decoding images.

    STORE/data/<fingerprint>/{about.json, train_inputs.npy, train_targets.npy, test_inputs.npy, test_targets.npy}

The fingerprint is the check sum: what does not give it when read is set aside.
"""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from lossatlas import files
from lossatlas.tasks.data import RawData

ARRAYS = ("train_inputs", "train_targets", "test_inputs", "test_targets")


def keep(store: Path, raw: RawData, fingerprint: str) -> None:
    """Write the data if they are not there; raises FileError if they cannot be written.

    Left out are data that files do not keep as they are: a NumPy number among the facts comes back as Python's.
    """
    if folder(store, fingerprint).is_dir():
        return
    facts = {f.name: getattr(raw, f.name) for f in dataclasses.fields(raw) if f.name not in ARRAYS}
    try:
        about = json.dumps(facts).encode()
    except TypeError:
        return
    if repr(_facts(about)) != repr(facts):
        return
    parts = {f"{name}.npy": _bytes(getattr(raw, name)) for name in ARRAYS}
    files.commit_folder(folder(store, fingerprint), {**parts, "about.json": about}, scratch=store)


def kept(store: Path, fingerprint: str) -> RawData | None:
    """The data with this fingerprint; None if they are not there, or damaged (they are then set aside)."""
    if not folder(store, fingerprint).is_dir():
        return None
    try:
        raw = _read(store, fingerprint)
    except PermissionError:
        return None
    if raw is None:
        set_aside(store, fingerprint)
    return raw


def is_damaged(store: Path, fingerprint: str) -> bool:
    """Whether kept data are not those with this fingerprint; changes nothing. Raises PermissionError."""
    return folder(store, fingerprint).is_dir() and _read(store, fingerprint) is None


def set_aside(store: Path, fingerprint: str) -> None:
    """Move kept data out of the way, as far as there are some; they will be loaded from their source again."""
    files.set_aside(folder(store, fingerprint), store / "damaged" / files.unique_name(f"data-{fingerprint}"))


def _read(store: Path, fingerprint: str) -> RawData | None:
    """The data with this fingerprint; None if they are damaged."""
    where = folder(store, fingerprint)
    try:
        parts: dict[str, Any] = {name: np.load(where / f"{name}.npy") for name in ARRAYS}
        raw = RawData(**parts, **_facts((where / "about.json").read_bytes()))
        return raw if raw.fingerprint() == fingerprint else None
    except PermissionError:
        raise
    except Exception:  # a wrong byte in a header makes NumPy's parser raise anything
        return None


def _facts(about: bytes) -> dict[str, Any]:
    """What a RawData holds beside its arrays; JSON has no tuples."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in json.loads(about).items()}


def folder(store: Path, fingerprint: str) -> Path:
    """Where the data with this fingerprint are, or will be."""
    return store / "data" / fingerprint


def _bytes(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()

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
    """Write the data if they are not there; raises FileError if they cannot be written."""
    folder = _folder(store, fingerprint)
    if folder.is_dir():
        return
    about = {f.name: getattr(raw, f.name) for f in dataclasses.fields(raw) if f.name not in ARRAYS}
    parts = {f"{name}.npy": _bytes(getattr(raw, name)) for name in ARRAYS}
    files.commit_folder(folder, {**parts, "about.json": json.dumps(about).encode()}, scratch=store)


def kept(store: Path, fingerprint: str) -> RawData | None:
    """The data with this fingerprint; None if they are not there, or damaged (they are then set aside)."""
    folder = _folder(store, fingerprint)
    if not folder.is_dir():
        return None
    try:
        about: dict[str, Any] = json.loads((folder / "about.json").read_text())
        parts: dict[str, Any] = {name: np.load(folder / f"{name}.npy") for name in ARRAYS}
        parts |= {name: tuple(v) if isinstance(v, list) else v for name, v in about.items()}
        raw = RawData(**parts)
        sound = raw.fingerprint() == fingerprint
    except (OSError, ValueError, TypeError, EOFError):
        sound = False
    if not sound:
        aside = store / "damaged" / files.temporary_name(f"data-{fingerprint}").removeprefix(files.TEMPORARY)
        files.set_aside(folder, aside)
        return None
    return raw


def _folder(store: Path, fingerprint: str) -> Path:
    return store / "data" / fingerprint


def _bytes(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()

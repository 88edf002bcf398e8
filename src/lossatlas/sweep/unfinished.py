"""The checkpoint of a step that is not finished: one safetensors file with a check sum inside, no pickle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from lossatlas import files
from lossatlas.errors import FileError
from lossatlas.files import Damaged
from lossatlas.landscape.checkpoints import State, StopFlag, Stopped
from lossatlas.sweep.store import Store

INTERVAL = 300.0  # s between checkpoints
FORMAT = 1  # of the file and of the states in it, to be raised by hand
BLANK = "0" * 64  # what stands for the check sum while it is formed


@dataclass
class Unfinished:
    """The checkpoints of one step in the store, by wall time and when a stop is asked for.

    A checkpoint belongs to the key of its step and to a kind of device. One of another key or format, or with a
    wrong bit, is set aside; one of another kind of device could not be continued with the same bits and is written
    over.
    """

    store: Store
    step: str
    key: str
    device: torch.device
    stop: StopFlag = field(default_factory=StopFlag)
    interval: float = INTERVAL
    stops: int = 0  # before this one
    _before: float = 0.0  # s of work until the checkpoint that was continued from
    _start: float = field(default_factory=time.monotonic)
    _next: float = 0.0

    def __post_init__(self) -> None:
        self._next = self._start + self.interval

    @property
    def seconds(self) -> float:
        """The time that the step has taken so far, that before its stops included."""
        return self._before + time.monotonic() - self._start

    def load(self) -> State | None:
        """The state in the file; None if there is none to continue from."""
        path = self.store.unfinished(self.step, self.key)
        try:
            state, about = unpacked(path.read_bytes(), self.step, self.key)
        except FileNotFoundError:
            return None
        except Damaged:
            self.store.set_unfinished_aside(self.step, self.key)
            return None
        except OSError as error:
            raise FileError(f"{path} cannot be read: {error.strerror}. Mend that, or remove it.") from error
        if about["device"] != self.device.type:
            return None
        self._before, self.stops = about["seconds"], about["stops"] + 1
        return state

    def due(self) -> bool:
        """Whether the interval is over or a stop is asked for."""
        return self.stop.asked or time.monotonic() >= self._next

    def save(self, state: State) -> None:
        """Replace the file; raises Stopped afterwards if that is asked for, FileError if it cannot be written."""
        about = {"step": self.step, "key": self.key, "device": self.device.type}
        content = packed(state, {**about, "seconds": self.seconds, "stops": self.stops})
        files.write_file(self.store.unfinished(self.step, self.key), content)
        self._next = time.monotonic() + self.interval
        if self.stop.asked:
            raise Stopped


def packed(state: State, about: dict[str, Any]) -> bytes:
    """A state as a safetensors file, whose metadata hold the numbers, `about`, and the SHA-256 of the file.

    The sum is formed with zeros in its place, so that it covers every other byte.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    plain = json.dumps({**about, "format": FORMAT, "numbers": dict(state.numbers)}, allow_nan=False)
    content = safetensors.torch.save(tensors, metadata={"state": plain, "sha256": BLANK})
    return content.replace(BLANK.encode(), hashlib.sha256(content).hexdigest().encode(), 1)


def unpacked(content: bytes, step: str, key: str) -> tuple[State, dict[str, Any]]:
    """The state and the `about` of a file made by `packed` for this step; raises Damaged if a bit is another."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError):
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        found = metadata["sha256"].encode()
        if hashlib.sha256(content.replace(found, BLANK.encode(), 1)).hexdigest().encode() == found:
            about = json.loads(metadata["state"])
            if (about["format"], about["step"], about["key"]) == (FORMAT, step, key):
                return State(safetensors.torch.load(content), about["numbers"]), about
    raise Damaged("the checkpoint is damaged, of another step or of another version")

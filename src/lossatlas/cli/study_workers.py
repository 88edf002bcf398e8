"""Worker processes of a study: each does some of its models, and the store is what they share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGINT

from lossatlas.cli.engines import stopping, worker_command
from lossatlas.cli.output import note
from lossatlas.landscape.checkpoints import StopFlag, Stopped
from lossatlas.sweep.local import Slot

LOOK = 0.5  # s between two looks at whether a worker has left


def shared(folder: Path, slots: Sequence[Slot], device: str) -> None:
    """Let a worker at each place do its share of the models; returns when all have left.

    What they have not done the caller does. A stop is passed on to them, and raised when they have left.
    """
    stop = StopFlag()
    with stopping(stop, folder):
        workers = [_started(folder, slot, len(slots), device) for slot in slots]
        told = False
        while any(worker.poll() is None for worker in workers):
            with suppress(subprocess.TimeoutExpired):
                next(worker for worker in workers if worker.poll() is None).wait(LOOK)
            if stop.asked and not told:
                told = True
                for worker in workers:
                    worker.send_signal(SIGINT)
        if stop.asked:
            raise Stopped
    for slot, worker in zip(slots, workers, strict=True):
        if worker.returncode:
            note(f"Worker {slot.number} left with exit code {worker.returncode}: see {_log(folder, slot)}.")


def _started(folder: Path, slot: Slot, of: int, device: str) -> subprocess.Popen[bytes]:
    command = worker_command(folder, device, "--shard", str(slot.number), "--of", str(of))
    log = _log(folder, slot)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env={**os.environ, **slot.environment},
            start_new_session=True,  # Ctrl-C reaches them through us, once
        )


def _log(folder: Path, slot: Slot) -> Path:
    return folder / "logs" / f"worker-{slot.number}.log"

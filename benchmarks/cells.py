"""Predicted and measured seconds and memory of the steps of a cell, each cell in a process of its own.

    python benchmarks/cells.py

Cells are a digits perceptron and ResNet18 of width 8 on random images of CIFAR-10's shape, two seeds each. The
peak is that of the resident memory of the whole process. The table goes to benchmarks/results/cells.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "perceptron, width 32, batch 32, 200 Hessian images": {
        "model": "mlp",
        "width": 32,
        "batch": 32,
        "images": 200,
    },
    "perceptron, width 8000, batch 128, 1000": {"model": "mlp", "width": 8000, "batch": 128, "images": 1000},
    "ResNet18, width 8, batch 128, 200": {"model": "resnet18", "width": 8, "batch": 128, "images": 200},
    "ResNet18, width 8, batch 512, 50": {"model": "resnet18", "width": 8, "batch": 512, "images": 50},
}
TRAIN_IMAGES = 1000


class Silent:
    """A listener that hears nothing."""

    def begins(self, step: object) -> None: ...
    def finished(self, step: object, status: str) -> None: ...
    def skipped(self, step: object) -> None: ...
    def advanced(self, step: object, epoch: int, epochs: int, loss: float) -> None: ...


def cell(model: str, width: int, batch: int, images: int) -> dict[str, Any]:
    """Do one cell in this process; seconds by kind of step, and bytes, predicted and measured."""
    import numpy as np

    from lossatlas import specs
    from lossatlas.sweep.cost import estimate
    from lossatlas.sweep.plan import Plan
    from lossatlas.sweep.store import Store
    from lossatlas.sweep.worker import Worker
    from lossatlas.tasks import data
    from lossatlas.tasks.data import RawData

    raw = data.load("digits", None)
    if model != "mlp":
        generator = np.random.default_rng(0)
        pixels = generator.integers(0, 256, (2 * TRAIN_IMAGES, 3, 32, 32), dtype=np.uint8)
        labels = generator.integers(0, 10, 2 * TRAIN_IMAGES)
        n = TRAIN_IMAGES
        raw = RawData(pixels[:n], labels[:n], pixels[n:], labels[n:], 10, 255.0, (0.5,) * 3, (0.25,) * 3)
    content = {
        "name": "cell",
        "seeds": [0, 1],
        "load": {"width": [width]},
        "temperature": {"batch_size": [batch]},
        "task": {"data": {"name": "digits", "n_train": TRAIN_IMAGES}, "model": {"name": model}},
        "train": {"epochs": 2},
        "measures": {
            "hessian": {"images": images},
            "connectivity": {"epochs": 1, "points": 3},
            "cka": {"images": TRAIN_IMAGES},
        },
    }
    planned = Plan(specs.validate(content, "cell"), raw.fingerprint())
    predicted = estimate(planned, raw.facts())
    seconds = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch) / "store")
        if failures := Worker(store, raw, "best", Path(scratch) / "failed", Silent()).run(planned):
            raise SystemExit(str(failures))
        for step in planned[0].steps:
            meta = json.loads((store.folder(step.name, step.key) / "meta.json").read_text())
            seconds[step.name].append(meta["seconds"])
    return {
        "predicted": dict(zip(predicted.names, predicted.seconds[0].tolist(), strict=True)),
        "measured": {name: min(values) for name, values in seconds.items()},  # the first one imports
        "memory": [predicted.memory, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cells.md")
    options = parser.parse_args()
    if options.case:
        sys.stdout.write(json.dumps(cell(**CASES[options.case])) + "\n")
        return
    lines = []
    for name in CASES:
        call = [sys.executable, __file__, "--case", name]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(call, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout)
        memory = " / ".join(f"{count / 2**20:.0f}" for count in found["memory"])
        times = [f"{found['predicted'][k]:.2f} / {found['measured'][k]:.2f}" for k in found["measured"]]
        header = ["cell", "peak memory, MiB", *(f"{k}, s" for k in found["measured"])]
        lines.append(f"| {' | '.join([name, memory, *times])} |")
        print(lines[-1], flush=True)
    from importlib.metadata import version

    options.out.write_text(
        "# Predicted / measured cost of cells\n\n"
        f"`python benchmarks/cells.py`; Python {platform.python_version()}, torch {version('torch')}, one thread; "
        f"2 epochs on {TRAIN_IMAGES:,} images, curves of 1 epoch and 3 points; the faster of two models.\n\n"
        f"| {' | '.join(header)} |\n|{'---|' * len(header)}\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    main()

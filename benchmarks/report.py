"""The page of a grid of 14 x 15 cells and 5 seeds: its size, the seconds to write it, to draw it, to relabel it.

    python benchmarks/report.py

The results are made up (tests/report_material.py): 100 epochs, curves of 9 points between all pairs. Drawn means
that the maps and all sections stand; a slider is timed from its event to the frame that shows the new labels. The
table goes to benchmarks/results/report.md.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from browser import chromium, opened  # noqa: E402
from lossatlas import files, results  # noqa: E402
from report_material import full  # noqa: E402

WIDTHS = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128)
BATCHES = tuple(2**k for k in range(15))
REPEATS = 5
MOVE = """(step) => new Promise((done) => {
  const slider = document.querySelector('[data-threshold="train_loss"] input[type="range"]');
  const began = performance.now();
  slider.value = String(0.3 + 0.05 * step);
  slider.dispatchEvent(new Event("input"));
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began)));
})"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, page = Path(folder) / "results.nc", Path(folder) / "report.html"
        results.save(full(WIDTHS, BATCHES, n_seeds=5, epochs=100, points=9), source)
        command = [sys.executable, "-m", "lossatlas", "report", str(source), "--out", str(page)]
        wrote = [timed(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(REPEATS)]
        drew, moved = [], []
        with chromium() as browser:
            for _ in range(REPEATS):
                began = time.perf_counter()
                with opened(browser, page) as shown:
                    drew.append(time.perf_counter() - began)
                    moved += [shown.evaluate(MOVE, step) / 1000 for step in range(REPEATS)]
        rows = [
            ("size of results.nc, MB", f"{source.stat().st_size / 1e6:.1f}"),
            ("size of the page, MB (allowed: 6)", f"{page.stat().st_size / 1e6:.1f}"),
            ("lossatlas report, s", f"{statistics.median(wrote):.1f}"),
            ("drawn in the browser, s (allowed: 5)", f"{statistics.median(drew):.2f}"),
            ("a threshold moved, s", f"{statistics.median(moved):.3f}"),
        ]
    lines = ["# The report of a grid of 14 x 15 cells and 5 seeds", ""]
    lines += [
        f"`python benchmarks/report.py`; medians of {REPEATS}; Python {platform.python_version()}.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
    ]
    files.write_file(ROOT / "benchmarks" / "results" / "report.md", ("\n".join(lines) + "\n").encode())
    print("\n".join(lines))


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

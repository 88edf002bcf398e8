"""A plan of 100,000 cells of one seed: seconds and peak memory of planning it, reconciling it and its status.

    python benchmarks/plans.py [--finished 30000]

Every row is a process of its own, start included, measured by the kernel when it ends. The finished steps hold no
real results: records of the store, written without syncing. `prepare` is all that `lossatlas run` does before its
engine begins; it probes the models on one thread. The table goes to benchmarks/results/plans.md.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from lossatlas import files, specs
from lossatlas.sweep.plan import Plan
from lossatlas.sweep.run import open_folder, saved_plan
from lossatlas.sweep.store import Record

WIDTHS, RATES = 100, 1000
SECONDS, BYTES = 10.0, 1 << 30  # what each row may take

PREPARE = """
import sys
from pathlib import Path
from lossatlas import specs
from lossatlas.cli.running import prepare
prepared = prepare(specs.read(Path(sys.argv[1]), {}), Path(sys.argv[2]), None)
print(prepared.left.steps, "steps left")
"""
RECONCILE = """
import sys
from pathlib import Path
from lossatlas.sweep.remaining import longest_first, remaining
from lossatlas.sweep.run import open_folder, saved_plan
folder = Path(sys.argv[1])
saved = saved_plan(folder)
left = remaining(saved.plan, open_folder(folder, None).store, saved.seconds)
longest_first(left.cells, saved.plan, saved.seconds)
print(left.steps, "steps left")
"""


def spec_text() -> str:
    """100 widths times 1,000 learning rates."""
    return f"""
name = "large"
seeds = [0]
load = {{ width = {list(range(1, WIDTHS + 1))} }}
temperature = {{ lr = {[round(1e-4 * (k + 1), 4) for k in range(RATES)]} }}
[task]
data = {{ name = "digits" }}
model = {{ name = "mlp" }}
[train]
epochs = 10
[measures]
hessian = {{}}
"""


def finish_steps(folder: Path, count: int) -> None:
    """Put records of the first steps of every third cell into the store, as if they had been done."""
    files.os.fsync = lambda _handle: None  # type: ignore[attr-defined]  # for the tenfold speed
    saved, store = saved_plan(folder), open_folder(folder, None).store
    chosen = (step for cell in saved.plan.cells[::3] for step in saved.plan.steps(cell))
    for step in itertools.islice(chosen, count):
        meta = {"seconds": 0.5, "started": time.time() - 100, "stops": 0}
        store.commit(step.name, step.content, Record({"loss": 0.1}, "ok", ""), meta=meta)


def measured(arguments: list[str]) -> tuple[float, int, str]:
    """Seconds and peak bytes of a process, and its last line."""
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen([sys.executable, *arguments], stdout=output, stderr=output, env=environment)
        _, code, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(code)
        seconds = time.perf_counter() - start
        output.seek(0)
        text = output.read().decode()
    if child.returncode:
        raise SystemExit(text)
    return seconds, usage.ru_maxrss * 1024, text.strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finished", type=int, default=30_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "plans.md")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        spec, folder = Path(scratch) / "large.toml", Path(scratch) / "run"
        spec.write_text(spec_text())
        calls = {
            "lossatlas plan": ["-m", "lossatlas", "plan", str(spec)],
            "planning of lossatlas run": ["-c", PREPARE, str(spec), str(folder)],
            "reconciling": ["-c", RECONCILE, str(folder)],
            "lossatlas status": ["-m", "lossatlas", "status", str(folder)],
            "lossatlas status --json": ["-m", "lossatlas", "status", str(folder), "--json"],
        }
        for finished in (0, options.finished):
            if finished:
                finish_steps(folder, finished)
            for name, arguments in calls.items():
                seconds, peak, last = measured(arguments)
                rows.append((name, finished, seconds, peak))
                print(
                    f"{name}, {finished} steps finished: {seconds:.1f} s, {peak / 1e6:.0f} MB; {last}", flush=True
                )
    write(options.out, rows)
    if slow := [row for row in rows if row[2] > SECONDS or row[3] > BYTES]:
        raise SystemExit(f"over {SECONDS:g} s or {BYTES >> 30} GiB: {', '.join(row[0] for row in slow)}")


def write(path: Path, rows: list[tuple[str, int, float, int]]) -> None:
    """The table."""
    counts = Plan(specs.parse(spec_text(), "large"), "").counts()
    lines = [
        "# A plan of 100,000 cells of one seed",
        "",
        f"`python benchmarks/plans.py`; {sum(counts.values()):,} steps ({', '.join(counts)}); Python "
        f"{platform.python_version()}, torch {version('torch')}, local disk. Seconds and peak memory of whole "
        f"processes; allowed are {SECONDS:g} s and {BYTES >> 20:,} MiB each.",
        "",
        "| | finished steps in the store | seconds | peak memory, MiB |",
        "|---|---|---|---|",
        *(f"| {name} | {done:,} | {seconds:.1f} | {peak / 2**20:.0f} |" for name, done, seconds, peak in rows),
    ]
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

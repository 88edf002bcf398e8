"""A sweep by two worker processes next to the same by one process: how much faster, and what the driver costs.

    python benchmarks/engines.py [--workers 2] [--repeats 3] [--scale 4] [--spec FILE] [--quick]

The sweep is the preset `digits` with all its epochs times `--scale`, or a spec of one's own. Both engines run it
in turn, `repeats` times, each in a folder of its own, and medians are given. Every run is a process of its own
that notes when its workers are up, when steps end and what the rest takes:

- *work* is the time from the first worker that is up (inline: from the end of planning) to the last cell's end;
- *in steps* is the sum of what the steps took, as the store has it;
- *overhead* is the planning, the driver's CPU seconds while workers work, the seconds of workers until their last
  cell that are in no step (reading and writing the store, logs, waiting for the driver), and the collecting and
  writing of results; its share is of itself and the steps together. Start-up and figures are given beside it.

All results.nc must be the same bytes. `--quick` only shows that everything runs; its numbers mean nothing.
The table goes to benchmarks/results/engines.md. All takes half an hour of two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "engines.md"
TINY = Path(__file__).parent.parent / "tests" / "specs" / "tiny.toml"

Times = dict[str, float]


def one(engine: str, workers: int, spec_text: str, out: Path, started: float) -> Times:
    """Run the sweep in this process; what took how long, in seconds."""
    from lossatlas import specs
    from lossatlas.cli import engines, running
    from lossatlas.cli.progress import RunProgress

    marks: dict[str, float] = {"imported": time.time(), "figures": 0.0}
    ready: dict[int, float] = {}
    last_cell: dict[int, float] = {}
    enter, leave, hear, finished, draw = (
        RunProgress.__enter__,
        RunProgress.__exit__,
        RunProgress.hear,
        RunProgress.finished,
        running.draw,
    )

    def entered(self: RunProgress) -> RunProgress:
        marks["planned"], marks["cpu"] = time.time(), time.process_time()
        return enter(self)

    def left(self: RunProgress, *error: Any) -> None:
        marks["over"], marks["cpu"] = time.time(), time.process_time() - marks["cpu"]
        leave(self, *error)

    def heard(self: RunProgress, event: Mapping[str, Any]) -> None:
        if event["event"] == "ready":
            ready[event["worker"]] = time.time()
        elif event["event"] == "cell":
            last_cell[event["worker"]] = time.time()
        hear(self, event)

    def done(self: RunProgress, *step: Any) -> None:
        last_cell[0] = time.time()
        finished(self, *step)

    def drawn(*arguments: Any) -> Any:
        begun = time.time()
        found = draw(*arguments)
        marks["figures"] = time.time() - begun
        return found

    RunProgress.__enter__, RunProgress.__exit__ = entered, left  # type: ignore[method-assign,assignment]
    RunProgress.hear, RunProgress.finished = heard, done  # type: ignore[method-assign]
    running.draw = drawn  # type: ignore[assignment]
    spec = specs.parse(spec_text, "the benchmark's spec")
    failures = engines.run(spec, out, None, engines.Engine(name=engine, workers=workers, device="cpu"))
    end = time.time()
    if failures:
        raise RuntimeError(next(iter(failures.values())))
    metas = [json.loads(path.read_text()) for path in (out / "store").glob("*/??/*/meta.json")]
    in_steps = sum(meta["seconds"] for meta in metas)
    ready = ready or {0: marks["planned"]}
    outside = sum(last_cell[k] - ready[k] for k in last_cell) - in_steps
    planning, collecting = marks["planned"] - marks["imported"], end - marks["over"] - marks["figures"]
    driver = marks["cpu"] if engine != "inline" else 0.0
    overhead = planning + driver + outside + collecting
    return {
        "work": max(last_cell.values()) - min(ready.values()),
        "in steps": in_steps,
        "importing": marks["imported"] - started,
        "planning": planning,
        "workers' start-up": max(ready.values()) - marks["planned"],
        "driver": driver,
        "workers outside steps": outside,
        "collecting": collecting,
        "figures": marks["figures"],
        "overhead, %": 100 * overhead / (overhead + in_steps),
        "whole": end - started,
    }


def measured(engine: str, workers: int, spec: Path, out: Path) -> Times:
    """`one` in a process of its own."""
    arguments = ["--one", engine, "--workers", str(workers), "--spec", str(spec), "--out", str(out)]
    command = [sys.executable, str(Path(__file__).resolve()), *arguments, "--started", str(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    times: Times = json.loads(done.stdout.splitlines()[-1])
    print(engine, {name: round(value, 2) for name, value in times.items()}, flush=True)
    return times


def spec_text(options: argparse.Namespace) -> str:
    """The spec of the sweep: the preset with more epochs, so that it takes minutes."""
    from lossatlas import presets

    if options.quick:
        return TINY.read_text()
    if options.spec:
        return Path(options.spec).read_text()
    text = presets.text("digits")
    for name, epochs in (("epochs    = ", 50), ("epochs = ", 30)):
        if text.count(f"{name}{epochs}") != 1:
            raise RuntimeError("the preset digits is another")
        text = text.replace(f"{name}{epochs}", f"{name}{epochs * options.scale}")
    return text


def table(options: argparse.Namespace, runs: Mapping[str, list[Times]], same: bool) -> str:
    """What is kept: medians with their ranges, and the speed-up run by run."""
    inline, processes = runs["inline"], runs["processes"]
    ratios = [a["work"] / b["work"] for a, b in zip(inline, processes, strict=True)]
    arguments = f"--workers {options.workers} --repeats {options.repeats}" + (
        f" --spec {Path(options.spec).name}" if options.spec else f" --scale {options.scale}"
    )
    import torch

    lines = [
        f"# {options.workers} worker processes next to one process",
        "",
        f"`python benchmarks/engines.py {arguments}`{' (quick: means nothing)' if options.quick else ''}; Python "
        f"{platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores; seconds, medians of "
        f"{options.repeats} interleaved runs with their ranges.",
        "",
        f"Training and measuring: **{statistics.median(ratios):.2f} times** as fast "
        f"({min(ratios):.2f} to {max(ratios):.2f}), counted from the first worker that is up. "
        f"Results: {'the same bytes in all runs' if same else '**not the same bytes**'}.",
        "",
        "| | inline | processes |",
        "|---|---|---|",
    ]
    for name in inline[0]:
        cells = []
        for each in (inline, processes):
            values = sorted(times[name] for times in each)
            cells.append(f"{statistics.median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--spec")
    parser.add_argument("--quick", action="store_true")
    for name in ("--one", "--out", "--started"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        text = Path(options.spec).read_text()
        times = one(options.one, options.workers, text, Path(options.out), float(options.started))
        print(json.dumps(times))
        return
    if options.quick:
        options.repeats = 1
    runs: dict[str, list[Times]] = {"inline": [], "processes": []}
    with tempfile.TemporaryDirectory() as scratch:
        spec = Path(scratch) / "spec.toml"
        spec.write_text(spec_text(options))
        contents = set()
        for k in range(options.repeats):
            for engine, times in runs.items():
                out = Path(scratch) / f"{engine}-{k}"
                times.append(measured(engine, options.workers, spec, out))
                contents.add((out / "results.nc").read_bytes())
    text = table(options, runs, len(contents) == 1)
    print(text)
    if not options.quick:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()

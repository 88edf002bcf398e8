"""Every preset at a small scale, from data to figures: `make presets-small`.

    python benchmarks/presets_small.py [--out runs/small] [--workers 2] [--only NAME ...]

Each preset is run by `lossatlas run NAME --scale S` in worker processes, all with one store, so that presets that
share models train them once. CIFAR-10 and Multi30k are read from $LOSSATLAS_DATA where they are there; other data,
and these where they are not, are made: noisy patterns in the layout in which the real ones are published
(tests/published_layouts.py). Run again, it continues, and does nothing for presets that are finished.

The table goes to standard output, and to benchmarks/results/presets-small.md when all presets were run. The exit
code is 1 if any of them failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "presets-small.md"
sys.path.insert(0, str(ROOT / "tests"))

import published_layouts  # noqa: E402
from lossatlas import presets, results, specs  # noqa: E402
from lossatlas.studies import reading  # noqa: E402

NAMES = [*presets.names(), *presets.studies()]
TRANSLATIONS = ("yang2021/iwslt", "yang2021/iwslt-lr", "yang2021/multi30k")

# The largest scales that take at most two minutes on two cores. Presets that may share models have the same one.
GRID, STUDY = 0.05, 0.1
SCALES = {
    "digits": 0.6,
    "cifar10-small": 0.5,
    "yang2021/connectivity-ablation": 0.02,  # eight curves a pair
    "yang2021/fig7": 0.05,
    "yang2021/iwslt": 0.01,
    "yang2021/iwslt-lr": 0.01,
    "yang2021/multi30k": 0.02,
    "xu2024/fig17": 0.07,  # two ResNet32, in one process
}
# Of translation nearly all the time goes to measures, and one epoch teaches nothing.
TEXT = (
    "task.data.n_test=300",
    "measures.hessian.max_matvecs=32",
    "measures.connectivity.points=5",
    "train.epochs=150",
)
MADE = {"train": 8000, "test": 1500}  # samples of made data, enough for every scale
PHOTOGRAPHS = ("cub200", "imagenet")
FEW = {"train": 400, "test": 200}  # of photographs, which take 150 kB each


@dataclass(frozen=True)
class Row:
    """What a run of a preset gave."""

    preset: str
    command: str
    data: str
    code: int  # the exit code
    seconds: float  # of the run that finished it
    cpu: float  # the same, of processors
    continued: bool
    outcome: str
    figures: int

    @property
    def is_whole(self) -> bool:
        return self.code == 0 and self.figures > 0

    def line(self) -> str:
        seconds = f"{self.seconds:.0f}{' (continued)' if self.continued else ''}"
        outcome = self.outcome if self.is_whole else f"**exit code {self.code}**; {self.outcome}"
        cells = [
            self.preset,
            f"{scale(self.preset):g}",
            self.data,
            seconds,
            f"{self.cpu:.0f}",
            outcome,
            self.figures,
        ]
        return f"| {' | '.join(map(str, cells))} |"


def scale(preset: str) -> float:
    return SCALES.get(preset, STUDY if preset in presets.studies() else GRID)


def data_of(preset: str) -> dict[str, str]:
    """The data sets that a preset reads at its scale, by the keys of their paths in its spec."""
    if preset in presets.studies():
        small = reading.scaled(reading.read(preset), scale(preset))
        return {f"data.{section}.path": data.name for section, data in small.data.items()}
    return {"task.data.path": specs.parse(presets.text(preset), preset).task.data.name}


def data_folder(name: str, out: Path) -> Path | None:
    """Where data are, None for those inside the package; makes them if need be."""
    real = Path(os.environ.get("LOSSATLAS_DATA", out / "none")) / name
    made = out / "data" / name
    if name not in published_layouts.PUBLISHED:
        return None
    if real.is_dir():
        return real.resolve()
    if not made.is_dir():
        begun = out / "data" / f".{name}-{os.getpid()}"  # an interruption leaves no half folder
        published_layouts.write(name, begun, **(FEW if name in PHOTOGRAPHS else MADE))
        begun.rename(made)
    return made.resolve()


def command(preset: str, data: Mapping[str, Path | None], out: Path, workers: int) -> list[str]:
    words = ["lossatlas", "run", preset, "--scale", f"{scale(preset):g}", "--device", "cpu"]
    if preset not in presets.studies():  # these are worked on by one process
        words += ["--engine", "processes", "--workers", str(workers)]
    words += ["--store", str(out / "store"), "--out", str(out / preset)]
    settings = [f"{key}={path}" for key, path in data.items() if path]
    settings += TEXT if preset in TRANSLATIONS else ()
    return words + [word for setting in settings for word in ("--set", setting)]


def one(preset: str, out: Path, workers: int) -> Row:
    """Run a preset, unless its row says that the same command has finished."""
    names = data_of(preset)
    data = {key: data_folder(name, out) for key, name in names.items()}
    words = command(preset, data, out, workers)
    folder, kept = out / preset, out / "rows" / f"{preset}.json"
    if kept.is_file():
        row = Row(**json.loads(kept.read_text()))
        if row.is_whole and row.command == shlex.join(words):
            return row
    was_begun, start, cpu = folder.exists(), time.monotonic(), cpu_seconds()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    code = subprocess.run([sys.executable, "-m", *words], env=environment, check=False).returncode
    seconds, cpu = time.monotonic() - start, cpu_seconds() - cpu
    told = [_named(names[key], path, out) for key, path in data.items()]
    figures = len(list(folder.glob("**/*.png")))
    row = Row(preset, shlex.join(words), ", ".join(told), code, seconds, cpu, was_begun, outcome(folder), figures)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(asdict(row)))
    return row


def cpu_seconds() -> float:
    """What the processes that have ended took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _named(name: str, path: Path | None, out: Path) -> str:
    return f"{name} (made)" if path and path.is_relative_to(out.resolve()) else name


def outcome(folder: Path) -> str:
    """What the grids of a preset hold: one, one a variant, or none of a study."""
    told = Counter(map(grid, sorted(folder.glob("**/results.nc"))))
    return "; ".join(f"{f'{count} times ' * (count > 1)}{text}" for text, count in told.items()) or "a study"


def grid(path: Path) -> str:
    """The cells of results, their models and pairs by their status."""
    tree = results.load(path)
    told = [f"{tree['phases']['phase'].size} cells"]
    for group in ("models", "pairs"):
        statuses = tree[group]["status"].values.ravel().tolist() if group in tree.children else []
        asked = [status for status in statuses if group == "models" or status != "missing"]
        told += [f"{count} {group} {status}" for status, count in Counter(asked).most_common()]
    return ", ".join(told)


def table(rows: list[Row], workers: int) -> str:
    """The rows as Markdown."""
    failed = sum(not row.is_whole for row in rows)
    seconds, cpu = sum(row.seconds for row in rows), sum(row.cpu for row in rows)
    lines = [
        "# Every preset at a small scale",
        "",
        f"`make presets-small`: `lossatlas run PRESET --scale SCALE --engine processes --workers {workers}`, one "
        f"store for all (studies by one process); Python {platform.python_version()}, torch {version('torch')}, "
        f"{os.cpu_count()} cores. {len(rows)} presets, {failed} failed; {seconds / 60:.1f} min together, and "
        f"{cpu / 60:.1f} min of CPU. Data are real unless made, which are patterns in the published layout.",
        "",
        "| preset | scale | data | seconds | CPU s | outcome | figures |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(row.line() for row in rows)]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/small"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME")
    options = parser.parse_args()
    rows = []
    for preset in options.only or NAMES:
        rows.append(one(preset, options.out, options.workers))
        print(rows[-1].line(), flush=True)
    text = table(rows, options.workers)
    print(text, end="")
    if not options.only:
        RESULTS.write_text(text)
    return int(not all(row.is_whole for row in rows))


if __name__ == "__main__":
    sys.exit(main())

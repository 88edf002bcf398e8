"""A part of [Yang2021]'s Figure 3 trained here, compared cell by cell with the published results.

    python benchmarks/figure3.py --archive results.tar.gz --cifar10 FOLDER --epochs 20 --per-gpu 4

FOLDER holds CIFAR-10's parquet files; the archive is that of nsfzyzz/loss_landscape_taxonomy. The preset
`yang2021/fig3` is run at widths 2, 8, 32, 128 and batch sizes 32, 128, 512 with two seeds, by its published
protocol, in worker processes; run again, it continues. With fewer epochs than the published 100 (and curves of
fewer than 50) an equal match is not expected. The table goes to benchmarks/results/figure3.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from scipy.stats import spearmanr

from lossatlas import published, results, summary

QUANTITIES = {
    "test_accuracy": "test accuracy, %",
    "ln_hessian_trace": "ln trace",
    "mode_connectivity": "mode connectivity, %",
    "cka": "CKA",
}


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--widths", type=int, nargs="+", default=[2, 8, 32, 128])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--curve-epochs", type=int, default=5)
    parser.add_argument("--n-train", type=int, help="only the first training images, for a trial")
    parser.add_argument("--per-gpu", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("runs/figure3"))
    parser.add_argument("--table", type=Path, default=Path(__file__).parent / "results" / "figure3.md")
    return parser.parse_args()


def command(options: argparse.Namespace) -> list[str]:
    """The command that trains and measures."""
    values = {
        "load.width": options.widths,
        "temperature.batch_size": options.batch_sizes,
        "seeds": list(range(options.seeds)),
        "task.data.path": str(options.cifar10.resolve()),
        "train.epochs": options.epochs,
        "measures.connectivity.epochs": options.curve_epochs,
    }
    if options.n_train:
        values["task.data.n_train"] = options.n_train
    sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    engine = ["--engine", "processes", "--per-gpu", str(options.per_gpu), "--device", options.device]
    return [sys.executable, "-m", "lossatlas", "run", "yang2021/fig3", "--out", str(options.out), *engine, *sets]


def rows(ours: xr.Dataset, theirs: xr.Dataset, name: str) -> tuple[list[str], str]:
    """The table of a quantity over the common cells, and how the two agree, in a sentence."""
    error = ours[f"{name}_se"].values if f"{name}_se" in ours else np.full(ours[name].shape, np.nan)
    lines = []
    for i, width in enumerate(ours["width"].values):
        texts = []
        for j, batch_size in enumerate(ours["batch_size"].values):
            value, other = float(ours[name][i, j]), float(theirs[name].sel(width=width, batch_size=batch_size))
            se = f" ± {error[i, j]:.2g}" if np.isfinite(error[i, j]) else ""
            texts.append(f"{_number(value)}{se} / {_number(other)}")
        lines.append(f"| {width} | {' | '.join(texts)} |")
    a, b = ours[name].values.ravel(), theirs[name].values.ravel()
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3:
        return lines, f"{both.sum()} cells in common."
    rank = spearmanr(a[both], b[both]).statistic
    gap = np.median((a - b)[both])
    return lines, f"Spearman's rank correlation over {both.sum()} cells {rank:.2f}; median difference {gap:+.3g}."


def _number(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "none"


def table(options: argparse.Namespace) -> str:
    """The comparison as Markdown: ours / published."""
    ours = summary.cells(results.load(options.out / "results.nc")).transpose("width", "batch_size", ...)
    theirs = summary.cells(published.read(options.archive)).transpose("width", "batch_size", ...)
    theirs = theirs.reindex_like(ours[["width", "batch_size"]])
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    fewer = f", {options.n_train} training images (50,000)" if options.n_train else ""
    lines = [
        "# A part of [Yang2021]'s Figure 3, ours / published",
        "",
        f"`python benchmarks/figure3.py --epochs {options.epochs} --curve-epochs {options.curve_epochs} ...`; "
        f"{options.seeds} seeds (published 5), {options.epochs} epochs (100), curves of {options.curve_epochs} "
        f"(50){fewer}; torch {torch.__version__}, Python {platform.python_version()}, {where}. ± is the standard "
        "error over our seeds.",
    ]
    for name, title in QUANTITIES.items():
        body, verdict = rows(ours, theirs, name)
        heads = " | ".join(f"batch {size}" for size in ours["batch_size"].values)
        lines += ["", f"## {title}", "", f"| width | {heads} |", "|---" * (1 + len(options.batch_sizes)) + "|"]
        lines += [*body, "", verdict]
    return "\n".join(lines) + "\n"


def main() -> None:
    options = arguments()
    subprocess.run(command(options), check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    options.table.write_text(table(options))
    print(options.table)


if __name__ == "__main__":
    main()

"""Curves and surfaces next to bare forward passes, and to loss-landscapes, Landscaper and loss-landscape-3d.

    python -m venv peers && peers/bin/pip install -r benchmarks/peers-slices.txt -e .
    peers/bin/python benchmarks/slices.py [--quick] [--threads 1] [--repeats 3]

A curve of 41 points and a surface of 21 x 21 on 1,000 CIFAR-10 images, for an MLP 3072-128-10 and a width-8
ResNet18, both trained briefly; images from LOSSATLAS_DATA, random ones where that is not set. The floor is a pass
of `model(x)` and the loss under no_grad, at the chunk size that a probe finds fastest; under "recalibrate" with
the pass that re-estimates BatchNorm before it. The floor is timed within every run, after every few points, and
its time taken off, so that a noisy machine disturbs both alike: read ratios, where 1 is one floor a point. With
one thread the seconds are of the CPU, which do not count waiting for a busy machine. Everything that a user calls
is part of a run: building the objective, the directions, the points. Every tool gets a copy of the model.
`--quick` only shows that everything runs; its numbers mean nothing. All takes a quarter of an hour of one core.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import loss_landscape_3d as ll3d
import loss_landscapes as ll
import numpy as np
import torch
import torch.nn.functional as F
from landscaper import LossLandscape
from landscaper.utils import generate_random_orthogonal_directions
from loss_landscapes.metrics import Loss
from loss_landscapes.metrics.metric import Metric
from spectrum import images  # beside this file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lossatlas.landscape import directions, slices
from lossatlas.landscape.criterion import supervised
from lossatlas.landscape.objective import Objective
from lossatlas.tasks import models

warnings.simplefilter("ignore")
IMAGES, TRAINING_IMAGES = 1000, 5000
CHUNKS = (50, 64, 100, 125, 200, 250, 500, 1000)
NOTHING = 1.05
PEERS = ("loss-landscapes", "landscaper", "loss-landscape-3d")

now = time.process_time  # perf_counter with more than one thread

Tick = Callable[[], None]  # called once a point
Grid = tuple[int, int]  # (T, 1): a curve


@dataclass
class Found:
    """What a tool returns."""

    losses: np.ndarray
    center: float  # the value that stands where a user looks for the model itself
    note: str = ""


Tool = Callable[[nn.Module, Grid, Tick], Found]


# ---- the floor --------------------------------------------------------------------------------------------------


@dataclass
class Problem:
    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    chunk: int = 0  # the floor's best
    gain: float = 1.0  # the whole batch in units of it

    def pieces(self, chunk: int) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.x.split(chunk), self.y.split(chunk), strict=True))

    def forward(self, model: nn.Module, chunk: int) -> float:
        """One bare pass: the mean loss."""
        total = torch.zeros(())
        with torch.no_grad():
            for x, y in self.pieces(chunk):
                total = total + F.cross_entropy(model(x), y, reduction="sum")
        return total.item() / len(self.x)

    def recalibrated(self, model: nn.Module, chunk: int) -> float:
        """One bare pass after another that re-estimates the statistics of BatchNorm, batch by batch."""
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        model.train()
        with torch.no_grad():
            for i, (x, _) in enumerate(self.pieces(chunk)):
                for norm in norms:
                    norm.momentum = 1 / (i + 1)  # batches of one size
                model(x)
        return self.forward(model.eval(), chunk)

    def probe(self) -> str:
        """Find the fastest chunk size; what each took."""
        best = {chunk: math.inf for chunk in CHUNKS if len(self.x) % chunk == 0}
        for _ in range(5):
            for chunk in best:
                start = now()
                self.forward(self.model, chunk)
                best[chunk] = min(best[chunk], now() - start)
        self.chunk = min(best, key=lambda chunk: best[chunk])
        self.gain = best[len(self.x)] / best[self.chunk]
        return ", ".join(f"{chunk}: {1000 * seconds:.1f} ms" for chunk, seconds in best.items())


class Clock:
    """The time of one run, and that of the floor's passes within it."""

    def __init__(self, floor: Callable[[], object], every: int) -> None:
        self._floor, self._every = floor, every
        self._points = 0
        self.floors: list[float] = []

    def tick(self) -> None:
        self._points += 1
        if self._points % self._every == 0:
            start = now()
            self._floor()
            self.floors.append(now() - start)


# ---- the tools --------------------------------------------------------------------------------------------------


def middle(losses: np.ndarray) -> float:
    return float(losses[tuple(n // 2 for n in losses.shape)])


def ours(batches: list[Any], policy: Any, model: nn.Module, grid: Grid, tick: Tick) -> Found:
    objective = Objective(model, batches, supervised(F.cross_entropy), batchnorm=policy)

    def progress(_finished: int, _total: int) -> None:
        tick()

    first = directions.gaussian(objective, seed=0)
    if grid[1] == 1:
        curve = slices.line(objective, first, points=grid[0], progress=progress)
        losses = curve.values["loss"][0].numpy()
        return Found(losses, middle(losses), curve.method)
    second = directions.gaussian(objective, seed=1)
    plane = slices.surface(objective, first, second, grid=grid, progress=progress)
    losses = plane.values["loss"].numpy()
    return Found(losses, middle(losses), f"{plane.method}; cosine of the directions {plane.cosine:.4f}")


def loss_landscapes(chunk: int, problem: Problem, model: nn.Module, grid: Grid, tick: Tick) -> Found:
    loss = Loss(nn.CrossEntropyLoss(), problem.x, problem.y)

    class Whole(Metric):
        def __call__(self, wrapper: Any) -> float:
            tick()
            return float(loss(wrapper))

    class Pieces(Metric):  # its README: a Metric of one's own
        def __call__(self, wrapper: Any) -> float:
            tick()
            total = sum(F.cross_entropy(wrapper.forward(x), y, reduction="sum") for x, y in problem.pieces(chunk))
            return float(total) / len(problem.x)

    metric = Whole() if chunk == len(problem.x) else Pieces()
    if grid[1] == 1:
        losses = ll.random_line(model, metric, distance=1, steps=grid[0])
        return Found(losses, float(losses[0]), "one-sided; the model itself is no point of it")
    losses = ll.random_plane(model, metric, distance=1, steps=grid[0])
    return Found(losses, middle(losses), "the model itself is no point of it")


def landscaper(chunk: int, problem: Problem, model: nn.Module, grid: Grid, tick: Tick) -> Found:
    computed: list[float] = []

    def mean_loss(model: nn.Module, data: Iterable[tuple[Tensor, Tensor]]) -> float:
        tick()
        losses = [F.cross_entropy(model.forward(x), y) for x, y in data]
        computed.append(float(sum(losses)) / len(losses))
        return computed[-1]

    dims = 1 if grid[1] == 1 else 2
    dirs = generate_random_orthogonal_directions(model, dims)
    data = problem.pieces(chunk)
    found = LossLandscape.compute(
        model, data, dirs, mean_loss, steps=grid[0], distance=1.0, dim=dims, device="cpu"
    )
    altered = int((found.loss.flatten() != np.array(computed)).sum())
    note = f"{altered} of the values not as computed"
    if dims == 2:
        note += f"; cosine of the directions {cosine(*dirs):.4f}"
    return Found(found.loss, middle(found.loss), note)


def loss_landscape_3d(chunk: int, problem: Problem, model: nn.Module, grid: Grid, tick: Tick) -> Found:
    class Loader(DataLoader):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            tick()
            return super().__iter__()

    loader = Loader(TensorDataset(problem.x, problem.y), batch_size=chunk)
    dir_x, dir_y = ll3d.generate_random_directions(model, normalize=True)
    calculator = ll3d.LossLandscapeCalculator(model, loader, nn.CrossEntropyLoss())
    center = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    xs = np.linspace(-1, 1, grid[0])
    ys = np.linspace(-1, 1, grid[1]) if grid[1] > 1 else [0.0]
    losses = calculator.calculate(xs, ys, dir_x, dir_y, center_state=center)
    moved = [n for n, _ in model.named_buffers() if dir_x[n].is_floating_point() and bool(dir_x[n].any())]
    return Found(losses, middle(losses), "moves BatchNorm's running statistics too" if moved else "")


def cosine(first: list[Tensor], second: list[Tensor]) -> float:
    a, b = (torch.cat([t.flatten() for t in d]).double() for d in (first, second))
    return float(a @ b / (a.norm() * b.norm()))


def tools_of(problem: Problem) -> dict[str, Tool]:
    """The peers with the whole batch, and with the best chunk where that gains anything to speak of."""
    whole = len(problem.x)
    made: dict[str, Tool] = {"lossatlas | default": partial(ours, problem.pieces(whole), "eval")}
    for name, tool in zip(PEERS, (loss_landscapes, landscaper, loss_landscape_3d), strict=True):
        for chunk in (whole, problem.chunk) if problem.gain > NOTHING else (whole,):
            made[f"{name} | {'whole' if chunk == whole else chunk}"] = partial(tool, chunk, problem)
    return made


# ---- measuring --------------------------------------------------------------------------------------------------


@dataclass
class Run:
    seconds: float
    ratio: float
    found: Found
    left: str


def changes(before: nn.Module, after: nn.Module) -> str:
    """What of a model is not as it was."""
    old, new = before.state_dict(), after.state_dict()
    changed = []
    if any(not torch.equal(old[name], new[name]) for name in old):
        gap = max(((new[n] - old[n]).double().norm() / old[n].double().norm()).item() for n in old if old[n].any())
        changed.append(f"tensors moved by up to {gap:.1e}")
    if any(
        a.requires_grad != b.requires_grad for a, b in zip(before.parameters(), after.parameters(), strict=True)
    ):
        changed.append("requires_grad off")
    if [m.training for m in before.modules()] != [m.training for m in after.modules()]:
        changed.append("mode")
    return ", ".join(changed) or "yes"


def timed(problem: Problem, tool: Tool, grid: Grid, floor: Callable[[nn.Module, int], float], every: int) -> Run:
    model, bare = copy.deepcopy(problem.model), copy.deepcopy(problem.model)
    clock = Clock(lambda: floor(bare, problem.chunk), min(every, grid[0]))
    floor(bare, problem.chunk)  # the first pass of all is slower
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - what Landscaper draws from
    start = now()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        found = tool(model, grid, clock.tick)
    seconds = now() - start - sum(clock.floors)
    ratio = seconds / (grid[0] * grid[1]) / statistics.mean(clock.floors)
    return Run(seconds, ratio, found, changes(problem.model, model))


def rows(
    problem: Problem, tools: dict[str, Tool], grid: Grid, repeats: dict[str, int], floor: str, every: int
) -> dict[str, tuple[float, str]]:
    """Of each tool the median ratio and its line of the table; the tools run in turn, `floor` being a method."""
    double = Problem("", copy.deepcopy(problem.model).double(), problem.x.double(), problem.y)
    truth = getattr(double, floor)(double.model, problem.chunk)
    runs: dict[str, list[Run]] = {name: [] for name in tools}
    for turn in range(max(repeats.values())):
        for name, tool in tools.items():
            if turn < repeats[name]:
                runs[name].append(timed(problem, tool, grid, getattr(problem, floor), every))
                print(f"  {grid} {floor} {name}: {runs[name][-1].ratio:.3f}", flush=True)
    what = f"curve, {grid[0]}" if grid[1] == 1 else f"surface, {grid[0]} x {grid[1]}"
    made = {}
    for name, done in runs.items():
        ratios, found = [run.ratio for run in done], done[-1].found
        made[name] = (
            statistics.median(ratios),
            f"| {what} | {name} | {statistics.median(run.seconds for run in done):.2f} | "
            f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} | {found.center:.6f} | "
            f"{found.center / truth - 1:+.0e} | {int((~np.isfinite(found.losses)).sum())} | {done[-1].left} | "
            f"{found.note} |",
        )
        print(made[name][1], flush=True)
    return made


HEAD = [
    "| | tool | chunk | seconds | ratio | its range | loss at the centre | relative error | not finite "
    "| model left as it was | |",
    "|" + "---|" * 11,
]


def mlp(problem: Problem, repeats: int, side: int, points: int) -> list[str]:
    tools = tools_of(problem)
    often = dict.fromkeys(tools, repeats)
    curves = rows(problem, tools, (points, 1), often, "forward", 1)
    surfaces = rows(problem, tools, (side, side), often, "forward", 4)
    return [*HEAD, *(line for made in (curves, surfaces) for _, line in made.values())]


def convolutional(problem: Problem, side: int, points: int) -> list[str]:
    """Fewer repeats, and of the peers only the fastest on the whole surface: a pass takes half a second."""
    tools = tools_of(problem)
    repeats = {name: 2 if name.startswith("lossatlas") else 1 for name in tools}
    curves = rows(problem, tools, (points, 1), repeats, "forward", 5)
    peers = [name for name in tools if not name.startswith("lossatlas")]
    fastest = min(peers, key=lambda name: curves[name][0])
    kept = {name: tools[name] for name in ("lossatlas | default", fastest)}
    surfaces = rows(problem, kept, (side, side), dict.fromkeys(kept, 1), "forward", 20)
    name = f"lossatlas | {problem.chunk}"
    again = {name: partial(ours, problem.pieces(problem.chunk), "recalibrate")}
    recalibrated = [
        rows(problem, again, (points, 1), {name: 2}, "recalibrated", 5),
        rows(problem, again, (side // 2 + 1, side // 2 + 1), {name: 1}, "recalibrated", 10),
    ]
    return [
        "BatchNorm with its running statistics:",
        "",
        *HEAD,
        *(line for made in (curves, surfaces) for _, line in made.values()),
        "",
        "BatchNorm re-estimated at every point, which no peer offers; the floor is two passes:",
        "",
        *HEAD,
        *(line for made in recalibrated for _, line in made.values()),
    ]


def trained(name: str, options: dict[str, Any], lr: float, count: int, training: int) -> tuple[Problem, str]:
    x, y, source = images(training)
    model = models.build(name, options, input_shape=(3, 32, 32), classes=10, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for start in range(0, len(x), 50):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x[start : start + 50]), y[start : start + 50]).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    size = sum(p.numel() for p in model.parameters())
    label = f"{name}, {size:,} parameters, {count:,} images"
    return Problem(label, model.eval(), x[:count].clone(), y[:count].clone()), source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="of the MLP")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "slices-cpu.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.threads > 1:
        globals()["now"] = time.perf_counter
    begin = time.perf_counter()
    count, training, side, points = (100, 100, 5, 5) if options.quick else (IMAGES, TRAINING_IMAGES, 21, 41)
    repeats = 1 if options.quick else options.repeats
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", *PEERS))
    lines = []
    for name, build, lr in (("mlp", {"width": 128}, 0.02), ("resnet18", {"width": 8}, 0.05)):
        problem, source = trained(name, build, lr, count, training)
        probed = problem.probe()
        print(f"{problem.name}: {probed}", flush=True)
        lines += [f"## {problem.name}", "", f"Floor by chunk: {probed}; the best is {problem.chunk}.", ""]
        lines += mlp(problem, repeats, side, points) if name == "mlp" else convolutional(problem, side, points)
        lines.append("")
    head = [
        "# Curves and surfaces",
        "",
        f"`python benchmarks/slices.py --threads {options.threads} --repeats {options.repeats}`; {source}; "
        f"{versions}. Medians; the ratio is to one floor a point.",
        "",
    ]
    text = "\n".join([*head, *lines, f"All of it took {(time.perf_counter() - begin) / 60:.0f} minutes."]) + "\n"
    if options.quick:
        print(text)
    else:
        options.out.write_text(text)


if __name__ == "__main__":
    main()

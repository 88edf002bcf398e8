"""Training and measuring a width-8 ResNet18 next to the floor: bare loops over the same tensors, in one run.

    python benchmarks/training.py [--device cuda] [--repeats 5] [--width 8] [--batch 128]

Random images of CIFAR-10's shape: the time does not depend on what they show. Every row and its floor are timed in
turn, `repeats` times, and medians are given, so that a noisy machine disturbs both alike. The table goes to
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from lossatlas.landscape import curve_fitting, paths, similarity
from lossatlas.landscape.lanczos import eigenpairs
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.operators import hessian
from lossatlas.landscape.parameters import flat_parameters
from lossatlas.landscape.trace import trace
from lossatlas.specs import Train
from lossatlas.tasks import losses, models
from lossatlas.tasks.data import RawData
from lossatlas.tasks.samples import Samples
from lossatlas.training import train

TRAIN_IMAGES, TEST_IMAGES, HESSIAN_IMAGES, POINTS = 1024, 256, 200, 5


class Bench:
    """The tensors and models that all rows share."""

    def __init__(self, width: int, batch: int, device: torch.device) -> None:
        generator = np.random.default_rng(0)
        images = generator.integers(0, 256, (TRAIN_IMAGES + TEST_IMAGES, 3, 32, 32), dtype=np.uint8)
        labels = generator.integers(0, 10, TRAIN_IMAGES + TEST_IMAGES)
        n = TRAIN_IMAGES
        raw = RawData(images[:n], labels[:n], images[n:], labels[n:], 10, 255.0, (0.5,) * 3, (0.25,) * 3)
        self.train = Samples(raw.train_inputs, raw.train_targets, raw, device)
        self.test = Samples(raw.test_inputs, raw.test_targets, raw, device)
        self.batch, self.device, self.width = batch, device, width
        self.criterion = losses.build("cross_entropy")
        self.x, self.y = self.train.head(TRAIN_IMAGES)
        self.models = [self.fresh(seed) for seed in (0, 1)]
        for seed, model in enumerate(self.models):
            train(model, self.train, self.criterion, Train(epochs=2, batch_size=batch), seed=seed)
            model.eval()
        self.thetas = [flat_parameters(model) for model in self.models]

    def fresh(self, seed: int) -> torch.nn.Module:
        model = models.build("resnet18", {"width": self.width}, input_shape=(3, 32, 32), classes=10, seed=seed)
        return model.to(self.device)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    # ---- floors ----------------------------------------------------------------------------------------

    def forward_backward(self, images: int, chunk: int, *, training: bool) -> None:
        model = self.models[0].train(training)
        for start in range(0, images, chunk):
            stop = min(start + chunk, images)
            F.cross_entropy(model(self.x[start:stop]), self.y[start:stop]).backward()
        model.eval()

    def forward(self, passes: float, chunk: int = 128) -> None:
        images = round(passes * TRAIN_IMAGES)
        with torch.no_grad():
            for start in range(0, images, chunk):
                at = start % TRAIN_IMAGES
                self.models[0](self.x[at : min(at + chunk, at + images - start)])

    # ---- rows ------------------------------------------------------------------------------------------

    def training(self, **options: object) -> None:
        recipe = Train.model_validate({"epochs": 1, "batch_size": self.batch, **options})
        train(self.fresh(0), self.train, self.criterion, recipe, seed=0)

    def evaluation(self) -> None:
        for samples in (self.train, self.test):
            objective = Objective(self.models[0], samples.batches(1024), self.criterion)
            objective.samples(objective.center)

    def objective(self) -> Objective:
        return Objective(self.models[0], [self.train.head(HESSIAN_IMAGES)], self.criterion)

    def eigenvalues(self) -> int:
        return eigenpairs(hessian(self.objective()), 1, which="both", seed=0).matvecs

    def exact_trace(self) -> None:
        assert trace(self.objective(), seed=0).method == "exact-ggn"

    def curve(self) -> None:
        order = torch.Generator().manual_seed(0)

        def batches(_epoch: int) -> object:
            return self.train.shuffled(self.batch, order, drop_last=False)

        curve_fitting.fit(
            self.models[0], (self.thetas[0], self.thetas[1]), batches, self.criterion, seed=0, epochs=1
        )

    def connectivity(self) -> None:
        objective = Objective(
            self.models[0],
            lambda: (*self.train.batches(1024)(), *self.test.batches(1024)()),
            self.criterion,
            batchnorm="recalibrate",
            recalibration=self.train.batches(128),
        )
        middle = (self.thetas[0] + self.thetas[1]) / 2
        points = torch.stack([self.thetas[0], middle, self.thetas[1]])
        paths.evaluate(objective, points, torch.linspace(0, 1, POINTS, dtype=torch.float64))

    def cka(self) -> None:
        outputs = []
        for model in self.models:
            objective = Objective(model, [(self.x, self.y)], self.criterion)
            outputs.append(objective.outputs(objective.center).double().softmax(1))
        similarity.cka(*outputs)


def seconds(bench: Bench, function: Callable[[], object]) -> float:
    bench.wait()
    start = time.perf_counter()
    function()
    bench.wait()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options.width, options.batch, torch.device(options.device))
    matvecs = bench.eigenvalues()
    both = (TRAIN_IMAGES + TEST_IMAGES) / TRAIN_IMAGES
    epoch = (lambda: bench.forward_backward(TRAIN_IMAGES, options.batch, training=True), "forward and backward")
    gradient = (lambda: bench.forward_backward(HESSIAN_IMAGES, 100, training=False), "one gradient, 200 images")
    rows: list[tuple[str, Callable[[], object], Callable[[], object], str]] = [
        ("training, one epoch", bench.training, *epoch),
        ("the same with flips and crops", lambda: bench.training(augment=("crop", "flip")), *epoch),
        ("loss and error, train and test", bench.evaluation, lambda: bench.forward(both), "forward"),
        (f"both ends of the spectrum, {matvecs} products", bench.eigenvalues, *gradient),
        ("exact trace", bench.exact_trace, *gradient),
        ("curve, one epoch", bench.curve, *epoch),
        (
            f"curve at {POINTS} points, BatchNorm re-estimated",
            bench.connectivity,
            lambda: bench.forward(POINTS * (both + 1)),
            "forward, twice for the training images",
        ),
        ("CKA of a pair, 1,024 images", bench.cka, lambda: bench.forward(2), "forward of both models"),
    ]
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name, *_ in rows}
    for _ in range(options.repeats):
        for name, ours, floor, _ in rows:
            times[name][0].append(seconds(bench, ours))
            times[name][1].append(seconds(bench, floor))
    lines = [
        f"# ResNet18 of width {options.width}, batch {options.batch}, {TRAIN_IMAGES} + {TEST_IMAGES} images",
        "",
        f"`python benchmarks/training.py --device {options.device} --repeats {options.repeats} --width "
        f"{options.width} --batch {options.batch}`; torch {torch.__version__}, one thread, medians; read ratios.",
        "",
        "| | seconds | floor | seconds of the floor | ratio | range of the ratio |",
        "|---|---|---|---|---|---|",
    ]
    for name, _, _, floor_name in rows:
        ours_s, floor_s = times[name]
        ratios = sorted(a / b for a, b in zip(ours_s, floor_s, strict=True))
        a, b = statistics.median(ours_s), statistics.median(floor_s)
        lines.append(
            f"| {name} | {a:.3f} | {floor_name} | {b:.3f} | {statistics.median(ratios):.2f} | "
            f"{ratios[0]:.2f} to {ratios[-1]:.2f} |"
        )
    speed = TRAIN_IMAGES / statistics.median(times["training, one epoch"][0])
    lines += ["", f"Training: {speed:,.0f} images per second."]
    text = "\n".join(lines) + "\n"
    print(text)
    name = f"training-{options.device.replace(':', '')}-w{options.width}-b{options.batch}.md"
    out = Path(__file__).parent / "results" / name
    out.write_text(text)


if __name__ == "__main__":
    main()

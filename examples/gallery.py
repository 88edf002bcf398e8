"""Figures in the manner of [Xu2024], 1 to 17, for networks that are trained here on CIFAR-10.

    python examples/gallery.py --data FOLDER --out gallery        MLP 3072-128-10, all images, some 9 minutes
    ... --quick      a tenth of the images: a look at the figures
    ... --resnet32   also ResNet32, scaled to the time: 200 images, 11 x 11, three eigenpairs; 8 minutes more
    ... --full       everything with more images and finer grids, for hours

FOLDER holds CIFAR-10's parquet files (default: $LOSSATLAS_DATA/cifar10). Training: SGD, rate 0.1, no momentum,
batch 128, weight decay 5e-4. Loss: mean cross entropy of the first training images. Weights and mined directions
are kept in OUT/<model>-<size>/kept and not computed again; delete the folder to start anew.

What each figure shows (numbers 2, 5, 6, 9 and 12 to 17 are subjects of those figures in [Xu2024]; 1, 3, 4, 7, 8,
10 and 11 follow the order of its text, and ours may stand under another number there):

1   the five classes of curves, one direction each, from simple to complex
2   Gaussian directions: epochs by scales 0.1 to 10, with the mean count (BatchNorm: by policy)
3   v-side: the negative gradient, and towards other checkpoints of the training (E=)
4   w-basin: towards checkpoints of another training (E'=), on [-1, 2]
5   angles between directions, and to Gaussians
6   the negative gradient against 100 Gaussians at equal length
7   Hessian eigenvectors, positive (P.E.x) and negative (N.E.x), of length 1, near and far
8   mined directions (Algorithm 1) beside the most negative eigenvector, at equal length and each at its own best
    scale; Δ is by how much the mined one is lower, mean of both sides, with its standard error
9   the mined direction on held-out data, and its cosines with the eigenvectors
10  vvv-basin: Algorithm 2 by its hyper-parameters, on [-1, 2]
11  surfaces in space: Gaussian, saddle, bottom of a wine bottle, mined
12  surfaces by pairs of directions
13  the density of the Hessian; the change of the loss along Gaussians against its predicted law
14  local quadratic pieces: from the initialisation to the solution (MLI), and along a Gaussian (GMI)
15  three normalisations by epochs
16  three normalisations by scales
17  what becomes of biases and BatchNorm: unmoved, rescaled, copied; with BatchNorm also by policy

and the training's path on the plane of its principal components.

`index.md` beside the figures tells which class of curve or surface appeared where, and which did not; a valley
or peak counts from 1e-4 nat on.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gallery_models as gm
import numpy as np
import torch
import xarray as xr
from gallery_curves import CurveFigures, Drawn
from gallery_models import Study
from matplotlib.figure import Figure

from lossatlas import figures, files, local_results, probe_results, registry
from lossatlas.landscape import angles, expansion, mining_checks, moments, slices, trace, trajectories
from lossatlas.landscape.density import density
from lossatlas.landscape.directions import Direction
from lossatlas.landscape.operators import hessian
from lossatlas.landscape.shapes import CURVE_GRIDS
from lossatlas.tasks import data

SCALED_DOWN = (2, 3, 4, 7, 9, 12, 14)  # what ResNet32 shows unless --full


class Gallery(CurveFigures):
    """All figures of one study."""

    def fig5(self) -> Drawn:
        study, epoch = self.study, self.study.early
        chosen = [
            *study.gaussians(epoch)[:1], *study.eigenvectors(epoch, 2), study.gradient(epoch),
            *(study.to(epoch, end) for end in (0, study.late)), study.to(epoch, study.late, other=True),
            study.mined(epoch),
        ]  # fmt: skip
        objective = study.objective(epoch)
        draws = [gm.directions.gaussian(objective, seed=1000 + k, scaling="none").vector for k in range(200)]
        between = [[angles.angle(a.vector, b.vector).degrees for b in chosen] for a in chosen]
        watched = [chosen[5], chosen[1], chosen[-1]]
        to_gaussians = [[angles.angle(d.vector, g).degrees for g in draws] for d in watched]
        names, few = [d.name for d in chosen], [d.name for d in watched]
        matrix = xr.Dataset(
            {"angle": (("direction", "direction_b"), np.array(between))}, coords={"direction": names}
        )
        histograms = xr.Dataset(
            {
                "gaussian_angle": (("watched", "draw"), np.array(to_gaussians)),
                "log_density": ("watched", [angles.log_density(d.vector) for d in watched]),
            },
            coords={"watched": few},
        )
        merged = xr.merge([matrix, histograms]).assign_attrs(kind="angles", size=objective.layout.size)
        yield "fig05-angles", figures.plot(merged)

    def fig6(self) -> Drawn:
        study, epoch = self.study, self.study.early
        objective, along = study.objective(epoch), study.gradient(epoch)
        distances = [0.001, 0.003, 0.01, 0.03, 0.1]
        found = [
            angles.against_gaussians(objective, along, distance=d, count=study.size.changes) for d in distances
        ]
        dataset = xr.concat([c.to_dataset() for c in found], "distance")
        yield "fig06-gradient-against-gaussians", figures.plot(dataset.assign_attrs(name=along.name))

    def fig9(self) -> Drawn:
        study = self.study
        for epoch in study.size.hessian_epochs[-2:]:
            along = study.mined(epoch)
            policy = self.policies[-1]
            held_out = study.objective(epoch, policy, "test")
            grid = slices.evenly(-1.0, 1.0, study.size.points)
            checked = mining_checks.survives(study.objective(epoch, policy), held_out, along.vector, grid)
            curve = self.curve(9, epoch, [along], batchnorm=policy)
            loss = xr.concat([curve["loss"], curve["loss"].copy(data=checked.held_out[None].numpy())], "data")
            dataset = curve.drop_vars(["loss", "error"]).assign(loss=loss)
            dataset = dataset.assign_coords(data=["training images", "held-out images"])
            cosines = mining_checks.alignment(along.vector, study.pairs(epoch)).to_dataset()
            dataset = dataset.merge(cosines, combine_attrs="override").assign_attrs(status=checked.status)
            yield f"fig09-mined-epoch{epoch}", figures.plot(dataset)

    def fig11(self) -> Drawn:
        for name, epoch, pair, reach in self._pairs_of_directions():
            if name in ("Gau. 1 - Gau. 2", "P.E.1 - N.E.1", "N.E.1 - N.E.2", "Mine - N.E.1"):
                dataset = self.surface(11, epoch, pair, reach)
                stem = f"fig11-{name.replace(' - ', '-').replace('. ', '').replace('.', '')}-epoch{epoch}"
                yield stem, figures.surface_3d(dataset)
                yield f"{stem}-contours", figures.plot(dataset)

    def fig12(self) -> Drawn:
        rows: list[dict[str, xr.Dataset]] = [{}]
        for name, epoch, pair, reach in self._pairs_of_directions():
            if len(rows[-1]) == 4:
                rows.append({})
            rows[-1][f"{name}, epoch {epoch}"] = self.surface(12, epoch, pair, reach)
        yield "fig12-surfaces", figures.surfaces(rows)

    def fig13(self) -> Drawn:
        study = self.study
        probes, steps = study.size.probes
        for epoch in study.size.epochs:
            objective = study.objective(epoch)
            operator = hessian(objective)
            spectral = density(operator, probes=probes, steps=steps, seed=0)
            total = trace.trace(objective, seed=0)
            square = moments.trace_of_square(operator, seed=0)
            dataset = local_results.spectrum(study.pairs(epoch), total, square, spectral)
            yield f"fig13-density-epoch{epoch}", figures.density(dataset)
            yield f"fig13-ends-epoch{epoch}", figures.plot(dataset)
            yield f"fig13-changes-epoch{epoch}", self._changes(epoch, total.value, square.value)

    def _changes(self, epoch: int, total: float, square: float) -> Figure:
        objective = self.study.objective(epoch)
        gradient = objective.gradient(objective.center).norm().item()
        measured = expansion.sample_changes(objective, seed=0, draws=self.study.size.changes)
        laws = [
            expansion.gaussian_change(lam, gradient_norm=gradient, trace=total, trace_of_square=square)
            for lam in measured.lambdas
        ]
        return figures.plot(probe_results.beside_law(measured, laws))

    def fig14(self) -> Drawn:
        study, epoch = self.study, self.study.late
        back = gm.directions.difference(
            study.objective(epoch), study.theta(epoch), start=study.theta(0), name="θ − θ₀"
        )
        for name, along, (a, b) in (
            ("mli", back, CURVE_GRIDS["mli"][:2]),
            ("gmi", study.gaussians(epoch)[0], CURVE_GRIDS["gmi"][:2]),
        ):
            dataset = self.curve(14, epoch, [along], (a, b))
            pieces = expansion.local_pieces(study.objective(epoch), along.vector, np.linspace(a, b, 11).tolist())
            yield f"fig14-{name}", figures.plot(dataset.merge(pieces.to_dataset(), combine_attrs="no_conflicts"))

    def trajectory(self) -> Drawn:
        study, epoch = self.study, self.study.late
        objective = study.objective(epoch)
        path = [study.theta(e) for e in study.states]
        first, second = trajectories.principal_components(objective, path)
        walk = trajectories.project(objective, path, first, second)
        low, high = walk.coordinates.min(0).values, walk.coordinates.max(0).values
        margin = 0.25 * (high - low).max()
        extent = tuple(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))
        grid = (study.size.grid,) * 2
        found = slices.surface(objective, first, second, extent=extent, grid=grid, classes=10)
        yield "trajectory", figures.surface(found.to_dataset(), walk)

    def _pairs_of_directions(self) -> list[tuple[str, int, list[Direction], float]]:
        """The planes of Fig. 12: name, epoch, directions, range."""
        study, early, late = self.study, self.study.early, self.study.late
        if study.is_scaled_down:
            return [("N.E.1 - N.E.2", early, study.eigenvectors(early, 2)[2:], 0.1)]
        gau, mine = study.gaussians(late), study.mined(early)
        p1, p2, n1, _ = study.eigenvectors(late, 2)
        p1_early, _, n1_early, n2_early = study.eigenvectors(early, 2)
        _, _, n1_first, n2_first = study.eigenvectors(0, 2)
        end, other = study.to(late, early), study.to(late, late, other=True)
        along = partial(gm.of_length, relative=mine.relative)
        return [
            ("Gau. 1 - Gau. 2", late, [gau[0], gau[1]], 1.0),
            ("P.E.1 - P.E.2", late, [p1, p2], 1.0),
            ("Gau. 1 - N.E.1", late, [gm.of_length(gau[0], n1.relative), n1], 1.0),
            ("Neg. Grad. - N.E.1", late, [gm.of_length(study.gradient(late), n1.relative), n1], 1.0),
            (f"E={early} - Gau. 1", late, [end, gm.of_length(gau[0], end.relative)], 1.5),
            (f"E'={late} - Gau. 1", late, [other, gm.of_length(gau[0], other.relative)], 1.5),
            ("P.E.1 - N.E.1", early, [p1_early, n1_early], 0.5),
            ("N.E.1 - N.E.2", early, [n1_early, n2_early], 0.5),
            ("N.E.1 - N.E.2", 0, [n1_first, n2_first], 0.5),
            ("Mine - N.E.1", early, [mine, n1_early], 0.8),
            ("Mine - P.E.1", early, [mine, along(p1_early)], 1.0),
            ("Mine - Gau. 1", early, [mine, along(study.gaussians(early)[0])], 1.0),
        ]


def run(study: Study, numbers: tuple[int, ...] | None) -> None:
    """Draw the figures of a study, or those of `numbers`, and write the index."""
    gallery = Gallery(study)
    steps: dict[str, Callable[[], Drawn]] = {f"{k}": getattr(gallery, f"fig{k}") for k in range(1, 18)}
    if numbers is None:
        steps["trajectory"] = gallery.trajectory
    start = time.perf_counter()
    for name, make in steps.items():
        if numbers is None or int(name) in numbers:
            began = time.perf_counter()
            try:
                for stem, figure in make():
                    figures.save(figure, study.folder / stem)
            except gm.DivergedError as error:
                gallery.index.missing.append(f"figure {name}: {error}")
            print(f"{study.size.model} figure {name}: {time.perf_counter() - began:.0f} s", flush=True)
    minutes = (time.perf_counter() - start) / 60
    title = f"# Classes seen: {study.size.model}, {study.size.name}, epochs {study.size.epochs}\n\n"
    files.write_file(study.folder / "index.md", (title + gallery.index.text()).encode())
    print(f"{study.folder}: {minutes:.1f} minutes", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="the folder of CIFAR-10's parquet files")
    parser.add_argument("--out", type=Path, default=Path("gallery"))
    parser.add_argument("--only", help="numbers of figures, as 2,13")
    for name in ("quick", "resnet32", "full"):
        parser.add_argument(f"--{name}", action="store_true")
    given = parser.parse_args()
    folder = given.data or Path(os.environ.get("LOSSATLAS_DATA", ".")) / "cifar10"
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    raw = data.load("cifar10", str(folder))
    only = tuple(int(number) for number in given.only.split(",")) if given.only else None
    size = gm.FULL if given.full else gm.QUICK if given.quick else gm.STANDARD
    run(Study(size, raw, given.out), only)
    if given.resnet32 or given.full:
        if "resnet32" not in registry.MODELS:
            raise SystemExit("This lossatlas has no model resnet32.")
        size = gm.RESNET_FULL if given.full else gm.RESNET_QUICK if given.quick else gm.RESNET
        run(Study(size, raw, given.out), only or (None if given.full else SCALED_DOWN))


if __name__ == "__main__":
    main()

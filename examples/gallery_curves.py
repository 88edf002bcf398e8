"""The gallery's figures of curves side by side, and the index of the classes that appeared."""

from collections import Counter
from collections.abc import Iterator
from functools import partial

import gallery_models as gm
import xarray as xr
from gallery_models import Study
from matplotlib.figure import Figure

from lossatlas import figures
from lossatlas.figures.curves import shapes_of
from lossatlas.figures.planes import shape_of
from lossatlas.landscape import angles, mining_checks, slices
from lossatlas.landscape.directions import Direction

SCALES = (0.1, 0.5, 1.0, 2.0, 10.0)
CURVES = ("v-basin", "v-side", "w-basin", "w-peak", "vvv-basin")
SURFACES = ("bowl", "gutter", "saddle", "wine-bottle", "peak")
TOLERANCE = 1e-4  # nat: ripples of ReLU kinks are no valleys
lines = partial(figures.lines, tolerance=TOLERANCE)

Drawn = Iterator[tuple[str, Figure]]


class Index:
    """Which class appeared where: counts by figure and epoch."""

    def __init__(self) -> None:
        self.seen: dict[str, Counter[tuple[int, int]]] = {}
        self.total: Counter[tuple[int, int]] = Counter()
        self.missing: list[str] = []  # figures that could not be made, and why

    def note(self, figure: int, epoch: int, dataset: xr.Dataset) -> None:
        """Classify every curve of a dataset, or its surface."""
        if dataset.attrs["slice"] == "surface":
            kinds = [str(shape_of(dataset).kind)]
        else:
            kinds = [s.kind if s.status == "ok" else "not finite" for s in shapes_of(dataset, TOLERANCE)]
        for kind in kinds:
            self.seen.setdefault(kind, Counter())[figure, epoch] += 1
            self.total[figure, epoch] += 1

    def text(self) -> str:
        """The index as markdown."""
        lines = []
        for title, expected in (("Curves", CURVES), ("Surfaces", SURFACES)):
            lines += [f"## {title}", "", "| class | figure (epoch: number of all there) |", "| --- | --- |"]
            lines += [f"| {kind} | {self._places(kind) or 'not seen'} |" for kind in expected]
            lines += [""]
        rest = [kind for kind in self.seen if kind not in CURVES + SURFACES]
        lines += ["## Neither", ""] + [f"- {kind}: {self._places(kind)}" for kind in rest]
        lines += ["", "## Not made", "", *(f"- {text}" for text in self.missing)] if self.missing else []
        return "\n".join(lines) + "\n"

    def _places(self, kind: str) -> str:
        found: dict[int, list[str]] = {}
        for (figure, epoch), count in sorted(self.seen.get(kind, Counter()).items()):
            found.setdefault(figure, []).append(f"{epoch}: {count} of {self.total[figure, epoch]}")
        return "; ".join(f"{figure} ({', '.join(places)})" for figure, places in found.items())


class CurveFigures:
    """The figures of one study that show many curves."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.index = Index()
        self.policies = ("eval", "recalibrate") if study.has_batchnorm else ("eval",)

    def curve(
        self,
        figure: int,
        epoch: int,
        chosen: list[Direction],
        reach: tuple[float, float] = (-1.0, 1.0),
        **how: str,
    ) -> xr.Dataset:
        """The loss along directions from the model of an epoch, noted in the index."""
        points = 1 + round((self.study.size.points - 1) * (reach[1] - reach[0]) / 2)
        if reach == (-1.0, 2.0):  # a multiple of three intervals, so that 0 and 1 are points
            points = 1 + 3 * ((self.study.size.points - 1) // 2)
        if abs(reach[0]) == reach[1]:
            points = self.study.size.points
        objective = self.study.objective(epoch, *how.values())
        found = slices.line(objective, chosen, a=reach[0], b=reach[1], points=points, classes=10)
        dataset = found.to_dataset()
        self.index.note(figure, epoch, dataset)
        return dataset

    def surface(self, figure: int, epoch: int, pair: list[Direction], reach: float = 1.0) -> xr.Dataset:
        """The loss on the plane of two directions, made orthogonal, noted in the index."""
        first, second = angles.orthogonalised(pair)
        grid = (self.study.size.grid,) * 2
        found = slices.surface(
            self.study.objective(epoch), first, second, extent=((-reach, reach),) * 2, grid=grid, classes=10
        )
        dataset = found.to_dataset()
        self.index.note(figure, epoch, dataset)
        return dataset

    def fig1(self) -> Drawn:
        study = self.study
        shown = {
            "Gaussian": self.curve(1, study.late, study.gaussians(study.late)[:1]),
            "negative gradient": self.curve(1, study.early, [study.gradient(study.early)]),
            "to another training": self.curve(
                1, study.late, [study.to(study.late, study.late, other=True)], (-1.0, 2.0)
            ),
            "mined, Algorithm 1": self.curve(1, study.early, [study.mined(study.early)]),
            "mined, Algorithm 2": self.curve(1, study.late, [study.mined_vvv(0.5, 0.1)], (-1.0, 2.0)),
        }
        yield "fig01-classes", lines([shown])

    def fig2(self) -> Drawn:
        scales = SCALES if len(self.policies) == 1 else SCALES[2:3]
        rows = []
        for epoch in self.study.size.epochs:
            chosen = self.study.gaussians(epoch)
            rows.append({
                f"epoch {epoch}, scale {s:g}" + (f", {p}" if self.study.has_batchnorm else ""):
                    self.curve(2, epoch, chosen, (-s, s), batchnorm=p)
                for s in scales for p in self.policies
            })  # fmt: skip
        yield "fig02-gaussian", lines(rows)

    def fig3(self) -> Drawn:
        study = self.study
        rows = []
        for epoch in study.size.epochs:
            others = [e for e in study.size.epochs if e != epoch]
            policy = {"batchnorm": self.policies[-1]}  # running statistics are those of one checkpoint alone
            row = {f"epoch {epoch}: negative gradient": self.curve(3, epoch, [study.gradient(epoch)], **policy)}
            for end in others:
                row[f"epoch {epoch}: E={end}"] = self.curve(3, epoch, [study.to(epoch, end)], **policy)
            rows.append(row)
        yield "fig03-v-side", lines(rows)

    def fig4(self) -> Drawn:
        study = self.study
        ends = study.size.epochs[1:]
        row = {}
        for epoch in ends:
            for end in ends if not study.has_batchnorm else (epoch,):
                along = study.to(epoch, end, other=True)
                row[f"epoch {epoch}: E'={end}"] = self.curve(
                    4, epoch, [along], (-1.0, 2.0), batchnorm=self.policies[-1]
                )
        yield "fig04-w-basin", lines([row])

    def fig7(self) -> Drawn:
        study = self.study
        rows = []
        reaches = (0.1,) if study.is_scaled_down else (1.0, 0.25)
        for epoch in study.size.hessian_epochs:
            chosen = study.eigenvectors(epoch, 3)
            signs = {"P.E.": chosen[: len(chosen) // 2], "N.E.": chosen[len(chosen) // 2 :]}
            rows.append({
                f"epoch {epoch}, {sign}, λ to {reach:g}": self.curve(7, epoch, part, (-reach, reach))
                for reach in reaches for sign, part in signs.items()
            })  # fmt: skip
        yield "fig07-eigenvectors", lines(rows)

    def fig8(self) -> Drawn:
        study = self.study
        equal, best = {}, {}
        for epoch in study.size.epochs:
            mined, rival = study.mined(epoch), study.eigenvectors(epoch, 1)[1]
            found = mining_checks.compare(
                study.objective(epoch), mined.vector, rival.vector, [0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0]
            )
            reach = 1.4 * max(map(abs, found.second_best.lambdas)) * mined.relative
            for row, text, length, gain in (
                (equal, "equal length", mined.relative, found.advantage),
                (best, "own best", reach, found.best_advantage),
            ):
                title = f"epoch {epoch}, {text}\nΔ = {gain.value:.2g} ± {gain.stderr:.1g}"
                row[title] = self.curve(8, epoch, [mined, gm.of_length(rival, length)])
        yield "fig08-mined", lines([equal, best])

    def fig10(self) -> Drawn:
        settings = [(gamma, a) for a in (0.0, 0.1) for gamma in (0.1, 0.5, 0.9)]
        row = {
            f"γ = {gamma}, a = {a}": self.curve(10, self.study.late, [self.study.mined_vvv(gamma, a)], (-1.0, 2.0))
            for gamma, a in settings
        }
        parts = list(row.items())
        yield "fig10-vvv-basin", lines([dict(parts[:3]), dict(parts[3:])])

    def fig15(self) -> Drawn:
        rows = [
            {
                f"epoch {epoch}, per {scaling}": self.curve(15, epoch, self.study.gaussians(epoch, scaling))
                for scaling in ("model", "layer", "filter")
            }
            for epoch in self.study.size.epochs
        ]
        yield "fig15-normalisations", lines(rows)

    def fig16(self) -> Drawn:
        epoch = self.study.late
        rows = [
            {
                f"per {scaling}, scale {s:g}": self.curve(16, epoch, self.study.gaussians(epoch, scaling), (-s, s))
                for s in SCALES
            }
            for scaling in ("model", "layer", "filter")
        ]
        yield "fig16-normalisations-scales", lines(rows)

    def fig17(self) -> Drawn:
        epoch = self.study.late
        rows = [
            {
                f"1-D parameters: {one}" + (f", {policy}" if self.study.has_batchnorm else ""): self.curve(
                    17,
                    epoch,
                    self.study.gaussians(epoch, "filter", one_dimensional=one),
                    batchnorm=policy,
                )
                for one in ("zero", "rescale", "copy")
            }
            for policy in self.policies
        ]
        yield "fig17-one-dimensional", lines(rows)

"""The figures of [Xu2024] that show curves, as pictures of one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lossatlas.landscape.directions import OneDimensional, Scaling
from lossatlas.studies import probing, ways
from lossatlas.studies.pictures import Panel, Picture, rows_of
from lossatlas.studies.slicing import Range, line
from lossatlas.studies.subject import Subject
from lossatlas.studies.ways import Way

SCALES = (0.1, 0.5, 1.0, 2.0, 10.0)
SCALINGS: tuple[Scaling, ...] = ("model", "layer", "filter")
ONE_DIMENSIONAL: tuple[OneDimensional, ...] = ("zero", "rescale", "copy")
VVV = [(gamma, a) for a in (0.0, 0.1) for gamma in (0.1, 0.5, 0.9)]  # the settings of Algorithm 2
BOTH: Range = (-1.0, 2.0)
COLUMNS = 5
_MARGIN = (
    "Its margin is the smallest step between neighbouring points that goes the right way, or minus the largest "
    "climb that does not. Red: the second-order expansion about every red dot."
)
NEAR = 0.25  # of an eigenvector's length: where its curvature rules


def classes(s: Subject) -> Iterator[Picture]:
    """Figure 1. Running statistics are those of one model alone, so BatchNorm is re-estimated."""
    s.needs_training("the classes of curves")
    chosen: list[tuple[str, int, Way, Range]] = [
        ("Gaussian", s.late, ways.gaussian(s, s.late), (-1.0, 1.0)),
        ("negative gradient", s.early, ways.gradient(s, s.early), (-1.0, 1.0)),
        ("to another training", s.late, ways.to(s, s.late, s.late, other=True), BOTH),
        ("mined, Algorithm 1", s.early, ways.mined(s, s.early), (-1.0, 1.0)),
        ("mined, Algorithm 2", s.late, ways.mined_vvv(s, 0.5, 0.1), BOTH),
    ]
    row = [
        Panel(f"{title}, epoch {epoch}", epoch, line(s, epoch, [way], reach, s.policies[-1]))
        for title, epoch, way, reach in chosen
    ]
    yield Picture("classes", "lines", [row])


def gaussian(s: Subject) -> Iterator[Picture]:
    """Figure 2: by epoch and scale, with BatchNorm by its policy at scale 1."""
    rows = []
    for epoch in s.epochs:
        chosen = ways.gaussians(s, epoch)
        if s.has_batchnorm:
            row = [
                Panel(f"epoch {epoch}, BatchNorm {policy}", epoch, line(s, epoch, chosen, policy=policy))
                for policy in s.policies
            ]
        else:
            row = _by_scale(s, epoch, chosen, f"epoch {epoch}, ")
        rows.append(row)
    yield Picture("gaussian", "lines", rows)


def _by_scale(s: Subject, epoch: int, chosen: Sequence[Way], prefix: str) -> list[Panel]:
    return [Panel(f"{prefix}scale {scale:g}", epoch, line(s, epoch, chosen, (-scale, scale))) for scale in SCALES]


def v_side(s: Subject) -> Iterator[Picture]:
    """Figure 3. Running statistics are those of one checkpoint alone, so BatchNorm is re-estimated."""
    s.needs_training("v-side")
    policy = s.policies[-1]
    rows = []
    for epoch in s.epochs:
        downhill = line(s, epoch, [ways.gradient(s, epoch)], policy=policy)
        row = [Panel(f"epoch {epoch}: neg. gradient", epoch, downhill)]
        for end in s.epochs:
            if end != epoch:
                item = line(s, epoch, [ways.to(s, epoch, end)], policy=policy)
                row.append(Panel(f"epoch {epoch}: E={end}", epoch, item))
        rows.append(row)
    yield Picture("v-side", "lines", rows)


def w_basin(s: Subject) -> Iterator[Picture]:
    """Figure 4."""
    s.needs_training("w-basin")
    panels = [
        Panel(
            f"epoch {epoch}: E'={end}",
            epoch,
            line(s, epoch, [ways.to(s, epoch, end, other=True)], BOTH, s.policies[-1]),
        )
        for epoch in s.epochs[1:]
        for end in s.epochs[1:]
    ]
    yield Picture("w-basin", "lines", rows_of(panels, len(s.epochs) - 1))


def eigenvectors(s: Subject) -> Iterator[Picture]:
    """Figure 7: of length 1, far and near."""
    ranks = range(1, 1 + min(3, s.sizes.pairs))
    rows = []
    for epoch in s.epochs:
        chosen = {sign: [ways.eigenvector(s, epoch, sign, rank) for rank in ranks] for sign in "PN"}
        rows.append(
            [
                Panel(f"epoch {epoch}, {sign}.E., λ to {reach:g}", epoch, line(s, epoch, some, (-reach, reach)))
                for reach in (1.0, NEAR)
                for sign, some in chosen.items()
            ]
        )
    yield Picture("eigenvectors", "lines", rows)


def w_peak(s: Subject) -> Iterator[Picture]:
    """Figure 8: at equal length, and each at its own best scale; Δ is by how much the mined one is lower."""
    rows: list[list[Panel]] = [[], []]
    for epoch in s.epochs:
        mined, rival = ways.mined(s, epoch), ways.eigenvector(s, epoch, "N")
        for row, text, own_best in zip(rows, ("equal length", "own best"), (False, True), strict=True):
            item = probing.rivals(s, epoch, mined, rival, own_best=own_best)
            row.append(Panel(f"epoch {epoch}, {text}", epoch, item))
    marks = (
        "Δ: the loss along N.E.1 less that along the mined direction (Mine), mean of both sides, with its "
        "standard error over the images: at λ = ±1 of equal length, or each curve and side where it is lowest "
        "(own best)."
    )
    yield Picture("w-peak", "lines", rows, marks)


def vvv_basin(s: Subject) -> Iterator[Picture]:
    """Figure 10."""
    s.needs_training("vvv-basin")
    policy = s.policies[-1]
    panels = [
        Panel(f"γ = {gamma}, a = {a}", s.late, line(s, s.late, [ways.mined_vvv(s, gamma, a)], BOTH, policy))
        for gamma, a in VVV
    ]
    yield Picture("vvv-basin", "lines", rows_of(panels, 3))


def pieces(s: Subject) -> Iterator[Picture]:
    """Figure 14."""
    for name, title, way, reach in (
        ("mli", "Monotone linear interpolation", ways.from_start(s), (-1.0, 0.0)),
        ("gmi", "Gaussian monotone increase", ways.gaussian(s, s.late), (-1.0, 1.0)),
    ):
        item = probing.pieces(s, s.late, way, reach)
        marks = f"{name.upper()}: {title}. {_MARGIN}"
        yield Picture(name, "plot", [[Panel(name.upper(), s.late, item)]], marks)


def normalisations(s: Subject) -> Iterator[Picture]:
    """Figure 15."""
    rows = [
        [
            Panel(f"epoch {epoch}, per {scaling}", epoch, line(s, epoch, ways.gaussians(s, epoch, scaling)))
            for scaling in SCALINGS
        ]
        for epoch in s.epochs
    ]
    yield Picture("normalisations", "lines", rows)


def scales(s: Subject) -> Iterator[Picture]:
    """Figure 16."""
    rows = [_by_scale(s, s.late, ways.gaussians(s, s.late, scaling), f"per {scaling}, ") for scaling in SCALINGS]
    yield Picture("normalisations-scales", "lines", rows)


def one_dimensional(s: Subject) -> Iterator[Picture]:
    """Figure 17."""
    rows = [
        [
            Panel(
                f"1-D parameters: {one}" + (f", {policy}" if s.has_batchnorm else ""),
                s.late,
                line(s, s.late, ways.gaussians(s, s.late, "filter", one), policy=policy),
            )
            for one in ONE_DIMENSIONAL
        ]
        for policy in s.policies
    ]
    yield Picture("one-dimensional", "lines", rows)

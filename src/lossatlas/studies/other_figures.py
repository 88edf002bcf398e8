"""The figures of [Xu2024] that show angles, surfaces and spectra, as pictures of one model; all in a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from lossatlas.studies import curve_figures, probing, ways
from lossatlas.studies.pictures import Panel, Picture, rows_of
from lossatlas.studies.slicing import surface
from lossatlas.studies.subject import Subject
from lossatlas.studies.ways import Way, as_long_as

IN_SPACE = ("Gau. 1 - Gau. 2", "P.E.1 - N.E.1", "N.E.1 - N.E.2", "Mine - N.E.1")  # the surfaces of Figure 11

_MINED = (
    "A fall is significant above 2 standard errors over the images. Red: negative eigenvalues; hatched: too close "
    "to another eigenvalue to be a direction of its own; dashed: root mean square cosine of a random direction."
)
_DENSITY = (
    "The standard error is over the random vectors. The sign is open where rounding and the number of Lanczos "
    "steps do not part an eigenvalue from 0; a singular Hessian has many there."
)
_CHANGES = (
    "L(θ + λd) − L(θ) along d ~ N(0, I). The predicted law is the normal one with the moments of the second-order "
    "expansion, from the gradient's norm, tr H and tr H²."
)

Plane = tuple[str, int, Sequence[Way], float]  # name, epoch, directions, range


def angles(s: Subject) -> Iterator[Picture]:
    """Figure 5."""
    epoch = s.early
    eigen = [ways.eigenvector(s, epoch, sign, rank) for sign in "PN" for rank in (1, 2)]
    downhill, late, mined = ways.gradient(s, epoch), ways.to(s, epoch, s.late), ways.mined(s, epoch)
    start, other = ways.to(s, epoch, 0), ways.to(s, epoch, s.late, other=True)
    chosen = [ways.gaussian(s, epoch), *eigen, downhill, start, late, other, mined]
    item = probing.between(s, epoch, chosen, [downhill, eigen[0], mined])
    marks = (
        "The histograms are of the directions named. ‖v‖ is the length of a direction, which alone decides its "
        "density p under N(0, I) in n dimensions: ln p = −(n ln 2π + ‖v‖²) / 2."
    )
    yield Picture("angles", "plot", [[Panel("", epoch, item)]], marks)


def against_gaussians(s: Subject) -> Iterator[Picture]:
    """Figure 6."""
    item = probing.distances(s, s.early, ways.gradient(s, s.early))
    yield Picture("gradient-against-gaussians", "plot", [[Panel("", s.early, item)]])


def held_out(s: Subject) -> Iterator[Picture]:
    """Figure 9: early, where mining works, and late."""
    for epoch in dict.fromkeys((s.early, s.late)):
        item = probing.held_out(s, epoch, ways.mined(s, epoch))
        yield Picture(f"mined-epoch{epoch}", "plot", [[Panel("", epoch, item)]], _MINED)


def in_space(s: Subject) -> Iterator[Picture]:
    """Figure 11, and the same as contours."""
    for name, epoch, pair, reach in _planes(s):
        if name in IN_SPACE:
            stem = f"{name.replace(' - ', '-').replace('. ', '').replace('.', '')}-epoch{epoch}"
            panel = Panel(name, epoch, surface(s, epoch, pair, reach))
            yield Picture(stem, "surface_3d", [[panel]], "The dot is the model.")
            yield Picture(f"{stem}-contours", "plot", [[panel]])


def surfaces(s: Subject) -> Iterator[Picture]:
    """Figure 12."""
    panels = [
        Panel(f"{name}, epoch {epoch}", epoch, surface(s, epoch, pair, reach))
        for name, epoch, pair, reach in _planes(s)
    ]
    yield Picture("surfaces", "surfaces", rows_of(panels, 4))


def _planes(s: Subject) -> list[Plane]:
    """The pairs of directions of Figs. 11 and 12, each with a range in which its shape shows."""
    s.needs_training("the planes towards checkpoints")
    early, late = s.early, s.late
    eigen = ways.eigenvector
    gau = [ways.gaussian(s, late, k) for k in (0, 1)]
    p1, p2, n1 = eigen(s, late, "P"), eigen(s, late, "P", 2), eigen(s, late, "N")
    p1_early, n1_early, n2_early = eigen(s, early, "P"), eigen(s, early, "N"), eigen(s, early, "N", 2)
    end, other, mine = ways.to(s, late, early), ways.to(s, late, late, other=True), ways.mined(s, early)
    planes: list[Plane] = [
        ("Gau. 1 - Gau. 2", late, gau, 1.0),
        ("P.E.1 - P.E.2", late, [p1, p2], 1.0),
        ("Gau. 1 - N.E.1", late, [as_long_as(gau[0], n1), n1], 1.0),
        ("Neg. Grad. - N.E.1", late, [as_long_as(ways.gradient(s, late), n1), n1], 1.0),
        (f"E={early} - Gau. 1", late, [end, as_long_as(gau[0], end)], 1.5),
        (f"E'={late} - Gau. 1", late, [other, as_long_as(gau[0], other)], 1.5),
        ("P.E.1 - N.E.1", early, [p1_early, n1_early], 0.5),
        ("N.E.1 - N.E.2", early, [n1_early, n2_early], 0.5),
        ("N.E.1 - N.E.2", 0, [eigen(s, 0, "N"), eigen(s, 0, "N", 2)], 0.5),
        ("Mine - N.E.1", early, [mine, n1_early], 0.8),
        ("Mine - P.E.1", early, [mine, as_long_as(p1_early, mine)], 1.0),
        ("Mine - Gau. 1", early, [mine, as_long_as(ways.gaussian(s, early), mine)], 1.0),
    ]
    return planes


def density(s: Subject) -> Iterator[Picture]:
    """Figure 13."""
    for epoch in s.epochs:
        spectrum, changes = (
            Panel("", epoch, probing.spectrum(s, epoch)),
            Panel("", epoch, probing.changes(s, epoch)),
        )
        yield Picture(f"density-epoch{epoch}", "density", [[spectrum]], _DENSITY)
        yield Picture(f"ends-epoch{epoch}", "plot", [[spectrum]], "Bars: residuals ‖Hv − λv‖.")
        yield Picture(f"changes-epoch{epoch}", "plot", [[changes]], _CHANGES)


PICTURES: dict[int, Callable[[Subject], Iterator[Picture]]] = {
    1: curve_figures.classes,
    2: curve_figures.gaussian,
    3: curve_figures.v_side,
    4: curve_figures.w_basin,
    5: angles,
    6: against_gaussians,
    7: curve_figures.eigenvectors,
    8: curve_figures.w_peak,
    9: held_out,
    10: curve_figures.vvv_basin,
    11: in_space,
    12: surfaces,
    13: density,
    14: curve_figures.pieces,
    15: curve_figures.normalisations,
    16: curve_figures.scales,
    17: curve_figures.one_dimensional,
}

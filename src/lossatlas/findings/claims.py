"""The claims of [Yang2021] about a grid, each with its margin: positive where the claim holds.

The errors are those of the seeds, left out one by one in all cells at once while phases and chosen cells stay, or
of the mean over slices where a claim is about every slice. A claim holds where its margin exceeds z errors. What
makes "tenfold", "the same" or "tiny" a number is ours and stands in the sentence. Sharpness is by definition of
training loss and Hessian, so `loss-falls` and `III-sharpness` test by how much phases differ in them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from lossatlas.findings import grid_claims, trend_claims
from lossatlas.findings.evidence import Evidence, Measured
from lossatlas.findings.verdicts import NotMeasured, Verdict, Z, verdict


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper, the figure that it belongs to, and how it is measured."""

    name: str
    sentence: str
    figure: str
    unit: str
    measure: Callable[[Evidence], Measured]


@dataclass(frozen=True)
class Finding:
    """Whether a claim holds in some results; `rests_on` says why not where it was not measured."""

    claim: Claim
    holds: Verdict
    margin: float
    error: float
    rests_on: str


def check(evidence: Evidence, *, z: float = Z) -> list[Finding]:
    """All claims on one grid: those of its own figure, then the others; in both, what was measured comes first.

    The figure is that of the preset `yang2021/figN` or a variant of it; any other grid repeats Figures 2 and 3, as
    the appendix does.
    """
    preset = re.fullmatch(r"yang2021/fig(\d+)(/.*)?", str(evidence.tree.attrs.get("name", "")))
    own = preset[1] if preset else "2"
    found = [_check(claim, evidence, z) for claim in CLAIMS]
    return sorted(found, key=lambda each: (own not in each.claim.figure.split(), each.holds == "not measured"))


def _check(claim: Claim, evidence: Evidence, z: float) -> Finding:
    try:
        found = claim.measure(evidence)
    except NotMeasured as lacking:
        return Finding(claim, "not measured", math.nan, math.nan, str(lacking))
    rests_on = found.rests_on
    if math.isnan(found.error):
        rests_on += "; no standard error: too few seeds"
    return Finding(claim, verdict(found.margin, found.error, z=z), found.margin, found.error, rests_on)


CLAIMS = (
    Claim(
        "loss-falls",
        "The training loss falls at least tenfold from Phases I and II to III and IV (geometric means).",
        "2 and 3",
        "decades beyond one",
        grid_claims.loss_falls,
    ),
    Claim(
        "best-in-IV-B",
        "The best test accuracy lies in Phase IV-B.",
        "2 and 3",
        "% accuracy over the best outside",
        grid_claims.best_in_fourth,
    ),
    Claim(
        "III-sharpness",
        "Phase III has the Hessian of IV-A (mean ln traces within ln 2).",
        "2 and 3",
        "ln trace left of ln 2",
        grid_claims.third_is_as_flat,
    ),
    Claim(
        "III-accuracy",
        "Phase III is less accurate than IV-A.",
        "2 and 3",
        "% accuracy",
        grid_claims.third_is_worse,
    ),
    Claim(
        "cka-beats-l2",
        "CKA correlates better with the test accuracy than the l2 distance does.",
        "2 and 3",
        "Spearman rho over |rho| of l2",
        grid_claims.cka_beats_distance,
    ),
    Claim(
        "batch-sharpens",
        "Inside Phase IV a larger batch raises the Hessian trace.",
        "2 and 3",
        "ln trace per doubling",
        trend_claims.batch_sharpens,
    ),
    Claim(
        "decay-helps",
        "Decaying the learning rate raises the best test accuracy.",
        "2 and 3",
        "% accuracy",
        grid_claims.decay_helps,
    ),
    Claim(
        "zero-loss-costs",
        "Columns through Phase III have their best accuracy in I or II.",
        "4",
        "% accuracy over the best in III or IV",
        grid_claims.zero_loss_costs,
    ),
    Claim(
        "little-decay-flattens",
        "The smallest weight decay gives tiny Hessian traces (a tenth of the largest of the slice, or less).",
        "5",
        "ln trace beyond ln 10",
        trend_claims.decay_flattens,
    ),
    Claim(
        "data-sharpens",
        "More data raises the Hessian trace.",
        "6",
        "ln trace per doubling",
        trend_claims.data_sharpens,
    ),
    Claim("data-aligns", "More data raises CKA.", "6", "CKA per doubling", trend_claims.data_aligns),
    Claim(
        "data-disconnects",
        "More data worsens the mode connectivity.",
        "6",
        "% down per doubling",
        trend_claims.data_disconnects,
    ),
    Claim(
        "noise-spares-trace",
        "At the lowest temperature label noise leaves the Hessian trace (within a factor of two).",
        "7",
        "ln trace left of ln 2",
        trend_claims.noise_spares_trace,
    ),
    Claim(
        "noise-disconnects",
        "At the lowest temperature label noise worsens the mode connectivity.",
        "7",
        "% down",
        trend_claims.noise_disconnects,
    ),
    Claim(
        "noise-parts",
        "At the lowest temperature label noise lowers CKA.",
        "7",
        "CKA down",
        trend_claims.noise_parts,
    ),
)

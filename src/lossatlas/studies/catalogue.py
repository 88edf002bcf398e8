"""The figures of [Xu2024] by their numbers: what each shows, and which sizes of a study it uses."""

from __future__ import annotations

from typing import NamedTuple


class Subject(NamedTuple):
    """What a figure shows."""

    title: str
    sizes: tuple[str, ...]  # of `schema.Sizes`, beside `images`
    pairs: int = 1  # eigenvectors of either sign that it shows, at least
    sought: tuple[str, ...] = ()  # classes of curves, of which the captions tell whether they appeared


CURVES = ("v-basin", "v-side", "w-basin", "w-peak", "vvv-basin")  # the classes, from simple to complex
DRAWS_OF_ANGLES = 2  # so many times `sizes.draws` Gaussians are beside the directions of Figure 5
_MINING = ("mining_epochs", "mining_images", "mining_start")

# 2, 5, 6, 9 and 12 to 17 are the subjects of those figures in [Xu2024]; 1, 3, 4, 7, 8, 10 and 11 follow the order
# of its text, and ours may stand under another number there.
FIGURES = {
    1: Subject("in search of the five classes of curves", ("points", *_MINING), sought=CURVES),
    2: Subject("Gaussian directions by epoch and scale", ("points", "gaussians")),
    3: Subject(
        "in search of the v-side: the negative gradient, and towards other checkpoints (E=)",
        ("points",),
        sought=("v-side",),
    ),
    4: Subject(
        "in search of the w-basin: towards checkpoints of another training (E'=)", ("points",), sought=("w-basin",)
    ),
    5: Subject("angles between directions, and to Gaussians", ("pairs", "draws", *_MINING), 2),
    6: Subject("the negative gradient against Gaussians of equal length", ("draws",)),
    7: Subject("Hessian eigenvectors of positive (P.E.) and negative eigenvalue (N.E.)", ("points", "pairs")),
    8: Subject(
        "in search of the w-peak: mined directions (Algorithm 1) and the lowest eigenvector",
        ("points", "pairs", *_MINING),
        sought=("w-peak",),
    ),
    9: Subject("mined directions on held-out data, among eigenvectors", ("points", "pairs", *_MINING)),
    10: Subject(
        "in search of the vvv-basin: mined directions (Algorithm 2)",
        ("points", "mining_epochs", "mining_images"),
        sought=("vvv-basin",),
    ),
    11: Subject("surfaces in space", ("grid", "pairs", *_MINING), 2),
    12: Subject("surfaces by pairs of directions", ("grid", "pairs", *_MINING), 2),
    13: Subject(
        "the Hessian's density, and changes of the loss along Gaussians", ("pairs", "draws", "probes", "steps")
    ),
    14: Subject("local quadratic pieces", ("points",)),
    15: Subject("Gaussian directions by normalisation and epoch", ("points", "gaussians")),
    16: Subject("Gaussian directions by normalisation and scale", ("points", "gaussians")),
    17: Subject("filter normalisation and one-dimensional parameters", ("points", "gaussians")),
}

"""The table of measures: one row each, which says what is measured of what, how, and into which variables.

A new measure is a pure function in `landscape/`, a row here (with its adapter in `models.py` or `pairs.py`), and a
test. Reading the table loads no torch; the adapters import it when they run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lossatlas.measures import alignment, models, pairs
from lossatlas.measures import settings as s
from lossatlas.measures.jobs import Outcome
from lossatlas.results import Quantity
from lossatlas.settings import Settings

Scope = Literal["model", "pair", "cell"]

LEAST = 4  # samples of the unbiased HSIC, without those that a jackknife leaves out


def all_pairs(_settings: Any, seeds: Sequence[int]) -> list[tuple[int, int]]:
    """Every pair of seeds a < b."""
    return list(itertools.combinations(sorted(seeds), 2))


@dataclass(frozen=True)
class Measure:
    """One row: a step of the sweep."""

    name: str  # of the step, and of its section in the spec unless `section` says otherwise
    scope: Scope
    settings: type[Settings]
    version: int  # to be raised by hand whenever the same inputs give other numbers
    run: Callable[..., Outcome]
    quantities: Mapping[str, tuple[Quantity, ...]]  # group of the results -> its variables
    section: str = ""
    always: bool = False  # measured even if the spec does not ask for it
    after: tuple[str, ...] = ()  # steps whose arrays it takes
    matters: frozenset[str] | None = None  # the settings that change the result; None: all
    tested: bool | None = None  # whether it takes test samples; None: as its setting `data` says
    pairs: Callable[[Any, Sequence[int]], list[tuple[int, int]]] = field(default=all_pairs)

    def content(self, settings: Settings) -> dict[str, Any]:
        """The part of the settings that belongs into the key."""
        content = {k: v for k, v in settings.content().items() if k not in ("pairs",)}
        return content if self.matters is None else {k: v for k, v in content.items() if k in self.matters}

    def takes_test(self, settings: Settings) -> bool:
        """Whether it takes test samples."""
        return getattr(settings, "data", None) == "test" if self.tested is None else self.tested

    def described(self, settings: Settings) -> dict[str, tuple[Quantity, ...]]:
        """Its variables by the group of the results, in the units and as the settings ask for them."""
        told: Mapping[str, Mapping[str, str]] = getattr(settings, "told", {})
        return {
            group: tuple(replace(each, **told.get(each.name, {})) for each in quantities)
            for group, quantities in self.quantities.items()
        }


_FIT = frozenset({"kind", "bends", "start", "epochs", "n_ref", "lr", "momentum", "batch_size", "l2"})

STEPS: tuple[Measure, ...] = (
    Measure(
        "evaluation",
        "model",
        s.Evaluation,
        1,
        models.evaluate,
        {"models": models.EVALUATION_QUANTITIES},
        always=True,
        tested=True,
    ),
    Measure("hessian", "model", s.Hessian, 2, models.hessian, {"models": models.HESSIAN_QUANTITIES}),
    Measure(
        "density",
        "model",
        s.Density,
        1,
        models.density,
        {
            "models": models.DENSITY_QUANTITIES,
            "densities": (*models.NODE_QUANTITIES, *models.OPERATOR_QUANTITIES),
        },
    ),
    Measure("bleu", "model", s.Bleu, 1, models.bleu, {"models": models.BLEU_QUANTITIES}),
    Measure(
        "curve",
        "pair",
        s.Connectivity,
        1,
        pairs.fit_curve,
        {"pairs": pairs.CONNECTIVITY_QUANTITIES[-1:]},
        section="connectivity",
        matters=_FIT,
        tested=False,
        pairs=pairs.chosen_pairs,
    ),
    Measure(
        "connectivity",
        "pair",
        s.Connectivity,
        1,
        pairs.connectivity,
        {"pairs": pairs.CONNECTIVITY_QUANTITIES[:-1], "curves": pairs.CURVE_QUANTITIES},
        after=("curve",),
        matters=frozenset({"points", "rule", "data", "on"}),
        tested=True,
        pairs=pairs.chosen_pairs,
    ),
    Measure("cka", "pair", s.CKA, 2, alignment.cka, {"pairs": alignment.CKA_QUANTITIES}),
    Measure("distance", "pair", s.Distance, 1, pairs.distance, {"pairs": pairs.DISTANCE_QUANTITIES}),
    Measure(
        "disagreement", "pair", s.Disagreement, 1, pairs.disagreement, {"pairs": pairs.DISAGREEMENT_QUANTITIES}
    ),
    Measure("ensemble", "cell", s.Ensemble, 2, pairs.ensemble, {"cells": pairs.ENSEMBLE_QUANTITIES}),
)


def section_of(step: Measure) -> str:
    """The section of the spec that asks for a step."""
    return step.section or step.name


TABLE: tuple[Measure, ...] = tuple(step for step in STEPS if not step.section)  # one row a section of the spec


def problems(asked: Mapping[str, Settings], seeds: Sequence[int], *, text: bool | None = None) -> list[str]:
    """What is wrong with the settings of the measures given the seeds, one sentence each.

    `text`: whether the data are sentences and their translations; None where it is not known.
    """
    return [
        *_text_problems(asked, text),
        *_pair_problems(asked.get("connectivity"), seeds),
        *_cka_problems(asked.get("cka")),
    ]


def _text_problems(asked: Mapping[str, Settings], text: bool | None) -> list[str]:
    found = []
    if text is False and "bleu" in asked:
        found.append("measures.bleu: it is of translations, and the data are no text; remove it")
    cka = asked.get("cka")
    if not text or not isinstance(cka, s.CKA):
        return found
    for key, what in (("mixup_alpha", "mixed"), ("noise", "noisy")):
        value = getattr(cka, key)
        if value and key in cka.model_fields_set:
            found.append(
                f"measures.cka.{key}: {value:g} was given; allowed is 0, since the tokens of a text "
                f"cannot be {what}"
            )
    if cka.layer is not None:
        found.append(f"measures.cka.outputs: {cka.outputs} was given; allowed of text are softmax and logits")
    return found


def _cka_problems(settings: Settings | None) -> list[str]:
    if not isinstance(settings, s.CKA):
        return []
    found = []
    if settings.kernel == "linear" and "bandwidth" in settings.model_fields_set:
        found.append("measures.cka.bandwidth: given although the linear kernel has none; it is for rbf")
    if settings.positions == "samples" and (settings.layer is None or settings.kernel == "rbf"):
        why = f"{settings.outputs} have no positions" if settings.layer is None else "the rbf kernel takes no more"
        found.append(f"measures.cka.positions: samples was given; allowed is flattened, since {why}")
    if settings.debiased and settings.images <= LEAST:
        found.append(
            f"measures.cka.images: {settings.images} was given; the unbiased HSIC needs at least {LEAST + 1}"
        )
    return found


def _pair_problems(settings: Settings | None, seeds: Sequence[int]) -> list[str]:
    if not isinstance(settings, s.Connectivity):
        return []
    where = "measures.connectivity.pairs"
    most = len(all_pairs(settings, seeds))
    if isinstance(settings.pairs, int) and settings.pairs > max(1, most):
        return [
            f"{where}: {settings.pairs} was given; allowed are at most {max(1, most)} (the pairs of the seeds), "
            '"ring", "all", or a list of pairs'
        ]
    listed = settings.pairs if isinstance(settings.pairs, tuple) else ()
    return [
        f"{where}: {list(pair)} was given; allowed are two different ones of the seeds {list(seeds)}"
        for pair in listed
        if len(set(pair)) < 2 or not set(pair) <= set(seeds)
    ]

"""What the conclusions of [Yang2021] advise for every cell, with the rule that fired and its numbers.

- mode connectivity below its threshold: the model is too small or the data are of low quality;
- flat and yet poorly connected (III): training to zero loss may not pay (Fig. 4; `columns` tells whether it does
  here), so train hotter;
- a large Hessian trace or training loss, or mode connectivity clearly above zero: training has not converged;
- flat, connected and yet small CKA (IV-A): more or better data. The paper's last sentence prints "large CKA"
  there, which its figures and its text contradict.

Thresholds are those of the phases; "clearly above zero" is the connectivity threshold with its sign turned.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import xarray as xr

from lossatlas.findings.columns import Place, axes, places

Numbers = Mapping[str, float]  # the metrics or the thresholds by name


@dataclass(frozen=True)
class Rule:
    """When it fires, what it advises, and which of the metrics it compares."""

    name: str
    advice: str  # larger model, other temperature, better convergence, more data
    words: str
    metrics: tuple[str, ...]
    fires: Callable[[str, Numbers, Numbers], bool]  # phase, metrics, thresholds


@dataclass(frozen=True)
class Advice:
    """The advice for one cell: the rules that fired, the most important one first; none where all is well."""

    at: Place
    phase: str
    rules: tuple[Rule, ...]
    because: tuple[str, ...]  # the numbers behind each rule
    reason: str = ""  # why there is no phase, and so no advice

    @property
    def advice(self) -> str:
        """What to do first; `none` where all is well, empty where it cannot be told."""
        if self.rules:
            return self.rules[0].advice
        return "none" if self.phase else ""


def _above_zero(_phase: str, x: Numbers, limit: Numbers) -> bool:
    return x["mode_connectivity"] > abs(limit["mode_connectivity"])


RULES = (  # in the order of importance
    Rule(
        "poorly-connected",
        "larger model",
        "a larger model, or better data",
        ("mode_connectivity",),
        lambda phase, _x, _limit: phase in ("I", "III"),
    ),
    Rule(
        "zero-loss-costs",
        "other temperature",
        "a higher temperature: zero training loss may not pay here",
        ("train_loss", "ln_trace"),
        lambda phase, _x, _limit: phase == "III",
    ),
    Rule(
        "sharp",
        "better convergence",
        "a lower temperature or longer training",
        ("ln_trace", "train_loss"),
        lambda phase, _x, _limit: phase in ("I", "II"),
    ),
    Rule(
        "ends-not-minima",
        "better convergence",
        "a lower temperature or longer training",
        ("mode_connectivity",),
        _above_zero,
    ),
    Rule(
        "dissimilar",
        "more data",
        "more or better data",
        ("cka",),
        lambda phase, _x, _limit: phase == "IV-A",
    ),
)


def advise(labels: xr.Dataset) -> list[Advice]:
    """Advice for every cell of labels that `phases.label` made, in ascending order of their axes."""
    limits: dict[str, float] = json.loads(labels.attrs["thresholds"])
    sides: dict[str, str] = json.loads(labels.attrs["sides"])
    every = axes(labels)
    ordered = labels.sortby(every).transpose(*every)
    texts = [ordered[name].values.astype(str).ravel() for name in ("phase", "reason")]
    metrics = [ordered[name].values.ravel() for name in limits]
    found = []
    for at, phase, reason, *values in zip(places(labels), *texts, *metrics, strict=True):
        x = {name: float(value) for name, value in zip(limits, values, strict=True)}
        fired = tuple(rule for rule in RULES if phase and rule.fires(str(phase), x, limits))
        because = tuple(_because(rule, x, limits, sides) for rule in fired)
        found.append(Advice(at, str(phase), fired, because, reason="" if phase else str(reason) or "no phase"))
    return found


def _because(rule: Rule, x: Numbers, limits: Numbers, sides: Mapping[str, str]) -> str:
    """The comparisons behind a rule; of the two quantities that make a cell sharp, those that did."""
    texts = []
    for name in rule.metrics:
        limit = abs(limits[name]) if rule.fires is _above_zero else limits[name]
        is_sharp = sides[name] == "sharp" if name in sides else x[name] > limit
        if math.isnan(x[name]) or (rule.name == "sharp" and not is_sharp):
            continue
        if name in sides and rule.fires is not _above_zero:
            texts.append(f"{name} {x[name]:.4g}, no transition: all cells {sides[name]}")
        else:
            sign = ">" if x[name] > limit else "<" if x[name] < limit else "="
            texts.append(f"{name} {x[name]:.4g} {sign} {limit:.4g}")
    return " and ".join(texts)

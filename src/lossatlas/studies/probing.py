"""Results of a study other than plain slices, as items: comparisons, angles, spectra, changes of the loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from lossatlas import local_results, probe_results
from lossatlas.landscape import angles, directions, expansion, mining_checks, moments, slices, trace
from lossatlas.landscape.density import density
from lossatlas.landscape.operators import hessian
from lossatlas.results import Quantity, put_with_error
from lossatlas.studies import vectors
from lossatlas.studies.catalogue import DRAWS_OF_ANGLES
from lossatlas.studies.items import Item
from lossatlas.studies.slicing import Range, content, needs, points_of
from lossatlas.studies.subject import Subject
from lossatlas.studies.ways import Way, as_long_as, longer, made, proper
from lossatlas.sweep.cost import FORWARD, MATVEC

SCALES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)  # where rivals are compared
BEYOND = 1.4  # how far behind the rival's best scale its curve is drawn
DISTANCES = (0.001, 0.003, 0.01, 0.03, 0.1)  # of a step, in units of ||theta||
PIECES = 11  # of Fig. 14
DRAW_SEED = 1000  # of the first Gaussian of Fig. 5, apart from those that are looked at


def rivals(subject: Subject, epoch: int, first: Way, second: Way, *, own_best: bool) -> Item:
    """The loss along two directions of equal length, or each as long as it does best; [Xu2024] Fig. 8.

    `advantage` is by how much the first is lower, mean of both sides, with its standard error `advantage_se`.
    """
    points, rival = points_of(subject, (-1.0, 1.0)), as_long_as(second, first)

    def make() -> xr.Dataset:
        objective = subject.objective(epoch)
        one, other = proper(first), proper(rival)
        found = mining_checks.compare(objective, one, other, list(SCALES))
        gain = found.best_advantage if own_best else found.advantage
        if own_best:
            other = longer(other, BEYOND * max(map(abs, found.second_best.lambdas)))
        curve = slices.line(objective, [one, other], points=points, classes=subject.facts.classes)
        dataset = curve.to_dataset()
        quantity = Quantity(
            "advantage", "nat", "loss along the second less that along the first", "mean of both sides"
        )
        put_with_error(dataset, quantity, gain.value, gain.stderr, how="paired over the samples")
        return dataset

    settings = {"scales": list(SCALES), "points": points, "own best": own_best}
    work = (4 * len(SCALES) + 2 + 2 * points) * FORWARD * subject.images
    ways = (first, rival)
    return Item("local-rivals", content(subject, epoch, ways, **settings), work, make, needs(ways))


def held_out(subject: Subject, epoch: int, way: Way) -> Item:
    """A mined direction on its own and on held-out images, and its cosines with eigenvectors; [Xu2024] Fig. 9."""
    policy, points, item = subject.policies[-1], points_of(subject, (-1.0, 1.0)), vectors.pairs(subject, epoch)

    def make() -> xr.Dataset:
        here, there = (subject.objective(epoch, policy, part) for part in ("train", "test"))
        (along,) = made([way])
        grid = slices.evenly(-1.0, 1.0, points)
        checked = mining_checks.survives(here, there, along, grid)
        curve = slices.line(here, along, points=points, classes=subject.facts.classes).to_dataset()
        loss = xr.concat([curve["loss"], curve["loss"].copy(data=checked.held_out[None].numpy())], "data")
        dataset = curve.drop_vars(["loss", "error"]).assign(loss=loss)
        dataset = dataset.assign_coords(data=["training images", "held-out images"])
        cosines = mining_checks.alignment(along, vectors.finite_eigenpairs(subject, epoch)).to_dataset()
        return dataset.merge(cosines, combine_attrs="override").assign_attrs(status=checked.status)

    settings = {"pairs": item.key, "points": points, "batchnorm": policy, **subject.held_out()}
    work = 3 * points * FORWARD * subject.images * (2 if policy == "recalibrate" else 1)
    needed = (*way.needs, item)
    return Item("local-held-out", content(subject, epoch, [way], **settings), work, make, needed)


def between(subject: Subject, epoch: int, ways: Sequence[Way], watched: Sequence[Way]) -> Item:
    """The angles between directions, and of some of them to Gaussians; [Xu2024] Fig. 5."""
    draws = DRAWS_OF_ANGLES * subject.sizes.draws

    def make() -> xr.Dataset:
        objective, chosen, few = subject.objective(epoch), made(ways), made(watched)
        table = [[angles.angle(a, b).degrees for b in chosen] for a in chosen]
        spread = np.empty((len(few), draws))
        for k in range(draws):
            drawn = directions.gaussian(objective, seed=DRAW_SEED + k, scaling="none")
            spread[:, k] = [angles.angle(each, drawn).degrees for each in few]
        dataset = xr.Dataset(
            {
                "angle": (("direction", "direction_b"), np.array(table), {"units": "degree"}),
                "gaussian_angle": (("watched", "draw"), spread, {"units": "degree"}),
                "log_density": ("watched", [angles.log_density(each.vector) for each in few]),
            },
            coords={"direction": [d.name for d in chosen], "watched": [d.name for d in few]},
        )
        return dataset.assign_attrs(kind="angles", size=objective.layout.size)

    own = [dict(way.content) for way in watched]
    settings = content(subject, epoch, ways, watched=own, draws=draws)
    return Item("local-angles", settings, 0.0, make, needs([*ways, *watched]))


def distances(subject: Subject, epoch: int, way: Way) -> Item:
    """The loss after steps along a direction and along Gaussians of equal length; [Xu2024] Fig. 6."""
    draws = subject.sizes.draws

    def make() -> xr.Dataset:
        objective, along = subject.objective(epoch), proper(way)
        found = [angles.against_gaussians(objective, along, distance=d, count=draws) for d in DISTANCES]
        return xr.concat([each.to_dataset() for each in found], "distance").assign_attrs(name=along.name)

    settings = {"distances": list(DISTANCES), "draws": draws}
    work = len(DISTANCES) * (draws + 2) * FORWARD * subject.images
    return Item("local-distances", content(subject, epoch, [way], **settings), work, make, way.needs)


def spectrum(subject: Subject, epoch: int) -> Item:
    """Both ends, traces and density of the Hessian, and the norm of the gradient; [Xu2024] Fig. 13."""
    sizes, item = subject.sizes, vectors.pairs(subject, epoch)

    def make() -> xr.Dataset:
        objective = subject.objective(epoch)
        operator = hessian(objective)
        steps = min(sizes.steps, operator.size)
        dataset = local_results.spectrum(
            vectors.eigenpairs(subject, epoch),
            trace.trace(objective, seed=0),
            moments.trace_of_square(operator, seed=0),
            density(operator, probes=sizes.probes, steps=steps, seed=0),
        )
        return dataset.assign_attrs(gradient_norm=objective.gradient(objective.center).norm().item())

    settings = {"pairs": item.key, "probes": sizes.probes, "steps": sizes.steps}
    products = sizes.probes * sizes.steps + 200  # those of the two traces, at most
    work = products * MATVEC * subject.images
    return Item("local-spectrum", content(subject, epoch, [], **settings), work, make, (item,))


def changes(subject: Subject, epoch: int) -> Item:
    """Changes of the loss along Gaussians beside their predicted law; [Xu2024] Fig. 13."""
    of, draws = spectrum(subject, epoch), subject.sizes.draws

    def make() -> xr.Dataset:
        known = subject.shelf.get(of)
        numbers = {
            "gradient_norm": float(known.attrs["gradient_norm"]),
            "trace": float(known["trace"]),
            "trace_of_square": float(known["trace_of_square"]),
        }
        measured = expansion.sample_changes(subject.objective(epoch), seed=0, draws=draws)
        laws = [expansion.gaussian_change(lam, **numbers) for lam in measured.lambdas]
        return probe_results.beside_law(measured, laws)

    settings = {"spectrum": of.key, "draws": draws}
    work = 2 * draws * FORWARD * subject.images
    return Item("local-changes", content(subject, epoch, [], **settings), work, make, (of,))


def pieces(subject: Subject, epoch: int, way: Way, reach: Range) -> Item:
    """The curve along a direction with local quadratic pieces; [Xu2024] Fig. 14."""
    points = points_of(subject, reach)

    def make() -> xr.Dataset:
        objective = subject.objective(epoch)
        (along,) = made([way])
        curve = slices.line(objective, along, a=reach[0], b=reach[1], points=points, classes=subject.facts.classes)
        found = expansion.local_pieces(objective, along, np.linspace(*reach, PIECES).tolist())
        return curve.to_dataset().merge(found.to_dataset(), combine_attrs="no_conflicts")

    settings = {"range": list(reach), "points": points, "pieces": PIECES}
    work = (points * FORWARD + PIECES * (1 + FORWARD + MATVEC)) * subject.images
    return Item("local-pieces", content(subject, epoch, [way], **settings), work, make, way.needs)

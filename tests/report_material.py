"""Results with everything that a report shows, made from formulas: for its tests and its benchmark."""

import itertools
import json
import math

import numpy as np
import xarray as xr

from lossatlas import results
from lossatlas.measures import STEPS
from lossatlas.measures.models import NODE_QUANTITIES
from lossatlas.results import REASON, STATUS, Axis, Quantity
from lossatlas.sweep.collect import HISTORY_QUANTITIES, TRAINING_QUANTITIES

PROBES, NODES = 3, 20

SPEC = {
    "name": "made up",
    "seeds": [0, 1, 2],
    "load": {"width": [2, 8, 32]},
    "temperature": {"batch_size": [16, 64, 256]},
    "task": {"data": {"name": "digits"}, "model": {"name": "mlp", "depth": 1}, "loss": "cross_entropy"},
    "train": {"epochs": 2, "optimizer": {"lr": 0.1}, "schedule": {"name": "step", "at": [0.5, 0.75]}},
    "measures": {
        "hessian": {"images": 20},
        "density": {"images": 20, "probes": PROBES, "steps": NODES},
        "cka": {"images": 40},
        "connectivity": {"pairs": "all", "epochs": 1},
    },
}


def full(
    widths: tuple[int, ...] = (2, 8, 32),
    batches: tuple[int, ...] = (16, 64, 256),
    *,
    n_seeds: int = 3,
    epochs: int = 6,
    points: int = 5,
    spec: dict | None = None,
) -> xr.DataTree:
    """All five phases on one grid: loss falls with width and batch, mode connectivity and CKA rise with width."""
    rng, probes = np.random.default_rng(0), np.random.default_rng(1)
    axes = [Axis("width", widths, "load"), Axis("batch_size", batches, "temperature")]
    seeds, ts = tuple(range(n_seeds)), tuple(np.linspace(0, 1, points))
    of_models, of_pairs, of_curves, of_history, of_densities = {}, {}, {}, {}, {}
    for i, j in itertools.product(range(len(widths)), range(len(batches))):
        cell, x, y = (widths[i], batches[j]), i / max(1, len(widths) - 1), j / max(1, len(batches) - 1)
        for seed in seeds:
            noise = 1 + 0.05 * rng.standard_normal()
            loss = math.exp(1 - 5 * x - 3 * y) * noise
            of_models[(*cell, seed)] = {
                "epochs": epochs,
                "train_loss": loss,
                "train_loss_se": loss / 30,
                "train_error": 20 * loss,
                "train_error_se": loss,
                "test_loss": loss + 0.5,
                "test_loss_se": 0.01,
                "test_error": 40 - 25 * x + 10 * (y - 0.5) ** 2 + 0.3 * rng.standard_normal(),
                "test_error_se": 0.2,
                "hessian_eig": math.exp(3 - x) * noise,
                "hessian_eig_residual": 1e-4,
                "hessian_eig_min": -0.01,
                "hessian_eig_converged": 1.0,
                "hessian_eigs": [math.exp(3 - x - k) for k in range(4)],
                "hessian_trace": math.exp(7 - 2 * x - 2 * y) * noise,
                "hessian_trace_se": 0.3,
                "hessian_trace_converged": 1.0,
                "negative_share": 0.1 + 0.01 * noise,
                "negative_share_se": 0.004,
                "undecided_share": 0.7,
                "undecided_share_se": 0.01,
                "positive_share": 0.2 - 0.01 * noise,
                "positive_share_se": 0.006,
                "status": "ok",
            }
            of_history[(*cell, seed)] = {
                "running_loss": [loss * (1 + 9 / (1 + e)) * (1 + 0.05 * rng.random()) for e in range(epochs)],
                "running_error": [90 / (1 + e) + 20 * loss * rng.random() for e in range(epochs)],
                "running_lr": [0.05] * epochs,
            }
            for probe in range(PROBES):
                ritz = np.concatenate(
                    [-np.geomspace(0.01, 1e-5, 6), np.geomspace(1e-5, math.exp(3 - x), NODES - 6)]
                )
                weights = 1 / (1 + np.abs(ritz) * 1e4) * (1 + 0.2 * probes.random(NODES))
                of_densities[(*cell, seed, probe)] = {
                    "ritz_value": (ritz * noise).tolist(),
                    "ritz_weight": (weights / weights.sum()).tolist(),
                    "ritz_residual": [1e-6] * NODES,
                }
        for a, b in itertools.combinations(seeds, 2):
            mc = -8 * (1 - x) ** 2 * (0.3 + y) + 0.1 * rng.standard_normal()
            of_pairs[(*cell, a, b)] = {
                "mode_connectivity": mc,
                "mode_connectivity_se": 0.1,
                "t_star": 0.5,
                "t_star_at_end": 0.0,
                "cka": min(0.99, 0.4 + 0.5 * x * (1 - abs(y - 0.5)) + 0.01 * rng.standard_normal()),
                "cka_se": 0.01,
                "distance": 10 + 5 * x + rng.random(),
                "disagreement": 3.0,
                "disagreement_se": 0.5,
                "jensen_shannon": 0.02,
                "output_cosine": 0.9,
                "status": "ok",
            }
            bump = [-mc * 4 * t * (1 - t) for t in ts]
            of_curves[(*cell, a, b)] = {
                f"{part}_{what}": [level + scale * rise * (1 + 0.1 * rng.random()) for rise in bump]
                for part, level in (("train", 1.0), ("test", 5.0))
                for what, scale in (("error", 1.0), ("loss", 0.05))
            }
    listed = {"seed": seeds, "seed_b": seeds}
    groups = {
        "models": results.group(
            axes,
            {"seed": seeds, "rank": [1, 2, 3, 4]},
            of_models,
            [*TRAINING_QUANTITIES, *_described("models"), STATUS, REASON],
            along="rank",
        ),
        "pairs": results.group(axes, listed, of_pairs, [*_described("pairs"), STATUS, REASON]),
        "curves": results.group(axes, {**listed, "t": ts}, of_curves, _described("curves"), along="t"),
        "densities": results.group(
            axes,
            {"seed": seeds, "probe": range(PROBES), "node": range(NODES)},
            of_densities,
            NODE_QUANTITIES,
            along="node",
        ),
        "history": results.group(
            axes,
            {"seed": seeds, "epoch": list(range(1, epochs + 1))},
            of_history,
            HISTORY_QUANTITIES,
            along="epoch",
        ),
    }
    return results.tree(groups, {"name": "made up", "spec": json.dumps(SPEC if spec is None else spec)})


def _described(group: str) -> list[Quantity]:
    """All variables that the measures put into a group of the results."""
    return list({each.name: each for step in STEPS for each in step.quantities.get(group, ())}.values())


def single_models() -> dict[str, xr.Dataset]:
    """What the commands on single models write, by formula: with every flaw that a report has to tell."""
    x = np.linspace(-1, 1, 41)
    loss = 1.5 + 4 * x**4 - 2 * x**2  # valleys at +-0.5, the model on the peak between them
    broken = np.where(x > 0.99, np.inf, 1 + x**2)
    attrs = {"guessing": math.log(10), "model": json.dumps({"name": "mlp"}), "data": "digits", "seed": 0}
    attrs |= {"weights": json.dumps([{"file": "m.pt", "sha256": "0"}]), "images": 50, "part": "train"}
    names = [{"name": name, "norm": 3.0, "relative": 0.5} for name in ("first", "<b>second</b> & co")]

    def curve(y: np.ndarray) -> xr.Dataset:
        return xr.Dataset(
            {"loss": (("direction", "lambda"), y[None], {"units": "nat", "long_name": "loss"})},
            coords={"direction": ["first"], "lambda": x},
            attrs=attrs
            | {
                "slice": "curve",
                "directions": json.dumps(names[:1]),
                "center": json.dumps({"loss": float(y[20])}),
            },
        )

    a, b = np.linspace(-1, 1, 9), np.linspace(-1, 1, 7)
    bowl = 1 + 3 * a[:, None] ** 2 + b[None] ** 2
    steps = {"alpha": [0.8, 0.3, 0.0], "beta": [0.5, 0.1, 0.0], "share": [0.3, 0.5, 1.0], "loss": [4.0, 2.0, 1.0]}
    surface = xr.Dataset(
        {"loss": (("alpha", "beta"), bowl, {"units": "nat", "long_name": "loss"})}
        | {f"trajectory_{name}": ("step", values) for name, values in steps.items()}
        | {"trajectory_plane_loss": ("step", [3.2, 1.3, 1.0])},
        coords={"alpha": a, "beta": b},
        attrs=attrs
        | {
            "slice": "surface",
            "directions": json.dumps(names),
            "center": json.dumps({"loss": 1.0}),
            "cosine": 0.0,
            "trajectory_share": 0.4,
        },
    )
    edges = np.linspace(-1, 5, 13)
    share = np.exp(-np.arange(12.0))
    share /= share.sum()
    spectrum = xr.Dataset(
        {
            "eigenvalue": ("rank", [4.5, 2.0], {"units": "nat", "long_name": "largest Hessian eigenvalues"}),
            "eigenvalue_residual": ("rank", [1e-4, 0.3]),
            "eigenvalue_gap": ("rank", [2.5, 0.1]),
            "eigenvalue_converged": ("rank", [1.0, 0.0]),
            "trace": ((), 12.0),
            "trace_se": ((), 0.5),
            "trace_converged": ((), 1.0),
            "density": ("bin", share),
            "density_se": ("bin", share / 5),
        },
        coords={"bin_left": ("bin", edges[:-1]), "bin_right": ("bin", edges[1:])},
        attrs=attrs | {"linear_threshold": 0.1, "eigenvalues_reason": "out of products"},
    )
    return {"spectrum.nc": spectrum, "line.nc": curve(loss), "surface.nc": surface, "mined.nc": curve(broken)}

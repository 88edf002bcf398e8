"""What a figure of a surface needs of its dataset: arrays, scale, names, class."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.colors import LogNorm, Normalize
from numpy.typing import NDArray

from lossatlas.errors import UserError
from lossatlas.figures.models import has_models
from lossatlas.figures.style import plain, with_error
from lossatlas.landscape.surface_shapes import SurfaceShape, surface_shape

Floats = NDArray[np.float64]

_WIDE_RANGE = 30.0  # losses that span more than this have logarithmic levels
_SLIMMEST = 3.0  # planes of more unequal sides are drawn square
_ORTHOGONAL = 0.01  # a larger cosine is told


def shape_of(dataset: xr.Dataset) -> SurfaceShape:
    """The class of the loss at the model; curvatures are per squared length in parameter space."""
    alphas, betas, z = grid_of(dataset, "loss")
    first, second = (float(info.get("norm", 1.0)) for info in _infos(dataset))
    return surface_shape(alphas, betas, z, lengths=(first, second))


def check_surface(dataset: xr.Dataset, quantity: str) -> None:
    """Raise UserError for a dataset without a finite value of that quantity over (alpha, beta)."""
    if quantity not in dataset or set(dataset[quantity].dims) != {"alpha", "beta"}:
        has = ", ".join(f"{name} {array.dims}" for name, array in dataset.data_vars.items())
        raise UserError(
            f"A surface is drawn from {quantity} over (alpha, beta); this dataset has {has or 'none'}. "
            "Give what slice_results.to_dataset makes of a surface."
        )
    if not np.isfinite(dataset[quantity].values).any():
        raise UserError(f"No value of {quantity} on this surface is finite. Choose a smaller extent.")


def grid_of(dataset: xr.Dataset, quantity: str) -> tuple[Floats, Floats, Floats]:
    """Alphas (A,), betas (B,), values (A, B)."""
    z = dataset[quantity].transpose("alpha", "beta").values.astype(np.float64)
    return dataset["alpha"].values.astype(np.float64), dataset["beta"].values.astype(np.float64), z


def norm_of(z: Floats) -> Normalize:
    """Where colours begin and end, and whether they are logarithmic."""
    finite = z[np.isfinite(z)]
    low, high = float(finite.min()), float(finite.max())
    if low > 0 and high > _WIDE_RANGE * low:
        return LogNorm(low, high)
    if low == high:  # a constant has no levels: a band about it
        return Normalize(low - (0.05 * abs(low) or 1.0), high + (0.05 * abs(low) or 1.0))
    return Normalize(low, high)


def height_over_width(dataset: xr.Dataset) -> float:
    """Of the plane in parameter space, so that equal lengths are equal on paper; 1 where it is a sliver."""
    first, second = (float(info.get("relative", 1.0)) for info in _infos(dataset))
    width, height = (float(np.ptp(dataset[name].values)) for name in ("alpha", "beta"))
    sides = (width * first, height * second)
    is_fair = min(sides) > 0 and math.isfinite(max(sides)) and max(sides) <= _SLIMMEST * min(sides)
    return sides[1] / sides[0] if is_fair else 1.0


def _infos(dataset: xr.Dataset) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(dataset.attrs.get("directions", "[{}, {}]"))
    return found


def direction_names(dataset: xr.Dataset) -> list[str]:
    """The names of the two directions."""
    return [str(info.get("name", f"direction {i}")) for i, info in enumerate(_infos(dataset), 1)]


def axis_label(dataset: xr.Dataset, name: str) -> str:
    """What alpha or beta is called on an axis, with the length of a unit."""
    place = 0 if name == "alpha" else 1
    if has_models(dataset):
        a, b, c = dataset["model"].values
        return r"$\ell_2$ distance " + (f"along {a} – {b}" if place == 0 else f"from {a} – {b} to {c}")
    symbol = "α" if place == 0 else "β"
    relative = _infos(dataset)[place].get("relative")
    length = f"\n(1 = {plain(float(relative), 2)} ‖θ‖)" if relative is not None else ""
    return f"{symbol} along {direction_names(dataset)[place]}{length}"


def title_of(dataset: xr.Dataset, quantity: str, path: xr.Dataset | None) -> list[str]:
    """What is to be told of a surface, line by line."""
    parts = []
    if quantity == "loss" and not has_models(dataset) and min(dataset.sizes["alpha"], dataset.sizes["beta"]) >= 3:
        shape = shape_of(dataset)
        if shape.status == "ok":
            signs = (with_error(v, e) for v, e in zip(shape.eigenvalues, shape.stderr, strict=True))
            parts += [shape.kind, f"curvatures {' and '.join(signs)} nat"]
        else:
            parts.append(f"No class: {shape.reason}")
    cosine = float(dataset.attrs.get("cosine", 0.0))
    if abs(cosine) > _ORTHOGONAL:
        parts.append(f"cosine of the directions {plain(cosine, 2)}")
    if path is not None:
        share = float(path.attrs["trajectory_share"])
        parts.append(f"the plane holds {100 * share:.1f}% of the trajectory's variance")
    return parts

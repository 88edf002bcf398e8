"""Maps of neural-network loss landscapes: from one trained model to the phase diagram of a grid of them.

`import lossatlas as la` loads neither torch nor matplotlib; whatever stands below is loaded when it is first used.
The functions work on an `Objective`: a model, data and a loss as a function of the parameters. Families of
functions are modules: `la.paths`, `la.curve_fitting`, `la.similarity`, `la.figures`, `la.results`.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see of `_NAMES` and `_MODULES`
    from lossatlas import figures as figures
    from lossatlas import results as results
    from lossatlas.landscape import curve_fitting as curve_fitting
    from lossatlas.landscape import paths as paths
    from lossatlas.landscape import similarity as similarity
    from lossatlas.landscape.adapters import from_scipy as from_scipy
    from lossatlas.landscape.adapters import from_tensors as from_tensors
    from lossatlas.landscape.angles import against_gaussians as against_gaussians
    from lossatlas.landscape.angles import angle as angle
    from lossatlas.landscape.angles import orthogonalised as orthogonalised
    from lossatlas.landscape.blocks import blocks as blocks
    from lossatlas.landscape.criterion import Criterion as Criterion
    from lossatlas.landscape.criterion import supervised as supervised
    from lossatlas.landscape.density import density as density
    from lossatlas.landscape.directions import difference as difference
    from lossatlas.landscape.directions import eigenvectors as eigenvectors
    from lossatlas.landscape.directions import gaussian as gaussian
    from lossatlas.landscape.directions import given as given
    from lossatlas.landscape.directions import negative_gradient as negative_gradient
    from lossatlas.landscape.expansion import expand as expand
    from lossatlas.landscape.expansion import gaussian_change as gaussian_change
    from lossatlas.landscape.expansion import local_pieces as local_pieces
    from lossatlas.landscape.expansion import sample_changes as sample_changes
    from lossatlas.landscape.expansion import sphere_change as sphere_change
    from lossatlas.landscape.kernels import PlainMathsWarning as PlainMathsWarning
    from lossatlas.landscape.lanczos import eigenpairs as eigenpairs
    from lossatlas.landscape.mining import mine_vvv_basin as mine_vvv_basin
    from lossatlas.landscape.mining import mine_w_peak as mine_w_peak
    from lossatlas.landscape.mining_checks import alignment as alignment
    from lossatlas.landscape.mining_checks import survives as survives
    from lossatlas.landscape.moments import trace_of_square as trace_of_square
    from lossatlas.landscape.objective import Objective as Objective
    from lossatlas.landscape.operators import from_matrix as from_matrix
    from lossatlas.landscape.operators import hessian as hessian
    from lossatlas.landscape.planes import plane as plane
    from lossatlas.landscape.shapes import curve_shape as curve_shape
    from lossatlas.landscape.shapes import gmi as gmi
    from lossatlas.landscape.shapes import mli as mli
    from lossatlas.landscape.slices import line as line
    from lossatlas.landscape.slices import surface as surface
    from lossatlas.landscape.surface_shapes import surface_shape as surface_shape
    from lossatlas.landscape.trace import trace as trace
    from lossatlas.landscape.trajectories import principal_components as principal_components
    from lossatlas.landscape.trajectories import project as project
    from lossatlas.local_results import load as load
    from lossatlas.local_results import save as save
    from lossatlas.local_results import to_dataset as to_dataset

_MODULES = {
    "curve_fitting": "lossatlas.landscape.curve_fitting",
    "figures": "lossatlas.figures",
    "paths": "lossatlas.landscape.paths",
    "results": "lossatlas.results",
    "similarity": "lossatlas.landscape.similarity",
}
_NAMES = {  # and where each is
    "Criterion": "lossatlas.landscape.criterion",
    "Objective": "lossatlas.landscape.objective",
    "PlainMathsWarning": "lossatlas.landscape.kernels",
    "against_gaussians": "lossatlas.landscape.angles",
    "alignment": "lossatlas.landscape.mining_checks",
    "angle": "lossatlas.landscape.angles",
    "blocks": "lossatlas.landscape.blocks",
    "curve_shape": "lossatlas.landscape.shapes",
    "density": "lossatlas.landscape.density",
    "difference": "lossatlas.landscape.directions",
    "eigenpairs": "lossatlas.landscape.lanczos",
    "eigenvectors": "lossatlas.landscape.directions",
    "expand": "lossatlas.landscape.expansion",
    "from_matrix": "lossatlas.landscape.operators",
    "from_scipy": "lossatlas.landscape.adapters",
    "from_tensors": "lossatlas.landscape.adapters",
    "gaussian": "lossatlas.landscape.directions",
    "gaussian_change": "lossatlas.landscape.expansion",
    "given": "lossatlas.landscape.directions",
    "gmi": "lossatlas.landscape.shapes",
    "hessian": "lossatlas.landscape.operators",
    "line": "lossatlas.landscape.slices",
    "load": "lossatlas.local_results",
    "local_pieces": "lossatlas.landscape.expansion",
    "mine_vvv_basin": "lossatlas.landscape.mining",
    "mine_w_peak": "lossatlas.landscape.mining",
    "mli": "lossatlas.landscape.shapes",
    "negative_gradient": "lossatlas.landscape.directions",
    "orthogonalised": "lossatlas.landscape.angles",
    "plane": "lossatlas.landscape.planes",
    "principal_components": "lossatlas.landscape.trajectories",
    "project": "lossatlas.landscape.trajectories",
    "sample_changes": "lossatlas.landscape.expansion",
    "save": "lossatlas.local_results",
    "sphere_change": "lossatlas.landscape.expansion",
    "supervised": "lossatlas.landscape.criterion",
    "surface": "lossatlas.landscape.slices",
    "surface_shape": "lossatlas.landscape.surface_shapes",
    "survives": "lossatlas.landscape.mining_checks",
    "to_dataset": "lossatlas.local_results",
    "trace": "lossatlas.landscape.trace",
    "trace_of_square": "lossatlas.landscape.moments",
}

__all__ = sorted([*_MODULES, *_NAMES])
__version__ = version("lossatlas")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        found = importlib.import_module(_MODULES[name])
    elif name in _NAMES:
        found = getattr(importlib.import_module(_NAMES[name]), name)
    else:
        raise AttributeError(f"module 'lossatlas' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

"""What to run: a spec read from TOML into frozen, validated, hashable data. Builds nothing.

All problems of a spec are reported at once, each with its key, what was given and what is allowed.
"""

from lossatlas.specs.reading import overridden, parse, read, validate, variants
from lossatlas.specs.scaling import scaled
from lossatlas.specs.schema import Data, EarlyStop, Model, Optimizer, Schedule, Spec, Task, Train
from lossatlas.specs.site import slurm_settings
from lossatlas.specs.slurm import Slurm

__all__ = [
    "Data",
    "EarlyStop",
    "Model",
    "Optimizer",
    "Schedule",
    "Slurm",
    "Spec",
    "Task",
    "Train",
    "overridden",
    "parse",
    "read",
    "scaled",
    "slurm_settings",
    "validate",
    "variants",
]

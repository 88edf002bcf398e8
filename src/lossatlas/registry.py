"""Names of the data sets, models and losses that come with lossatlas, and `module:function` for everybody's own.

Holds names only: the code behind a name is imported when it is used, so this module loads neither torch nor
scikit-learn.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lossatlas.errors import UserError


@dataclass(frozen=True)
class Facts:
    """The sizes of a data set, so that a run can be planned before the data are at hand."""

    n_train: int
    n_test: int
    input_shape: tuple[int, ...]
    classes: int


@dataclass(frozen=True)
class Entry:
    """Where the code of a name is, what it is, and its options with their defaults (None: must be given)."""

    target: str
    about: str
    options: Mapping[str, int | None] = field(default_factory=dict)
    facts: Facts | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)  # further arguments that make the name what it is


DATA = {
    "digits": Entry(
        "lossatlas.tasks.data:digits",
        "1,797 handwritten digits of 8 x 8 pixels, inside scikit-learn",
        facts=Facts(1437, 360, (1, 8, 8), 10),
    ),
    "cifar10": Entry(
        "lossatlas.tasks.data:cifar10",
        "CIFAR-10: 60,000 colour images of 32 x 32 pixels",
        facts=Facts(50_000, 10_000, (3, 32, 32), 10),
    ),
}

MODELS = {
    "mlp": Entry(
        "lossatlas.tasks.models:mlp",
        "fully connected ReLU network with `depth` hidden layers of `width` units",
        {"width": None, "depth": 1},
    ),
    "cnn": Entry(
        "lossatlas.tasks.models:cnn",
        "two 3 x 3 convolutions with BatchNorm, `width` and 2 `width` channels, for small images",
        {"width": None},
    ),
    "resnet18": Entry(
        "lossatlas.tasks.models:resnet18",
        "ResNet18 for 32 x 32 images with channels k, 2k, 4k, 8k, where k is `width`",
        {"width": None},
    ),
}
MODELS |= {
    f"resnet{depth}{'' if skip else '-noskip'}": Entry(
        "lossatlas.tasks.models:cifar_resnet",
        f"ResNet{depth} for 32 x 32 images{'' if skip else ' without shortcuts'}, channels k, 2k, 4k, k = `width`",
        {"width": 16},
        fixed={"depth": depth, "skip": skip},
    )
    for depth in (32, 56, 110)
    for skip in (True, False)
}

LOSSES = {
    "cross_entropy": Entry("lossatlas.tasks.losses:cross_entropy", "mean cross entropy, and 0-1 error in percent")
}

_CUSTOM = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


def is_custom(name: str) -> bool:
    """Whether the name has the form `module:function`."""
    return bool(_CUSTOM.match(name))


def resolve(name: str, table: Mapping[str, Entry], kind: str) -> Callable[..., Any]:
    """The function behind a name of the table or behind `module:function`; raises UserError if there is none."""
    target = table[name].target if name in table else name
    if not is_custom(target):
        raise UserError(
            f"{kind} {name!r} is unknown. Allowed are {', '.join(table)}, or your own as module:function."
        )
    module_name, function_name = target.split(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module of the user's may raise anything
        raise UserError(
            f"{kind} {name!r}: the module {module_name} cannot be imported ({type(error).__name__}: {error}). "
            "Install it, start lossatlas in the folder where it lies, or mend it."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"{kind} {name!r}: the module {module_name} has no function {function_name}.")
    return function  # type: ignore[no-any-return]


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """Turn whatever somebody's own code raises into a UserError that says whose it is."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} raised {type(error).__name__}: {error}. Mend it, or its options.") from error

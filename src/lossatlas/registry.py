"""Names of the data sets, models and losses that come with lossatlas, and `module:function` for everybody's own.

Holds names only: the code behind a name is imported when it is used, so this module loads neither torch nor
scikit-learn.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from lossatlas.errors import UserError


@dataclass(frozen=True)
class Facts:
    """The sizes of a data set, so that a run can be planned before the data are at hand."""

    n_train: int
    n_test: int
    input_shape: tuple[int, ...]
    classes: int
    tokens: tuple[int, int] | None = None  # of sequences: usual lengths of a source and a target, not the longest

    def limited(self, most: int | None) -> Facts:
        """Those of the first samples of each part, `most` at most (None: all)."""
        if most is None:
            return self
        return replace(self, n_train=min(self.n_train, most), n_test=min(self.n_test, most))


@dataclass(frozen=True)
class Entry:
    """Where the code of a name is, what it is, and its options with their defaults (None: must be given).

    Options are integers from 1 on, or fractions from 0 to 1 where the default is floating-point.
    """

    target: str
    about: str
    options: Mapping[str, float | None] = field(default_factory=dict)
    facts: Facts | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)  # further arguments that make the name what it is
    text: bool = False  # sentences and their translations, or what takes them
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # options of words; the default first


DATA = {
    "digits": Entry(
        "lossatlas.tasks.data:digits",
        "1,797 handwritten digits of 8 x 8 pixels, inside scikit-learn",
        facts=Facts(1437, 360, (1, 8, 8), 10),
    ),
    "cifar10": Entry(
        "lossatlas.tasks.images:cifar10",
        "CIFAR-10: 60,000 colour images of 32 x 32 pixels",
        facts=Facts(50_000, 10_000, (3, 32, 32), 10),
    ),
    "cifar100": Entry(
        "lossatlas.tasks.images:cifar100",
        "CIFAR-100, fine labels: 60,000 colour images of 32 x 32 pixels",
        facts=Facts(50_000, 10_000, (3, 32, 32), 100),
    ),
    "svhn": Entry(
        "lossatlas.tasks.images:svhn",
        "SVHN: 99,289 house numbers' digits of 32 x 32 pixels",
        facts=Facts(73_257, 26_032, (3, 32, 32), 10),
    ),
    "cub200": Entry(
        "lossatlas.tasks.images:cub200",
        "CUB-200-2011: 11,788 photographs of birds, cut to 224 x 224 pixels",
        facts=Facts(5_994, 5_794, (3, 224, 224), 200),
    ),
    "imagenet": Entry(
        "lossatlas.tasks.images:imagenet",
        "ImageNet (ILSVRC 2012): photographs cut to 224 x 224 pixels; give data.limit",
        facts=Facts(1_281_167, 50_000, (3, 224, 224), 1000),
    ),
    "multi30k": Entry(
        "lossatlas.tasks.text:multi30k",
        "Multi30k: 31,000 descriptions of images, German to English",
        facts=Facts(29_000, 1_000, (65,), 4000, (37, 33)),
        text=True,
    ),
    "iwslt": Entry(
        "lossatlas.tasks.text:iwslt",
        "IWSLT: sentences of TED talks, German to English",
        facts=Facts(206_112, 8_079, (101,), 10_000, (27, 26)),  # of IWSLT 2017; lengths about
        text=True,
    ),
}

MODELS = {
    "mlp": Entry(
        "lossatlas.tasks.models:mlp",
        "fully connected ReLU network with `depth` hidden layers of `width` units",
        {"width": None, "depth": 1},
    ),
    "cnn": Entry(
        "lossatlas.tasks.convnets:cnn",
        "two 3 x 3 convolutions with BatchNorm, `width` and 2 `width` channels, for small images",
        {"width": None},
    ),
    "transformer": Entry(
        "lossatlas.tasks.transformer:transformer",
        "encoder-decoder Transformer for translation with `layers` layers a side, d = `embed_dim`",
        {"embed_dim": None, "layers": 6, "heads": 8, "dropout": 0.0},
        text=True,
    ),
}
MODELS |= {
    f"resnet{depth}": Entry(
        "lossatlas.tasks.resnets:resnet",
        f"ResNet{depth} for 32 x 32 images with channels k, 2k, 4k, 8k{factor}, where k is `width`",
        {"width": None},
        fixed={"depth": depth},
    )
    for depth, factor in ((18, ""), (34, ""), (50, " times 4"), (101, " times 4"), (152, " times 4"))
}
MODELS["vgg11"] = Entry(
    "lossatlas.tasks.convnets:vgg11",
    "VGG11 with BatchNorm for 32 x 32 images, channels k, 2k, 4k, 4k, 8k, 8k, 8k, 8k, where k is `width`",
    {"width": None},
)
MODELS |= {
    f"resnet{depth}{'' if skip else '-noskip'}": Entry(
        "lossatlas.tasks.resnets:cifar_resnet",
        f"ResNet{depth} for 32 x 32 images{'' if skip else ' without shortcuts'}, channels k, 2k, 4k, k = `width`",
        {"width": 16},
        fixed={"depth": depth, "skip": skip},
        choices={"shortcut": ("pad", "projection")} if skip else {},
    )
    for depth in (32, 56, 110)
    for skip in (True, False)
}

LOSSES = {
    "cross_entropy": Entry("lossatlas.tasks.losses:cross_entropy", "mean cross entropy, and 0-1 error in percent"),
    "translation": Entry(
        "lossatlas.tasks.losses:translation",
        "mean cross entropy of the target tokens, and their 0-1 error in percent",
        text=True,
    ),
}

TORCHVISION, HF = "torchvision:", "hf:"  # before the names of other libraries' models

_CUSTOM = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


def is_custom(name: str) -> bool:
    """Whether the name has the form `module:function`."""
    return bool(_CUSTOM.match(name))


def is_library(name: str) -> bool:
    """Whether a model is another library's: `torchvision:NAME`, or `hf:PATH`, a folder of Transformers."""
    return name.startswith((TORCHVISION, HF)) and not name.endswith(":")


def model_content(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What determines a model, as its key holds it.

    Numbers are spelled out, so that a key does not hang on their default; words are left out where they are the
    default, so that an option that is added later changes no key. A checkpoint with a fingerprint is named by it
    and not by its place.
    """
    entry = MODELS.get(name)
    if entry is None:
        return {"name": HF if name.startswith(HF) and "fingerprint" in options else name, **options}
    numbers = {option: default for option, default in entry.options.items() if default is not None}
    words = {option: allowed[0] for option, allowed in entry.choices.items()}
    content: dict[str, Any] = {"name": name}
    for option, value in {**numbers, **options}.items():
        if words.get(option) != value:
            content[option] = float(value) if isinstance(numbers.get(option), float) else value  # 0 is 0.0
    return content


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


def extra(module: str, who_needs: str, name: str) -> Any:
    """A module of the extra `name`; raises UserError, which begins with `who_needs`, where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{who_needs} the extra: pip install 'lossatlas[{name}]'.") from error


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """Turn whatever somebody's own code raises into a UserError that says whose it is."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} raised {type(error).__name__}: {error}. Mend it, or its options.") from error

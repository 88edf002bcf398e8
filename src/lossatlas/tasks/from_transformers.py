"""Classifiers of Hugging Face Transformers from a local folder: config.json and safetensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lossatlas import registry
from lossatlas.errors import FileError, UserError
from lossatlas.settings import content_key
from lossatlas.tasks.weights import counted

CONTENT = ("config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json")  # all that is read


def builder(name: str) -> Callable[..., nn.Module]:
    """The builder of `hf:PATH`; raises UserError where Transformers is missing, FileError without a checkpoint."""
    library = _library(name)
    folder = _folder(name)

    def built(
        *,
        input_shape: Sequence[int],  # noqa: ARG001
        classes: int,
        fingerprint: str | None = None,
    ) -> nn.Module:
        """The model, which maps images (n, c, h, w) or token ids (n, length) to logits (n, classes).

        Names of parameters are those of Transformers. A head that is missing, or for another number of classes, is
        initialised anew; anything else that is missing is a FileError, and so is another `fingerprint`.
        """
        if fingerprint is not None:
            _check(folder, fingerprint)
        with _quiet(library), registry.blamed(f"the checkpoint {folder}"), _importable(name):
            return _loaded(library, folder, classes)

    return built


def pinned(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the fingerprint of the folder; raises FileError if they hold another one."""
    folder = _folder(name)
    if "fingerprint" in options:
        _check(folder, options["fingerprint"])
        return dict(options)
    return {**options, "fingerprint": fingerprint_of(folder)}


def fingerprint_of(folder: Path) -> str:
    """128 bits of SHA-256 over the names and contents of the files that a model is loaded from."""
    sums = {}
    for file in sorted(file for pattern in CONTENT for file in folder.glob(pattern)):
        with file.open("rb") as content:
            sums[file.name] = hashlib.file_digest(content, "sha256").hexdigest()
    return content_key(sums)


def _library(name: str) -> Any:
    return registry.extra("transformers", f"model {name!r} needs", "hf")


@contextmanager
def _importable(name: str) -> Iterator[None]:
    """Say why a part of Transformers cannot be imported: it imports them late, and hides the reason."""
    try:
        yield
    except ImportError as error:
        cause = error.__cause__ or error
        raise UserError(
            f"model {name!r}: Transformers cannot import what it needs for it ({type(cause).__name__}: {cause}). "
            "Mend that library, or remove it; a torchvision for another build of PyTorch is a usual reason."
        ) from error


def _folder(name: str) -> Path:
    folder = Path(name.removeprefix(registry.HF)).expanduser()
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise FileError(
            f"model {name!r}: {folder} holds no checkpoint of Transformers, a folder with config.json and "
            "*.safetensors. Write one with save_pretrained(FOLDER), or fetch one from the hub: hf download NAME "
            "--local-dir FOLDER."
        )
    return folder


def _check(folder: Path, expected: str) -> None:
    found = fingerprint_of(folder)
    if found != expected:
        raise FileError(
            f"The checkpoint {folder} is another one than the spec names: its fingerprint is {found}, the spec "
            f"has {expected}. Restore it, or take the fingerprint out of the spec and choose another folder with "
            "--out."
        )


def _loaded(library: Any, folder: Path, classes: int) -> nn.Module:
    config = library.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    named = next(iter(config.architectures or ()), "")
    auto, takes = _kind(library, config, named, folder)
    has_head = config.num_labels == classes
    if not has_head:
        config.num_labels = classes
    if torch.get_default_device().type == "meta":  # only the shapes are asked for
        model: Any = auto.from_config(config)
    else:
        model, report = auto.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,  # whatever it is stored in: curvature needs it
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        _check_complete(model, report, named, has_head, folder)
    # Only now, since Transformers looks at the class while it loads. And a class of its own, since a module around
    # the model would put a prefix before all names: so a state_dict fits here and in Transformers.
    model.__class__ = type(type(model).__name__, (takes, type(model)), {})
    return model.train()  # type: ignore[no-any-return]


def _kind(library: Any, config: Any, named: str, folder: Path) -> tuple[Any, type[nn.Module]]:
    """What loads it, and the inputs that it takes: as its architecture says, else as its kind of model allows."""
    image = library.AutoModelForImageClassification, _OfImages
    sequence = library.AutoModelForSequenceClassification, _OfTokens
    if named.endswith("ForImageClassification"):
        return image
    if named.endswith("ForSequenceClassification"):
        return sequence
    if type(config) in library.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return image
    if type(config) in library.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return sequence
    raise UserError(
        f"The checkpoint {folder} is a {named or config.model_type}, of which Transformers makes no classifier of "
        "images or sequences. Give one that ends in ForImageClassification or ForSequenceClassification."
    )


def _check_complete(model: Any, report: Mapping[str, Any], named: str, has_head: bool, folder: Path) -> None:
    """Refuse a checkpoint that lacks, or has too many, weights of anything but a head that is to be replaced.

    Poolers count as heads: checkpoints of language models have none.
    """
    body = f"{model.base_model_prefix}."
    is_whole = has_head and named == type(model).__name__
    is_body = named == type(model.base_model).__name__  # its file knows no names of heads, and no prefix

    def counts(name: str, *, is_its_own: bool = False) -> bool:
        return is_whole or ("pooler." not in name and (name.startswith(body) or is_its_own))

    wrong = {
        "missing": [name for name in report["missing_keys"] if counts(name)],
        "of another shape": [name for name, *_ in report["mismatched_keys"] if counts(name)],
        "not of this model": [name for name in report["unexpected_keys"] if counts(name, is_its_own=is_body)],
    }
    if problems := counted({what: sorted(names) for what, names in wrong.items()}):
        raise FileError(
            f"The checkpoint {folder} does not fit its own config.json: of its weights {problems}. "
            "Fetch or write it again."
        )


class _OfImages(nn.Module):
    """Makes a classifier of Transformers take images (n, c, h, w) and return its logits alone."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(pixel_values=inputs, return_dict=True).logits  # type: ignore[no-any-return]


class _OfTokens(nn.Module):
    """Makes a classifier of Transformers take token ids (n, length) and return its logits alone.

    Samples may hold ids as whole floating-point numbers. What equals the config's padding is masked.
    """

    config: Any

    def forward(self, inputs: Tensor) -> Tensor:
        ids = inputs.long()
        if inputs.dim() != 2 or (inputs.is_floating_point() and not torch.equal(ids.to(inputs.dtype), inputs)):
            raise UserError(
                f"This model takes token ids, whole numbers of shape (n, length), and was given {inputs.dtype} of "
                f"shape {tuple(inputs.shape)}. Hand over what the tokeniser gives, without mean and scale."
            )
        padding = getattr(self.config, "pad_token_id", None)
        mask = None if padding is None else (ids != padding).long()
        return super().forward(input_ids=ids, attention_mask=mask, return_dict=True).logits  # type: ignore[no-any-return]


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Without Transformers' bars and remarks about heads; what they say is checked here."""
    log = library.utils.logging
    verbosity, had_bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if had_bar:
            log.enable_progress_bar()

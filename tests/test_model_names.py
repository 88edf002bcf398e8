"""Names and options of models: what specs may say, what keys hold, models of torchvision and Transformers."""

import hashlib
import importlib
import json
import sys
import tomllib
import urllib.error
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

import libraries
from command import TINY
from lossatlas import registry, specs
from lossatlas.cli.running import prepare
from lossatlas.errors import FileError, SpecError, UserError
from lossatlas.landscape.criterion import supervised
from lossatlas.landscape.kernels import PlainMathsWarning
from lossatlas.landscape.objective import Objective
from lossatlas.landscape.operators import hessian
from lossatlas.specs.checks import option_problems
from lossatlas.sweep.plan import Plan, Step
from lossatlas.sweep.worker import Worker
from lossatlas.tasks import from_torchvision, from_transformers, models, weights

RAW = tomllib.loads(TINY.read_text())
MOBILE = "torchvision:mobilenet_v2"


def spec(load: dict[str, list[int]] | None = None, **model: Any) -> specs.Spec:
    """The tiny spec with another model."""
    changes = {"load": load or {"n_train": [100, 200]}}
    task = {**RAW["task"], "data": {"name": "digits"}, "model": model}
    return specs.validate({**RAW, **changes, "task": task}, "tiny")


def problems(load: dict[str, list[int]] | None = None, **model: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        spec(load, **model)
    return caught.value.problems


def in_key(given: specs.Spec) -> dict[str, Any]:
    """What the key of the first training holds of the model."""
    content: dict[str, Any] = next(iter(Plan(given, "f" * 32))).steps[0].content["model"]
    return content


# Options


def test_words_are_checked_as_strictly_as_numbers() -> None:
    assert spec(name="resnet32", shortcut="projection").task.model.options == {"shortcut": "projection"}
    (problem,) = problems(name="resnet32", shortcut="projektion")
    assert problem == (
        "task.model.shortcut: 'projektion' was given; allowed are pad, projection. Did you mean projection?"
    )
    assert problems(name="resnet32", shortcut=3) == [
        "task.model.shortcut: 3 was given; allowed are pad, projection"
    ]
    assert problems(name="resnet32-noskip", shortcut="pad") == [
        "task.model.shortcut: resnet32-noskip has no such option; allowed are width"
    ]
    assert problems(name="resnet32", shortcuts="pad") == [
        "task.model.shortcuts: resnet32 has no such option; allowed are width, shortcut. Did you mean shortcut?"
    ]


def test_options_of_other_libraries_are_checked_as_far_as_they_are_known() -> None:
    assert spec(name=MOBILE, weights="DEFAULT", dropout=0.5).task.model.name == MOBILE
    assert problems(name=MOBILE, weights=True)[0].startswith("task.model.weights: True was given; allowed are DEF")
    assert spec(name="hf:../a folder/vit-16.1").task.model.name == "hf:../a folder/vit-16.1"
    assert problems(name="hf:vit", width=3) == [
        "task.model.width: a checkpoint has no such option; allowed is fingerprint"
    ]
    assert problems(name="hf:vit", fingerprint="F00")[0].endswith("allowed are 32 hexadecimal digits")
    assert problems({"width": [2, 4]}, name="hf:vit") == [
        "load.width: hf:vit has no option width; its size is that of the checkpoint"
    ]
    assert option_problems("my:model", {"anything": object()}, "") == []


@pytest.mark.parametrize("name", ["hf:", "torchvision:", "hf", "/hf:vit"])
def test_names_that_are_none_are_refused_with_what_is_allowed(name: str) -> None:
    (problem,) = problems(name=name)
    assert "vgg11" in problem
    assert "torchvision:NAME, hf:PATH, or your own as module:function" in problem


def test_regression_takes_no_classifier_of_a_library() -> None:
    for name in (MOBILE, "hf:vit", "hf:/vit"):
        with pytest.raises(UserError, match="is a classifier, and the targets of the data are no classes"):
            models.build(name, {}, input_shape=(3, 8, 8), classes=None, seed=0)


def test_a_fractional_default_makes_a_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.MODELS, "lossy", registry.Entry("a:b", "", {"width": None, "dropout": 0.1}))
    assert option_problems("lossy", {"width": 3, "dropout": 0.5}, "") == []
    for wrong in (1.5, -0.1, True, "0.1"):
        (problem,) = option_problems("lossy", {"dropout": wrong}, "")
        assert problem == f"dropout: {wrong!r} was given; allowed are numbers from 0 to 1"
    assert option_problems("lossy", {"width": 0.5}, "")[0].endswith("allowed are integers from 1 on")
    ones = [json.dumps(registry.model_content("lossy", {"dropout": one})) for one in (1, 1.0)]
    assert ones == ['{"name": "lossy", "dropout": 1.0}'] * 2
    assert registry.model_content("lossy", {"width": 2}) == {"name": "lossy", "width": 2, "dropout": 0.1}


# Keys


def test_an_option_that_came_later_changes_no_key() -> None:
    assert in_key(spec(name="resnet32")) == {"name": "resnet32", "width": 16}
    assert in_key(spec(name="resnet32", shortcut="pad")) == {"name": "resnet32", "width": 16}
    assert in_key(spec(name="resnet32", shortcut="projection", width=2)) == {
        "name": "resnet32",
        "width": 2,
        "shortcut": "projection",
    }


def test_a_key_holds_the_content_of_a_checkpoint_and_not_its_place() -> None:
    one, two = "1" * 32, "2" * 32
    here, there = (in_key(spec(name=f"hf:{path}", fingerprint=one)) for path in ("a/b", "/c"))
    assert here == there == {"name": "hf:", "fingerprint": one}
    assert in_key(spec(name="hf:a/b", fingerprint=two)) != here
    assert in_key(spec(name="hf:a/b")) == {"name": "hf:a/b"}
    assert in_key(spec(name=MOBILE, weights="IMAGENET1K_V1")) == {"name": MOBILE, "weights": "IMAGENET1K_V1"}


def test_models_of_ones_own_stay_as_they_are() -> None:
    given = spec(name="my:model", size=3)
    assert models.pinned(given) is given
    assert in_key(given) == {"name": "my:model", "size": 3}


# torchvision


def built(name: str, classes: int = 10, seed: int = 0, **options: Any) -> nn.Module:
    return models.build(name, options, input_shape=(3, 32, 32), classes=classes, seed=seed)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.fixture
def torchvision() -> Any:
    return libraries.torchvision_models()


def test_torchvision_models_are_built_by_name(torchvision: Any) -> None:
    model = built(MOBILE)
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    again = built(MOBILE)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(("short", "features"), [("mobilenet_v2", 1280), ("resnext101_32x8d", 2048)])
def test_torchvision_models_have_the_parameters_that_torchvision_tells(
    torchvision: Any, short: str, features: int
) -> None:
    told = torchvision.get_model_weights(short).DEFAULT.meta["num_params"]
    with torch.device("meta"):
        thousand, fewer = (built(f"torchvision:{short}", classes=classes) for classes in (1000, 200))
        its = torchvision.get_model(short, weights=None, num_classes=200)
    assert parameters(thousand) == told
    assert parameters(fewer) == parameters(its) == told - 800 * (features + 1)
    assert {n: p.shape for n, p in fewer.named_parameters()} == {n: p.shape for n, p in its.named_parameters()}


def test_unknown_torchvision_models_are_refused(torchvision: Any) -> None:
    with pytest.raises(UserError, match=r"no classifier 'mobilnet_v2'.*Did you mean mobilenet_v2"):
        built("torchvision:mobilnet_v2")
    with pytest.raises(UserError, match=r"mobilenet_v2.*colour"):
        built(MOBILE, colour=3)


def test_a_missing_torchvision_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(UserError, match=r"lossatlas\[vision\]"):
        built(MOBILE)


def test_a_torchvision_of_another_build_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", fails)
    with pytest.raises(UserError, match="does not fit the PyTorch"):
        built(MOBILE)


@pytest.fixture
def published(torchvision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A model whose weights stand where torchvision keeps downloaded ones; nothing can be downloaded."""

    def refuse(*_args: Any, **_options: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model: nn.Module = torchvision.mobilenet_v2(weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean += 0.1
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(model.state_dict(), folder / "new.pth")
    sha256 = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()
    (folder / "new.pth").rename(folder / f"mobilenet_v2-{sha256[:8]}.pth")
    member = torchvision.MobileNet_V2_Weights.IMAGENET1K_V2
    monkeypatch.setattr(member.value, "url", f"https://example.org/models/mobilenet_v2-{sha256[:8]}.pth")
    return model


@pytest.mark.parametrize("name", ["DEFAULT", "IMAGENET1K_V2", "MobileNet_V2_Weights.IMAGENET1K_V2"])
def test_published_weights_are_loaded(published: nn.Module, name: str) -> None:
    model = built(MOBILE, classes=1000, weights=name)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in published.state_dict().items())


def test_only_the_head_is_new_where_the_classes_are_others(published: nn.Module) -> None:
    first, again, other = (built(MOBILE, weights="DEFAULT", seed=seed).state_dict() for seed in (0, 0, 1))
    kept = published.state_dict()
    assert {key for key in first if not torch.equal(first[key], other[key])} == {"classifier.1.weight"}
    new = {"classifier.1.weight", "classifier.1.bias"}  # which starts at zero for all seeds
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert all(torch.equal(first[key], kept[key]) for key in kept if key not in new)
    assert first["classifier.1.weight"].shape == (10, 1280)
    scratch = built(MOBILE).state_dict()
    assert all(torch.equal(first[key], scratch[key]) for key in new)


def test_what_default_stands_for_is_pinned(torchvision: Any) -> None:
    pinned = models.pinned(spec(name=MOBILE, weights="DEFAULT", dropout=0.1))
    assert pinned.task.model.options == {"weights": "IMAGENET1K_V2", "dropout": 0.1}
    assert models.pinned(pinned) == pinned
    full = models.pinned(spec(name=MOBILE, weights="MobileNet_V2_Weights.IMAGENET1K_V1"))
    assert full.task.model.options["weights"] == "IMAGENET1K_V1"
    scratch = spec(name=MOBILE)
    assert models.pinned(scratch) == scratch


def test_unknown_weights_are_refused_with_those_that_there_are(torchvision: Any) -> None:
    with pytest.raises(
        UserError, match=r"no weights 'imagenet'; allowed are IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"
    ):
        built(MOBILE, weights="imagenet")
    with pytest.raises(UserError, match="no weights 'imagenet'"):
        models.pinned(spec(name=MOBILE, weights="imagenet"))


def test_weights_that_cannot_be_had_say_where_they_go(published: nn.Module, tmp_path: Path) -> None:
    where = tmp_path / "hub" / "checkpoints"
    with pytest.raises(UserError, match=f"cannot be downloaded.*no route.*mobilenet_v2-b0353104.pth.*{where}"):
        built(MOBILE, weights="IMAGENET1K_V1")


def test_damaged_weights_are_named(published: nn.Module, tmp_path: Path) -> None:
    (file,) = (tmp_path / "hub" / "checkpoints").iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(FileError, match=f"{file} is damaged.*Remove it"):
        built(MOBILE, weights="DEFAULT")


def test_shapes_need_no_weights(torchvision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(from_torchvision, "_published", None)
    with torch.device("meta"):
        assert built(MOBILE, weights="DEFAULT").get_parameter("classifier.1.bias").device.type == "meta"


# Transformers

Make = Callable[..., Path]
TINY_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 8,
}
TINY_BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 30,
    "max_position_embeddings": 12,
}


@pytest.fixture
def transformers() -> Any:
    return libraries.transformers()


@pytest.fixture
def saved(transformers: Any, tmp_path: Path) -> Make:
    """Writes a small checkpoint of an architecture into a folder."""

    def save(architecture: str, folder: str = "checkpoint", seed: int = 5, **settings: Any) -> Path:
        cls = getattr(transformers, architecture)
        shape = TINY_VIT if architecture.startswith("ViT") else TINY_BERT
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(cls.config_class(**{**shape, **settings}))
        model.save_pretrained(tmp_path / folder)
        return tmp_path / folder

    return save


IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
IDS = torch.tensor([[1, 7, 29, 3], [2, 4, 0, 0]])  # 0 is Bert's padding


def vit(folder: Path, classes: int = 4, seed: int = 0, **options: Any) -> nn.Module:
    return models.build(f"hf:{folder}", options, input_shape=(3, 16, 16), classes=classes, seed=seed)


def test_a_classifier_of_images_gives_the_logits_of_transformers(transformers: Any, saved: Make) -> None:
    folder = saved("ViTForImageClassification", num_labels=4)
    model = vit(folder)
    assert model.training
    its = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.equal(model.eval()(IMAGES), its(pixel_values=IMAGES).logits)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in its.named_parameters()}
    assert all(p.requires_grad for p in model.parameters())


def test_a_state_dict_of_transformers_is_read_as_it_is(transformers: Any, saved: Make, tmp_path: Path) -> None:
    one, other = (saved("ViTForImageClassification", str(k), seed=k, num_labels=4) for k in (1, 2))
    its = transformers.AutoModelForImageClassification.from_pretrained(other)
    torch.save(its.state_dict(), tmp_path / "other.pt")
    model = vit(one)
    weights.load(model, weights.read(tmp_path / "other.pt"))
    with torch.no_grad():
        assert torch.equal(model.eval()(IMAGES), its.eval()(pixel_values=IMAGES).logits)


def test_a_classifier_of_sequences_masks_the_padding(transformers: Any, saved: Make) -> None:
    folder = saved("BertForSequenceClassification", num_labels=3)
    model = models.build(f"hf:{folder}", {}, input_shape=(4,), classes=3, seed=0).eval()
    its = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = its(input_ids=IDS, attention_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])).logits
        assert torch.equal(model(IDS), expected)
        assert torch.equal(model(IDS.float()), expected)  # as samples keep them
        without_padding = model(IDS[1:, :2])
        torch.testing.assert_close(without_padding, expected[1:])
    for wrong in (IDS + 0.5, IDS[0]):
        with pytest.raises(UserError, match="takes token ids, whole numbers of shape"):
            model(wrong)


@pytest.mark.parametrize("start", ["ViTForImageClassification", "ViTModel"])
def test_a_new_head_is_made_for_other_classes_and_for_a_body_alone(
    transformers: Any, saved: Make, start: str
) -> None:
    settings = {"num_labels": 4} if start.endswith("Classification") else {}
    folder = saved(start, **settings)
    first, again, other = (vit(folder, classes=7, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    differing = {key for key in first if not torch.equal(first[key], other[key])}
    assert differing == {"classifier.weight"}  # its bias starts at zero
    assert first["classifier.weight"].shape == (7, 16)
    kept = getattr(transformers, start).from_pretrained(folder).base_model.state_dict()
    kept = {f"vit.{key}": tensor for key, tensor in kept.items() if "pooler" not in key}
    assert {*first} == {*kept, "classifier.weight", "classifier.bias"}
    assert all(torch.equal(first[key], tensor) for key, tensor in kept.items())


def test_a_language_model_becomes_a_classifier(saved: Make) -> None:
    folder = saved("BertForMaskedLM")
    model = models.build(f"hf:{folder}", {}, input_shape=(4,), classes=3, seed=0)
    assert model(IDS).shape == (2, 3)


def test_files_of_old_versions_are_read(saved: Make) -> None:
    folder = saved("BertForSequenceClassification", num_labels=3)

    def age(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[old] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = torch.arange(12)[None]

    before = models.build(f"hf:{folder}", {}, input_shape=(4,), classes=3, seed=0).eval()
    edit(folder, age)
    after = models.build(f"hf:{folder}", {}, input_shape=(4,), classes=3, seed=0).eval()
    with torch.no_grad():
        assert torch.equal(after(IDS), before(IDS))


def test_halves_are_loaded_as_single_precision(transformers: Any, saved: Make, tmp_path: Path) -> None:
    folder = saved("ViTForImageClassification", num_labels=4)
    half = transformers.AutoModelForImageClassification.from_pretrained(folder).half()
    half.save_pretrained(tmp_path / "half")
    model = vit(tmp_path / "half")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    weight = half.get_parameter("classifier.weight")
    assert torch.equal(model.get_parameter("classifier.weight"), weight.float())


def remove(tensors: dict[str, torch.Tensor], end: str) -> None:
    (name,) = (name for name in tensors if name.endswith(end))
    del tensors[name]


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("classes", [4, 7])
def test_a_checkpoint_that_lacks_weights_of_its_body_is_refused(saved: Make, classes: int) -> None:
    folder = saved("ViTForImageClassification", num_labels=4)
    edit(folder, lambda tensors: remove(tensors, "1.layernorm_before.weight"))
    with pytest.raises(FileError, match=r"1 missing \(vit\..*layernorm_before"):
        vit(folder, classes=classes)


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [("num_hidden_layers", 1, "not of this model"), ("intermediate_size", 20, "of another shape")],
)
@pytest.mark.parametrize(
    ("architecture", "classes"),
    [("ViTForImageClassification", 2), ("ViTForImageClassification", 7), ("ViTModel", 7)],
)
def test_a_checkpoint_that_does_not_fit_its_config_is_refused(
    saved: Make, setting: str, value: int, problem: str, architecture: str, classes: int
) -> None:
    folder = saved(architecture)  # two labels where there is a head
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, setting: value}))
    with pytest.raises(FileError, match=f"does not fit its own config.json.*{problem}"):
        vit(folder, classes=classes)


def test_a_head_of_the_right_size_must_be_there(saved: Make) -> None:
    folder = saved("ViTForImageClassification", num_labels=4)
    edit(folder, lambda tensors: remove(tensors, "classifier.weight"))
    with pytest.raises(FileError, match=r"1 missing \(classifier.weight\)"):
        vit(folder)


def test_what_is_no_classifier_is_refused(saved: Make) -> None:
    folder = saved("ViTMAEModel")
    with pytest.raises(UserError, match="is a ViTMAEModel, of which Transformers makes no classifier"):
        vit(folder)


def test_a_folder_without_a_checkpoint_is_refused(transformers: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileError, match=f"{folder} holds no checkpoint.*save_pretrained.*hf download"):
            vit(folder)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=f"the checkpoint {tmp_path} raised"):
        vit(tmp_path)


def test_missing_transformers_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"lossatlas\[hf\]"):
        built("hf:anywhere")


def test_a_part_of_transformers_that_cannot_be_imported_is_told_with_its_reason(
    transformers: Any, saved: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_args: Any, **_options: Any) -> None:
        raise ModuleNotFoundError("Could not import module 'ViT'.") from RuntimeError("no operator nms")

    folder = saved("ViTForImageClassification", num_labels=4)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fails)
    with pytest.raises(UserError, match=r"cannot import what it needs for it \(RuntimeError: no operator nms\)"):
        vit(folder)


def test_loading_says_nothing_and_leaves_the_log_as_it_was(
    transformers: Any, saved: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = saved("ViTForImageClassification", num_labels=4)
    before = transformers.utils.logging.get_verbosity()
    capfd.readouterr()
    vit(folder, classes=7)
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.get_verbosity() == before
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_only_shapes_are_made_where_only_shapes_are_asked_for(saved: Make) -> None:
    folder = saved("ViTForImageClassification", num_labels=4)
    with torch.device("meta"):
        model = vit(folder, classes=7)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert parameters(model) == parameters(vit(folder, classes=7))


def test_the_hessian_of_a_transformer_is_that_of_differences(saved: Make) -> None:
    model = vit(saved("ViTForImageClassification", num_labels=4)).eval()
    batch = (IMAGES, torch.tensor([1, 3]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlainMathsWarning)  # fused attention has no second derivative
        objective = Objective(model, [batch], supervised(F.cross_entropy), dtype=torch.float64)
        theta = objective.center
        v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        v /= v.norm()
        step = 1e-4  # the error of a central difference is of order step^2
        difference = objective.gradient(theta + step * v) - objective.gradient(theta - step * v)
        torch.testing.assert_close(hessian(objective) @ v, difference / (2 * step), rtol=1e-5, atol=1e-6)


# The fingerprint of a checkpoint


def test_a_fingerprint_tells_content_and_not_place(saved: Make, tmp_path: Path) -> None:
    here = saved("ViTForImageClassification", num_labels=4)
    before = from_transformers.fingerprint_of(here)
    there = here.rename(tmp_path / "there")
    (there / "README.md").write_text("not read by any model")
    assert from_transformers.fingerprint_of(there) == before
    edit(there, lambda tensors: tensors["classifier.bias"].add_(1))
    assert from_transformers.fingerprint_of(there) != before


def test_specs_are_pinned_to_the_checkpoint_that_they_saw(saved: Make) -> None:
    folder = saved("ViTForImageClassification", num_labels=4)
    pinned = models.pinned(spec(name=f"hf:{folder}"))
    mark = pinned.task.model.options["fingerprint"]
    assert mark == from_transformers.fingerprint_of(folder)
    assert models.pinned(pinned) == pinned
    vit(folder, fingerprint=mark)
    edit(folder, lambda tensors: tensors["classifier.bias"].add_(1))
    with pytest.raises(FileError, match=f"another one than the spec names.*{mark}"):
        models.pinned(pinned)
    with pytest.raises(FileError, match="another one than the spec names"):
        vit(folder, fingerprint=mark)


class Heard:
    """The keys of the steps that a worker does."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def begins(self, step: Step) -> None:
        pass

    def finished(self, step: Step, _status: str) -> None:
        self.done.append(step.key)

    def skipped(self, _step: Step) -> None:
        pass

    def advanced(self, _step: Step, _epoch: int, _epochs: int, _loss: float) -> None:
        pass


def run(given: specs.Spec, folder: Path) -> list[str]:
    """As `lossatlas run`, in this process, whose torchvision works; the steps done, none of which failed."""
    prepared, heard = prepare(given, folder, None), Heard()
    store, failed = prepared.opened.store, prepared.opened.failed
    worker = Worker(store, prepared.raw, prepared.plan.spec.weights, failed, heard)
    assert worker.run(prepared.plan) == {}
    return heard.done


def test_a_run_belongs_to_the_content_of_its_checkpoint(saved: Make, tmp_path: Path) -> None:
    def given(path: Path) -> specs.Spec:
        task = {"data": {"name": "digits"}, "model": {"name": f"hf:{path}"}}
        grid = {"load": {"n_train": [40, 60]}, "temperature": {"batch_size": [40]}}
        changes = {"seeds": [0], "task": task, **grid, "train": {"epochs": 1}, "measures": {}}
        return specs.validate({**RAW, **changes}, "tuned")

    digits = {"image_size": 8, "patch_size": 4, "num_channels": 1}
    folder = saved("ViTForImageClassification", num_labels=10, **digits)
    done = run(given(folder), tmp_path / "run")
    assert len(done) == 4  # two cells, each with a training and its evaluation
    kept = json.loads((tmp_path / "run" / "spec.json").read_text())["task"]["model"]
    assert kept == {"name": f"hf:{folder}", "fingerprint": from_transformers.fingerprint_of(folder)}

    moved = folder.rename(tmp_path / "moved")
    assert run(given(moved), tmp_path / "run") == []
    edit(moved, lambda tensors: tensors["classifier.bias"].add_(1))
    with pytest.raises(SpecError, match=r"task\.model\.fingerprint: the folder has"):
        run(given(moved), tmp_path / "run")
    assert not {*run(given(moved), tmp_path / "other")} & {*done}

"""The models of [Xu2024], and torchvision's."""

import importlib
import importlib.util
import sys

import pytest
import torch
from torch import nn

from lossatlas import registry
from lossatlas.errors import UserError
from lossatlas.specs.checks import option_problems
from lossatlas.tasks import models

IMAGES = (3, 32, 32)


def built(name: str, **options: int) -> nn.Module:
    return models.build(name, options, input_shape=IMAGES, classes=10, seed=0)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# As other implementations of [He 2016] with parameter-free shortcuts have them (0.46 M, 0.85 M, 1.7 M there).
@pytest.mark.parametrize(
    ("name", "count"), [("resnet32", 464_154), ("resnet56", 853_018), ("resnet110", 1_727_962)]
)
def test_cifar_resnets_have_their_parameters_and_layers(name: str, count: int) -> None:
    for model in (built(name), built(f"{name}-noskip")):
        assert parameters(model) == count
        layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert len(layers) == int(name.removeprefix("resnet"))


def test_cifar_resnets_halve_the_image_twice_and_scale_with_their_width() -> None:
    model = built("resnet32", width=2)
    shapes: list[tuple[int, ...]] = []
    for block in model.blocks:  # type: ignore[union-attr]
        block.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[1:])))
    assert model(torch.zeros(3, *IMAGES)).shape == (3, 10)
    assert shapes == [shape for shape in [(2, 32, 32), (4, 16, 16), (8, 8, 8)] for _ in range(5)]
    assert registry.MODELS["resnet32"].options == {"width": 16}


def test_shortcuts_pad_with_zeros_and_their_absence_is_the_only_difference() -> None:
    skip, plain = built("resnet32", width=2).eval(), built("resnet32-noskip", width=2).eval()
    assert all(torch.equal(a, b) for a, b in zip(skip.parameters(), plain.parameters(), strict=True))
    x = torch.rand(1, 2, 8, 8)
    first, sixth = skip.blocks[0], skip.blocks[5]  # type: ignore[index]
    with torch.no_grad():
        for block in (first, sixth, plain.blocks[0]):  # type: ignore[index]
            block.bn2.weight.zero_()  # nothing but the shortcut is left
        assert torch.equal(first(x), x)
        assert torch.equal(sixth(x), torch.cat([x[:, :, ::2, ::2], torch.zeros(1, 2, 4, 4)], dim=1))
        assert torch.equal(plain.blocks[0](x), torch.zeros_like(x))  # type: ignore[index]


def test_options_of_a_named_model_cannot_be_turned_against_its_name() -> None:
    assert option_problems("resnet32", {"width": 4}, "") == []
    problems = option_problems("resnet32", {"depth": 20, "width": 0}, "--option ")
    assert [problem.split(":")[0] for problem in problems] == ["--option depth", "--option width"]


def test_images_are_needed() -> None:
    with pytest.raises(UserError, match="images of shape"):
        models.build("resnet32", {}, input_shape=(5,), classes=2, seed=0)


@pytest.fixture
def torchvision() -> None:
    """torchvision, whose import fails beside a PyTorch of another build until its operators are known."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            signature = f"torchvision::{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(signature.split("(")[0], "(" + signature.split("(")[1])
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]


def test_torchvision_models_are_built_by_name(torchvision: None) -> None:
    model = built("torchvision:mobilenet_v2")
    assert parameters(model) == 2_236_682  # 3,504,872 with 1,000 classes, less 990 rows of 1,281
    assert model.eval()(torch.zeros(1, *IMAGES)).shape == (1, 10)
    again = built("torchvision:mobilenet_v2")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_unknown_torchvision_models_are_refused(torchvision: None) -> None:
    with pytest.raises(UserError, match=r"no classifier 'mobilnet_v2'.*Did you mean mobilenet_v2"):
        built("torchvision:mobilnet_v2")
    with pytest.raises(UserError, match=r"mobilenet_v2.*colour"):
        built("torchvision:mobilenet_v2", colour=3)


def test_a_missing_torchvision_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(UserError, match=r"lossatlas\[vision\]"):
        built("torchvision:mobilenet_v2")


def test_a_torchvision_of_another_build_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(models.importlib, "import_module", fails)
    with pytest.raises(UserError, match="does not fit the PyTorch"):
        built("torchvision:mobilenet_v2")

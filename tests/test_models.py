"""The models that come with lossatlas: their sizes, shapes and initial weights, against other implementations."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from libraries import torchvision_models
from lossatlas import registry
from lossatlas.errors import UserError
from lossatlas.seeding import derive
from lossatlas.specs.checks import option_problems
from lossatlas.tasks import models
from lossatlas.tasks.resnets import cifar_resnet

IMAGES = (3, 32, 32)
FAMILY = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
VGG11 = (1, 2, 4, 4, 8, 8, 8, 8)


def built(name: str, classes: int = 10, seed: int = 0, **options: Any) -> nn.Module:
    return models.build(name, options, input_shape=IMAGES, classes=classes, seed=seed)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def counted(name: str, classes: int = 10, **options: Any) -> int:
    """The number of parameters, without making them."""
    with torch.device("meta"):
        return parameters(built(name, classes, **options))


# As other implementations of these networks have them.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 11_173_962),
        ("resnet34", 21_282_122),
        ("resnet50", 23_520_842),
        ("resnet101", 42_512_970),
        ("resnet152", 58_156_618),
        ("vgg11", 9_231_114),
    ],
)
def test_models_of_the_usual_width_have_their_parameters(name: str, count: int) -> None:
    assert counted(name, width=64) == count


def test_models_for_cifar_10_have_the_parameters_that_are_known_of_them() -> None:
    assert counted("resnet18", width=64) == 11_173_962
    assert counted("resnet18", width=8) == 176_402
    assert counted("resnet18", width=1) == 2_991
    assert counted("resnet32") == 464_154
    assert counted("resnet32", shortcut="projection") == 466_906
    assert counted("mlp", width=128) == 394_634


def chain(channels: Sequence[int], sides: Sequence[int]) -> int:
    """Parameters of convolutions in a row, each with BatchNorm."""
    return sum(a * b * side**2 + 2 * b for (a, b), side in zip(pairwise(channels), sides, strict=True))


def resnet_parameters(depth: int, k: int, classes: int) -> int:
    total, before = chain([3, k], [3]), k
    for stage, count in enumerate(FAMILY[depth]):
        c = k * 2**stage
        inner, sides = ([c, c], [3, 3]) if depth < 50 else ([c, c, 4 * c], [1, 3, 1])
        after = inner[-1]
        total += chain([before, *inner], sides) + (count - 1) * chain([after, *inner], sides)
        if stage > 0 or before != after:
            total += chain([before, after], [1])
        before = after
    return total + (before + 1) * classes


@pytest.mark.parametrize("k", [3, 64])
@pytest.mark.parametrize("depth", FAMILY)
def test_the_parameters_of_resnets_in_closed_form(depth: int, k: int) -> None:
    assert counted(f"resnet{depth}", classes=7, width=k) == resnet_parameters(depth, k, 7)


@pytest.mark.parametrize("k", [5, 64])
def test_the_parameters_of_vgg11_in_closed_form(k: int) -> None:
    channels = [3, *(factor * k for factor in VGG11)]
    biases = sum(channels[1:])
    assert counted("vgg11", classes=7, width=k) == chain(channels, [3] * 8) + biases + (8 * k + 1) * 7


@pytest.mark.parametrize("depth", FAMILY)
def test_resnets_differ_from_those_of_torchvision_by_their_stem(depth: int) -> None:
    with torch.device("meta"):
        other = torchvision_models().get_model(f"resnet{depth}", weights=None, num_classes=10)
    assert counted(f"resnet{depth}", width=64) == parameters(other) - (49 - 9) * 3 * 64


def fill(model: nn.Module, source: nn.Module) -> None:
    """Copy parameters and buffers in their order, whatever their names."""
    with torch.no_grad():
        for mine, its in zip(
            [*model.parameters(), *model.buffers()], [*source.parameters(), *source.buffers()], strict=True
        ):
            mine.copy_(its)


def randomised(model: nn.Module) -> nn.Module:
    """With BatchNorm that does something, since its initial statistics and scales do nothing."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
    return model.double().eval()


# 1e-9 relative in float64: the same operations, in another order inside the convolutions at most.
@pytest.mark.parametrize("depth", [18, 50])
def test_the_blocks_of_resnets_compute_what_torchvision_does(depth: int) -> None:
    library = torchvision_models()
    its = randomised(library.get_model(f"resnet{depth}", weights=None, num_classes=10))
    mine = built(f"resnet{depth}", width=64).double().eval()
    stages = nn.Sequential(*(its.get_submodule(f"layer{n}") for n in (1, 2, 3, 4)))
    blocks = mine.get_submodule("blocks")
    fill(blocks, stages)
    x = torch.rand(2, 64, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(blocks(x), stages(x), rtol=1e-9, atol=0)


def test_the_features_of_vgg11_are_those_of_torchvision() -> None:
    vgg = torchvision_models().vgg
    its = randomised(vgg.make_layers(vgg.cfgs["A"], batch_norm=True))
    mine = built("vgg11", width=64).double().eval()
    assert isinstance(mine, nn.Sequential)
    features = mine[:-3]
    fill(features, its)
    x = torch.rand(2, *IMAGES, dtype=torch.float64)
    with torch.no_grad():
        expected = its(x)
        torch.testing.assert_close(features(x), expected, rtol=1e-9, atol=0)
        torch.testing.assert_close(mine(x), mine[-1](expected.flatten(1)), rtol=1e-9, atol=0)
    assert expected.shape == (2, 512, 1, 1)


FAMILIES = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vgg11", "resnet32", "resnet32-noskip"]


@pytest.mark.parametrize("name", FAMILIES)
def test_images_of_32_and_64_pixels_give_logits_and_gradients_everywhere(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    # In eval mode: on the statistics of a batch nothing depends on a bias before BatchNorm.
    model = models.build(name, {"width": 4}, input_shape=IMAGES, classes=5, seed=0).double().eval()
    for side in (32, 64):
        logits = model(torch.rand(2, 3, side, side, generator=generator, dtype=torch.float64))
        assert logits.shape == (2, 5)
        grads = torch.autograd.grad(logits.logsumexp(1).sum(), list(model.parameters()))
        assert all(grad.count_nonzero() > 0 for grad in grads)


def test_resnet18_draws_its_weights_in_the_order_that_stored_runs_rest_on() -> None:
    model = built("resnet18", width=2, seed=3)
    names = ["conv1", *(f"blocks.{b}.{layer}" for b in range(8) for layer in ("conv1", "conv2", "shortcut.0"))]
    names = [name for name in names if "shortcut" not in name or name[7] in "246"] + ["linear"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(3, "initialisation"))
        for name in names:
            layer = model.get_submodule(name)
            again = type(layer)(*arguments(layer))
            assert torch.equal(again.get_parameter("weight"), layer.get_parameter("weight")), name
    kept = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    norms = {"bn1", *(name.replace("conv", "bn").replace("shortcut.0", "shortcut.1") for name in names[1:-1])}
    assert kept == {*names, *norms}


def arguments(layer: nn.Module) -> tuple[Any, ...]:
    if isinstance(layer, nn.Conv2d):
        side = layer.kernel_size[0]
        return layer.in_channels, layer.out_channels, side, layer.stride[0], side // 2, 1, 1, False
    assert isinstance(layer, nn.Linear)
    return layer.in_features, layer.out_features


def test_bottlenecks_halve_the_image_three_times_and_widen_it() -> None:
    model = built("resnet50", width=2)
    shapes: list[tuple[int, ...]] = []
    for block in model.blocks:  # type: ignore[union-attr]
        block.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[1:])))
    assert model(torch.zeros(3, *IMAGES)).shape == (3, 10)
    expected = [(8, 32, 32), (16, 16, 16), (32, 8, 8), (64, 4, 4)]
    assert shapes == [s for s, count in zip(expected, FAMILY[50], strict=True) for _ in range(count)]


# As other implementations of [He 2016] with parameter-free shortcuts have them (0.46 M, 0.85 M, 1.7 M there).
@pytest.mark.parametrize(
    ("name", "count"), [("resnet32", 464_154), ("resnet56", 853_018), ("resnet110", 1_727_962)]
)
def test_cifar_resnets_have_their_parameters_and_layers(name: str, count: int) -> None:
    for model in (built(name), built(f"{name}-noskip")):
        assert parameters(model) == count
        layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert len(layers) == int(name.removeprefix("resnet"))
    assert counted(name, shortcut="projection") == count + 2 * 32 + 2 * 64 + 16 * 32 + 32 * 64


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
    first, sixth, bare = (
        model.get_submodule(f"blocks.{index}") for model, index in ((skip, 0), (skip, 5), (plain, 0))
    )
    with torch.no_grad():
        for block in (first, sixth, bare):
            block.get_parameter("bn2.weight").zero_()  # nothing but the shortcut is left
        assert torch.equal(first(x), x)
        assert torch.equal(sixth(x), torch.cat([x[:, :, ::2, ::2], torch.zeros(1, 2, 4, 4)], dim=1))
        assert torch.equal(bare(x), torch.zeros_like(x))


def test_shortcuts_may_be_projections_where_the_shape_changes() -> None:
    model = built("resnet32", width=2, shortcut="projection").eval()
    projected = [f"blocks.{b}.shortcut.0.weight" for b in (5, 10)]
    assert [name for name, _ in model.named_parameters() if "shortcut.0" in name] == projected
    x = torch.rand(1, 2, 8, 8)
    block = model.get_submodule("blocks.5")
    with torch.no_grad():
        block.get_parameter("bn2.weight").zero_()
        kernel: Tensor = block.get_parameter("shortcut.0.weight")  # (4, 2, 1, 1)
        expected = torch.einsum("oi,nihw->nohw", kernel[:, :, 0, 0], x[:, :, ::2, ::2]) / (1 + 1e-5) ** 0.5
        torch.testing.assert_close(block(x), expected.relu())
    assert registry.MODELS["resnet32"].choices["shortcut"][0] == "pad"
    padded = cifar_resnet(input_shape=IMAGES, classes=10, depth=32, skip=True)
    assert not [name for name, _ in padded.named_parameters() if "shortcut" in name]


def test_options_of_a_named_model_cannot_be_turned_against_its_name() -> None:
    assert option_problems("resnet32", {"width": 4}, "") == []
    problems = option_problems("resnet32", {"depth": 20, "width": 0}, "--option ")
    assert [problem.split(":")[0] for problem in problems] == ["--option depth", "--option width"]


def test_images_are_needed_and_large_enough() -> None:
    for name in ("resnet32", "resnet50", "vgg11"):
        with pytest.raises(UserError, match="images of shape"):
            models.build(name, {"width": 2}, input_shape=(5,), classes=2, seed=0)
    with pytest.raises(UserError, match=r"takes 32 x 32 pixels or more; the data have shape \(1, 8, 8\)"):
        models.build("vgg11", {"width": 2}, input_shape=(1, 8, 8), classes=2, seed=0)

"""Flips and crops: pixel by pixel against those of raw images, their law, their stream, trainings with them."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from lossatlas.errors import UserError
from lossatlas.landscape.checkpoints import Stopped
from lossatlas.landscape.criterion import Criterion
from lossatlas.seeding import derive
from lossatlas.tasks import losses
from lossatlas.tasks.augmentation import PADDING, Augmentation
from lossatlas.tasks.data import RawData
from lossatlas.tasks.samples import Samples
from lossatlas.training import TrainedModel, train
from trainings import Memory, assert_same_bits, recipe, samples

SIZE = 12


def raw(images: np.ndarray, mean: tuple[float, ...] = (0.3,), std: tuple[float, ...] = (0.2,)) -> RawData:
    targets = np.arange(len(images)) % 3
    return RawData(images, targets, images, targets, 3, 255.0, mean, std)


def pictures(count: int = 50, channels: int = 3, device: str = "cpu") -> tuple[RawData, Samples]:
    images = np.random.default_rng(0).integers(0, 256, (count, channels, SIZE, SIZE), dtype=np.uint8)
    colours = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)) if channels == 3 else ((0.3,), (0.2,))
    data = raw(images, *colours)
    return data, Samples(data.train_inputs, data.train_targets, data, device)


@pytest.mark.parametrize("kinds", [("crop",), ("flip",), ("crop", "flip")])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_changed_as_torchvision_changes_raw_ones(kinds: tuple[str, ...], channels: int) -> None:
    data, clean = pictures(channels=channels)
    found = Augmentation(kinds, clean, seed=4)(clean.head(50)[0])
    draws = torch.Generator().manual_seed(derive(4, "augmentation"))
    shifts = torch.randint(2 * PADDING + 1, (2, 50), generator=draws) if "crop" in kinds else None
    mirrored = torch.rand(50, generator=draws) < 0.5 if "flip" in kinds else torch.zeros(50)
    expected = []
    # RandomCrop(SIZE, padding=4), then RandomHorizontalFlip(), as torchvision.transforms does them.
    for i, image in enumerate(data.train_inputs):
        if shifts is not None:
            y, x = shifts[:, i].tolist()
            image = np.pad(image, ((0, 0), (4, 4), (4, 4)))[:, y : y + SIZE, x : x + SIZE]
        expected.append(image[:, :, ::-1] if mirrored[i] else image)
    changed = np.stack(expected)
    # Every number is that of one pixel: nothing is rounded.
    assert torch.equal(found, Samples(changed, data.train_targets, data).head(50)[0])
    assert not torch.equal(found, clean.head(50)[0])


@pytest.mark.parametrize("kinds", [("crop",), ("flip",), ("crop", "flip")])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_memory_layout_is_kept_and_the_images_stay_as_they_were(
    kinds: tuple[str, ...], layout: torch.memory_format
) -> None:
    images = pictures()[1].head(8)[0].contiguous(memory_format=layout)
    before = images.clone()
    found = Augmentation(kinds, pictures()[1], seed=0)(images)
    assert found.is_contiguous(memory_format=layout)
    assert torch.equal(images, before)


def test_all_shifts_and_both_sides_are_as_likely() -> None:
    # The pixel at (4, 4) of a window shifted by (y, x) is that at (y, x) of the image.
    image = np.arange(SIZE * SIZE, dtype=np.uint8).reshape(1, 1, SIZE, SIZE)
    data = Samples(*_same(image))
    many = data.head(1)[0].expand(20_000, 1, SIZE, SIZE)
    seen = Augmentation(("crop",), data, seed=1)(many)[:, 0, PADDING, PADDING]
    known = {round(float(value), 4): place for place, value in enumerate(data.head(1)[0].flatten())}
    counts = Counter(known[round(float(value), 4)] for value in seen)
    assert {divmod(place, SIZE) for place in counts} == {(y, x) for y in range(9) for x in range(9)}
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3  # one seed, so it holds or does not
    flipped = Augmentation(("flip",), data, seed=1)(many)
    share = (flipped[:, 0, 0, 0] != many[:, 0, 0, 0]).double().mean().item()
    assert abs(share - 0.5) < 4 * 0.5 / 20_000**0.5  # four standard errors


def _same(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, RawData]:
    data = raw(image)
    return data.train_inputs, data.train_targets, data


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(UserError, match=r"train.augment is for images .* the inputs have shape \(5,\)"):
        Augmentation(("flip",), samples(), seed=0)


# ---- in a training --------------------------------------------------------------------------------------------


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(400, 3)
        )


def trained(memory: Memory | None = None, device: str = "cpu", **changes: object) -> TrainedModel:
    settings = recipe(**{"augment": ("flip", "crop"), "epochs": 3, **changes})
    model = network().to(device)
    data = pictures(device=device)[1]
    return train(model, data, losses.cross_entropy(), settings, seed=0, checkpoints=memory)


def test_a_training_sees_other_images_in_every_epoch_and_leaves_the_clean_ones() -> None:
    seen: list[Tensor] = []

    def noting(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen.append(batch[0])
        outputs: Tensor = model(batch[0])
        return outputs

    plain = losses.cross_entropy()
    data = pictures()[1]
    clean = data.head(50)[0].clone()
    train(network(), data, Criterion(noting, plain.loss, plain.extras), recipe(augment=("crop",)), seed=0)
    pixels = {tuple(image.flatten()[:40].tolist()) for batch in seen for image in batch}
    assert len(pixels) > 150  # 192 images of 50; crops fall together at times
    assert torch.equal(data.head(50)[0], clean)


def test_the_order_and_dropout_are_those_without_augmentation() -> None:
    targets: list[Tensor] = []

    def noting(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        targets.append(torch.cat([batch[1], torch.rand(3) * 1000]))  # of the global stream
        outputs: Tensor = model(batch[0])
        return outputs

    plain = losses.cross_entropy()
    found = []
    for kinds in ((), ("crop", "flip")):
        targets.clear()
        criterion = Criterion(noting, plain.loss, plain.extras)
        train(network(), pictures()[1], criterion, recipe(augment=kinds), seed=0)
        found.append(torch.cat(targets))
    assert torch.equal(*found)


@pytest.mark.parametrize("stop", [1, 4, 6, 9, 18])
def test_a_training_that_was_stopped_ends_with_the_same_bits(stop: int) -> None:
    memory = Memory(stop)
    with pytest.raises(Stopped):
        trained(memory)
    torch.manual_seed(stop)
    assert_same_bits(trained(Memory(saved=memory.saved)), trained())
    assert trained().history["loss"] != trained(augment=()).history["loss"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("stop", [4, 9])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_on_a_gpu_that_was_stopped_ends_with_the_same_bits(stop: int, precision: str) -> None:
    memory = Memory(stop)
    with pytest.raises(Stopped):
        trained(memory, "cuda", precision=precision)
    torch.cuda.manual_seed(stop)
    found = trained(Memory(saved=memory.saved), "cuda", precision=precision)
    assert_same_bits(found, trained(device="cuda", precision=precision))

"""Random flips and crops of batches of images, while training alone."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from lossatlas.errors import UserError
from lossatlas.measures import jobs
from lossatlas.seeding import derive
from lossatlas.tasks.samples import Samples

PADDING = 4  # pixels on each side


class Augmentation:
    """`crop`: shifted by up to 4 pixels each way, what comes in is black; `flip`: mirrored left to right, or not.

    Every image of a batch by itself, as torchvision's RandomCrop(size, padding=4) and RandomHorizontalFlip() do
    it on raw images: black is the raw 0, whatever that is after normalisation. Draws come from `generator`, a
    stream of its own. Raises UserError for samples that are no images (C, H, W).
    """

    def __init__(self, kinds: Collection[str], samples: jobs.Samples, seed: int) -> None:
        shape = tuple(samples.head(1)[0].shape[1:])
        if len(shape) != 3:
            raise UserError(
                f"train.augment is for images of shape (channels, height, width), and the inputs have shape "
                f"{shape}. Remove it, or hand over the inputs as images."
            )
        self.generator = torch.Generator().manual_seed(derive(seed, "augmentation"))
        self._kinds = kinds
        self._black = _black(samples)

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), changed, as a copy in the same memory layout."""
        count, device = len(images), images.device
        if "crop" in self._kinds:
            shifts = torch.randint(2 * PADDING + 1, (2, count), generator=self.generator)
            images = cropped(images, shifts.to(device), self._black)
        if "flip" in self._kinds:
            mirrored = (torch.rand(count, generator=self.generator) < 0.5).to(device)
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
        return images


def cropped(images: Tensor, shifts: Tensor, fill: Tensor) -> Tensor:
    """Of each image (B, C, H, W), with 4 pixels of `fill` (C,) around it, the window at its `shifts` (2, B)."""
    count, channels, height, width = images.shape
    padded = fill.expand(count, height + 2 * PADDING, width + 2 * PADDING, channels).contiguous()
    padded[:, PADDING:-PADDING, PADDING:-PADDING] = images.permute(0, 2, 3, 1)
    windows = padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)  # (B, 9, 9, H, W, C)
    found = windows[torch.arange(count, device=images.device), shifts[0], shifts[1]].permute(0, 3, 1, 2)
    kept = images.is_contiguous(memory_format=torch.channels_last)
    return found.contiguous(memory_format=torch.channels_last if kept else torch.contiguous_format)


def _black(samples: jobs.Samples) -> Tensor:
    """(C,), or (1,) for all channels: what a raw 0 is in a batch."""
    assert isinstance(samples, Samples)  # the only one that holds images
    return samples._offset.view(-1)

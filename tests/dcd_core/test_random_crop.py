"""The ImageNet augmentation, held against torchvision's with the same boxes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as F

from dcd_core import center_crop, random_resized_crop
from dcd_core.augment import Boxes, random_boxes
from dcd_core.resample import line_filter, resample

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)


def textured_images(count: int, height: int, width: int, *, channels: int = 3) -> Tensor:
    """Noise over a gradient: single pixels and large areas both tell."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 96, (count, channels, height, width), generator=generator)
    slope = torch.linspace(0, 159, height)[:, None] * torch.linspace(0, 1, width)
    return (noise + slope.long()).to(torch.uint8)


def boxes_of(indices: Tensor, height: int, width: int, *, seed: int = 1, epoch: int = 3) -> Boxes:
    return random_boxes(
        height, width, seed=seed, epoch=epoch, indices=indices, area=AREA, aspect=ASPECT
    )


def as_picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def as_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(64, 64, 32), (32, 32, 56), (50, 90, 24), (90, 50, 24), (40, 40, 40), (200, 150, 7)],
)
def test_each_crop_is_torchvisions_of_the_same_box(height: int, width: int, size: int) -> None:
    images, indices = textured_images(24, height, width), 1000 + torch.arange(24)

    results = random_resized_crop(images, seed=1, epoch=3, indices=indices, size=size, flip=False)

    assert results.shape == (24, 3, size, size)
    assert results.dtype == torch.uint8
    boxes = torch.stack(boxes_of(indices, height, width), dim=1).tolist()
    for image, result, box in zip(images, results, boxes, strict=True):
        of_picture = as_tensor(F.resized_crop(as_picture(image), *box, size=[size, size]))
        of_tensor = F.resized_crop(image, *box, size=[size, size], antialias=True)
        # Of pictures, Pillow 13 may filter rows first; of tensors, the filter has fewer bits.
        for expected in (of_picture, of_tensor):
            assert (result.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("length", [7, 10, 13, 20, 40])
def test_a_line_is_resized_as_pillow_does_it(length: int) -> None:
    """With nothing to do in the other direction, all orders are the same."""
    (line,) = textured_images(1, 12, length)
    start, whole = torch.tensor([0]), torch.tensor([length])
    narrow = line_filter(start, whole, size=12, longest=length)
    same = line_filter(start, torch.tensor([12]), size=12, longest=12)

    expected = as_tensor(as_picture(line).resize((12, 12), Image.Resampling.BILINEAR))

    assert torch.equal(resample(line[None], rows=same, columns=narrow)[0], expected)


def test_crops_do_not_depend_on_batch_split_or_order() -> None:
    images, indices = textured_images(40, 48, 48), 7 * torch.arange(40)

    def augmented(images: Tensor, indices: Tensor) -> Tensor:
        return random_resized_crop(images, seed=1, epoch=2, indices=indices, size=32)

    whole = augmented(images, indices)
    for size in (1, 7):
        parts = zip(images.split(size), indices.split(size), strict=True)
        assert torch.equal(torch.cat([augmented(*part) for part in parts]), whole)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augmented(images[order], indices[order]), whole[order])
    assert augmented(images[:0], indices[:0]).shape == (0, 3, 32, 32)


def test_half_of_the_crops_are_mirrored() -> None:
    indices = torch.arange(400)
    images = textured_images(1, 16, 16).expand(400, -1, -1, -1)

    straight = random_resized_crop(images, seed=0, epoch=1, indices=indices, size=16, flip=False)
    flipped = random_resized_crop(images, seed=0, epoch=1, indices=indices, size=16)

    same = (flipped == straight).flatten(1).all(1)
    mirrored = (flipped == straight.flip(3)).flatten(1).all(1)
    assert (same | mirrored).all()
    # Five standard errors of a fair coin.
    assert abs(mirrored.double().mean() - 0.5) < 5 * 0.5 / 400**0.5


@pytest.mark.parametrize(("height", "width"), [(256, 256), (120, 300)])
def test_boxes_are_drawn_as_torchvision_draws_them(height: int, width: int) -> None:
    count = 4000
    boxes = boxes_of(torch.arange(count), height, width)
    torch.manual_seed(0)
    image = torch.zeros(1, height, width)
    drawn = Boxes(
        *torch.tensor(
            [RandomResizedCrop.get_params(image, list(AREA), list(ASPECT)) for _ in range(count)]
        ).T
    )

    def statistics(boxes: Boxes) -> Tensor:
        top, left, rows, columns = (part.double() for part in boxes)
        share, log_aspect = rows * columns / (height * width), (columns / rows).log()
        # Where the box lies, in the room that its size leaves.
        down, right = top / (height - rows).clamp(min=1), left / (width - columns).clamp(min=1)
        parts = [share, log_aspect, down, right]
        return torch.stack([*parts, *(part**2 for part in parts)])  # (8, count)

    ours, theirs = statistics(boxes), statistics(drawn)
    error = ((ours.var(1) + theirs.var(1)) / count).sqrt()
    assert ((ours.mean(1) - theirs.mean(1)).abs() < 5 * error).all()
    assert (boxes.top >= 0).all() and (boxes.top + boxes.height <= height).all()
    assert (boxes.left >= 0).all() and (boxes.left + boxes.width <= width).all()


def test_boxes_change_with_index_epoch_and_seed() -> None:
    indices = torch.arange(200)
    base = torch.stack(boxes_of(indices, 64, 64))
    for other in (
        boxes_of(indices + 200, 64, 64),
        boxes_of(indices, 64, 64, epoch=4),
        boxes_of(indices, 64, 64, seed=2),
    ):
        assert (torch.stack(other) != base).any(0).double().mean() > 0.95


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    # Nearly the whole of a long strip has no allowed aspect: its middle is taken, 4 : 3 or 3 : 4.
    [(30, 400, [0, 180, 30, 40]), (400, 30, [180, 0, 40, 30])],
)
def test_where_no_drawn_size_fits_the_middle_is_taken(
    height: int, width: int, expected: list[int]
) -> None:
    boxes = random_boxes(
        height, width, seed=0, epoch=1, indices=torch.arange(5), area=(0.9, 1.0), aspect=ASPECT
    )

    assert torch.stack(boxes, dim=1).tolist() == [expected] * 5


def test_an_area_and_an_aspect_of_one_leave_a_square_image_whole() -> None:
    images = textured_images(3, 20, 20)

    results = random_resized_crop(
        images,
        seed=0,
        epoch=1,
        indices=torch.arange(3),
        size=20,
        area=(1.0, 1.0),
        aspect=(1.0, 1.0),
        flip=False,
    )

    assert torch.equal(results, images)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(300, 200, 224), (256, 256, 224), (32, 32, 28), (32, 32, 224), (75, 101, 49), (101, 75, 49)],
)
def test_evaluation_takes_the_centre_as_torchvision_does(
    height: int, width: int, size: int
) -> None:
    images = textured_images(2, height, width)
    transform = v2.Compose([v2.Resize(math.ceil(size / 7 * 8)), v2.CenterCrop(size)])

    results = center_crop(images, size=size)

    expected = torch.stack([as_tensor(transform(as_picture(image))) for image in images])
    assert (results.int() - expected.int()).abs().max() <= 1

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestrator.data.decode import Decoded, Undecodable, decode_image, decode_images
from orchestrator.data.raw import RawImage, RawImages
from orchestrator.errors import UserError

MakePng = Callable[..., bytes]


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def pixels_of(image: RawImage, *, size: tuple[int, int] | None = None) -> np.ndarray:
    return decode_image(image, size=size, grey_to_rgb=False)


def decode(images: Sequence[RawImage], **options: Any) -> Decoded:
    def read(positions: np.ndarray) -> Iterator[RawImage]:
        return (images[position] for position in positions)

    source = RawImages(
        labels=np.zeros(len(images)), name=lambda position: f"image {position}", read=read
    )
    defaults: dict[str, Any] = {"size": None, "grey_to_rgb": False, "on_error": "fail"}
    positions = options.pop("positions", np.arange(len(images)))
    return decode_images(source, positions, **(defaults | options))


def noise(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_a_lossless_colour_image_comes_back_as_it_was() -> None:
    original = noise(5, 7, 3)

    assert np.array_equal(pixels_of(encoded(Image.fromarray(original))), original)


def test_an_array_keeps_the_order_asked_for_with_channels_first() -> None:
    originals = [noise(5, 7, 3, seed) for seed in range(200)]
    positions = np.random.default_rng(0).permutation(200)[:150]

    decoded = decode([encoded(Image.fromarray(o)) for o in originals], positions=positions)

    assert decoded.images.shape == (150, 3, 5, 7)
    assert decoded.images.dtype == np.uint8
    assert decoded.images.flags.c_contiguous
    assert decoded.kept.all()
    for image, position in zip(decoded.images, positions, strict=True):
        assert np.array_equal(image.transpose(1, 2, 0), originals[position])


def test_a_file_is_read_like_its_bytes(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(noise(6, 6, 3)), "JPEG")
    (tmp_path / "a.jpg").write_bytes(data)

    assert np.array_equal(pixels_of(tmp_path / "a.jpg"), pixels_of(data))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (2, 2), 77), [77]),
        (Image.new("1", (2, 2), 1), [255]),
        (Image.new("LA", (2, 2), (77, 10)), [77]),
        (Image.new("RGBA", (2, 2), (10, 20, 30, 5)), [10, 20, 30]),
        (Image.new("RGB", (2, 2), (51, 102, 255)).convert("P"), [51, 102, 255]),
        (Image.fromarray(np.full((2, 2), 257 * 77 + 129, dtype=np.uint16)), [78]),
        (Image.fromarray(np.full((2, 2), 65535, dtype=np.uint16)), [255]),
    ],
    ids=["grey", "bilevel", "grey-alpha", "rgba", "palette", "16-bit", "16-bit-white"],
)
def test_each_png_mode_becomes_eight_bit_grey_or_colour(
    image: Image.Image, expected: list[int]
) -> None:
    pixels = pixels_of(encoded(image))

    assert pixels.dtype == np.uint8
    assert pixels.shape == (2, 2, len(expected))
    assert pixels[1, 1].tolist() == expected


def test_a_transparent_palette_becomes_colour_without_a_warning() -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])

    pixels = pixels_of(encoded(image, transparency=b"\x00\x80"))

    assert pixels[0, 0].tolist() == [200, 100, 50]


def test_a_cmyk_jpeg_becomes_colour() -> None:
    pixels = pixels_of(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"))

    assert pixels.shape == (8, 8, 3)
    assert pixels.min() >= 250  # no ink is white


def test_sixteen_bit_grey_in_another_container_keeps_its_range() -> None:
    """A PGM with 16-bit values opens in Pillow's 32-bit mode."""
    data = b"P5 2 1 65535\n" + np.array([0, 32896], dtype=">u2").tobytes()

    assert pixels_of(data)[0, :, 0].tolist() == [0, 128]


def test_floating_point_pixels_are_refused() -> None:
    data = encoded(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF")

    with pytest.raises(Undecodable, match="floating-point"):
        pixels_of(data)


def test_grey_values_beyond_sixteen_bits_are_refused() -> None:
    data = encoded(Image.fromarray(np.full((2, 2), 70_000, dtype=np.int32)), "TIFF")

    with pytest.raises(Undecodable, match="beyond 16 bits"):
        pixels_of(data)


def test_the_exif_orientation_is_not_applied() -> None:
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees to show

    assert pixels_of(encoded(image, "JPEG", exif=exif)).shape == (2, 4, 3)


def test_shrinking_averages_all_pixels_under_the_filter() -> None:
    """Antialiased, a fine chequerboard becomes grey; point sampling would give black or white."""
    chequers = ((np.indices((32, 32)).sum(axis=0) % 2) * 255).astype(np.uint8)

    pixels = pixels_of(encoded(Image.fromarray(chequers)), size=(8, 8))

    assert pixels.shape == (8, 8, 1)
    assert abs(pixels[2:-2, 2:-2].astype(int) - 128).max() <= 8


def test_resizing_takes_height_before_width_for_files_and_for_arrays() -> None:
    original = noise(6, 4, 3)

    from_bytes = pixels_of(encoded(Image.fromarray(original)), size=(3, 9))
    from_array = pixels_of(original, size=(3, 9))

    assert from_bytes.shape == (3, 9, 3)
    assert np.array_equal(from_bytes, from_array)


def test_grey_is_repeated_only_on_request_and_colour_left_alone(make_png: MakePng) -> None:
    images = [make_png(9), make_png((1, 2, 3))]

    decoded = decode(images, grey_to_rgb=True)

    assert decoded.images[:, :, 0, 0].tolist() == [[9, 9, 9], [1, 2, 3]]
    assert decode(images[:1]).images.shape == (1, 1, 4, 4)


@pytest.mark.parametrize("swap", [False, True])
def test_grey_among_colour_is_refused_with_both_names(make_png: MakePng, swap: bool) -> None:
    images = [make_png((1, 2, 3)), make_png(9)]
    grey, colour = (0, 1) if swap else (1, 0)

    with pytest.raises(UserError) as caught:
        decode(images[::-1] if swap else images)

    assert str(caught.value) == (
        f"image {grey} is grey and image {colour} is in colour: "
        "set data.grey_to_rgb to use them together"
    )


def test_mixed_sizes_are_refused_with_both_names_and_the_remedy(make_png: MakePng) -> None:
    images = [make_png(1), make_png(1), make_png(1, size=(4, 6))]

    with pytest.raises(UserError) as caught:
        decode(images)

    assert str(caught.value) == (
        "images differ in size: image 0 is 4x4 and image 2 is 4x6 (height x width): set data.resize"
    )
    assert decode(images, size=(5, 5)).images.shape == (3, 1, 5, 5)


def broken(kind: str) -> bytes | None:
    jpeg = encoded(Image.fromarray(noise(32, 32, 3)), "JPEG")
    whole_png = encoded(Image.fromarray(noise(32, 32, 3)))
    flipped = bytearray(whole_png)
    flipped[len(flipped) // 2] ^= 0xFF
    return {
        "truncated JPEG": jpeg[: len(jpeg) // 2],
        "truncated PNG": whole_png[: len(whole_png) // 2],
        "PNG with a flipped byte": bytes(flipped),
        "text": b"not an image",
        "empty": b"",
        "null": None,
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["truncated JPEG", "truncated PNG", "PNG with a flipped byte", "text", "empty", "null"],
)
def test_a_damaged_image_is_an_error_that_names_it(make_png: MakePng, kind: str) -> None:
    good = encoded(Image.fromarray(noise(32, 32, 3)))

    with pytest.raises(UserError) as caught:
        decode([good, broken(kind), good])

    assert str(caught.value).startswith("image 1: ")
    assert "data.on_error to 'skip'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_skipping_leaves_damaged_images_out_and_logs_how_many(
    make_png: MakePng, caplog: pytest.LogCaptureFixture
) -> None:
    images = [make_png(0), b"junk", make_png(2), None, make_png(4)]

    with caplog.at_level(logging.WARNING):
        decoded = decode(images, on_error="skip")

    assert decoded.images[:, 0, 0, 0].tolist() == [0, 2, 4]
    assert decoded.kept.tolist() == [True, False, True, False, True]
    (record,) = caplog.records
    assert "2 of 5 images" in record.getMessage()
    assert "image 1: cannot be decoded" in record.getMessage()


def test_skipping_every_image_is_an_error() -> None:
    with pytest.raises(UserError, match="none of 2 images could be decoded, first image 0: "):
        decode([b"junk", b"junk"], on_error="skip")


@pytest.mark.parametrize("limit_on_pixels", [10, 15])
def test_a_decompression_bomb_is_an_error_and_no_warning(
    make_png: MakePng, monkeypatch: pytest.MonkeyPatch, limit_on_pixels: int
) -> None:
    """Pillow refuses beyond twice its limit and only warns from the limit on; both are refused."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit_on_pixels)
    images = [make_png(1, size=(2, 2)), make_png(1, size=(5, 5))]  # 25 pixels

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(UserError, match=r"image 1: .*decompression bomb"):
            decode(images)
        assert seen == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"image 0: .*No such file"):
        decode([tmp_path / "gone.png"])


@pytest.mark.parametrize(("height", "width"), [(50, 80), (80, 50), (33, 34), (24, 24), (10, 30)])
def test_a_centre_crop_is_torchvisions_resize_and_center_crop(height: int, width: int) -> None:
    from torchvision.transforms import v2

    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    transform = v2.Compose([v2.Resize(24), v2.CenterCrop(24)])

    result = decode_image(pixels, size=(24, 24), crop=True, grey_to_rgb=False)

    assert np.array_equal(result, np.asarray(transform(Image.fromarray(pixels))))


def test_a_centre_crop_keeps_the_aspect_of_what_it_shows() -> None:
    """A circle stays one, whatever the frame."""
    rows, columns = np.mgrid[:60, :100]
    circle = ((rows - 29.5) ** 2 + (columns - 49.5) ** 2 < 20**2).astype(np.uint8) * 255

    def extents(size: tuple[int, int], *, crop: bool) -> tuple[int, int]:
        result = decode_image(circle[..., None], size=size, crop=crop, grey_to_rgb=False)[..., 0]
        return int((result.max(1) > 127).sum()), int((result.max(0) > 127).sum())

    assert extents((30, 30), crop=True) == (20, 20)
    assert extents((30, 40), crop=True) == (20, 20)
    assert extents((30, 30), crop=False) == (20, 12)


def test_a_picture_is_decoded_like_its_file(tmp_path: Path) -> None:
    picture = Image.effect_noise((9, 5), 80)
    picture.save(tmp_path / "noise.png")

    from_picture = decode_image(picture, size=None, grey_to_rgb=True)

    assert np.array_equal(
        from_picture, decode_image(tmp_path / "noise.png", size=None, grey_to_rgb=True)
    )
    assert from_picture.shape == (5, 9, 3)

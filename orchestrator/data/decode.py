"""From encoded images to one uint8 array, in threads (Pillow releases the lock while decoding).

Pixels are taken as stored: the EXIF orientation is not applied, because torchvision's datasets do
not apply it either, and a teacher trained on those must see here what it saw there.

M: images asked for, H, W, C: height, width, channels.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from orchestrator.data.raw import Integers, Pixels, RawImage, RawImages
from orchestrator.data.remote import RemotePath
from orchestrator.errors import UserError

logger = logging.getLogger(__name__)

Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""

_IMAGES_PER_TASK = 32
_TASKS_IN_FLIGHT = 64  # bounds the encoded and decoded images that wait for their row
_GREY_MODES = frozenset({"1", "L", "LA", "La"})
_NAMES_IN_WARNING = 3


class Decoded(NamedTuple):
    """Images in the order asked for, without the skipped ones."""

    images: Pixels
    """(M', C, H, W)."""
    kept: NDArray[np.bool_]
    """(M,) False where an image was skipped."""


class Undecodable(Exception):
    """An image cannot be decoded; the message says why."""


def decode_images(
    source: RawImages,
    positions: Integers,
    *,
    size: Size | None,
    crop: bool = False,
    grey_to_rgb: bool,
    on_error: Literal["fail", "skip"],
) -> Decoded:
    """Decode the images at the given positions, which may be in any order.

    Args:
        source: the set to read from.
        positions: (M,) what to read; row i of the result is the image at `positions[i]`.
        size: resize to this (bilinear, antialiased); None keeps sizes, which must then be equal.
        crop: keep the aspect, and of an image of another aspect only the centre.
        grey_to_rgb: repeat the channel of grey images three times.
        on_error: whether an image that cannot be decoded is an error or left out.

    Raises:
        UserError: an image cannot be decoded, sizes or channels differ, or all were skipped.
    """
    reading_order = np.argsort(positions)  # sources read forwards only
    ordered = positions[reading_order]
    images: Pixels | None = None
    first_name = ""
    kept = np.ones(len(positions), dtype=np.bool_)
    failures: list[str] = []

    stream = decode_stream(source.read(ordered), size=size, crop=crop, grey_to_rgb=grey_to_rgb)
    with closing(stream):
        for row, position, pixels in zip(reading_order, ordered.tolist(), stream, strict=True):
            if isinstance(pixels, Undecodable):
                failure = f"{source.name(position)}: {pixels}"
                if on_error == "fail":
                    raise UserError(
                        f"{failure}; repair or remove it, or set data.on_error to 'skip'"
                    ) from pixels
                failures.append(failure)
                kept[row] = False
                continue
            channels_first = pixels.transpose(2, 0, 1)  # (C, H, W)
            if images is None:
                first_name = source.name(position)
                images = np.empty((len(positions), *channels_first.shape), dtype=np.uint8)
            elif channels_first.shape != images.shape[1:]:
                raise UserError(
                    _mismatch(
                        first_name, images.shape[1:], source.name(position), channels_first.shape
                    )
                )
            images[row] = channels_first

    if failures:
        logger.warning(
            "%d of %d images could not be decoded and were skipped: %s%s",
            len(failures),
            len(positions),
            "; ".join(failures[:_NAMES_IN_WARNING]),
            "; ..." if len(failures) > _NAMES_IN_WARNING else "",
        )
    if images is None:
        raise UserError(f"none of {len(positions):,} images could be decoded, first {failures[0]}")
    return Decoded(images if kept.all() else images[kept], kept)


def decode_image(
    image: RawImage, *, size: Size | None, crop: bool = False, grey_to_rgb: bool
) -> Pixels:
    """One image as (H, W, C), C being 1 for grey and 3 for colour; alpha is dropped.

    Raises:
        Undecodable: it is absent, damaged, not an image, or of a pixel type without a known range.
        UserError: it is elsewhere and cannot be read.
    """
    if image is None:
        raise Undecodable("the image is null")
    if isinstance(image, np.ndarray):
        pixels = image
        if size is not None and pixels.shape[:2] != size:
            picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
            pixels = _pixels(picture, size, crop=crop)
    else:
        try:
            picture = _opened(image)
            picture.load()  # opening reads only the header, and some formats settle the mode late
            pixels = _pixels(_eight_bit(picture), size, crop=crop)
        except (Undecodable, UserError, MemoryError):
            raise
        except Exception as error:  # Pillow's decoders raise far more than OSError on damaged data
            reason = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, UnidentifiedImageError):
                reason = "not an image that Pillow knows"
            raise Undecodable(f"cannot be decoded ({reason})") from error
    if grey_to_rgb and pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return pixels


def decode_stream(
    images: Iterator[RawImage],
    *,
    size: Size | None,
    crop: bool,
    grey_to_rgb: bool,
    threads: int | None = None,
    images_per_task: int = _IMAGES_PER_TASK,
    tasks_in_flight: int = _TASKS_IN_FLIGHT,
) -> Generator[Pixels | Undecodable, None, None]:
    """Decode in threads, in order, with a bounded number of images in memory.

    Args:
        images: to decode.
        size: as in `decode_images`, and so is `grey_to_rgb`.
        threads: that decode; by default one for each core, up to 16. With one, the caller decodes.
        images_per_task: that one thread decodes at a time.
        tasks_in_flight: tasks whose images are in memory, encoded or decoded.

    Yields:
        (H, W, C) of each image, or why there is none.
    """

    def decode(image: RawImage) -> Pixels | Undecodable:
        try:
            return decode_image(image, size=size, crop=crop, grey_to_rgb=grey_to_rgb)
        except Undecodable as error:
            return error

    with warnings.catch_warnings():
        # Pillow only warns about an image between one and two times its limit on pixels.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if threads == 1:
            yield from map(decode, images)
            return
        pending: deque[Future[list[Pixels | Undecodable]]] = deque()
        pool = ThreadPoolExecutor(threads or min(os.cpu_count() or 1, 16))
        try:
            while task := list(islice(images, images_per_task)):
                pending.append(pool.submit(lambda task: list(map(decode, task)), task))
                if len(pending) == tasks_in_flight:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _opened(image: bytes | Path | RemotePath | Image.Image) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    return Image.open(io.BytesIO(image if isinstance(image, bytes) else image.read_bytes()))


def _eight_bit(image: Image.Image) -> Image.Image:
    """In mode L for grey images and RGB for all others."""
    mode = image.mode
    if mode in ("L", "RGB"):
        return image
    if mode in _GREY_MODES:
        return image.convert("L")
    if mode.startswith("I"):
        # 16-bit grey; Pillow keeps some of it in 32 bits (mode I), and clips where it converts.
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise Undecodable("grey values beyond 16 bits have no known range; store 8 or 16 bits")
        return Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    if mode == "F":
        raise Undecodable("floating-point pixels have no known range; store 8 or 16 bits")
    if mode in ("P", "PA"):
        image = image.convert("RGBA")  # a transparent palette converts to RGB only with a warning
    return image.convert("RGB")


def _pixels(image: Image.Image, size: Size | None, *, crop: bool) -> Pixels:
    """(H, W, C) of an image in mode L or RGB."""
    if size is not None and (image.height, image.width) != size:
        image = _covering(image, size) if crop else _stretched(image, size)
    pixels: Pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _stretched(image: Image.Image, size: Size) -> Image.Image:
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def _covering(image: Image.Image, size: Size) -> Image.Image:
    """Resized until it just covers the size, and cut: torchvision's Resize and CenterCrop."""
    height, width = size
    if height * image.width >= width * image.height:
        image = _stretched(image, (height, height * image.width // image.height))
    else:
        image = _stretched(image, (width * image.height // image.width, width))
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def _mismatch(
    name: str, shape: tuple[int, ...], other_name: str, other_shape: tuple[int, ...]
) -> str:
    if shape[1:] != other_shape[1:]:
        return (
            f"images differ in size: {name} is {shape[1]}x{shape[2]} and {other_name} is "
            f"{other_shape[1]}x{other_shape[2]} (height x width): set data.resize"
        )
    grey, colour = (name, other_name) if shape[0] == 1 else (other_name, name)
    return f"{grey} is grey and {colour} is in colour: set data.grey_to_rgb to use them together"

"""Images that a function of the user's own returns.

M: images, H, W, C: height, width, channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from orchestrator.data.raw import Integers, Pixels, RawData, RawImage, RawImages
from orchestrator.error_text import cause
from orchestrator.errors import UserError
from orchestrator.function_source import call_function
from orchestrator.spec import DataSpec

_WANTED = (
    "(images, labels), a data set of (image, label) with a length, or a mapping with one of them "
    "under 'train' and perhaps 'test', and 'class_names'"
)
_KEYS = ("train", "test", "class_names")


def read_function(spec: DataSpec) -> RawData:
    """What ``module:function`` returns for `data.args`.

    That is one set of images, or a mapping with one under ``train``, perhaps one under ``test``,
    and perhaps ``class_names``. A set is

    - a pair of arrays: images uint8 (M, H, W), (M, H, W, C) or (M, C, H, W), and M integers; or
    - a map-style data set or sequence of (image, label), the image being a PIL image or a uint8
      array of one of these shapes without M. Its own names of the classes (``classes``) are taken
      where it has them. Its labels are read at once: from ``targets`` if it is torchvision's and
      has no ``target_transform``, else by going through it.

    Raises:
        UserError: there is no such function, it fails, or it returns something else.
    """
    source = spec.source
    result = call_function(source, spec.args, doing="reading images")
    parts = dict(result) if isinstance(result, Mapping) else {"train": result}
    unknown = [key for key in parts if key not in _KEYS]
    if unknown or "train" not in parts:
        found = ", ".join(map(repr, parts)) or "nothing"
        raise UserError(f"{source}: returned a mapping with {found}, where {_WANTED} is needed")
    test = parts.get("test")
    return RawData(
        train=_read_set(parts["train"], where=f"{source} train"),
        test=None if test is None else _read_set(test, where=f"{source} test"),
        class_names=_class_names(parts, source=source),
    )


def _class_names(parts: Mapping[str, Any], *, source: str) -> tuple[str, ...] | None:
    """Those returned, else those that the data set has itself."""
    names = parts.get("class_names")
    if names is None:
        own = getattr(parts["train"], "classes", None)
        return None if own is None else tuple(str(name) for name in own)
    if isinstance(names, str | Mapping) or not isinstance(names, Iterable):
        raise UserError(
            f"{source} class_names: is a {type(names).__name__}: return a list of names, such as "
            "['cat', 'dog']"
        )
    texts = tuple(str(name) for name in names)
    twice = [name for place, name in enumerate(texts) if name in texts[:place]]
    if twice:
        raise UserError(f"{source} class_names: {twice[0]!r} is there twice: return unique names")
    return texts


def _read_set(values: Any, *, where: str) -> RawImages:
    if isinstance(values, tuple) and len(values) == 2 and _is_array(values[0]):
        return _from_arrays(*map(_as_numpy, values), where=where)
    if not hasattr(values, "__getitem__") or not hasattr(values, "__len__") or _is_array(values):
        raise UserError(f"{where}: is a {type(values).__name__}, where {_WANTED} is needed")
    return _from_samples(values, where=where)


def _from_arrays(images: NDArray[Any], labels: NDArray[Any], *, where: str) -> RawImages:
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise UserError(
            f"{where}: labels are {labels.dtype} {labels.shape} for images {images.shape}: return "
            "one integer per image"
        )
    if len(images):
        _as_pixels(images[0], where=f"{where} image 0")

    def read(positions: Integers) -> Iterator[RawImage]:
        return (_as_pixels(images[position], where=where) for position in positions)

    return RawImages(
        labels=labels.astype(np.int64), name=lambda position: f"{where} image {position}", read=read
    )


def _from_samples(samples: Sequence[Any], *, where: str) -> RawImages:
    def sample(position: int) -> tuple[Any, Any]:
        try:
            image, label = samples[position]
        except Exception as error:  # the user's own code
            raise UserError(
                f"{where} item {position}: is no pair of an image and a label ({cause(error)}): "
                "return pairs (image, label), or arrays of images and labels"
            ) from error
        return image, label

    def read(positions: Integers) -> Iterator[RawImage]:
        for position in positions.tolist():
            image = sample(position)[0]
            if isinstance(image, Image.Image):
                yield image
            else:
                yield _as_pixels(_as_numpy(image), where=f"{where} image {position}")

    return RawImages(
        labels=_labels(samples, sample, where=where),
        name=lambda position: f"{where} image {position}",
        read=read,
    )


def _labels(samples: Sequence[Any], sample: Any, *, where: str) -> Integers:
    """(M,) of a data set, without its images where it keeps labels apart."""
    targets = getattr(samples, "targets", None)
    plain = getattr(samples, "target_transform", None) is None
    if targets is not None and plain and len(targets) == len(samples):
        labels = _as_numpy(targets)
    else:
        labels = np.asarray([_as_numpy(sample(n)[1]) for n in range(len(samples))])
    if len(samples) and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        raise UserError(
            f"{where}: labels are {labels.dtype} {labels.shape[1:]}: the second of each pair must "
            "be an integer"
        )
    return labels.astype(np.int64)


def _as_pixels(image: NDArray[Any], *, where: str) -> Pixels:
    """(H, W, C) of one image, whose channels may come first or be left out."""
    if image.dtype != np.uint8:
        raise UserError(
            f"{where}: is an array of {image.dtype}: return uint8 from 0 to 255, not normalised"
        )
    if image.ndim == 2:
        return image[:, :, None]
    if image.ndim == 3 and image.shape[2] in (1, 3):
        return image
    if image.ndim == 3 and image.shape[0] in (1, 3):
        return image.transpose(1, 2, 0)
    raise UserError(
        f"{where}: has shape {image.shape}: return (H, W), (H, W, C) or (C, H, W) with 1 or 3 "
        "channels"
    )


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | torch.Tensor)


def _as_numpy(value: Any) -> NDArray[Any]:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)

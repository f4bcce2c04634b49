"""torchvision's weights by enum name: what is known of them, and their files.

torchvision is imported where it is used: that takes as long as all other imports of a command, and
most experiments do without.
"""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import torch

from orchestrator.error_text import cause, nearest
from orchestrator.errors import UserError
from orchestrator.spec import Normalization
from orchestrator.weights_facts import WeightsFacts

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

logger = logging.getLogger(__name__)

TORCHVISION = "torchvision:"
"""What a source of torchvision's begins with."""

AUXILIARY = ("googlenet", "inception_v3")
"""Networks with auxiliary classifiers, which return more than logits in training. With weights,
they rescale their input too."""


def checked_name(source: str) -> str:
    """The name of a classifier in torchvision.

    Raises:
        UserError: there is no such one.
    """
    from torchvision import models

    name = source.removeprefix(TORCHVISION)
    names = models.list_models(module=models)
    if name not in names:
        raise UserError(f"{source}: torchvision has no such classifier{nearest(name, names)}")
    return name


def weights_entry(source: str, weights: str) -> WeightsEnum:
    """A network's weights by the name in its enum, with or without that of the enum.

    Raises:
        UserError: there are no such ones.
    """
    from torchvision import models

    choices: type[WeightsEnum] = models.get_model_weights(checked_name(source))
    names = [*choices.__members__]
    key = weights.removeprefix(f"{choices.__name__}.")
    if key not in names:
        raise UserError(f"{source}: no weights {weights!r}; there are {', '.join(names)}")
    return choices[key]


def weights_facts(source: str, weights: str) -> WeightsFacts:
    """Facts about weights, without loading them.

    Args:
        source: ``torchvision:NAME``.
        weights: name in the network's weights enum.

    Raises:
        UserError: there is no such network or no such weights.
    """
    entry = weights_entry(source, weights)
    transforms = entry.transforms()
    name = source.removeprefix(TORCHVISION)
    args: dict[str, Any] = {}
    if name in AUXILIARY:
        args["transform_input"] = True
    elif name.startswith("vit_"):
        args["image_size"] = entry.meta["min_size"][0]
    return WeightsFacts(
        len(entry.meta["categories"]),
        Normalization(mean=tuple(transforms.mean), std=tuple(transforms.std)),
        args,
    )


def fetch_weights(source: str, entry: WeightsEnum) -> Path:
    """The file of weights, where torchvision looks for it; downloaded unless it is there.

    Raises:
        UserError: it cannot be downloaded, or what came is something else.
    """
    file = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(entry.url).path).name)
    if file.exists():
        return file
    logger.info("downloading %s to %s", entry.url, file)
    remedy = (
        f"fetch it elsewhere and put it at {file}, or set TORCH_HOME to a folder that has it in "
        "hub/checkpoints"
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(entry.url, str(file), _checksum(file), progress=False)
    except RuntimeError as error:  # torch's word for a file of another checksum
        raise UserError(
            f"{source}: what came from {entry.url} is not that file, for its checksum is another: "
            f"try again, or {remedy}"
        ) from error
    except OSError as error:
        raise UserError(
            f"{source}: {entry.url} cannot be downloaded ({cause(error)}): {remedy}"
        ) from error
    return file


def is_intact(file: Path) -> bool:
    """Whether a file of weights has the checksum that its name tells."""
    expected = _checksum(file)
    with file.open("rb") as content:
        return expected is None or hashlib.file_digest(content, "sha256").hexdigest().startswith(
            expected
        )


def _checksum(file: Path) -> str | None:
    """The start of the SHA-256, which torchvision writes into the names of its files."""
    found = re.search(r"-([0-9a-f]{8,})\.", file.name)
    return found[1] if found else None

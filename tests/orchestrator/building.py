"""Networks by name on small images, for the tests of sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.errors import UserError
from orchestrator.sources import build_network, build_student, build_teacher
from orchestrator.spec import StudentSpec, TeacherSpec

RGB = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
GREY = RGB[:, :1]


def network(source: str, **changes: Any) -> nn.Module:
    """A plain network of 5 classes."""
    options: dict[str, Any] = {"args": {}, "num_classes": 5, "in_channels": 3}
    return build_network(source, **options | changes)


def student(images: Tensor = RGB, *, seed: int = 0, layer: str | None = None, **spec: Any) -> Any:
    """A student of 5 classes."""
    return build_student(
        StudentSpec(**spec), num_classes=5, images_example=images, seed=seed, feature_layer=layer
    )


def teacher(images: Tensor = RGB, *, state: dict[str, Tensor] | None = None, **spec: Any) -> Any:
    """A teacher beside data of 5 classes."""
    return build_teacher(
        TeacherSpec(**spec), num_classes=5, images_example=images, feature_layer=None, state=state
    )


def refused(build: Callable[[], object]) -> str:
    """The one sentence with which something is refused."""
    with pytest.raises(UserError) as caught:
        build()
    message = str(caught.value)
    assert "\n" not in message
    return message

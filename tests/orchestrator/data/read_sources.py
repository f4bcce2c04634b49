"""What the tests of several sources ask of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orchestrator.data.raw import RawData, RawImages
from orchestrator.data.sources import read_source
from orchestrator.errors import UserError
from orchestrator.spec import DataSpec


def read(**options: Any) -> RawData:
    """A source as it is."""
    return read_source(DataSpec(**options))


def refusal(**options: Any) -> str:
    """The one sentence with which a source is refused."""
    with pytest.raises(UserError) as caught:
        read(**options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def everything(images: RawImages) -> list[Any]:
    """All images, not decoded."""
    return list(images.read(np.arange(len(images.labels))))

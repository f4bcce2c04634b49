"""Where Debian's package `dataset-fashion-mnist` puts the real images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path("/usr/share/datasets/fashion-mnist")

if not FOLDER.is_dir() and os.environ.get("DCD_REQUIRE_ALL_TIERS"):
    pytest.fail("dataset-fashion-mnist is needed when all tiers are required", pytrace=False)

needs_images = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed"
)

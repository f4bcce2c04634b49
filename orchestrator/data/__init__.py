"""Images and splits: from a source on disk to uint8 arrays in memory."""

from __future__ import annotations

from orchestrator.data.dataset import Dataset, ImageSet, describe_counts, load_dataset

__all__ = ["Dataset", "ImageSet", "describe_counts", "load_dataset"]

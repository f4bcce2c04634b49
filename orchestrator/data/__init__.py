"""Images and splits: from a source on disk to uint8 arrays, in memory or streamed."""

from __future__ import annotations

from orchestrator.data.dataset import Dataset, ImageSet, Split, describe_counts, load_dataset
from orchestrator.data.streamed import StreamedSet

__all__ = ["Dataset", "ImageSet", "Split", "StreamedSet", "describe_counts", "load_dataset"]

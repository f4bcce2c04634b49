"""Images and splits: from a source on disk to uint8 arrays, in memory or streamed.

The names below load what they need when first used: processes that only decode need no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.data.dataset import Dataset, ImageSet, Split, describe_counts, load_dataset
    from orchestrator.data.streamed import StreamedSet

__all__ = ["Dataset", "ImageSet", "Split", "StreamedSet", "describe_counts", "load_dataset"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "streamed" if name == "StreamedSet" else "dataset"
    return getattr(import_module(f"orchestrator.data.{module}"), name)

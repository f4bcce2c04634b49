"""What must be known of weights that a library brings along with its networks."""

from __future__ import annotations

from typing import Any, NamedTuple

from orchestrator.spec import Normalization


class WeightsFacts(NamedTuple):
    """What it takes to use weights, or to rebuild their network without them."""

    num_classes: int
    """Classes they were trained on."""
    normalize: Normalization
    """The normalisation they were trained with."""
    args: dict[str, Any]
    """Keyword arguments that the library adds to the builder's when it loads them."""

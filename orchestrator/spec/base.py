"""What every section of the experiment is made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(gt=0, lt=1)]


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


Count = Annotated[int, Field(ge=1)]


Seed = Annotated[int, Field(ge=0, lt=2**31)]


Precision = Literal["auto", "fp32", "bf16", "fp16"]


NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""Of runs, searches and comparisons: their folders have these names."""


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

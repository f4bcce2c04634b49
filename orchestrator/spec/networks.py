"""The teacher, its answers on disk, and the student."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from orchestrator.spec.base import Count, Positive, Precision, Section, Seed
from orchestrator.spec.data import Normalization
from orchestrator.spec.training import OptimizerSpec, ScheduleSpec


class FitSpec(Section):
    """Train the teacher first, as a run of its own that later experiments reuse."""

    epochs: Count = 240
    """Passes over the teacher's training images."""
    batch_size: Count = 64
    """Images per optimizer step over all workers."""
    seed: Seed = 1
    """Initialisation of the teacher and all else that is random in its training. Not 0, so that a
    student of the same architecture does not start as its teacher did."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """As `optimizer`."""
    schedule: ScheduleSpec = ScheduleSpec()
    """As `schedule`."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Fields of `data` that differ for the teacher, such as `labels_per_class: null`."""


class TeacherSpec(Section):
    """The frozen network that the student learns from."""

    source: str = Field("resnet32x4", min_length=1)
    """A built-in name, `torchvision:NAME`, `timm:NAME`, `module:function` of your own, or
    `mlflow:URI`."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the function of a `module:function`, torchvision or timm source."""
    checkpoint: str | None = None
    """File or URI with the weights: a state dict, plain or nested."""
    weights: str | None = None
    """torchvision's own weights by enum name, such as `IMAGENET1K_V1`, or timm's by tag, such as
    `a1_in1k`; `DEFAULT` in both takes the best that they have. The network sees what they were
    trained on, unless `normalize` is given."""
    num_classes: Annotated[int, Field(ge=2)] | None = None
    """Classes of the teacher's head when they are not the data's."""
    normalize: Normalization | None = None
    """What the teacher sees, when it differs from `data.normalize`."""
    min_top1: Annotated[float, Field(ge=0, le=100)] | None = None
    """Stop when the teacher's validation top-1 (percent) is below this; 0 never stops. By default,
    stop when it is no better than chance."""
    fit: FitSpec | None = None
    """Train the teacher first instead of loading it."""
    precision: Precision = "auto"
    """Of the teacher's computation while a student learns; `auto` is that of `train.precision`."""

    @model_validator(mode="after")
    def _one_origin(self) -> TeacherSpec:
        given = [key for key in ("checkpoint", "weights", "fit") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: give one of them")
        if self.source.startswith("mlflow:") and given:
            raise ValueError(f"an mlflow: source brings its weights: drop {given[0]}")
        if self.fit is not None and self.num_classes is not None:
            raise ValueError(
                "fit and num_classes exclude each other: the fit's data has the classes"
            )
        return self


class TeacherCacheSpec(Section):
    """The teacher's answers on disk, computed once for all runs that see the same images.

    `auto`, `on`, `off` or a folder alone stands for the whole section.
    """

    mode: Literal["auto", "on", "off"] = "auto"
    """`auto` is on in searches and comparisons, where a `path` is given, and with `views`."""
    path: str | None = None
    """Folder, which nodes may share, or URI; by default `dcd_teacher_cache` in DCD_HOME, or in the
    working directory."""
    dtype: Precision = "auto"
    """Of the numbers that are kept; `auto` is the precision that the teacher computes in."""
    views: Count | None = None
    """Augment each image in this many ways only, over and over, so that a run of more epochs than
    that reads the rest of the teacher's answers."""
    max_gib: Positive | None = None
    """Largest size in GiB; by default a quarter of what is free there."""

    def is_on(self, *, one_of_many: bool) -> bool:
        """Whether it is used, by a run alone or by one of many that see the same images."""
        wanted = one_of_many or self.path is not None or self.views is not None
        return self.mode == "on" or (self.mode == "auto" and wanted)

    @model_validator(mode="before")
    @classmethod
    def _one_word(cls, values: Any) -> Any:
        if isinstance(values, str | bool):
            section = cache_section(values)
            word = section.get("path", "/")
            if not any(character in word for character in "/\\~"):
                raise ValueError(
                    f"{word!r} is none of auto, on and off, nor a folder with a slash: for a "
                    f"folder here, write ./{word}"
                )
            return section
        if isinstance(values, dict) and "mode" in values:
            return {**values, "mode": _as_mode(values["mode"])}
        return values


def cache_section(word: str | bool) -> dict[str, Any]:
    """The section that one word stands for."""
    mode = _as_mode(word)
    return {"mode": mode} if mode in ("auto", "on", "off") else {"path": word}


def _as_mode(value: Any) -> Any:
    """YAML reads on and off as true and false."""
    return ("on" if value else "off") if isinstance(value, bool) else value


class StudentSpec(Section):
    """The network that is trained."""

    source: str = Field("resnet8x4", min_length=1)
    """A built-in name, `torchvision:NAME`, `timm:NAME`, `module:function` of your own, or
    `mlflow:URI`."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the function of a `module:function`, torchvision or timm source."""
    checkpoint: str | None = None
    """Start from these weights."""
    weights: str | None = None
    """Start from torchvision's own weights by enum name, or timm's by tag. The student sees what
    they were trained on, unless `data.normalize` is given."""

    @model_validator(mode="after")
    def _one_origin(self) -> StudentSpec:
        if self.checkpoint is not None and self.weights is not None:
            raise ValueError("checkpoint and weights exclude each other: give one of them")
        if self.source.startswith("mlflow:") and (self.checkpoint or self.weights):
            raise ValueError("an mlflow: source brings its weights: drop checkpoint and weights")
        return self

"""The experiment: one frozen model per section. Every default is the paper's CIFAR recipe,
but for a slower T and b.

The docstring under a field is its documentation in ``dcd schema``; ranges live in the types, rules
between fields in the validators.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, model_validator

from orchestrator.spec.base import NAME_PATTERN, Section, Seed
from orchestrator.spec.data import DataSpec, Normalization
from orchestrator.spec.methods import method_names
from orchestrator.spec.networks import (
    FitSpec,
    StudentSpec,
    TeacherCacheSpec,
    TeacherSpec,
    cache_section,
)
from orchestrator.spec.objective import FeatureLayers, HintLayers, ObjectiveSpec, WeightChange
from orchestrator.spec.places import MODEL_NAME_PATTERN, StorageSpec, TrackingSpec
from orchestrator.spec.training import OptimizerSpec, ScalingSpec, ScheduleSpec, TrainSpec

__all__ = [
    "MODEL_NAME_PATTERN",
    "NAME_PATTERN",
    "DataSpec",
    "Experiment",
    "FeatureLayers",
    "FitSpec",
    "HintLayers",
    "Normalization",
    "ObjectiveSpec",
    "OptimizerSpec",
    "ScalingSpec",
    "ScheduleSpec",
    "StorageSpec",
    "StudentSpec",
    "TeacherCacheSpec",
    "TeacherSpec",
    "TrackingSpec",
    "TrainSpec",
    "WeightChange",
    "cache_section",
    "method_names",
]


def _or_one_word(schema: dict[str, Any]) -> None:
    """In the JSON Schema, what stands for the whole section."""
    schema["anyOf"] = [{"$ref": schema.pop("$ref")}, {"type": "string"}, {"type": "boolean"}]


class Experiment(Section):
    """One experiment file."""

    name: str = Field(pattern=NAME_PATTERN)
    """Name of the run: letters, digits, dot, dash and underscore, 100 characters at most."""
    seed: Seed = 0
    """The student's initialisation and all that is random but order, augmentation and splits."""
    data: DataSpec = DataSpec()
    """Images and splits."""
    teacher: TeacherSpec | None = None
    """The teacher; only method `ce` goes without."""
    teacher_cache: TeacherCacheSpec = Field(TeacherCacheSpec(), json_schema_extra=_or_one_word)
    """Its answers on disk."""
    student: StudentSpec = StudentSpec()
    """The student."""
    objective: ObjectiveSpec = ObjectiveSpec.model_validate({})
    """The loss."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """The optimizer."""
    schedule: ScheduleSpec = ScheduleSpec()
    """The learning rate over time."""
    train: TrainSpec = TrainSpec()
    """The loop."""
    scaling: ScalingSpec = ScalingSpec()
    """Workers and their resources."""
    tracking: TrackingSpec = TrackingSpec()
    """MLflow."""
    storage: StorageSpec = StorageSpec()
    """Files."""

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if self.teacher is None and self.objective.method != "ce":
            raise ValueError(f"objective.method {self.objective.method!r} needs a teacher section")
        shards = max(self.scaling.workers, 1) * self.train.accumulate
        if self.train.batch_size % shards:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} is not divisible by scaling.workers x "
                f"train.accumulate = {max(self.scaling.workers, 1)} x {self.train.accumulate}: "
                f"use {math.ceil(self.train.batch_size / shards) * shards}"
            )
        if self.data.streaming is True and self.teacher_cache.mode == "on":
            raise ValueError(
                "teacher_cache keeps the answers to images that are held in memory: drop "
                "data.streaming or set teacher_cache: auto"
            )
        objective = self.objective
        cache = self.teacher_cache
        if objective.uses_hints and (cache.mode == "on" or cache.path is not None):
            raise ValueError(
                f"teacher_cache keeps logits and features only, and method {objective.method!r} "
                "compares intermediate features: let teacher_cache be auto or off"
            )
        last_change = max((change.epoch for change in objective.schedule), default=0)
        if last_change > self.train.epochs:
            raise ValueError(
                f"objective.schedule: the change at epoch {last_change} comes after the last of "
                f"{self.train.epochs} epochs: drop it, or raise train.epochs"
            )
        if (
            objective.uses_dcd
            and objective.contrast == "sigmoid"
            and objective.init_bias == "auto"
            and self.train.micro_batch_size < 2
        ):
            raise ValueError(
                "objective.init_bias 'auto' is -ln(N - 1) and needs at least N = 2 images per "
                "micro-batch: raise train.batch_size or give init_bias"
            )
        return self

"""The loss."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from orchestrator.spec.base import Count, NonNegative, Positive, Section

# Defaults of the loss weights by method; a weight of None in the table is one the method ignores.
METHOD_WEIGHTS: dict[str, dict[str, float | None]] = {
    "ce": {"ce_weight": 1.0, "kd_weight": None, "dcd_weight": None, "consistency_weight": None},
    "kd": {"ce_weight": 1.0, "kd_weight": 1.0, "dcd_weight": None, "consistency_weight": None},
    "dcd": {"ce_weight": 1.0, "kd_weight": None, "dcd_weight": 1.0, "consistency_weight": 0.5},
    "dcd+kd": {"ce_weight": 1.0, "kd_weight": 1.0, "dcd_weight": 1.0, "consistency_weight": 0.5},
}


class FeatureLayers(Section):
    """Where the features are taken, for each of the two networks."""

    student: str | None = None
    """Dotted path in the student."""
    teacher: str | None = None
    """Dotted path in the teacher."""


class WeightChange(Section):
    """Weights that hold from an epoch on; those not given stay what they were."""

    epoch: Annotated[int, Field(ge=2)]
    """First epoch with these weights, counted from 1."""
    ce_weight: NonNegative | None = None
    """As `objective.ce_weight`."""
    kd_weight: NonNegative | None = None
    """As `objective.kd_weight`."""
    dcd_weight: NonNegative | None = None
    """As `objective.dcd_weight`."""
    consistency_weight: NonNegative | None = None
    """As `objective.consistency_weight`."""
    kd_temperature: Positive | None = None
    """As `objective.kd_temperature`."""

    @property
    def weights(self) -> dict[str, float]:
        """What changes, by the name of its field."""
        values = {key: getattr(self, key) for key in type(self).model_fields if key != "epoch"}
        return {key: value for key, value in values.items() if value is not None}

    @model_validator(mode="after")
    def _changes_something(self) -> WeightChange:
        if not self.weights:
            names = ", ".join(key for key in type(self).model_fields if key != "epoch")
            raise ValueError(
                f"the change at epoch {self.epoch} changes nothing: give one of {names}"
            )
        return self

    @model_serializer(mode="wrap")
    def _what_is_given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        return {key: value for key, value in values.items() if value is not None}


class ObjectiveSpec(Section):
    """ce_weight CE + kd_weight KD + dcd_weight (contrast + consistency_weight consistency)."""

    method: Literal["ce", "kd", "dcd", "dcd+kd"] = "dcd+kd"
    """Sets the defaults of the weights."""
    contrast: Literal["softmax", "sigmoid"] = "softmax"
    """The paper's softmax contrast, or the pairwise sigmoid form (arXiv 2303.15343)."""
    negatives: Literal["all", "other_class"] = "all"
    """Whether same-class images count as negatives in the contrast."""
    ce_weight: NonNegative
    """Weight of the cross entropy with the labels."""
    kd_weight: NonNegative
    """Weight of the divergence from the teacher's class probabilities (the paper's lambda)."""
    dcd_weight: NonNegative
    """Weight of contrast and consistency together (the paper's beta)."""
    consistency_weight: NonNegative
    """Weight of the consistency beside the contrast (the paper's alpha)."""
    kd_temperature: Positive = 4.0
    """Temperature of the class probabilities in KD."""
    init_temperature: Positive = math.exp(-1.0)
    """Where the learned temperature T starts (the paper's tau is -log T)."""
    min_temperature: Positive = 0.1
    """Lower limit of T."""
    init_bias: float | Literal["auto"] = "auto"
    """Where the learned bias starts. It acts in the sigmoid form only: `auto` is -ln(N - 1)."""
    projection_dim: Count = 128
    """Width of the two projection heads."""
    feature_layer: FeatureLayers | str | None = None
    """Module whose output is the feature, when it is not the input of the classifier: one dotted
    path for both networks, or one for each."""
    schedule: tuple[WeightChange, ...] = Field((), strict=False)
    """Weights that change while training, in the order of their epochs."""

    def at(self, epoch: int) -> ObjectiveSpec:
        """The objective of one epoch, counted from 1, with the weights then in force."""
        in_force: dict[str, Any] = {"schedule": ()}
        for change in self.schedule:
            if change.epoch <= epoch:
                in_force |= change.weights
        return self.model_copy(update=in_force)

    @property
    def uses_kd(self) -> bool:
        """Whether the teacher's class probabilities count in any epoch."""
        return any(phase.kd_weight > 0 for phase in self._phases())

    @property
    def uses_dcd(self) -> bool:
        """Whether contrast and consistency, and so the projection heads, count in any epoch."""
        return any(phase.dcd_weight > 0 for phase in self._phases())

    def _phases(self) -> list[ObjectiveSpec]:
        return [self.at(epoch) for epoch in (1, *(change.epoch for change in self.schedule))]

    @model_validator(mode="before")
    @classmethod
    def _method_weights(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        method = values.get("method", "dcd+kd")
        if method not in METHOD_WEIGHTS:
            # The type of `method` reports it; the weights just need to be there.
            return {**{key: 0.0 for key in METHOD_WEIGHTS["ce"]}, **values}
        filled = dict(values)
        for key, default in METHOD_WEIGHTS[method].items():
            if filled.get(key) is None:
                filled[key] = default if default is not None else 0.0
            elif default is None and filled[key] != 0:
                raise ValueError(f"method {method!r} ignores {key}: drop it, or change the method")
        return filled

    @model_validator(mode="after")
    def _consistent(self) -> ObjectiveSpec:
        if self.init_temperature < self.min_temperature:
            raise ValueError(
                f"init_temperature {self.init_temperature:g} is below min_temperature "
                f"{self.min_temperature:g}"
            )
        if self.ce_weight == self.kd_weight == self.dcd_weight == 0:
            raise ValueError("all weights are 0: nothing would be learned")
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> ObjectiveSpec:
        previous = 1
        for change in self.schedule:
            place = f"schedule: the change at epoch {change.epoch}"
            if change.epoch <= previous:
                raise ValueError(
                    f"{place} comes after the one at epoch {previous}: list each epoch once, in "
                    "ascending order"
                )
            previous = change.epoch
            for key, value in change.weights.items():
                weight = "kd_weight" if key == "kd_temperature" else key
                if METHOD_WEIGHTS[self.method][weight] is None and value != 0:
                    raise ValueError(
                        f"{place} gives {key}, which method {self.method!r} ignores: drop it, or "
                        "change the method"
                    )
            now = self.at(change.epoch)
            if now.ce_weight == now.kd_weight == now.dcd_weight == 0:
                raise ValueError(f"{place} makes all weights 0: nothing would be learned")
        return self

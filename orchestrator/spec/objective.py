"""The loss."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from orchestrator.spec.base import Count, NonNegative, Positive, Section
from orchestrator.spec.methods import (
    WEIGHTS,
    MethodName,
    check_method_args,
    find_method,
    method_names,
    method_weights,
)

Layers = str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
"""One dotted path, or several."""


class FeatureLayers(Section):
    """Where the features are taken, for each of the two networks."""

    student: str | None = None
    """Dotted path in the student."""
    teacher: str | None = None
    """Dotted path in the teacher."""


class HintLayers(Section):
    """Where the intermediate features are taken, for each of the two networks."""

    student: Layers
    """Dotted paths in the student."""
    teacher: Layers
    """Dotted paths in the teacher, as many."""

    @model_validator(mode="after")
    def _as_many(self) -> HintLayers:
        own, wanted = (1 if isinstance(p, str) else len(p) for p in (self.student, self.teacher))
        if own != wanted:
            raise ValueError(
                f"student names {own} layers and teacher {wanted}: they are compared in pairs, so "
                "name as many for both"
            )
        return self


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
    method_weight: NonNegative | None = None
    """As `objective.method_weight`."""
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
    """ce_weight CE + kd_weight KD + dcd_weight (contrast + consistency_weight consistency)
    + method_weight METHOD."""

    method: MethodName = "dcd+kd"
    """Sets the defaults of the weights. Each method but `ce` and `kd` may have KD beside it, as in
    `rkd+kd`; docs/methods.md has their equations."""
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
    method_weight: NonNegative
    """Weight of the term of any other method; by default its paper's."""
    method_args: dict[str, Any] = Field(default_factory=dict)
    """Hyperparameters of that method, by name."""
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
    hint_layers: HintLayers | Layers | None = None
    """Modules whose outputs are the intermediate features of methods that compare such: dotted
    paths for both networks, or for each. By default the ends of the stages that it compares."""
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

    @property
    def uses_method(self) -> bool:
        """Whether the term of another method counts in any epoch."""
        return any(phase.method_weight > 0 for phase in self._phases())

    @property
    def uses_classes(self) -> bool:
        """Whether the teacher's class probabilities count, so that it must know the classes."""
        module = find_method(self.method)
        return self.uses_kd or (module is not None and module.uses_logits and self.uses_method)

    @property
    def uses_hints(self) -> bool:
        """Whether intermediate features are compared."""
        module = find_method(self.method)
        return module is not None and module.hints != "none" and self.uses_method

    @property
    def _learns_nothing(self) -> bool:
        return self.ce_weight == self.kd_weight == self.dcd_weight == self.method_weight == 0

    def _phases(self) -> list[ObjectiveSpec]:
        return [self.at(epoch) for epoch in (1, *(change.epoch for change in self.schedule))]

    @model_validator(mode="before")
    @classmethod
    def _method_weights(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        method = values.get("method", "dcd+kd")
        if method not in method_names():
            # The type of `method` reports it; the weights just need to be there.
            return {**dict.fromkeys(WEIGHTS, 0.0), **values}
        filled = dict(values)
        for key, default in method_weights(method).items():
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
        if self._learns_nothing:
            raise ValueError("all weights are 0: nothing would be learned")
        return self

    @model_validator(mode="after")
    def _method_takes_what_is_given(self) -> ObjectiveSpec:
        check_method_args(self.method, self.method_args)
        module = find_method(self.method)
        if self.hint_layers is not None and (module is None or module.hints == "none"):
            raise ValueError(
                f"hint_layers: method {self.method!r} compares no intermediate features: "
                "drop them, or change the method"
            )
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
                if method_weights(self.method)[weight] is None and value != 0:
                    raise ValueError(
                        f"{place} gives {key}, which method {self.method!r} ignores: drop it, or "
                        "change the method"
                    )
            if self.at(change.epoch)._learns_nothing:
                raise ValueError(f"{place} makes all weights 0: nothing would be learned")
        return self

"""Penultimate activations of any classifier, captured without editing it.

Shape letters: B images, C channels, H x W pixels, K classes, D feature dimensions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from dcd_core._names import nearest
from dcd_core.classifier import (
    as_parameters,
    before_dropout,
    checked_logits,
    find_classifier,
    probing,
)


class ModelOutput(NamedTuple):
    """What a ``FeatureModel`` returns."""

    logits: Tensor  # (B, K)
    features: Tensor  # (B, D)


class FeatureModel(nn.Module):
    """A classifier that also returns its features.

    The feature is the input of the classifier layer, before the dropout where one lies directly
    before that layer, or the output of ``feature_layer``. It is captured by a hook, so the model's
    code and parameter names stay as they are; the model itself is the attribute ``model``.

    Args:
        model: maps images (B, C, H, W) to logits (B, K).
        images_example: a batch of images as the model gets them, (B, C, H, W) with B >= 1; it is
            run in eval mode, and moved to the model's device and dtype first.
        feature_layer: dotted path of a module whose output is the feature: (B, D), or
            (B, D, h, w), which is averaged over h and w.

    Attributes:
        feature_dim: D.
        num_classes: K.
        feature_layer: the dotted path as given, or None when the classifier's input is used.

    Raises:
        ValueError: the model does not return logits, ``feature_layer`` is unknown or has another
            shape, or no classifier was found and ``feature_layer`` is needed.
    """

    def __init__(
        self, model: nn.Module, *, images_example: Tensor, feature_layer: str | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.feature_layer = feature_layer
        self._capture = _Capture()
        if feature_layer is None:
            classifier = find_classifier(model, images_example)
            layer = before_dropout(model, classifier, images_example)
            hook = layer.register_forward_pre_hook(self._capture.input_of, with_kwargs=True)
        else:
            hook = _submodule(model, feature_layer).register_forward_hook(self._capture.output_of)
        try:
            with probing(model):
                output = self(as_parameters(images_example, model))
        except ValueError:
            hook.remove()  # a refused model is left as it came
            raise
        self.feature_dim: int = output.features.shape[1]
        self.num_classes: int = output.logits.shape[1]

    def forward(self, images: Tensor) -> ModelOutput:
        """Map images (B, C, H, W) to logits (B, K) and features (B, D); B may be 0."""
        try:
            logits = checked_logits(self.model(images))
            return ModelOutput(logits, self._capture.get())
        finally:
            self._capture.value = None  # or the batch's graph would outlive the step


class _Capture:
    """Holds what a hook saw while a forward pass runs.

    A plain object with methods as hooks, so that copying or pickling a model copies it along.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def input_of(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook."""
        feature = _as_feature(args[0] if args else kwargs["input"])
        # A copy, where the module is a dropout that works in place.
        self.value = feature.clone() if getattr(module, "inplace", False) else feature

    def output_of(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook."""
        # A copy, because an activation after the layer may work in place.
        self.value = _as_feature(output).clone()

    def get(self) -> Tensor:
        """The feature of the forward pass that just ended."""
        if self.value is None:
            raise RuntimeError("the feature layer did not run in this forward pass")
        return self.value


def _as_feature(value: Any) -> Tensor:
    if isinstance(value, Tensor) and value.dim() == 2:
        return value
    if isinstance(value, Tensor) and value.dim() == 4:
        return value.mean((2, 3))  # (B, D)
    found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise ValueError(
        f"the feature layer gives {found}: set feature_layer to a module whose output is "
        "(batch, features) or (batch, features, height, width)"
    )


def _submodule(model: nn.Module, path: str) -> nn.Module:
    modules = dict(model.named_modules())
    if path not in modules or not path:
        suggestion = nearest(path, [name for name in modules if name] or ["(no submodules)"])
        raise ValueError(
            f"feature_layer {path!r} is not a module of {type(model).__name__}: "
            f"did you mean {suggestion!r}?"
        )
    return model.get_submodule(path)

"""Penultimate activations of any classifier, captured without editing it.

Shape letters: B images, C channels, H x W pixels, K classes, D feature dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class HintedOutput(NamedTuple):
    """What a ``FeatureModel`` returns that captures hints, which are intermediate features."""

    logits: Tensor  # (B, K)
    features: Tensor  # (B, D)
    hints: tuple[Tensor, ...] = ()  # each (B, C, h, w)


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
        hint_shapes: (C, h, w) of each hint, for images of the example's size.

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
        self.hint_shapes: tuple[tuple[int, int, int], ...] = ()
        self._capture = _Capture()
        self._hints: list[_HintCapture] = []
        if feature_layer is None:
            classifier = find_classifier(model, images_example)
            layer = before_dropout(model, classifier, images_example)
            hook = layer.register_forward_pre_hook(self._capture.input_of, with_kwargs=True)
        else:
            layer = _submodule(model, feature_layer, setting="feature_layer")
            hook = layer.register_forward_hook(self._capture.output_of)
        try:
            with probing(model):
                output = self(as_parameters(images_example, model))
        except ValueError:
            hook.remove()  # a refused model is left as it came
            raise
        self.feature_dim: int = output.features.shape[1]
        self.num_classes: int = output.logits.shape[1]

    def capture_hints(self, paths: Sequence[str], *, images_example: Tensor) -> None:
        """Return hints too, a ``HintedOutput``, from now on.

        Args:
            paths: dotted paths of the modules whose outputs they are, (B, C, h, w), or (B, C),
                which counts as one pixel.
            images_example: as above.

        Raises:
            ValueError: a layer is unknown, does not run, or has another shape.
        """
        assert not self._hints, "hints are captured once"
        if not paths:
            return
        layers = [_submodule(self.model, path, setting="hint_layers") for path in paths]
        self._hints = [_HintCapture(path) for path in paths]
        hooks = [
            layer.register_forward_hook(capture.output_of)
            for layer, capture in zip(layers, self._hints, strict=True)
        ]
        try:
            with probing(self.model):
                hints = self(as_parameters(images_example, self.model)).hints
        except ValueError:
            for hook in hooks:
                hook.remove()
            self._hints = []
            raise
        self.hint_shapes = tuple((hint.shape[1], hint.shape[2], hint.shape[3]) for hint in hints)

    def forward(self, images: Tensor) -> ModelOutput | HintedOutput:
        """Map images (B, C, H, W) to logits (B, K), features (B, D) and any hints; B may be 0."""
        try:
            logits = checked_logits(self.model(images))
            if not self._hints:
                return ModelOutput(logits, self._capture.get())
            hints = tuple(capture.get() for capture in self._hints)
            return HintedOutput(logits, self._capture.get(), hints)
        finally:
            self._capture.value = None  # or the batch's graph would outlive the step
            for capture in self._hints:
                capture.value = None


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


class _HintCapture:
    """Holds an intermediate feature while a forward pass runs.

    What it saw is looked at afterwards: torch.fx, which folds BatchNorm, runs hooks on stand-ins.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.value: Any = None

    def output_of(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook."""
        # A copy, because an activation after the layer may work in place.
        self.value = output.clone() if isinstance(output, Tensor) else output

    def get(self) -> Tensor:
        """The feature of the forward pass that just ended, (B, C, h, w)."""
        value = self.value
        if isinstance(value, Tensor) and value.dim() in (2, 4):
            return value if value.dim() == 4 else value[:, :, None, None]
        if value is None:
            raise ValueError(f"hint_layers: {self.path!r} did not run: name another module")
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"hint_layers: {self.path!r} gives {found}: name a module whose output is "
            "(batch, channels, height, width) or (batch, channels)"
        )


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


def _submodule(model: nn.Module, path: str, *, setting: str) -> nn.Module:
    modules = dict(model.named_modules())
    if path not in modules or not path:
        suggestion = nearest(path, [name for name in modules if name] or ["(no submodules)"])
        raise ValueError(
            f"{setting} {path!r} is not a module of {type(model).__name__}: "
            f"did you mean {suggestion!r}?"
        )
    return model.get_submodule(path)

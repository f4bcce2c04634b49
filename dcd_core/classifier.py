"""Finding the layer that computes a model's logits, by running it.

Shape letters: B images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def find_classifier(model: nn.Module, images: Tensor) -> str:
    """Find the layer that computes the logits by running a batch.

    Runs in eval mode without gradient and leaves modes, buffers and parameters as they were.

    Args:
        model: maps images to logits (B, K).
        images: (B, C, H, W) with B >= 1.

    Returns:
        The dotted path of the last Linear or 1x1 Conv2d whose output is the model's output, or is
        so once it is averaged over the image, with a ReLU before that or without.

    Raises:
        ValueError: the model does not return logits, no such layer exists, or B is 0.
    """
    if images.shape[0] == 0:
        raise ValueError("images is empty: at least one image is needed to find the classifier")
    outputs: dict[str, Tensor] = {}  # in the order in which the layers ran last

    def record(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            outputs.pop(name, None)
            if output.dim() in (2, 4):
                outputs[name] = output.clone()  # a later layer may work in place

        return hook

    candidates = {name: m for name, m in model.named_modules() if name and _is_candidate(m)}
    hooks = [layer.register_forward_hook(record(name)) for name, layer in candidates.items()]
    try:
        with probing(model):
            logits = checked_logits(model(as_parameters(images, model)))
    finally:
        for handle in hooks:
            handle.remove()
    for name, output in reversed(outputs.items()):
        if _becomes(output, logits):
            return name
    raise ValueError(
        f"no Linear or 1x1 Conv2d of {type(model).__name__} outputs its logits, so its features "
        "are not known: set feature_layer to the path of the module whose output is the feature"
    )


def before_dropout(model: nn.Module, classifier: str, images: Tensor) -> nn.Module:
    """The module whose input is the feature: the classifier, or a dropout directly before it.

    What a dropout leaves of a feature is not what the layers below have learned to say, so that
    the feature is taken before it.

    Args:
        model: maps images to logits.
        classifier: dotted path of its classifier.
        images: (B, C, H, W) with B >= 1.
    """
    layer = model.get_submodule(classifier)
    last: list[tuple[nn.Module, Tensor]] = []  # the dropout that ran last, and its output
    runs: Counter[nn.Module] = Counter()
    found = [layer]

    def remember(module: nn.Module, args: Any, output: Tensor) -> None:
        runs[module] += 1
        last[:] = [(module, output.clone())]  # a later layer may work in place

    def compare(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = args[0] if args else kwargs["input"]
        if last and last[0][1].shape == value.shape and torch.equal(last[0][1], value):
            found[:] = [last[0][0]]

    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    hooks = [module.register_forward_hook(remember) for module in dropouts]
    hooks.append(layer.register_forward_pre_hook(compare, with_kwargs=True))
    try:
        with probing(model):
            model(as_parameters(images, model))
    finally:
        for handle in hooks:
            handle.remove()
    return layer if runs[found[0]] > 1 else found[0]  # one that is shared sees other things too


@contextlib.contextmanager
def probing(model: nn.Module) -> Iterator[None]:
    """Within it, the model is in eval mode and nothing records gradients."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training  # not train(), which some models override


def checked_logits(output: Any) -> Tensor:
    """A model's output, when it is logits (B, K).

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(output, Tensor):
        raise ValueError(
            f"the model returns a {type(output).__name__}: a logits tensor is expected"
        )
    if output.dim() != 2:
        raise ValueError(
            f"the model returns shape {tuple(output.shape)}: a logits tensor (batch, classes) is "
            "expected"
        )
    return output


def as_parameters(images: Tensor, model: nn.Module) -> Tensor:
    """Images on the device and in the dtype of a model's parameters."""
    parameter = next(model.parameters(), None)
    return images if parameter is None else images.to(parameter)


def _is_candidate(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    )


def _becomes(output: Tensor, logits: Tensor) -> bool:
    """Whether a layer's output is the logits, or a map of each class whose mean is its logit."""
    flat = output.flatten(1)
    if flat.shape == logits.shape and flat.allclose(logits, rtol=0.0, atol=0.0, equal_nan=True):
        return True
    if output.dim() != 4 or output.shape[:2] != logits.shape:
        return False
    # Not exact, because there are several ways to compute a mean. SqueezeNet rectifies first.
    means = (scores.mean((2, 3)) for scores in (output, output.relu()))  # (B, K) each
    return any(mean.allclose(logits, rtol=1e-3, atol=1e-6) for mean in means)

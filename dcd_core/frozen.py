"""A frozen teacher as fast as its device runs it.

Shape letters: B images, C channels, H x W pixels, K classes, D feature dimensions.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dcd_core.features import FeatureModel, HintedOutput, ModelOutput
from dcd_core.memory_format import use_channels_last_
from dcd_core.step import freeze_teacher

logger = logging.getLogger(__name__)


class FrozenTeacher(nn.Module):
    """A teacher that is only ever asked: BatchNorm folded, channels last, in inference mode.

    The model is changed in place and stays in eval mode. In half precision its convolutions and
    linear layers keep their weights in it, and the rest runs under autocast.

    Args:
        model: the teacher, on its device.
        images_example: images as it gets them, (B, C, H, W) there.
        precision: of its computation; what it gives is float32 in any case.

    Attributes:
        feature_dim: D.
        num_classes: K.
        hint_shapes: (C, h, w) of each intermediate feature.
        num_folded: how many BatchNorms were folded.
        precision: of its computation.
    """

    def __init__(
        self,
        model: FeatureModel,
        *,
        images_example: Tensor,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.model = freeze_teacher(model)
        self.feature_dim = model.feature_dim
        self.num_classes = model.num_classes
        self.hint_shapes = model.hint_shapes
        self.num_folded = fold_batch_norm_(model.model)
        self.precision = precision
        self._memory_format = torch.contiguous_format
        if use_channels_last_(model, images_example):
            self._memory_format = torch.channels_last
        if precision != torch.float32:
            for module in model.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.to(precision)

    def forward(self, images: Tensor) -> ModelOutput | HintedOutput:
        """What the model gives for images (B, C, H, W), without gradient."""
        with (
            torch.inference_mode(),
            torch.autocast(
                images.device.type, self.precision, enabled=self.precision != torch.float32
            ),
        ):
            output = self.model(images.contiguous(memory_format=self._memory_format))
        # Copies made here are ordinary tensors, which the heads may keep for their backward pass.
        logits, features, *hints = (value.clone().float() for value in _parts(output))
        if hints:
            return HintedOutput(logits, features, tuple(hints))
        return ModelOutput(logits, features)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the model itself, within inference mode."""
        self.model.compile(*args, **kwargs)

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stays in eval mode."""
        return super().train(False)


def _parts(output: ModelOutput | HintedOutput) -> list[Tensor]:
    hints = output.hints if isinstance(output, HintedOutput) else ()
    return [output.logits, output.features, *hints]


def fold_batch_norm_(model: nn.Module) -> int:
    """Fold each BatchNorm that directly follows a convolution or linear layer into its weights.

    Works in place on a model in eval mode. A layer that is used twice, whose output goes elsewhere
    too, or that has hooks is left as it is, and so is a model that torch.fx cannot follow.

    Returns:
        How many were folded.
    """
    try:
        graph = torch.fx.Tracer().trace(model)
    except Exception as error:  # any code of the model's own may run, with stand-ins for tensors
        logger.debug("%s is not folded: %s", type(model).__name__, error)
        return 0
    uses = Counter(node.target for node in graph.nodes if node.op == "call_module")
    modules = dict(model.named_modules())
    shared = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    folded = 0
    for node in graph.nodes:
        before = node.args[0] if node.args else None
        if (
            node.op != "call_module"
            or not isinstance(before, torch.fx.Node)
            or before.op != "call_module"
            or len(before.users) != 1
        ):
            continue
        norm, layer = modules.get(str(node.target)), modules.get(str(before.target))
        alone = uses[node.target] == uses[before.target] == 1
        if layer is None or norm is None or not alone or not _folds(layer, norm):
            continue
        if shared[id(layer)] > 1 or shared[id(norm)] > 1:
            continue
        _fold(layer, norm)
        path, _, name = str(node.target).rpartition(".")
        setattr(model.get_submodule(path), name, nn.Identity())
        folded += 1
    return folded


def _folds(layer: nn.Module, norm: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv2d | nn.Linear) or parametrize.is_parametrized(layer):
        return False
    if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or norm.running_mean is None:
        return False
    hooks = (layer._forward_hooks, layer._forward_pre_hooks)
    return not any((*hooks, norm._forward_hooks, norm._forward_pre_hooks))


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    """W' = W g, b' = (b - mean) g + beta with g = gamma / sqrt(var + eps), in float64."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    weight = layer.weight.detach().double()  # (out, ...)
    bias = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    if layer.bias is not None:
        bias = layer.bias.detach().double()
    factor = (norm.running_var.double() + norm.eps).rsqrt()  # (out,)
    if norm.weight is not None:
        factor = factor * norm.weight.detach().double()
    bias = (bias - norm.running_mean.double()) * factor  # (out,)
    if norm.bias is not None:
        bias = bias + norm.bias.detach().double()
    weight = weight * factor.reshape(-1, *[1] * (weight.dim() - 1))
    layer.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)

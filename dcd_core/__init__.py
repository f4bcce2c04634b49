"""Discriminative and Consistent Distillation (DCD, arXiv 2407.11802) in plain PyTorch.

Losses, models, augmentation and one training step, for use in any training loop.
"""

from __future__ import annotations

from dcd_core.augment import (
    center_crop,
    crop_flip,
    normalize,
    random_resized_crop,
    sample_order,
)
from dcd_core.batch_norm import synchronise_batch_norm
from dcd_core.classifier import find_classifier
from dcd_core.counter_hash import mix
from dcd_core.distiller import Distiller, DistillerOutput
from dcd_core.distributed import gather_rows, shares
from dcd_core.features import FeatureModel, HintedOutput, ModelOutput
from dcd_core.frozen import FrozenTeacher, fold_batch_norm_
from dcd_core.memory_format import use_channels_last_
from dcd_core.models import MODELS, build_model
from dcd_core.objective import Losses, Objective
from dcd_core.step import EpochMeans, Meter, MicroBatch, freeze_teacher, train_step
from dcd_core.terms import (
    consistency,
    cross_entropy,
    default_init_bias,
    kd_divergence,
    same_class_mask,
    sigmoid_contrast,
    similarity_logits,
    softmax_contrast,
)

__all__ = [
    "MODELS",
    "Distiller",
    "DistillerOutput",
    "EpochMeans",
    "FeatureModel",
    "FrozenTeacher",
    "HintedOutput",
    "Losses",
    "Meter",
    "MicroBatch",
    "ModelOutput",
    "Objective",
    "build_model",
    "center_crop",
    "consistency",
    "crop_flip",
    "cross_entropy",
    "default_init_bias",
    "find_classifier",
    "fold_batch_norm_",
    "freeze_teacher",
    "gather_rows",
    "kd_divergence",
    "mix",
    "normalize",
    "random_resized_crop",
    "same_class_mask",
    "sample_order",
    "shares",
    "sigmoid_contrast",
    "similarity_logits",
    "softmax_contrast",
    "synchronise_batch_norm",
    "train_step",
    "use_channels_last_",
]

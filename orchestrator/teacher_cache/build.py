"""From a run to the cache that it may use."""

from __future__ import annotations

import logging

import torch

from dcd_core import FrozenTeacher
from orchestrator.batches import Recipe
from orchestrator.build import feature_layers
from orchestrator.code_digest import code_digest
from orchestrator.data import Dataset
from orchestrator.evaluation import Images, PixelStatistics
from orchestrator.inputs import State, state_digest
from orchestrator.places import CachePlace
from orchestrator.reporter import Ranks
from orchestrator.spec import Experiment, TeacherSpec
from orchestrator.streaming.stream import Stream
from orchestrator.teacher_cache.cache import Cache, CacheError, Key, guarded
from orchestrator.teacher_cache.rows import DTYPES
from orchestrator.teacher_cache.teaching import CachedTeaching
from orchestrator.teaching import LiveTeaching, Teaching

logger = logging.getLogger(__name__)


def teacher_key(
    experiment: Experiment,
    teacher: TeacherSpec,
    state: State,
    network: FrozenTeacher,
    dataset: Dataset,
    *,
    pixels: PixelStatistics,
    device: torch.device,
) -> Key:
    """All that the answers depend on, but for the view.

    Args:
        experiment: of the student.
        teacher: with the source that rebuilds it.
        state: its weights.
        network: what they are in.
        dataset: whose training split it sees.
        pixels: what it sees.
        device: where it runs. A GPU computes convolutions in fp32 with fewer bits than a CPU.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    data = experiment.data
    augmentation: dict[str, object] = {"kind": data.augment}
    if data.augment != "none":
        augmentation |= {"seed": data.seed, "flip": data.flip}
    if data.augment == "crop_flip":
        augmentation["padding"] = data.crop_padding
    if data.augment == "imagenet":
        augmentation["size"] = data.crop_size
    return Key(
        {
            "teacher": teacher.source,
            "code": code_digest(network, builder=teacher.source.partition(":")[0]),
            "torch": torch.__version__,
            "device": device.type,
            "arguments": teacher.args,
            "weights": state_digest(state),
            "feature_layer": feature_layers(experiment.objective)["teacher"],
            "normalize": [list(pixels.mean), list(pixels.std)],
            "images": dataset.fingerprint,
            "source": data.source,
            "split": "train",
            # The order too, in which the images of a view are computed.
            "data_seed": data.seed,
            "augmentation": augmentation,
            "precision": names[network.precision],
            "dtype": names[kept_dtype(experiment, network.precision)],
        }
    )


def kept_dtype(experiment: Experiment, precision: torch.dtype) -> torch.dtype:
    """Of a teacher's answers, which is that of its computation unless another is asked for."""
    wanted, mode = experiment.teacher_cache.dtype, experiment.teacher_cache.mode
    return precision if wanted == "auto" or mode == "off" else DTYPES[wanted]


def build_teaching(
    place: CachePlace | None,
    experiment: Experiment,
    teacher: TeacherSpec,
    state: State | None,
    network: FrozenTeacher,
    dataset: Dataset,
    *,
    pixels: PixelStatistics,
    training: Images | Stream,
    recipe: Recipe,
    ranks: Ranks,
    own_rows: bool,
) -> Teaching:
    """Where a teacher's answers come from: from a cache, if there is a place for one that works.

    Args:
        place: of the cache; None for the teacher alone.
        experiment: of the student.
        teacher: as in `teacher_key`, and so are `state`, `network`, `dataset` and `pixels`.
        training: the training split's images. The answers to those that are streamed are not kept.
        recipe: their augmentation and batches.
        ranks: the processes that train together.
        own_rows: as in `CachedTeaching`.
    """
    dtype = kept_dtype(experiment, network.precision)
    live = LiveTeaching(network, pixels=pixels, dtype=dtype)
    if place is None or state is None or not isinstance(training, Images):
        return live
    if network.hint_shapes:
        logger.info(
            "the teacher runs in every step: its cache keeps no intermediate features, which "
            "method %r compares",
            experiment.objective.method,
        )
        return live
    try:
        with guarded():
            key = teacher_key(
                experiment, teacher, state, network, dataset, pixels=pixels, device=ranks.device
            )
        return CachedTeaching(
            live,
            Cache(place, key),
            training=training,
            recipe=recipe,
            ranks=ranks,
            own_rows=own_rows and recipe.views is None,
        )
    except CacheError as error:
        logger.warning("the teacher's answers are not kept: %s", error)
        return live

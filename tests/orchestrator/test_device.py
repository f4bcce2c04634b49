"""A step on a device that this machine need not have: nothing is on two devices, nobody waits.

Tensors are fake: they have a shape, a type and a device, and no values. An operation on two devices
fails as it would on a real GPU, and so does what would have to wait for a value.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from dcd_core import (
    Distiller,
    FeatureModel,
    FrozenTeacher,
    Meter,
    Objective,
    build_model,
    crop_flip,
    sample_order,
)
from dcd_core.augment import _per_channel
from orchestrator.batches import Needs, Recipe, prepare, select
from orchestrator.evaluation import Images, PixelStatistics
from orchestrator.reporter import Ranks
from orchestrator.teacher_cache.rows import Rows
from orchestrator.teacher_cache.tables import Resident
from orchestrator.teaching import LiveTeaching

GPU = torch.device("cuda")
PIXELS = PixelStatistics((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))

pytestmark = [
    pytest.mark.filterwarnings("ignore:CUDA is not available"),
    pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'"),
]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Networks are built on the device. Moving them is the one thing that fake ones cannot do.
    monkeypatch.setattr(nn.Module, "to", lambda self, *args, **kwargs: self)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)  # which takes a real driver
    _per_channel.cache_clear()  # it keeps tensors by device
    with FakeTensorMode():
        yield
    _per_channel.cache_clear()


def network() -> FeatureModel:
    with GPU:
        example = torch.zeros(2, 3, 32, 32)
        model = build_model("resnet8", num_classes=10)
        return FeatureModel(model, images_example=example, feature_layer="layer3")


def recipe() -> Recipe:
    def augment(images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        return crop_flip(images, seed=0, epoch=epoch, indices=indices)

    return Recipe(
        epochs=1,
        batch_size=16,
        accumulate=2,
        precision=torch.float32,
        memory_format=torch.channels_last,
        max_grad_norm=None,
        seed=0,
        data_seed=0,
        augment=augment,
        lr_factor=lambda epoch: 1.0,
        student_pixels=PIXELS,
    )


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("contrast", ["softmax", "sigmoid"])
@pytest.mark.parametrize("negatives", ["all", "other_class"])
def test_images_teacher_student_and_losses_stay_on_the_device(
    fake: None, resident: bool, contrast: str, negatives: str
) -> None:
    teacher, student = (
        FrozenTeacher(network(), images_example=torch.zeros(2, 3, 32, 32, device=GPU)),
        network(),
    )
    with GPU:
        distiller = Distiller(student, teacher_dim=teacher.feature_dim, learn_bias=True)
    images = Images(
        torch.zeros(64, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(64, dtype=torch.int64),
        torch.arange(64),
    )
    if resident:
        images = Images(*(tensor.to(GPU) for tensor in images))
    objective = Objective(
        ce_weight=1.0,
        kd_weight=1.0,
        kd_temperature=4.0,
        dcd_weight=1.0,
        consistency_weight=0.5,
        contrast=contrast,  # type: ignore[arg-type]
        negatives=negatives,  # type: ignore[arg-type]
    )
    meter = Meter(device=GPU)
    teaching = LiveTeaching(teacher, pixels=PIXELS)
    needs = Needs(takes_features=True, features=True, logits=True)
    for step, batch in enumerate(sample_order(0, 1, images.indices).split(16)):
        selections = select(
            batch,
            teaching,
            place=16 * step,
            training=images,
            recipe=recipe(),
            ranks=Ranks(device=GPU),
            needs=needs,
        )
        for selection in selections:
            part = prepare(selection, teaching, view=1, recipe=recipe(), needs=needs)
            output = distiller(part.images, part.teacher_features)
            losses = objective(output, labels=part.labels, teacher_logits=part.teacher_logits)
            assert losses.total.device.type == "cuda"
            meter.add(losses, num_images=part.num_images, step=step)
    distiller.limit_temperature_()


def test_the_check_sees_two_devices_and_a_wait(fake: None) -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(2, device=GPU) + torch.zeros(2)
    with pytest.raises(DataDependentOutputException):
        torch.zeros(2, device=GPU).sum().item()


@pytest.mark.parametrize("positions_on", ["cpu", "cuda"])
def test_kept_answers_lie_on_the_device(fake: None, positions_on: str) -> None:
    table = Resident(64, GPU)
    kept = [torch.zeros(64, width, dtype=torch.bfloat16) for width in (10, 32)]
    table.add(Rows(torch.arange(64), *kept))
    answers = table.take(torch.arange(16, device=positions_on))
    assert [part.shape for part in answers] == [(16, 10), (16, 32)]
    assert {part.device.type for part in answers} == {"cuda"}
    assert {part.dtype for part in answers} == {torch.float32}

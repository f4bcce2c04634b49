from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from tiny import TEACHER_DIM, TinyNet, random_batch, tiny_distiller
from torch import Tensor, nn

from dcd_core import (
    Distiller,
    DistillerOutput,
    FeatureModel,
    Meter,
    MicroBatch,
    Objective,
    train_step,
)

BATCH = random_batch(8)


def _scalar(value: Tensor | None) -> float:
    assert value is not None
    return value.item()


def _train(distiller: Distiller, objective: Objective, **settings: Any) -> None:
    groups = distiller.parameter_groups(lr=0.1, weight_decay=0.01, scalar_lr_ratio=0.5)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    for step in range(5):
        batch = random_batch(8, seed=step, dtype=next(distiller.parameters()).dtype)
        micro_batch = MicroBatch(
            batch.images, batch.labels, batch.teacher_logits, batch.teacher_features
        )
        train_step(
            distiller,
            [micro_batch],
            objective=objective,
            optimizer=optimizer,
            meter=Meter(),
            step=step,
            **settings,
        )


# Forward


def test_embeddings_are_the_heads_outputs_at_unit_length() -> None:
    distiller = tiny_distiller()
    output = distiller(BATCH.images, BATCH.teacher_features)
    assert output.student_embedding is not None
    assert output.teacher_embedding is not None
    for embedding, head, features in [
        (output.student_embedding, distiller.student_head, distiller.student(BATCH.images)[1]),
        (output.teacher_embedding, distiller.teacher_head, BATCH.teacher_features),
    ]:
        assert head is not None
        assert head.bias is not None
        projected = (features @ head.weight.T + head.bias).tolist()
        for row, vector in zip(embedding.tolist(), projected, strict=True):
            length = math.sqrt(sum(v * v for v in vector))
            assert row == pytest.approx([v / length for v in vector])


def test_the_logits_are_those_of_the_student() -> None:
    distiller = tiny_distiller()
    output = distiller(BATCH.images, BATCH.teacher_features)
    torch.testing.assert_close(output.logits, distiller.student.model(BATCH.images))


def test_a_zero_feature_gives_a_zero_embedding_with_a_finite_gradient() -> None:
    distiller = tiny_distiller()
    assert distiller.teacher_head is not None
    nn.init.zeros_(distiller.teacher_head.bias)
    features = BATCH.teacher_features.clone()
    features[0] = 0
    output = distiller(BATCH.images, features)
    assert output.teacher_embedding is not None
    assert output.teacher_embedding[0].abs().max() == 0
    Objective(kd_weight=0)(output, labels=BATCH.labels).total.backward()
    assert all(p.grad.isfinite().all() for p in distiller.parameters() if p.grad is not None)


def test_features_in_half_precision_give_float32_embeddings() -> None:
    distiller = tiny_distiller(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = distiller(BATCH.images.float(), BATCH.teacher_features.bfloat16())
    assert output.student_embedding is not None
    assert output.teacher_embedding is not None
    assert output.student_embedding.dtype == output.teacher_embedding.dtype == torch.float32
    norms = output.teacher_embedding.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(8), rtol=1e-6, atol=0)


def test_without_a_teacher_dimension_there_are_neither_heads_nor_scalars() -> None:
    student = FeatureModel(TinyNet(), images_example=BATCH.images)
    distiller = Distiller(student, teacher_dim=None)
    output = distiller(BATCH.images.float())
    assert output[1:] == (None,) * 5
    assert list(distiller.state_dict()) == [f"student.{k}" for k in student.state_dict()]
    assert distiller.temperature is None
    distiller.limit_temperature_()
    with pytest.raises(ValueError, match="teacher_dim was None"):
        distiller(BATCH.images.float(), BATCH.teacher_features)


def test_missing_and_mis_shaped_teacher_features_are_refused() -> None:
    distiller = tiny_distiller()
    with pytest.raises(ValueError, match=rf"\(8, {TEACHER_DIM}\), found None"):
        distiller(BATCH.images)
    with pytest.raises(ValueError, match=rf"\(8, {TEACHER_DIM}\), found \(8, 3\)"):
        distiller(BATCH.images, BATCH.teacher_features[:, :3])


@pytest.mark.parametrize(
    ("start", "limit"), [(0.05, 0.1), (1.0, 0.0), (1.0, -1.0), (math.inf, 0.1), (math.nan, 0.1)]
)
def test_an_impossible_temperature_is_refused(start: float, limit: float) -> None:
    with pytest.raises(ValueError, match="init_temperature"):
        tiny_distiller(init_temperature=start, min_temperature=limit)


def test_the_checkpoint_holds_student_heads_and_scalars_under_stable_names() -> None:
    names = list(tiny_distiller().state_dict())
    assert sorted(names) == [
        "bias",
        "log_temperature",
        "student.model.conv.bias",
        "student.model.conv.weight",
        "student.model.fc.bias",
        "student.model.fc.weight",
        "student_head.bias",
        "student_head.weight",
        "teacher_head.bias",
        "teacher_head.weight",
    ]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copied_distiller_gives_the_same_output(duplicate: Any) -> None:
    distiller = tiny_distiller()
    copied = duplicate(distiller)
    expected = distiller(BATCH.images, BATCH.teacher_features)
    torch.testing.assert_close(tuple(copied(BATCH.images, BATCH.teacher_features)), tuple(expected))


def test_every_setting_of_the_start_is_used() -> None:
    distiller = tiny_distiller(init_temperature=0.7, min_temperature=0.6, init_bias=-2.5)
    assert _scalar(distiller.temperature) == pytest.approx(0.7)
    assert _scalar(distiller.bias) == -2.5
    assert distiller.student_head is not None
    assert distiller.student_head.weight.shape == (4, 6)
    default = Distiller(FeatureModel(TinyNet(), images_example=BATCH.images), teacher_dim=3)
    assert default.student_head is not None
    assert default.student_head.out_features == 128
    assert _scalar(default.temperature) == pytest.approx(math.exp(-1))


# T and b


def test_scalars_are_in_a_group_of_their_own_without_decay() -> None:
    distiller = tiny_distiller(learn_bias=True)
    weights, scalars = distiller.parameter_groups(lr=0.2, weight_decay=5e-4, scalar_lr_ratio=0.1)
    assert (weights["name"], weights["lr"], weights["weight_decay"]) == ("weights", 0.2, 5e-4)
    assert (scalars["name"], scalars["weight_decay"]) == ("scalars", 0.0)
    assert scalars["lr"] == pytest.approx(0.02)
    assert [id(p) for p in scalars["params"]] == [
        id(distiller.log_temperature),
        id(distiller.bias),
    ]
    grouped = [*weights["params"], *scalars["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len(list(distiller.parameters()))


def test_a_frozen_bias_and_frozen_weights_are_in_no_group() -> None:
    distiller = tiny_distiller()
    distiller.student.model.conv.requires_grad_(False)
    groups = distiller.parameter_groups(lr=0.2, weight_decay=0, scalar_lr_ratio=0.1)
    grouped = {id(p) for group in groups for p in group["params"]}
    assert grouped == {id(p) for p in distiller.parameters() if p.requires_grad}
    assert id(distiller.bias) not in grouped


def test_without_heads_there_is_no_group_of_scalars() -> None:
    student = FeatureModel(TinyNet(), images_example=BATCH.images)
    groups = Distiller(student, teacher_dim=None).parameter_groups(
        lr=0.2, weight_decay=0, scalar_lr_ratio=0.1
    )
    assert [group["name"] for group in groups] == ["weights"]


def test_temperature_and_bias_move_in_training_under_sigmoid() -> None:
    distiller = tiny_distiller(learn_bias=True, init_bias=-2.0)
    temperature = _scalar(distiller.temperature)
    _train(distiller, Objective(contrast="sigmoid"))
    assert abs(_scalar(distiller.temperature) - temperature) > 1e-3
    assert abs(_scalar(distiller.bias) + 2.0) > 1e-3


def test_under_softmax_the_temperature_moves_and_the_frozen_bias_keeps_its_bits() -> None:
    distiller = tiny_distiller(init_bias=0.1, dtype=torch.float32)
    before = distiller.bias.detach().clone() if distiller.bias is not None else None
    temperature = _scalar(distiller.temperature)
    _train(distiller, Objective())
    assert distiller.bias is not None
    assert before is not None
    assert not distiller.bias.requires_grad
    assert distiller.bias.grad is None
    assert torch.equal(distiller.bias, before)
    assert abs(_scalar(distiller.temperature) - temperature) > 1e-4


def test_the_ratio_of_the_scalars_learning_rate_sets_how_far_they_move() -> None:
    moved = []
    for ratio in (0.1, 0.2):
        distiller = tiny_distiller()
        groups = distiller.parameter_groups(lr=0.1, weight_decay=0, scalar_lr_ratio=ratio)
        micro_batch = MicroBatch(
            BATCH.images, BATCH.labels, BATCH.teacher_logits, BATCH.teacher_features
        )
        assert distiller.log_temperature is not None
        before = distiller.log_temperature.item()
        train_step(
            distiller,
            [micro_batch],
            objective=Objective(),
            optimizer=torch.optim.SGD(groups),
            meter=Meter(),
            step=0,
        )
        moved.append(distiller.log_temperature.item() - before)
    assert moved[1] == pytest.approx(2 * moved[0], rel=1e-9)


def test_a_temperature_at_its_limit_still_has_a_gradient_and_comes_back() -> None:
    distiller = tiny_distiller(init_temperature=0.2, min_temperature=0.2)
    assert distiller.log_temperature is not None
    with torch.no_grad():
        distiller.log_temperature.sub_(3)
    distiller.limit_temperature_()
    assert _scalar(distiller.temperature) == pytest.approx(0.2)
    # Teachers paired with the wrong students: only a higher temperature lowers the loss.
    output = distiller(BATCH.images, BATCH.teacher_features)
    output = output._replace(student_embedding=output.teacher_embedding.roll(1, 0))
    loss = Objective(kd_weight=0)(output, labels=BATCH.labels).total
    (grad,) = torch.autograd.grad(loss, distiller.log_temperature)
    assert grad < -0.1
    with torch.no_grad():
        distiller.log_temperature.sub_(0.1 * grad)
    distiller.limit_temperature_()
    assert _scalar(distiller.temperature) > 0.201


def test_steps_that_pull_the_temperature_down_end_at_its_limit() -> None:
    distiller = tiny_distiller(init_temperature=0.6, min_temperature=0.5)
    assert distiller.log_temperature is not None
    pairs = torch.eye(4).double()  # each student equals its teacher: the colder, the better
    for _ in range(3):
        output = DistillerOutput(
            logits=torch.zeros(4, 5).double(),
            student_embedding=pairs,
            teacher_embedding=pairs,
            log_temperature=distiller.log_temperature,
            bias=distiller.bias,
        )
        loss = Objective(kd_weight=0)(output, labels=torch.arange(4)).total
        (grad,) = torch.autograd.grad(loss, distiller.log_temperature)
        assert grad > 0.1
        with torch.no_grad():
            distiller.log_temperature.sub_(grad)
        distiller.limit_temperature_()
    assert _scalar(distiller.temperature) == pytest.approx(0.5)


# No rows


class _RefusesEmptyBatches(TinyNet):
    def forward(self, images: Tensor) -> Tensor:
        if len(images) == 0:
            raise RuntimeError("no images")
        return super().forward(images)


@pytest.mark.parametrize("name", [None, "resnet8"])
def test_a_rank_without_rows_has_zero_gradients_and_untouched_statistics(name: str | None) -> None:
    distiller = tiny_distiller(name=name)
    if name is None:
        distiller.student.model.__class__ = _RefusesEmptyBatches
    distiller.train()
    before = copy.deepcopy(distiller.state_dict())
    none = BATCH.rows(slice(0, 0))
    output = distiller(none.images, none.teacher_features)
    assert output.logits.shape == (0, 5)
    losses = Objective(ce_weight=1, kd_weight=1)(
        output, labels=none.labels, teacher_logits=none.teacher_logits, counts=[1, 0], rank=1
    )
    losses.total.backward()
    assert losses.total.item() == 0
    for key, parameter in distiller.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.abs().max() == 0, key
    torch.testing.assert_close(dict(distiller.state_dict()), dict(before), rtol=0, atol=0)
    assert all(module.training for module in distiller.modules())


class _Standardises(nn.Module):
    """Divides each image by its own standard deviation, which a blank image does not have."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images / images.std((1, 2, 3), keepdim=True))
        return logits


def test_a_rank_without_rows_has_zero_gradients_whatever_blank_images_would_give() -> None:
    model = _Standardises(tiny_distiller().student.model)
    distiller = Distiller(FeatureModel(model, images_example=BATCH.images), teacher_dim=None)
    output = distiller(BATCH.images[:0])
    assert output.logits.shape == (0, 5)
    output.logits.sum().backward()
    for key, parameter in distiller.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() == 0, key

"""CRD with a bank and in the batch, and RRD, against values by hand."""

from __future__ import annotations

import math

import pytest
import torch
from method_examples import SMALL, STUDENT, TEACHER, build, learn, lesson, noise, says, use_identity

from dcd_core import mix
from dcd_core.objectives import Lesson, NetworkSizes, Rows, Sizes
from dcd_core.objectives.crd import CRD
from dcd_core.objectives.crd_batch import CRDBatch
from dcd_core.objectives.rrd import RRD

PLAIN = NetworkSizes(2)


def _crd_batch(**options: object) -> CRDBatch:
    method = build("crd_batch", student=PLAIN, teacher=PLAIN, projection_dim=2, **options)
    assert isinstance(method, CRDBatch)
    use_identity(method.student_head, method.teacher_head)
    return method


def test_crd_in_the_batch_finds_the_pair_in_both_directions() -> None:
    """Students (1, 0), (0, 1) and teachers (1, 0), (1, 0)."""
    student = says(2, features=[[3.0, 0], [0, 1]])
    teacher = says(2, features=[[1.0, 0], [2, 0]])
    loss = learn(_crd_batch(temperature=1.0), student, teacher)
    from_student = math.log(2)  # the two teachers are alike
    from_teacher = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1))) / 2
    assert loss.item() == pytest.approx(from_student + from_teacher)


def test_crd_in_the_batch_leaves_images_of_the_same_class_out() -> None:
    student = says(2, features=[[3.0, 0], [0, 1]])
    teacher = says(2, features=[[1.0, 0], [2, 0]])
    assert learn(_crd_batch(), student, teacher, labels=[1, 1]).item() == 0
    everyone = learn(_crd_batch(negatives="all"), student, teacher, labels=[1, 1])
    assert everyone.item() == learn(_crd_batch(), student, teacher, labels=[0, 1]).item() > 0


def test_crd_in_the_batch_approaches_zero_for_pairs_that_are_far_apart() -> None:
    student = says(2, features=[[1.0, 0], [-1, 0]])
    assert learn(_crd_batch(), student, student).item() == pytest.approx(0, abs=1e-11)


def _rrd(**options: object) -> RRD:
    method = build("rrd", student=PLAIN, teacher=PLAIN, projection_dim=2, **options)
    assert isinstance(method, RRD)
    use_identity(method.student_head, method.teacher_head)
    return method


def _softmax(*values: float) -> list[float]:
    total = sum(map(math.exp, values))
    return [math.exp(value) / total for value in values]


def _kl(wanted: list[float], own: list[float]) -> float:
    return sum(w * math.log(w / o) for w, o in zip(wanted, own, strict=True))


def test_rrd_compares_similarities_to_the_images_seen_lately() -> None:
    """The queue holds (1, 0) and (0, 1), the teacher's embeddings of this first batch."""
    student = says(2, features=[[3.0, 0], [2, 0]])
    teacher = says(2, features=[[1.0, 0], [0, 1]])
    method = _rrd(queue_size=4, student_temperature=1.0, teacher_temperature=0.5)
    loss = learn(method, student, teacher)
    by_hand = (_kl(_softmax(2, 0), _softmax(1, 0)) + _kl(_softmax(0, 2), _softmax(1, 0))) / 2
    assert loss.item() == pytest.approx(by_hand)
    # Another image: the queue holds three.
    loss = learn(method, says(1, features=[[0.0, 1]]), says(1, features=[[0.0, -1]]))
    assert loss.item() == pytest.approx(_kl(_softmax(0, -2, 2), _softmax(0, 1, -1)))


def test_rrd_forgets_the_oldest_images_first() -> None:
    method = _rrd(queue_size=3)
    angles = torch.arange(7) / 4
    for images in ([0, 1], [2, 3], [4, 5]):
        features = torch.stack([angles[images].cos(), angles[images].sin()], dim=1).tolist()
        learn(method, says(2, features=features), says(2, features=features))
    kept = torch.atan2(method.queue[:, 1], method.queue[:, 0])
    torch.testing.assert_close(kept.sort().values, angles[3:6].double())
    # More images than places at once.
    features = torch.stack([angles[:5].cos(), angles[:5].sin()], dim=1).tolist()
    learn(method, says(5, features=features), says(5, features=features))
    kept = torch.atan2(method.queue[:, 1], method.queue[:, 0])
    torch.testing.assert_close(kept.sort().values, angles[2:5].double())


def test_rrd_is_zero_where_both_see_the_same_similarities() -> None:
    student = says(3, features=[[1.0, 0], [0, 1], [0.6, 0.8]])
    method = _rrd(student_temperature=0.1, teacher_temperature=0.1)
    assert learn(method, student, student).item() == pytest.approx(0, abs=1e-12)


def test_rrd_keeps_the_teacher_s_projection_as_it_was() -> None:
    assert not any(p.requires_grad for p in _rrd().teacher_head.parameters())


# CRD with a bank

LABELS = [0, 1, 1, 2]


def _crd(**options: object) -> CRD:
    torch.manual_seed(3)
    method = CRD(
        Sizes(PLAIN, PLAIN, torch.tensor(LABELS), seed=5),
        **{"num_negatives": 6, "projection_dim": 2, "temperature": 0.5, **options},  # type: ignore[arg-type]
    ).double()
    use_identity(method.student_head, method.teacher_head)
    return method


def _crd_by_hand(
    method: CRD, student: list[list[float]], teacher: list[list[float]], positions: list[int]
) -> float:
    """The equations image by image, for a method that has not seen any."""
    numbers = positions[0] * method.num_negatives + torch.arange(method.num_negatives)
    drawn = (mix(5, 1, numbers, 13) % len(LABELS)).tolist()

    def similarity(a: list[float], b: list[float]) -> float:
        return math.exp((a[0] * b[0] + a[1] * b[1]) / method.temperature)

    total = 0.0
    for anchors, bank in (
        (student, method.teacher_bank.tolist()),
        (teacher, method.student_bank.tolist()),
    ):
        positive, negative = [], []
        for anchor, position in zip(anchors, positions, strict=True):
            others = [k for k in drawn if LABELS[k] != LABELS[position]]
            positive.append(similarity(anchor, bank[position]))
            negative.append([similarity(anchor, bank[k]) for k in others])
        everything = positive + [value for values in negative for value in values]
        z = len(LABELS) * sum(everything) / len(everything)
        for own, others in zip(positive, negative, strict=True):
            noise = z * len(others) / len(LABELS)
            total -= math.log(own / (own + noise))
            total -= sum(math.log(1 - value / (value + noise)) for value in others)
    return total / len(positions)


def test_crd_tells_an_image_s_entry_from_those_of_other_classes() -> None:
    student, teacher = [[1.0, 0], [0.6, 0.8]], [[0.0, 1], [0.8, -0.6]]
    method = _crd()
    by_hand = _crd_by_hand(method, student, teacher, [2, 0])
    loss = learn(
        method,
        says(2, features=student),
        says(2, features=teacher),
        labels=[1, 0],
        positions=[2, 0],
        epoch=1,
    )
    assert loss.item() == pytest.approx(by_hand)


def test_the_entries_of_the_images_move_and_no_others() -> None:
    method = _crd(momentum=0.25)
    before = method.student_bank.clone()
    student = says(2, features=[[1.0, 0], [0, 1]])
    learn(method, student, says(2, features=[[1.0, 1], [2, 0]]), labels=[1, 0], positions=[2, 0])
    for position, embedding in ((2, [1.0, 0]), (0, [0.0, 1])):
        moved = 0.25 * before[position] + 0.75 * torch.tensor(embedding).double()
        torch.testing.assert_close(method.student_bank[position], moved / moved.norm())
    for position in (1, 3):
        assert torch.equal(method.student_bank[position], before[position])
    torch.testing.assert_close(method.teacher_bank.norm(dim=1), torch.ones(4).double())


def test_z_is_that_of_the_first_micro_batch() -> None:
    method = _crd()
    assert not method.knows_z
    said = says(2, features=[[1.0, 0], [0, 1]])
    learn(method, said, said, labels=[1, 0], positions=[2, 0])
    first = method.log_z.clone()
    assert method.knows_z
    assert first.isfinite().all()
    learn(method, said, said, labels=[2, 1], positions=[3, 1])
    assert torch.equal(method.log_z, first)


def test_negatives_depend_on_seed_epoch_and_images_only() -> None:
    said = says(2, features=[[1.0, 0], [0, 1]])

    def loss(seed: int = 5, epoch: int = 1, positions: tuple[int, int] = (2, 0)) -> float:
        method = _crd()
        method.seed = seed
        labels = [LABELS[position] for position in positions]
        return learn(method, said, said, labels=labels, positions=positions, epoch=epoch).item()

    assert loss() == loss()
    values = {loss(), loss(seed=6), loss(epoch=2), loss(epoch=3), loss(epoch=4)}
    assert len(values) >= 4  # few draws of few images may coincide


def test_crd_without_images_of_another_class_is_zero() -> None:
    torch.manual_seed(3)
    method = CRD(Sizes(PLAIN, PLAIN, torch.zeros(3, dtype=torch.int64)), num_negatives=4).double()
    said = says(2, features=[[1.0, 0], [0, 1]])
    loss = learn(method, said, said, labels=[0, 0], positions=[0, 1])
    assert loss.item() == 0
    assert method.log_z.isfinite().all()


def test_a_bank_that_was_saved_goes_on_as_if_nothing_had_happened() -> None:
    batches = [(noise(STUDENT, 4, seed=s), noise(TEACHER, 4, seed=s + 20)) for s in range(4)]
    whole, second_half = build("crd"), build("crd")
    for step, (student, teacher) in enumerate(batches[:2]):
        whole(student, lesson(teacher, seed=step))
    second_half.load_state_dict(whole.state_dict())
    for step, (student, teacher) in enumerate(batches[2:]):
        taught = lesson(teacher, seed=step + 2)
        assert torch.equal(whole(student, taught), second_half(student, taught))


def test_the_defaults_are_the_paper_s() -> None:
    assert "crd" in SMALL
    method = CRD(Sizes(PLAIN, PLAIN, torch.tensor(LABELS)))
    assert (method.temperature, method.num_negatives, method.momentum) == (0.07, 16384, 0.5)
    assert method.student_bank.shape == (4, 128)
    assert Lesson(says(1), torch.tensor([0]), Rows([1])).epoch == 1

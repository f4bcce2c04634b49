"""Training on several ranks equals training in one process on the whole batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rank_pool import RankPool
from tiny import Batch, random_batch, tiny_distiller
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from dcd_core import (
    Distiller,
    DistillerOutput,
    Losses,
    Meter,
    MicroBatch,
    Objective,
    shares,
    synchronise_batch_norm,
    train_step,
)

ALL_TERMS = Objective(
    ce_weight=0.7, kd_weight=1.3, kd_temperature=3.0, dcd_weight=0.9, consistency_weight=0.4
)
SIGMOID = dataclasses.replace(ALL_TERMS, contrast="sigmoid")


def _own(batch: Batch, counts: list[int], rank: int) -> Batch:
    first = sum(counts[:rank])
    return batch.rows(slice(first, first + counts[rank]))


def _grads(distiller: Distiller) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in distiller.named_parameters() if p.requires_grad}


def _values(losses: Losses) -> dict[str, float]:
    return {"total": losses.total.item(), **{k: v.item() for k, v in losses.terms.items()}}


def _one_backward(
    rank: int,
    group: dist.ProcessGroup | None,
    objective: Objective,
    counts: list[int],
    find_unused: bool,
) -> tuple[dict[str, float], dict[str, Tensor | None]]:
    distiller = tiny_distiller(learn_bias=True, init_bias=-1.0)
    module = DistributedDataParallel(
        distiller, process_group=group, find_unused_parameters=find_unused
    )
    batch = _own(random_batch(sum(counts)), counts, rank)
    losses = objective(
        module(batch.images, batch.teacher_features),
        labels=batch.labels,
        teacher_logits=batch.teacher_logits,
        counts=counts,
        rank=rank,
        group=group,
    )
    losses.total.backward()
    return _values(losses), _grads(distiller)


@pytest.mark.parametrize("find_unused", [False, True], ids=["", "find unused"])
@pytest.mark.parametrize("counts", [[3, 3], [4, 1], [2, 0], [2, 2, 2, 1], [1, 1, 1, 0]], ids=str)
@pytest.mark.parametrize(
    "objective",
    [
        ALL_TERMS,
        SIGMOID,
        dataclasses.replace(ALL_TERMS, negatives="other_class"),
        dataclasses.replace(SIGMOID, negatives="other_class", consistency_weight=0),
        dataclasses.replace(ALL_TERMS, ce_weight=0, kd_weight=0),
        dataclasses.replace(ALL_TERMS, dcd_weight=0),
    ],
    ids=["softmax", "sigmoid", "other class", "sigmoid other class", "dcd alone", "ce and kd"],
)
def test_the_loss_and_every_gradient_equal_one_process_on_the_whole_batch(
    ranks: RankPool, objective: Objective, counts: list[int], find_unused: bool
) -> None:
    distiller, batch = tiny_distiller(learn_bias=True, init_bias=-1.0), random_batch(sum(counts))
    losses = objective(
        distiller(batch.images, batch.teacher_features),
        labels=batch.labels,
        teacher_logits=batch.teacher_logits,
    )
    losses.total.backward()
    expected = _grads(distiller)
    answers = ranks.run(len(counts), _one_backward, objective, counts, find_unused)
    for name, value in _values(losses).items():
        mean = sum(values[name] for values, _ in answers) / len(counts)
        assert mean == pytest.approx(value, rel=1e-13, abs=1e-15)
    for _, grads in answers:
        assert grads.keys() == expected.keys()
        for name, grad in expected.items():
            torch.testing.assert_close(grads[name], grad, rtol=1e-11, atol=1e-14, msg=name)


@pytest.mark.parametrize("objective", [ALL_TERMS, SIGMOID], ids=["softmax", "sigmoid"])
def test_one_image_over_all_ranks_gives_zero_dcd_terms_and_the_same_gradients(
    ranks: RankPool, objective: Objective
) -> None:
    distiller, batch = tiny_distiller(learn_bias=True, init_bias=-1.0), random_batch(1)
    output = distiller(batch.images, batch.teacher_features)
    losses = objective(output, labels=batch.labels, teacher_logits=batch.teacher_logits)
    losses.total.backward()
    for values, grads in ranks.run(2, _one_backward, objective, [1, 0], False):
        assert values["contrast"] == values["consistency"] == 0
        torch.testing.assert_close(grads, _grads(distiller), rtol=1e-12, atol=1e-14)


# Training


def _gradients_sent(rank: int, group: dist.ProcessGroup | None, accumulate: int) -> int:
    """Numbers that DDP sends to reduce the gradients of one step."""
    distiller = tiny_distiller()
    module = DistributedDataParallel(distiller, process_group=group)
    sent = 0

    def hook(state, bucket):  # type: ignore[no-untyped-def]  # DDP refuses annotations as strings
        nonlocal sent
        sent += bucket.buffer().numel()
        work = dist.all_reduce(bucket.buffer().div_(2), group=group, async_op=True)
        assert work is not None
        return work.get_future().then(lambda future: future.value()[0])

    module.register_comm_hook(None, hook)
    own = _own(random_batch(4), [2, 2], rank)
    micro_batch = MicroBatch(
        own.images, own.labels, own.teacher_logits, own.teacher_features, [2, 2]
    )
    train_step(
        module,
        [micro_batch] * accumulate,
        objective=ALL_TERMS,
        optimizer=torch.optim.SGD(distiller.parameters(), lr=0.1),
        meter=Meter(),
        step=0,
        rank=rank,
        group=group,
    )
    return sent


def test_gradients_are_reduced_once_a_step_however_many_micro_batches(ranks: RankPool) -> None:
    assert ranks.run(2, _gradients_sent, 3) == ranks.run(2, _gradients_sent, 1)


def _train(
    distiller: Distiller,
    module: torch.nn.Module,
    *,
    rank: int,
    num_ranks: int,
    group: dist.ProcessGroup | None,
    accumulate: int,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    groups = distiller.parameter_groups(lr=0.05, weight_decay=5e-4, scalar_lr_ratio=0.1)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    meter = Meter()
    for step, num_images in enumerate([8, 8, 6 if accumulate == 2 else 3]):
        micro_batches = []
        for rows in range(accumulate):
            micro_images = num_images // accumulate
            counts = shares(micro_images, num_ranks)
            whole = random_batch(num_images, seed=step)
            own = _own(
                whole.rows(slice(rows * micro_images, (rows + 1) * micro_images)), counts, rank
            )
            micro_batches.append(
                MicroBatch(own.images, own.labels, own.teacher_logits, own.teacher_features, counts)
            )
        train_step(
            module,
            micro_batches,
            objective=dataclasses.replace(SIGMOID, negatives="other_class"),
            optimizer=optimizer,
            meter=meter,
            step=step,
            rank=rank,
            group=group,
            max_norm=2.0,
        )
    means = meter.result(group).means if num_ranks > 1 else meter.result().means
    return means, {k: v.detach().clone() for k, v in distiller.state_dict().items()}


def _train_on_ranks(
    rank: int,
    group: dist.ProcessGroup | None,
    name: str | None,
    accumulate: int,
    compiled: bool,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    distiller = synchronise_batch_norm(tiny_distiller(name=name, learn_bias=True), group)
    if compiled:
        torch.compiler.reset()
        distiller.student.compile(backend="aot_eager")
    return _train(
        distiller,
        DistributedDataParallel(distiller, process_group=group),
        rank=rank,
        num_ranks=dist.get_world_size(group),
        group=group,
        accumulate=accumulate,
    )


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", [None, "resnet8"])
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_training_on_ranks_with_synchronised_batch_norm_equals_training_in_one_process(
    ranks: RankPool, name: str | None, accumulate: int, num_ranks: int
) -> None:
    distiller = tiny_distiller(name=name, learn_bias=True)
    means, state = _train(
        distiller, distiller, rank=0, num_ranks=1, group=None, accumulate=accumulate
    )
    # The last batch of 3 leaves one of four ranks without rows.
    for other_means, other_state in ranks.run(num_ranks, _train_on_ranks, name, accumulate, False):
        assert other_means == pytest.approx(means, rel=1e-10)
        torch.testing.assert_close(other_state, state, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_a_compiled_student_trains_the_same_on_ranks(ranks: RankPool) -> None:
    plain = ranks.run(2, _train_on_ranks, "resnet8", 1, False)
    compiled = ranks.run(2, _train_on_ranks, "resnet8", 1, True)
    assert compiled[0][0] == pytest.approx(plain[0][0], rel=1e-8)
    torch.testing.assert_close(compiled[0][1], plain[0][1], rtol=1e-6, atol=1e-8)


def _train_with_local_batch_norm(
    rank: int, group: dist.ProcessGroup | None
) -> tuple[dict[str, float], dict[str, Tensor]]:
    distiller = tiny_distiller(name="resnet8", learn_bias=True)
    return _train(
        distiller,
        DistributedDataParallel(distiller, process_group=group),
        rank=rank,
        num_ranks=dist.get_world_size(group),
        group=group,
        accumulate=1,
    )


def test_with_local_batch_norm_a_rank_without_rows_joins_and_weights_stay_equal(
    ranks: RankPool,
) -> None:
    answers = ranks.run(4, _train_with_local_batch_norm)
    for means, state in answers[1:]:
        assert means == answers[0][0]
        for key, value in state.items():
            if "running" not in key and "num_batches" not in key:
                assert torch.equal(value, answers[0][1][key]), key


def _bad_on_one_rank(rank: int, group: dist.ProcessGroup | None) -> Any:
    meter = Meter()
    for step in range(4):
        value = float("nan") if (rank, step) in {(1, 2), (0, 3)} else float(rank)
        meter.add(Losses(torch.tensor(1.0), {"ce": torch.tensor(value)}), num_images=4, step=step)
    return meter.result(group)


def test_every_rank_learns_the_first_bad_step_of_any_rank(ranks: RankPool) -> None:
    for result in ranks.run(2, _bad_on_one_rank):
        assert result.first_bad == {"ce": 2}
        assert result.means["total"] == 1.0


def _logits_size(rank: int, group: dist.ProcessGroup | None, counts: list[int]) -> int:
    """Elements of the largest tensor that the objective makes, forward and backward."""
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    batch = _own(random_batch(sum(counts)), counts, rank)
    output = tiny_distiller()(batch.images, batch.teacher_features)
    output = DistillerOutput(*(part.detach().requires_grad_() for part in output[:5]))
    with Sizes():
        dataclasses.replace(ALL_TERMS, kd_weight=0)(
            output, labels=batch.labels, counts=counts, rank=rank, group=group
        ).total.backward()
    return largest


def test_no_rank_makes_more_than_its_rows_of_the_logits(ranks: RankPool) -> None:
    assert ranks.run(4, _logits_size, shares(64, 4)) == [16 * 64] * 4

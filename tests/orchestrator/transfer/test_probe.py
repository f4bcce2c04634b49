"""Linear probes, against data that they must separate and a formula for one step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from orchestrator.transfer.probe import Labelled, ProbeSettings, top_k, train_probe


def separable(num_images: int, seed: int) -> Labelled:
    """Three classes, each around a corner of its own."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % 3
    corners = torch.tensor([[4.0, 0, 0, 0], [0, 4, 0, 0], [0, 0, 4, 4]])
    return Labelled(corners[labels] + torch.rand(num_images, 4, generator=generator), labels)


def overlapping(num_images: int, seed: int) -> Labelled:
    """Classes that no probe separates, so that accuracy goes up and down."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % 3
    features = nn.functional.one_hot(labels, 4) + torch.randn(num_images, 4, generator=generator)
    return Labelled(features, labels)


def test_a_probe_separates_what_is_separable() -> None:
    settings = ProbeSettings(epochs=20)
    probe = train_probe(
        separable(90, 0), separable(30, 1), num_classes=3, settings=settings, seed=0
    )
    assert top_k(probe.best, separable(60, 2), k=1) == 100.0
    assert probe.history[20]["train/loss"] < probe.history[1]["train/loss"]


def test_one_step_over_all_images_is_that_of_the_gradient_written_out() -> None:
    train = overlapping(12, 0)
    settings = ProbeSettings(epochs=1, lr=0.5, batch_size=100)
    probe = train_probe(train, train, num_classes=3, settings=settings, seed=7)

    torch.manual_seed(7)
    start = nn.Linear(4, 3)
    x, truth = train.features, nn.functional.one_hot(train.labels, 3).float()  # (M, D), (M, K)
    logits = x @ start.weight.T + start.bias
    error = logits.exp() / logits.exp().sum(1, keepdim=True) - truth  # (M, K)
    torch.testing.assert_close(probe.last.weight, start.weight - 0.5 * error.T @ x / 12)
    torch.testing.assert_close(probe.last.bias, start.bias - 0.5 * error.mean(0))


def test_momentum_keeps_nine_tenths_of_the_last_step() -> None:
    train = overlapping(12, 0)
    # At so small a rate the gradient hardly changes. With two epochs, the rate falls twice after
    # the first: at a quarter and at half of the run.
    settings = ProbeSettings(epochs=2, lr=1e-2, batch_size=100)
    probe = train_probe(train, train, num_classes=3, settings=settings, seed=7)
    torch.manual_seed(7)
    start = nn.Linear(4, 3)
    once = train_probe(
        train, train, num_classes=3, settings=settings._replace(epochs=1), seed=7
    ).last
    first: Tensor = once.weight - start.weight
    second = probe.last.weight - once.weight
    torch.testing.assert_close(second, 0.01 * (1 + 0.9) * first, rtol=0.03, atol=1e-6)


def test_the_rate_falls_at_a_quarter_half_and_three_quarters() -> None:
    train = overlapping(12, 0)
    settings = ProbeSettings(epochs=8, lr=1e-2, batch_size=100)
    probe = train_probe(train, train, num_classes=3, settings=settings, seed=3)
    torch.manual_seed(3)
    start = nn.Linear(4, 3)
    once = train_probe(
        train, train, num_classes=3, settings=settings._replace(epochs=1), seed=3
    ).last
    gradient = (once.weight - start.weight) / 1e-2
    rates = [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5]
    velocity, moved = 0.0, 0.0
    for rate in rates:
        velocity = 0.9 * velocity + 1.0
        moved += rate * velocity
    torch.testing.assert_close(
        probe.last.weight - start.weight, moved * gradient, rtol=0.05, atol=1e-4
    )


def test_the_kept_probe_is_that_of_the_epoch_with_the_best_validation_top1() -> None:
    val = overlapping(31, 1)
    settings = ProbeSettings(epochs=12, lr=0.5, batch_size=8)
    probe = train_probe(overlapping(40, 0), val, num_classes=3, settings=settings, seed=0)
    top1 = {epoch: metrics["val/top1"] for epoch, metrics in probe.history.items()}
    assert len(set(top1.values())) > 2
    assert top1[probe.best_epoch] == max(top1.values())
    assert top_k(probe.best, val, k=1) == top1[probe.best_epoch]
    assert top_k(probe.last, val, k=1) == top1[12]


def test_of_equally_accurate_epochs_the_one_with_the_lowest_validation_loss_is_kept() -> None:
    train, val = separable(90, 0), separable(9, 1)
    settings = ProbeSettings(epochs=8, lr=0.05)
    probe = train_probe(train, val, num_classes=3, settings=settings, seed=0)
    equal = [epoch for epoch, metrics in probe.history.items() if metrics["val/top1"] == 100.0]
    assert len(equal) > 3
    assert probe.best_epoch == 8  # the loss of what is separable only falls
    assert probe.history[8]["val/loss"] == pytest.approx(
        float(nn.functional.cross_entropy(probe.best(val.features), val.labels).detach())
    )


def test_a_seed_gives_the_same_probe_again_and_another_seed_another_one() -> None:
    train, settings = overlapping(40, 0), ProbeSettings(epochs=3, batch_size=8)
    one, again, other = (
        train_probe(train, train, num_classes=3, settings=settings, seed=seed).last.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_training_a_probe_leaves_the_random_numbers_of_the_process_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_probe(separable(9, 0), separable(9, 0), num_classes=3, settings=ProbeSettings(1), seed=0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("k", "expected"), [(1, 50.0), (2, 100.0)])
def test_top_k_counts_the_class_among_the_k_first(k: int, expected: float) -> None:
    linear = nn.Linear(3, 3, bias=False)
    linear.weight.data = torch.eye(3)
    split = Labelled(torch.tensor([[3.0, 2, 1], [3, 2, 1]]), torch.tensor([0, 1]))
    assert top_k(linear, split, k=k) == expected

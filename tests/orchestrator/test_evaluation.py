"""Scores by class, and what part of an image is scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from dcd_core import FeatureModel
from orchestrator.evaluation import Images, PixelStatistics, evaluate
from orchestrator.reporter import Ranks

PIXELS = PixelStatistics((0.0,), (1.0,))


class ByBrightness(nn.Module):
    """Answers with the class whose number is ten times the brightest value."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(1, num_classes)
        with torch.no_grad():
            # The logit of class k is k x - k^2 / 2, largest for the k nearest to x.
            self.fc.weight.copy_(torch.arange(num_classes)[:, None])
            self.fc.bias.copy_(-(torch.arange(num_classes) ** 2) / 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(images.amax((2, 3)) * 255 / 10)
        return logits


def split(values: list[int], labels: list[int]) -> Images:
    images = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 16, 16)
    return Images(images.contiguous(), torch.tensor(labels), torch.arange(len(labels)))


def classifier(num_classes: int) -> FeatureModel:
    return FeatureModel(ByBrightness(num_classes), images_example=torch.zeros(2, 1, 16, 16))


def test_each_class_has_its_own_accuracy_and_none_without_images() -> None:
    # Answers 0 0 1 1 2 3 for labels 0 0 0 1 1 3; nothing is of class 2.
    images = split([0, 0, 10, 10, 20, 30], [0, 0, 0, 1, 1, 3])

    scores = evaluate(classifier(4), images, pixels=PIXELS, ranks=Ranks(), crop_size=None)

    assert scores.class_top1 == pytest.approx((200 / 3, 50.0, None, 100.0))
    assert scores.top1 == pytest.approx(100 * 4 / 6)


def test_with_a_crop_size_only_the_centre_counts() -> None:
    images = split([10, 10], [1, 1])
    images.images[:, :, 0] = 30  # a bright edge, outside the inner 14 of 16 rows

    whole = evaluate(classifier(4), images, pixels=PIXELS, ranks=Ranks(), crop_size=None)
    centre = evaluate(classifier(4), images, pixels=PIXELS, ranks=Ranks(), crop_size=14)

    assert (whole.top1, centre.top1) == (0.0, 100.0)


def _score_as_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    images = split([0, 0, 10, 10, 20, 30, 0], [0, 0, 0, 1, 1, 3, 3])
    ranks = Ranks(rank=rank, size=2)
    scores = evaluate(classifier(4), images, pixels=PIXELS, ranks=ranks, crop_size=None)
    Path(folder, f"{rank}.json").write_text(json.dumps(scores.class_top1))
    dist.destroy_process_group()


@pytest.mark.slow
def test_every_rank_has_the_accuracies_of_the_whole_split(tmp_path: Path) -> None:
    mp.spawn(_score_as_rank, args=(str(tmp_path),), nprocs=2)

    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == pytest.approx([200 / 3, 50.0, None, 50.0])

"""The pictures and files of an evaluation, for few classes and for many."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from orchestrator.assessment.costs import Costs
from orchestrator.assessment.evaluation import Evaluation, Judged
from orchestrator.assessment.files import evaluation_files, evaluation_metrics
from orchestrator.assessment.metrics import measure_agreement, measure_quality
from orchestrator.assessment.report import describe_evaluation
from orchestrator.latency import Latency


def evaluation(num_classes: int, *, with_teacher: bool = True) -> Evaluation:
    """Answers that are right for most of 20 images a class, and mistake a class for the next."""
    generator = torch.Generator().manual_seed(num_classes)
    labels = torch.arange(num_classes).repeat(20)
    logits = torch.randn(len(labels), num_classes, generator=generator)
    logits[torch.arange(len(labels)), labels] += 3
    logits[torch.arange(len(labels)), (labels + 1) % num_classes] += 2
    better = logits.clone()
    better[torch.arange(len(labels)), labels] += 3
    latencies = (Latency(1, 1.5, 2.5, 10, 50), Latency(64, 20.0, 25.0, 10, 50))
    student = Judged("$mall", measure_quality(logits, labels), Costs(78_042, 12_000_000, latencies,
                                                                      "cpu", 2))  # fmt: skip
    teacher = Judged("big", measure_quality(better, labels), student.costs)
    return Evaluation(
        model=student,
        teacher=teacher if with_teacher else None,
        agreement=measure_agreement(logits, better) if with_teacher else None,
        data="made up",
        fingerprint="f00d",
        split="test",
        class_names=tuple(f"class {number} of ${num_classes}" for number in range(num_classes)),
        notes=("look here",),
    )


@pytest.mark.parametrize("num_classes", [2, 10, 30, 200])
@pytest.mark.parametrize("with_teacher", [True, False])
def test_the_figures_can_be_read_for_few_and_for_many_classes(
    num_classes: int, with_teacher: bool
) -> None:
    files = evaluation_files(evaluation(num_classes, with_teacher=with_teacher))
    for name in ("confusion.png", "reliability.png"):
        content = files[name]
        assert isinstance(content, bytes)
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            assert 600 < image.width < 2600 and 600 < image.height < 2600
            colors = image.convert("RGB").getcolors(maxcolors=1 << 24)
            assert colors is not None and len(colors) > 20


def test_the_tables_hold_every_class_by_its_name_and_every_pair() -> None:
    e = evaluation(30)
    files = evaluation_files(e)
    confusion, per_class = (
        pq.read_table(io.BytesIO(content)).to_pydict()
        for content in (files["confusion.parquet"], files["per_class.parquet"])
        if isinstance(content, bytes)
    )
    matrix = np.array(confusion["images"]).reshape(30, 30)
    assert matrix.tolist() == e.model.quality.confusion.tolist()
    assert confusion["name"][31] == "class 1 of $30"
    assert confusion["predicted_name"][31] == "class 1 of $30"
    assert per_class["name"] == list(e.class_names)
    assert per_class["images"] == [20] * 30
    assert per_class["top1"] == [pytest.approx(5 * matrix[k, k]) for k in range(30)]


def test_the_json_and_the_metrics_hold_the_same_numbers() -> None:
    e = evaluation(10)
    values = json.loads(evaluation_files(e)["evaluation.json"])
    metrics = evaluation_metrics(e)
    assert values["model"]["top1"] == metrics["test/top1"] == e.model.quality.top1
    assert values["model"]["ece"] == metrics["test/ece"]
    assert values["teacher"]["top1"] == metrics["teacher/test_top1"]
    assert values["agreement_with_teacher"]["kl"] == metrics["test/teacher_kl"]
    assert values["model"]["latency"][1]["p95_ms"] == metrics["student/batch64_latency_p95_ms"]
    assert metrics["student/latency_ms"] == 1.5
    assert sum(values["model"]["calibration_bins"]["images"]) == values["images"] == 200


def test_the_text_names_device_threads_runs_and_the_weakest_classes() -> None:
    text = describe_evaluation(evaluation(30))
    assert "on cpu, 2 threads, fp32; runs: batch 1: 50 after 10 to warm up" in text
    assert "the 10 classes with the lowest top-1" in text
    assert text.index("note: look here") < text.index("top-1")
    assert "teacher" not in describe_evaluation(evaluation(10, with_teacher=False))

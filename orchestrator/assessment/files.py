"""An evaluation as files and as metrics."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.assessment.costs import Costs
from orchestrator.assessment.evaluation import Evaluation, Judged
from orchestrator.assessment.figures import draw_confusion, draw_reliability
from orchestrator.assessment.metrics import Quality, class_rows


def evaluation_files(e: Evaluation) -> dict[str, bytes | str]:
    """All that is kept of an evaluation, by the name of the file."""
    return {
        "evaluation.json": json.dumps(_values(e), indent=1),
        "per_class.parquet": _parquet(_per_class(e)),
        "confusion.parquet": _parquet(_confusion(e)),
        "confusion.png": draw_confusion(e),
        "reliability.png": draw_reliability(e),
    }


def evaluation_metrics(e: Evaluation) -> dict[str, float]:
    """The numbers under their metric names; accuracies, agreement and ECE in percent."""
    metrics = {f"{e.split}/{key}": v for key, v in _quality_metrics(e.model.quality).items()}
    metrics |= {f"student/{key}": v for key, v in _cost_metrics(e.model.costs).items()}
    if e.teacher is not None:
        quality = _quality_metrics(e.teacher.quality)
        metrics |= {f"teacher/{e.split}_{key}": v for key, v in quality.items()}
        metrics |= {f"teacher/{key}": v for key, v in _cost_metrics(e.teacher.costs).items()}
    if e.agreement is not None:
        metrics[f"{e.split}/teacher_agreement"] = e.agreement.same_top1
        metrics[f"{e.split}/teacher_kl"] = e.agreement.kl
    return metrics


def _quality_metrics(q: Quality) -> dict[str, float]:
    top5 = {"top5": q.top5} if q.top5 is not None else {}
    return {"top1": q.top1, **top5, "loss": q.nll, "brier": q.brier, "ece": q.calibration.ece}


def _cost_metrics(costs: Costs) -> dict[str, float]:
    metrics: dict[str, float] = {"parameters": costs.parameters, "macs": costs.macs}
    for latency in costs.latencies:
        batch = "" if latency.batch_size == 1 else f"batch{latency.batch_size}_"
        metrics[f"{batch}latency_ms"] = latency.median_ms
        metrics[f"{batch}latency_p95_ms"] = latency.p95_ms
    return metrics


def _values(e: Evaluation) -> dict[str, Any]:
    """Everything but the confusion matrix, which has a file of its own."""
    return {
        "model": _judged_values(e.model),
        "teacher": _judged_values(e.teacher) if e.teacher is not None else None,
        "agreement_with_teacher": e.agreement._asdict() if e.agreement is not None else None,
        "data": e.data,
        "data_fingerprint": e.fingerprint,
        "split": e.split,
        "images": e.num_images,
        "classes": list(e.class_names),
        "notes": list(e.notes),
    }


def _judged_values(judged: Judged) -> dict[str, Any]:
    quality, costs, calibration = judged.quality, judged.costs, judged.quality.calibration
    return {
        "name": judged.name,
        "top1": quality.top1,
        "top5": quality.top5,
        "nll": quality.nll,
        "brier": quality.brier,
        "ece": calibration.ece,
        "calibration_bins": {
            "images": calibration.counts.tolist(),
            "mean_confidence": calibration.confidences.tolist(),
            "accuracy": calibration.accuracies.tolist(),
        },
        "parameters": costs.parameters,
        "macs": costs.macs,
        "latency": [latency._asdict() for latency in costs.latencies],
        "device": costs.device,
        "threads": costs.threads,
        "dtype": "float32",
    }


def _per_class(e: Evaluation) -> pa.Table:
    rows = class_rows(e.model.quality.confusion)
    names = e.class_names
    confused = [None if row.confused_with is None else names[row.confused_with] for row in rows]
    return pa.table(
        {
            "class": [row.number for row in rows],
            "name": [names[row.number] for row in rows],
            "images": [row.images for row in rows],
            "correct": [row.correct for row in rows],
            "top1": pa.array([row.top1 for row in rows], pa.float64()),
            "predicted": [row.predicted for row in rows],
            "precision": pa.array([row.precision for row in rows], pa.float64()),
            "confused_with": pa.array(confused, pa.string()),
            "confused": [row.confused for row in rows],
        }
    )


def _confusion(e: Evaluation) -> pa.Table:
    """One row for each pair of classes, those without images too."""
    names, num_classes = e.class_names, len(e.class_names)
    true = [k for k in range(num_classes) for _ in range(num_classes)]
    predicted = list(range(num_classes)) * num_classes
    return pa.table(
        {
            "class": true,
            "name": [names[k] for k in true],
            "predicted_class": predicted,
            "predicted_name": [names[k] for k in predicted],
            "images": e.model.quality.confusion.flatten().numpy(),
        }
    )


def _parquet(table: pa.Table) -> bytes:
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream)
    content: bytes = stream.getvalue().to_pybytes()
    return content

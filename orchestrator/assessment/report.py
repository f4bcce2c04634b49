"""An evaluation as text for the terminal."""

from __future__ import annotations

from orchestrator.assessment.evaluation import Evaluation, Judged
from orchestrator.assessment.metrics import NUM_BINS, class_rows
from orchestrator.reports.tables import Table, format_score, text_table

_SHOWN_CLASSES = 20
_WEAKEST = 10


def describe_evaluation(e: Evaluation) -> str:
    """What the reader should know, the numbers in a table, the classes below."""
    lines = ["", f"{e.split} split, {e.num_images:,} images of {e.data}"]
    lines += [*(f"note: {note}" for note in e.notes), ""]
    lines.append(text_table(_numbers(e)))
    costs = e.model.costs
    runs = ", ".join(
        f"batch {x.batch_size}: {x.runs} after {x.warm_up} to warm up" for x in costs.latencies
    )
    lines.append(
        f"(latency of raw images to logits on {costs.device}, {costs.threads} "
        f"{'thread' if costs.threads == 1 else 'threads'}, fp32; runs: {runs})"
    )
    lines += ["", *_classes(e)]
    return "\n".join(lines)


def _numbers(e: Evaluation) -> Table:
    judged = [e.model] if e.teacher is None else [e.model, e.teacher]
    header = ["", e.model.name] + ([f"teacher: {e.teacher.name}"] if e.teacher else [])
    rows = [["top-1", *(f"{j.quality.top1:.2f} %" for j in judged)]]
    if e.model.quality.top5 is not None:
        rows.append(["top-5", *(f"{format_score(j.quality.top5, '%')} %" for j in judged)])
    rows += [
        [f"calibration error ({NUM_BINS} bins)", *(f"{_ece(j):.2f} %" for j in judged)],
        ["negative log likelihood", *(f"{j.quality.nll:.4f}" for j in judged)],
        ["Brier score", *(f"{j.quality.brier:.4f}" for j in judged)],
    ]
    if e.agreement is not None:
        rows.append(["same answer as the teacher", f"{e.agreement.same_top1:.2f} %", ""])
        rows.append(["KL from the teacher, T = 1", f"{e.agreement.kl:.4f} nats", ""])
    rows.append(["parameters", *(f"{j.costs.parameters:,}" for j in judged)])
    rows.append(["multiply-adds per image", *(f"{j.costs.macs:,}" for j in judged)])
    for number, latency in enumerate(e.model.costs.latencies):
        rows.append(
            [
                f"latency, batch {latency.batch_size}: median, p95",
                *(_latency(j, number) for j in judged),
            ]
        )
    return Table(header, rows)


def _ece(judged: Judged) -> float:
    return judged.quality.calibration.ece


def _latency(judged: Judged, number: int) -> str:
    latency = judged.costs.latencies[number]
    return f"{latency.median_ms:.2f}, {latency.p95_ms:.2f} ms"


def _classes(e: Evaluation) -> list[str]:
    rows = class_rows(e.model.quality.confusion)
    if len(rows) > _SHOWN_CLASSES:
        known = [row for row in rows if row.top1 is not None]
        rows = sorted(known, key=lambda row: (row.top1, row.number))[:_WEAKEST]
    cells = [
        [
            e.class_names[row.number],
            str(row.images),
            format_score(row.top1, "%"),
            format_score(row.precision, "%"),
            f"{e.class_names[row.confused_with]} ({row.confused})"
            if row.confused_with is not None
            else "",
        ]
        for row in rows
    ]
    header = ["class", "images", "top-1, %", "precision, %", "most often taken for"]
    title = (
        []
        if len(rows) == len(e.class_names)
        else [f"the {len(rows)} classes with the lowest top-1"]
    )
    return [*title, text_table(Table(header, cells)), ""]

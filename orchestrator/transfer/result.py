"""What linear probes have found, as text, files and metrics."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import NamedTuple

from safetensors.torch import save

from orchestrator.reports.paired import paired_difference, verdict
from orchestrator.reports.tables import (
    NOTHING,
    Table,
    deviation,
    format_difference,
    format_score,
    mean,
    text_table,
)
from orchestrator.schedule import lr_factor
from orchestrator.transfer.probe import MOMENTUM, SCHEDULE, Probe, ProbeSettings


class Score(NamedTuple):
    """One probe, in percent."""

    seed: int
    probe: Probe
    val_top1: float
    """Of the epoch that it was chosen by."""
    test_top1: float
    test_top5: float | None
    """None with five classes or fewer."""
    test_top1_last: float
    """Of the last epoch instead."""


class Transfer(NamedTuple):
    """The probes of one frozen network, one a seed."""

    name: str
    feature_dim: int
    scores: tuple[Score, ...]
    data: str
    """What the images are, in a line."""
    fingerprint: str
    """Of the images."""
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    """(C, H, W), as the network got them."""
    mean: tuple[float, ...]
    """Of the pixels, as the network got them."""
    std: tuple[float, ...]
    settings: ProbeSettings
    feature_layer: str | None
    """Whose output the features are; None for the input of the classifier."""
    notes: tuple[str, ...] = ()
    """What was taken for granted."""

    @property
    def test_top1(self) -> list[float]:
        """By seed."""
        return [score.test_top1 for score in self.scores]

    @property
    def chosen(self) -> Score:
        """The probe that is kept: the best on validation, the first of equal ones."""
        return max(self.scores, key=lambda score: score.val_top1)


def transfer_files(t: Transfer) -> dict[str, bytes | str]:
    """All that is kept, by the name of the file; the probe takes the features of the network."""
    linear = t.chosen.probe.best
    weights = {key: value.detach().cpu().contiguous() for key, value in linear.named_parameters()}
    about = {
        "model": t.name,
        "feature_layer": t.feature_layer,
        "feature_dim": t.feature_dim,
        "image_shape": list(t.image_shape),
        "normalize": {"mean": list(t.mean), "std": list(t.std)},
        "class_names": list(t.class_names),
        "seed": t.chosen.seed,
        "epoch": t.chosen.probe.best_epoch,
    }
    values = {
        "model": t.name,
        "data": t.data,
        "data_fingerprint": t.fingerprint,
        "protocol": _protocol(t.settings),
        "epochs": t.settings.epochs,
        "lr": t.settings.lr,
        "batch_size": t.settings.batch_size,
        "scores": [_score_values(score) for score in t.scores],
        "notes": list(t.notes),
    }
    return {
        "transfer.json": json.dumps(values, indent=1),
        "probe.json": json.dumps(about, indent=1),
        "probe.safetensors": save(weights),
    }


def transfer_metrics(t: Transfer) -> dict[str, float]:
    """Means over the seeds under their metric names, and the spread of the test top-1."""
    metrics = {
        "val/top1_best": _mean([score.val_top1 for score in t.scores]),
        "test/top1": _mean(t.test_top1),
        "test/top1_last": _mean([score.test_top1_last for score in t.scores]),
    }
    top5 = [score.test_top5 for score in t.scores if score.test_top5 is not None]
    if top5:
        metrics["test/top5"] = _mean(top5)
    spread = deviation(t.test_top1)
    if spread is not None:
        metrics["test/top1_sd"] = spread
    return metrics


def transfer_history(t: Transfer) -> dict[int, dict[str, float]]:
    """Curves by epoch: the mean over the seeds."""
    histories = [score.probe.history for score in t.scores]
    return {
        epoch: {
            key: _mean([history[epoch][key] for history in histories])
            for key in histories[0][epoch]
        }
        for epoch in histories[0]
    }


def describe_transfers(transfers: Sequence[Transfer]) -> str:
    """A table with a row for each network; the first is the reference."""
    first, n = transfers[0], len(transfers[0].scores)
    lines = ["", f"linear probes on {first.data}", _protocol(first.settings)]
    lines += [*(f"note: {note}" for t in transfers for note in t.notes), ""]
    lines.append(text_table(_table(transfers)))
    for other in transfers[1:]:
        pair = paired_difference(other.test_top1, first.test_top1)
        lines.append(verdict(pair, other.name, first.name, higher_is_better=True))
    if n > 1:
        lines.append(
            f"({n} seeds of the probes: their start and the order of images; the networks are the "
            "same in each, so intervals say nothing about training them again)"
        )
    return "\n".join(lines)


def _score_values(score: Score) -> dict[str, float | None]:
    values = {key: value for key, value in score._asdict().items() if key != "probe"}
    return values | {"best_epoch": score.probe.best_epoch}


def _table(transfers: Sequence[Transfer]) -> Table:
    reference = transfers[0]
    header = ["model", "features", "seeds", "test top-1, %", "95 % interval", "test top-5, %",
              "last epoch, %"]  # fmt: skip
    if len(transfers) > 1:
        header.append(f"minus {reference.name}")
    rows = []
    for t in transfers:
        metrics = transfer_metrics(t)
        row = [
            t.name,
            str(t.feature_dim),
            str(len(t.scores)),
            format_score(metrics["test/top1"], "%"),
            _interval(t.test_top1),
            format_score(metrics.get("test/top5"), "%"),
            format_score(metrics["test/top1_last"], "%"),
        ]
        if len(transfers) > 1:
            change = paired_difference(t.test_top1, reference.test_top1).mean
            row.append("reference" if t is reference else format_difference(change, "%"))
        rows.append(row)
    return Table(header, rows)


def _interval(values: Sequence[float]) -> str:
    """Student's t interval of the mean: that of the differences to nothing."""
    own = paired_difference(values, [0.0] * len(values))
    if own.low is None or own.high is None:
        return NOTHING
    return f"{own.low:.2f} to {own.high:.2f}"


def _protocol(settings: ProbeSettings) -> str:
    lr = ", ".join([f"lr {settings.lr:g}", *_falls(settings.epochs)])
    return (
        f"features computed once without augmentation; {settings.epochs} epochs of SGD (momentum "
        f"{MOMENTUM:g}, no weight decay), {lr}, batch {settings.batch_size}; scored at the epoch "
        "with the best validation top-1 (of equal ones, the lowest loss)"
    )


def _falls(epochs: int) -> list[str]:
    """When the learning rate falls; in short runs, several falls are one."""
    factors = [lr_factor(SCHEDULE, epoch=epoch, epochs=epochs) for epoch in range(epochs)]
    falls: dict[str, list[int]] = {}
    for done, (before, after) in enumerate(itertools.pairwise(factors), start=1):
        if after != before:
            falls.setdefault(f"x{after / before:g}", []).append(done)
    return [
        f"{factor} after {'epoch' if len(ends) == 1 else 'epochs'} {', '.join(map(str, ends))}"
        for factor, ends in falls.items()
    ]


def _mean(values: Sequence[float]) -> float:
    found = mean(values)
    assert found is not None  # there is a seed
    return found

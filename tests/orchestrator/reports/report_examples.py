"""Comparisons and searches made up for the tests of their reports."""

from __future__ import annotations

import math
import random
from typing import Any

from orchestrator.reports.comparison import Arm, Comparison
from orchestrator.reports.search import FinalRow, SearchRecord, TrialRow


def arm(name: str, scores: list[float], **changes: Any) -> Arm:
    """An arm whose seeds are 0, 1, ..."""
    values: dict[str, Any] = {
        "name": name,
        "settings": {"objective.method": name},
        "scores": dict(enumerate(scores)),
        "val_scores": {},
        "failures": {},
    }
    return Arm(**values | changes)


def comparison(*arms: Arm, **changes: Any) -> Comparison:
    """A comparison to the first of the arms, over seeds 0 to 4."""
    values: dict[str, Any] = {
        "name": "methods",
        "metric": "test/top1",
        "higher_is_better": True,
        "unit": "%",
        "reference": arms[0].name,
        "arms": list(arms),
        "seeds": [0, 1, 2, 3, 4],
        "facts": {"data": "digits, 5 labels per class", "epochs": "30"},
    }
    return Comparison(**values | changes)


def noisy_comparison(names: list[str], num_seeds: int) -> Comparison:
    """Arms that gain a point each on the one before, with a common and an own noise."""
    draw = random.Random(0)
    common = [draw.gauss(0, 1.5) for _ in range(num_seeds)]
    arms = [
        arm(name, [85 + step + shift + draw.gauss(0, 0.8) for shift in common])
        for step, name in enumerate(names)
    ]
    return comparison(*arms, seeds=list(range(num_seeds)))


def trial(number: int, score: float | None, **changes: Any) -> TrialRow:
    """A finished trial of ten epochs that reached its score at the end."""
    values: dict[str, Any] = {
        "number": number,
        "settings": {"objective.dcd_weight": 1.0 + number},
        "state": "finished",
        "scores": {} if score is None else {e: score - 10 + e for e in range(1, 11)},
        "score": score,
        "epochs": 10,
        "seconds": 60.0,
        "error": None,
        "extra": {},
    }
    return TrialRow(**values | changes)


def search(*trials: TrialRow, **changes: Any) -> SearchRecord:
    """A search of these trials; the first is the default point, the best finished one wins."""
    finished = {t.number: t.score for t in trials if t.state == "finished" and t.score is not None}
    values: dict[str, Any] = {
        "name": "digits-search",
        "space": "dcd",
        "title": "DCD's loss settings",
        "metric": "val/top1",
        "higher_is_better": True,
        "goals": [("val/top1", "max")],
        "scheduler": "none",
        "searcher": "tpe",
        "domains": {},
        "epochs": 10,
        "finals_differ": None,
        "rungs": [],
        "trials": list(trials),
        "first": trials[0].number if trials else None,
        "winner": max(finished, key=lambda n: finished[n]) if finished else None,
        "finals": [],
        "facts": {"data": "digits", "teacher": "resnet32x4"},
        "notes": [],
        "mutations": [],
    }
    return SearchRecord(**values | changes)


def final(seed: int, val: float, test: float | None, **changes: Any) -> FinalRow:
    """A finished final run."""
    return FinalRow(
        **{"seed": seed, "val": val, "test": test, "state": "finished", "error": None} | changes
    )


def realistic_search() -> SearchRecord:
    """Sixteen trials of 30 epochs over eight settings, cut by successive halving at 3, 9 and 27."""
    draw = random.Random(1)
    trials = []
    for number in range(16):
        contrast = "softmax" if number == 0 else draw.choice(["softmax", "sigmoid"])
        dcd_weight = 1.0 if number == 0 else 10 ** draw.uniform(-1, 1)
        settings: dict[str, Any] = {
            "objective.contrast": contrast,
            "objective.init_temperature": 0.368 if number == 0 else 10 ** draw.uniform(-1, 0),
            "objective.negatives": draw.choice(["all", "other_class"]),
            "objective.dcd_weight": dcd_weight,
            "objective.consistency_weight": draw.uniform(0, 2),
            "objective.kd_weight": 10 ** draw.uniform(-1, 1),
            "optimizer.scalar_lr_ratio": 10 ** draw.uniform(-2, 0),
        }
        if contrast == "sigmoid":
            settings["objective.init_bias"] = draw.uniform(-8, 0)
        top = 94 - 2 * math.log10(dcd_weight) ** 2 + draw.gauss(0, 0.6)
        state, epochs = "stopped", draw.choice([3, 3, 9, 27])
        if number in (0, 4, 7, 11, 14):
            state, epochs = "finished", 30
        if number in (5, 9):
            state, epochs = "failed", 2 * (number == 9)
        best, scores = 0.0, {}
        for epoch in range(1, epochs + 1):
            best = max(best, top - 60 * math.exp(-epoch / 4) + draw.gauss(0, 0.5))
            scores[epoch] = best
        trials.append(
            trial(
                number,
                best if scores else None,
                settings=settings,
                state=state,
                scores=scores,
                epochs=epochs,
                seconds=4.0 * epochs,
                error="Diverged: dcd became nan in epoch 3" if state == "failed" else None,
            )
        )
    return search(
        *trials,
        scheduler="asha",
        epochs=30,
        rungs=[3, 9, 27],
        finals=[final(0, 93.1, 92.4), final(1, 94.0, 93.0), final(2, 92.8, 92.9)],
        notes=["1 trial was retried from its checkpoint."],
    )


def student_search() -> SearchRecord:
    """Seven students with their size and latency."""
    sizes = {"resnet8": 78_042, "resnet14": 175_258, "resnet20": 272_474, "resnet32": 466_906,
             "resnet56": 855_770, "resnet8x4": 1_215_450, "resnet32x4": 7_433_818}  # fmt: skip
    scores = [80.1, 84.5, 86.2, 87.0, 86.5, 88.1, 90.2]
    latencies = [1.2, 2.0, 2.7, 4.1, 7.3, 1.9, 9.0]
    trials = [
        trial(
            number,
            score,
            settings={"student.source": name},
            extra={"parameters": float(size), "latency_ms": latency},
        )
        for number, ((name, size), score, latency) in enumerate(
            zip(sizes.items(), scores, latencies, strict=True)
        )
    ]
    goals = [("val/top1", "max"), ("student/parameters", "min")]
    return search(*trials, goals=goals, title="The student", space="student")


def population_search() -> SearchRecord:
    """Trial 1 wins: it took over trial 0 after epoch 6, which had taken over trial 2 after 3."""

    def weights(dcd: float, kd: float) -> dict[str, float]:
        return {"objective.dcd_weight": dcd, "objective.kd_weight": kd}

    def change(epoch: int, number: int, donor: int, setting: str, new: float) -> dict[str, Any]:
        return {"epoch": epoch, "trial": number, "donor": donor, "setting": setting, "new": new}

    return search(
        trial(0, 90.0, settings=weights(1.0, 1.0)),
        trial(1, 95.0, settings=weights(9.0, 9.0)),
        trial(2, 91.0, settings=weights(0.5, 4.0)),
        scheduler="pbt",
        searcher="random",
        mutations=[
            change(3, 0, 2, "objective.dcd_weight", 0.6),
            change(3, 0, 2, "objective.kd_weight", 4.8),
            change(6, 1, 0, "objective.kd_weight", 40.0),
            change(6, 0, 2, "objective.dcd_weight", 7.0),
        ],
    )

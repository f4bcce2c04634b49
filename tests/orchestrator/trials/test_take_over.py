"""A member of a population takes over another's checkpoint: wholly, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import ray.tune

from orchestrator.storage import Folder
from orchestrator.trials.population import MUTATIONS, adopt, complete, pack

WEIGHTS = {"objective.kd_weight": 0.5}


def member(trials: Folder, name: str, *, epochs: list[int], best: int, kd_weight: float) -> Folder:
    folder = trials / name
    objective = {"kd_weight": kd_weight, "dcd_weight": 1.0, "schedule": []}
    folder.write_json("spec.json", {"name": f"search-{name}", "objective": objective})
    for epoch in epochs:
        checkpoint = f"checkpoints/epoch_{epoch:04d}"
        folder.write(f"{checkpoint}.pt", f"{name} after {epoch}")
        folder.write_json(f"{checkpoint}.json", {"best_epoch": best})
    return folder


def content(folder: Folder) -> dict[str, str]:
    root = folder.local_path
    assert root is not None
    return {str(p.relative_to(root)): p.read_text() for p in root.rglob("*") if p.is_file()}


def given_by(donor: Folder, epoch: int, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Tune hands to a trial that goes on from another one's checkpoint."""
    into.mkdir()
    pack(donor, epoch, into)
    checkpoint = ray.tune.Checkpoint.from_directory(into)
    monkeypatch.setattr(ray.tune, "get_checkpoint", lambda: checkpoint)


@pytest.fixture
def taker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    trials = Folder(str(tmp_path / "trials"))
    donor = member(trials, "0001", epochs=[4, 5, 6], best=5, kd_weight=2.0)
    given_by(donor, 6, tmp_path / "given", monkeypatch)
    return member(trials, "0002", epochs=[3, 5, 6], best=3, kd_weight=1.0)


def test_the_checkpoint_and_its_best_come_over_with_the_mutated_weights(taker: Folder) -> None:
    adopt(taker, WEIGHTS)
    files = content(taker)
    assert {name: text for name, text in files.items() if name.endswith(".pt")} == {
        "checkpoints/epoch_0005.pt": "0001 after 5",
        "checkpoints/epoch_0006.pt": "0001 after 6",
    }
    spec = taker.read_json("spec.json")
    assert spec["name"] == "search-0002"
    assert spec["objective"] == {
        "kd_weight": 2.0,
        "dcd_weight": 1.0,
        "schedule": [{"epoch": 7, "kd_weight": 0.5}],
    }
    assert taker.read_json(MUTATIONS) == [
        {
            "epoch": 6,
            "donor": "0001",
            "before": {"kd_weight": 1.0},
            "donors": {"kd_weight": 2.0},
            "after": {"kd_weight": 0.5},
        }
    ]
    assert set(files) == {
        *(f"checkpoints/epoch_{epoch:04d}{end}" for epoch in (5, 6) for end in (".pt", ".json")),
        "spec.json",
        MUTATIONS,
    }


class Killed(BaseException):
    """The process ends."""


@pytest.mark.parametrize("survives", range(24))
def test_a_take_over_that_is_cut_off_anywhere_is_done_whole_or_not_at_all(
    taker: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survives: int
) -> None:
    before = content(taker)
    untouched = tmp_path / "copy" / "0002"
    shutil.copytree(str(taker.local_path), untouched)
    whole = Folder(str(untouched))
    adopt(whole, WEIGHTS)
    after = content(whole)

    actions = 0
    for name in ("write", "delete"):
        original = getattr(Folder, name)

        def limited(self: Folder, *args: Any, act: Any = original, **kwargs: Any) -> None:
            nonlocal actions
            actions += 1
            if actions > survives:
                raise Killed
            act(self, *args, **kwargs)

        monkeypatch.setattr(Folder, name, limited)
    cut_off = True
    try:
        adopt(taker, WEIGHTS)
        cut_off = False
    except Killed:
        pass
    survives = 10**6
    complete(taker)
    assert content(taker) in ([before, after] if cut_off else [after])
    # Told once more, as a trial is that is tried again: nothing is taken over twice.
    adopt(taker, WEIGHTS)
    assert content(taker) == after
    assert len(json.loads(after[MUTATIONS])) == 1

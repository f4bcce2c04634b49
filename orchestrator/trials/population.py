"""Population based training on our own checkpoints.

A trial that Tune makes go on from a better one takes over that one's checkpoint, history and
schedule of weights, and adds to the schedule the weights that Tune has mutated. Its spec so always
says how its student came about: `objective.schedule` repeats it without a population.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ray.tune

from orchestrator.storage import Folder

_ORIGIN = "origin.json"
_SPEC = "spec.json"
MUTATIONS = "mutations.json"
"""In a trial's folder: what it took over, in order."""
_TAKEN, _INTENT = "taken", "intent.json"
"""A folder in a trial's: a checkpoint to take over, and what is to be written along with it. The
latter is there once all of it is, so that a take-over that is cut off anywhere is done again."""


def pack(folder: Folder, epoch: int, into: Path) -> None:
    """Put a trial's checkpoint of an epoch into a folder for Tune, with what it stands for."""
    name = f"epoch_{epoch:04d}"
    for suffix in (".pt", ".json"):
        content = (folder / "checkpoints").read(f"{name}{suffix}")
        assert content is not None, "the loop saves a checkpoint before it reports its epoch"
        (into / f"{name}{suffix}").write_bytes(content)
    # The best epoch's checkpoint decides about the student in the end.
    best = json.loads((into / f"{name}.json").read_text())["best_epoch"]
    for suffix in (".pt", ".json"):
        content = (folder / "checkpoints").read(f"epoch_{best:04d}{suffix}")
        if content is not None:
            (into / f"epoch_{best:04d}{suffix}").write_bytes(content)
    (into / _SPEC).write_bytes(folder.read(_SPEC) or b"")
    own = folder.location.rsplit("/", 1)[-1]
    (into / _ORIGIN).write_text(json.dumps({"trial": own, "epoch": epoch}))


def adopt(folder: Folder, config: dict[str, Any]) -> None:
    """Take over what Tune has given this trial, when that is another trial's checkpoint."""
    complete(folder)
    checkpoint = ray.tune.get_checkpoint()
    if checkpoint is None:
        return
    with checkpoint.as_directory() as directory:
        given = Path(directory)
        origin = json.loads((given / _ORIGIN).read_text())
        if origin["trial"] == folder.location.rsplit("/", 1)[-1]:
            return  # it was only paused
        last = (folder.read_json(MUTATIONS) or [{}])[-1]
        if (last.get("donor"), last.get("epoch")) == (origin["trial"], origin["epoch"]):
            return  # it failed later on, and is tried again from its own checkpoint
        _take_over(folder, given, origin, config)


def _take_over(folder: Folder, given: Path, origin: dict[str, Any], config: dict[str, Any]) -> None:
    spec = json.loads((given / _SPEC).read_text())
    own = folder.read_json(_SPEC)
    weights = {key.rsplit(".", 1)[-1]: value for key, value in config.items() if "." in key}
    in_force = weights_in_force(spec["objective"], origin["epoch"])
    changes = {key: value for key, value in weights.items() if value != in_force[key]}
    schedule = [c for c in spec["objective"]["schedule"] if c["epoch"] <= origin["epoch"]]
    if changes:
        schedule.append({"epoch": origin["epoch"] + 1, **changes})
    spec["objective"]["schedule"] = schedule
    spec["name"] = own["name"]
    mutations = folder.read_json(MUTATIONS) or []
    before = weights_in_force(own["objective"], origin["epoch"])
    mutations.append(
        {
            "epoch": origin["epoch"],
            "donor": origin["trial"],
            "before": {key: before[key] for key in weights},
            "donors": {key: in_force[key] for key in weights},
            "after": weights,
        }
    )
    taken = folder / _TAKEN
    files = sorted(path.name for path in given.glob("epoch_*"))
    for name in files:
        taken.write(name, (given / name).read_bytes())
    taken.write_json(_INTENT, {"files": files, "mutations": mutations, "spec": spec})
    complete(folder)


def complete(folder: Folder) -> None:
    """Finish a take-over that was cut off, or forget it when it had not got all it needs."""
    taken, checkpoints = folder / _TAKEN, folder / "checkpoints"
    intent = taken.read_json(_INTENT)
    if intent is not None:
        for name in sorted(set(checkpoints.names()) - set(intent["files"])):
            checkpoints.delete(name)
        for name in reversed(intent["files"]):  # each .pt before its .json
            content = taken.read(name)
            assert content is not None, "the intent was written after the files"
            checkpoints.write(name, content)
        folder.write_json(MUTATIONS, intent["mutations"])
        folder.write_json(_SPEC, intent["spec"])
        taken.delete(_INTENT)
    folder.delete(_TAKEN)


def weights_in_force(objective: dict[str, Any], epoch: int) -> dict[str, Any]:
    """The weights of an objective, as plain values, during an epoch."""
    weights = dict(objective)
    for change in objective["schedule"]:
        if change["epoch"] <= epoch:
            weights |= {k: v for k, v in change.items() if k != "epoch" and v is not None}
    return weights

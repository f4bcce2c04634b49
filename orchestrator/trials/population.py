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
    # A trial that fails in here is given the same again.
    checkpoints = folder / "checkpoints"
    stale = [name for name in checkpoints.names() if not (given / name).exists()]
    for path in sorted(given.glob("epoch_*"), reverse=True):  # each .pt before its .json
        checkpoints.write(path.name, path.read_bytes())
    for name in sorted(stale):
        checkpoints.delete(name)
    folder.write_json(MUTATIONS, mutations)
    folder.write_json(_SPEC, spec)


def weights_in_force(objective: dict[str, Any], epoch: int) -> dict[str, Any]:
    """The weights of an objective, as plain values, during an epoch."""
    weights = dict(objective)
    for change in objective["schedule"]:
        if change["epoch"] <= epoch:
            weights |= {k: v for k, v in change.items() if k != "epoch" and v is not None}
    return weights

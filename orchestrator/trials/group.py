"""A group on disk: many runs that belong together, as a search or a comparison.

``<storage>/<name>/`` holds ``group.json`` (what the group is), one ordinary run folder per trial in
``trials/``, the full-budget runs of a search's winner in ``finals/``, and what is tracked of the
whole. The folders are all the state there is: a group that was cut off anywhere is read from them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from orchestrator.errors import DamagedFile, UserError
from orchestrator.experiment_file import build_experiment, changed, flatten
from orchestrator.journal import Journal
from orchestrator.runs import check_unused, read_state
from orchestrator.spec import NAME_PATTERN, Experiment
from orchestrator.storage import Folder
from orchestrator.tracking_files import GROUP_FILE

Kind = Literal["search", "comparison"]

_SCORE_BY = "val/top1"
"""A trial keeps the student of the epoch with the best validation top-1."""


class Group(NamedTuple):
    """A group's folder and what it was asked for, in plain values."""

    kind: Kind
    folder: Folder
    definition: dict[str, Any]
    """What the group computes: another one is another group."""
    request: dict[str, Any]
    """What may change from one session to the next: where it runs, how many trials."""
    exists: bool

    @property
    def name(self) -> str:
        """The last part of the folder's path."""
        return self.folder.location.rsplit("/", 1)[-1]


class Record(NamedTuple):
    """All that is known of one trial, read from its folder."""

    name: str
    settings: dict[str, Any]
    """What sets it apart from the others, by dotted path."""
    details: dict[str, Any]
    """What else was written down of it before it started."""
    experiment: Experiment
    state: str
    """`finished`, `stopped` (early, by the scheduler), `failed`, or cut off: `interrupted`."""
    error: str | None
    history: dict[int, dict[str, float]]
    """Metrics by epoch, counted from 1; the teacher's at 0."""
    result: dict[str, float]
    """The final metrics; empty unless finished."""

    @property
    def epochs(self) -> int:
        """How many epochs are done."""
        return max(self.history, default=0)

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.state in ("finished", "stopped", "failed")


def open_group(
    kind: Kind,
    name: str,
    definition: dict[str, Any],
    request: dict[str, Any],
    storage: Folder,
    *,
    new: bool,
) -> Group:
    """The group of that name: the one that exists, or one yet to be created.

    Args:
        kind: search or comparison.
        name: its name beside all other runs.
        definition: what it computes.
        request: what may differ from an earlier session's.
        storage: the folder of all runs.
        new: take the next free name instead.

    Raises:
        UserError: the name is taken by something else.
    """
    if not re.match(NAME_PATTERN, name):
        raise UserError(
            f"--name {name!r}: use letters, digits, '.', '_' and '-', the first a letter or digit"
        )
    # As they come back from the file.
    definition, request = json.loads(json.dumps(definition)), json.loads(json.dumps(request))
    if new:
        taken, base, number = set(storage.names()), name, 1
        while name in taken:
            number += 1
            name = f"{base}-{number}"
        return Group(kind, storage / name, definition, request, exists=False)
    folder = storage / name
    stored = _read_group(folder)
    if stored is None:
        if folder.read("spec.json") is not None:
            raise UserError(f"{name!r} is a single run in {storage.location}: give another --name")
        check_unused(folder)
        return Group(kind, folder, definition, request, exists=False)
    if stored["kind"] != kind:
        raise UserError(f"{name!r} is a {stored['kind']}, not a {kind}: give another --name")
    before, now = flatten(stored["definition"]), flatten(definition)
    differences = [
        f"  {key}: {json.dumps(before.get(key))} -> {json.dumps(now.get(key))}"
        for key in sorted(before | now)
        if before.get(key) != now.get(key)
    ]
    if differences:
        raise UserError(
            f"{kind} {name!r} exists with other settings; changed:\n"
            + "\n".join(differences)
            + "\nGive another --name, or --new for a fresh one with a number behind the name."
        )
    return Group(kind, folder, definition, request, exists=True)


def find_group(kind: Kind, name: str, storage: Folder) -> Group:
    """An existing group by its name.

    Raises:
        UserError: there is none of that kind.
    """
    folder = storage / name
    stored = _read_group(folder)
    if stored is None or stored["kind"] != kind:
        known = [
            other
            for other in storage.names()
            if not other.startswith(".") and _is_kind(storage / other, kind)
        ]
        plural = "searches" if kind == "search" else "comparisons"
        listing = f"known: {', '.join(known[:20])}" if known else f"it holds no {plural}"
        raise UserError(f"no {kind} {name!r} in {storage.location}; {listing}")
    return Group(kind, folder, stored["definition"], stored["request"], exists=True)


def resume_group(
    kind: Kind, name: str, storage: Folder, changes: Mapping[str, Any]
) -> tuple[Group, Experiment]:
    """An existing group and its experiment, with what is to change of its last request.

    Args:
        kind: search or comparison.
        name: its name.
        storage: the folder of all runs, which the experiment is to use.
        changes: by key of the request; None leaves a value as it was.

    Raises:
        UserError: there is none of that kind.
    """
    group = find_group(kind, name, storage)
    given = {key: value for key, value in changes.items() if value is not None}
    group = group._replace(request=group.request | given)
    where = f"{group.folder.location}/{GROUP_FILE}"
    experiment = build_experiment(group.request["experiment"], where=where)
    return group, changed(experiment, {"storage.path": storage.location})


def write_group(group: Group) -> None:
    """Write what a group is, and what is asked of it now."""
    group.folder.write_json(
        GROUP_FILE, {"kind": group.kind, "definition": group.definition, "request": group.request}
    )


def create_trial(
    folder: Folder, experiment: Experiment, settings: Mapping[str, Any], **details: Any
) -> None:
    """Write what a trial is, before it starts."""
    folder.write_json("trial.json", {"settings": dict(settings), **details})
    folder.write_json("spec.json", experiment.model_dump(mode="json"))


def read_trials(folder: Folder) -> list[Record]:
    """The trials in a folder of runs, by name."""
    records = (read_trial(folder / name) for name in folder.names())
    return [record for record in records if record is not None]


def read_trial(folder: Folder) -> Record | None:
    """One trial; None when it was cut off before it was written down."""
    spec, trial = folder.read_json("spec.json"), folder.read_json("trial.json")
    if spec is None or trial is None:
        if folder.read("state.json") is not None:
            name = "spec.json" if spec is None else "trial.json"
            raise DamagedFile(
                f"{folder.location}/{name} is not there, though the trial has begun. Restore it, "
                "or remove the folder to forget the trial"
            )
        return None
    history: dict[int, dict[str, float]] = {}
    for point in Journal(folder).points():
        history.setdefault(point.step, {})[point.name] = point.value
    state: str = read_state(folder)
    return Record(
        name=folder.location.rsplit("/", 1)[-1],
        settings=trial["settings"],
        details={key: value for key, value in trial.items() if key != "settings"},
        experiment=build_experiment(spec, where=f"{folder.location}/spec.json"),
        state="interrupted" if state == "running" else state,
        error=(folder.read_json("state.json") or {}).get("message"),
        history={k: v for k, v in history.items() if k == 0 or _SCORE_BY in v},
        result=folder.read_json("result.json") or {} if state == "finished" else {},
    )


def best_so_far(history: Mapping[int, Mapping[str, float]], metric: str) -> dict[int, float]:
    """A trial's score after each epoch: the metric of the student it would keep at that point.

    That is the student of the epoch with the best validation top-1, as for the finished run.
    """
    scores: dict[int, float] = {}
    best: Mapping[str, float] | None = None
    for epoch in sorted(history):
        metrics = history[epoch]
        if _SCORE_BY not in metrics or metric not in metrics:
            continue
        if best is None or metrics[_SCORE_BY] > best[_SCORE_BY]:
            best = metrics
        scores[epoch] = best[metric]
    return scores


def _read_group(folder: Folder) -> dict[str, Any] | None:
    """The group's file.

    Raises:
        DamagedFile: it is another file.
    """
    stored = folder.read_json(GROUP_FILE)
    if stored is None:
        return None
    if not isinstance(stored, dict) or not {"kind", "definition", "request"} <= stored.keys():
        raise DamagedFile(
            f"{folder.location}/{GROUP_FILE} is damaged: it says neither search nor comparison. "
            "Restore it, or move the folder away to start anew"
        )
    return stored


def _is_kind(folder: Folder, kind: Kind) -> bool:
    try:
        stored = folder.read_json(GROUP_FILE)
    except (NotADirectoryError, ValueError):
        return False
    return isinstance(stored, dict) and stored.get("kind") == kind

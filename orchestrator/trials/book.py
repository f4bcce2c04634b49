"""The driver's book: what trials report is written to their folders here, and nowhere else."""

from __future__ import annotations

import pickle
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

from ray.exceptions import RayActorError
from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from orchestrator.computation import computation_tags
from orchestrator.data.balance import CLASS_TABLE
from orchestrator.errors import OrchestratorError
from orchestrator.journal import RESTARTS, Journal
from orchestrator.run_tracking import final_metrics
from orchestrator.runs import write_state
from orchestrator.storage import Folder
from orchestrator.tracking import finish_request, reopen
from orchestrator.trials.feed import Source
from orchestrator.trials.group import best_so_far
from orchestrator.trials.session import Tracking

HALT_AFTER = 3
"""So many trials that end, all of them failed, are the experiment's fault and not a trial's."""


class Watcher(Protocol):
    """Hears of trials as the driver writes them down."""

    def started(self, name: str, epoch: int, score: float | None) -> None:
        """A trial runs; an earlier session may have left it with some epochs done and a score."""
        ...

    def reported(self, name: str, epoch: int, score: float) -> None:
        """An epoch is done."""
        ...

    def ended(self, name: str, state: str, score: float | None, message: str | None) -> None:
        """A trial is `finished`, `stopped` or `failed`."""
        ...


class Book(Callback):
    """Hears from Tune, in its driver; writes journals and states, and tells who wants to know."""

    def __init__(
        self,
        trials: Folder,
        *,
        source: Source,
        metric: str,
        tracking: Tracking,
        watcher: Watcher,
        ended_before: int,
        students: bool,
    ) -> None:
        """Args:
        trials: holds the trials' folders.
        metric: validation metric that they are judged by.
        source: where the trials come from.
        tracking: MLflow's side of the group.
        watcher: shows what happens.
        ended_before: how many trials ended without failing in earlier sessions.
        students: whether the trained students become MLflow models.
        """
        super().__init__()
        self._trials = trials
        self._source = source
        self._metric = metric
        self._tracking = tracking
        self._students = students
        self._watcher = watcher
        self._good = ended_before
        self._errors: dict[str, str] = {}
        self._journals: dict[str, Journal] = {}
        self._scores: dict[str, float] = {}
        self._epochs: Counter[str] = Counter()
        self._restarts: Counter[str] = Counter()
        # A signal ends the main thread's wait while Tune's thread still writes.
        self._lock = threading.Lock()
        self._closed = False

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it for a restoration that never comes

    @property
    def halted(self) -> bool:
        """Whether every trial so far has failed, and enough of them to stop."""
        return self._good == 0 and len(self._errors) >= HALT_AFTER

    @property
    def closed(self) -> bool:
        """Whether nothing is written any more."""
        return self._closed

    @property
    def errors(self) -> dict[str, str]:
        """Messages of the trials that failed in this session."""
        return dict(self._errors)

    def close(self) -> None:
        """Mark the trials that were running, and write nothing any more."""
        with self._lock:
            self._closed = True
            for name in self._journals:
                folder = self._trials / name
                write_state(folder, "interrupted")
                if self._tracking.on:
                    finish_request(folder, status="KILLED", metrics={}, tags={}, student=False)
                    self._tracking.changed(folder)

    def on_trial_start(self, *, trial: TuneTrial, **info: Any) -> None:
        """A trial is placed, for the first time or again."""
        with self._lock:
            if not self._closed:
                self._begin(str(trial))

    def on_trial_recover(self, *, trial: TuneTrial, **info: Any) -> None:
        """A trial failed and is tried again from its checkpoint."""
        with self._lock:
            name = str(trial)
            if self._closed:
                return
            self._begin(name)  # its process may have died before it was started
            self._restarts[name] += 1
            self._journals[name].append({RESTARTS: self._restarts[name]}, step=self._epochs[name])

    def on_trial_result(self, *, trial: TuneTrial, result: dict[str, Any], **info: Any) -> None:
        """An epoch of a trial is done."""
        if "epoch" not in result:  # Tune's own last word on a trial
            return
        with self._lock:
            name = str(trial)
            if self._closed:
                return
            epoch, score, journal = result["epoch"], result["score"], self._journals[name]
            self._scores[name], self._epochs[name] = score, epoch
            start = [(0, result["start"])] if result["start"] else []
            journal.append_history([*start, (epoch, result["metrics"])])
            self._tracking.changed(self._trials / name)
            self._watcher.reported(name, epoch, score)
            self._source.heard(name, epoch, score)

    def on_trial_complete(self, *, trial: TuneTrial, **info: Any) -> None:
        """A trial is through, or its scheduler has stopped it."""
        with self._lock:
            name = str(trial)
            if self._closed:
                return
            folder = self._trials / name
            result = folder.read_json("result.json")
            state = "finished" if result is not None else "stopped"
            if result is not None:
                self._scores[name] = result[self._metric]
            self._good += 1
            self._end(
                name,
                state,
                metrics=final_metrics(result) if result else {},
                tags={"dcd.state": state, **computation_tags(folder)},
            )
            # Nothing will go on from its checkpoints; until that is written down, something might.
            clear_ended(folder)

    def on_trial_error(self, *, trial: TuneTrial, **info: Any) -> None:
        """A trial has failed for good."""
        with self._lock:
            name = str(trial)
            if self._closed:
                return
            self._begin(name)
            message = failure(trial)
            self._errors[name] = message
            self._end(name, "failed", metrics={}, tags={"dcd.state": "failed", "error": message})

    def _begin(self, name: str) -> None:
        if name in self._journals:
            return
        journal = self._journals[name] = Journal(self._trials / name)
        self._recall(name, journal)
        write_state(self._trials / name, "running")
        if self._tracking.on:
            reopen(self._trials / name)
            self._tracking.changed(self._trials / name)
        self._watcher.started(name, self._epochs[name], self._scores.get(name))

    def _recall(self, name: str, journal: Journal) -> None:
        """What an earlier session has seen of a trial, which this one may have nothing left of."""
        history: dict[int, dict[str, float]] = {}
        for point in journal.points():
            history.setdefault(point.step, {})[point.name] = point.value
        scores = best_so_far(history, self._metric)
        if scores:
            self._epochs[name] = max(scores)
            self._scores[name] = scores[max(scores)]
        self._restarts[name] = sum(RESTARTS in metrics for metrics in history.values())

    def _end(
        self, name: str, state: Any, *, metrics: dict[str, float], tags: dict[str, str]
    ) -> None:
        folder, message = self._trials / name, tags.get("error")
        del self._journals[name]
        if self._tracking.on:
            finish_request(
                folder,
                status="FAILED" if state == "failed" else "FINISHED",
                metrics=metrics,
                tags=tags,
                student=self._students and state == "finished",
                step=self._epochs[name],
                artifacts=[CLASS_TABLE] if CLASS_TABLE in folder.names() else [],
            )
        write_state(folder, state, **({"message": message} if message else {}))
        self._tracking.changed(folder)
        self._watcher.ended(name, state, self._scores.pop(name, None), message)
        self._source.ended(name, state)


def clear_ended(folder: Folder) -> None:
    """Remove what a trial that has ended well leaves besides its result."""
    folder.delete("checkpoints")
    folder.delete("ray")


def failure(trial: TuneTrial) -> str:
    """One sentence for why a trial failed, from what Tune has put down on this machine."""
    try:
        error: Any = pickle.loads(Path(trial.pickled_error_file).read_bytes())
    except Exception:  # it was none that can be pickled, or one of a class that is not known here
        lines = Path(trial.error_file).read_text().strip().splitlines() if trial.error_file else []
        return lines[-1] if lines else "Ray Tune does not tell why"
    if isinstance(error, RayActorError):
        return "its process died: killed, out of memory, or crashed in native code"
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines()
    last = lines[-1] if lines else "no message"
    return last if isinstance(cause, OrchestratorError) else f"{type(cause).__name__}: {last}"

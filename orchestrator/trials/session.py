"""One session of a group: its folder locked, Ray up, MLflow kept up to date, an end for any end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from orchestrator.distillation import session
from orchestrator.errors import Interrupted
from orchestrator.group_tracking import GroupReport
from orchestrator.journal import Journal, Point
from orchestrator.mlflow_client import without_password
from orchestrator.places import Places
from orchestrator.progress import Display
from orchestrator.runs import forget_run, locked, write_state
from orchestrator.spec import ScalingSpec
from orchestrator.storage import Folder
from orchestrator.tracker_process import TrackerProcess
from orchestrator.tracking import finish_request
from orchestrator.trials.group import Group, write_group

_TRACKING_PATIENCE_S = 120.0
"""How long a finished group waits for a tracking server that answers to take the rest."""
_INTERRUPTED_PATIENCE_S = 0.7
"""The same after a signal: `ray job stop` kills 3 s after SIGTERM."""


class Tracking:
    """MLflow's side of a group; does nothing with tracking off."""

    def __init__(self, group: Folder, places: Places) -> None:
        self._group = group
        self._journal = Journal(group)
        self.on = places.tracking_uri is not None
        self._tracker: TrackerProcess | None = None

    def start(self) -> None:
        """Begin to send; the group's own request has been written."""
        if self.on:
            self._tracker = TrackerProcess(self._group)
            self._tracker.start()

    def changed(self, run: Folder) -> None:
        """A run of the group has something new."""
        if self._tracker is not None:
            self._tracker.changed(run)

    def note(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Metrics of the group itself."""
        self._journal.append_history([(step, metrics)])
        self.changed(self._group)

    def finish(
        self,
        status: Any,
        *,
        metrics: Mapping[str, float],
        tags: Mapping[str, Any],
        artifacts: Sequence[str] = (),
    ) -> None:
        """Write down how the group ended; again, when it was extended, with what has changed."""
        if self.on:
            told = {point.name: point for point in sorted(self._journal.points(), key=_step)}
            changed = {
                name: value
                for name, value in metrics.items()
                if name not in told or told[name].value != value
            }
            again = any(name in told for name in changed)
            finish_request(
                self._group,
                status=status,
                metrics=changed,
                tags=tags,
                student=False,
                # A point that is known keeps its value.
                step=max(map(_step, told.values()), default=0) + again,
                artifacts=artifacts,
            )
            self.changed(self._group)

    def close(self, patience_s: float = _TRACKING_PATIENCE_S) -> GroupReport | None:
        """Send what is left, for as long as that."""
        if self._tracker is None:
            return None
        tracker, self._tracker = self._tracker, None
        return tracker.close(patience_s)


def _step(point: Point) -> int:
    return point.step


@contextmanager
def existing(group: Group) -> Iterator[None]:
    """Before a session: a signal names the group when there is one to go on with."""
    try:
        yield
    except Interrupted as error:
        error.run = group.name if group.exists else None
        raise


@contextmanager
def group_session(group: Group, places: Places, scaling: ScalingSpec) -> Iterator[Tracking]:
    """A group's folder for this process alone, with Ray.

    Raises:
        Interrupted: a signal came; names the group, which can be resumed.
    """
    tracking = Tracking(group.folder, places)
    with locked(group.folder):
        before = group.folder.read("state.json")
        write_group(group)
        write_state(group.folder, "running")
        try:
            # Ray's own helpers beside trials of several workers ask the dashboard when to end.
            with session(scaling, dashboard=scaling.workers > 1):
                yield tracking
        except (Interrupted, KeyboardInterrupt) as error:
            write_state(group.folder, "interrupted")
            tracking.finish("KILLED", metrics={}, tags={})
            tracking.close(_INTERRUPTED_PATIENCE_S)
            if isinstance(error, Interrupted):
                error.run = group.name
            raise
        except BaseException as error:
            with suppress(OSError):  # a full disk may be what failed
                write_state(group.folder, "failed", message=str(error))
                if before is None and not (group.folder / "trials").names():
                    forget_run(group.folder)  # refused before it began
                else:
                    tracking.finish("FAILED", metrics={}, tags={"error": str(error)})
            tracking.close()
            raise


def say_places(group: Group, places: Places, *, display: Display) -> None:
    """Where a group's files are, and where it is tracked."""
    display.say(f"{group.name}: {group.folder.location}")
    if places.tracking_uri is not None:
        display.say(f"{group.name}: tracked at {without_password(places.tracking_uri)}")


def finish_group(
    group: Group,
    tracking: Tracking,
    *,
    metrics: Mapping[str, float],
    tags: Mapping[str, Any],
    artifacts: Sequence[str],
    display: Display,
) -> GroupReport | None:
    """Write down that a group is finished, and bring MLflow up to date.

    Args:
        group: the group.
        tracking: MLflow's side of it.
        metrics: its final figures.
        tags: to add in MLflow.
        artifacts: files in its folder that go to MLflow.
        display: where progress is shown.

    Returns:
        How far MLflow got; None with tracking off.
    """
    tracking.finish("FINISHED", metrics=metrics, tags=tags, artifacts=artifacts)
    write_group(group)
    write_state(group.folder, "finished")
    if not tracking.on:
        return None
    with display.step(f"{group.name}: sending the rest to MLflow"):
        return tracking.close()

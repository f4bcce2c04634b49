"""Frees what a trial of several workers leaves behind when it is ended from outside.

Train's workers live in a placement group that its controller removes. A trial that Tune stops, or
whose process dies, takes its controller along, and nobody is left to remove the group: its cores are
held until the whole job ends, and the trials that wait for them wait for ever. So the first worker
of each trial names its group to an actor of the search's own, and the search has it removed when the
trial has ended in whatever way.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, get_current_placement_group
from ray.util.placement_group import remove_placement_group as remove

logger = logging.getLogger(__name__)

_SWEEP_S = 15.0
_ORPHAN_S = 120.0
"""Train gives up a group whose workers have not started after 60 s: one that is older, and that no
worker has named, belongs to a controller that died before its workers started."""


class _Register:
    """Which trial, in which attempt, holds which groups."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], list[PlacementGroup]] = {}
        self._closed: set[tuple[str, str]] = set()

    def name(self, trial: str, attempt: str, group: PlacementGroup) -> None:
        """A worker names its group; that of an attempt that has ended meanwhile is removed."""
        if (trial, attempt) in self._closed:
            remove(group)
            return
        self._groups.setdefault((trial, attempt), []).append(group)

    def begin(self, trial: str, attempt: str) -> None:
        """A new attempt at a trial; what earlier ones held is removed."""
        self.release(trial)
        self._groups[trial, attempt] = []

    def release(self, trial: str) -> None:
        """Remove all that a trial holds."""
        for key in [key for key in self._groups if key[0] == trial]:
            self._closed.add(key)
            for group in self._groups.pop(key):
                with suppress(Exception):  # its controller may have removed it
                    remove(group)

    def known(self) -> set[str]:
        """Ids of the groups that are held."""
        return {group.id.hex() for groups in self._groups.values() for group in groups}


class Wards:
    """The search's handle on the register; pickles, so that trials can name their groups."""

    def __init__(self) -> None:
        self._register = ray.remote(num_cpus=0)(_Register).remote()

    def begin(self, trial: str, attempt: str) -> None:
        """In a trial: before its workers start."""
        ray.get(self._register.begin.remote(trial, attempt))

    def name_own_group(self, trial: str, attempt: str) -> None:
        """In a trial's first worker."""
        ray.get(self._register.name.remote(trial, attempt, get_current_placement_group()))

    def release(self, trial: str) -> None:
        """In the search: a trial has ended."""
        ray.get(self._register.release.remote(trial))

    def known(self) -> set[str]:
        """Ids of the groups that trials hold."""
        found: set[str] = ray.get(self._register.known.remote())
        return found


class Sweeper:
    """Removes groups of this job that no living trial can hold, by Ray's list of all of them.

    That covers what dies in the seconds between Train's request for a group and its first worker.
    """

    def __init__(self, wards: Wards, worker: dict[str, float]) -> None:
        """Args:
        wards: knows the groups that are held.
        worker: resources of one bundle of a trial's group; Tune's own groups have other ones.
        """
        self._wards, self._worker = wards, worker
        self._looked_at = 0.0
        self._seen: dict[str, float] = {}

    def sweep(self) -> None:
        """Look, if it is time to."""
        now = time.monotonic()
        if now - self._looked_at < _SWEEP_S:
            return
        self._looked_at = now
        from ray.util.state import list_placement_groups

        try:
            job = ray.get_runtime_context().get_job_id()
            groups = list_placement_groups(
                address=ray.get_runtime_context().gcs_address,
                filters=[("creator_job_id", "=", job)],
                detail=True,
                limit=10_000,
            )
        except Exception as error:  # the dashboard may be away: next time
            logger.debug("placement groups cannot be listed: %s", error)
            return
        known = self._wards.known()
        orphans = {
            group["placement_group_id"]
            for group in groups
            if group["state"] != "REMOVED"
            and group["placement_group_id"] not in known
            and self._is_workers(group["bundles"])
        }
        self._seen = {group: self._seen.get(group, now) for group in orphans}
        for group, since in list(self._seen.items()):
            if now - since > _ORPHAN_S:
                logger.warning("removing placement group %s, which nobody uses", group)
                _remove_by_id(group)

    def _is_workers(self, bundles: list[dict[str, Any]]) -> bool:
        return all(
            {k: v for k, v in bundle["unit_resources"].items() if v} == self._worker
            for bundle in bundles
        )


def _remove_by_id(group: str) -> None:
    with suppress(Exception):
        remove(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))

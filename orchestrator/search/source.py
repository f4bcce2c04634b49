"""Turns points of a space into trials, and tells the study how they ended."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.data import Dataset
from orchestrator.errors import UserError
from orchestrator.experiment_file import changed
from orchestrator.search.records import PARAMETERS, goal_values
from orchestrator.search.study import Study
from orchestrator.sources import num_parameters
from orchestrator.spec import Experiment
from orchestrator.storage import Folder
from orchestrator.student_check import check_student
from orchestrator.trials.feed import Trial
from orchestrator.trials.group import Record, read_trial
from search_spaces import Space

INPUTS = "all"
"""Key of the inputs, which all trials of a search share."""


REFUSALS = 100
"""So many points in a row that cannot be mean that no other is looked for."""


class SpaceSource:
    """Trials of a search: first those that were cut off, then new points up to a number."""

    def __init__(
        self,
        space: Space,
        study: Study,
        *,
        base: Experiment,
        group_name: str,
        dataset: Dataset,
        trials: Folder,
        records: Sequence[Record],
        total: int,
        say: Callable[[str], None],
    ) -> None:
        """Args:
        space: what is searched.
        study: where points come from; knows the trials of earlier sessions.
        base: what the trials vary.
        group_name: the search's, for the names of its trials' experiments.
        dataset: the images.
        trials: holds the trials' folders.
        records: trials of earlier sessions.
        total: how many trials there shall be in the end.
        say: told of points that cannot be.
        """
        self._space, self._study = space, study
        self._base, self._group_name, self._dataset = base, group_name, dataset
        self._trials, self._total, self._say = trials, total, say
        self._going_on = [record for record in records if not record.ended]
        self._used = {record.name for record in records}
        self.settings: dict[str, dict[str, Any]] = {r.name: r.settings for r in records}
        """Of every trial so far, by its name."""

    def next(self) -> Trial | None:
        """The next trial to start; None when there are enough, or no other point is left."""
        if self._going_on:
            record = self._going_on.pop(0)
            return Trial(record.name, record.experiment, record.settings, record.details, INPUTS)
        refused = 0
        while len(self._used) < self._total:
            numbers = (f"{number:04d}" for number in itertools.count(1))
            name = next(number for number in numbers if number not in self._used)
            point = self._study.ask(name)
            if point is None:
                self._say(f"the space has no point that is not tried: {len(self._used)} trials")
                return None
            try:
                trial = self._trial(name, point)
            except UserError as error:
                self._say(f"passed over a point that cannot be: {error}")
                self._study.tell(name, None, failed=True)
                refused += 1
                if refused == REFUSALS:
                    self._say(f"{refused} points in a row cannot be: no other is looked for")
                    return None
                continue
            self._used.add(name)
            self.settings[name] = point
            return trial
        return None

    def heard(self, name: str, epoch: int, score: float) -> None:
        """A trial has reported an epoch."""
        self._study.report(name, epoch, score)

    def ended(self, name: str, state: str) -> None:
        """A trial has ended."""
        record = read_trial(self._trials / name)
        assert record is not None
        self._study.tell(name, goal_values(record, self._space), failed=state == "failed")

    def _trial(self, name: str, point: Mapping[str, Any]) -> Trial:
        experiment = trial_experiment(self._base, self._group_name, name, point)
        details: dict[str, Any] = {}
        if any(goal.metric == PARAMETERS for goal in self._space.goals):
            details[PARAMETERS] = num_parameters(check_student(experiment, self._dataset))
        return Trial(name, experiment, dict(point), details, INPUTS)


def trial_experiment(
    base: Experiment, group_name: str, name: str, settings: Mapping[str, Any]
) -> Experiment:
    """The experiment of a trial, under a name that says whose it is."""
    return changed(base, {**settings, "name": f"{group_name}-{name}"})

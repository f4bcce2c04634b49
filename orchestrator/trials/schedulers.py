"""Ray Tune's schedulers, told of earlier sessions and never ending a trial at its last epoch."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from search_spaces import Parameter, Space

_MIN_TRIALS = 3
"""The median stops a trial only once so many others have got as far."""

Scores = Mapping[int, float]
"""A trial's score after each epoch."""


class EarlyStopping(NamedTuple):
    """When trials are compared."""

    grace: int
    """Epochs before the first comparison."""
    reduction: float
    """Successive halving goes on with one in this many."""


def early_stopping(space: Space, epochs: int) -> EarlyStopping:
    """The space's settings, or some that suit the number of epochs."""
    section = space.asha if space.scheduler == "asha" else space.median
    grace = section.grace if section is not None else None
    reduction = space.asha.reduction if space.scheduler == "asha" and space.asha else None
    return EarlyStopping(
        grace=min(grace or math.ceil(epochs / 9), epochs), reduction=reduction or 3.0
    )


def rungs(space: Space, epochs: int) -> list[int]:
    """The epochs after which successive halving compares trials."""
    if space.scheduler != "asha":
        return []
    grace, reduction = early_stopping(space, epochs)
    count = int(math.log(epochs / grace) / math.log(reduction) + 1e-9) + 1
    found = (math.ceil(grace * reduction**k) for k in range(count))
    return [rung for rung in found if rung < epochs]


def build_scheduler(
    space: Space, *, epochs: int, ended: Sequence[Scores], going_on: Mapping[str, Scores]
) -> TrialScheduler:
    """Tune's scheduler for a space without population.

    Args:
        space: the search space.
        epochs: the budget of a trial.
        ended: scores of the trials of earlier sessions that have ended.
        going_on: scores of those that go on, by the name of the trial.
    """
    if space.scheduler == "none":
        return FIFOScheduler()
    goal = space.goals[0]
    stopping = early_stopping(space, epochs)
    common: dict[str, Any] = {"time_attr": "epoch", "metric": "score", "mode": goal.mode}
    scheduler: _Asha | _Median
    if space.scheduler == "asha":
        scheduler = _Asha(
            **common,
            max_t=epochs + 1,
            grace_period=stopping.grace,
            reduction_factor=stopping.reduction,
        )
    else:
        scheduler = _Median(
            **common,
            grace_period=stopping.grace,
            min_samples_required=_MIN_TRIALS,
        )
    scheduler.epochs = epochs
    scheduler.going_on = going_on
    scheduler.recall(ended)
    return scheduler


class _Remembering(TrialScheduler):
    """Adds to a scheduler what a new session has to know of the earlier ones."""

    epochs: int
    going_on: Mapping[str, Scores]
    take_down: Callable[..., Any]
    """The scheduler's own way of hearing a result whose decision does not count any more."""

    def recall(self, ended: Sequence[Scores]) -> None:
        """Tell it of trials that have ended."""
        for scores in ended:
            trial = Trial("recalled", stub=True)
            super().on_trial_add(None, trial)
            self._replay(trial, scores)
            if scores:
                super().on_trial_complete(None, trial, _result(max(scores), scores))

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Also tell it what a trial that goes on had reached; that was decided upon before."""
        super().on_trial_add(tune_controller, trial)
        self._replay(trial, self.going_on.get(str(trial), {}))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """A trial that is through is not stopped: it has its student still to leave."""
        action: str = super().on_trial_result(tune_controller, trial, result)
        # The median rule would also pause trials, to let others have a turn: that costs each of
        # them the epoch it is in.
        last = result["epoch"] >= self.epochs
        return TrialScheduler.CONTINUE if last or action == TrialScheduler.PAUSE else action

    def _replay(self, trial: Trial, scores: Scores) -> None:
        for epoch in sorted(scores):
            self.take_down(None, trial, _result(epoch, scores))


class _Asha(_Remembering, ASHAScheduler):
    take_down = ASHAScheduler.on_trial_result


class _Median(_Remembering, MedianStoppingRule):
    # `on_trial_result` may take a trial as stopped; this one only takes the result down.
    take_down = MedianStoppingRule.on_trial_complete


def _result(epoch: int, scores: Scores) -> dict[str, Any]:
    return {"epoch": epoch, "score": scores[epoch]}


def build_population(
    parameters: Mapping[str, Parameter],
    members: Mapping[str, Mapping[str, Any]],
    *,
    interval: int,
    epochs: int,
    mode: str,
    seed: int,
    exchanged: int = 0,
) -> TrialScheduler:
    """Population based training.

    Args:
        parameters: what is mutated, by dotted path.
        members: settings in force of each member, by its name.
        interval: epochs between two exchanges.
        epochs: the budget of a member.
        mode: whether a large or a small metric is good.
        seed: of the mutations.
        exchanged: the last epoch after which an earlier session compared the members.
    """
    random.seed(seed)  # Tune draws from the global generators
    np.random.seed(seed)  # noqa: NPY002

    def keep_inside(config: dict[str, Any]) -> dict[str, Any]:
        """Tune multiplies by 0.8 or 1.2, whatever the domain."""
        for path, parameter in parameters.items():
            config[path] = _inside(parameter, config[path])
        return config

    scheduler = _Population(
        time_attr="epoch",
        metric="current",
        mode=mode,
        perturbation_interval=interval,
        hyperparam_mutations={path: _domain(p) for path, p in parameters.items()},
        custom_explore_fn=keep_inside,
        log_config=False,
        require_attrs=False,
        # All are compared after the same epoch, so what is taken over fits the schedule.
        synch=True,
    )
    scheduler.members, scheduler.epochs = members, epochs
    scheduler._next_perturbation_sync = exchanged + interval
    return scheduler


def last_exchange(epochs: Sequence[int], taken_over: Sequence[int], interval: int) -> int:
    """The last epoch after which members were compared; 0 when there is none.

    Args:
        epochs: how many each member has done. None goes past a comparison before it is made.
        taken_over: epochs of the checkpoints that members have taken over.
        interval: epochs between two exchanges.
    """
    passed = max((epoch - 1 for epoch in epochs), default=0) // interval * interval
    return max(0, passed, *taken_over)


class _Population(PopulationBasedTraining):
    members: Mapping[str, Mapping[str, Any]]
    epochs: int

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Members wait to be compared, after each interval but not after the last epoch."""
        if not self._next_perturbation_sync <= result["epoch"] < self.epochs:
            return str(TrialScheduler.CONTINUE)
        self._save_trial_state(self._trial_state[trial], result["epoch"], result, trial)
        return str(TrialScheduler.PAUSE)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Members are compared when all that have not ended wait, each with its checkpoint saved.

        Tune would do so as soon as the last one reports. One whose checkpoint is then still on its
        way, and who is to go on from another's, it would stop after its next.
        """
        left = [member for member in tune_controller.get_trials() if not member.is_finished()]
        if left and all(self._waits(member) for member in left):
            # Told again what one of them has reported, Tune shall find that nobody is behind.
            for member in tune_controller.get_trials():
                self._trial_state[member].last_train_time = self._next_perturbation_sync
            last = self._trial_state[left[0]].last_result
            super().on_trial_result(tune_controller, left[0], last)
        chosen: Trial | None = super().choose_trial_to_run(tune_controller)
        return chosen

    def _waits(self, member: Trial) -> bool:
        reached: int = self._trial_state[member].last_train_time
        return bool(member.status == Trial.PAUSED and reached >= self._next_perturbation_sync)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Each member starts with its own settings, where Tune would draw some."""
        if trial not in self._trial_state:  # else it is tried again
            trial.config.update(self.members[str(trial)])
        super().on_trial_add(tune_controller, trial)
        # Else one that is tried again, or goes on from an earlier session, would be compared at
        # epochs that leave no checkpoint to take over.
        last = self._next_perturbation_sync - self._perturbation_interval
        self._trial_state[trial].last_perturbation_time = last


def _domain(parameter: Parameter) -> Any:
    values: Sequence[Any] = parameter.values
    match parameter.kind:
        case "uniform":
            return tune.uniform(*values)
        case "loguniform":
            return tune.loguniform(*values)
        case "quniform":
            return tune.quniform(*values)
        case "randint":
            return tune.randint(values[0], values[1] + 1)
        case _:
            return list(values)


def _inside(parameter: Parameter, value: Any) -> Any:
    values: Sequence[Any] = parameter.values
    if parameter.kind in ("choice", "grid"):
        return value
    value = min(max(value, values[0]), values[1])
    if parameter.kind == "quniform":
        value = values[0] + round((value - values[0]) / values[2]) * values[2]
    return round(value) if parameter.kind == "randint" else value

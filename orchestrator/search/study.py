"""Points of a search space, from Optuna: by TPE, by chance, or from the whole grid in turn.

The study lives in memory and is made anew from the trials' folders in each session, so there is no
state beside them that could disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from search_spaces import Parameter, Space, first_point, grid_points, is_active

_REPEATS = 100
"""So many points in a row that have been tried already mean that there is no other."""


class Tried(NamedTuple):
    """A trial of an earlier session."""

    name: str
    settings: Mapping[str, Any]
    scores: Mapping[int, float]
    """Score after each epoch."""
    values: Sequence[float] | None
    """One per goal, when the trial is finished."""
    failed: bool
    ended: bool


class Study:
    """Asks for points and is told how good they were. Knows trials by their names."""

    def __init__(
        self,
        space: Space,
        base: Mapping[str, Any],
        *,
        num_trials: int,
        seed: int,
        tried: Sequence[Tried],
    ) -> None:
        """Args:
        space: what is searched.
        base: the experiment's own settings, flattened.
        num_trials: how many trials are planned in all; a quarter of them start by chance.
        seed: of the points.
        tried: trials of earlier sessions, in their order.
        """
        self._space = space
        self._base = base
        self._one_goal = len(space.goals) == 1
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # A session's draws must not repeat those of the one before.
        seed = (seed + 7919 * len(tried)) % 2**32
        sampler: optuna.samplers.BaseSampler
        if space.searcher == "tpe":
            sampler = optuna.samplers.TPESampler(
                seed=seed,
                n_startup_trials=start_up_trials(num_trials),
                constant_liar=True,  # trials that run are not to be tried again nearby
            )
        else:
            sampler = optuna.samplers.RandomSampler(seed=seed)
        self._study = optuna.create_study(
            sampler=sampler,
            directions=["maximize" if goal.mode == "max" else "minimize" for goal in space.goals],
        )
        self._asked: dict[str, optuna.Trial] = {}
        self._reported: set[tuple[str, int]] = set()
        self._points: list[dict[str, Any]] = []
        self._grid = grid_points(space, base) if space.searcher == "grid" else []
        for trial in tried:
            self._remember(trial)

    def ask(self, name: str) -> dict[str, Any] | None:
        """The next point, under the name of the trial that tries it; None when there is no other.

        The first one is the space's own first point.
        """
        if self._space.searcher == "grid":
            rest = [point for point in self._grid if point not in self._points]
            if not rest:
                return None
            return self._ask_for(rest[0], name)
        if not self._points and self._space.first:
            return self._ask_for(first_point(self._space, self._base), name)
        for _ in range(_REPEATS):
            trial = self._study.ask()
            point = self._suggest(trial)
            if point not in self._points:
                self._points.append(point)
                self._asked[name] = trial
                return point
            self._study.tell(trial, state=TrialState.FAIL)
        return None

    def report(self, name: str, epoch: int, score: float) -> None:
        """A trial's score after an epoch, of which the first word counts."""
        if self._one_goal and (name, epoch) not in self._reported:
            self._reported.add((name, epoch))
            self._asked[name].report(score, epoch)

    def tell(self, name: str, values: Sequence[float] | None, *, failed: bool) -> None:
        """How a trial ended.

        Args:
            name: the trial.
            values: one per goal; None for one that was stopped early, which counts as pruned.
            failed: whether it failed.
        """
        trial = self._asked.pop(name)
        if failed:
            self._study.tell(trial, state=TrialState.FAIL)
        elif values is None:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, list(values))

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """What Optuna knows, in the order it was asked or told."""
        return self._study.get_trials()

    def _ask_for(self, point: dict[str, Any], name: str) -> dict[str, Any]:
        self._study.enqueue_trial(point)
        trial = self._study.ask()
        point = self._suggest(trial)
        self._points.append(point)
        self._asked[name] = trial
        return point

    def _suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        point: dict[str, Any] = {}
        for path, parameter in self._space.parameters.items():
            if is_active(parameter, point, self._space, self._base):
                point[path] = _draw(trial, path, parameter)
        return point

    def _remember(self, tried: Tried) -> None:
        settings = dict(tried.settings)
        if not tried.ended:  # goes on: its result is told when it comes
            self._ask_for(settings, tried.name)
            for epoch, score in tried.scores.items():
                self.report(tried.name, epoch, score)
            return
        self._points.append(settings)
        state = TrialState.COMPLETE if tried.values is not None else TrialState.PRUNED
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.FAIL if tried.failed else state,
                params=settings,
                distributions={
                    path: distribution(self._space.parameters[path]) for path in settings
                },
                values=None if tried.failed or tried.values is None else list(tried.values),
                intermediate_values=dict(tried.scores) if self._one_goal else None,
            )
        )


def _draw(trial: optuna.Trial, path: str, parameter: Parameter) -> Any:
    domain = distribution(parameter)
    if isinstance(domain, FloatDistribution):
        return trial.suggest_float(path, domain.low, domain.high, step=domain.step, log=domain.log)
    if isinstance(domain, IntDistribution):
        return trial.suggest_int(path, domain.low, domain.high, step=domain.step)
    assert isinstance(domain, CategoricalDistribution)
    return trial.suggest_categorical(path, domain.choices)


def start_up_trials(num_trials: int) -> int:
    """How many points TPE draws by chance before its model counts: a quarter, 3 to 10.

    Optuna's own 10 would leave 6 of 16 trials to the model.
    """
    return max(3, min(10, num_trials // 4))


def distribution(parameter: Parameter) -> BaseDistribution:
    """Optuna's word for a domain."""
    values: Sequence[Any] = parameter.values
    match parameter.kind:
        case "uniform":
            return FloatDistribution(*values)
        case "loguniform":
            low, high = values
            return FloatDistribution(low, high, log=True)
        case "quniform":
            low, high, step = values
            kind = IntDistribution if isinstance(low, int) else FloatDistribution
            return kind(low, high, step=step)
        case "randint":
            return IntDistribution(*values)
        case _:
            return CategoricalDistribution(values)

"""A search space as data: what a YAML file may say, whatever the experiment looks like."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from search_spaces._domain import Model, Parameter, Real, Value
from search_spaces._goal import Goal, Mode, check_goals, mode_of
from search_spaces._scheduler import Asha, Median, Pbt, Scheduler, check_changeable


class Around(Model):
    """How far a space reaches once it is narrowed to the surroundings of a run."""

    factor: Annotated[Real, Field(gt=1)] = 2.0
    """A `loguniform` goes from the run's value divided by this to its value times this."""
    span: Annotated[Real, Field(gt=0, le=1)] = 0.25
    """A `uniform` goes from the run's value less to its value plus this share of the range."""


class Space(Model):
    """What a search varies, how it looks for the best, and where it starts."""

    title: str = Field(min_length=1)
    """What the space is, in a few words."""
    description: str = Field(min_length=1)
    """What it searches and what it leaves alone, and why."""
    metric: str | None = None
    """Name of the metric that a trial is judged by: `val/top1` (the default), `val/top5` or
    `val/loss`. Not given with `objectives`."""
    mode: Mode | None = None
    """Whether a large or a small metric is good; by default what the metric asks for."""
    objectives: Annotated[tuple[Goal, ...], Field(strict=False)] = ()
    """Two metrics or more, instead of one: the search looks for the best compromises. The first is
    the main one, by which a single winner is chosen."""
    scheduler: Scheduler = "asha"
    """What stops bad trials early: successive halving, the median of the others, or nothing; `pbt`
    stops none, but lets the worst go on from the best."""
    asha: Asha | None = None
    """Settings of scheduler `asha`."""
    median: Median | None = None
    """Settings of scheduler `median`."""
    pbt: Pbt | None = None
    """Settings of scheduler `pbt`."""
    searcher: Literal["tpe", "random", "grid"] = "tpe"
    """What picks the next point: Optuna's TPE, chance, or every point of the grid."""
    trials: Annotated[int, Field(ge=1)] | None = None
    """How many points are tried, unless the search is told; not given for a grid, whose points are
    counted, nor for `pbt`, whose population it would be."""
    around: Around | None = None
    """Makes this a space around a run: its domains are the widest allowed range, and `narrow` makes
    of them, and of a run's settings, the space that is searched."""
    parameters: dict[str, Parameter] = Field(min_length=1)
    """Dotted path of each searched setting. A setting that another's `when` names comes first."""
    first: dict[str, Value] = Field(default_factory=dict)
    """The point tried before all others: a value for every parameter that is active there."""

    @property
    def goals(self) -> tuple[Goal, ...]:
        """What trials are judged by; the first is the main one."""
        if self.objectives:
            return self.objectives
        metric = self.metric or "val/top1"
        return (Goal(metric=metric, mode=mode_of(metric, self.mode)),)

    @model_validator(mode="before")
    @classmethod
    def _population(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("scheduler") == "pbt":
            return values | {"pbt": {} if values.get("pbt") is None else values["pbt"]}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Space:
        self._check_goals()
        for section in ("asha", "median", "pbt"):
            if getattr(self, section) is not None and self.scheduler != section:
                raise ValueError(
                    f"{section} is for scheduler {section!r}, and the scheduler is "
                    f"{self.scheduler!r}: drop it, or change the scheduler"
                )
        self._check_searcher()
        if self.scheduler == "pbt":
            check_changeable(self.parameters)
        if self.around is not None:
            self._check_around()
        return self

    def _check_goals(self) -> None:
        if not self.objectives:
            check_goals(self.goals)
            return
        given = [name for name in ("metric", "mode") if getattr(self, name) is not None]
        if given:
            raise ValueError(f"{given[0]} and objectives exclude each other: give one of them")
        if len(self.objectives) == 1:
            raise ValueError("objectives takes two or more: give a single one as metric")
        check_goals(self.objectives)
        if self.scheduler != "none":
            raise ValueError(
                f"scheduler {self.scheduler!r} ranks trials by one metric: with several objectives "
                f"use 'none'"
            )
        if self.searcher == "grid":
            raise ValueError(
                "searcher 'grid' does not look at metrics: with several objectives use 'tpe' or "
                "'random'"
            )

    def _check_searcher(self) -> None:
        if self.scheduler == "pbt" and self.searcher != "random":
            raise ValueError(
                f"scheduler 'pbt' picks settings itself and starts from random ones: use searcher "
                f"'random', not {self.searcher!r}"
            )
        for path, parameter in self.parameters.items():
            if (parameter.kind == "grid") != (self.searcher == "grid"):
                right = "choice" if parameter.kind == "grid" else "grid"
                raise ValueError(
                    f"parameters.{path}: searcher {self.searcher!r} cannot use a "
                    f"{parameter.kind} domain: make it {right}, or change the searcher"
                )
        counted = self.searcher == "grid" or self.scheduler == "pbt"
        if self.trials is not None and counted:
            raise ValueError(
                "trials is not for scheduler 'pbt', which has pbt.population: drop it"
                if self.scheduler == "pbt"
                else "trials is not for searcher 'grid', which tries every point: drop it"
            )

    def _check_around(self) -> None:
        if self.first:
            raise ValueError("first is the run's own point in a space with around: drop it")
        for path, parameter in self.parameters.items():
            if parameter.kind not in ("uniform", "loguniform", "choice"):
                raise ValueError(
                    f"parameters.{path}: around narrows uniform, loguniform and choice, not "
                    f"{parameter.kind}: use one of them"
                )

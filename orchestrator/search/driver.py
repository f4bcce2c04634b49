"""A search from the driver's side: check, search, run the winner over seeds, report."""

from __future__ import annotations

from typing import Any, NamedTuple

import yaml

from orchestrator.distillation import check_resources
from orchestrator.errors import RunFailed, UserError
from orchestrator.experiment_file import build_experiment, flatten, identity
from orchestrator.group_tracking import GroupReport
from orchestrator.inputs import Inputs, read_inputs
from orchestrator.journal import Journal
from orchestrator.mlflow_client import without_password
from orchestrator.places import Places, find_places
from orchestrator.progress import Display
from orchestrator.reports.search import SearchRecord
from orchestrator.runs import write_state
from orchestrator.search import latency
from orchestrator.search.finals import final_trials, median_final
from orchestrator.search.latency import measure_latencies
from orchestrator.search.plan import TrialBase, check_fits, count_trials, trial_base
from orchestrator.search.records import LATENCY, PARAMETERS, score, tried, winner
from orchestrator.search.report import search_record, write_report
from orchestrator.search.source import INPUTS, SpaceSource
from orchestrator.search.study import Study
from orchestrator.spec import Experiment
from orchestrator.storage import Folder, check_writable
from orchestrator.tracking import register_later
from orchestrator.trials.board import Board
from orchestrator.trials.engine import Population, run_trials
from orchestrator.trials.feed import ListSource, Trial
from orchestrator.trials.group import (
    Group,
    Record,
    best_so_far,
    create_trial,
    find_group,
    open_group,
    read_trials,
    write_group,
)
from orchestrator.trials.population import MUTATIONS
from orchestrator.trials.prepare import Prepared, one_process, prepare
from orchestrator.trials.schedulers import build_population, build_scheduler, last_exchange
from orchestrator.trials.session import Tracking, group_session
from orchestrator.trials.tracking import request_group, request_trial
from search_spaces import Space, is_active


class Request(NamedTuple):
    """What is asked of a search."""

    experiment: Experiment
    space: Space
    space_name: str
    trials: int | None = None
    """In all; the space says by default."""
    epochs: int | None = None
    """Of each trial; the experiment's by default."""
    final_seeds: int = 3
    """Full-budget runs of the winner."""
    seed: int = 0
    """Of the points."""
    register: str | None = None
    """Register the winner's student under this name."""


class Outcome(NamedTuple):
    """What a search leaves."""

    group: Group
    record: SearchRecord
    student: Folder | None
    """The final run with the median validation score."""
    already_finished: bool
    tracking: GroupReport | None


def open_search(request: Request, *, name: str | None = None, new: bool = False) -> Group:
    """The search of a request: the one that exists, or one yet to be created.

    Raises:
        UserError: its name is taken by something else.
    """
    experiment, space = request.experiment, request.space
    name = name or f"{experiment.name}-{request.space_name}"
    if len(name) > 80:
        raise UserError(f"--name {name}: its trials' names need room: 80 characters at most")
    definition = {
        "experiment": identity(experiment),
        "space": space.model_dump(mode="json"),
        "epochs": request.epochs,
        "seed": request.seed,
    }
    asked = {
        "experiment": experiment.model_dump(mode="json"),
        "space_name": request.space_name,
        "trials": request.trials,
        "final_seeds": request.final_seeds,
        "register": request.register,
    }
    return open_group("search", name, definition, asked, find_places(experiment).storage, new=new)


def resume_search(name: str, storage: Folder, **changes: Any) -> tuple[Request, Group]:
    """An existing search, with what is to change of the request that it got last.

    Raises:
        UserError: there is no search of that name.
    """
    group = find_group("search", name, storage)
    asked = group.request | {key: value for key, value in changes.items() if value is not None}
    experiment = build_experiment(asked["experiment"], where=f"{group.folder.location}/group.json")
    updates = {"storage": experiment.storage.model_copy(update={"path": storage.location})}
    request = Request(
        experiment=experiment.model_copy(update=updates),
        space=Space.model_validate(group.definition["space"], strict=False),
        space_name=asked["space_name"],
        trials=asked["trials"],
        epochs=group.definition["epochs"],
        final_seeds=asked["final_seeds"],
        seed=group.definition["seed"],
        register=asked["register"],
    )
    return request, group._replace(request=asked)


def search(request: Request, group: Group, *, display: Display | None = None) -> Outcome:
    """Search, or go on with a search that was cut off or shall have more trials.

    Raises:
        UserError: the input is wrong; nothing was started or written.
        RunFailed: every trial failed.
        Interrupted: a signal came; the search can be resumed.
    """
    display = display or Display()
    experiment = one_process(request.experiment)
    places = find_places(experiment)
    check_writable(places.storage, setting="storage.path")
    space = request.space
    base = trial_base(experiment, space, epochs=request.epochs)
    total = count_trials(space, flatten(base.experiment.model_dump()), request.trials)
    if request.register and not request.final_seeds:
        raise UserError("--register registers a final run: give --final-seeds 1 or more")
    if request.register and places.tracking_uri is None:
        raise UserError("--register needs MLflow: set tracking.enabled: true")
    check_resources(experiment.scaling)
    with display.step(f"{group.name}: reading images and networks"):
        inputs = read_inputs(base.experiment)
    notes = [
        *base.notes,
        *check_fits(space, base.experiment, inputs.dataset, where=request.space_name),
    ]
    for note in [*inputs.notes, *notes]:
        display.say(f"note: {note}")
    with group_session(group, places, experiment.scaling) as tracking:
        run = _Search(request, group, base, inputs, places, tracking, display, total, notes)
        return run.go()


class _Search:
    """One session of a search."""

    def __init__(
        self,
        request: Request,
        group: Group,
        base: TrialBase,
        inputs: Inputs,
        places: Places,
        tracking: Tracking,
        display: Display,
        total: int,
        notes: list[str],
    ) -> None:
        self.request, self.group, self.base = request, group, base
        self.inputs, self.places, self.tracking = inputs, places, tracking
        self.display, self.total, self.notes = display, total, notes
        self.space = request.space
        self.trials, self.finals = group.folder / "trials", group.folder / "finals"

    def go(self) -> Outcome:
        records = _again_if_all_failed(read_trials(self.trials))
        left = self.total - sum(record.ended for record in records)
        prepared = prepare(
            {INPUTS: self.inputs},
            self.places,
            group=self.group.folder,
            num_trials=max(left, self.request.final_seeds, 1),
            metric=self.space.goals[0].metric,
            display=self.display,
        )
        self._say_places(prepared, records)
        self._request_tracking(prepared)
        self.tracking.start()
        if left > 0:
            self._search(prepared, records)
        best = winner(read_trials(self.trials), self.space)
        if best is None:
            raise RunFailed(self._no_winner())
        self._finals(prepared, best)
        return self._end(prepared, best)

    def _say_places(self, prepared: Prepared, records: list[Record]) -> None:
        say = self.display.say
        say(f"{self.group.name}: {self.group.folder.location}")
        if self.places.tracking_uri is not None:
            say(f"{self.group.name}: tracked at {without_password(self.places.tracking_uri)}")
        if records:
            ended = sum(record.ended for record in records)
            cut_off = len(records) - ended
            say(f"{self.group.name}: {ended} trials have ended, {cut_off} go on where they were")
        workers = self.request.experiment.scaling.workers
        each = f"{prepared.setup.resources.cpus} CPU"
        if prepared.setup.resources.gpus:
            each += f" and {prepared.setup.resources.gpus:g} GPU"
        each += f" for each of {workers} workers" if workers > 1 else ""
        say(f"{self.group.name}: {prepared.at_once} trials at once, each on {each}")

    def _request_tracking(self, prepared: Prepared) -> None:
        space = self.space
        goals = ", ".join(f"{goal.metric} ({goal.mode})" for goal in space.goals)
        values = space.model_dump(mode="json", exclude_defaults=True)
        request_group(
            self.group.folder,
            self.base.experiment,
            self.inputs,
            prepared.teachers[INPUTS],
            self.places,
            role="search",
            params={
                "space": self.request.space_name,
                "goal": goals,
                "searcher": space.searcher,
                "scheduler": space.scheduler,
                "trials": self.total,
                "epochs": self.base.experiment.train.epochs,
                "final_seeds": self.request.final_seeds,
                "seed": self.request.seed,
            },
            note=_note(self.request, goals),
            texts={"space.yaml": yaml.safe_dump(values, sort_keys=False)},
        )

    def _search(self, prepared: Prepared, records: list[Record]) -> None:
        space, base = self.space, self.base.experiment
        flat = flatten(base.model_dump())
        study = Study(
            space,
            flat,
            num_trials=self.total,
            seed=self.request.seed,
            tried=[tried(record, space) for record in records],
        )
        source = SpaceSource(
            space,
            study,
            base=base,
            group_name=self.group.name,
            dataset=self.inputs.dataset,
            trials=self.trials,
            records=records,
            total=self.total,
            say=self.display.say,
        )
        scores = {r.name: best_so_far(r.history, space.goals[0].metric) for r in records}
        population = None
        if space.pbt is not None:
            members = []
            while (trial := source.next()) is not None:
                members.append(trial)
            population = Population(members, space.pbt.interval)
            scheduler = build_population(
                {
                    path: parameter
                    for path, parameter in space.parameters.items()
                    if is_active(parameter, {}, space, flat)
                },
                {trial.name: _in_force(trial) for trial in members},
                interval=space.pbt.interval,
                epochs=base.train.epochs,
                mode=space.goals[0].mode,
                seed=self.request.seed,
                exchanged=last_exchange(
                    [record.epochs for record in records],
                    [
                        taken["epoch"]
                        for record in records
                        for taken in (self.trials / record.name).read_json(MUTATIONS) or []
                    ],
                    space.pbt.interval,
                ),
            )
        else:
            scheduler = build_scheduler(
                space,
                epochs=base.train.epochs,
                ended=[scores[r.name] for r in records if r.ended and r.state != "failed"],
                going_on={r.name: scores[r.name] for r in records if not r.ended},
            )
        known = {record.name for record in records}

        def create(trial: Trial) -> None:
            if trial.name not in known:
                create_trial(
                    self.trials / trial.name, trial.experiment, trial.settings, **trial.details
                )
            self._request_trial(self.trials / trial.name, trial, role="trial")

        ended = {r.name: (r.state, score(r, space)) for r in records if r.ended}
        with Board(
            self.display,
            what="trials",
            total=self.total,
            epochs=base.train.epochs,
            settings_of=lambda name: source.settings.get(name, {}),
            higher_is_better=space.goals[0].mode == "max",
            ended=ended,
            on_change=self._note_progress,
        ) as board:
            run_trials(
                prepared.setup,
                source,
                scheduler=scheduler,
                create=create,
                tracking=self.tracking,
                watcher=board,
                ended_before=sum(state != "failed" for state, _ in ended.values()),
                population=population,
            )

    def _note_progress(self, ended: int, best: float | None) -> None:
        metrics = {"search/ended": float(ended)}
        if best is not None:
            metrics["search/best"] = best
        self.tracking.note(metrics, step=ended)

    def _finals(self, prepared: Prepared, best: Record) -> None:
        planned = final_trials(
            best,
            self.space,
            one_process(self.request.experiment),
            group_name=self.group.name,
            num_seeds=self.request.final_seeds,
        )
        records = {record.name: record for record in read_trials(self.finals)}
        left = [t for t in planned if t.name not in records or not records[t.name].ended]
        if not left:
            return
        self.display.say(
            f"{self.group.name}: trial {best.name} is best: {len(planned)} full runs of it"
        )
        setup = prepared.setup._replace(
            folder=self.finals,
            inputs={
                key: inputs._replace(work=inputs.work._replace(uses_test=True))
                for key, inputs in prepared.setup.inputs.items()
            },
        )

        def create(trial: Trial) -> None:
            if trial.name not in records:
                create_trial(
                    self.finals / trial.name, trial.experiment, trial.settings, **trial.details
                )
            self._request_trial(self.finals / trial.name, trial, role="final")

        seeds = {trial.name: {"seed": trial.details["seed"]} for trial in planned}
        with Board(
            self.display,
            what="final runs",
            total=len(planned),
            epochs=self.request.experiment.train.epochs,
            settings_of=lambda name: seeds.get(name, {}),
            higher_is_better=self.space.goals[0].mode == "max",
            ended={
                r.name: (r.state, score(r, self.space)) for r in records.values() if r.name in seeds
            },
        ) as board:
            run_trials(
                setup,
                ListSource(left),
                scheduler=build_scheduler(
                    self.space.model_copy(update={"scheduler": "none"}),
                    epochs=self.request.experiment.train.epochs,
                    ended=[],
                    going_on={},
                ),
                create=create,
                tracking=self.tracking,
                watcher=board,
                students=True,
            )

    def _request_trial(self, folder: Folder, trial: Trial, *, role: str) -> None:
        request_trial(
            folder,
            trial.experiment,
            trial.settings,
            self.places,
            group=self.group.folder,
            role=role,
            tags={"dcd.trial": trial.details.get("trial", trial.name)},
        )

    def _end(self, prepared: Prepared, best: Record) -> Outcome:
        if any(goal.metric == PARAMETERS for goal in self.space.goals):
            self._measure_sizes()
        record = search_record(
            self.group,
            self.space,
            space_name=self.request.space_name,
            experiment=self.base.experiment,
            inputs=self.inputs,
            winner=best,
            notes=self.notes,
        )
        artifacts = write_report(self.group.folder, record)
        finals = [r for r in read_trials(self.finals) if r.name.startswith(f"{best.name}-")]
        chosen = median_final(finals)
        if chosen is not None and self.request.register and self.tracking.on:
            register_later(self.finals / chosen.name, self.request.register)
            self.tracking.changed(self.finals / chosen.name)
        tags = {"dcd.winner": best.name, "dcd.winner.settings": str(best.settings)}
        if chosen is not None:
            tags["dcd.winner.student"] = chosen.name
        self.tracking.finish(
            "FINISHED",
            metrics=_final_figures(best, finals, self.space),
            tags=tags,
            artifacts=artifacts,
        )
        write_group(self.group)
        write_state(self.group.folder, "finished")
        report = None
        if self.tracking.on:
            with self.display.step(f"{self.group.name}: sending the rest to MLflow"):
                report = self.tracking.close()
        student = self.finals / chosen.name if chosen else None
        return Outcome(self.group, record, student, False, report)

    def _measure_sizes(self) -> None:
        """Latency and parameters of the finished trials' students, in MLflow too."""
        done = [record for record in read_trials(self.trials) if record.state == "finished"]
        measure_latencies([self.trials / r.name for r in done], display=self.display)
        for record in done:
            folder = self.trials / record.name
            sizes = {
                PARAMETERS: float(record.details[PARAMETERS]),
                LATENCY: folder.read_json(latency.FILE)["latency_ms"],
            }
            journal = Journal(folder)
            journal.append_history([(record.epochs, sizes)])
            self.tracking.changed(folder, journal)

    def _no_winner(self) -> str:
        records = read_trials(self.trials)
        failed = [record.error for record in records if record.state == "failed"]
        return f"none of {len(records)} trials was trained to the end" + (
            f"; {len(failed)} failed, the last so: {failed[-1]}" if failed else ""
        )


def _again_if_all_failed(records: list[Record]) -> list[Record]:
    """Trials that failed are not tried again, unless there were no others."""
    if records and all(record.state in ("failed", "interrupted") for record in records):
        return [record._replace(state="interrupted", error=None) for record in records]
    return records


def _in_force(trial: Trial) -> dict[str, Any]:
    """A member's weights now: a resumed one may have taken over others."""
    objective = trial.experiment.objective
    if objective.schedule:
        objective = objective.at(objective.schedule[-1].epoch)
    return {path: getattr(objective, path.rsplit(".", 1)[-1]) for path in trial.settings}


def _final_figures(best: Record, finals: list[Record], space: Space) -> dict[str, float]:
    figures: dict[str, float] = {}
    value = score(best, space)
    if value is not None:
        figures["search/winner"] = value
    for split in ("val", "test"):
        values = [
            record.result[f"{split}/top1"]
            for record in finals
            if record.state == "finished" and f"{split}/top1" in record.result
        ]
        if values:
            figures[f"final/{split}_top1"] = sum(values) / len(values)
    return figures


def _note(request: Request, goals: str) -> str:
    """The search's description in the UI."""
    return (
        f"Search of **{request.space.title}** ({request.space_name}) for **{goals}**.\n\n"
        "The runs below this one are its trials; their parameters are what was searched, and the "
        "chart of `val/top1` over them shows which were stopped early (tag `dcd.state`). "
        "`search/best` is the best score after so many ended trials. Runs with the tag "
        "`dcd.role = final` repeat the winner over fresh seeds with the full budget: only they "
        "have seen the test split, once. `report.md` under Artifacts says what was found.\n\n"
        f"{request.space.description.strip()}"
    )

"""The commands that run many trials: `dcd search` and `dcd compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli_options import (
    Name,
    New,
    Overrides,
    StoragePath,
    absolute,
    spec_to_run,
    telling_how_to_go_on,
)
from orchestrator.errors import UserError


def search(
    space: Annotated[
        str | None,
        typer.Argument(help="A shipped search space by name, or a YAML file.", metavar="SPACE"),
    ] = None,
    experiment: Annotated[
        Path | None, typer.Argument(help="Experiment file (YAML).", metavar="FILE")
    ] = None,
    overrides: Overrides = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Trials in all; more than before extends a search."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of each trial, when not the experiment's.")
    ] = None,
    final_seeds: Annotated[
        int | None, typer.Option(min=0, help="Full runs of the winner, each a fresh seed [3].")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the points that are tried.")] = 0,
    around: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Search around this run, with a space such as dcd_fine."),
    ] = None,
    register: Annotated[
        str | None, typer.Option(metavar="NAME", help="Register the winner's student in MLflow.")
    ] = None,
    name: Name = None,
    new: New = False,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="NAME", help="Go on with a search.")
    ] = None,
    storage: StoragePath = None,
) -> None:
    """Search an experiment's settings with Ray Tune, then run the winner over fresh seeds."""
    from orchestrator.search.command import Options, describe_result, search_request

    options = Options(
        space=space,
        file=experiment,
        overrides=tuple(overrides or ()),
        trials=trials,
        epochs=epochs,
        final_seeds=final_seeds,
        seed=seed,
        around=around,
        register=register,
        name=name,
        new=new,
        resume=resume,
        storage=absolute(storage),
    )
    request, group = search_request(options)

    from orchestrator.search.driver import search as run_search

    with telling_how_to_go_on("search", "search", request.experiment):
        outcome = run_search(request, group)
    print(describe_result(outcome, request.experiment))


def compare(
    experiment: Annotated[
        Path | None, typer.Argument(help="Experiment file (YAML).", metavar="FILE")
    ] = None,
    overrides: Overrides = None,
    arms: Annotated[
        str | None, typer.Option(help="Methods to compare, by comma: ce,kd,dcd,dcd+kd.")
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME='PATH=VALUE ...'", help="An arm by the settings that set it apart."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of each arm [5].")] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="ARM", help="Held against the others [the first arm].")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="What decides [test/top1].")] = None,
    vary_data: Annotated[
        bool, typer.Option("--vary-data", help="Vary order and augmentation with the seed too.")
    ] = False,
    name: Name = None,
    new: New = False,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="NAME", help="Go on with a comparison.")
    ] = None,
    storage: StoragePath = None,
) -> None:
    """Compare methods or settings over paired seeds, with intervals."""
    from orchestrator.comparison.command import (
        AS_IT_IS,
        Options,
        describe_result,
        new_request,
        resumed_request,
    )

    options = Options(
        arms=arms,
        arm=tuple(arm or ()),
        seeds=seeds,
        reference=reference,
        metric=metric,
        vary_data=vary_data,
        name=name,
        new=new,
    )
    if resume is None:
        try:
            spec = spec_to_run(experiment, overrides, resume=None, new=False, storage=storage)
        except UserError as error:
            if "or change the method" not in str(error):
                raise
            raise UserError(
                f"{error}; what belongs to one arm is given with it, as in --arm "
                '"at=objective.method=at objective.hint_layers=layer3"'
            ) from error
        request, group = new_request(spec, options)
    elif experiment is not None or overrides:
        raise UserError(AS_IT_IS)
    else:
        request, group = resumed_request(resume, absolute(storage), options)

    from orchestrator.comparison.driver import compare as run_comparison

    with telling_how_to_go_on("compare", "comparison", request.experiment):
        outcome = run_comparison(request, group)
    print(describe_result(outcome, request.experiment))

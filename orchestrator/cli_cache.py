"""`dcd cache`: the teacher's answers on disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli_options import ExperimentFile, Overrides, absolute
from orchestrator.errors import Interrupted, UserError

cache = typer.Typer(
    help="The teacher's answers on disk: what there is, removing it, computing it ahead.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Place = Annotated[
    str | None,
    typer.Option("--path", metavar="PATH", help="Folder or URI, when not the default."),
]


@cache.command("ls")
def ls(path: Place = None) -> None:
    """List what there is."""
    from orchestrator.teacher_cache.manage import describe_contents

    print(describe_contents(_location(path)))


@cache.command("prune")
def prune(
    keys: Annotated[
        list[str] | None, typer.Argument(help="What to remove, as `ls` names it.", metavar="KEY")
    ] = None,
    path: Place = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove all there is.")] = False,
    older_than: Annotated[
        float | None,
        typer.Option(min=0, metavar="DAYS", help="Remove what no run has used for so long."),
    ] = None,
    max_gib: Annotated[
        float | None,
        typer.Option(min=0, metavar="GIB", help="Remove the least recently used until it fits."),
    ] = None,
) -> None:
    """Remove some of it, or all."""
    from orchestrator.teacher_cache.manage import remove

    if not (keys or everything or older_than is not None or max_gib is not None):
        raise UserError("say what to remove: KEY, --all, --older-than DAYS or --max-gib GIB")
    print(
        remove(
            _location(path),
            keys=keys or [],
            everything=everything,
            older_than_s=None if older_than is None else older_than * 86400,
            max_bytes=None if max_gib is None else int(max_gib * 2**30),
        )
    )


@cache.command("warm")
def warm(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="How many, from the first [those that differ]."),
    ] = None,
) -> None:
    """Compute the answers that a search or a comparison will need, in this process."""
    from orchestrator.experiment_file import load_experiment

    spec = load_experiment(experiment, overrides or ())

    from orchestrator.teacher_cache.warm import warm as warm_cache

    try:
        print(warm_cache(spec, epochs=epochs))
    except Interrupted:
        print("\nstopped; what was computed is kept: the same command goes on", file=sys.stderr)
        raise


def _location(path: str | None) -> str:
    from orchestrator.places import default_cache

    location = absolute(path) or str(default_cache())
    if "://" not in location and Path(location).is_file():
        raise UserError(f"--path {path}: that is a file: name the folder of a teacher cache")
    return location

"""What the commands of the command line have in common."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.errors import Interrupted, UserError

if TYPE_CHECKING:
    from orchestrator.spec import Experiment

ExperimentFile = Annotated[Path, typer.Argument(help="Experiment file (YAML).", metavar="FILE")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a field: objective.kd_weight=0.5"),
]
StoragePath = Annotated[
    str | None,
    typer.Option("--storage", help="Folder or URI of the runs, when not the default."),
]
Name = Annotated[
    str | None, typer.Option("--name", help="Name of the whole, when not the default.")
]
New = Annotated[bool, typer.Option("--new", help="Start afresh under a numbered name.")]


@contextlib.contextmanager
def telling_how_to_go_on(command: str, what: str, spec: Experiment) -> Iterator[None]:
    """Print the command that goes on with what a signal has ended.

    Args:
        command: as it was typed, such as `search`.
        what: what it works on, in a word.
        spec: the experiment.
    """
    try:
        yield
    except Interrupted as error:
        from orchestrator.summary import storage_option

        resume = f"dcd {command} --resume {error.run}{storage_option(spec)}"
        text = f"go on with: {resume}" if error.run else f"no {what} had been started"
        with contextlib.suppress(OSError):  # of a terminal that was closed
            print(f"\nstopped; {text}", file=sys.stderr)
        raise


def spec_to_run(
    experiment: Path | None,
    overrides: list[str] | None,
    *,
    resume: str | None,
    new: bool,
    storage: str | None,
) -> Experiment:
    """The experiment that a command is about: from its file, or of an existing run."""
    from orchestrator.experiment_file import changed, load_experiment

    if (experiment is None) == (resume is None):
        raise UserError("give an experiment file, or --resume RUN: exactly one of them")
    if experiment is not None:
        spec = load_experiment(experiment, overrides or ())
        return changed(spec, {"storage.path": absolute(storage)}) if storage else spec
    assert resume is not None
    if new:
        raise UserError("--resume goes on with a run and --new starts one: give one of them")
    if overrides:
        raise UserError("--resume takes the run's own spec: drop --set")

    from orchestrator.places import storage_folder
    from orchestrator.runs import find_run

    folder = storage_folder(absolute(storage))
    return changed(find_run(resume, folder), {"storage.path": folder.location})


def absolute(path: str | None) -> str | None:
    """A folder of the user's, whatever directory is the working one later; URIs stay."""
    if path is None or "://" in path:
        return path
    return str(Path(path).expanduser().absolute())

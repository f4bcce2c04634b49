"""The command line: `dcd` and `python -m orchestrator`.

Heavy imports happen inside the commands, so that help and mistakes answer at once.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import sys
import threading
import weakref
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from orchestrator.cli_cache import cache
from orchestrator.cli_groups import compare, search
from orchestrator.cli_models import evaluate, transfer
from orchestrator.cli_options import (
    ExperimentFile,
    Overrides,
    StoragePath,
    absolute,
    spec_to_run,
    telling_how_to_go_on,
)
from orchestrator.errors import Interrupted, OrchestratorError, UserError

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

app = typer.Typer(
    help="Distil small, fast image classifiers from large, accurate ones (DCD, arXiv 2407.11802).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
"""Signals that end a command in order; the last comes when a terminal is closed."""

_under_way: list[weakref.ref[Interrupted]] = []
"""What the last signal has raised; see `_interrupt`."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def main() -> NoReturn:
    """Run a command and end with its exit code."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup
        _ENDING.discard(signal.SIGHUP)
    for number in _ENDING:
        signal.signal(number, _interrupt)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # Ray would start anew for whichever thread still asks it for something after its end.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    sys.path.insert(0, os.getcwd())  # where a `module:function` of the user's own lies
    shown = sys.unraisablehook
    sys.unraisablehook = lambda dropped: _is_signal(dropped) or shown(dropped)
    try:
        app()
    except Interrupted as error:
        import psutil

        # Threads that wait for Ray or a tracking server must not hold up the end, and a Ray that
        # was just being started has nobody to end it.
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(OSError):  # of a terminal that was closed
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(error.exit_code)
    except OrchestratorError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        print(
            f"error: {error.filename or 'a file'} could not be written: {error.strerror}. "
            "Make room: the same command goes on from the newest checkpoint",
            file=sys.stderr,
        )
        sys.exit(1)
    finally:
        sys.unraisablehook = shown
    sys.exit(0)


@app.command()
def distill(
    experiment: Annotated[
        Path | None, typer.Argument(help="Experiment file (YAML).", metavar="FILE")
    ] = None,
    overrides: Overrides = None,
    new: Annotated[bool, typer.Option("--new", help="Start afresh under a numbered name.")] = False,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="RUN", help="Go on with a run by its name.")
    ] = None,
    storage: StoragePath = None,
) -> None:
    """Train one student, or go on with a run that was cut off."""
    spec = spec_to_run(experiment, overrides, resume=resume, new=new, storage=storage)

    from orchestrator.distillation import distill as run_distillation
    from orchestrator.summary import describe_outcome

    with telling_how_to_go_on("distill", "run", spec):
        outcome = run_distillation(spec, new=new)
    print(describe_outcome(outcome, spec))


app.command()(search)
app.command()(compare)
app.command()(evaluate)
app.command()(transfer)
app.add_typer(cache, name="cache")


@app.command()
def plan(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    space: Annotated[
        str | None, typer.Option(metavar="SPACE", help="Plan a search of this space instead.")
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials of that search.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of each of them.")] = None,
) -> None:
    """Show what `distill` or `search` would do, without doing it."""
    from orchestrator.experiment_file import load_experiment

    if space is None and (trials is not None or epochs is not None):
        raise UserError("--trials and --epochs plan a search: give --space SPACE too")
    spec = load_experiment(experiment, overrides or ())

    from orchestrator.plan import describe_plan

    text = describe_plan(spec)
    if space is not None:
        from orchestrator.search.plan import describe_search_plan, read_space

        text += describe_search_plan(spec, read_space(space), trials=trials, epochs=epochs)
    print(text)


@app.command()
def doctor(
    experiment: Annotated[
        Path | None, typer.Argument(help="Check this experiment's places.", metavar="FILE")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Check versions, devices, Ray, MLflow and storage."""
    from orchestrator.doctor import examine
    from orchestrator.experiment_file import build_experiment, load_experiment

    spec = (
        load_experiment(experiment, overrides or ())
        if experiment
        else build_experiment({"name": "doctor", "objective": {"method": "ce"}}, where="doctor")
    )
    healthy = True
    for finding in examine(spec):
        healthy = healthy and finding.ok
        print(
            f"{'ok  ' if finding.ok else 'FAIL'}  {finding.subject:<22} {finding.text}", flush=True
        )
    if not healthy:
        raise typer.Exit(1)


@app.command()
def schema() -> None:
    """Print the JSON Schema of experiment files."""
    from orchestrator.spec import Experiment

    print(json.dumps(Experiment.model_json_schema(), indent=2))


@app.command()
def sync(
    run: Annotated[str | None, typer.Argument(help="One run; all by default.")] = None,
    storage: StoragePath = None,
    uri: Annotated[
        str | None, typer.Option(help="Send to this tracking URI instead of the run's own.")
    ] = None,
) -> None:
    """Send to MLflow what a run, or a search with all its trials, could not send."""
    from orchestrator.group_tracking import sync_group
    from orchestrator.places import storage_folder, tracking_place
    from orchestrator.tracking import group_members, is_group, pending_runs, retarget, sync_run

    folder = storage_folder(absolute(storage))
    if run and (folder / run).read_json("tracking/request.json") is None:
        raise UserError(f"{run}: no tracked run of that name in {folder.location}")
    # Of a group, all at once.
    names = [run] if run else dict.fromkeys(name.split("/")[0] for name in pending_runs(folder))
    if not names:
        print(f"nothing to send: all runs in {folder.location} are in MLflow")
    unsent = False
    for name in names:
        target = folder / name
        if uri:
            place, artifact_root = tracking_place(uri)
            retarget(target, uri=place, artifact_root=artifact_root)
        if is_group(target):
            points, left = sync_group(target)
            sent = f"{len(group_members(target))} runs, {points} points"
            pending = f"{len(left)} not sent yet: {next(iter(left.values()))}" if left else None
        else:
            report = sync_run(target)
            sent = f"{report.sent_points} points"
            pending = f"not sent yet: {report.pending}" if report.pending else None
        unsent = unsent or pending is not None
        print(f"{name}: {sent}, {pending or 'all sent'}")
    if unsent:
        raise typer.Exit(1)


@app.command()
def ui(
    uri: Annotated[str | None, typer.Option(help="Tracking URI, when not the default.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 5000,
) -> None:
    """Browse runs, curves and students in MLflow."""
    from orchestrator.places import tracking_place
    from orchestrator.ui import serve_ui

    place, artifact_root = tracking_place(uri)
    code = serve_ui(place, host=host, port=port, artifact_root=artifact_root)
    if code:
        raise typer.Exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """The first signal stops in order; further ones are ignored, as that takes a second or two."""
    for known in _ENDING:
        signal.signal(known, signal.SIG_IGN)
    error = Interrupted(number)
    # It lives until `main` has caught it, unless a library's `except:` has, as some have around
    # imports, or Python itself, as in a callback around a fork.
    _under_way.append(weakref.ref(error, lambda _: _send_again(number)))
    try:
        raise error
    finally:
        del error  # or this frame, which its traceback keeps, would keep it


def _send_again(number: int) -> None:
    """Send a signal once more whose exception has come to nothing."""
    _under_way.clear()
    if threading.current_thread() is not threading.main_thread():
        return
    for known in _ENDING:
        signal.signal(known, _interrupt)
    # Not from in here, where it would come to nothing again.
    again = threading.Timer(0.05, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _is_signal(dropped: UnraisableHookArgs) -> bool:
    """Whether an exception that Python drops stands for a signal, which then is sent once more."""
    error = dropped.exc_value
    if isinstance(error, Interrupted):
        if all(known() is not error for known in _under_way):
            _send_again(error.exit_code - 128)
        return True
    if isinstance(error, SystemExit) and error.code == signal.SIGTERM:
        _send_again(signal.SIGTERM)  # from Ray's own handler, while it starts
        return True
    return False


if __name__ == "__main__":
    main()

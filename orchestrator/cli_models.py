"""The commands that measure a model: `dcd evaluate` and `dcd transfer`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

import typer

from orchestrator.cli_options import Overrides, StoragePath, absolute
from orchestrator.errors import Interrupted

_MODEL = (
    "A run, its folder or its student's, mlflow:URI, an experiment file for its teacher, or a "
    "checkpoint (with --source)."
)


class Split(StrEnum):
    """Part of the images."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


def _split(name: str) -> Split:
    """Typer's own reading of an enum puts pydantic's "Value error" into the message."""
    try:
        return Split(name)
    except ValueError as error:
        names = ", ".join(repr(split.value) for split in Split)
        raise typer.BadParameter(f"{name!r} is not one of {names}") from error


Source = Annotated[
    str | None,
    typer.Option("--source", metavar="NAME", help="Network of a checkpoint: a student's source."),
]
NumClasses = Annotated[
    int | None,
    typer.Option("--num-classes", min=2, help="Its classes, when not the data's."),
]


def evaluate(
    model: Annotated[str, typer.Argument(help=_MODEL, metavar="MODEL")],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|SOURCE",
            help="YAML file with a data section, or a source by name [the run's own data].",
        ),
    ] = None,
    overrides: Overrides = None,
    split: Annotated[
        Split,
        typer.Option(parser=_split, metavar="train|val|test", help="Which of its splits."),
    ] = Split.TEST,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Compare with this one [the student's teacher]."),
    ] = None,
    source: Source = None,
    num_classes: NumClasses = None,
    storage: StoragePath = None,
) -> None:
    """Measure a model on labelled images: accuracy, calibration, confusions, speed."""
    with _telling_what_is_left():
        from orchestrator.assessment.evaluate import Request, describe_outcome, evaluate_model

        outcome = evaluate_model(
            Request(
                model=model,
                source=source,
                num_classes=num_classes,
                data=data,
                overrides=tuple(overrides or ()),
                split=split.value,
                teacher=teacher,
                storage=absolute(storage),
            )
        )
    print(describe_outcome(outcome))


def transfer(
    models: Annotated[list[str], typer.Argument(help=_MODEL, metavar="MODEL...")],
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE|SOURCE", help="YAML file with a data section, or a source by name."
        ),
    ],
    overrides: Overrides = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each probe.")] = 120,
    lr: Annotated[float, typer.Option(help="Learning rate at the start, above 0.")] = 0.05,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of a step.")] = 64,
    seeds: Annotated[int, typer.Option(min=1, help="Probes of each model.")] = 1,
    feature_layer: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Module to probe [the input of the classifier]."),
    ] = None,
    source: Source = None,
    num_classes: NumClasses = None,
    storage: StoragePath = None,
) -> None:
    """Train linear probes on a model's frozen features, for other images and classes."""
    with _telling_what_is_left():
        from orchestrator.transfer.probe import ProbeSettings
        from orchestrator.transfer.run import Request, describe_left, transfer_models

        left = transfer_models(
            Request(
                models=tuple(models),
                data=data,
                overrides=tuple(overrides or ()),
                settings=ProbeSettings(epochs, lr, batch_size),
                seeds=seeds,
                source=source,
                num_classes=num_classes,
                feature_layer=feature_layer,
                storage=absolute(storage),
            )
        )
    print(describe_left(left))


@contextlib.contextmanager
def _telling_what_is_left() -> Iterator[None]:
    """Say what a signal has left of the command."""
    try:
        yield
    except Interrupted as error:
        left = f"{error.run} is complete, and `dcd sync {error.run}` sends it to MLflow"
        text = left if error.run else "nothing of what was being measured is kept"
        with contextlib.suppress(OSError):  # of a terminal that was closed
            print(f"\nstopped; {text}", file=sys.stderr)
        raise

"""The errors that the command line turns into a sentence and an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class OrchestratorError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the command ends with."""

    exit_code = 1


class UserError(OrchestratorError):
    """The user's input is wrong. The message names what, where, and a remedy."""

    exit_code = 2


class RunFailed(OrchestratorError):
    """A run started and could not go on. What it had saved is kept."""


class Diverged(RunFailed):
    """A loss term became NaN or infinite during training."""


class DamagedFile(RunFailed, ValueError):
    """A file of a run holds something else than what was written to it."""


class Interrupted(BaseException):
    """A signal ended the command: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP.

    Like KeyboardInterrupt it is no Exception: libraries that catch and log those would swallow it.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by signal {signal_number}")
        self.exit_code = 128 + signal_number
        self.run: str | None = None
        """Name of the run that can be resumed; None when none had been created yet."""


@contextmanager
def naming(setting: str) -> Iterator[None]:
    """Put a setting's name before what is wrong with it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{setting}: {error}") from error

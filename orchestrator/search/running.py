"""A search that runs: all that its stages need."""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.inputs import Inputs
from orchestrator.places import Places
from orchestrator.progress import Display
from orchestrator.search.request import Request
from orchestrator.spec import Experiment
from orchestrator.storage import Folder
from orchestrator.trials.group import Group
from orchestrator.trials.prepare import Prepared
from orchestrator.trials.session import Tracking
from search_spaces import Space


class Running(NamedTuple):
    """One session of a search."""

    request: Request
    group: Group
    base: Experiment
    """What the trials vary, with their budget and schedule."""
    total: int
    """How many trials there shall be in the end."""
    notes: list[str]
    """What the reader of the report should not miss."""
    inputs: Inputs
    prepared: Prepared
    places: Places
    tracking: Tracking
    display: Display

    @property
    def space(self) -> Space:
        """What is searched."""
        return self.request.space

    @property
    def trials(self) -> Folder:
        """Holds the trials' folders."""
        return self.group.folder / "trials"

    @property
    def finals(self) -> Folder:
        """Holds the folders of the winner's final runs."""
        return self.group.folder / "finals"

"""What the epoch loop needs from its surroundings: its rank, and someone to tell about an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch

from orchestrator.journal import Journal


class Ranks(NamedTuple):
    """The processes that train together."""

    rank: int = 0
    """This process."""
    size: int = 1
    """How many there are."""
    device: torch.device = torch.device("cpu")
    """Where this process computes."""


class Reporter(Protocol):
    """Takes the metrics of finished epochs. Every rank calls it the same number of times."""

    @property
    def ranks(self) -> Ranks:
        """The processes that train together."""
        ...

    def report(self, metrics_by_step: Mapping[int, Mapping[str, float]]) -> None:
        """Hand over metrics, averaged over the ranks already; what is known already is ignored."""
        ...


class ProcessReporter:
    """Training in this very process: metrics go straight into the journal."""

    def __init__(self, journal: Journal, *, device: torch.device) -> None:
        self._journal = journal
        self.ranks = Ranks(device=device)

    def report(self, metrics_by_step: Mapping[int, Mapping[str, float]]) -> None:
        """Write to the journal."""
        self._journal.append_history(list(metrics_by_step.items()))

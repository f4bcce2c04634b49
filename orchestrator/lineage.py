"""How a network came to be: which networks taught which, from the first on, as tags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

DEPTH = "lineage.depth"
"""Tag: how many distillations led to a student; 0 for one that had no teacher."""
TEACHERS = "lineage.teachers"
"""Tag: the networks before a student, the first one first."""
ROOT = "lineage.root"
"""Tag: the first of them, and where its weights come from."""
RUNS = "lineage.runs"
"""Tag: MLflow's ids of the runs that have trained them, as far as they have one."""

_ARROW = " > "


class Chain(NamedTuple):
    """The networks before a student, the first one first."""

    teachers: tuple[str, ...] = ()
    """Their sources; the last one is the student's own teacher."""
    runs: tuple[str, ...] = ()
    """MLflow's ids of the runs that have trained them, as far as they have one."""
    root: str = ""
    """The first one, and where its weights come from."""

    def tags(self) -> dict[str, str]:
        """What a student of the last one is tagged with."""
        tags = {DEPTH: str(len(self.teachers))}
        if self.teachers:
            tags |= {TEACHERS: _ARROW.join(self.teachers), ROOT: self.root}
        if self.runs:
            tags[RUNS] = ",".join(self.runs)
        return tags

    def followed_by(self, teacher: str, *, run_id: str | None, origin: str) -> Chain:
        """The chain of the students of a network that this chain led to.

        Args:
            teacher: the network's source.
            run_id: MLflow's id of the run that has trained it, if there is one.
            origin: where its weights come from.
        """
        return Chain(
            (*self.teachers, teacher),
            (*self.runs, run_id) if run_id else self.runs,
            self.root or f"{teacher} from {origin}",
        )


def chain_of(tags: Mapping[str, str]) -> Chain:
    """The chain that led to a student, from its tags."""
    teachers, runs = tags.get(TEACHERS, ""), tags.get(RUNS, "")
    return Chain(
        tuple(teachers.split(_ARROW)) if teachers else (),
        tuple(runs.split(",")) if runs else (),
        tags.get(ROOT, ""),
    )

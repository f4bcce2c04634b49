"""All that a worker needs to know of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from orchestrator.build import (
    student_pixels,
)
from orchestrator.data import Dataset
from orchestrator.evaluation import (
    PixelStatistics,
)
from orchestrator.origins import Start
from orchestrator.places import CachePlace
from orchestrator.spec import Experiment, TeacherSpec
from orchestrator.storage import Folder


class Work(NamedTuple):
    """All that a worker needs to train one student, but for what Ray shares between workers."""

    experiment: Experiment
    teacher: TeacherSpec | None
    """With the source that rebuilds it anywhere; its weights come apart."""
    teacher_classes: int | None
    teacher_pixels: PixelStatistics | None
    run: Folder
    lineage: dict[str, str]
    """Tags that say where the student comes from."""
    teacher_scores: Mapping[str, float] | None = None
    """The teacher's `teacher/val_*`, where another run has measured them on the same images."""
    cache: CachePlace | None = None
    """Where the teacher's answers are kept; None to compute them anew."""
    uses_test: bool = True
    """Whether the students and the teacher are scored on the test split in the end."""
    start: Start | None = None
    """Where students with weights of their own start from."""

    @property
    def student_start(self) -> Start | None:
        """Where this student starts from; None for one of other settings, as trials may have."""
        start = self.start
        return start if start is not None and start.given == self.experiment.student else None

    def student_pixels(self, dataset: Dataset) -> PixelStatistics:
        """What the student sees: as is said, as its weights were trained, or as is measured."""
        start = self.student_start
        if start is not None and start.pixels is not None and not self.experiment.data.normalize:
            return start.pixels
        return student_pixels(self.experiment.data, dataset)


class Shared(NamedTuple):
    """The large inputs of a run."""

    dataset: Dataset
    teacher_state: dict[str, Tensor] | None
    student_state: dict[str, Tensor] | None
    """Where the student starts from, when that is no file that workers can read."""

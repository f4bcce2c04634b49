"""Distributed, resumable, tracked distillation of image classifiers.

The names below load what they need when first used, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.distillation import Outcome, distill, session
    from orchestrator.experiment_file import changed, load_experiment
    from orchestrator.student_model import load_student, read_package

__all__ = [
    "Outcome",
    "changed",
    "distill",
    "load_experiment",
    "load_student",
    "read_package",
    "session",
]

_MODULES = {
    "Outcome": "orchestrator.distillation",
    "changed": "orchestrator.experiment_file",
    "distill": "orchestrator.distillation",
    "load_experiment": "orchestrator.experiment_file",
    "load_student": "orchestrator.student_model",
    "read_package": "orchestrator.student_model",
    "session": "orchestrator.distillation",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

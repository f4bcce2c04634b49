"""Methods of distillation beside DCD, by name.

Each is a module of its own: the equation, shapes, default weight and citation are in its docstring.
To add one, write such a module and name its class in ``METHODS``.
"""

from __future__ import annotations

from dcd_core.objectives.at import AT
from dcd_core.objectives.cc import CC
from dcd_core.objectives.crd import CRD
from dcd_core.objectives.crd_batch import CRDBatch
from dcd_core.objectives.dkd import DKD
from dcd_core.objectives.fitnet import FitNet
from dcd_core.objectives.method import (
    Lesson,
    Method,
    NetworkSizes,
    Rows,
    Sizes,
    check_hyperparameters,
    hyperparameters,
)
from dcd_core.objectives.pkt import PKT
from dcd_core.objectives.rkd import RKD
from dcd_core.objectives.rrd import RRD
from dcd_core.objectives.sp import SP
from dcd_core.objectives.vid import VID

__all__ = [
    "METHODS",
    "Lesson",
    "Method",
    "NetworkSizes",
    "Rows",
    "Sizes",
    "check_hyperparameters",
    "hyperparameters",
]

METHODS: dict[str, type[Method]] = {
    "rkd": RKD,
    "crd": CRD,
    "crd_batch": CRDBatch,
    "sp": SP,
    "pkt": PKT,
    "at": AT,
    "fitnet": FitNet,
    "vid": VID,
    "cc": CC,
    "dkd": DKD,
    "rrd": RRD,
}
"""Name -> module, built with ``Sizes`` and its hyperparameters as keywords."""

"""How a run computes on the device that it has got: precisions, and whether it compiles."""

from __future__ import annotations

import os
import shutil
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.errors import UserError
from orchestrator.spec import Experiment
from orchestrator.storage import Folder

COMPUTATION = "computation.json"
"""In a run's folder: how it was computed last."""

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# To compile costs half a minute to a minute and saves a tenth to a third of the time. Whether that
# pays is judged by the work there is and not by the clock, so that a resumed run decides the same.
_CPU_CORE_FLOPS, _GPU_FLOPS = 2e11, 1e13
"""Operations per second that small networks reach."""
_PAYS_AFTER_S = {"cpu": 900.0, "cuda": 300.0}


class Computation(NamedTuple):
    """How a run computes."""

    device: str
    """Its name."""
    student: torch.dtype
    """Precision of the student."""
    teacher: torch.dtype
    """Precision of the teacher."""
    compiled: bool
    """Whether the networks are compiled."""
    cuda_graphs: bool = False
    """Whether steps are launched as CUDA graphs."""


def choose_computation(
    experiment: Experiment,
    device: torch.device,
    *,
    student: nn.Module,
    teacher: nn.Module | None,
    example: Tensor,
    num_images: int,
    num_ranks: int = 1,
) -> Computation:
    """What the spec asks for on a device.

    Args:
        experiment: whose `train` and `teacher` decide.
        device: where it runs.
        student: the network to train, there.
        teacher: the frozen one, there.
        example: images as the student gets them, (B, C, H, W) on the CPU.
        num_images: of an epoch.
        num_ranks: that train together.

    Raises:
        UserError: CUDA graphs are asked for where they cannot be.
    """
    wanted = experiment.train.precision
    if wanted == "auto":
        wanted = "bf16" if has_fast_bf16(device) else "fp32"
    own = experiment.teacher.precision if experiment.teacher is not None else "auto"
    compiled = experiment.train.compile
    if compiled == "auto":
        inputs = example.to(device)
        # A backward pass takes twice the operations of a forward one.
        per_image = 3 * forward_flops(student, inputs)
        per_image += forward_flops(teacher, inputs) if teacher is not None else 0.0
        work = per_image * num_images * experiment.train.epochs
        compiled = _pays(work, device) and _has_compiler(device)
    return Computation(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        student=_PRECISIONS[wanted],
        teacher=_PRECISIONS[wanted if own == "auto" else own],
        compiled=compiled,
        cuda_graphs=uses_graphs(experiment, wanted, device, num_ranks=num_ranks),
    )


def write_computation(run: Folder, chosen: Computation, *, agreement: float | None) -> None:
    """Write down how a run computes.

    Args:
        run: its folder.
        chosen: how.
        agreement: percentage of the validation images for which a teacher in half precision answers
            as in fp32.
    """
    names = {dtype: name for name, dtype in _PRECISIONS.items()}
    values: dict[str, Any] = chosen._asdict() | {
        "student": names[chosen.student],
        "teacher": names[chosen.teacher],
        "teacher_agreement": agreement,
    }
    run.write_json(COMPUTATION, values)


def describe_computation(run: Folder) -> str | None:
    """One line for how a run was computed; None when that is not known."""
    values = run.read_json(COMPUTATION)
    if values is None:
        return None
    text = f"{values['student']} on {values['device']}"
    text += ", compiled" if values["compiled"] else ", not compiled"
    text += ", in CUDA graphs" if values.get("cuda_graphs") else ""
    agreement = values["teacher_agreement"]
    if agreement is not None:
        text += (
            f"; the teacher in {values['teacher']} answers as in fp32 for {agreement:.2f} % of the "
            "validation images"
        )
    return text


def computation_tags(run: Folder) -> dict[str, str]:
    """The same as tags for MLflow."""
    values = run.read_json(COMPUTATION) or {}
    return {f"dcd.computation.{key}": str(value) for key, value in values.items()}


def has_fast_bf16(device: torch.device) -> bool:
    """Whether a device computes faster in bf16 than in fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Other CPUs convert to fp32 and back.
    own = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device.type == "cpu" and bool(own)


def uses_graphs(
    experiment: Experiment, precision: str, device: torch.device, *, num_ranks: int
) -> bool:
    """Whether steps are launched as CUDA graphs.

    Raises:
        UserError: that is asked for where it cannot be.
    """
    asked = experiment.train.cuda_graphs
    obstacle = None
    if device.type != "cuda":
        obstacle = f"computes on {device.type}"
    elif num_ranks > 1:
        obstacle = f"has {num_ranks} workers"
    elif precision == "fp16":
        obstacle = "computes in fp16, whose scale changes from step to step"
    if asked is True and obstacle is not None:
        raise UserError(
            f"train.cuda_graphs is true, but this run {obstacle}: one worker with a GPU can use "
            "them, in bf16 or fp32; auto uses them where they can be"
        )
    source = experiment.student.source
    known = ":" not in source or source.startswith("torchvision:")
    return obstacle is None and (known if asked == "auto" else asked)


@torch.no_grad()
def forward_flops(model: nn.Module, images: Tensor) -> float:
    """Floating-point operations of a forward pass in eval mode, per image.

    Those of convolutions and matrix products, a multiplication and an addition being two.
    """
    was_training = model.training
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(images)
    model.train(was_training)
    return float(counter.get_total_flops()) / len(images)


def _pays(work: float, device: torch.device) -> bool:
    rate = _GPU_FLOPS if device.type == "cuda" else torch.get_num_threads() * _CPU_CORE_FLOPS
    return work / rate > _PAYS_AFTER_S[device.type]


def _has_compiler(device: torch.device) -> bool:
    """Whether torch.compile finds what it needs: a C++ compiler, or for Triton a C compiler."""
    name = os.environ.get("CC", "gcc") if device.type == "cuda" else os.environ.get("CXX", "g++")
    return shutil.which(name) is not None

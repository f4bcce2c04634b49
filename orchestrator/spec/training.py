"""How weights learn, and on what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from orchestrator.spec.base import Count, NonNegative, Positive, Precision, Section


class OptimizerSpec(Section):
    """How weights learn."""

    name: Literal["sgd", "adamw"] = "sgd"
    """Optimizer."""
    lr: Positive = 0.05
    """Peak learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD momentum; AdamW's first beta."""
    nesterov: bool = False
    """Nesterov momentum (SGD only)."""
    weight_decay: NonNegative = 5e-4
    """Weight decay of all weights; the temperature and bias have none."""
    scalar_lr_ratio: NonNegative = 0.1
    """Learning rate of the temperature and bias, relative to `lr`."""
    max_grad_norm: Positive | None = None
    """Clip the gradient's norm to this."""

    @model_validator(mode="after")
    def _nesterov_needs_sgd(self) -> OptimizerSpec:
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs name 'sgd' and a momentum above 0")
        return self


class ScheduleSpec(Section):
    """The learning rate over the run, as a factor of `optimizer.lr`."""

    kind: Literal["step", "cosine", "constant"] = "step"
    """`step` multiplies by `gamma` at each milestone; `cosine` falls from the end of the warm-up to
    0 at the end of the run."""
    milestones: tuple[Positive, ...] = Field((0.625, 0.75, 0.875), strict=False)
    """Where the step schedule falls: below 1 a share of the run, else an epoch."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor at each milestone."""
    warmup_epochs: NonNegative = 0.0
    """Linear rise from 0 over this many epochs."""


class TrainSpec(Section):
    """The training loop."""

    epochs: Count = 240
    """Passes over the training images."""
    batch_size: Count = 64
    """Images per optimizer step, over all workers and accumulated micro-batches."""
    accumulate: Count = 1
    """Micro-batches per optimizer step. DCD compares the images of one micro-batch, so this changes
    the objective."""
    precision: Precision = "auto"
    """Precision of the networks; losses are always in fp32. `auto` is bf16 where the device is
    faster in it than in fp32 (CPUs with AMX or AVX512-BF16, GPUs from Ampere on), else fp32."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the student and the teacher with torch.compile. `auto` does so where the run is long
    enough to gain more than that costs, and a compiler is there."""
    cuda_graphs: bool | Literal["auto"] = "auto"
    """Launch each step as one CUDA graph, for one worker with a GPU, not in fp16. `auto` does so
    for built-in students and torchvision's: one whose Python code takes another way from step to
    step would repeat the way of its epoch's first steps."""

    @property
    def micro_batch_size(self) -> int:
        """N: how many images one DCD term compares."""
        return self.batch_size // self.accumulate


class ScalingSpec(Section):
    """Where it runs. Apart from `batch_norm`, nothing here changes the result."""

    workers: Annotated[int, Field(ge=0)] = 1
    """Ray Train workers; 0 trains in this process, without Ray."""
    cpus_per_worker: Literal["auto"] | Count = "auto"
    """CPU cores of each worker; `auto` shares all cores."""
    gpus_per_worker: Literal["auto"] | NonNegative = "auto"
    """GPUs of each worker; `auto` is 1 where there are GPUs."""
    batch_norm: Literal["auto", "sync", "local"] = "auto"
    """Whether batch statistics span all workers; `auto` is sync with more than one worker."""
    wait_s: NonNegative = 600.0
    """How long to wait for a cluster to provide what is missing."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often lost workers are replaced before the run fails."""

    @property
    def synchronised(self) -> bool:
        """Whether BatchNorm statistics are synchronised."""
        return self.workers > 1 and self.batch_norm != "local"

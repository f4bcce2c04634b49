"""The experiment: one frozen model per section. Every default is the paper's CIFAR recipe,
but for a slower T and b.

The docstring under a field is its documentation in ``dcd schema``; ranges live in the types, rules
between fields in the validators.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]

# Defaults of the loss weights by method; a weight of None in the table is one the method ignores.
METHOD_WEIGHTS: dict[str, dict[str, float | None]] = {
    "ce": {"ce_weight": 1.0, "kd_weight": None, "dcd_weight": None, "consistency_weight": None},
    "kd": {"ce_weight": 1.0, "kd_weight": 1.0, "dcd_weight": None, "consistency_weight": None},
    "dcd": {"ce_weight": 1.0, "kd_weight": None, "dcd_weight": 1.0, "consistency_weight": 0.5},
    "dcd+kd": {"ce_weight": 1.0, "kd_weight": 1.0, "dcd_weight": 1.0, "consistency_weight": 0.5},
}


Precision = Literal["auto", "fp32", "bf16", "fp16"]


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""Of runs, searches and comparisons: their folders have these names."""


class Normalization(Section):
    """Per-channel statistics of pixel values scaled to [0, 1]."""

    mean: tuple[float, ...] = Field(strict=False, min_length=1)
    """Subtracted from each channel."""
    std: tuple[Positive, ...] = Field(strict=False, min_length=1)
    """Each channel is divided by it."""

    @model_validator(mode="after")
    def _same_length(self) -> Normalization:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} values and std {len(self.std)}: give one per channel"
            )
        return self


class DataSpec(Section):
    """Images and labels, and how they are cut into train, validation and test."""

    source: Literal["digits", "cifar10", "cifar100", "imagefolder", "parquet"] = "digits"
    """Where images come from: the digits shipped with scikit-learn, torchvision's CIFAR layouts on
    disk, a folder with one subfolder per class, or Parquet with encoded image bytes."""
    path: str | None = None
    """Folder, file, glob or URI of the training images. For `imagefolder`, a folder with `train/`
    (and perhaps `test/`) inside, or directly the class folders."""
    test_path: str | None = None
    """The same for test images, when they live elsewhere."""
    image_column: str = "image"
    """Parquet column with the encoded image bytes."""
    label_column: str = "label"
    """Parquet column with the integer class."""
    num_classes: Annotated[int, Field(ge=2)] | None = None
    """Number of classes; found in the data when not given."""
    resize: Count | Annotated[tuple[Count, Count], Field(strict=False)] | None = None
    """Resize every image to this (height, width), or to a square. Needed when sizes differ."""
    grey_to_rgb: bool = False
    """Repeat the one channel of grey images three times."""
    augment: Literal["none", "crop_flip"] = "crop_flip"
    """`crop_flip`: pad by `crop_padding`, crop at random, flip at random (if `flip`)."""
    crop_padding: Annotated[int, Field(ge=0)] = 4
    """Pixels of zero padding on each side before the random crop."""
    flip: bool = True
    """Mirror half of the images. Turn it off where left and right differ, as in digits."""
    normalize: Normalization | None = None
    """What the student sees: (x / 255 - mean) / std. Measured on the training split when absent."""
    test_fraction: Fraction | None = None
    """Share of all images cut off as test split; needed where the source has no test split."""
    val_fraction: Fraction = 0.1
    """Share of the rest, per class, used for validation and never for training."""
    limit: Count | None = None
    """Train on this many of the remaining images."""
    labels_per_class: Count | None = None
    """Train on this many of the remaining images of each class."""
    split_seed: Seed = 0
    """Decides the splits."""
    seed: Seed = 0
    """Decides the order of the images and their augmentation."""
    on_error: Literal["fail", "skip"] = "fail"
    """What to do with an image that cannot be decoded; `skip` counts and logs them."""
    download: bool = False
    """Let torchvision fetch CIFAR when it is not on disk."""

    @model_validator(mode="after")
    def _consistent(self) -> DataSpec:
        if self.limit is not None and self.labels_per_class is not None:
            raise ValueError("limit and labels_per_class exclude each other: give one of them")
        if self.source != "digits" and self.path is None:
            raise ValueError(f"path is needed for source {self.source!r}")
        if self.source == "digits" and (self.path or self.test_path):
            raise ValueError("source 'digits' is built in and takes neither path nor test_path")
        if self.test_path is not None and self.test_fraction is not None:
            raise ValueError("test_path and test_fraction exclude each other: give one of them")
        if self.source in ("cifar10", "cifar100") and (self.test_path or self.test_fraction):
            raise ValueError(f"{self.source} has its own test split: drop test_path, test_fraction")
        return self


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


class FitSpec(Section):
    """Train the teacher first, as a run of its own that later experiments reuse."""

    epochs: Count = 240
    """Passes over the teacher's training images."""
    batch_size: Count = 64
    """Images per optimizer step over all workers."""
    seed: Seed = 1
    """Initialisation of the teacher and all else that is random in its training. Not 0, so that a
    student of the same architecture does not start as its teacher did."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """As `optimizer`."""
    schedule: ScheduleSpec = ScheduleSpec()
    """As `schedule`."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Fields of `data` that differ for the teacher, such as `labels_per_class: null`."""


class TeacherSpec(Section):
    """The frozen network that the student learns from."""

    source: str = Field("resnet32x4", min_length=1)
    """A built-in name, `torchvision:NAME`, `module:function` of your own, or `mlflow:URI`."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the function of a `module:function` or torchvision source."""
    checkpoint: str | None = None
    """File or URI with the weights: a state dict, plain or nested."""
    weights: str | None = None
    """torchvision's own weights by enum name, such as `IMAGENET1K_V1`."""
    num_classes: Annotated[int, Field(ge=2)] | None = None
    """Classes of the teacher's head when they are not the data's."""
    normalize: Normalization | None = None
    """What the teacher sees, when it differs from `data.normalize`."""
    min_top1: Annotated[float, Field(ge=0, le=100)] | None = None
    """Stop when the teacher's validation top-1 (percent) is below this; 0 never stops. By default,
    stop when it is no better than chance."""
    fit: FitSpec | None = None
    """Train the teacher first instead of loading it."""
    precision: Precision = "auto"
    """Of the teacher's computation while a student learns; `auto` is that of `train.precision`."""

    @model_validator(mode="after")
    def _one_origin(self) -> TeacherSpec:
        given = [key for key in ("checkpoint", "weights", "fit") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: give one of them")
        if self.source.startswith("mlflow:") and given:
            raise ValueError(f"an mlflow: source brings its weights: drop {given[0]}")
        if self.fit is not None and self.num_classes is not None:
            raise ValueError(
                "fit and num_classes exclude each other: the fit's data has the classes"
            )
        return self


class TeacherCacheSpec(Section):
    """The teacher's answers on disk, computed once for all runs that see the same images.

    `auto`, `on`, `off` or a folder alone stands for the whole section.
    """

    mode: Literal["auto", "on", "off"] = "auto"
    """`auto` is on in searches and comparisons, where a `path` is given, and with `views`."""
    path: str | None = None
    """Folder, which nodes may share, or URI; by default `dcd_teacher_cache` in DCD_HOME, or in the
    working directory."""
    dtype: Precision = "auto"
    """Of the numbers that are kept; `auto` is the precision that the teacher computes in."""
    views: Count | None = None
    """Augment each image in this many ways only, over and over, so that a run of more epochs than
    that reads the rest of the teacher's answers."""
    max_gib: Positive | None = None
    """Largest size in GiB; by default a quarter of what is free there."""

    def is_on(self, *, one_of_many: bool) -> bool:
        """Whether it is used, by a run alone or by one of many that see the same images."""
        wanted = one_of_many or self.path is not None or self.views is not None
        return self.mode == "on" or (self.mode == "auto" and wanted)

    @model_validator(mode="before")
    @classmethod
    def _one_word(cls, values: Any) -> Any:
        if isinstance(values, str | bool):
            section = cache_section(values)
            word = section.get("path", "/")
            if not any(character in word for character in "/\\~"):
                raise ValueError(
                    f"{word!r} is none of auto, on and off, nor a folder with a slash: for a "
                    f"folder here, write ./{word}"
                )
            return section
        if isinstance(values, dict) and "mode" in values:
            return {**values, "mode": _as_mode(values["mode"])}
        return values


def cache_section(word: str | bool) -> dict[str, Any]:
    """The section that one word stands for."""
    mode = _as_mode(word)
    return {"mode": mode} if mode in ("auto", "on", "off") else {"path": word}


def _or_one_word(schema: dict[str, Any]) -> None:
    """In the JSON Schema, what stands for the whole section."""
    schema["anyOf"] = [{"$ref": schema.pop("$ref")}, {"type": "string"}, {"type": "boolean"}]


def _as_mode(value: Any) -> Any:
    """YAML reads on and off as true and false."""
    return ("on" if value else "off") if isinstance(value, bool) else value


class StudentSpec(Section):
    """The network that is trained."""

    source: str = Field("resnet8x4", min_length=1)
    """A built-in name, `torchvision:NAME`, `module:function` of your own, or `mlflow:URI`."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the function of a `module:function` or torchvision source."""
    checkpoint: str | None = None
    """Start from these weights."""
    weights: str | None = None
    """Start from torchvision's own weights, by enum name."""

    @model_validator(mode="after")
    def _one_origin(self) -> StudentSpec:
        if self.checkpoint is not None and self.weights is not None:
            raise ValueError("checkpoint and weights exclude each other: give one of them")
        if self.source.startswith("mlflow:") and (self.checkpoint or self.weights):
            raise ValueError("an mlflow: source brings its weights: drop checkpoint and weights")
        return self


class FeatureLayers(Section):
    """Where the features are taken, for each of the two networks."""

    student: str | None = None
    """Dotted path in the student."""
    teacher: str | None = None
    """Dotted path in the teacher."""


class WeightChange(Section):
    """Weights that hold from an epoch on; those not given stay what they were."""

    epoch: Annotated[int, Field(ge=2)]
    """First epoch with these weights, counted from 1."""
    ce_weight: NonNegative | None = None
    """As `objective.ce_weight`."""
    kd_weight: NonNegative | None = None
    """As `objective.kd_weight`."""
    dcd_weight: NonNegative | None = None
    """As `objective.dcd_weight`."""
    consistency_weight: NonNegative | None = None
    """As `objective.consistency_weight`."""
    kd_temperature: Positive | None = None
    """As `objective.kd_temperature`."""

    @property
    def weights(self) -> dict[str, float]:
        """What changes, by the name of its field."""
        values = {key: getattr(self, key) for key in type(self).model_fields if key != "epoch"}
        return {key: value for key, value in values.items() if value is not None}

    @model_validator(mode="after")
    def _changes_something(self) -> WeightChange:
        if not self.weights:
            names = ", ".join(key for key in type(self).model_fields if key != "epoch")
            raise ValueError(
                f"the change at epoch {self.epoch} changes nothing: give one of {names}"
            )
        return self

    @model_serializer(mode="wrap")
    def _what_is_given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        return {key: value for key, value in values.items() if value is not None}


class ObjectiveSpec(Section):
    """ce_weight CE + kd_weight KD + dcd_weight (contrast + consistency_weight consistency)."""

    method: Literal["ce", "kd", "dcd", "dcd+kd"] = "dcd+kd"
    """Sets the defaults of the weights."""
    contrast: Literal["softmax", "sigmoid"] = "softmax"
    """The paper's softmax contrast, or the pairwise sigmoid form (arXiv 2303.15343)."""
    negatives: Literal["all", "other_class"] = "all"
    """Whether same-class images count as negatives in the contrast."""
    ce_weight: NonNegative
    """Weight of the cross entropy with the labels."""
    kd_weight: NonNegative
    """Weight of the divergence from the teacher's class probabilities (the paper's lambda)."""
    dcd_weight: NonNegative
    """Weight of contrast and consistency together (the paper's beta)."""
    consistency_weight: NonNegative
    """Weight of the consistency beside the contrast (the paper's alpha)."""
    kd_temperature: Positive = 4.0
    """Temperature of the class probabilities in KD."""
    init_temperature: Positive = math.exp(-1.0)
    """Where the learned temperature T starts (the paper's tau is -log T)."""
    min_temperature: Positive = 0.1
    """Lower limit of T."""
    init_bias: float | Literal["auto"] = "auto"
    """Where the learned bias starts. It acts in the sigmoid form only: `auto` is -ln(N - 1)."""
    projection_dim: Count = 128
    """Width of the two projection heads."""
    feature_layer: FeatureLayers | str | None = None
    """Module whose output is the feature, when it is not the input of the classifier: one dotted
    path for both networks, or one for each."""
    schedule: tuple[WeightChange, ...] = Field((), strict=False)
    """Weights that change while training, in the order of their epochs."""

    def at(self, epoch: int) -> ObjectiveSpec:
        """The objective of one epoch, counted from 1, with the weights then in force."""
        in_force: dict[str, Any] = {"schedule": ()}
        for change in self.schedule:
            if change.epoch <= epoch:
                in_force |= change.weights
        return self.model_copy(update=in_force)

    @property
    def uses_kd(self) -> bool:
        """Whether the teacher's class probabilities count in any epoch."""
        return any(phase.kd_weight > 0 for phase in self._phases())

    @property
    def uses_dcd(self) -> bool:
        """Whether contrast and consistency, and so the projection heads, count in any epoch."""
        return any(phase.dcd_weight > 0 for phase in self._phases())

    def _phases(self) -> list[ObjectiveSpec]:
        return [self.at(epoch) for epoch in (1, *(change.epoch for change in self.schedule))]

    @model_validator(mode="before")
    @classmethod
    def _method_weights(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        method = values.get("method", "dcd+kd")
        if method not in METHOD_WEIGHTS:
            # The type of `method` reports it; the weights just need to be there.
            return {**{key: 0.0 for key in METHOD_WEIGHTS["ce"]}, **values}
        filled = dict(values)
        for key, default in METHOD_WEIGHTS[method].items():
            if filled.get(key) is None:
                filled[key] = default if default is not None else 0.0
            elif default is None and filled[key] != 0:
                raise ValueError(f"method {method!r} ignores {key}: drop it, or change the method")
        return filled

    @model_validator(mode="after")
    def _consistent(self) -> ObjectiveSpec:
        if self.init_temperature < self.min_temperature:
            raise ValueError(
                f"init_temperature {self.init_temperature:g} is below min_temperature "
                f"{self.min_temperature:g}"
            )
        if self.ce_weight == self.kd_weight == self.dcd_weight == 0:
            raise ValueError("all weights are 0: nothing would be learned")
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> ObjectiveSpec:
        previous = 1
        for change in self.schedule:
            place = f"schedule: the change at epoch {change.epoch}"
            if change.epoch <= previous:
                raise ValueError(
                    f"{place} comes after the one at epoch {previous}: list each epoch once, in "
                    "ascending order"
                )
            previous = change.epoch
            for key, value in change.weights.items():
                weight = "kd_weight" if key == "kd_temperature" else key
                if METHOD_WEIGHTS[self.method][weight] is None and value != 0:
                    raise ValueError(
                        f"{place} gives {key}, which method {self.method!r} ignores: drop it, or "
                        "change the method"
                    )
            now = self.at(change.epoch)
            if now.ce_weight == now.kd_weight == now.dcd_weight == 0:
                raise ValueError(f"{place} makes all weights 0: nothing would be learned")
        return self


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


MODEL_NAME_PATTERN = r"^[^/:]*[^/:\s][^/:]*$"
"""What MLflow takes as the name of a registered model."""


class TrackingSpec(Section):
    """Where MLflow keeps the run."""

    enabled: bool = True
    """Track with MLflow."""
    uri: str | None = None
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI, else SQLite beside the storage."""
    experiment: str = Field("dcd", min_length=1)
    """MLflow experiment."""
    register_as: str | None = Field(None, alias="register", pattern=MODEL_NAME_PATTERN)
    """Register the student under this model name."""

    model_config = ConfigDict(
        validate_by_name=True, validate_by_alias=True, serialize_by_alias=True
    )


class StorageSpec(Section):
    """Where runs, checkpoints and results are kept."""

    path: str | None = None
    """Folder or URI; by default `dcd_runs` in the working directory (see README for clusters)."""
    keep: Count = 2
    """How many of the newest checkpoints are kept, beside the best."""


class Experiment(Section):
    """One experiment file."""

    name: str = Field(pattern=NAME_PATTERN)
    """Name of the run: letters, digits, dot, dash and underscore, 100 characters at most."""
    seed: Seed = 0
    """The student's initialisation and all that is random but order, augmentation and splits."""
    data: DataSpec = DataSpec()
    """Images and splits."""
    teacher: TeacherSpec | None = None
    """The teacher; only method `ce` goes without."""
    teacher_cache: TeacherCacheSpec = Field(TeacherCacheSpec(), json_schema_extra=_or_one_word)
    """Its answers on disk."""
    student: StudentSpec = StudentSpec()
    """The student."""
    objective: ObjectiveSpec = ObjectiveSpec.model_validate({})
    """The loss."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """The optimizer."""
    schedule: ScheduleSpec = ScheduleSpec()
    """The learning rate over time."""
    train: TrainSpec = TrainSpec()
    """The loop."""
    scaling: ScalingSpec = ScalingSpec()
    """Workers and their resources."""
    tracking: TrackingSpec = TrackingSpec()
    """MLflow."""
    storage: StorageSpec = StorageSpec()
    """Files."""

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if self.teacher is None and self.objective.method != "ce":
            raise ValueError(f"objective.method {self.objective.method!r} needs a teacher section")
        shards = max(self.scaling.workers, 1) * self.train.accumulate
        if self.train.batch_size % shards:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} is not divisible by scaling.workers x "
                f"train.accumulate = {max(self.scaling.workers, 1)} x {self.train.accumulate}: "
                f"use {math.ceil(self.train.batch_size / shards) * shards}"
            )
        objective = self.objective
        last_change = max((change.epoch for change in objective.schedule), default=0)
        if last_change > self.train.epochs:
            raise ValueError(
                f"objective.schedule: the change at epoch {last_change} comes after the last of "
                f"{self.train.epochs} epochs: drop it, or raise train.epochs"
            )
        if (
            objective.uses_dcd
            and objective.contrast == "sigmoid"
            and objective.init_bias == "auto"
            and self.train.micro_batch_size < 2
        ):
            raise ValueError(
                "objective.init_bias 'auto' is -ln(N - 1) and needs at least N = 2 images per "
                "micro-batch: raise train.batch_size or give init_bias"
            )
        return self

"""`dcd plan`: the resolved spec, what would run where, what it needs, and what to watch out for."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.utils.dlpack import from_dlpack

from dcd_core.objectives import hyperparameters
from orchestrator.build import build_distiller, num_views
from orchestrator.computation import has_fast_bf16
from orchestrator.data import StreamedSet, describe_counts
from orchestrator.data.streamed import MEMORY_SHARE, node_memory
from orchestrator.distillation import check_resources, device_of
from orchestrator.errors import UserError
from orchestrator.experiment_file import yaml_text
from orchestrator.inputs import Inputs, read_inputs
from orchestrator.mlflow_client import without_password
from orchestrator.places import cache_place, find_places
from orchestrator.resources import joins_cluster, local_resources
from orchestrator.run_tracking import shown_values
from orchestrator.runs import open_run
from orchestrator.sources import num_parameters
from orchestrator.spec import Experiment
from orchestrator.spec.data import STREAMABLE
from orchestrator.spec.methods import find_method
from orchestrator.storage import Folder
from orchestrator.teacher_cache.shelf import Shelf

_MIB = 2**20


def describe_plan(experiment: Experiment) -> str:
    """The plan as text. Reads all inputs, and starts and writes nothing.

    Raises:
        UserError: as `distill` would.
    """
    places = find_places(experiment)
    run = open_run(experiment, places.storage, new=False)
    check_resources(experiment.scaling)
    inputs = read_inputs(experiment)
    lines = [
        "# spec, with all defaults",
        yaml_text(shown_values(experiment)).rstrip(),
        "",
        "# plan",
        f"run        {experiment.name} in {run.folder.location}"
        f" ({'finished' if run.state == 'finished' else 'goes on' if run.state else 'new'})",
        f"tracking   {without_password(places.tracking_uri or 'off')}",
        f"data       {describe_counts(inputs.dataset)}, fingerprint {inputs.dataset.fingerprint}",
        f"workers    {_workers(experiment)}",
        f"batches    {_batches(inputs)}",
        f"teacher    {_teacher(inputs)}",
        f"cache      {_cache(inputs)}",
        f"student    {_student(inputs)}",
        f"memory     {_memory(inputs)}",
    ]
    lines += [f"note       {note}" for note in (*inputs.notes, *_notes(inputs))]
    return "\n".join(lines)


def _workers(experiment: Experiment) -> str:
    scaling = experiment.scaling
    if scaling.workers == 0:
        gpu = scaling.gpus_per_worker != 0 and torch.cuda.is_available()
        return f"0: in this process, on the {'GPU' if gpu else 'CPU'}, without Ray"
    norm = "synchronised" if scaling.synchronised else "local"
    if joins_cluster():
        return f"{scaling.workers} on the cluster of RAY_ADDRESS, BatchNorm {norm}"
    resources = local_resources(scaling)
    return (
        f"{scaling.workers} on a Ray of this machine, {resources.cpus} CPU and {resources.gpus:g} "
        f"GPU each, BatchNorm {norm}"
    )


def _batches(inputs: Inputs) -> str:
    train, images = inputs.experiment.train, len(inputs.dataset.train.labels)
    steps = math.ceil(images / train.batch_size)
    workers = max(1, inputs.experiment.scaling.workers)
    last = images % train.batch_size or train.batch_size
    return (
        f"{train.epochs} epochs of {steps} steps of {train.batch_size} images (the last of "
        f"{last}), N = {train.micro_batch_size} per loss, {train.micro_batch_size // workers} per "
        f"worker, {train.precision}"
    )


def _teacher(inputs: Inputs) -> str:
    spec = inputs.experiment.teacher
    if spec is None:
        return "none"
    if inputs.fit is not None:
        fit = inputs.fit
        return (
            f"{spec.source}, trained first as {fit.experiment.name} on "
            f"{len(fit.dataset.train.labels):,} images for {fit.experiment.train.epochs} epochs, "
            "unless that run is finished"
        )
    assert inputs.teacher is not None
    size = sum(value.numel() for value in inputs.teacher.state.values())
    return f"{spec.source} from {inputs.teacher.lineage['teacher.origin']}, {size:,} values"


def _cache(inputs: Inputs) -> str:
    experiment = inputs.experiment
    if experiment.objective.uses_hints:
        return (
            f"off: it keeps no intermediate features, which {experiment.objective.method} compares"
        )
    place = cache_place(experiment, one_of_many=True)
    if place is None or inputs.teacher_dim is None:
        return "off"
    if inputs.dataset.is_streamed:
        return "off: the images are streamed"
    classes = inputs.dataset.num_classes
    if inputs.teacher is not None:
        classes = inputs.teacher.num_classes
    assert experiment.teacher is not None
    wanted, own = experiment.teacher_cache.dtype, experiment.teacher.precision
    kept = next((p for p in (wanted, own, experiment.train.precision) if p != "auto"), "auto")
    if kept == "auto":
        kept = "bf16" if has_fast_bf16(device_of(experiment.scaling)) else "fp32"
    size = 4 if kept == "fp32" else 2
    epoch = len(inputs.dataset.train.labels) * (inputs.teacher_dim + classes) * size / _MIB
    views = num_views(experiment) or experiment.train.epochs
    epochs = min(experiment.train.epochs, views)
    try:
        budget = Shelf(Folder(place.location), max_bytes=place.max_bytes).budget()
    except (OSError, UserError) as error:
        return f"cannot be used: {error}"
    text = f"{epoch:,.1f} MiB an epoch, {epochs * epoch:,.0f} MiB for {epochs} epochs"
    text += f", in {place.location}"
    if budget is not None:
        text += f" (at most {budget / _MIB:,.0f} MiB)"
    if not experiment.teacher_cache.is_on(one_of_many=False):
        text = f"off for a single run; in a search or comparison {text}"
    return text


def _student(inputs: Inputs) -> str:
    experiment = inputs.experiment
    parameters = num_parameters(inputs.student)
    text = f"{experiment.student.source}, {parameters:,} parameters"
    objective = experiment.objective
    if not (objective.uses_dcd or objective.uses_method):
        return text
    distiller = build_distiller(
        inputs.student,
        inputs.teacher_dim,
        objective,
        micro_batch_size=experiment.train.micro_batch_size,
        seed=experiment.seed,
        teacher_hints=inputs.teacher_hints,
        train_labels=from_dlpack(inputs.dataset.train.labels),
    )
    more = num_parameters(distiller) - parameters
    if distiller.log_temperature is not None and distiller.bias is not None:
        temperature, bias = distiller.log_temperature.exp().item(), distiller.bias.item()
        text += (
            f"; {more:,} more while training (heads, T = {temperature:.3g}, b = {bias:.3g}"
            f"{'' if distiller.bias.requires_grad else ' and not learned'})"
        )
    elif more:
        text += f"; {more:,} more while training (of {objective.method})"
    return text


def _memory(inputs: Inputs) -> str:
    dataset, data = inputs.dataset, inputs.experiment.data
    text = f"images take {dataset.decoded_bytes / _MIB:,.0f} MiB, once per node"
    if isinstance(dataset.train, StreamedSet):
        return (
            f"images are streamed in at most {data.memory_gib * 1024:,.0f} MiB per worker, "
            f"{dataset.train.window:,} of them in the window that they are shuffled in"
        )
    if data.source in STREAMABLE and data.streaming == "auto":
        limit = MEMORY_SHARE * node_memory() / _MIB
        text += f" (more than {limit:,.0f} MiB, {MEMORY_SHARE:.0%} of the memory, are streamed)"
    return text


def _method(inputs: Inputs) -> Iterator[str]:
    """What another method keeps and compares."""
    objective = inputs.experiment.objective
    module = find_method(objective.method)
    if module is None or not objective.uses_method:
        return
    if objective.uses_hints:
        shapes = zip(inputs.student.hint_shapes, inputs.teacher_hints, strict=True)
        pairs = ", ".join(
            f"{'x'.join(map(str, own))} with {'x'.join(map(str, wanted))}" for own, wanted in shapes
        )
        yield f"{objective.method} compares intermediate features of student with teacher: {pairs}"
    warmup = (hyperparameters(module) | dict(objective.method_args)).get("warmup_epochs")
    if isinstance(warmup, int | float) and warmup > inputs.experiment.train.epochs:
        yield (
            f"{objective.method} grows to its full size over {warmup:g} epochs and there are "
            f"{inputs.experiment.train.epochs}: set objective.method_args.warmup_epochs"
        )
    if module.uses_logits and objective.uses_kd:
        yield (
            f"{objective.method}: {objective.method.removesuffix('+kd')} takes the place of KD, "
            "which is counted twice so"
        )


def _notes(inputs: Inputs) -> Iterator[str]:
    experiment = inputs.experiment
    objective, train = experiment.objective, experiment.train
    if objective.uses_dcd:
        if train.accumulate > 1:
            yield (
                f"DCD compares the N = {train.micro_batch_size} images of a micro-batch: with "
                f"train.accumulate {train.accumulate} that is another objective than with "
                f"N = {train.batch_size}"
            )
        if objective.contrast == "softmax" and objective.init_bias not in ("auto", 0.0):
            yield "objective.init_bias has no effect under the softmax contrast, which cancels it"
        if objective.contrast == "softmax":
            floor = math.log1p(
                (train.micro_batch_size - 1) * math.exp(-1 / objective.min_temperature)
            )
            yield f"the contrast cannot fall below about {floor:.3g} at N and min_temperature"
    if experiment.train.precision == "fp16" and not torch.cuda.is_available():
        yield "fp16 on a CPU is slow: bf16 is the better choice where the CPU has it"
    yield from _method(inputs)

"""Images per second of training, through our own step, against a plain loop.

    python -m benchmarks step --teacher resnet32x4 --student resnet8x4

CE + KD + DCD on made-up images of CIFAR's size. The plain loop is what one would write without
thinking of speed: PIL transforms image by image in two loader workers, fp32 in eager mode, a
separate pass of the teacher, and `.item()` after each step. The variants run in turns, a few steps
each, so that a machine that others use too does not decide; the first turn of each does not count,
and with it neither does compiling. Results are in docs/performance.md.
"""

from __future__ import annotations

import argparse
import itertools
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.record import Spread, describe_machine, machine, print_table, write_json
from dcd_core import (
    Distiller,
    FeatureModel,
    FrozenTeacher,
    Meter,
    Objective,
    build_model,
    crop_flip,
    sample_order,
    train_step,
    use_channels_last_,
)
from orchestrator.batches import Needs, Recipe, Selection, prepare, select
from orchestrator.evaluation import Images, PixelStatistics
from orchestrator.places import CachePlace
from orchestrator.reporter import Ranks
from orchestrator.step_graphs import StepGraphs
from orchestrator.teacher_cache.cache import Cache, Key
from orchestrator.teacher_cache.teaching import CachedTeaching
from orchestrator.teaching import LiveTeaching, Teaching

NUM_CLASSES, NUM_IMAGES = 100, 2048
PIXELS = PixelStatistics((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
OBJECTIVE = Objective(
    ce_weight=1.0, kd_weight=1.0, kd_temperature=4.0, dcd_weight=1.0, consistency_weight=0.5
)


class Variant(NamedTuple):
    """One way to train."""

    name: str
    train: Callable[[int], None]
    """Makes so many steps."""


class Networks(NamedTuple):
    """What is trained, and what it learns from."""

    teacher: FeatureModel
    distiller: Distiller


def made_up_images() -> Images:
    """Noise of CIFAR's size."""
    generator = torch.Generator().manual_seed(0)
    return Images(
        torch.randint(256, (NUM_IMAGES, 3, 32, 32), generator=generator, dtype=torch.uint8),
        torch.randint(NUM_CLASSES, (NUM_IMAGES,), generator=generator),
        torch.arange(NUM_IMAGES),
    )


def networks(teacher: str, student: str) -> Networks:
    """Untrained ones: their speed does not depend on their weights."""
    torch.manual_seed(0)
    example = torch.zeros(2, 3, 32, 32)
    models = [
        FeatureModel(build_model(name, num_classes=NUM_CLASSES), images_example=example)
        for name in (teacher, student)
    ]
    models[0].eval().requires_grad_(False)
    distiller = Distiller(models[1], teacher_dim=models[0].feature_dim)
    return Networks(models[0], distiller)


def sgd(distiller: Distiller, *, fused: bool = False) -> torch.optim.Optimizer:
    """The paper's optimizer."""
    groups = distiller.parameter_groups(lr=0.05, weight_decay=5e-4, scalar_lr_ratio=0.1)
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9, fused=fused)


class _Plain(Dataset[tuple[Tensor, int]]):
    """Images as PIL has them, transformed one by one."""

    def __init__(self, images: Images) -> None:
        self._images = [Image.fromarray(i.permute(1, 2, 0).numpy()) for i in images.images]
        self._labels = images.labels.tolist()
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(*PIXELS),
            ]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(self._images[index]), self._labels[index]


def plain(
    images: Images, nets: Networks, *, batch_size: int, device: torch.device
) -> Callable[[int], None]:
    """The loop that one would write first."""
    loader = DataLoader(
        _Plain(images),
        batch_size,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
        drop_last=True,
        pin_memory=device.type == "cuda",
    )
    teacher, distiller = nets
    teacher.to(device)
    distiller.to(device)
    optimizer = sgd(distiller)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from loader

    endless = batches()

    def train(steps: int) -> None:
        distiller.train()
        for _ in range(steps):
            inputs, labels = (part.to(device, non_blocking=True) for part in next(endless))
            with torch.no_grad():
                logits, features = teacher(inputs)
            losses = OBJECTIVE(distiller(inputs, features), labels=labels, teacher_logits=logits)
            optimizer.zero_grad()
            losses.total.backward()
            optimizer.step()
            distiller.limit_temperature_()
            losses.total.item()

    return train


def ours(
    images: Images,
    nets: Networks,
    *,
    batch_size: int,
    precision: torch.dtype,
    compiled: bool,
    graphed: bool,
    device: torch.device,
    cache: Path | None,
) -> Callable[[int], None]:
    """The product's own step; with a folder for the cache, the teacher's answers are read."""
    teacher, distiller = nets
    images = images.resident(device)
    example = torch.zeros(2, 3, 32, 32, device=device)
    frozen = FrozenTeacher(teacher.to(device), images_example=example, precision=precision)
    distiller.to(device)
    use_channels_last_(distiller.student, example)
    if compiled:
        frozen.compile()
        distiller.student.compile()
    recipe = Recipe(
        epochs=1,
        batch_size=batch_size,
        accumulate=1,
        precision=precision,
        memory_format=torch.channels_last,
        max_grad_norm=None,
        seed=0,
        data_seed=0,
        augment=lambda x, indices, epoch: crop_flip(x, seed=0, epoch=epoch, indices=indices),
        lr_factor=lambda epoch: 1.0,
        student_pixels=PIXELS,
    )
    optimizer = sgd(distiller, fused=device.type == "cuda")
    graphs = StepGraphs(optimizer, device) if graphed else None
    order = sample_order(0, 1, images.indices)
    steps_done = 0
    live = LiveTeaching(frozen, pixels=PIXELS)
    teaching: Teaching = live
    if cache is not None:
        kept = CachedTeaching(
            live,
            Cache(CachePlace(str(cache), None), Key({"precision": str(precision)})),
            training=images,
            recipe=recipe,
            ranks=Ranks(device=device),
        )
        assert kept.fill(1) is None
        teaching = kept
    teaching.begin(1)

    needs = Needs(takes_features=True, features=True, logits=True)
    meter = Meter(device=device)

    def act(selections: Sequence[Selection], step: int | Tensor) -> None:
        train_step(
            distiller,
            [prepare(part, teaching, view=1, recipe=recipe, needs=needs) for part in selections],
            objective=OBJECTIVE,
            optimizer=optimizer,
            precision=precision,
            meter=meter,
            step=step,
        )

    def train(steps: int) -> None:
        nonlocal steps_done
        distiller.train()
        for _ in range(steps):
            first = steps_done * batch_size % (NUM_IMAGES - batch_size + 1)
            steps_done += 1
            selections = select(
                order[first : first + batch_size],
                teaching,
                place=first,
                training=images,
                recipe=recipe,
                ranks=Ranks(device=device),
                needs=needs,
            )
            if graphs is None:
                act(selections, steps_done)
            else:
                graphs.run(selections, steps_done, act)
        meter.result()  # waits for the device, once

    return train


def variants(args: argparse.Namespace, device: torch.device, folder: Path) -> list[Variant]:
    """All that are compared, the plain loop first.

    Args:
        args: of the command.
        device: where they run.
        folder: an empty one for the teacher's answers.
    """
    images = made_up_images()
    found = [
        Variant(
            "plain loop",
            plain(
                images,
                networks(args.teacher, args.student),
                batch_size=args.batch_size,
                device=device,
            ),
        )
    ]
    precisions = (("fp32", torch.float32), ("bf16", torch.bfloat16))
    on_gpu = device.type == "cuda"
    for cache, (name, precision), compiled, graphed in itertools.product(
        (None, folder), precisions, (False, True), (False, True) if on_gpu else (False,)
    ):
        name += ", compiled" if compiled else ""
        name += ", CUDA graphs" if graphed else ""
        name += ", teacher cached" if cache is not None else ""
        if not re.search(args.only, name):
            continue
        train = ours(
            images,
            networks(args.teacher, args.student),
            batch_size=args.batch_size,
            precision=precision,
            compiled=compiled,
            graphed=graphed,
            device=device,
            cache=cache,
        )
        found.append(Variant(name, train))
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="of each turn")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--only", default="", help="pattern of the variants' names")
    parser.add_argument("--json", help="where to write the numbers")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        compared = variants(args, device, Path(folder))
        speeds: dict[str, list[float]] = {variant.name: [] for variant in compared}
        for turn in range(args.turns + 1):
            for variant in compared:
                started = time.perf_counter()
                variant.train(args.steps)
                seconds = time.perf_counter() - started
                if turn > 0:
                    speeds[variant.name].append(args.steps * args.batch_size / seconds)
    base = speeds["plain loop"]
    rows, results = [], {}
    for name, values in speeds.items():
        ratios = Spread([own / plain for own, plain in zip(values, base, strict=True)])
        results[name] = {"images_per_second": Spread(values), "ratio": ratios}
        rows.append([name, Spread(values).text(0), ratios.text(2)])
    found = machine()
    print(f"{args.teacher} -> {args.student}, batch {args.batch_size}, {describe_machine(found)}")
    print(f"{args.turns} turns of {args.steps} steps each; median (least to largest)")
    print_table(["variant", "images/s", "ratio to plain"], rows)
    write_json(args.json, {"arguments": vars(args), "results": results})


if __name__ == "__main__":
    main()

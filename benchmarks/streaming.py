"""A set that does not fit: an epoch of JPEG from Parquet through Ray Train workers, in how much
memory, how fast, and whether each image comes once.

Nothing is trained, so that the rate is that of reading, decoding and shuffling alone.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.train
import torch
from PIL import Image
from ray.train.torch import TorchTrainer
from sklearn.datasets import load_digits

from benchmarks.record import describe_machine, machine, print_table, write_json
from orchestrator.data import StreamedSet, load_dataset
from orchestrator.ray_session import DRIVER_ENVIRONMENT, end_ray
from orchestrator.ray_train import this_rank
from orchestrator.spec import DataSpec
from orchestrator.streaming.opening import open_split
from orchestrator.streaming.stream import Stream

_GIB = 2**30
_SIDE = 224
_PER_SHARD, _PER_ROW_GROUP = 2048, 256
_FEW = {"limit": 1024, "resize": 8}
"""What makes the run that shows how much the processes take without the images."""
_SAMPLE_S = 0.25


class Epoch(NamedTuple):
    """One epoch of all workers."""

    indices: list[int]
    seconds: float
    peak: int
    """Bytes of all processes together."""


def main() -> None:
    """Generate the set where it is absent, stream it, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=23_000)
    parser.add_argument("--memory-gib", type=float, default=1.0, help="data.memory_gib")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, help="keeps the set for the next time")
    parser.add_argument("--json", help="where the numbers go")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        write_set(folder / "set", args.images)
        results = [measure(folder, workers, memory_gib=args.memory_gib) for workers in args.workers]
    print(f"\n{describe_machine(machine())}\n")
    print_table(list(results[0]), [list(map(str, result.values())) for result in results])
    write_json(args.json, {"results": results})


def measure(folder: Path, workers: int, *, memory_gib: float) -> dict[str, Any]:
    """A full epoch beside one of a few, small images."""
    spec = DataSpec(
        source="parquet",
        path=str(folder / "set"),
        test_fraction=0.001,
        val_fraction=0.001,
        streaming=True,
        memory_gib=memory_gib,
    )
    few = run_epoch(spec.model_copy(update=_FEW), workers)
    split = load_dataset(spec).train
    full = run_epoch(spec, workers)
    if sorted(full.indices) != split.indices.tolist():
        raise SystemExit("an image was missed, or came twice")
    decoded = len(split) * int(np.prod(split.shape))
    stored = sum(path.stat().st_size for path in (folder / "set").iterdir())
    return {
        "workers": workers,
        "images, each once": f"{len(split):,}",
        "JPEG, GiB": f"{stored / _GIB:.2f}",
        "decoded, GiB": f"{decoded / _GIB:.2f}",
        "allowed, GiB": f"{workers * memory_gib:.2f}",
        "taken by images, GiB": f"{(full.peak - few.peak) / _GIB:.2f}",
        "peak of all processes, GiB": f"{full.peak / _GIB:.2f}",
        "images/s": f"{len(split) / full.seconds:,.0f}",
    }


def run_epoch(spec: DataSpec, workers: int) -> Epoch:
    """Stream one epoch through Ray Train in a Ray of its own."""
    os.environ.update(DRIVER_ENVIRONMENT)
    store = int(workers * spec.memory_gib * _GIB / 2)
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=max(store, 80 * 2**20),
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join([os.getcwd()])}},
    )
    cores = max(1, len(os.sched_getaffinity(0)) // workers)
    with tempfile.TemporaryDirectory() as answers, _PeakMemory() as peak:
        trainer = TorchTrainer(
            stream_epoch,
            train_loop_config={"split": load_dataset(spec).train, "to": answers, "cores": cores},
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers, resources_per_worker={"CPU": cores}
            ),
            run_config=ray.train.RunConfig(storage_path=answers, name="epoch"),
        )
        trainer.fit()
        parts = [np.load(path) for path in sorted(Path(answers).glob("*.npz"))]
    end_ray()
    indices = np.concatenate([part["indices"] for part in parts]).tolist()
    return Epoch(indices, max(float(part["seconds"]) for part in parts), peak.most)


def stream_epoch(config: dict[str, Any]) -> None:
    """What each worker runs: it leaves the indices that it has seen in ``RANK.npz``.

    Args:
        config: ``split``, what is streamed; ``to``, a folder; ``cores``, of the worker.
    """
    torch.set_num_threads(config["cores"])
    ranks, split = this_rank(), config["split"]
    assert isinstance(split, StreamedSet)
    stream = open_split(split, ranks, on_ray=True)
    assert isinstance(stream, Stream)
    started = time.perf_counter()
    batches = stream.epoch(1, seed=0, batch_size=64)
    indices = torch.cat([batch.indices for batch in batches])
    seconds = time.perf_counter() - started
    np.savez(Path(config["to"]) / f"{ranks.rank}.npz", indices=indices, seconds=seconds)


class _PeakMemory:
    """The most that this process and all below it take; what they share is counted once."""

    def __init__(self) -> None:
        self.most = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> _PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._done.wait(_SAMPLE_S):
            self.most = max(
                self.most, sum(map(_proportional, [own, *own.children(recursive=True)]))
            )


def _proportional(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:  # it has ended
        return 0


def write_set(folder: Path, num_images: int) -> None:
    """Digits as JPEG of ImageNet's usual size, in shards of Parquet."""
    if folder.exists():
        return
    part = folder.with_name("part")
    part.mkdir(parents=True)
    starts = range(0, num_images, _PER_SHARD)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for done in pool.map(
            _write_shard,
            [part / f"{number:05}.parquet" for number in range(len(starts))],
            [range(start, min(start + _PER_SHARD, num_images)) for start in starts],
        ):
            print(f"wrote {done}", flush=True)
    part.rename(folder)


def _write_shard(path: Path, numbers: Sequence[int]) -> Path:
    digits = load_digits()
    labels = [int(digits.target[number % len(digits.target)]) for number in numbers]
    images = [_jpeg(digits.images[number % len(digits.images)], number) for number in numbers]
    table = pa.table({"image": images, "label": labels})
    pq.write_table(table, path, row_group_size=_PER_ROW_GROUP)
    return path


def _jpeg(digit: np.ndarray, seed: int) -> bytes:
    """A digit in colour and some noise, which makes JPEG as large as a photograph's."""
    random = np.random.default_rng(seed)
    ink = Image.fromarray(np.rint(digit * (255 / 16)).astype(np.uint8)).resize((_SIDE, _SIDE))
    noise = random.integers(0, 80, (_SIDE // 2, _SIDE // 2, 3)).repeat(2, 0).repeat(2, 1)
    pixels = np.asarray(ink)[..., None] * 0.6 + noise
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=85)
    return stream.getvalue()


if __name__ == "__main__":
    main()

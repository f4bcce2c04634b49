"""Time and memory of the DCD loss at large global batches, as one worker of many has them.

    python -m benchmarks loss

Forward and backward of contrast and consistency on embeddings of 128 dimensions, for one rank that
holds n of N rows. torch's fake process group stands in for the other ranks: this rank does all of
its own work and none of the communication. Each size runs in a process of its own that may take
four fifths of the memory that is free; its peak memory is read from the operating system, and what
it needs without the loss is taken off.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from benchmarks.record import Spread, describe_machine, machine, print_table, write_json
from dcd_core import DistillerOutput, Objective, shares

PROJECTION = 128
SIZES = (256, 1024, 4096, 8192, 16384, 32768)
RANKS = (1, 8, 64)


def one(num_images: int, num_ranks: int, repeats: int) -> dict[str, Any]:
    """Measure one size in this process."""
    if num_ranks > 1:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", rank=0, world_size=num_ranks, store=FakeStore())
    limit = int(0.8 * psutil.virtual_memory().available)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    counts = shares(num_images, num_ranks)
    objective = Objective(ce_weight=0.0, kd_weight=0.0, dcd_weight=1.0, consistency_weight=0.5)
    generator = torch.Generator().manual_seed(0)

    def embedding() -> Tensor:
        values = torch.randn(counts[0], PROJECTION, generator=generator)
        return F.normalize(values, dim=1).requires_grad_()

    output = DistillerOutput(
        logits=torch.zeros(counts[0], 2),
        student_embedding=embedding(),
        teacher_embedding=embedding(),
        log_temperature=torch.tensor(-1.0, requires_grad=True),
        bias=torch.zeros(()),
    )
    labels = torch.zeros(counts[0], dtype=torch.int64)
    before = _peak_mib()
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        objective(output, labels=labels, counts=counts).total.backward()
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds[1:], "mib": _peak_mib() - before}


def measured(num_images: int, num_ranks: int, repeats: int) -> dict[str, Any] | None:
    """The same in a process of its own; None when that runs out of memory."""
    command = [sys.executable, "-m", "benchmarks", "loss", "--one", str(num_images), str(num_ranks)]
    done = subprocess.run(
        [*command, "--repeats", str(repeats)], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    if done.returncode == -9 or "allocate" in done.stderr:
        return None
    raise RuntimeError(done.stderr)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--one", nargs=2, type=int, metavar=("N", "RANKS"), help="only this size")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="where to write the numbers")
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(one(args.one[0], args.one[1], args.repeats)))
        return
    print(describe_machine(machine()))
    rows, results = [], []
    for num_ranks in RANKS:
        for num_images in SIZES:
            if num_images < num_ranks:
                continue
            found = measured(num_images, num_ranks, args.repeats)
            cells = ["out of memory", "-"]
            if found is not None:
                times = Spread([1e3 * value for value in found["seconds"]])
                cells = [times.text(1), f"{found['mib']:,.0f}"]
            rows.append([f"{num_images:,}", str(num_ranks), f"{num_images // num_ranks:,}", *cells])
            results.append({"N": num_images, "ranks": num_ranks, "measured": found})
    print_table(["N", "workers", "n", "ms, forward and backward", "peak MiB"], rows)
    write_json(args.json, {"results": results})


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()

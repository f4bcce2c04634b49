"""Processes in a gloo process group that run functions of the test modules.

Starting a process costs seconds, mostly the import of torch, so they are started once. This file
is also the program of each process.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parents[2]
_ANSWER_S = 100


class RankPool:
    """Runs a function on ranks 0 to n - 1 at once."""

    def __init__(self, num_ranks: int, *, store: Path) -> None:
        self._pipes: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        paths = [str(_REPOSITORY), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
        for rank in range(num_ranks):
            ours, theirs = Pipe()
            command = [__file__, str(rank), str(num_ranks), str(store), str(theirs.fileno())]
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, *command], pass_fds=[theirs.fileno()], env=environment
                )
            )
            theirs.close()
            self._pipes.append(ours)

    def run(self, num_ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call ``function(rank, group, *args)`` on the first ranks; return what each returns.

        Args:
            num_ranks: how many take part; ``group`` is None, the default group, when all do.
            function: of a test module, found again by its file and name.
        """
        for pipe in self._pipes:
            _send(pipe, (inspect.getfile(function), function.__name__, num_ranks, args))
        answers: list[Any] = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(_ANSWER_S):
                self.close()
                raise TimeoutError(f"rank {rank} did not answer {function.__name__}")
            answers.append(_receive(pipe))
        for rank, (answer, error) in enumerate(answers):
            if error:
                raise RuntimeError(f"rank {rank} failed ({answer}):\n{error}")
        return [answer for answer, _ in answers[:num_ranks]]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.wait()


def _serve(rank: int, num_ranks: int, store: str, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=60),
    )
    groups: dict[int, Any] = {n: dist.new_group(list(range(n))) for n in range(2, num_ranks)}
    groups[num_ranks] = None
    while True:
        try:
            path, name, participants, args = _receive(pipe)
        except EOFError:
            return
        answer, error = None, ""
        if rank < participants:
            try:
                torch.manual_seed(0)
                answer = getattr(_load(path), name)(rank, groups[participants], *args)
            except Exception as failure:  # sent to the test, which fails with it
                answer, error = type(failure).__name__, traceback.format_exc()
        _send(pipe, (answer, error))


def _send(pipe: Connection, value: Any) -> None:
    # Plain pickle: that of multiprocessing shares the memory of tensors with processes it started.
    pipe.send_bytes(pickle.dumps(value))


def _receive(pipe: Connection) -> Any:
    return pickle.loads(pipe.recv_bytes())


def _load(path: str) -> Any:
    name = Path(path).stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


if __name__ == "__main__":
    _rank, _num_ranks, _store, _fileno = sys.argv[1:]
    _serve(int(_rank), int(_num_ranks), _store, Connection(int(_fileno)))

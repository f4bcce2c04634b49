"""What a command shows while it works: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from orchestrator.journal import RESTARTS, Entry, Journal

_POLL_S = 0.3
_PLAIN_LINES = 30
"""About how many epoch lines a long run prints where there is no terminal."""


class Display:
    """Writes to standard error, so that results on standard output can be piped."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Say what is being done, and how long it took when it took long."""
        started = time.perf_counter()
        self.say(f"{text} …")
        yield
        seconds = time.perf_counter() - started
        if seconds >= 2:
            self.say(f"  took {seconds:.1f} s")

    @contextmanager
    def epochs(self, journal: Journal, *, total: int) -> Iterator[None]:
        """Show epochs as they appear in a journal while the body runs."""
        stop = threading.Event()
        after = journal.last_number
        live = self.console.is_terminal
        every = max(1, total // _PLAIN_LINES)
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("epoch {task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not live,
        )

        def show(entries: list[Entry]) -> None:
            for entry in entries:
                text = _epoch_text(entry)
                top1 = entry.metrics.get("teacher/val_top1")
                if entry.step == 0 and top1 is not None:
                    self.say(f"teacher: validation top-1 {top1:.2f} %")
                if RESTARTS in entry.metrics:
                    self.say("a worker was lost: replaced, going on from the newest checkpoint")
                if text is None:
                    continue
                if live:
                    progress.update(task, completed=entry.step, description=text)
                elif entry.step % every == 0 or entry.step in (1, total):
                    self.say(f"epoch {entry.step}/{total}  {text}")

        def follow() -> None:
            number = after
            while True:
                last_look = stop.is_set()
                entries = journal.read(after=number)
                if entries:
                    number = entries[-1].number
                    show(entries)
                if last_look:
                    return
                stop.wait(_POLL_S)

        with progress:
            task = progress.add_task("starting workers", total=total)
            thread = threading.Thread(target=follow, name="progress", daemon=True)
            thread.start()
            try:
                yield
            finally:
                stop.set()
                thread.join(2.0)


def _epoch_text(entry: Entry) -> str | None:
    metrics = entry.metrics
    if "train/loss" not in metrics:
        return None
    text = f"loss {metrics['train/loss']:.3f}  val top-1 {metrics['val/top1']:.2f} %"
    if "dcd/temperature" in metrics:
        text += f"  T {metrics['dcd/temperature']:.3f}"
    return text + f"  {metrics['time/images_per_second']:,.0f} images/s"

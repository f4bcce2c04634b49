"""What the process of a trial and its workers tell each other. Imports little: it is an actor."""

from __future__ import annotations

import asyncio

Epochs = list[tuple[int, dict[str, float]]]

BEFORE_ALL = -1
"""A step that workers never wait for."""


class Channel:
    """Epochs go to the trial, which says after each whether the workers may go on.

    They wait for that, so that they all end at the same report, and no epoch is trained in vain.
    """

    def __init__(self) -> None:
        self._epochs: Epochs = []
        self._heard = False
        self._allowed = BEFORE_ALL
        self._stopped = False
        self._change = asyncio.Condition()

    async def offer(self, epochs: Epochs) -> None:
        """The first worker has these, in order; some may have been offered before."""
        async with self._change:
            self._heard = True
            self._epochs += epochs
            self._change.notify_all()

    async def take(self, patience_s: float) -> tuple[bool, Epochs]:
        """Whether the workers have been heard of, and what is new from them."""
        async with self._change:
            try:
                await asyncio.wait_for(self._change.wait_for(lambda: self._epochs), patience_s)
            except TimeoutError:
                return self._heard, []
            taken, self._epochs = self._epochs, []
            return True, taken

    async def allow(self, step: int) -> None:
        """The workers may go on after this step."""
        async with self._change:
            self._allowed = max(self._allowed, step)
            self._change.notify_all()

    async def stop(self) -> None:
        """The workers shall end at the first step that has not been allowed."""
        async with self._change:
            self._stopped = True
            self._change.notify_all()

    async def may_go_on(self, step: int) -> bool:
        """The trial's word on a step, which is the same for all workers whenever they ask."""
        async with self._change:
            await self._change.wait_for(lambda: self._stopped or self._allowed >= step)
            return self._allowed >= step

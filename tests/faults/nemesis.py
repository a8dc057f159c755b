"""The nemesis: one fault after the other, each written down with what it struck."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from faults.world import World

FAULT_SECONDS = 60.0


class Struck(NamedTuple):
    """What a fault found in flight: jobs that a process held or that were due, requests that waited for an answer."""

    jobs: list[str]
    requests: int = 0

    @property
    def counts(self) -> bool:
        """Whether it struck anything at all."""
        return bool(self.jobs or self.requests)


Fault = Callable[[World], Awaitable[Struck]]
"""Returns when it is over, and what it ended runs again."""


async def rage(world: World, plan: Iterable[Fault], is_enough: Callable[[], bool], gap_seconds: float) -> None:
    """Commits the faults of the plan until it is enough, with up to `gap_seconds` of peace after each."""
    for act in plan:
        if is_enough():
            return
        await world.cluster.mend()
        began = time.time()
        try:
            async with asyncio.timeout(FAULT_SECONDS):
                struck = await act(world)
        except Exception as error:  # noqa: BLE001 -- whatever it was, the round has failed, and says why
            world.history.tell("broken", name=act.__name__, error=repr(error))
            struck = Struck([])
            await world.cluster.mend()
        about = {"name": act.__name__, "doing": act.__doc__, "began": began, "ended": time.time()}
        world.history.tell("fault", struck=struck.counts, jobs=struck.jobs, requests=struck.requests, **about)
        await asyncio.sleep(gap_seconds * world.random_float.random())

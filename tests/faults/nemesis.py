"""Nemesis: run one fault after the other, and record each with the jobs and requests it affected."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from faults.world import World

FAULT_SECONDS = 60.0


class Struck(NamedTuple):
    """The work that a fault affected: jobs that a process held or that were due, and the number of open requests."""

    jobs: list[str]
    requests: int = 0

    @property
    def counts(self) -> bool:
        """Return True if the fault affected any job or request."""
        return bool(self.jobs or self.requests)


Fault = Callable[[World], Awaitable[Struck]]
"""Runs a fault, and returns when it is over and everything runs again. Its docstring is shown in the report."""


async def rage(world: World, plan: Iterable[Fault], is_enough: Callable[[], bool], gap_seconds: float) -> None:
    """Run the faults of the plan until `is_enough`, with a pause of up to `gap_seconds` after each."""
    for act in plan:
        if is_enough():
            return
        await world.cluster.mend()
        began = time.time()
        try:
            async with asyncio.timeout(FAULT_SECONDS):
                struck = await act(world)
        except Exception as error:  # noqa: BLE001 -- any error fails the round, and is recorded
            world.history.tell("broken", name=act.__name__, error=repr(error))
            struck = Struck([])
            await world.cluster.mend()
        about = {"name": act.__name__, "doing": act.__doc__, "began": began, "ended": time.time()}
        world.history.tell("fault", struck=struck.counts, jobs=struck.jobs, requests=struck.requests, **about)
        await asyncio.sleep(gap_seconds * world.random_float.random())

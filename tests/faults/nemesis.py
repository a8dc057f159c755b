"""Nemesis: run one fault after the other, and record each with the jobs and requests it affected."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from faults.world import World

FAULT_SECONDS = 240.0


class Impact(NamedTuple):
    """The work that a fault affected: jobs that a process held or that were due, and the number of open requests."""

    jobs: list[str]
    requests: int = 0

    @property
    def is_effective(self) -> bool:
        """Return True if the fault affected any job or request."""
        return bool(self.jobs or self.requests)


Fault = Callable[[World], Awaitable[Impact]]
"""Run a fault, and return when it is over and everything runs again. Its docstring is shown in the report."""


async def run_faults(world: World, plan: Iterable[Fault], is_enough: Callable[[], bool], gap_seconds: float) -> None:
    """Run the faults of the plan until `is_enough`, with a pause of up to `gap_seconds` after each."""
    for fault in plan:
        if is_enough():
            return
        await world.cluster.replace_ended()
        began_at = time.time()
        try:
            async with asyncio.timeout(FAULT_SECONDS):
                impact = await fault(world)
        except Exception as error:  # noqa: BLE001 -- any error fails the round, and is recorded
            world.history.record("broken", name=fault.__name__, error=repr(error))
            impact = Impact([])
            await world.cluster.replace_ended()
        fields = {"name": fault.__name__, "doing": fault.__doc__, "began": began_at, "ended": time.time()}
        world.history.record("fault", struck=impact.is_effective, jobs=impact.jobs, requests=impact.requests, **fields)
        await asyncio.sleep(gap_seconds * world.rng.random())

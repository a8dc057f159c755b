"""In-flight calls without a row: they get one once they are slow, and nothing wakes up while there is none."""

from __future__ import annotations

import asyncio
from random import Random

from signoff.runtime.attempt import Attempt
from signoff.runtime.inflight import InflightCall, InflightCalls
from simulation.clock import Clock
from simulation.loop import SimLoop, World
from support.stores import a_job

AFTER_SECONDS = 1.0


def test_a_call_gets_a_row_once_it_is_slow_and_an_idle_process_sleeps() -> None:
    world = World(1)
    loop = SimLoop(world, Clock(Random(1), is_true=True))
    calls, persisted = InflightCalls(), dict[str, float]()

    def persist(inflight: InflightCall) -> None:
        persisted[inflight.job.id] = loop.time()

    def add(job_id: str) -> InflightCall:
        inflight = InflightCall(Attempt(a_job(id=job_id), stream=False), actor="test")
        calls.add(inflight)
        return inflight

    async def main() -> None:
        task = loop.create_task(calls.persist_slow(persist, after_seconds=AFTER_SECONDS))
        steps = world.steps
        await asyncio.sleep(100)
        assert world.steps - steps < 250  # a few for each second, not for each tenth of one
        began_at = loop.time() + 0.3
        await asyncio.sleep(0.3)
        add("first")
        await asyncio.sleep(0.45)
        add("second")
        calls.drop(add("quick"))
        await asyncio.sleep(5)
        assert persisted.keys() == {"first", "second"}
        assert AFTER_SECONDS <= persisted["first"] - began_at <= AFTER_SECONDS * 1.1 + 1e-9
        assert AFTER_SECONDS <= persisted["second"] - began_at - 0.45 <= AFTER_SECONDS * 1.1 + 1e-9
        task.cancel()

    world.run(main(), loop)
    loop.bury()

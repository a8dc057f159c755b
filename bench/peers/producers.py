"""Producers of the job queues that are measured: 32 enqueue at a time, or one asks for one result after another."""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

PRODUCERS = 32
PAUSE_SECONDS = 0.01
"""Seconds between the jobs whose latency is measured, so that the worker is idle."""


class Timer:
    """Times from its creation on."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._cpu_seconds = time.process_time()

    def figures(self) -> dict[str, float]:
        """Return when it was created on the clock that all processes share, and the times until now in seconds."""
        seconds, cpu_seconds = time.monotonic() - self._began, time.process_time() - self._cpu_seconds
        return {"began": self._began, "seconds": seconds, "cpu_seconds": cpu_seconds}


def run(enqueue: Callable[[int], None], ask: Callable[[int], None]) -> None:
    """Do what the command line says, and print the figures as JSON."""
    command, count = sys.argv[1], int(sys.argv[2])
    if command == "enqueue":
        enqueue(0)  # connects
        timer = Timer()
        with ThreadPoolExecutor(PRODUCERS) as pool:
            for done in [pool.submit(enqueue, number) for number in range(1, count)]:
                done.result()
        print(json.dumps(timer.figures()), flush=True)
        return
    ask(0)
    latencies = list[float]()
    for number in range(count):
        began = time.perf_counter()
        ask(number)
        latencies.append((time.perf_counter() - began) * 1000)
        time.sleep(PAUSE_SECONDS)
    print(json.dumps(latencies), flush=True)


def run_async(
    begin: Callable[[], Awaitable[object]],
    enqueue: Callable[[int], Awaitable[object]],
    ask: Callable[[int], Awaitable[object]],
    end: Callable[[], Awaitable[object]],
) -> None:
    """Do what the command line says with coroutines, and print the figures as JSON."""

    async def measure() -> object:
        await begin()
        command, count = sys.argv[1], int(sys.argv[2])
        figures = await (_enqueue(enqueue, count) if command == "enqueue" else _ask(ask, count))
        await end()
        return figures

    print(json.dumps(asyncio.run(measure())), flush=True)


async def _enqueue(enqueue: Callable[[int], Awaitable[object]], count: int) -> dict[str, float]:
    await enqueue(0)  # connects
    numbers, timer = iter(range(1, count)), Timer()

    async def produce() -> None:
        for number in numbers:
            await enqueue(number)

    await asyncio.gather(*(produce() for _ in range(PRODUCERS)))
    return timer.figures()


async def _ask(ask: Callable[[int], Awaitable[object]], count: int) -> list[float]:
    await ask(0)
    latencies = list[float]()
    for number in range(count):
        began = time.perf_counter()
        await ask(number)
        latencies.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(PAUSE_SECONDS)
    return latencies

"""Alive: all that goes on in a process by itself, beside what callers ask."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, Protocol

from signoff.runtime.invalidation import Refresh
from signoff.server.consumer import Consumer
from signoff.server.dispatcher import Sender
from signoff.server.worker import Worker
from signoff.work.record import file
from signoff.work.services import Desk
from signoff.work.sweep import sweep_for_ever

FINISH_SECONDS = 5.0


class Part(Protocol):
    """What is started before it is used, and closed after it."""

    async def start(self) -> None: ...
    async def close(self) -> None: ...


@contextlib.asynccontextmanager
async def alive(desk: Desk, *, concurrency: int, drain_seconds: float) -> AsyncGenerator[None]:
    """All that goes on in a process by itself, while the block runs; it works and sends unless `concurrency` is 0."""
    worker = Worker(desk, concurrency=concurrency, drain_seconds=drain_seconds)
    senders = [Sender(desk, kind, drain_seconds=drain_seconds) for kind in desk.couriers]
    consumer = Consumer(desk)

    def streams_changed() -> None:
        desk.streams.forget()
        consumer.stir()

    forget = {
        "streams": streams_changed,
        "models": lambda: _forget_models(desk),
        "people": desk.callers.forget,
        "prices": desk.prices.forget,
        "limits": desk.limits.forget,
        "cache": desk.answers.forget,
        "compositions": desk.compositions.forget,
        "functions": desk.functions.forget,
    }
    refresh = Refresh(desk.store, forget)
    workers = [worker, *senders] if concurrency else []
    listeners = [consumer] if concurrency else []
    for part in (desk.waits, desk.leases, refresh, *workers):
        desk.store.listen(part.hear)
    chores = [
        desk.waits.cast_net(),
        desk.leases.keep(),
        desk.rooms.keep(),
        refresh.cast_net(),
        sweep_for_ever(desk),
        desk.logs.write_behind(),
        desk.in_flight.file_the_slow(lambda flight: file(desk, flight), after_seconds=desk.rules.log_after_seconds),
    ]
    await desk.broker.start()
    async with _tasks(chores), started(*desk.couriers.values(), *desk.engines.values()):
        try:
            async with _tasks([part.run() for part in (*workers, *listeners)]):
                yield
        finally:
            await desk.background.finish(FINISH_SECONDS)


def _forget_models(desk: Desk) -> None:
    """Their keys count as they do."""
    desk.models.forget()
    desk.keys.forget()


@contextlib.asynccontextmanager
async def _tasks(works: Sequence[Coroutine[Any, Any, None]]) -> AsyncGenerator[None]:
    """Runs `works` while the block runs, and ends them after it."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


@contextlib.asynccontextmanager
async def started(*parts: Part) -> AsyncGenerator[None]:
    """Starts the parts in this order, and closes them in the other."""
    async with contextlib.AsyncExitStack() as stack:
        for part in parts:
            await part.start()
            stack.push_async_callback(part.close)
        yield

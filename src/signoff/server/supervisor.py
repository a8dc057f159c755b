"""Alive: all that goes on in a process by itself, beside what callers ask."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, Protocol

from signoff.runtime.invalidation import Invalidation
from signoff.server.consumer import StreamConsumer
from signoff.server.dispatcher import Dispatcher
from signoff.server.worker import Worker
from signoff.work.record import persist
from signoff.work.services import Services
from signoff.work.sweep import run_sweeper

FINISH_SECONDS = 5.0


class Service(Protocol):
    """What is started before it is used, and closed after it."""

    async def start(self) -> None: ...
    async def close(self) -> None: ...


@contextlib.asynccontextmanager
async def supervise(services: Services, *, concurrency: int, drain_seconds: float) -> AsyncGenerator[None]:
    """All that goes on in a process by itself, while the block runs; it works and sends unless `concurrency` is 0."""
    worker = Worker(services, concurrency=concurrency, drain_seconds=drain_seconds)
    senders = [Dispatcher(services, kind, drain_seconds=drain_seconds) for kind in services.adapters.deliverers]
    consumer = StreamConsumer(services)

    def streams_changed() -> None:
        services.caches.streams.invalidate()
        consumer.refresh()

    forget = {
        "streams": streams_changed,
        "models": lambda: _forget_models(services),
        "people": services.caches.callers.invalidate,
        "prices": services.caches.prices.invalidate,
        "limits": services.caches.limits.invalidate,
        "cache": services.caches.responses.invalidate,
        "compositions": services.caches.library.invalidate,
        "functions": services.caches.functions.invalidate,
    }
    refresh = Invalidation(services.store, forget)
    workers = [worker, *senders] if concurrency else []
    listeners = [consumer] if concurrency else []
    for part in (services.runtime.watcher, services.runtime.leases, refresh, *workers):
        services.store.listen(part.on_change)
    chores = [
        services.runtime.watcher.run(),
        services.runtime.leases.run(),
        services.runtime.reservations.run(),
        refresh.run(),
        run_sweeper(services),
        services.runtime.logs.run(),
        services.runtime.inflight_calls.persist_slow(
            lambda inflight: persist(services, inflight), after_seconds=services.rules.log_after_seconds
        ),
    ]
    await services.adapters.broker.start()
    async with _tasks(chores), started(*services.adapters.deliverers.values(), *services.adapters.engines.values()):
        try:
            async with _tasks([part.run() for part in (*workers, *listeners)]):
                yield
        finally:
            await services.runtime.background.finish(FINISH_SECONDS)


def _forget_models(services: Services) -> None:
    """Their keys count as they do."""
    services.caches.models.invalidate()
    services.caches.keys.invalidate()


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
async def started(*parts: Service) -> AsyncGenerator[None]:
    """Starts the parts in this order, and closes them in the other."""
    async with contextlib.AsyncExitStack() as stack:
        for part in parts:
            await part.start()
            stack.push_async_callback(part.close)
        yield

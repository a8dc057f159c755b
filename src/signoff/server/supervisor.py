"""Supervisor of the background services of a process."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, Protocol

from signoff.infra.memory import collect_as_memory_grows
from signoff.runtime.invalidation import Invalidation
from signoff.server.batches import BatchRunner
from signoff.server.consumer import StreamConsumer
from signoff.server.dispatcher import Dispatcher
from signoff.server.worker import Worker
from signoff.work.record import persist
from signoff.work.reviews.notify import run_notifier
from signoff.work.services import Services
from signoff.work.sweep import run_file_cleaner, run_file_collector, run_sweeper

FINISH_SECONDS = 5.0


class Service(Protocol):
    """Resource with a life cycle: `start` before its use, `close` after it."""

    async def start(self) -> None: ...
    async def close(self) -> None: ...


@contextlib.asynccontextmanager
async def supervise(services: Services, *, concurrency: int, drain_seconds: float) -> AsyncGenerator[None]:
    """Run the background services of a process for the duration of the block.

    With a `concurrency` of 0, it performs no jobs, sends no deliveries and consumes no streams.
    """
    worker = Worker(services, concurrency=concurrency, drain_seconds=drain_seconds)
    dispatchers = [Dispatcher(services, kind, drain_seconds=drain_seconds) for kind in services.adapters.deliverers]
    consumer = StreamConsumer(services)

    invalidation = Invalidation(services.store, _invalidations(services, consumer), expiring=["people"])
    workers = [worker, BatchRunner(services), *dispatchers] if concurrency else []
    for listener in (services.runtime.watcher, services.runtime.leases, invalidation, *workers):
        services.store.listen(listener.on_change)
    chores = [
        services.runtime.watcher.run(),
        services.runtime.leases.run(),
        services.runtime.reservations.run(),
        services.runtime.caller_leases.run(),
        invalidation.run(),
        run_sweeper(services),
        run_file_cleaner(services),
        run_file_collector(services),
        services.runtime.logs.run(),
        services.runtime.metrics.run(),
        services.caches.callers.run(),
        services.runtime.open_calls.run(),
        collect_as_memory_grows(),
        services.runtime.inflight_calls.persist_slow(
            lambda inflight: persist(services, inflight), after_seconds=services.rules.log_after_seconds
        ),
        *([run_notifier(services)] if concurrency else []),
    ]
    await services.adapters.broker.start()
    async with _running(chores), started(*services.adapters.deliverers.values(), *services.adapters.engines.values()):
        try:
            async with _running([listener.run() for listener in (*workers, *([consumer] if concurrency else []))]):
                yield
        finally:
            await services.runtime.background.finish(FINISH_SECONDS)


def _invalidations(services: Services, consumer: StreamConsumer) -> dict[str, Callable[[], None]]:
    """Return what each topic of changes makes out of date in this process."""

    def streams_changed() -> None:
        services.caches.streams.invalidate()
        consumer.refresh()

    return {
        "streams": streams_changed,
        "models": lambda: _invalidate_models(services),
        "people": lambda: _invalidate_people(services),
        "prices": services.caches.prices.invalidate,
        "limits": services.caches.limits.invalidate,
        "policies": services.caches.policies.invalidate,
        "cache": services.caches.responses.invalidate,
        "compositions": services.caches.library.invalidate,
        "functions": services.caches.functions.invalidate,
    }


def _invalidate_people(services: Services) -> None:
    """Invalidate callers, and check those whose calls are open."""
    services.caches.callers.invalidate()
    services.caches.reviewers.invalidate()
    services.runtime.open_calls.on_change()


def _invalidate_models(services: Services) -> None:
    """Invalidate models together with upstream keys, which the store announces under the same topic."""
    services.caches.models.invalidate()
    services.caches.keys.invalidate()


@contextlib.asynccontextmanager
async def _running(coroutines: Sequence[Coroutine[Any, Any, None]]) -> AsyncGenerator[None]:
    """Run the coroutines as tasks for the duration of the block, and cancel them after it."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in coroutines]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


@contextlib.asynccontextmanager
async def started(*services: Service) -> AsyncGenerator[None]:
    """Start the services in this order, and close them in reverse order after the block."""
    async with contextlib.AsyncExitStack() as stack:
        for service in services:
            await service.start()
            stack.push_async_callback(service.close)
        yield

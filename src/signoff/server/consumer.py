"""Consumer: listens to every stream, and listens again after a failure."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from functools import partial

import structlog

from signoff.core.retry import Backoff, wait_seconds
from signoff.core.stream import IncomingMessage, ListenerStatus, Stream
from signoff.doors.topics import accept_message
from signoff.errors import Conflict, SignoffError
from signoff.infra.tasks import was_cancelled
from signoff.work.accept import stream_caller
from signoff.work.services import Services

FIRST_RETRY_SECONDS = 0.2
STABLE_SECONDS = 10.0
LEAD_LEASE_SECONDS = 15.0
POLL_SECONDS = 2.0
log = structlog.get_logger()


class StreamConsumer:
    """Listener with one task per stream, started and stopped as streams are added, changed and removed."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._holder = f"{services.ids.actor}:{services.ids.new_id()}"  # containers may share host name and pid
        self._tasks: dict[str, tuple[Stream, asyncio.Task[None]]] = {}
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Listen until cancelled. Messages that are not acknowledged by then go to other processes."""
        try:
            while True:
                self._changed.clear()
                await self._update_tasks()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._changed.wait()
        finally:
            await self._stop(list(self._tasks))

    def refresh(self) -> None:
        """Look for changed streams now."""
        self._changed.set()

    async def _update_tasks(self) -> None:
        try:
            streams = {stream.name: stream for stream in await self._services.caches.streams.all()}
        except Exception as error:  # noqa: BLE001 -- the store is unavailable; the next poll retries
            log.warning("stream_list_not_read", error=repr(error))
            return
        running = self._tasks.items()
        await self._stop([name for name, (stream, task) in running if streams.get(name) != stream or task.done()])
        for name, stream in streams.items():
            if name not in self._tasks:
                self._tasks[name] = (stream, self._services.runtime.background.spawn(self._listen_forever(stream)))

    async def _stop(self, names: Sequence[str]) -> None:
        """Stop the tasks of these streams. A task may have to be cancelled more than once: see `brokers/amqp.py`."""
        while tasks := [task for name in names if not (task := self._tasks[name][1]).done()]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1)
        for name in names:
            del self._tasks[name]
            self._services.caches.streams.statuses.pop(name, None)

    async def _listen_forever(self, stream: Stream) -> None:
        """Listen, and listen again with backoff after each failure. Never returns."""
        backoff = Backoff(first_seconds=FIRST_RETRY_SECONDS, ceiling_seconds=stream.backoff_max_seconds)
        loop, attempt = asyncio.get_running_loop(), 0
        while True:
            started_at = loop.time()
            try:
                await self._listen(stream)
            except (Exception, asyncio.CancelledError) as error:
                if was_cancelled(error):
                    raise
                self._set_status(stream, error)
            attempt = 1 if loop.time() - started_at > STABLE_SECONDS else attempt + 1
            await asyncio.sleep(wait_seconds(backoff, attempt, self._services.ids.random_float()))

    async def _listen(self, stream: Stream) -> None:
        """Listen until an error occurs, and raise that."""
        await stream_caller(self._services, stream)
        transport = self._services.adapters.transport_to(stream)
        async with self._leading(stream) if transport.is_exclusive else contextlib.nullcontext():
            await transport.listen(partial(self._accept, stream), partial(self._set_status, stream, None))

    @contextlib.asynccontextmanager
    async def _leading(self, stream: Stream) -> AsyncGenerator[None]:
        """Hold the stream's lead for the duration of the block. Raises Conflict if another process has it."""
        streams, holder = self._services.store.streams, self._holder

        async def acquire() -> None:
            if not await streams.acquire_lead(stream.name, holder, LEAD_LEASE_SECONDS):
                raise Conflict("Another process listens to the stream.")

        async def renew() -> None:
            while True:
                await asyncio.sleep(LEAD_LEASE_SECONDS / 3)
                await acquire()

        await acquire()
        try:
            async with asyncio.TaskGroup() as group:
                renewal = group.create_task(renew())
                yield
                renewal.cancel()
        finally:
            with contextlib.suppress(Exception):  # otherwise the lead expires
                await asyncio.shield(self._services.runtime.background.spawn(streams.release_lead(stream.name, holder)))

    async def _accept(self, stream: Stream, message: IncomingMessage) -> None:
        """Accept a message, retrying until that succeeds: no error here, such as an unavailable store, may lose one."""
        backoff, attempt = Backoff(first_seconds=FIRST_RETRY_SECONDS, ceiling_seconds=stream.backoff_max_seconds), 0
        while True:
            try:
                await accept_message(self._services, stream, message)
            except Exception as error:  # noqa: BLE001 -- every error is retried
                attempt += 1
                self._set_status(stream, error)
                await asyncio.sleep(wait_seconds(backoff, attempt, self._services.ids.random_float()))
            else:
                if attempt:
                    self._set_status(stream, None)
                return

    def _set_status(self, stream: Stream, error: BaseException | None) -> None:
        """Publish the status of the stream, and log it if it has changed."""
        statuses = self._services.caches.streams.statuses
        status = ListenerStatus(error is None, None if error is None else _safe_description(error))
        if statuses.get(stream.name) != status:
            statuses[stream.name] = status
            if error is None:
                log.info("stream_connected", stream=stream.name)
            else:
                log.warning("stream_disconnected", stream=stream.name, error=status.error)


def _safe_description(error: BaseException) -> str:
    """Return a description without secrets: errors of libraries, which may quote URLs with passwords, only by type."""
    match error:
        case BaseExceptionGroup(exceptions=(BaseException() as first, *_)):
            return _safe_description(first)
        case SignoffError():
            return error.message
        case _ if type(error) is ConnectionError:
            return str(error)
        case _:
            return type(error).__name__

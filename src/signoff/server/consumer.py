"""The consumer: listens to every stream, and begins anew wherever it is not heard any more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

import structlog

from signoff.core.retry import Backoff, wait_seconds
from signoff.core.stream import IncomingMessage, ListenerStatus, Stream
from signoff.doors.topics import accept_message
from signoff.errors import Conflict, SignoffError
from signoff.infra.tasks import was_cancelled
from signoff.work.accept import stream_caller
from signoff.work.services import Services

FIRST_SECONDS = 0.2
STEADY_SECONDS = 10.0
LEAD_SECONDS = 15.0
LOOK_AGAIN_SECONDS = 2.0
log = structlog.get_logger()


class StreamConsumer:
    """A task for each stream, which is ended and begun as streams come, change and go."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._name = f"{services.ids.actor}:{services.ids.new_id()}"  # containers may share a host name and a pid
        self._tasks: dict[str, tuple[Stream, asyncio.Task[None]]] = {}
        self._has_changes = asyncio.Event()

    async def run(self) -> None:
        """Listens until cancelled. Whatever was not acknowledged then is somebody else's."""
        try:
            while True:
                self._has_changes.clear()
                await self._adjust()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_AGAIN_SECONDS):
                        await self._has_changes.wait()
        finally:
            await self._end(list(self._tasks))

    def refresh(self) -> None:
        """Streams may have changed."""
        self._has_changes.set()

    async def _adjust(self) -> None:
        try:
            wanted = {stream.name: stream for stream in await self._services.caches.streams.all()}
        except Exception as error:  # noqa: BLE001 -- the store is away; the next look may find it
            log.warning("could not look for streams", error=repr(error))
            return
        known = self._tasks.items()
        await self._end([name for name, (stream, task) in known if wanted.get(name) != stream or task.done()])
        for name, stream in wanted.items():
            if name not in self._tasks:
                self._tasks[name] = (stream, self._services.runtime.background.spawn(self._keep(stream)))

    async def _end(self, names: Sequence[str]) -> None:
        """Ends tasks, all at once. It may take more than one try: see `brokers/line.py`."""
        while ending := [task for name in names if not (task := self._tasks[name][1]).done()]:
            for task in ending:
                task.cancel()
            await asyncio.wait(ending, timeout=1)
        for name in names:
            del self._tasks[name]
            self._services.caches.streams.statuses.pop(name, None)

    async def _keep(self, stream: Stream) -> None:
        """Listens, and listens again, for ever."""
        backoff = Backoff(first_seconds=FIRST_SECONDS, ceiling_seconds=stream.backoff_max_seconds)
        loop, attempt = asyncio.get_running_loop(), 0
        while True:
            began = loop.time()
            try:
                await self._listen(stream)
            except (Exception, asyncio.CancelledError) as error:
                if was_cancelled(error):
                    raise
                self._say(stream, error)
            attempt = 1 if loop.time() - began > STEADY_SECONDS else attempt + 1
            await asyncio.sleep(wait_seconds(backoff, attempt, self._services.ids.random_float()))

    async def _listen(self, stream: Stream) -> None:
        """Until something goes wrong, which raises."""
        await stream_caller(self._services, stream)
        transport = self._services.adapters.transport_to(stream)
        async with self._leading(stream) if transport.is_exclusive else contextlib.nullcontext():
            await transport.listen(lambda arrived: self._take(stream, arrived), lambda: self._say(stream, None))

    @contextlib.asynccontextmanager
    async def _leading(self, stream: Stream) -> AsyncGenerator[None]:
        """While nobody else listens. Raises Conflict while somebody does, or has begun to."""
        streams, holder = self._services.store.streams, self._name

        async def lead() -> None:
            if not await streams.acquire_lead(stream.name, holder, LEAD_SECONDS):
                raise Conflict("Another process listens to it.")

        async def renew() -> None:
            while True:
                await asyncio.sleep(LEAD_SECONDS / 3)
                await lead()

        await lead()
        try:
            async with asyncio.TaskGroup() as group:
                renewing = group.create_task(renew())
                yield
                renewing.cancel()
        finally:
            with contextlib.suppress(Exception):  # it runs out
                await asyncio.shield(self._services.runtime.background.spawn(streams.release_lead(stream.name, holder)))

    async def _take(self, stream: Stream, arrived: IncomingMessage) -> None:
        """Tries until it is taken: a message is no worse for a store that is away, and others wait their turn."""
        backoff, attempt = Backoff(first_seconds=FIRST_SECONDS, ceiling_seconds=stream.backoff_max_seconds), 0
        while True:
            try:
                await accept_message(self._services, stream, arrived)
            except Exception as error:  # noqa: BLE001 -- whatever it is, the message is not lost for it
                attempt += 1
                self._say(stream, error)
                await asyncio.sleep(wait_seconds(backoff, attempt, self._services.ids.random_float()))
            else:
                if attempt:
                    self._say(stream, None)
                return

    def _say(self, stream: Stream, error: BaseException | None) -> None:
        """Tells of a change, once; everybody who asks can see it."""
        listening = self._services.caches.streams.statuses
        told = ListenerStatus(error is None, None if error is None else _words(error))
        if listening.get(stream.name) != told:
            listening[stream.name] = told
            if error is None:
                log.info("a stream is listened to", stream=stream.name)
            else:
                log.warning("a stream is not listened to", stream=stream.name, error=told.error)


def _words(error: BaseException) -> str:
    """What went wrong. Libraries may quote addresses, and with them passwords: of theirs, the kind is told alone."""
    match error:
        case BaseExceptionGroup(exceptions=(BaseException() as first, *_)):
            return _words(first)
        case SignoffError():
            return error.message
        case _ if type(error) is ConnectionError:
            return str(error)
        case _:
            return type(error).__name__

"""What all transports do with a broker of FastStream's: raw messages in, and a watch that says when one is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from faststream.message import StreamMessage

ANSWER_SECONDS = 10.0
CHECK_SECONDS = 1.0
CLOSE_SECONDS = 3.0
# How long a broker of FastStream's waits for handlers when it stops: they have a transaction to end, no more.
GRACE_SECONDS = 2.0


async def as_it_came(message: Any) -> StreamMessage[Any]:
    """A parser that reads nothing: what FastStream makes of a strange message must not keep it from its handler."""
    return StreamMessage(raw_message=message, body=b"", message_id="", correlation_id="")


async def unread(message: StreamMessage[Any]) -> Any:
    """A decoder that decodes nothing."""
    return message.raw_message


class LivenessWatch:
    """Waits for trouble, and looks for it."""

    def __init__(self) -> None:
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def has_failed(self) -> bool:
        """Whether something went wrong."""
        return self._failure.done()

    def fail(self, error: BaseException) -> None:
        """Something went wrong; the first to say so is heard."""
        if not self._failure.done():
            self._failure.set_exception(error)
            self._failure.exception()  # it may come when nobody waits any more

    async def run(self, look: Callable[[], Awaitable[None]]) -> None:
        """Until there is trouble, which raises; `look` raises what it finds."""
        while True:
            await asyncio.wait([self._failure], timeout=CHECK_SECONDS)
            if self._failure.done():
                self._failure.result()
            async with asyncio.timeout(ANSWER_SECONDS):
                await look()


@contextlib.asynccontextmanager
async def ended(stop: Callable[[], Awaitable[None]]) -> AsyncGenerator[None]:
    """Stops a broker after the block, however often it is cancelled: a line that is left half closed keeps what it
    holds. A dead line is not waited for, and whatever it says is of no interest.
    """
    try:
        yield
    finally:
        stopping = asyncio.get_running_loop().create_task(_stopped(stop))
        cancelled: asyncio.CancelledError | None = None
        while not stopping.done():
            try:
                await asyncio.wait([stopping])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled


async def _stopped(stop: Callable[[], Awaitable[None]]) -> None:
    with contextlib.suppress(Exception):
        async with asyncio.timeout(GRACE_SECONDS + CLOSE_SECONDS):
            await stop()

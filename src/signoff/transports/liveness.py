"""Detection of lost connections, and the stop of brokers."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable

from signoff.infra.tasks import check_cancelled, complete
from signoff.transports.options import GRACE_SECONDS

ANSWER_SECONDS = 10.0  # limit of each request to a message broker
CHECK_SECONDS = 1.0
CLOSE_SECONDS = 3.0


class LivenessWatch:
    """Detector of failures of a connection: a periodic check fails, or a callback reports one."""

    def __init__(self) -> None:
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def has_failed(self) -> bool:
        """True once a failure was reported."""
        return self._failure.done()

    def fail(self, error: BaseException) -> None:
        """Report a failure; `run` raises the first one."""
        if not self._failure.done():
            self._failure.set_exception(error)
            self._failure.exception()  # mark as retrieved: nothing may be waiting for it any more

    async def run(self, check: Callable[[], Awaitable[None]]) -> None:
        """Call `check` every CHECK_SECONDS until it raises, or a failure is reported; raise that error."""
        while True:
            check_cancelled()  # the clients of several brokers may have lost it while they connected
            await asyncio.wait([self._failure], timeout=CHECK_SECONDS)
            if self._failure.done():
                self._failure.result()
            async with asyncio.timeout(ANSWER_SECONDS):
                await check()


@contextlib.asynccontextmanager
async def stopping(stop: Callable[[], Awaitable[None]]) -> AsyncGenerator[None]:
    """Stop a broker after the block, however often the task is cancelled meanwhile.

    A connection that stays half open would keep messages from other consumers. Errors of the stop, which takes at most
    GRACE_SECONDS and CLOSE_SECONDS, are ignored.
    """
    try:
        yield
    finally:
        await complete(_stop(stop))


async def _stop(stop: Callable[[], Awaitable[None]]) -> None:
    with contextlib.suppress(Exception):
        async with asyncio.timeout(GRACE_SECONDS + CLOSE_SECONDS):
            await stop()

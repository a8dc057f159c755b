"""A line to RabbitMQ: a connection that is made again whenever it is lost, the queue behind it, what errors mean."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import cast
from urllib.parse import urlsplit

import structlog
from aio_pika import connect
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import (
    AMQPConnectionError,
    AuthenticationError,
    ChannelNotFoundEntity,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from pamqp.common import Arguments

from signoff.core.retry import Backoff, wait_seconds
from signoff.infra.tasks import was_cancelled

BACKOFF = Backoff(first_seconds=0.5, ceiling_seconds=15)
STEADY_SECONDS = 10.0
HEARTBEAT_SECONDS = 5  # the client gives up after three and a bit of them, the server after two
ANSWER_SECONDS = 5.0
CLOSE_SECONDS = 0.5
QUEUE: Arguments = {"x-queue-type": "quorum", "x-max-length": 10_000}
DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}
Session = Callable[[AbstractConnection, Callable[[], None]], Awaitable[None]]
log = structlog.get_logger()
# What they have to say is said here, in one line.
logging.getLogger("aiormq").setLevel(logging.CRITICAL)
logging.getLogger("aio_pika").setLevel(logging.CRITICAL)


class AmqpConnection:
    """One connection, kept: `talk` is begun on it, and on another one whenever it ends. It says when it is at work."""

    def __init__(self, url: str, name: str, talk: Session, random_float: Callable[[], float]) -> None:
        self._url = url
        self._name = name
        self._session = talk
        self._random_float = random_float
        self._task: asyncio.Task[None] | None = None
        self._is_over = False
        self.is_up = False

    @property
    def is_open(self) -> bool:
        """Whether anybody wants this line."""
        return self._task is not None

    def open(self) -> None:
        """Connects, soon, and again and again if need be."""
        if self._task is None and not self._is_over:
            self._task = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        """Hangs up, for good.

        It may take more than one try: Python 3.11's `wait_for`, which aiormq uses, can swallow a cancellation
        (python/cpython#86296).
        """
        self._is_over = True
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=2 * CLOSE_SECONDS)

    async def _keep(self) -> None:
        loop, attempt = asyncio.get_running_loop(), 0
        while True:
            began = loop.time()
            try:
                async with open_connection(self._url, self._name) as connection:
                    await self._session(connection, self._up)
            except (Exception, asyncio.CancelledError) as error:
                if was_cancelled(error):
                    raise
                forget_cancellations()
                log.warning(
                    "no line to RabbitMQ; connecting again", line=self._name, error=describe_error(error, self._url)
                )
            finally:
                self.is_up = False
            attempt = 1 if loop.time() - began > STEADY_SECONDS else attempt + 1
            await asyncio.sleep(wait_seconds(BACKOFF, attempt, self._random_float()))

    def _up(self) -> None:
        self.is_up = True


@contextlib.asynccontextmanager
async def open_connection(url: str, name: str) -> AsyncGenerator[AbstractConnection]:
    """A connection; `name` is what RabbitMQ shows of it. It is closed after the block, at once if need be."""
    if "heartbeat=" not in url:
        url += f"{'&' if '?' in url else '?'}heartbeat={HEARTBEAT_SECONDS}"
    async with asyncio.timeout(ANSWER_SECONDS):
        connection = await connect(url, client_properties={"connection_name": name})
    try:
        yield connection
    finally:
        await _hang_up(connection)


async def ensure_queue(connection: AbstractConnection, name: str) -> None:
    """Makes the queue, unless there is one of that name: that is used as it is."""
    channel = await connection.channel()
    try:
        await channel.declare_queue(name, passive=True)
    except ChannelNotFoundEntity:
        channel = await connection.channel()
        await channel.declare_queue(name, durable=True, arguments=QUEUE)
    await channel.close()


async def describe_broker(url: str, queue_name: str) -> str:
    """What there is at `url`, in words. Raises ConnectionError with what to do."""
    try:
        async with open_connection(url, "signoff doctor") as connection, asyncio.timeout(ANSWER_SECONDS):
            channel = await connection.channel()
            try:
                queue = await channel.declare_queue(queue_name, passive=True)
            except ChannelNotFoundEntity:
                return f"RabbitMQ answers; the queue {queue_name} is made when it is needed"
            told = queue.declaration_result
            return f"RabbitMQ answers; queue {queue_name}: bells {told.message_count}, listeners {told.consumer_count}"
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is told
        raise ConnectionError(f"{describe_error(error, url)}. Without it jobs are found a little later.") from None


def ensure_connected(connection: AbstractConnection) -> None:
    """Raises ConnectionError when the connection is lost, CancelledError when this task is to end."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    if not connection.connected.is_set():
        raise ConnectionError("the connection was closed")


def forget_cancellations() -> None:
    """Takes back what a task group that failed leaves behind in Python 3.11: one cancellation of this task."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


def describe_error(error: BaseException, url: str) -> str:
    """What went wrong, and what to do where that is known; never the password."""
    error = first_error(error)
    address = urlsplit(url)
    place = f"{address.hostname}:{address.port or DEFAULT_PORTS[address.scheme]}"
    match error:
        case AuthenticationError() | ProbableAuthenticationError():
            return f"{place} refuses the login {address.username!r}; are the user and the password right?"
        case InvalidFrameError() if "Connection.OpenOk" in str(error):
            host = address.path[1:] or "/"
            return f"{place} refuses the virtual host {host!r}; is there one, and may {address.username!r} use it?"
        case TimeoutError():
            return f"{place} did not answer within {ANSWER_SECONDS:.0f} s"
        case AMQPConnectionError():
            return f"{place} cannot be reached: {error}"
        case _:
            return f"{place}: {error or repr(error)}"


def first_error(error: BaseException) -> BaseException:
    """`error`, or the first one in the group that it is."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error


async def _hang_up(connection: AbstractConnection) -> None:
    """Closes the connection. On a dead line aio-pika's own close takes long, and for ever when it is cancelled."""
    transport, connection.transport = connection.transport, None
    await connection.close()
    if transport is not None:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CLOSE_SECONDS):
                await transport.connection.close()

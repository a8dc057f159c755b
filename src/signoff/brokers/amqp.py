"""RabbitMQ: a connection that reconnects when it is lost, the declaration of a queue, and the state of the broker."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable

import structlog
from aio_pika import Connection
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity
from pamqp.common import Arguments
from yarl import URL

from signoff.core.retry import Backoff, wait_seconds
from signoff.infra.broker_faults import describe_fault
from signoff.infra.tasks import was_cancelled

BACKOFF = Backoff(first_seconds=0.5, ceiling_seconds=15)
# A connection that lasted longer than this starts the backoff again from its first wait.
STABLE_SECONDS = 10.0
HEARTBEAT_SECONDS = 5  # the client gives up after a little more than three heartbeats, the server after two
ANSWER_SECONDS = 5.0  # limit of each request to RabbitMQ
CLOSE_SECONDS = 0.5
QUEUE_ARGUMENTS: Arguments = {"x-queue-type": "quorum", "x-max-length": 10_000}
Session = Callable[[AbstractConnection, Callable[[], None]], Awaitable[None]]
"""Use of one connection until it fails. It calls its second argument once the connection can be used."""
log = structlog.get_logger()
# The warnings of these libraries repeat what `describe_fault` puts in one line.
logging.getLogger("aiormq").setLevel(logging.CRITICAL)
logging.getLogger("aio_pika").setLevel(logging.CRITICAL)


class AmqpConnection:
    """Connection that runs `session`, and after its end connects again, with BACKOFF, and runs it again."""

    def __init__(self, url: str, name: str, session: Session, random_float: Callable[[], float]) -> None:
        self._url = url
        self._name = name
        self._session = session
        self._random_float = random_float
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        self.is_up = False
        """True from the time at which the session reports that the connection can be used, until it is lost."""

    @property
    def is_open(self) -> bool:
        """True once `open` was called."""
        return self._task is not None

    def open(self) -> None:
        """Start connecting in the background. Calls after the first, or after `close`, do nothing."""
        if self._task is None and not self._is_closed:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Close the connection for good.

        The task may have to be cancelled more than once: Python 3.11's `wait_for`, which aiormq uses, can swallow a
        cancellation (python/cpython#86296).
        """
        self._is_closed = True
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=2 * CLOSE_SECONDS)

    async def _run(self) -> None:
        loop, attempt = asyncio.get_running_loop(), 0
        while True:
            started_at = loop.time()
            try:
                async with open_connection(self._url, self._name) as connection:
                    await self._session(connection, self._mark_up)
            except (Exception, asyncio.CancelledError) as error:
                if was_cancelled(error):
                    raise
                forget_cancellations()
                log.warning("rabbitmq_disconnected", connection=self._name, error=describe_fault(error, self._url))
            finally:
                self.is_up = False
            attempt = 1 if loop.time() - started_at > STABLE_SECONDS else attempt + 1
            await asyncio.sleep(wait_seconds(BACKOFF, attempt, self._random_float()))

    def _mark_up(self) -> None:
        self.is_up = True


@contextlib.asynccontextmanager
async def open_connection(url: str, name: str) -> AsyncGenerator[AbstractConnection]:
    """Open a connection for the duration of the block. `name` is shown in RabbitMQ's management pages.

    The end of the block closes it within CLOSE_SECONDS. Raises TimeoutError and the errors of aio-pika.
    """
    if "heartbeat=" not in url:
        url += f"{'&' if '?' in url else '?'}heartbeat={HEARTBEAT_SECONDS}"
    connection = Connection(URL(url), client_properties={"connection_name": name})
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await connection.connect()
        yield connection
    finally:
        await _close(connection)


async def ensure_queue(connection: AbstractConnection, name: str) -> None:
    """Declare the queue as durable quorum queue. A queue that exists is used as it is."""
    channel = await connection.channel()
    try:
        await channel.declare_queue(name, passive=True)
    except ChannelNotFoundEntity:
        channel = await connection.channel()
        await channel.declare_queue(name, durable=True, arguments=QUEUE_ARGUMENTS)
    await channel.close()


async def describe_broker(url: str, queue_name: str) -> str:
    """Return a sentence on the state of the broker at `url`. Raises ConnectionError with a remedy."""
    try:
        async with open_connection(url, "signoff doctor") as connection, asyncio.timeout(ANSWER_SECONDS):
            channel = await connection.channel()
            try:
                queue = await channel.declare_queue(queue_name, passive=True)
            except ChannelNotFoundEntity:
                return f"RabbitMQ answers; the queue {queue_name} does not exist yet and is declared on first use"
            counts = queue.declaration_result
            numbers = f"wake-ups {counts.message_count}, consumers {counts.consumer_count}"
            return f"RabbitMQ answers; queue {queue_name}: {numbers}"
    except Exception as error:  # noqa: BLE001 -- every error means that the broker cannot be used
        raise ConnectionError(f"{describe_fault(error, url)}. Without RabbitMQ, workers poll the database.") from None


def ensure_connected(connection: AbstractConnection) -> None:
    """Raise ConnectionError if the connection is lost, CancelledError if the current task is being cancelled."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    if not connection.connected.is_set():
        raise ConnectionError("the connection was closed")


def forget_cancellations() -> None:
    """Withdraw the pending cancellation of this task that a failed task group leaves behind in Python 3.11."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


async def _close(connection: AbstractConnection) -> None:
    """Close the connection.

    aio-pika's own close takes long on a dead connection, and never ends when it is cancelled.
    """
    transport, connection.transport = connection.transport, None
    await connection.close()
    if transport is not None:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CLOSE_SECONDS):
                await transport.connection.close()

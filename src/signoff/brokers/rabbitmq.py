"""Broker on RabbitMQ: a durable queue of job ids, which every process publishes to and every worker consumes.

The properties of the queue are explained in docs/decisions/005-send-wake-ups-through-a-quorum-queue.md.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable

import structlog
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import DeliveryError, PublishError

from signoff.brokers.amqp import ANSWER_SECONDS, AmqpConnection, ensure_connected, ensure_queue

APP_ID = "signoff"
MAX_UNSENT = 10_000
# Bounds of one batch of wake-ups.
MAX_MESSAGES = 8
MAX_IDS_PER_MESSAGE = 100
PREFETCH = 32
# Time without a call of `poll` after which this process stops to consume, so that others get the messages.
IDLE_SECONDS = 0.25
FLUSH_SECONDS = 1.5
# Least time between two log events about dropped wake-ups.
REPORT_SECONDS = 60.0
log = structlog.get_logger()


class RabbitBroker:
    """See `broker.Broker`. Publishes and consumes on two connections: RabbitMQ may block one that publishes."""

    def __init__(self, url: str, *, queue_name: str, random_float: Callable[[], float]) -> None:
        self._publisher = WakeUpPublisher(queue_name)
        self._consumer = WakeUpConsumer(queue_name)
        self._publish_connection = AmqpConnection(url, "signoff publisher", self._publisher.publish_on, random_float)
        self._consume_connection = AmqpConnection(url, "signoff consumer", self._consumer.consume_on, random_float)

    @property
    def is_connected(self) -> bool:
        """See `broker.Broker`. Includes the consuming connection only where this process polls."""
        return self._publish_connection.is_up and (
            self._consume_connection.is_up or not self._consume_connection.is_open
        )

    async def start(self) -> None:
        """See `broker.Broker`."""
        self._publish_connection.open()

    def notify(self, job_id: str, priority: int) -> None:
        """See `broker.Broker`. Without a connection it wakes this process now, and the others after a reconnect."""
        self._publisher.notify(job_id)
        self._publish_connection.open()
        self.wake_local()

    def wake_local(self) -> None:
        """See `broker.Broker`."""
        if not self.is_connected:
            self._consumer.wake_up.set()

    async def poll(self, seconds: float) -> bool:
        """See `broker.Broker`."""
        self._consume_connection.open()
        return await self._consumer.poll(seconds)

    async def close(self) -> None:
        """See `broker.Broker`. Messages that were received and not claimed return to the queue."""
        if self._publish_connection.is_open:
            await self._publisher.flush(FLUSH_SECONDS)
        await self._publish_connection.close()
        await self._consume_connection.close()


class WakeUpPublisher:
    """Queue of job ids to publish, in memory, sent in few messages. Beyond MAX_UNSENT ids, the oldest are dropped."""

    def __init__(self, queue_name: str) -> None:
        self._queue_name = queue_name
        self._unsent = OrderedDict[str, None]()
        self._changed = asyncio.Event()
        self._all_sent = asyncio.Event()
        self._all_sent.set()
        self._dropped = 0
        self._reported_at = float("-inf")

    def notify(self, job_id: str) -> None:
        """Publish the id soon; an id that is waiting already is sent once."""
        self._add([job_id])
        self._all_sent.clear()
        self._changed.set()

    async def flush(self, seconds: float) -> None:
        """Wait until all ids are sent, at most `seconds`."""
        await wait_until_set(self._all_sent, seconds)

    async def publish_on(self, connection: AbstractConnection, on_ready: Callable[[], None]) -> None:
        """Publish ids on `connection` until an error occurs, and raise that."""
        connection.close_callbacks.add(self._on_close)
        async with asyncio.timeout(ANSWER_SECONDS):
            await ensure_queue(connection, self._queue_name)
            channel = await connection.channel(on_return_raises=True)
        on_ready()
        while True:
            ensure_connected(connection)
            while self._unsent:
                await self._send_batch(channel)
                self._report_dropped()
            self._all_sent.set()
            await self._changed.wait()
            self._changed.clear()

    def _on_close(self, _connection: object, _error: object) -> None:
        self._changed.set()  # so that `publish_on` notices the loss

    async def _send_batch(self, channel: AbstractChannel) -> None:
        """Send the oldest ids, spread over a few messages, since each message wakes one worker."""
        count = min(len(self._unsent), MAX_MESSAGES * MAX_IDS_PER_MESSAGE)
        batch_size = -(-count // MAX_MESSAGES)
        ids = [self._unsent.popitem(last=False)[0] for _ in range(count)]
        try:
            async with asyncio.timeout(ANSWER_SECONDS), asyncio.TaskGroup() as group:
                for start in range(0, count, batch_size):
                    group.create_task(self._publish(channel, ids[start : start + batch_size]))
        except BaseException:
            self._add(ids)  # some may have arrived; a second wake-up does no harm
            raise

    async def _publish(self, channel: AbstractChannel, ids: list[str]) -> None:
        body = "\n".join(ids).encode(errors="replace")
        message = Message(body, delivery_mode=DeliveryMode.PERSISTENT, content_type="text/plain", app_id=APP_ID)
        try:
            await channel.default_exchange.publish(message, self._queue_name, mandatory=True)
        except PublishError:
            raise ConnectionError(f"the queue {self._queue_name} was deleted") from None
        except DeliveryError:  # the queue is full and rejects new messages
            self._dropped += len(ids)

    def _add(self, ids: Iterable[str]) -> None:
        for job_id in ids:
            self._unsent[job_id] = None
        while len(self._unsent) > MAX_UNSENT:
            self._unsent.popitem(last=False)
            self._dropped += 1

    def _report_dropped(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._dropped and now > self._reported_at + REPORT_SECONDS:
            log.warning("wake_ups_dropped", count=self._dropped)  # no loss: workers also poll every second
            self._dropped, self._reported_at = 0, now


class WakeUpConsumer:
    """Receiver of wake-ups: a message is acknowledged once a worker has polled it and then claimed jobs."""

    def __init__(self, queue_name: str) -> None:
        self._queue_name = queue_name
        self._pollers = 0
        self._changed = asyncio.Event()
        self.wake_up = asyncio.Event()
        """Set when a wake-up has come that no call of `poll` has returned yet."""
        # The newest message that has arrived, that `poll` has returned, and whose jobs were claimed after that. Each
        # stands for all earlier messages too.
        self._received: AbstractIncomingMessage | None = None
        self._polled: AbstractIncomingMessage | None = None
        self._claimed: AbstractIncomingMessage | None = None
        self._failure = ""

    async def poll(self, seconds: float) -> bool:
        """See `broker.Broker`."""
        if self._polled is not None:
            self._claimed, self._polled = self._polled, None
        self._pollers += 1
        self._changed.set()
        try:
            if not await wait_until_set(self.wake_up, seconds):
                return False
        finally:
            self._pollers -= 1
            self._changed.set()
        self.wake_up.clear()
        self._polled, self._received = self._received, None
        return True

    async def consume_on(self, connection: AbstractConnection, on_ready: Callable[[], None]) -> None:
        """Consume messages on `connection` while a worker polls, until an error occurs, and raise that."""
        connection.close_callbacks.add(self._on_close)
        async with asyncio.timeout(ANSWER_SECONDS):
            await ensure_queue(connection, self._queue_name)
        on_ready()
        while True:
            ensure_connected(connection)
            if self._pollers:
                await self._consume_while_polled(connection)
            await self._changed.wait()
            self._changed.clear()

    def _on_close(self, _connection: object, _error: object) -> None:
        self._changed.set()  # so that `consume_on` notices the loss

    async def _consume_while_polled(self, connection: AbstractConnection) -> None:
        """Consume until no worker has polled for IDLE_SECONDS. Messages not claimed by then return to the queue."""
        async with asyncio.timeout(ANSWER_SECONDS):
            channel = await self._start_consumer(connection)
        while await wait_until_set(self._changed, None if self._pollers else IDLE_SECONDS):
            self._changed.clear()
            ensure_connected(connection)
            if self._failure:
                raise ConnectionError(self._failure)
            await self._acknowledge()
        self.wake_up.clear()
        self._changed.set()
        async with asyncio.timeout(ANSWER_SECONDS):
            await channel.close()

    async def _start_consumer(self, connection: AbstractConnection) -> AbstractChannel:
        """Start consuming and return the channel. Closing it returns unacknowledged messages to the queue."""
        channel = await connection.channel(publisher_confirms=False)
        await channel.set_qos(prefetch_count=PREFETCH)
        self._received = self._polled = self._claimed = None
        self._failure = ""

        async def handle(message: AbstractIncomingMessage) -> None:
            if message.app_id != APP_ID:
                fail(f"the queue {self._queue_name} has a message of another program; set another `queue_name`")
            elif not channel.is_closed:
                self._received = message
                self.wake_up.set()

        def fail(reason: str) -> None:
            self._failure = reason
            self._changed.set()

        channel.close_callbacks.add(lambda _channel, error: fail(f"the channel was closed: {error}"))
        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(lambda _frame: fail(f"the queue {self._queue_name} was deleted"))
        queue = await channel.get_queue(self._queue_name, ensure=False)
        await queue.consume(handle)
        return channel

    async def _acknowledge(self) -> None:
        message, self._claimed = self._claimed, None
        if message is not None:
            async with asyncio.timeout(ANSWER_SECONDS):
                await message.ack(multiple=True)


async def wait_until_set(event: asyncio.Event, seconds: float | None) -> bool:
    """Return True once `event` is set, and False after `seconds` (None: no limit)."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True

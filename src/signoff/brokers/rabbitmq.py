"""The doorbell through RabbitMQ: a durable queue of job ids that every process rings, and every worker hears.

Why the queue is as it is: docs/decisions/005-send-wake-ups-through-a-quorum-queue.md.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable

import structlog
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import DeliveryError, PublishError

from signoff.brokers.amqp import ANSWER_SECONDS, AmqpConnection, ensure_connected, ensure_queue

APP_ID = "signoff"
UNSENT_LIMIT = 10_000
MESSAGES_AT_ONCE = 8
IDS_A_MESSAGE = 100
PREFETCH = 32
GIVE_BACK_SECONDS = 0.25
FLUSH_SECONDS = 1.5
REPORT_SECONDS = 60.0
log = structlog.get_logger()


class RabbitBroker:
    """See `broker.Broker`. Rings on one line and listens on another: RabbitMQ may halt one that publishes."""

    def __init__(self, url: str, *, queue_name: str, random_float: Callable[[], float]) -> None:
        self._publisher = WakeUpPublisher(queue_name)
        self._consumer = WakeUpConsumer(queue_name)
        self._out = AmqpConnection(url, "signoff rings", self._publisher.publish_on, random_float)
        self._in = AmqpConnection(url, "signoff listens", self._consumer.consume_on, random_float)

    @property
    def is_connected(self) -> bool:
        """See `broker.Broker`: the line out is up, and the line in wherever somebody listens."""
        return self._out.is_up and (self._in.is_up or not self._in.is_open)

    async def start(self) -> None:
        """See `broker.Broker`."""
        self._out.open()

    def notify(self, job_id: str, priority: int) -> None:
        """See `broker.Broker`. Without a line it rings in this process, and in the others once there is one."""
        self._publisher.notify(job_id)
        self._out.open()
        self.wake_local()

    def wake_local(self) -> None:
        """See `broker.Broker`."""
        if not self.is_connected:
            self._consumer.wake_up.set()

    async def poll(self, seconds: float) -> bool:
        """See `broker.Broker`."""
        self._in.open()
        return await self._consumer.poll(seconds)

    async def close(self) -> None:
        """See `broker.Broker`. What was heard and not claimed goes back into the queue."""
        if self._out.is_open:
            await self._publisher.flush(FLUSH_SECONDS)
        await self._out.close()
        await self._in.close()


class WakeUpPublisher:
    """The bells that are to be rung: kept in memory, sent in few messages. When there are too many, the oldest go."""

    def __init__(self, queue_name: str) -> None:
        self._queue_name = queue_name
        self._unsent = OrderedDict[str, None]()
        self._pending = asyncio.Event()
        self._all_sent = asyncio.Event()
        self._all_sent.set()
        self._dropped = 0
        self._reported_at = float("-inf")

    def notify(self, job_id: str) -> None:
        """Sends the id, soon; what is rung twice meanwhile is sent once."""
        self._keep([job_id])
        self._all_sent.clear()
        self._pending.set()

    async def flush(self, seconds: float) -> None:
        """Waits until everything is sent, at most `seconds`."""
        await within(seconds, self._all_sent)

    async def publish_on(self, connection: AbstractConnection, is_up: Callable[[], None]) -> None:
        """Sends what is rung, until something goes wrong, which raises."""
        connection.close_callbacks.add(self._lost)
        async with asyncio.timeout(ANSWER_SECONDS):
            await ensure_queue(connection, self._queue_name)
            channel = await connection.channel(on_return_raises=True)
        is_up()
        while True:
            ensure_connected(connection)
            while self._unsent:
                await self._send_some(channel)
                self._report()
            self._all_sent.set()
            await self._pending.wait()
            self._pending.clear()

    def _lost(self, _connection: object, _error: object) -> None:
        self._pending.set()  # to notice it

    async def _send_some(self, channel: AbstractChannel) -> None:
        """Sends what fits into a few messages, spread over them, since each of them wakes one worker."""
        count = min(len(self._unsent), MESSAGES_AT_ONCE * IDS_A_MESSAGE)
        share = -(-count // MESSAGES_AT_ONCE)
        taken = [self._unsent.popitem(last=False)[0] for _ in range(count)]
        try:
            async with asyncio.timeout(ANSWER_SECONDS), asyncio.TaskGroup() as group:
                for start in range(0, count, share):
                    group.create_task(self._publish(channel, taken[start : start + share]))
        except BaseException:
            self._keep(taken)  # some may have arrived; a bell may ring twice
            raise

    async def _publish(self, channel: AbstractChannel, ids: list[str]) -> None:
        body = "\n".join(ids).encode(errors="replace")
        message = Message(body, delivery_mode=DeliveryMode.PERSISTENT, content_type="text/plain", app_id=APP_ID)
        try:
            await channel.default_exchange.publish(message, self._queue_name, mandatory=True)
        except PublishError:
            raise ConnectionError(f"the queue {self._queue_name} is gone") from None
        except DeliveryError:  # it is full, and of a kind that refuses more
            self._dropped += len(ids)

    def _keep(self, ids: Iterable[str]) -> None:
        for job_id in ids:
            self._unsent[job_id] = None
        while len(self._unsent) > UNSENT_LIMIT:
            self._unsent.popitem(last=False)
            self._dropped += 1

    def _report(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._dropped and now > self._reported_at + REPORT_SECONDS:
            log.warning("bells were dropped; workers look for jobs every second anyway", bells=self._dropped)
            self._dropped, self._reported_at = 0, now


class WakeUpConsumer:
    """The bells that come: kept in memory until they are heard, acknowledged when what they rang for is claimed."""

    def __init__(self, queue_name: str) -> None:
        self._queue_name = queue_name
        self._listeners = 0
        self._has_listener = asyncio.Event()
        self.wake_up = asyncio.Event()
        # The last message that came, was heard, was heard and claimed. Each stands for all those before it.
        self._received: AbstractIncomingMessage | None = None
        self._polled: AbstractIncomingMessage | None = None
        self._claimed: AbstractIncomingMessage | None = None
        self._trouble = ""

    async def poll(self, seconds: float) -> bool:
        """See `broker.Broker`."""
        if self._polled is not None:
            self._claimed, self._polled = self._polled, None
        self._listeners += 1
        self._has_listener.set()
        try:
            if not await within(seconds, self.wake_up):
                return False
        finally:
            self._listeners -= 1
            self._has_listener.set()
        self.wake_up.clear()
        self._polled, self._received = self._received, None
        return True

    async def consume_on(self, connection: AbstractConnection, is_up: Callable[[], None]) -> None:
        """Takes bells from the queue while somebody listens, until something goes wrong, which raises."""
        connection.close_callbacks.add(self._lost)
        async with asyncio.timeout(ANSWER_SECONDS):
            await ensure_queue(connection, self._queue_name)
        is_up()
        while True:
            ensure_connected(connection)
            if self._listeners:
                await self._listen_for_a_while(connection)
            await self._has_listener.wait()
            self._has_listener.clear()

    def _lost(self, _connection: object, _error: object) -> None:
        self._has_listener.set()  # to notice it

    async def _listen_for_a_while(self, connection: AbstractConnection) -> None:
        """Takes bells until nobody has listened for a moment. What is not heard and claimed by then is for others."""
        async with asyncio.timeout(ANSWER_SECONDS):
            channel = await self._consuming(connection)
        while await within(None if self._listeners else GIVE_BACK_SECONDS, self._has_listener):
            self._has_listener.clear()
            ensure_connected(connection)
            if self._trouble:
                raise ConnectionError(self._trouble)
            await self._acknowledge()
        self.wake_up.clear()
        self._has_listener.set()
        async with asyncio.timeout(ANSWER_SECONDS):
            await channel.close()

    async def _consuming(self, connection: AbstractConnection) -> AbstractChannel:
        """A channel on which bells come. Closing it gives back what is not acknowledged."""
        channel = await connection.channel(publisher_confirms=False)
        await channel.set_qos(prefetch_count=PREFETCH)
        self._received = self._polled = self._claimed = None
        self._trouble = ""

        async def come(message: AbstractIncomingMessage) -> None:
            if message.app_id != APP_ID:
                stop(f"the queue {self._queue_name} has a message of somebody else's; Signoff needs one of its own")
            elif not channel.is_closed:
                self._received = message
                self.wake_up.set()

        def stop(trouble: str) -> None:
            self._trouble = trouble
            self._has_listener.set()

        channel.close_callbacks.add(lambda _channel, error: stop(f"the channel was closed: {error}"))
        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(lambda _frame: stop(f"the queue {self._queue_name} is gone"))
        queue = await channel.get_queue(self._queue_name, ensure=False)
        await queue.consume(come)
        return channel

    async def _acknowledge(self) -> None:
        claimed, self._claimed = self._claimed, None
        if claimed is not None:
            async with asyncio.timeout(ANSWER_SECONDS):
                await claimed.ack(multiple=True)


async def within(seconds: float | None, event: asyncio.Event) -> bool:
    """Whether `event` is set before `seconds` have passed; None: it may take for ever."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True

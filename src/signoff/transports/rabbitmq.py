"""Streams over RabbitMQ: durable queues, prefetch, persistent and mandatory messages, publisher confirms."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import ChannelNotFoundEntity, DeliveryError, PublishError
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue

from signoff.core.delivery import OutgoingMessage
from signoff.core.stream import IncomingMessage, Stream
from signoff.errors import Undelivered
from signoff.transport import OnMessage
from signoff.transports.liveness import ANSWER_SECONDS, LivenessWatch, stopping
from signoff.transports.options import BROKER, SUBSCRIBER
from signoff.transports.publisher import PublisherConnection

HEARTBEAT_SECONDS = 5
# Less than the timeout of the callers: aio-pika keeps retrying a connection that no caller waits for.
CONNECT_SECONDS = ANSWER_SECONDS / 2
# FastStream's broker always reconnects by itself. This is long enough that we stop it first and connect again.
RECONNECT_SECONDS = 3600.0


class RabbitTransport:
    """See `transport.Transport`."""

    is_exclusive = False

    def __init__(self, url: str, stream: Stream) -> None:
        self._url = url if "heartbeat=" in url else f"{url}{'&' if '?' in url else '?'}heartbeat={HEARTBEAT_SECONDS}"
        self._stream = stream
        confirmed = Channel(publisher_confirms=True, on_return_raises=True)
        self._publisher = PublisherConnection(lambda watch: self._broker(watch, confirmed), self._connect)

    async def listen(self, on_message: OnMessage, is_up: Callable[[], None]) -> None:
        """See `transport.Transport`."""
        watch = LivenessWatch()
        broker = self._broker(watch, Channel(prefetch_count=self._stream.max_handlers))
        subscriber = broker.subscriber(
            RabbitQueue(self._stream.requests, declare=False, durable=True),
            **SUBSCRIBER,
        )

        @subscriber
        async def handle(message: AbstractIncomingMessage) -> None:
            try:
                is_redelivery = bool(message.redelivered)
                await on_message(IncomingMessage(message.body, message.message_id, is_redelivery=is_redelivery))
                await message.ack()
            except Exception as error:  # noqa: BLE001 -- `listen` fails, and RabbitMQ sends the message again
                watch.fail(error)

        async with stopping(broker.stop):
            async with asyncio.timeout(ANSWER_SECONDS):
                connection = await broker.connect()
                await _ensure_queue(connection, self._stream.requests)
                await broker.start()
                channel = await broker.config.channel_manager.get_channel()  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType, reportAttributeAccessIssue]
                await _watch_channel(channel, watch, self._stream.requests)
            is_up()
            await watch.run(lambda: _ensure_consumed(connection, self._stream.requests))

    async def publish(self, message: OutgoingMessage) -> None:
        """See `transport.Transport`."""
        async with asyncio.timeout(ANSWER_SECONDS):
            broker = await self._publisher.get()
            try:
                await broker.publish(
                    message.body,
                    routing_key=message.address,
                    mandatory=True,
                    persist=True,
                    message_id=message.headers["message-id"],
                    correlation_id=message.headers["message-id"],
                    content_type="application/json",
                    timeout=ANSWER_SECONDS,
                )
            except (DeliveryError, PublishError) as error:
                self._publisher.mark_lost(broker)  # the queue may be deleted; a new connection declares it
                raise Undelivered(f"RabbitMQ rejected the answer for {message.address!r}: {error}") from error

    async def close(self) -> None:
        """See `transport.Transport`."""
        await self._publisher.close()

    async def _connect(self, broker: RabbitBroker) -> None:
        """Connect, and make sure that the queue for answers exists."""
        await _ensure_queue(await broker.connect(), self._stream.responses)

    def _broker(self, watch: LivenessWatch, channel: Channel) -> RabbitBroker:
        def on_close(_connection: Any, error: BaseException | None) -> None:
            watch.fail(ConnectionError(f"The connection to RabbitMQ was closed: {error}"))

        return RabbitBroker(
            self._url,
            timeout=CONNECT_SECONDS,
            fail_fast=True,
            reconnect_interval=RECONNECT_SECONDS,
            on_close=[on_close],
            default_channel=channel,
            **BROKER,
            app_id="signoff",
        )


async def _watch_channel(channel: Any, watch: LivenessWatch, name: str) -> None:
    def on_close(_channel: object, error: object) -> None:
        watch.fail(ConnectionError(f"The channel was closed: {error}"))

    def on_cancel(_frame: object) -> None:
        watch.fail(ConnectionError(f"The queue {name} was deleted."))

    channel.close_callbacks.add(on_close)
    underlay = await channel.get_underlay_channel()
    underlay.on_consumer_cancel_callbacks.add(on_cancel)


async def _ensure_queue(connection: aio_pika.RobustConnection, name: str) -> None:
    """Declare the queue as durable quorum queue. A queue that exists is used as it is."""
    try:
        await _inspect_queue(connection, name)
    except ChannelNotFoundEntity:
        channel, options = await connection.channel(), {"x-queue-type": QueueType.QUORUM.value}
        await channel.declare_queue(name, durable=True, arguments=options, robust=False)
        await channel.close()


async def _ensure_consumed(connection: aio_pika.RobustConnection, name: str) -> None:
    queue = await _inspect_queue(connection, name)
    if queue.declaration_result.consumer_count == 0:
        raise ConnectionError(f"The queue {name} has no consumer.")


async def _inspect_queue(connection: aio_pika.RobustConnection, name: str) -> Any:
    channel = await connection.channel()
    try:
        return await channel.declare_queue(name, passive=True, robust=False)
    finally:
        with contextlib.suppress(Exception):
            await channel.close()

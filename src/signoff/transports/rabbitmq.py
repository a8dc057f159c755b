"""Streams over RabbitMQ: durable queues, prefetch, persistent and mandatory messages, publisher confirms."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import (
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    PublishError,
)
from aiormq.exceptions import ChannelAccessRefused
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

from signoff.core.delivery import OutgoingMessage
from signoff.core.stream import IncomingMessage, Stream
from signoff.errors import Undelivered
from signoff.infra.broker_faults import own_cancellations
from signoff.infra.tasks import complete
from signoff.transport import OnMessage
from signoff.transports.liveness import ANSWER_SECONDS, LivenessWatch, stopping
from signoff.transports.options import BROKER, SUBSCRIBER
from signoff.transports.publisher import PublisherConnection

HEARTBEAT_SECONDS = 5
# Less than the timeout of the callers: aio-pika keeps retrying a connection that no caller waits for.
CONNECT_SECONDS = ANSWER_SECONDS / 2
# FastStream's broker always reconnects by itself. This is long enough that we stop it first and connect again.
RECONNECT_SECONDS = 3600.0
APP_ID = "signoff"
# Argument of a new queue, and the parameter of the URL that sets it.
QUEUE_TYPE = "x-queue-type"
# RabbitMQ returns a message, as if its queue is gone or full.
RETURNS = (DeliveryError, PublishError)
# RabbitMQ closes the channel for a message that is too large, or that this user may not write.
REFUSALS = (ChannelAccessRefused, ChannelPreconditionFailed)


class RabbitTransport:
    """See `transport.Transport`."""

    is_exclusive = False

    def __init__(self, url: str, stream: Stream) -> None:
        self._url, self._queue_type = _parse_url(url)
        self._stream = stream
        confirmed = Channel(publisher_confirms=True, on_return_raises=True)
        self._publisher = PublisherConnection(lambda watch: self._broker(watch, confirmed), self._connect)

    async def listen(self, on_message: OnMessage, on_ready: Callable[[], None]) -> None:
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
                await on_message(_incoming(message))
                await message.ack()
            except Exception as error:  # noqa: BLE001 -- `listen` fails, and RabbitMQ sends the message again
                watch.fail(error)

        async with stopping(broker.stop):
            async with asyncio.timeout(ANSWER_SECONDS):
                connection = await complete(broker.connect())
                for name in (self._stream.requests, self._stream.responses):
                    await _ensure_queue(connection, name, self._queue_type)
                await broker.start()
                channel = await broker.config.channel_manager.get_channel()  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType, reportAttributeAccessIssue]
                await _watch_channel(channel, watch, self._stream.requests)
            on_ready()
            await watch.run(lambda: _ensure_consumed(connection, self._stream.requests))

    async def publish(self, message: OutgoingMessage) -> None:
        """See `transport.Transport`."""
        async with asyncio.timeout(ANSWER_SECONDS):
            broker = await self._publisher.get()
            try:
                with own_cancellations():
                    await _publish(broker.publish, message)
            except RETURNS as error:
                self._publisher.mark_lost(broker)  # the queue may be deleted; a new connection declares it
                raise _undelivered(error) from error
            except Exception:  # noqa: BLE001 -- the channel is closed, perhaps because of another answer
                self._publisher.mark_lost(broker)
                await self._publish_alone(message)

    async def close(self) -> None:
        """See `transport.Transport`."""
        await self._publisher.close()

    async def _publish_alone(self, message: OutgoingMessage) -> None:
        """Publish on a channel of its own: if RabbitMQ closes a channel for one answer, all answers on it fail."""
        connection = await (await self._publisher.get()).connect()
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        try:
            await _publish(channel.default_exchange.publish, message)
        except (*RETURNS, *REFUSALS) as error:
            raise _undelivered(error) from error
        finally:
            await channel.close()

    async def _connect(self, broker: RabbitBroker) -> None:
        """Connect, and make sure that the queue for answers exists."""
        await _ensure_queue(await complete(broker.connect()), self._stream.responses, self._queue_type)

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
        )


def _parse_url(url: str) -> tuple[str, str | None]:
    """Return the URL for the client library, and the type of new queues in its parameter `x-queue-type`."""
    parts = urlsplit(url)
    parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
    queue_type = parameters.pop(QUEUE_TYPE, None)
    parameters.setdefault("heartbeat", str(HEARTBEAT_SECONDS))
    return urlunsplit(parts._replace(query=urlencode(parameters))), queue_type


def _incoming(message: AbstractIncomingMessage) -> IncomingMessage:
    return IncomingMessage(
        message.body,
        message.message_id,
        is_redelivery=bool(message.redelivered),
        encoding=message.content_encoding,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
    )


async def _publish(publish: Callable[..., Awaitable[object]], message: OutgoingMessage) -> None:
    """Publish the answer for the queue that the caller has named, or for the usual one if that is gone."""
    message_id = message.headers["message-id"]
    answer = aio_pika.Message(
        message.body,
        message_id=message_id,
        correlation_id=message.headers.get("correlation-id", message_id),
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        app_id=APP_ID,
    )
    if (reply_to := message.headers.get("reply-to")) is not None:
        with contextlib.suppress(*RETURNS):
            await publish(answer, routing_key=reply_to, mandatory=True, timeout=ANSWER_SECONDS)
            return
    await publish(answer, routing_key=message.address, mandatory=True, timeout=ANSWER_SECONDS)


def _undelivered(error: Exception) -> Undelivered:
    return Undelivered(f"RabbitMQ rejected the answer: {error}")


async def _watch_channel(channel: Any, watch: LivenessWatch, name: str) -> None:
    def on_close(_channel: object, error: object) -> None:
        watch.fail(ConnectionError(f"The channel was closed: {error}"))

    def on_cancel(_frame: object) -> None:
        watch.fail(ConnectionError(f"The queue {name} was deleted."))

    channel.close_callbacks.add(on_close)
    underlay = await channel.get_underlay_channel()
    underlay.on_consumer_cancel_callbacks.add(on_cancel)


async def _ensure_queue(connection: aio_pika.RobustConnection, name: str, queue_type: str | None) -> None:
    """Declare the queue as durable, of the type or else of the default type. A queue that exists is used as it is."""
    try:
        await _inspect_queue(connection, name)
    except ChannelNotFoundEntity:
        channel = await connection.channel()
        options = None if queue_type is None else {QUEUE_TYPE: queue_type}
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

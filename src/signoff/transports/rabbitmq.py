"""Streams through RabbitMQ: durable queues, prefetch, persistent and mandatory messages, confirms."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import ChannelNotFoundEntity, DeliveryError, PublishError
from faststream import AckPolicy
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue

from signoff.core.delivery import OutgoingMessage
from signoff.core.stream import IncomingMessage, Stream
from signoff.errors import Undelivered
from signoff.transport import OnMessage
from signoff.transports.liveness import ANSWER_SECONDS, GRACE_SECONDS, LivenessWatch, as_it_came, ended, unread
from signoff.transports.publisher import PublisherConnection

HEARTBEAT_SECONDS = 5
# Sooner than whoever waits gives up: a connection that nobody waits for is tried on and on.
CONNECT_SECONDS = ANSWER_SECONDS / 2
# FastStream's broker connects again by itself, if no sooner; we stop it before that, and begin anew.
RECONNECT_SECONDS = 3600.0


class RabbitTransport:
    """See `transport.Transport`."""

    is_exclusive = False

    def __init__(self, url: str, stream: Stream) -> None:
        self._url = url if "heartbeat=" in url else f"{url}{'&' if '?' in url else '?'}heartbeat={HEARTBEAT_SECONDS}"
        self._stream = stream
        confirmed = Channel(publisher_confirms=True, on_return_raises=True)
        self._out = PublisherConnection(lambda watch: self._broker(watch, confirmed), self._reach)

    async def listen(self, take: OnMessage, is_up: Callable[[], None]) -> None:
        """See `transport.Transport`."""
        watch = LivenessWatch()
        broker = self._broker(watch, Channel(prefetch_count=self._stream.max_handlers))
        subscriber = broker.subscriber(
            RabbitQueue(self._stream.requests, declare=False, durable=True),
            ack_policy=AckPolicy.MANUAL,
            no_reply=True,
            parser=as_it_came,
            decoder=unread,
        )

        @subscriber
        async def handle(message: AbstractIncomingMessage) -> None:
            try:
                await take(IncomingMessage(message.body, message.message_id, is_redelivery=bool(message.redelivered)))
                await message.ack()
            except Exception as error:  # noqa: BLE001 -- the line is lost, and the message comes again
                watch.fail(error)

        async with ended(broker.stop):
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
            broker = await self._out.connected()
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
                self._out.lost(broker)  # the queue may have gone: it is looked for again
                raise Undelivered(f"RabbitMQ did not take the answer: {error}") from error

    async def close(self) -> None:
        """See `transport.Transport`."""
        await self._out.close()

    async def _reach(self, broker: RabbitBroker) -> None:
        """Connects, and makes sure of the queue that answers go to."""
        await _ensure_queue(await broker.connect(), self._stream.responses)

    def _broker(self, watch: LivenessWatch, channel: Channel) -> RabbitBroker:
        def lost(_connection: Any, error: BaseException | None) -> None:
            watch.fail(ConnectionError(f"the connection was closed: {error}"))

        return RabbitBroker(
            self._url,
            timeout=CONNECT_SECONDS,
            fail_fast=True,
            reconnect_interval=RECONNECT_SECONDS,
            on_close=[lost],
            default_channel=channel,
            graceful_timeout=GRACE_SECONDS,
            logger=None,
            apply_types=False,
            app_id="signoff",
        )


async def _watch_channel(channel: Any, watch: LivenessWatch, name: str) -> None:
    def closed(_channel: object, error: object) -> None:
        watch.fail(ConnectionError(f"the channel was closed: {error}"))

    def cancelled(_frame: object) -> None:
        watch.fail(ConnectionError(f"the queue {name} is gone"))

    channel.close_callbacks.add(closed)
    underlay = await channel.get_underlay_channel()
    underlay.on_consumer_cancel_callbacks.add(cancelled)


async def _ensure_queue(connection: aio_pika.RobustConnection, name: str) -> None:
    """Makes the queue, unless there is one of that name: that is used as it is."""
    try:
        await _looked_up(connection, name)
    except ChannelNotFoundEntity:
        channel = await connection.channel()
        await channel.declare_queue(
            name, durable=True, arguments={"x-queue-type": QueueType.QUORUM.value}, robust=False
        )
        await channel.close()


async def _ensure_consumed(connection: aio_pika.RobustConnection, name: str) -> None:
    queue = await _looked_up(connection, name)
    if queue.declaration_result.consumer_count == 0:
        raise ConnectionError(f"nobody consumes the queue {name}")


async def _looked_up(connection: aio_pika.RobustConnection, name: str) -> Any:
    channel = await connection.channel()
    try:
        return await channel.declare_queue(name, passive=True, robust=False)
    finally:
        with contextlib.suppress(Exception):
            await channel.close()

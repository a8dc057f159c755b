"""Streams through NATS JetStream: a durable pull consumer, explicit acknowledgements, and deduplicated answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from faststream import AckPolicy
from faststream.nats import NatsBroker, PullSub
from nats.aio.msg import Msg
from nats.errors import MaxPayloadError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy as JsAckPolicy
from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from signoff.core.delivery import OutgoingMessage
from signoff.core.stream import IncomingMessage, Stream
from signoff.errors import Undelivered
from signoff.transport import OnMessage
from signoff.transports.liveness import ANSWER_SECONDS, GRACE_SECONDS, LivenessWatch, as_it_came, ended, unread
from signoff.transports.publisher import PublisherConnection

FETCH_SECONDS = 1.0
# A message that nobody has acknowledged, nor said to be in progress, comes again after this.
ACK_SECONDS = 30.0
DUPLICATE_SECONDS = 120.0
ANSWERS_KEPT_SECONDS = 7 * 24 * 3600.0


class NatsTransport:
    """See `transport.Transport`."""

    is_exclusive = False

    def __init__(self, url: str, stream: Stream) -> None:
        self._url = url
        self._stream = stream
        self._place: str | None = None  # the name of JetStream's stream that answers go to
        self._out = PublisherConnection(self._broker, NatsBroker.connect)

    async def listen(self, take: OnMessage, is_up: Callable[[], None]) -> None:
        """See `transport.Transport`."""
        watch, requests, durable = (
            LivenessWatch(),
            self._stream.requests,
            f"signoff-{self._stream.name.replace('.', '_')}",
        )
        broker, held = self._broker(watch), dict[str, Msg]()
        async with ended(broker.stop):
            async with asyncio.timeout(ANSWER_SECONDS):
                js = _jetstream(await broker.connect())
                place = await _stream_of(js, requests, RetentionPolicy.WORK_QUEUE, None)
                handlers = self._stream.max_handlers
                await _put_consumer(js, place, durable, requests, handlers)
                subscriber: Any = broker.subscriber(  # pyright: ignore[reportCallIssue, reportUnknownVariableType]
                    requests,
                    durable=durable,
                    stream=place,
                    pull_sub=PullSub(batch_size=handlers, timeout=FETCH_SECONDS),
                    max_workers=handlers,  # pyright: ignore[reportArgumentType]
                    ack_policy=AckPolicy.MANUAL,
                    no_reply=True,
                    parser=as_it_came,
                    decoder=unread,
                )

                @subscriber
                async def handle(message: Msg) -> None:
                    held[message.reply] = message
                    try:
                        await take(IncomingMessage(message.data, _id_of(message)))
                        await message.ack_sync(timeout=ANSWER_SECONDS)
                    except Exception as error:  # noqa: BLE001 -- the line is lost, and the message comes again
                        watch.fail(error)
                    finally:
                        del held[message.reply]

                async def look() -> None:
                    await js.consumer_info(place, durable)
                    for message in list(held.values()):
                        await message.in_progress()

                await broker.start()
            is_up()
            await watch.run(look)

    async def publish(self, message: OutgoingMessage) -> None:
        """See `transport.Transport`."""
        name = message.headers["message-id"]
        async with asyncio.timeout(ANSWER_SECONDS):
            broker = await self._out.connected()
            js = _jetstream(broker.connection)
            known = self._place
            try:
                place = known or await _stream_of(js, message.address, RetentionPolicy.LIMITS, ANSWERS_KEPT_SECONDS)
                await broker.publish(
                    message.body,
                    message.address,
                    headers={"Nats-Msg-Id": name, "message-id": name, "content-type": "application/json"},
                    correlation_id=name,
                    stream=place,
                    timeout=ANSWER_SECONDS,
                )
            except (MaxPayloadError, APIError, NoStreamResponseError) as error:
                self._place = None
                if known is not None and not isinstance(error, MaxPayloadError):
                    raise  # it may be elsewhere by now
                raise Undelivered(f"NATS did not take the answer: {error}") from error
            self._place = place

    async def close(self) -> None:
        """See `transport.Transport`."""
        await self._out.close()

    def _broker(self, watch: LivenessWatch) -> NatsBroker:
        async def lost() -> None:
            watch.fail(ConnectionError("the connection was closed"))

        return NatsBroker(
            self._url,
            connect_timeout=5,
            allow_reconnect=False,
            max_reconnect_attempts=0,
            ping_interval=5,
            max_outstanding_pings=2,
            disconnected_cb=lost,
            closed_cb=lost,
            graceful_timeout=GRACE_SECONDS,
            logger=None,
            apply_types=False,
        )


def _jetstream(connection: Any) -> JetStreamContext:
    return cast("JetStreamContext", connection.jetstream(timeout=ANSWER_SECONDS))


def _id_of(message: Msg) -> str:
    """Where the message lies, and since when: a stream that was made anew counts from 1 again."""
    lies = message.metadata
    return f"{lies.stream}/{lies.sequence.stream}@{lies.timestamp.timestamp()}"


async def _stream_of(js: JetStreamContext, subject: str, retention: RetentionPolicy, kept_seconds: float | None) -> str:
    """The name of JetStream's stream with that subject; one is made where there is none."""
    try:
        return await js.find_stream_name_by_subject(subject)
    except NotFoundError:
        name = "signoff-" + "".join(letter if letter.isalnum() or letter == "-" else "_" for letter in subject)
        config = StreamConfig(
            name=name,
            subjects=[subject],
            retention=retention,
            max_age=kept_seconds,
            duplicate_window=DUPLICATE_SECONDS,
        )
        await cast("Any", js).add_stream(config)
        return name


async def _put_consumer(js: JetStreamContext, place: str, durable: str, subject: str, handlers: int) -> None:
    """Makes JetStream's consumer, or changes the one that there is: subscribing to it leaves that as it is."""
    config = ConsumerConfig(
        name=durable,
        durable_name=durable,
        filter_subject=subject,
        ack_policy=JsAckPolicy.EXPLICIT,
        ack_wait=ACK_SECONDS,
        max_ack_pending=4 * handlers,
    )
    await cast("Any", js).add_consumer(place, config)

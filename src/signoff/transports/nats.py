"""Streams over NATS JetStream: a durable pull consumer, explicit acknowledgements, deduplicated answers."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

from faststream.nats import JStream, NatsBroker, PullSub
from nats.aio.msg import Msg
from nats.errors import MaxPayloadError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy as JsAckPolicy
from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from signoff.core.delivery import OutgoingMessage
from signoff.core.stream import IncomingMessage, Stream
from signoff.errors import Undelivered
from signoff.infra.tasks import complete
from signoff.transport import OnMessage
from signoff.transports.liveness import ANSWER_SECONDS, LivenessWatch, stopping
from signoff.transports.options import BROKER, SUBSCRIBER
from signoff.transports.publisher import PublisherConnection

FETCH_SECONDS = 1.0
# JetStream sends a message again after this time without an acknowledgement or an `in_progress`.
ACK_SECONDS = 30.0
# Time for which JetStream drops an answer with an id that it has stored already.
DUPLICATE_SECONDS = 120.0
RETENTION_SECONDS = 7 * 24 * 3600.0


class NatsTransport:
    """See `transport.Transport`."""

    is_exclusive = False

    def __init__(self, url: str, stream: Stream) -> None:
        self._url = url
        self._stream = stream
        self._answer_stream: str | None = None  # name of the JetStream stream that answers go to
        self._publisher = PublisherConnection(self._broker, lambda broker: complete(broker.connect()))

    async def listen(self, on_message: OnMessage, on_ready: Callable[[], None]) -> None:
        """See `transport.Transport`."""
        watch, requests = LivenessWatch(), self._stream.requests
        durable = f"signoff-{self._stream.name.replace('.', '_')}"
        broker, unacked = self._broker(watch), dict[str, Msg]()
        async with stopping(broker.stop):
            async with asyncio.timeout(ANSWER_SECONDS):
                js = _jetstream(await complete(broker.connect()))
                stream = await _ensure_stream(js, requests, RetentionPolicy.WORK_QUEUE, None)
                await _ensure_stream(js, self._stream.responses, RetentionPolicy.LIMITS, RETENTION_SECONDS)
                handlers = self._stream.max_handlers
                await _put_consumer(js, stream, durable, requests, handlers)
                subscriber: Any = broker.subscriber(  # pyright: ignore[reportCallIssue, reportUnknownVariableType]
                    requests,
                    durable=durable,
                    stream=JStream(stream, declare=False),  # FastStream would change the stream's configuration
                    pull_sub=PullSub(batch_size=handlers, timeout=FETCH_SECONDS),
                    max_workers=handlers,  # pyright: ignore[reportArgumentType]
                    **SUBSCRIBER,
                )

                @subscriber
                async def handle(message: Msg) -> None:
                    unacked[message.reply] = message
                    try:
                        await on_message(_incoming(message))
                        await message.ack_sync(timeout=ANSWER_SECONDS)
                    except Exception as error:  # noqa: BLE001 -- `listen` fails, and NATS sends the message again
                        watch.fail(error)
                    finally:
                        del unacked[message.reply]

                async def check() -> None:
                    await js.consumer_info(stream, durable)
                    for message in list(unacked.values()):
                        await message.in_progress()

                await broker.start()
            on_ready()
            await watch.run(check)

    async def publish(self, message: OutgoingMessage) -> None:
        """See `transport.Transport`."""
        message_id = message.headers["message-id"]
        async with asyncio.timeout(ANSWER_SECONDS):
            broker = await self._publisher.get()
            js = _jetstream(broker.connection)
            known = self._answer_stream
            try:
                stream = known or await _ensure_stream(js, message.address, RetentionPolicy.LIMITS, RETENTION_SECONDS)
                await broker.publish(
                    message.body,
                    message.address,
                    headers={"Nats-Msg-Id": message_id, "message-id": message_id, "content-type": "application/json"},
                    correlation_id=message.headers.get("correlation-id", message_id),
                    stream=stream,
                    timeout=ANSWER_SECONDS,
                )
            except (MaxPayloadError, APIError, NoStreamResponseError) as error:
                self._answer_stream = None
                if known is not None and not isinstance(error, MaxPayloadError):
                    raise  # the subject may belong to another stream by now
                raise Undelivered(f"NATS rejected the answer for {message.address!r}: {error}") from error
            self._answer_stream = stream

    async def close(self) -> None:
        """See `transport.Transport`."""
        await self._publisher.close()

    def _broker(self, watch: LivenessWatch) -> NatsBroker:
        async def on_disconnect() -> None:
            watch.fail(ConnectionError("The connection to NATS was lost."))

        return NatsBroker(
            self._url,
            connect_timeout=5,
            allow_reconnect=False,
            max_reconnect_attempts=1,  # at the first connection, 0 would mean to try for ever
            reconnect_time_wait=0,
            ping_interval=5,
            max_outstanding_pings=2,
            disconnected_cb=on_disconnect,
            closed_cb=on_disconnect,
            **BROKER,
        )


def _jetstream(connection: Any) -> JetStreamContext:
    return cast("JetStreamContext", connection.jetstream(timeout=ANSWER_SECONDS))


def _incoming(message: Msg) -> IncomingMessage:
    headers = {name.lower(): value for name, value in (message.headers or {}).items()}
    return IncomingMessage(
        message.data,
        _message_id(message),
        encoding=headers.get("content-encoding"),
        correlation_id=headers.get("correlation_id"),
    )


def _message_id(message: Msg) -> str:
    """Return the position of a message, with its time: a stream that was deleted and created again counts from 1."""
    metadata = message.metadata
    return f"{metadata.stream}/{metadata.sequence.stream}@{metadata.timestamp.timestamp()}"


async def _ensure_stream(js: JetStreamContext, subject: str, retention: RetentionPolicy, max_age: float | None) -> str:
    """Return the name of the JetStream stream with that subject.

    If there is none, create one whose messages last `max_age` seconds.
    """
    try:
        return await js.find_stream_name_by_subject(subject)
    except NotFoundError:
        name = "signoff-" + "".join(letter if letter.isalnum() or letter == "-" else "_" for letter in subject)
        config = StreamConfig(
            name=name, subjects=[subject], retention=retention, max_age=max_age, duplicate_window=DUPLICATE_SECONDS
        )
        await cast("Any", js).add_stream(config)
        return name


async def _put_consumer(js: JetStreamContext, stream: str, durable: str, subject: str, handlers: int) -> None:
    """Create or update the JetStream consumer; subscribing alone would leave an existing one unchanged."""
    config = ConsumerConfig(
        name=durable,
        durable_name=durable,
        filter_subject=subject,
        ack_policy=JsAckPolicy.EXPLICIT,
        ack_wait=ACK_SECONDS,
        max_ack_pending=4 * handlers,
    )
    await cast("Any", js).add_consumer(stream, config)

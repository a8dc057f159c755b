"""Streams over Kafka: a consumer group with offsets committed by hand, answers confirmed by all replicas."""

import asyncio
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordTooLargeError
from faststream.kafka import KafkaBroker
from faststream.security import SASLPlaintext

from signoff.core.delivery import OutgoingMessage
from signoff.core.stream import IncomingMessage, Stream
from signoff.errors import Undelivered
from signoff.transport import OnMessage
from signoff.transports.liveness import ANSWER_SECONDS, LivenessWatch, stopping
from signoff.transports.options import BROKER, SUBSCRIBER
from signoff.transports.publisher import PublisherConnection

DEFAULT_PORT = 9092
MAX_MESSAGE_BYTES = 64 * 1024 * 1024


class KafkaTransport:
    """See `transport.Transport`.

    One message is handled at a time, whatever `max_handlers` is: to commit an offset acknowledges all before it.
    """

    is_exclusive = False

    def __init__(self, url: str, stream: Stream) -> None:
        self._url = url
        self._stream = stream
        self._publisher = PublisherConnection(lambda _: self.broker(), KafkaBroker.start)

    async def listen(self, on_message: OnMessage, on_ready: Callable[[], None]) -> None:
        """See `transport.Transport`."""
        watch, broker = LivenessWatch(), self.broker()
        self.subscribe(broker, on_message, watch)
        async with stopping(broker.stop):
            async with asyncio.timeout(ANSWER_SECONDS * 3):  # joining a group takes longer than other requests
                await broker.start()
            on_ready()
            await watch.run(lambda: _ensure_connected(broker))

    def subscribe(self, broker: KafkaBroker, on_message: OnMessage, watch: LivenessWatch) -> None:
        """Let `broker` pass incoming messages to `on_message`; report failures to `watch`."""
        subscriber: Any = cast("Any", broker).subscriber(
            self._stream.requests,
            group_id=f"signoff-{self._stream.name}",
            auto_offset_reset="earliest",
            max_poll_records=1,
            max_partition_fetch_bytes=MAX_MESSAGE_BYTES,
            **SUBSCRIBER,
        )

        @subscriber
        async def handle(record: ConsumerRecord[Any, Any]) -> None:
            try:
                await on_message(_incoming(record))
                if subscriber.consumer is not None:
                    await subscriber.consumer.commit()
            except Exception as error:
                watch.fail(error)
                raise

    async def publish(self, message: OutgoingMessage) -> None:
        """See `transport.Transport`."""
        async with asyncio.timeout(ANSWER_SECONDS):
            broker = await self._publisher.get()
            await self.send(broker, message)

    async def send(self, broker: KafkaBroker, message: OutgoingMessage) -> None:
        """Publish `message` through `broker`. Raises Undelivered if it is too large."""
        message_id = message.headers["message-id"]
        try:
            await broker.publish(
                message.body,
                message.address,
                headers={"message-id": message_id, "content-type": "application/json"},
                correlation_id=message.headers.get("correlation-id", message_id),
                no_confirm=False,
            )
        except (MessageSizeTooLargeError, RecordTooLargeError) as error:
            raise Undelivered(f"Kafka rejected the answer for {message.address!r}: {error}") from error
        except KafkaError:
            self._publisher.mark_lost(broker)
            raise

    async def close(self) -> None:
        """See `transport.Transport`."""
        await self._publisher.close()

    def broker(self) -> KafkaBroker:
        """Return FastStream's broker for the stream's URL, not connected."""
        servers, security = _parse_url(self._url)
        return KafkaBroker(
            servers,
            security=security,
            acks="all",
            request_timeout_ms=int(ANSWER_SECONDS * 1000),
            max_request_size=MAX_MESSAGE_BYTES,
            **BROKER,
        )


def _incoming(record: ConsumerRecord[Any, Any]) -> IncomingMessage:
    headers = {name.lower(): (value or b"").decode(errors="replace") for name, value in record.headers}
    return IncomingMessage(
        record.value or b"",
        _message_id(record),
        encoding=headers.get("content-encoding") or None,
        correlation_id=headers.get("correlation_id") or None,
    )


def _message_id(record: ConsumerRecord[Any, Any]) -> str:
    """Return the position of a record, with its time: a topic that was deleted and created again counts from 0."""
    return f"{record.topic}/{record.partition}/{record.offset}@{record.timestamp}"


def _parse_url(url: str) -> tuple[list[str], SASLPlaintext | None]:
    """Parse `kafka://user:password@host:9092,host` to the list of servers and the credentials."""
    netloc = urlsplit(url).netloc
    login, _, hosts = netloc.rpartition("@")
    servers = [host if ":" in host else f"{host}:{DEFAULT_PORT}" for host in hosts.split(",")]
    user, _, password = login.partition(":")
    security = SASLPlaintext(unquote(user), unquote(password), use_ssl=False) if user else None
    return servers, security


async def _ensure_connected(broker: KafkaBroker) -> None:
    if not await broker.ping(timeout=ANSWER_SECONDS / 2):
        raise ConnectionError("Kafka does not respond.")

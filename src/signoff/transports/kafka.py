"""Streams through Kafka: a consumer group whose offsets are committed by hand, and answers that all replicas have."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordTooLargeError
from faststream import AckPolicy
from faststream.kafka import KafkaBroker
from faststream.security import SASLPlaintext

from signoff.core.delivery import OutgoingMessage
from signoff.core.stream import IncomingMessage, Stream
from signoff.errors import Undelivered
from signoff.transport import OnMessage
from signoff.transports.liveness import ANSWER_SECONDS, GRACE_SECONDS, LivenessWatch, as_it_came, ended, unread
from signoff.transports.publisher import PublisherConnection

DEFAULT_PORT = 9092
LARGEST_BYTES = 64 * 1024 * 1024


class KafkaTransport:
    """See `transport.Transport`. Takes one message at a time, `max_handlers` or not: a commit acknowledges all that
    came before it.
    """

    is_exclusive = False

    def __init__(self, url: str, stream: Stream) -> None:
        self._url = url
        self._stream = stream
        self._out = PublisherConnection(lambda _: self.broker(), KafkaBroker.start)

    async def listen(self, take: OnMessage, is_up: Callable[[], None]) -> None:
        """See `transport.Transport`."""
        watch, broker = LivenessWatch(), self.broker()
        self.subscribe(broker, take, watch)
        async with ended(broker.stop):
            async with asyncio.timeout(ANSWER_SECONDS * 3):  # a group takes its time
                await broker.start()
            is_up()
            await watch.run(lambda: _ensure_reached(broker))

    def subscribe(self, broker: KafkaBroker, take: OnMessage, watch: LivenessWatch) -> None:
        """Has `broker` hand what comes to `take`."""
        subscriber = broker.subscriber(
            self._stream.requests,
            group_id=f"signoff-{self._stream.name}",
            auto_offset_reset="earliest",
            ack_policy=AckPolicy.MANUAL,
            no_reply=True,
            max_poll_records=1,
            max_partition_fetch_bytes=LARGEST_BYTES,
            parser=as_it_came,
            decoder=unread,
        )

        @subscriber
        async def handle(record: ConsumerRecord[Any, Any]) -> None:
            try:
                await take(IncomingMessage(record.value or b"", _id_of(record)))
                if subscriber.consumer is not None:
                    await cast("Any", subscriber.consumer).commit()
            except Exception as error:
                watch.fail(error)
                raise

    async def publish(self, message: OutgoingMessage) -> None:
        """See `transport.Transport`."""
        async with asyncio.timeout(ANSWER_SECONDS):
            broker = await self._out.connected()
            await self.send(broker, message)

    async def send(self, broker: KafkaBroker, message: OutgoingMessage) -> None:
        """Publishes through `broker`."""
        name = message.headers["message-id"]
        try:
            await broker.publish(
                message.body,
                message.address,
                headers={"message-id": name, "content-type": "application/json"},
                correlation_id=name,
                no_confirm=False,
            )
        except (MessageSizeTooLargeError, RecordTooLargeError) as error:
            raise Undelivered(f"Kafka did not take the answer: {error}") from error
        except KafkaError:
            self._out.lost(broker)
            raise

    async def close(self) -> None:
        """See `transport.Transport`."""
        await self._out.close()

    def broker(self) -> KafkaBroker:
        """FastStream's broker for the stream's address, not connected."""
        servers, security = _place_of(self._url)
        return KafkaBroker(
            servers,
            security=security,
            acks="all",
            enable_idempotence=True,
            request_timeout_ms=int(ANSWER_SECONDS * 1000),
            max_request_size=LARGEST_BYTES,
            graceful_timeout=GRACE_SECONDS,
            logger=None,
            apply_types=False,
        )


def _id_of(record: ConsumerRecord[Any, Any]) -> str:
    """Where the record lies, and since when: a topic that was made anew counts from 0 again."""
    return f"{record.topic}/{record.partition}/{record.offset}@{record.timestamp}"


def _place_of(url: str) -> tuple[list[str], SASLPlaintext | None]:
    """The servers of `kafka://user:password@host:9092,host`, and how to sign in."""
    netloc = urlsplit(url).netloc
    login, _, hosts = netloc.rpartition("@")
    servers = [host if ":" in host else f"{host}:{DEFAULT_PORT}" for host in hosts.split(",")]
    user, _, password = login.partition(":")
    security = SASLPlaintext(unquote(user), unquote(password), use_ssl=False) if user else None
    return servers, security


async def _ensure_reached(broker: KafkaBroker) -> None:
    if not await broker.ping(timeout=ANSWER_SECONDS / 2):
        raise ConnectionError("Kafka does not answer")

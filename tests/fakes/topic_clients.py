"""Clients of a stream: they send requests to a broker and read answers from it.

Each uses its broker's own client library, as another program would, and not FastStream.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple, Protocol

import aio_pika
import nats
import zmqtt
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from redis.asyncio import Redis

ANSWER_SECONDS = 100.0
MAX_MESSAGE_BYTES = 64 * 1024 * 1024


class Received(NamedTuple):
    """An answer, and the id of its message."""

    id: str
    body: Any


class TopicClient(Protocol):
    """A client that sends to one topic and reads from the other."""

    url: str
    requests: str
    responses: str

    async def send(self, body: bytes, message_id: str | None = None) -> None: ...
    async def get(self) -> Received: ...


class RabbitClient:
    """A client of RabbitMQ."""

    def __init__(self, url: str, prefix: str) -> None:
        self.url = url
        self.prefix = prefix
        self.requests, self.responses = f"{prefix}requests", f"{prefix}responses"
        self._received = asyncio.Queue[Received]()

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[RabbitClient]:
        """Declare both queues, as tutorials do."""
        async with await aio_pika.connect(self.url) as connection:
            self.channel = await connection.channel()
            await self.channel.declare_queue(self.requests, durable=True)
            queue = await self.channel.declare_queue(self.responses, durable=True)
            await queue.consume(self._receive)
            try:
                yield self
            finally:
                await queue.delete(if_unused=False, if_empty=False)

    async def send(self, body: bytes, message_id: str | None = None) -> None:
        message = aio_pika.Message(
            body, message_id=message_id, content_type="application/json", delivery_mode=aio_pika.DeliveryMode.PERSISTENT
        )
        await self.channel.default_exchange.publish(message, self.requests)

    async def _receive(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        await message.ack()
        assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
        self._received.put_nowait(Received(message.message_id or "", json.loads(message.body)))

    async def get(self) -> Received:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await self._received.get()


class NatsClient:
    """A client of JetStream."""

    def __init__(self, url: str, prefix: str) -> None:
        self.url = url
        self.prefix = prefix
        self.requests, self.responses = f"{prefix}requests", f"{prefix}responses"

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[NatsClient]:
        """Connect. The product makes a JetStream stream for each subject; nothing can be sent before it."""
        self.connection = await nats.connect(self.url, connect_timeout=ANSWER_SECONDS)
        self.js = self.connection.jetstream(timeout=ANSWER_SECONDS)
        self._reader: JetStreamContext.PushSubscription | None = None
        try:
            yield self
        finally:
            for subject in (self.requests, self.responses):
                with contextlib.suppress(NotFoundError):
                    await self.js.delete_stream(await self.js.find_stream_name_by_subject(subject))
            await self.connection.close()

    async def send(self, body: bytes, message_id: str | None = None) -> None:
        headers = None if message_id is None else {"Nats-Msg-Id": message_id}
        await self.js.publish(self.requests, body, headers=headers, timeout=ANSWER_SECONDS)

    async def get(self) -> Received:
        if self._reader is None:
            self._reader = await self.js.subscribe(self.responses, ordered_consumer=True)
        message = await self._reader.next_msg(timeout=ANSWER_SECONDS)
        assert message.headers is not None
        return Received(message.headers["message-id"], json.loads(message.data))


class RedisClient:
    """A client of Redis streams."""

    def __init__(self, url: str, prefix: str) -> None:
        self.url = url
        self.requests, self.responses = f"{prefix}requests", f"{prefix}responses"
        self._last = "0"

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[RedisClient]:
        """Connect."""
        async with Redis.from_url(self.url) as self._redis:
            yield self
            await self._redis.delete(self.requests, self.responses)

    async def send(self, body: bytes, message_id: str | None = None) -> None:
        await self._redis.xadd(self.requests, {"data": body})

    async def get(self) -> Received:
        async with asyncio.timeout(ANSWER_SECONDS):
            while not (entries := await self._redis.xread({self.responses: self._last}, count=1, block=200)):
                pass
        [[_, [(entry_id, fields)]]] = entries
        self._last = entry_id
        return Received(fields[b"message-id"].decode(), json.loads(fields[b"data"]))


class MqttClient:
    """A client of MQTT 5."""

    def __init__(self, url: str, prefix: str) -> None:
        self.url = url
        self.prefix = prefix
        self.requests, self.responses = f"{prefix}requests", f"{prefix}responses"

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[MqttClient]:
        """Connect, and subscribe to the answers."""
        port = int(self.url.rpartition(":")[2])
        self._client = zmqtt.MQTTClient("127.0.0.1", port, client_id=f"{self.prefix}test", version="5.0")
        async with self._client, self._client.subscribe(self.responses, qos=zmqtt.QoS.AT_LEAST_ONCE) as self._answers:
            yield self

    async def send(self, body: bytes, message_id: str | None = None) -> None:
        more = () if message_id is None else (("message-id", message_id),)
        properties = zmqtt.PublishProperties(user_properties=more)
        await self._client.publish(self.requests, body, qos=zmqtt.QoS.AT_LEAST_ONCE, properties=properties)

    async def get(self) -> Received:
        async with asyncio.timeout(ANSWER_SECONDS):
            message = await self._answers.get_message()
        assert message.properties is not None
        return Received(dict(message.properties.user_properties)["message-id"], json.loads(message.payload))


class KafkaClient:
    """A client of Kafka."""

    def __init__(self, url: str, prefix: str) -> None:
        self.url = url
        self.requests, self.responses = f"{prefix}requests", f"{prefix}responses"

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[KafkaClient]:
        """Create both topics, and read the answers from their start."""
        server = self.url.removeprefix("kafka://")
        admin = AIOKafkaAdminClient(bootstrap_servers=server)
        await admin.start()
        topics = [NewTopic(name, num_partitions=1, replication_factor=1) for name in (self.requests, self.responses)]
        await admin.create_topics(topics)
        await admin.close()
        self._producer = AIOKafkaProducer(bootstrap_servers=server, max_request_size=MAX_MESSAGE_BYTES)
        self._reader = AIOKafkaConsumer(
            bootstrap_servers=server, auto_offset_reset="earliest", max_partition_fetch_bytes=MAX_MESSAGE_BYTES
        )
        async with self._producer, self._reader:
            self._reader.assign([TopicPartition(self.responses, 0)])
            yield self

    async def send(self, body: bytes, message_id: str | None = None) -> None:
        await self._producer.send_and_wait(self.requests, body)

    async def get(self) -> Received:
        async with asyncio.timeout(ANSWER_SECONDS):
            record = await self._reader.getone()
        return Received(dict(record.headers)["message-id"].decode(), json.loads(record.value or b""))


TOPIC_CLIENTS = {
    "kafka": (KafkaClient, "kafka_url"),
    "rabbitmq": (RabbitClient, "rabbitmq_url"),
    "nats": (NatsClient, "nats_url"),
    "redis": (RedisClient, "redis_url"),
    "mqtt": (MqttClient, "mqtt_url"),
}

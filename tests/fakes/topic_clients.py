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
from redis.asyncio import Redis

ANSWER_SECONDS = 30.0


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
        """Declare both queues."""
        async with await aio_pika.connect(self.url) as connection:
            self.channel = await connection.channel()
            arguments = {"x-queue-type": "quorum"}
            await self.channel.declare_queue(self.requests, durable=True, arguments=arguments)
            queue = await self.channel.declare_queue(self.responses, durable=True, arguments=arguments)
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
        """Declare a stream with both subjects."""
        self.connection = await nats.connect(self.url)
        self.js = self.connection.jetstream()
        await self.js.add_stream(name=f"{self.prefix}all", subjects=[self.requests, self.responses])
        self._reader = await self.js.subscribe(self.responses, ordered_consumer=True)
        try:
            yield self
        finally:
            await self.js.delete_stream(f"{self.prefix}all")
            await self.connection.close()

    async def send(self, body: bytes, message_id: str | None = None) -> None:
        headers = None if message_id is None else {"Nats-Msg-Id": message_id}
        await self.js.publish(self.requests, body, headers=headers, timeout=10)

    async def get(self) -> Received:
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


TOPIC_CLIENTS = {
    "rabbitmq": (RabbitClient, "rabbitmq_url"),
    "nats": (NatsClient, "nats_url"),
    "redis": (RedisClient, "redis_url"),
    "mqtt": (MqttClient, "mqtt_url"),
}

"""Topics that an operator made are used as they are, missing ones are made at the start, and replies go where asked."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aio_pika
import pytest
import zmqtt
from nats.js.api import RetentionPolicy, StorageType, StreamConfig

from contracts.test_transport import listening, listening_with, request_message, streamed
from fakes.topic_clients import MqttClient, NatsClient, RabbitClient
from signoff.core.stream import IncomingMessage
from support.live_server import until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def rabbit(rabbitmq_url: str, prefix: str, anyio_backend: object) -> AsyncIterator[RabbitClient]:
    """Yield a client whose queues exist as classic durable ones."""
    async with RabbitClient(rabbitmq_url, prefix).connected() as client:
        yield client


@pytest.mark.parametrize(
    "config",
    [
        StreamConfig(max_age=3600, max_msgs=500, max_bytes=10**6, max_msg_size=5000, description="mine"),
        StreamConfig(retention=RetentionPolicy.WORK_QUEUE, max_msgs=500),
        StreamConfig(retention=RetentionPolicy.INTEREST, storage=StorageType.MEMORY, allow_direct=True),
    ],
    ids=["limits", "work queue", "interest, in memory"],
)
async def test_a_jetstream_stream_of_an_operator_is_listened_to_and_stays_as_it_is(
    config: StreamConfig, nats_url: str, prefix: str
) -> None:
    received = asyncio.Queue[IncomingMessage]()
    wire = NatsClient(nats_url, prefix)
    async with wire.connected():
        name = f"{prefix}own"
        config = config.evolve(name=name, subjects=[wire.requests])
        before = (await wire.js.add_stream(config)).config
        async with listening_with(wire, received.put):
            await wire.send(request_message())
            assert (await received.get()).body == request_message()
        assert (await wire.js.stream_info(name)).config == before
        # and the stream for answers, which had none, exists before the first answer
        await wire.js.find_stream_name_by_subject(wire.responses)


async def test_an_operator_is_told_why_a_stream_is_not_listened_to(tmp_path: Path, nats_url: str, prefix: str) -> None:
    wire, theirs = NatsClient(nats_url.replace("nats://", "nats://ann:s3cret@"), prefix), NatsClient(nats_url, prefix)
    config = StreamConfig(name=f"{prefix}own", subjects=[wire.requests], retention=RetentionPolicy.WORK_QUEUE)
    async with theirs.connected():
        await theirs.js.add_stream(config)
        await theirs.js.subscribe(wire.requests, durable="theirs")  # a work queue takes one consumer of a subject
        async with streamed(tmp_path, wire) as server:
            token = await server.token("admin")

            async def trouble() -> str | None:
                stream = (await server.ask("GET", f"/api/streams/{wire.requests}", token))[1]
                return stream["trouble"] if "consumer" in str(stream["trouble"]) else None  # at first, it is another

            assert "s3cret" not in await until(trouble)


@pytest.mark.parametrize(("parameter", "queue_type"), [("", None), ("?x-queue-type=quorum", "quorum")])
async def test_both_queues_exist_from_the_start_and_tutorials_can_declare_them(
    parameter: str, queue_type: str | None, rabbitmq_url: str, prefix: str
) -> None:
    wire = RabbitClient(rabbitmq_url + parameter, prefix)
    arguments = None if queue_type is None else {"x-queue-type": queue_type}
    take = asyncio.Queue[IncomingMessage]().put
    async with await aio_pika.connect(rabbitmq_url) as connection, listening_with(wire, take):
        for name in (wire.requests, wire.responses):
            channel = await connection.channel()
            await channel.declare_queue(name, passive=True)
            await channel.declare_queue(name, durable=True, arguments=arguments)
            await channel.queue_delete(name)


async def test_an_answer_goes_to_the_reply_queue_of_its_request_with_the_correlation_id(
    tmp_path: Path, rabbit: RabbitClient
) -> None:
    async with streamed(tmp_path, rabbit) as server:
        await listening(server)
        exchange = rabbit.channel.default_exchange
        replies = await rabbit.channel.declare_queue(exclusive=True)
        message = aio_pika.Message(
            gzip.compress(request_message("rpc")), correlation_id="c-1", reply_to=replies.name, content_encoding="gzip"
        )
        await exchange.publish(message, rabbit.requests)
        async with asyncio.timeout(30), replies.iterator() as iterator:
            answer = await anext(iterator)
        assert (answer.correlation_id, json.loads(answer.body)["metadata"]) == ("c-1", {"n": "rpc"})
        # a queue for replies that is gone loses no answer
        await replies.delete(if_unused=False, if_empty=False)
        message = aio_pika.Message(request_message("gone"), correlation_id="c-2", reply_to=replies.name)
        await exchange.publish(message, rabbit.requests)
        assert (await rabbit.get()).body["metadata"] == {"n": "gone"}
        # and a body that cannot be decompressed is answered
        await exchange.publish(aio_pika.Message(b"plain", content_encoding="gzip"), rabbit.requests)
        assert (await rabbit.get()).body["body"]["error"]["code"] == "bad_request"


async def test_an_answer_goes_to_the_response_topic_of_its_mqtt_request(
    tmp_path: Path, mqtt_url: str, prefix: str
) -> None:
    wire = MqttClient(mqtt_url, prefix)
    port = int(mqtt_url.rpartition(":")[2])
    async with streamed(tmp_path, wire) as server, wire.connected():
        await listening(server)
        client = zmqtt.MQTTClient("127.0.0.1", port, client_id=f"{prefix}rpc", version="5.0")
        async with client, client.subscribe(f"{prefix}replies", qos=zmqtt.QoS.AT_LEAST_ONCE) as replies:
            properties = zmqtt.PublishProperties(response_topic=f"{prefix}replies", correlation_data=b"\xff\x00id")
            await client.publish(wire.requests, request_message(), qos=zmqtt.QoS.AT_LEAST_ONCE, properties=properties)
            async with asyncio.timeout(30):
                answer = await replies.get_message()
        assert answer.properties is not None
        assert answer.properties.correlation_data == b"\xff\x00id"
        # and a topic that nobody can publish to is none
        properties = zmqtt.PublishProperties(response_topic="a/+/#")
        await wire._client.publish(wire.requests, request_message(), properties=properties)
        assert (await wire.get()).body["status_code"] == 200

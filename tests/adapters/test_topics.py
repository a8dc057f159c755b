"""Streams beyond the contract of all transports: brokers that go away, models that fail or hang, and Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from cryptography.fernet import Fernet
from faststream.kafka import TestKafkaBroker
from faststream.kafka.testing import build_message
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from contracts.test_transport import listening, request_message, streamed
from fakes.tcp_proxy import TcpProxy
from fakes.topic_clients import RabbitClient
from fakes.upstream import fake_upstream
from signoff.core.delivery import OutgoingMessage
from signoff.core.stream import IncomingMessage, Stream
from signoff.doors.topics import accept_message
from signoff.server import consumer
from signoff.transports.kafka import KafkaTransport, _parse_url
from signoff.transports.liveness import LivenessWatch
from support.live_server import Live, live, until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def wire(rabbitmq_url: str, prefix: str, anyio_backend: object) -> AsyncIterator[RabbitClient]:
    """Yield a client at the other end of a stream through RabbitMQ."""
    async with RabbitClient(rabbitmq_url, prefix).connected() as wire:
        yield wire


# Two hosts on one database need one key.
SAME_KEY: dict[str, Any] = {"secret_key": Fernet.generate_key().decode()}


async def health(server: Live, token: str, name: str) -> bool | None:
    """Return True if the stream is listened to, and None before the first attempt."""
    _, payload = await server.ask("GET", "/health/ready", token)
    return payload.get(f"stream:{name}")


async def until_health_is(server: Live, wire: RabbitClient, *, expected: bool, token: str | None = None) -> None:
    """Wait until the health of the stream is `expected`; without the store, only a token that was used before works."""
    token = token or await server.token()

    async def has_expected_health() -> bool | None:
        return (await health(server, token, wire.requests)) == expected or None

    await until(has_expected_health)


def at(proxy: TcpProxy, wire: RabbitClient) -> RabbitClient:
    """Return the stream for a server that reaches the broker through `proxy`."""
    proxied = RabbitClient(proxy.url, "")
    proxied.requests, proxied.responses = wire.requests, wire.responses
    return proxied


async def test_a_stream_reconnects_to_its_broker_and_readiness_reports_the_outage(
    tmp_path: Path, wire: RabbitClient
) -> None:
    async with TcpProxy(wire.url) as proxy, streamed(tmp_path, at(proxy, wire), backoff_max_seconds=0.2) as server:
        await listening(server)
        await proxy.shut()
        await until_health_is(server, wire, expected=False)
        assert (await server.ask("GET", "/health/ready"))[0] == 200  # an outage delays jobs and loses none
        await wire.send(request_message("meanwhile"))
        await proxy.open()
        await until_health_is(server, wire, expected=True)
        assert (await wire.get()).body["metadata"] == {"n": "meanwhile"}


async def test_a_broker_that_is_down_at_the_start_is_connected_to_later(tmp_path: Path, wire: RabbitClient) -> None:
    async with TcpProxy(wire.url) as proxy:
        await proxy.shut()
        async with streamed(tmp_path, at(proxy, wire), backoff_max_seconds=0.2) as server:
            await until_health_is(server, wire, expected=False)
            await proxy.open()
            await wire.send(request_message())
            assert (await wire.get()).body["status_code"] == 200


async def test_a_deleted_queue_is_declared_again_and_listened_to(tmp_path: Path, wire: RabbitClient) -> None:
    async with streamed(tmp_path, wire, backoff_max_seconds=0.2) as server:
        await listening(server)
        async with await aio_pika.connect(wire.url) as connection:
            channel = await connection.channel()
            await (await channel.get_queue(wire.requests)).delete(if_unused=False, if_empty=False)

            async def has_consumer() -> bool | None:
                inspector = await connection.channel()
                try:
                    queue = await inspector.declare_queue(wire.requests, passive=True)
                except aio_pika.exceptions.ChannelClosed:
                    return None
                return queue.declaration_result.consumer_count == 1 or None

            await until(has_consumer)
        await wire.send(request_message("anew"))
        assert (await wire.get()).body["metadata"] == {"n": "anew"}


async def test_answers_wait_in_the_store_while_the_broker_is_away(tmp_path: Path, wire: RabbitClient) -> None:
    async with TcpProxy(wire.url) as proxy, streamed(tmp_path, at(proxy, wire), backoff_max_seconds=0.2) as server:
        token = await server.token("admin")
        await listening(server)
        for number in range(40):
            await wire.send(request_message(str(number), "echo/delay=0.5"))

        async def all_submitted() -> bool | None:
            return (await server.ask("GET", "/api/jobs?total=1", token))[1]["total"] == 40 or None

        await until(all_submitted)
        await proxy.shut()

        async def all_ended() -> bool | None:
            return (await server.ask("GET", "/api/jobs?status=success&total=1", token))[1]["total"] == 40 or None

        await until(all_ended)
        await proxy.open()
        ids = {}
        while len(ids) < 40:
            reply = await wire.get()
            ids[reply.body["metadata"]["n"]] = reply.id
        assert {*ids} == {str(number) for number in range(40)}
        assert len({*ids.values()}) == 40


async def test_an_answer_that_its_broker_refuses_fails_with_its_reason(tmp_path: Path, wire: RabbitClient) -> None:
    async with streamed(tmp_path, wire, webhook_waits_seconds=[0.01]) as server:
        token = await server.token("admin")
        await listening(server)
        # a full queue, which refuses every message
        async with await aio_pika.connect(wire.url) as connection:
            channel = await connection.channel()
            full = f"{wire.prefix}full"
            await channel.declare_queue(full, arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
            stream = {"name": "full", "url": wire.url, "requests": f"{full}-requests", "responses": full}
            assert (await server.ask("POST", "/api/streams", token, json=stream))[0] == 201
            await channel.declare_queue(f"{full}-requests", durable=True)
            message = aio_pika.Message(request_message())
            await channel.default_exchange.publish(message, f"{full}-requests")

            async def failed_delivery() -> dict[str, Any] | None:
                jobs = (await server.ask("GET", "/api/jobs", token))[1]["data"]
                for job in jobs:
                    deliveries = (await server.ask("GET", f"/api/jobs/{job['job_id']}/deliveries", token))[1]["data"]
                    if deliveries and deliveries[0]["state"] == "failed":
                        return deliveries[0]
                return None

            failed = await until(failed_delivery)
            assert (failed["kind"], failed["attempts"], failed["host"]) == ("topic", 2, "full")
            assert "Given up after 2 attempts" in failed["error"]


async def test_a_retryable_failure_is_retried_and_answered_once(tmp_path: Path, wire: RabbitClient) -> None:
    async with streamed(tmp_path, wire) as server:
        token = await server.token("admin")
        await server.model("down", attempts=3)
        await listening(server)
        await wire.send(request_message("down", "down/status=503"))
        reply = (await wire.get()).body
        assert (reply["status_code"], reply["metadata"]) == (503, {"n": "down"})
        [job] = (await server.ask("GET", "/api/jobs", token))[1]["data"]
        events = (await server.ask("GET", f"/api/jobs/{job['job_id']}/events", token))[1]["data"]
        assert [event["verb"] for event in events] == ["submit", *["claim", "retry"] * 2, "claim", "fail"]


async def test_an_upstream_that_sends_no_json_is_answered_with_an_error(tmp_path: Path, wire: RabbitClient) -> None:
    async with streamed(tmp_path, wire) as server, fake_upstream() as upstream:
        await server.model("garbled", kind="openai", url=upstream.at("not-json"), attempts=1)
        await listening(server)
        await wire.send(request_message("x", "garbled"))
        reply = (await wire.get()).body
        assert (reply["status_code"], reply["body"]["error"]["type"], reply["metadata"]) == (
            502,
            "upstream_error",
            {"n": "x"},
        )


async def test_a_message_with_a_zero_byte_in_a_name_is_answered(
    postgres_url: str, tmp_path: Path, wire: RabbitClient
) -> None:
    async with streamed(tmp_path, wire, database_url=postgres_url) as server:
        await listening(server)
        for message in (request_message(model="echo/a\0b"), request_message(path="/v1/\0")):
            await wire.send(message)
            reply = (await wire.get()).body
            assert reply["status_code"] in {400, 404}, reply


async def test_a_model_that_hangs_does_not_stall_others_on_its_stream(tmp_path: Path, wire: RabbitClient) -> None:
    async with streamed(tmp_path, wire, concurrency=8, max_handlers=4) as server:
        await listening(server)
        await server.model("stuck")
        for number in range(100):
            await wire.send(request_message(str(number), "stuck/hang"))
        for number in range(20):
            await wire.send(request_message(f"free {number}"))
        answered = {(await wire.get()).body["metadata"]["n"] for _ in range(20)}
        assert answered == {f"free {number}" for number in range(20)}


@pytest.mark.parametrize(
    "stuck", [["one/hang", "two/hang"] * 30, [f"one/tokens={number},hang" for number in range(1, 61)]]
)
async def test_models_that_hang_leave_workers_to_others_whatever_their_names_are(
    stuck: list[str], tmp_path: Path
) -> None:
    async with live(tmp_path, concurrency=16) as server:
        token = await server.token()
        for model in ("one", "two"):
            await server.model(model)
        for model in stuck:
            await server.ask("POST", "/api/jobs", token, json={"target": model, "body": {"prompt": "x"}})
        _, job = await server.ask("POST", "/api/jobs", token, json={"target": "echo", "body": {"prompt": "x"}})
        await server.job_when(token, job["job_id"], lambda job: job["status"] == "success")


async def test_a_stream_without_an_active_user_is_not_listened_to(tmp_path: Path, wire: RabbitClient) -> None:
    stream = {"name": "one", "url": wire.url, "requests": wire.requests, "responses": wire.responses}
    async with live(tmp_path, streams=[stream | {"as": "nobody@example.com", "backoff_max_seconds": 0.2}]) as server:

        async def trouble() -> str | None:
            status = (await server.ask("GET", "/api/streams/one", await server.token("admin")))[1]
            return status["trouble"] if "nobody@example.com" in str(status["trouble"]) else None

        assert "not an active user" in await until(trouble)
        # once the user exists, the waiting message becomes a job of that user
        await wire.send(request_message())
        token = await server.token(email="nobody@example.com")
        assert (await wire.get()).body["status_code"] == 200
        assert (await server.ask("GET", "/api/jobs?total=1", token))[1]["total"] == 1
        assert (await server.ask("GET", "/api/jobs?total=1", await server.token()))[1]["total"] == 0


async def test_a_deleted_stream_returns_a_message_that_it_has_not_accepted(
    tmp_path: Path, wire: RabbitClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def never(*_: object) -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(consumer, "accept_message", never)
    async with live(tmp_path) as server:
        token = await server.token("admin")
        stream = {"name": "one", "url": wire.url, "requests": wire.requests, "responses": wire.responses}
        await server.ask("POST", "/api/streams", token, json=stream)
        await wire.send(request_message())
        await begun.wait()
        await server.ask("DELETE", "/api/streams/one", token)

        async def is_returned() -> bool | None:
            queue = await wire.channel.declare_queue(wire.requests, passive=True)
            declared = queue.declaration_result
            return (declared.message_count, declared.consumer_count) == (1, 0) or None

        await until(is_returned)
        await asyncio.wait_for(ended.wait(), 60)  # the broker may return it before its handler has ended


async def test_the_connections_of_a_deleted_stream_end(tmp_path: Path, wire: RabbitClient) -> None:
    async with (
        RabbitClient(wire.url, f"{wire.prefix}other-").connected() as other,
        TcpProxy(wire.url) as proxy,
        streamed(tmp_path, wire) as server,
    ):
        token = await server.token("admin")
        stream = {"name": "other", "url": proxy.url, "requests": other.requests, "responses": other.responses}
        await server.ask("POST", "/api/streams", token, json=stream)
        await other.send(request_message())
        await other.get()
        assert proxy.standing == 2
        await server.ask("DELETE", "/api/streams/other", token)
        await wire.send(request_message())
        await wire.get()

        async def all_hung_up() -> bool | None:
            return proxy.standing == 0 or None

        await until(all_hung_up)


async def test_callers_without_a_token_do_not_see_jobs_of_a_stream_without_a_user(tmp_path: Path) -> None:
    stream = Stream(name="k", scheme="kafka", host="h", sealed=b"", requests="requests", responses="responses")
    async with live(tmp_path, anonymous_role="user") as server:
        await accept_message(server.services, stream, IncomingMessage(request_message(), "1"))
        assert (await server.ask("GET", "/api/jobs?total=1", await server.token("admin")))[1]["total"] == 1
        assert (await server.ask("GET", "/api/jobs?total=1"))[1]["total"] == 0


async def test_an_unreachable_store_delays_messages_and_loses_none(
    tmp_path: Path, wire: RabbitClient, postgres_url: str
) -> None:
    async with (
        TcpProxy(postgres_url) as proxy,
        streamed(tmp_path, wire, database_url=proxy.url, backoff_max_seconds=0.2) as server,
    ):
        await listening(server)
        token = await server.token()
        await until_health_is(server, wire, expected=True, token=token)
        await proxy.shut()
        for number in range(5):
            await wire.send(request_message(str(number)))

        async def has_failed() -> bool | None:  # not asked over HTTP: without the store, a token is not known for long
            status = server.services.caches.streams.statuses.get(wire.requests)
            return (status is not None and not status.ok) or None

        await until(has_failed)
        await proxy.open()
        assert {(await wire.get()).body["metadata"]["n"] for _ in range(5)} == {*"01234"}


async def test_one_process_leads_an_mqtt_stream_though_another_has_the_same_host_and_pid(
    tmp_path: Path, mqtt_url: str, postgres_url: str, prefix: str
) -> None:
    stream = {"name": "one", "url": mqtt_url, "requests": f"{prefix}requests", "responses": f"{prefix}responses"}
    more: dict[str, Any] = SAME_KEY | {"database_url": postgres_url}
    more |= {"streams": [stream | {"backoff_max_seconds": 0.2}]}
    async with live(tmp_path / "1", **more) as first, live(tmp_path / "2", **more) as second:

        async def one_leads() -> bool | None:
            statuses = [server.services.caches.streams.statuses.get("one") for server in (first, second)]
            errors = [status.error for status in statuses if status is not None]
            return {*errors} == {None, "Another process listens to the stream."} or None

        await until(one_leads)


async def test_two_processes_are_two_consumers_of_redis_though_they_have_the_same_host_and_pid(
    tmp_path: Path, redis_url: str, postgres_url: str, prefix: str
) -> None:
    stream = {"name": "one", "url": redis_url, "requests": f"{prefix}requests", "responses": f"{prefix}responses"}
    more: dict[str, Any] = SAME_KEY | {"database_url": postgres_url, "streams": [stream]}
    async with live(tmp_path / "1", **more), live(tmp_path / "2", **more), Redis.from_url(redis_url) as client:

        async def both_read() -> bool | None:
            await client.xadd(stream["requests"], {"data": request_message()})
            with contextlib.suppress(ResponseError):  # the consumer group does not exist yet
                return len(await client.xinfo_consumers(stream["requests"], "signoff")) == 2 or None
            return None

        await until(both_read)
        await client.delete(stream["requests"], stream["responses"])


async def test_kafka_takes_the_specified_request_and_returns_the_specified_response(tmp_path: Path) -> None:
    # FastStream's test broker covers everything but the network.
    stream = Stream(name="k", scheme="kafka", host="h", sealed=b"", requests="requests", responses="responses")
    transport, replies = KafkaTransport("kafka://127.0.0.1", stream), asyncio.Queue[Any]()
    broker, watch = transport.broker(), LivenessWatch()
    example = {"path": "/v1/completions", "metadata": {"key": "val"}, "body": {"model": "my-model", "prompt": "Blue?"}}
    async with live(tmp_path) as server:
        await server.model("my-model")
        token = await server.token("admin")

        async def accept(incoming: IncomingMessage) -> None:
            assert incoming.id is not None
            assert incoming.id.startswith("requests/0/0@")
            await accept_message(server.services, stream, incoming)

        transport.subscribe(broker, accept, watch)

        @broker.subscriber("responses")
        async def receive_reply(body: Any) -> None:
            replies.put_nowait(body)

        async with TestKafkaBroker(broker):
            await broker.publish(json.dumps(example).encode(), "requests")
            await broker.publish(b"garbage", "requests")

            async def ended() -> list[dict[str, Any]] | None:
                jobs = (await server.ask("GET", "/api/jobs", token))[1]["data"]
                return jobs if len(jobs) == 2 and all(job["status"] in {"success", "fail"} for job in jobs) else None

            for job in await until(ended):
                message = OutgoingMessage(
                    address="responses", headers={"message-id": "m"}, body=await reply(server, job["job_id"])
                )
                await transport.send(broker, message)
            reply_by_status = {
                received["status_code"]: received for received in (replies.get_nowait() for _ in range(2))
            }
    assert reply_by_status[200]["metadata"] == {"key": "val"}
    assert reply_by_status[200]["body"]["choices"][0]["text"] == "Blue?"
    assert reply_by_status[400]["body"]["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("header", [None, b"\xff\xfe"])
async def test_a_kafka_message_is_accepted_whatever_its_headers_are(header: bytes | None) -> None:
    stream = Stream(name="k", scheme="kafka", host="h", sealed=b"", requests="requests", responses="responses")
    transport, received = KafkaTransport("kafka://127.0.0.1", stream), asyncio.Queue[IncomingMessage]()
    broker = transport.broker()
    transport.subscribe(broker, received.put, LivenessWatch())
    async with TestKafkaBroker(broker):
        [subscriber] = broker.subscribers
        record = await build_message(b"hello", "requests", serializer=None)
        await subscriber.consume(replace(record, headers=(("strange", header),)))
        assert received.get_nowait().body == b"hello"


async def reply(server: Live, job_id: str) -> bytes:
    from signoff.core.envelope import answer_message

    job = await server.services.store.jobs.get(job_id)
    assert job is not None
    return answer_message(job)


def test_the_address_of_kafka_contains_its_servers_and_the_login() -> None:
    servers, security = _parse_url("kafka://ann:p%40ss@one:9093,two")
    assert servers == ["one:9093", "two:9092"]
    assert security is not None
    assert (security.username, security.password) == ("ann", "p@ss")
    assert _parse_url("kafka://one") == (["one:9092"], None)

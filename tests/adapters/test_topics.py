"""Streams beyond what every transport keeps: brokers that go away, models that fail or hang, and Kafka."""

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
from faststream.kafka import TestKafkaBroker
from faststream.kafka.testing import build_message
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from contracts.test_transport import asked, listening, streamed
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
    """Yield the other side of a stream through RabbitMQ."""
    async with RabbitClient(rabbitmq_url, prefix).connected() as wire:
        yield wire


async def health(server: Live, name: str) -> bool | None:
    """Whether it is listened to; None before anybody has tried."""
    _, told = await server.ask("GET", "/health/ready")
    return told.get(f"stream:{name}")


async def is_heard(server: Live, wire: RabbitClient, *, heard: bool) -> None:
    """Returns when the health of the stream is so."""

    async def look() -> bool | None:
        return (await health(server, wire.requests)) == heard or None

    await until(look)


def at(proxy: TcpProxy, wire: RabbitClient) -> RabbitClient:
    """The stream as a server sees it that reaches the broker through `proxy`."""
    seen = RabbitClient(proxy.url, "")
    seen.requests, seen.responses = wire.requests, wire.responses
    return seen


async def test_a_broker_that_goes_away_is_listened_to_again_and_readiness_says_so_meanwhile(
    tmp_path: Path, wire: RabbitClient
) -> None:
    async with TcpProxy(wire.url) as proxy, streamed(tmp_path, at(proxy, wire), backoff_max_seconds=0.2) as server:
        await listening(server)
        await proxy.shut()
        await is_heard(server, wire, heard=False)
        assert (await server.ask("GET", "/health/ready"))[0] == 200  # it costs time, and no job
        await wire.send(asked("meanwhile"))
        await proxy.open()
        await is_heard(server, wire, heard=True)
        assert (await wire.get()).body["metadata"] == {"n": "meanwhile"}


async def test_a_broker_that_is_away_from_the_start_is_found_when_it_comes(tmp_path: Path, wire: RabbitClient) -> None:
    async with TcpProxy(wire.url) as proxy:
        await proxy.shut()
        async with streamed(tmp_path, at(proxy, wire), backoff_max_seconds=0.2) as server:
            await is_heard(server, wire, heard=False)
            await proxy.open()
            await wire.send(asked())
            assert (await wire.get()).body["status_code"] == 200


async def test_a_queue_that_is_deleted_is_made_anew_and_listened_to(tmp_path: Path, wire: RabbitClient) -> None:
    async with streamed(tmp_path, wire, backoff_max_seconds=0.2) as server:
        await listening(server)
        async with await aio_pika.connect(wire.url) as connection:
            channel = await connection.channel()
            await (await channel.get_queue(wire.requests)).delete(if_unused=False, if_empty=False)

            async def consumed() -> bool | None:
                look = await connection.channel()
                try:
                    queue = await look.declare_queue(wire.requests, passive=True)
                except aio_pika.exceptions.ChannelClosed:
                    return None
                return queue.declaration_result.consumer_count == 1 or None

            await until(consumed)
        await wire.send(asked("anew"))
        assert (await wire.get()).body["metadata"] == {"n": "anew"}


async def test_answers_wait_in_the_store_while_the_broker_is_away(tmp_path: Path, wire: RabbitClient) -> None:
    async with TcpProxy(wire.url) as proxy, streamed(tmp_path, at(proxy, wire), backoff_max_seconds=0.2) as server:
        token = await server.token("admin")
        await listening(server)
        for number in range(40):
            await wire.send(asked(str(number), "echo/delay=0.5"))

        async def all_came() -> bool | None:
            return (await server.ask("GET", "/api/jobs", token))[1]["total"] == 40 or None

        await until(all_came)
        await proxy.shut()

        async def all_ended() -> bool | None:
            return (await server.ask("GET", "/api/jobs?status=success", token))[1]["total"] == 40 or None

        await until(all_ended)
        await proxy.open()
        told = {}
        while len(told) < 40:
            one = await wire.get()
            told[one.body["metadata"]["n"]] = one.id
        assert {*told} == {str(number) for number in range(40)}
        assert len({*told.values()}) == 40


async def test_an_answer_that_nobody_can_take_is_given_up_loudly(tmp_path: Path, wire: RabbitClient) -> None:
    async with streamed(tmp_path, wire, webhook_waits_seconds=[0.01]) as server:
        token = await server.token("admin")
        await listening(server)
        # a queue that takes nothing more: every publish is refused
        async with await aio_pika.connect(wire.url) as connection:
            channel = await connection.channel()
            full = f"{wire.prefix}full"
            await channel.declare_queue(full, arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
            told = {"name": "full", "url": wire.url, "requests": f"{full}-requests", "responses": full}
            assert (await server.ask("POST", "/api/streams", token, json=told))[0] == 201
            await channel.declare_queue(f"{full}-requests", durable=True, arguments={"x-queue-type": "quorum"})
            message = aio_pika.Message(asked())
            await channel.default_exchange.publish(message, f"{full}-requests")

            async def given_up() -> dict[str, Any] | None:
                jobs = (await server.ask("GET", "/api/jobs", token))[1]["data"]
                for job in jobs:
                    sent = (await server.ask("GET", f"/api/jobs/{job['job_id']}/deliveries", token))[1]["data"]
                    if sent and sent[0]["state"] == "failed":
                        return sent[0]
                return None

            failed = await until(given_up)
            assert (failed["kind"], failed["attempts"], failed["host"]) == ("topic", 2, "full")
            assert "Given up after 2 attempts" in failed["error"]


async def test_what_a_retry_can_help_is_retried_by_us_and_answered_once(tmp_path: Path, wire: RabbitClient) -> None:
    async with streamed(tmp_path, wire) as server:
        token = await server.token("admin")
        await server.model("down", attempts=3)
        await listening(server)
        await wire.send(asked("down", "down/status=503"))
        told = (await wire.get()).body
        assert (told["status_code"], told["metadata"]) == (503, {"n": "down"})
        [job] = (await server.ask("GET", "/api/jobs", token))[1]["data"]
        events = (await server.ask("GET", f"/api/jobs/{job['job_id']}/events", token))[1]["data"]
        assert [event["verb"] for event in events] == ["submit", *["claim", "retry"] * 2, "claim", "fail"]


async def test_an_upstream_that_speaks_no_json_is_an_answer_with_its_reason(tmp_path: Path, wire: RabbitClient) -> None:
    async with streamed(tmp_path, wire) as server, fake_upstream() as upstream:
        await server.model("garbled", kind="openai", url=upstream.at("not-json"), attempts=1)
        await listening(server)
        await wire.send(asked("x", "garbled"))
        told = (await wire.get()).body
        assert (told["status_code"], told["body"]["error"]["type"], told["metadata"]) == (
            502,
            "upstream_error",
            {"n": "x"},
        )


async def test_a_message_with_a_zero_byte_in_a_name_is_answered(
    postgres_url: str, tmp_path: Path, wire: RabbitClient
) -> None:
    async with streamed(tmp_path, wire, database_url=postgres_url) as server:
        await listening(server)
        for message in (asked(model="echo/a\0b"), asked(path="/v1/\0")):
            await wire.send(message)
            told = (await wire.get()).body
            assert told["status_code"] in {400, 404}, told


async def test_a_model_that_hangs_stalls_nobody_else_on_its_stream(tmp_path: Path, wire: RabbitClient) -> None:
    async with streamed(tmp_path, wire, concurrency=8, max_handlers=4) as server:
        await listening(server)
        await server.model("stuck")
        for number in range(100):
            await wire.send(asked(str(number), "stuck/hang"))
        for number in range(20):
            await wire.send(asked(f"free {number}"))
        told = {(await wire.get()).body["metadata"]["n"] for _ in range(20)}
        assert told == {f"free {number}" for number in range(20)}


@pytest.mark.parametrize(
    "stuck", [["one/hang", "two/hang"] * 30, [f"one/tokens={number},hang" for number in range(1, 61)]]
)
async def test_models_that_hang_leave_room_for_others_whatever_they_are_called(
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


async def test_a_stream_whose_user_is_gone_is_not_listened_to(tmp_path: Path, wire: RabbitClient) -> None:
    stream = {"name": "one", "url": wire.url, "requests": wire.requests, "responses": wire.responses}
    async with live(tmp_path, streams=[stream | {"as": "nobody@example.com", "backoff_max_seconds": 0.2}]) as server:

        async def trouble() -> str | None:
            told = (await server.ask("GET", "/api/streams/one", await server.token("admin")))[1]
            return told["trouble"] if "nobody@example.com" in str(told["trouble"]) else None

        assert "not an active user" in await until(trouble)
        # and once there is one, what waited is theirs
        await wire.send(asked())
        token = await server.token(email="nobody@example.com")
        assert (await wire.get()).body["status_code"] == 200
        assert (await server.ask("GET", "/api/jobs", token))[1]["total"] == 1
        assert (await server.ask("GET", "/api/jobs", await server.token()))[1]["total"] == 0


async def test_a_stream_that_is_forgotten_gives_back_what_it_cannot_take(
    tmp_path: Path, wire: RabbitClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds, left = asyncio.Event(), asyncio.Event()

    async def never(*_: object) -> None:
        try:
            holds.set()
            await asyncio.Event().wait()
        finally:
            left.set()

    monkeypatch.setattr(consumer, "accept_message", never)
    async with live(tmp_path) as server:
        token = await server.token("admin")
        stream = {"name": "one", "url": wire.url, "requests": wire.requests, "responses": wire.responses}
        await server.ask("POST", "/api/streams", token, json=stream)
        await wire.send(asked())
        await holds.wait()
        await server.ask("DELETE", "/api/streams/one", token)

        async def is_given_back() -> bool | None:
            queue = await wire.channel.declare_queue(wire.requests, passive=True)
            told = queue.declaration_result
            return (told.message_count, told.consumer_count) == (1, 0) or None

        await until(is_given_back)
        assert left.is_set()


async def test_the_connections_of_a_stream_that_is_forgotten_end(tmp_path: Path, wire: RabbitClient) -> None:
    async with (
        RabbitClient(wire.url, f"{wire.prefix}other-").connected() as other,
        TcpProxy(wire.url) as proxy,
        streamed(tmp_path, wire) as server,
    ):
        token = await server.token("admin")
        stream = {"name": "other", "url": proxy.url, "requests": other.requests, "responses": other.responses}
        await server.ask("POST", "/api/streams", token, json=stream)
        await other.send(asked())
        await other.get()
        assert proxy.standing == 2
        await server.ask("DELETE", "/api/streams/other", token)
        await wire.send(asked())
        await wire.get()

        async def all_hung_up() -> bool | None:
            return proxy.standing == 0 or None

        await until(all_hung_up)


async def test_what_a_stream_asked_in_nobodys_name_is_not_for_callers_without_a_token(tmp_path: Path) -> None:
    stream = Stream(name="k", scheme="kafka", host="h", sealed=b"", requests="requests", responses="responses")
    async with live(tmp_path, anonymous_role="user") as server:
        await accept_message(server.services, stream, IncomingMessage(asked(), "1"))
        assert (await server.ask("GET", "/api/jobs", await server.token("admin")))[1]["total"] == 1
        assert (await server.ask("GET", "/api/jobs"))[1]["total"] == 0


async def test_a_store_that_is_away_costs_a_message_time_and_nothing_else(
    tmp_path: Path, wire: RabbitClient, postgres_url: str
) -> None:
    async with (
        TcpProxy(postgres_url) as proxy,
        streamed(tmp_path, wire, database_url=proxy.url, backoff_max_seconds=0.2) as server,
    ):
        await listening(server)
        await proxy.shut()
        for number in range(5):
            await wire.send(asked(str(number)))
        await is_heard(server, wire, heard=False)
        await proxy.open()
        assert {(await wire.get()).body["metadata"]["n"] for _ in range(5)} == {*"01234"}


async def test_one_process_leads_a_stream_of_mqtt_though_another_has_the_same_host_and_pid(
    tmp_path: Path, mqtt_url: str, postgres_url: str, prefix: str
) -> None:
    stream = {"name": "one", "url": mqtt_url, "requests": f"{prefix}requests", "responses": f"{prefix}responses"}
    more: dict[str, Any] = {"database_url": postgres_url, "streams": [stream | {"backoff_max_seconds": 0.2}]}
    async with live(tmp_path / "1", **more) as first, live(tmp_path / "2", **more) as second:

        async def one_leads() -> bool | None:
            told = [server.services.caches.streams.statuses.get("one") for server in (first, second)]
            troubles = [one.error for one in told if one is not None]
            return {*troubles} == {None, "Another process listens to the stream."} or None

        await until(one_leads)


async def test_two_processes_are_two_consumers_of_redis_though_they_have_the_same_host_and_pid(
    tmp_path: Path, redis_url: str, postgres_url: str, prefix: str
) -> None:
    stream = {"name": "one", "url": redis_url, "requests": f"{prefix}requests", "responses": f"{prefix}responses"}
    more: dict[str, Any] = {"database_url": postgres_url, "streams": [stream]}
    async with live(tmp_path / "1", **more), live(tmp_path / "2", **more), Redis.from_url(redis_url) as client:

        async def both_read() -> bool | None:
            await client.xadd(stream["requests"], {"data": asked()})
            with contextlib.suppress(ResponseError):  # there is no group yet
                return len(await client.xinfo_consumers(stream["requests"], "signoff")) == 2 or None
            return None

        await until(both_read)
        await client.delete(stream["requests"], stream["responses"])


async def test_kafka_has_the_documents_example_in_and_its_example_out(tmp_path: Path) -> None:
    """Against FastStream's test broker: everything but the wire."""
    stream = Stream(name="k", scheme="kafka", host="h", sealed=b"", requests="requests", responses="responses")
    transport, answers = KafkaTransport("kafka://127.0.0.1", stream), asyncio.Queue[Any]()
    broker, watch = transport.broker(), LivenessWatch()
    example = {"path": "/v1/completions", "metadata": {"key": "val"}, "body": {"model": "my-model", "prompt": "Blue?"}}
    async with live(tmp_path) as server:
        await server.model("my-model")
        token = await server.token("admin")

        async def accept(arrived: IncomingMessage) -> None:
            assert arrived.id is not None
            assert arrived.id.startswith("requests/0/0@")
            await accept_message(server.services, stream, arrived)

        transport.subscribe(broker, accept, watch)

        @broker.subscriber("responses")
        async def answered(body: Any) -> None:
            answers.put_nowait(body)

        async with TestKafkaBroker(broker):
            await broker.publish(json.dumps(example).encode(), "requests")
            await broker.publish(b"garbage", "requests")

            async def ended() -> list[dict[str, Any]] | None:
                jobs = (await server.ask("GET", "/api/jobs", token))[1]["data"]
                return jobs if len(jobs) == 2 and all(job["status"] in {"success", "fail"} for job in jobs) else None

            for job in await until(ended):
                sent = OutgoingMessage(
                    address="responses", headers={"message-id": "m"}, body=await reply(server, job["job_id"])
                )
                await transport.send(broker, sent)
            told = {one["status_code"]: one for one in (answers.get_nowait() for _ in range(2))}
    assert told[200]["metadata"] == {"key": "val"}
    assert told[200]["body"]["choices"][0]["text"] == "Blue?"
    assert told[400]["body"]["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("header", [None, b"\xff\xfe"])
async def test_a_kafka_message_comes_whatever_its_headers_are(header: bytes | None) -> None:
    stream = Stream(name="k", scheme="kafka", host="h", sealed=b"", requests="requests", responses="responses")
    transport, came = KafkaTransport("kafka://127.0.0.1", stream), asyncio.Queue[IncomingMessage]()
    broker = transport.broker()
    transport.subscribe(broker, came.put, LivenessWatch())
    async with TestKafkaBroker(broker):
        [subscriber] = broker.subscribers
        record = await build_message(b"hello", "requests", serializer=None)
        await subscriber.consume(replace(record, headers=(("strange", header),)))
        assert came.get_nowait().body == b"hello"


async def reply(server: Live, job_id: str) -> bytes:
    from signoff.core.envelope import reply_for

    job = await server.services.store.jobs.get(job_id)
    assert job is not None
    return reply_for(job)


def test_the_servers_of_kafka_and_how_to_sign_in_stand_in_its_address() -> None:
    servers, security = _parse_url("kafka://ann:p%40ss@one:9093,two")
    assert servers == ["one:9093", "two:9092"]
    assert security is not None
    assert (security.username, security.password) == ("ann", "p@ss")
    assert _parse_url("kafka://one") == (["one:9092"], None)

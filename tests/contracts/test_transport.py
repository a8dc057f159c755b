"""Contract tests of `transport.Transport`, run against the real brokers with the examples of the documentation."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from fakes.http_server import LIMIT_SECONDS
from fakes.tcp_proxy import TcpProxy
from fakes.topic_clients import TOPIC_CLIENTS, NatsClient, TopicClient
from fakes.upstream import fake_upstream
from signoff.core.delivery import OutgoingMessage
from signoff.core.stream import IncomingMessage, Stream, public_address
from signoff.errors import Undelivered
from signoff.transport import OnMessage
from signoff.transports import nats, rabbitmq, redis
from signoff.transports.registry import TransportRegistry
from support.live_server import Live, live, until

pytestmark = pytest.mark.anyio

TURNS = 200  # of the loop, in which a client notices that its connection is lost
EXAMPLE = b"""{
  "path": "/v1/completions",
  "metadata": {"key": "val"},
  "body": {"model": "my-model", "prompt": "whats your favorite color?"}
}"""


@pytest.fixture(params=TOPIC_CLIENTS)
async def wire(request: pytest.FixtureRequest, prefix: str, anyio_backend: object) -> AsyncIterator[TopicClient]:
    """Yield a client of the topics of a stream."""
    kind, url = TOPIC_CLIENTS[request.param]
    async with kind(request.getfixturevalue(url), prefix).connected() as wire:
        yield wire


def streamed(tmp_path: Path, wire: TopicClient, **more: Any) -> Any:
    """Return a server with one stream."""
    options = {"name": wire.requests, "url": wire.url, "requests": wire.requests, "responses": wire.responses}
    settings = {name: more.pop(name) for name in list(more) if name not in {"max_handlers", "user"}}
    return live(tmp_path, streams=[options | {"backoff_max_seconds": 1} | more], **settings)


def request_message(text: str = "hello", model: str = "echo", **more: Any) -> bytes:
    """Return a request message; `more` overrides its members."""
    return json.dumps({"metadata": {"n": text}, "body": {"model": model, "prompt": text}} | more).encode()


def large_message(text: str, metadata: str) -> bytes:
    """Return a request message with a text that needs no escapes; to encode a large one takes long."""
    return request_message("TEXT", metadata=metadata).replace(b"TEXT", text.encode())


async def listening(server: Live) -> None:
    """Wait until the server listens to all its streams."""

    async def is_listening() -> bool | None:
        _, health = await server.ask("GET", "/health/ready")
        return 0 < health.get("streams", 0) == health["streams_listening"] or None

    await until(is_listening)


async def test_the_example_of_the_documentation_gets_the_documented_response(tmp_path: Path, wire: TopicClient) -> None:
    async with streamed(tmp_path, wire) as server:
        await server.model("my-model")
        await listening(server)
        await wire.send(EXAMPLE)
        response = (await wire.get()).body
        assert {*response} == {"status_code", "metadata", "body"}
        assert (response["status_code"], response["metadata"]) == (200, {"key": "val"})
        assert response["body"]["choices"][0]["text"] == "whats your favorite color?"


async def test_metadata_of_every_type_is_returned_unchanged(tmp_path: Path, wire: TopicClient) -> None:
    values = [
        None,
        True,
        0,
        -1.50,
        123456789012345678901234567890,
        "é\u0000",
        [],
        [1, [2]],
        {},
        {"b": 1, "a": {"c": None}},
    ]
    async with streamed(tmp_path, wire) as server:
        await listening(server)
        for metadata in values:
            await wire.send(request_message(metadata=metadata))
        await wire.send(json.dumps({"body": {"model": "echo", "prompt": "none"}}).encode())
        responses = [json.dumps((await wire.get()).body["metadata"], sort_keys=True) for _ in range(len(values) + 1)]
        assert sorted(responses) == sorted(json.dumps(value, sort_keys=True) for value in [*values, None])


BAD_MESSAGES: dict[bytes, tuple[int, str, Any]] = {
    b"": (400, "invalid_json", None),
    b"hello": (400, "invalid_json", None),
    b"\xff\xfe\x00": (400, "invalid_json", None),
    b"[]": (400, "bad_request", None),
    b"[}": (400, "invalid_json", None),
    b'{"metadata": 1, "metadata"': (400, "invalid_json", None),
    b'{"metadata": {"n": 1}}': (400, "missing_required_parameter", {"n": 1}),
    b'{"metadata": {"n": 2}, "body": "words"}': (400, "bad_request", {"n": 2}),
    b'{"metadata": {"n": 3}, "body": {"model": 5}}': (400, "bad_request", {"n": 3}),
    b'{"metadata": {"n": 4}, "path": 5, "body": {}}': (400, "bad_request", {"n": 4}),
    b'{"metadata": {"n": 5}, "path": "/admin/../secrets", "body": {"model": "echo"}}': (400, "bad_request", {"n": 5}),
    b'{"metadata": {"n": 6}, "body": {"model": "nobody"}}': (404, "model_not_found", {"n": 6}),
    b'{"metadata": {"n": 7}, "body": {"model": "echo/status=418", "prompt": "x"}}': (418, "model_error", {"n": 7}),
    b'{"metadata": ' + b"[" * 5000 + b"]" * 5000 + b"}": (400, "invalid_json", None),
}


async def test_a_bad_message_is_answered_with_its_error_and_does_not_block_others(
    tmp_path: Path, wire: TopicClient
) -> None:
    async with streamed(tmp_path, wire, max_handlers=2) as server:
        await listening(server)
        for message in BAD_MESSAGES:
            await wire.send(message)
        await wire.send(request_message("after all that"))
        responses = [await wire.get() for _ in range(len(BAD_MESSAGES) + 1)]

        good = [response.body for response in responses if response.body["status_code"] == 200]
        assert [response["metadata"] for response in good] == [{"n": "after all that"}]
        bad = [response.body for response in responses if response.body["status_code"] != 200]
        assert all({*response["body"]["error"]} == {"message", "type", "param", "code"} for response in bad)
        errors = [
            (response["status_code"], response["body"]["error"]["code"], response["metadata"]) for response in bad
        ]
        assert sorted(errors, key=repr) == sorted(BAD_MESSAGES.values(), key=repr)
        assert len({response.id for response in responses}) == len(responses)


async def test_a_path_is_accepted_in_every_form(tmp_path: Path, wire: TopicClient) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "input": "hi"}
    paths = {
        "": "text_completion",
        "/": "text_completion",
        "v1/completions": "text_completion",
        "/openai/v1/completions": "text_completion",
        "/v1/chat/completions": "chat.completion",
        "openai/v1/chat/completions/": "chat.completion",
        "/v1/embeddings": "list",
    }
    async with streamed(tmp_path, wire) as server:
        await listening(server)
        for path in paths:
            await wire.send(json.dumps({"path": path, "metadata": path, "body": body}).encode())
        responses = [(await wire.get()).body for _ in paths]
        assert {response["metadata"]: response["body"].get("object") for response in responses} == paths


async def test_a_request_for_a_stream_is_answered_with_one_message(tmp_path: Path, wire: TopicClient) -> None:
    async with streamed(tmp_path, wire) as server, fake_upstream() as upstream:
        await server.model("streams", kind="openai", url=upstream.at("stream"))
        await listening(server)
        for model in ("echo", "streams"):
            body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "hello"}]}
            await wire.send(json.dumps({"path": "/v1/chat/completions", "metadata": model, "body": body}).encode())
        responses = {response["metadata"]: response for response in [(await wire.get()).body for _ in range(2)]}
        assert [responses[model]["status_code"] for model in ("echo", "streams")] == [200, 200]
        assert responses["echo"]["body"]["choices"][0]["message"]["content"] == "hello"
        assert responses["streams"]["body"]["object"] == "chat.completion"


async def test_a_large_message_is_answered_in_full_and_a_larger_one_gets_a_413(
    tmp_path: Path, wire: TopicClient
) -> None:
    limit = 20 * 1024 * 1024
    large = "x" * (limit - 1000)
    async with streamed(tmp_path, wire) as server:
        await listening(server)
        await wire.send(large_message(large, metadata="large"))
        response = (await wire.get()).body
        assert (response["status_code"], response["metadata"]) == (200, "large")
        assert response["body"]["choices"][0]["text"] == large
        await wire.send(large_message("x" * limit, metadata="larger"))
        response = (await wire.get()).body
        assert (response["status_code"], response["metadata"]) == (413, "larger")


async def test_a_held_message_is_answered_after_its_verdict(tmp_path: Path, wire: TopicClient) -> None:
    async with streamed(tmp_path, wire) as server:
        await server.model("held", review="always")
        token = await server.token("admin")
        await listening(server)
        for text in ("good", "bad"):
            await wire.send(request_message(text, "held"))

        async def both_held() -> dict[str, str] | None:
            jobs = (await server.ask("GET", "/api/jobs?status=human", token))[1]["data"]
            held_ids = {job["metadata"]["n"]: job["job_id"] for job in jobs}
            return held_ids if len(held_ids) == 2 else None

        ids = await until(both_held)
        await wire.send(request_message("free"))
        # and no response to the held messages came before it
        assert (await wire.get()).body["metadata"] == {"n": "free"}

        await server.ask("POST", "/reviewJob", token, json={"id": ids["bad"], "status": "fail", "reason": "No."})
        response = (await wire.get()).body
        assert (response["status_code"], response["metadata"]) == (403, {"n": "bad"})
        assert response["body"]["error"]["code"] == "rejected"
        assert "choices" not in json.dumps(response)
        edit = {"id": ids["good"], "status": "success", "response": "better"}
        await server.ask("POST", "/reviewJob", token, json=edit)
        response = (await wire.get()).body
        assert (response["status_code"], response["body"]["choices"][0]["text"]) == (200, "better")


@pytest.mark.parametrize("wire", ["rabbitmq", "mqtt"], indirect=True)  # the other brokers assign the ids
async def test_messages_with_the_same_id_are_one_job_and_get_the_same_response(
    tmp_path: Path, wire: TopicClient
) -> None:
    async with streamed(tmp_path, wire) as server:
        token = await server.token("admin")
        await listening(server)
        message = request_message("once", "echo/delay=0.2")
        for _ in range(2):
            await wire.send(message, "mine")
        first = await wire.get()
        job_id = (await server.ask("GET", "/api/jobs", token))[1]["data"][0]["job_id"]

        async def is_confirmed() -> bool | None:
            deliveries = (await server.ask("GET", f"/api/jobs/{job_id}/deliveries", token))[1]["data"]
            return [delivery["state"] for delivery in deliveries] == ["done"] or None

        await until(is_confirmed)  # otherwise, the answer that is being sent answers the repeated message, too
        await wire.send(message, "mine")
        second = await wire.get()
        await wire.send(request_message("another"), "mine")  # the same id, but another message
        while (third := await wire.get()).body["metadata"] != {"n": "another"}:
            assert third == first
        assert first == second
        assert (await server.ask("GET", "/api/jobs?total=1", token))[1]["total"] == 2


async def test_equal_messages_without_an_id_are_separate_jobs(tmp_path: Path, wire: TopicClient) -> None:
    async with streamed(tmp_path, wire, max_handlers=1) as server:
        await listening(server)
        for _ in range(5):
            await wire.send(request_message("alike"))
        assert len({(await wire.get()).id for _ in range(5)}) == 5


async def test_an_unacknowledged_message_is_redelivered_with_the_same_id(
    wire: TopicClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats, "ACK_SECONDS", 1.0)
    monkeypatch.setattr(redis, "IDLE_MILLISECONDS", 500)
    monkeypatch.setattr(redis, "CLAIM_POLL_MILLISECONDS", 100)
    received = asyncio.Queue[IncomingMessage]()

    async def receive_and_hang(message: IncomingMessage) -> None:
        received.put_nowait(message)
        await asyncio.Event().wait()

    async def receive(message: IncomingMessage) -> None:
        received.put_nowait(message)

    async with listening_with(wire, receive_and_hang):
        await wire.send(request_message())
        first = await received.get()
    async with listening_with(wire, receive):
        redelivered = await received.get()
        await wire.send(request_message("another"))
        while (another := await received.get()).body == first.body:  # again, if its acknowledgement came late
            pass
    assert (redelivered.body, redelivered.id) == (first.body, first.id)
    assert redelivered.id is not None or (redelivered.is_redelivery and not first.is_redelivery)
    assert json.loads(another.body)["metadata"] == {"n": "another"}
    # and an acknowledged message is not redelivered
    async with listening_with(wire, receive):
        await wire.send(request_message("last"))
        assert json.loads((await received.get()).body)["metadata"] == {"n": "last"}


async def test_max_handlers_limits_concurrent_messages(wire: TopicClient) -> None:
    busy, most_busy, done = 0, 0, asyncio.Event()

    async def receive_slowly(message: IncomingMessage) -> None:
        nonlocal busy, most_busy
        busy += 1
        most_busy = max(most_busy, busy)
        await asyncio.sleep(0.02)
        busy -= 1
        if json.loads(message.body)["metadata"] == {"n": "19"}:
            done.set()

    async with listening_with(wire, receive_slowly, max_handlers=3):
        for number in range(20):
            await wire.send(request_message(str(number)))
        async with asyncio.timeout(LIMIT_SECONDS):
            await done.wait()
    assert 1 <= most_busy <= 3


@pytest.mark.parametrize("wire", ["redis"], indirect=True)  # the other brokers know which consumers are connected
async def test_stale_redis_consumers_are_removed_unless_they_have_pending_messages(
    wire: TopicClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "IDLE_MILLISECONDS", 600_000)
    received = asyncio.Queue[IncomingMessage]()

    async def receive_and_hang(message: IncomingMessage) -> None:
        received.put_nowait(message)
        await asyncio.Event().wait()

    async with Redis.from_url(wire.url, decode_responses=True) as client:

        async def pending_equals(expected: dict[str, int]) -> bool | None:
            readers = await client.xinfo_consumers(wire.requests, "signoff")
            return {reader["name"]: reader["pending"] for reader in readers} == expected or None

        async with listening_with(wire, received.put, consumer="gone"):
            await wire.send(request_message("1"))
            await until(lambda: pending_equals({"gone": 0}))
        async with listening_with(wire, receive_and_hang, consumer="holds"):
            await wire.send(request_message("2"))
            await until(lambda: pending_equals({"gone": 0, "holds": 1}))
        monkeypatch.setattr(redis, "STALE_CONSUMER_MILLISECONDS", -1)
        async with listening_with(wire, receive_and_hang, consumer="new"):
            await wire.send(request_message("3"))
            await until(lambda: pending_equals({"holds": 1, "new": 1}))


@pytest.mark.parametrize("wire", ["redis"], indirect=True)
async def test_redis_renews_the_claim_of_a_slow_message(wire: TopicClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis, "IDLE_MILLISECONDS", 600_000)
    oldest = 0

    async with Redis.from_url(wire.url) as client, listening_with(wire, forever):
        await wire.send(request_message())

        async def is_young_again() -> bool | None:
            nonlocal oldest
            ages = [
                entry["time_since_delivered"]
                for entry in await client.xpending_range(wire.requests, "signoff", "-", "+", 1)
            ]
            oldest = max([oldest, *ages])
            return (ages != [] and ages[0] < oldest) or None

        await until(is_young_again)


@pytest.mark.parametrize("wire", ["nats"], indirect=True)
async def test_nats_receives_progress_acknowledgements_for_a_slow_message(wire: NatsClient) -> None:
    acknowledgements = await wire.connection.subscribe("$JS.ACK.>")
    async with listening_with(wire, forever):
        await wire.send(request_message())
        while (message := await acknowledgements.next_msg(timeout=LIMIT_SECONDS)).data != b"+WPI":
            pass
        assert wire.prefix in message.subject


@pytest.mark.parametrize("wire", ["nats"], indirect=True)
async def test_nats_looks_up_the_stream_of_responses_again_only_after_it_has_changed(wire: NatsClient) -> None:
    lookups = await wire.connection.subscribe("$JS.API.STREAM.NAMES")
    transport = TransportRegistry(lambda _: wire.url, "test")(stream_of(wire))
    message = OutgoingMessage(address=wire.responses, headers={"message-id": "m"}, body=b"{}")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(transport.close)
        await wire.js.add_stream(name=f"{wire.prefix}all", subjects=[wire.responses])
        for _ in range(3):
            await transport.publish(message)
        await wire.connection.flush()
        # other tests make such requests, too
        requests = [await lookups.next_msg() for _ in range(lookups.pending_msgs)]
        assert len([lookup for lookup in requests if wire.responses.encode() in lookup.data]) == 1

        await wire.js.delete_stream(f"{wire.prefix}all")
        await wire.js.add_stream(name=f"{wire.prefix}all-anew", subjects=[wire.responses])
        with pytest.raises(Exception, match="stream") as raised:  # it may be retried at once
            await transport.publish(message)
        assert not isinstance(raised.value, Undelivered)
        await transport.publish(message)
    assert (await wire.js.stream_info(f"{wire.prefix}all-anew")).state.messages == 1


async def forever(_: IncomingMessage) -> None:
    """Receive a message and never return."""
    await asyncio.Event().wait()


@pytest.mark.parametrize("wire", [name for name in TOPIC_CLIENTS if name != "kafka"], indirect=True)  # one at a time
async def test_a_higher_max_handlers_takes_effect(wire: TopicClient) -> None:
    busy = 0

    async def receive_and_hang(_: IncomingMessage) -> None:
        nonlocal busy
        busy += 1
        await asyncio.Event().wait()

    async def all_are_handled() -> bool | None:
        return busy == 8 or None

    async with listening_with(wire, receive_and_hang, max_handlers=1):
        pass
    async with listening_with(wire, receive_and_hang, max_handlers=8):
        for number in range(8):
            await wire.send(request_message(str(number)))
        await until(all_are_handled)


@pytest.mark.parametrize("is_noticed", [False, True])
async def test_publishing_resumes_after_a_lost_connection_and_leaves_no_connection_open(
    wire: TopicClient, monkeypatch: pytest.MonkeyPatch, *, is_noticed: bool
) -> None:
    # a connection that is left behind reconnects soon and is seen
    monkeypatch.setattr(rabbitmq, "RECONNECT_SECONDS", 0.05)
    monkeypatch.setattr(nats, "ANSWER_SECONDS", 2.0)
    async with TcpProxy(wire.url) as proxy:
        transport = TransportRegistry(lambda _: proxy.url, "test")(stream_of(wire))

        async def publish(number: int) -> bool | None:
            body = json.dumps({"n": number}).encode()
            try:
                await transport.publish(OutgoingMessage(address=wire.responses, headers={"message-id": "m"}, body=body))
            except Exception:  # noqa: BLE001 -- each client library has its own exceptions
                return None
            return True

        await until(functools.partial(publish, 0))
        proxy.cut()
        for _ in range(TURNS if is_noticed else 0):
            await asyncio.sleep(0)
        await until(functools.partial(publish, 1))
        assert (await wire.get()).body == {"n": 0}
        await transport.close()

        async def all_closed() -> bool | None:
            return proxy.standing == 0 or None

        await until(all_closed)


async def test_a_listener_that_is_cancelled_while_it_connects_leaves_no_connection(wire: TopicClient) -> None:
    async with TcpProxy(wire.url) as proxy:
        proxy.block()
        take, transport = asyncio.Queue[IncomingMessage]().put, TransportRegistry(lambda _: proxy.url, "test")
        listener = asyncio.ensure_future(transport(stream_of(wire)).listen(take, lambda: None))

        async def is_connecting() -> bool | None:
            return proxy.calls > 0 or None

        async def all_closed() -> bool | None:
            return proxy.standing == 0 or None

        await until(is_connecting)
        listener.cancel()
        await asyncio.sleep(0)  # the listener is cancelled before the server answers
        proxy.unblock()
        await asyncio.wait([listener])
        await until(all_closed)


def stream_of(wire: TopicClient, *, max_handlers: int = 16) -> Stream:
    """Return the stream between the two topics of `wire`."""
    scheme, host = public_address(wire.url)
    return Stream(
        name=wire.requests,
        scheme=scheme,
        host=host,
        sealed=b"",
        requests=wire.requests,
        responses=wire.responses,
        max_handlers=max_handlers,
    )


@contextlib.asynccontextmanager
async def listening_with(
    wire: TopicClient, take: OnMessage, *, max_handlers: int = 16, consumer: str = "test"
) -> AsyncIterator[None]:
    """Run a transport that passes its messages to `take` during the block."""
    stream, is_up = stream_of(wire, max_handlers=max_handlers), asyncio.Event()
    listener = asyncio.ensure_future(TransportRegistry(lambda _: wire.url, consumer)(stream).listen(take, is_up.set))
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            await is_up.wait()
        yield
    finally:
        listener.cancel()
        await asyncio.wait([listener])

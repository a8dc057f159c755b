"""What every transport keeps: the document's example in, its example out, on each of the brokers themselves."""

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

EXAMPLE = b"""{
  "path": "/v1/completions",
  "metadata": {"key": "val"},
  "body": {"model": "my-model", "prompt": "whats your favorite color?"}
}"""


@pytest.fixture(params=TOPIC_CLIENTS)
async def wire(request: pytest.FixtureRequest, prefix: str, anyio_backend: object) -> AsyncIterator[TopicClient]:
    """Yield the other side of a stream."""
    kind, url = TOPIC_CLIENTS[request.param]
    async with kind(request.getfixturevalue(url), prefix).connected() as wire:
        yield wire


def streamed(tmp_path: Path, wire: TopicClient, **more: Any) -> Any:
    """A server with one stream."""
    stream = {"name": wire.requests, "url": wire.url, "requests": wire.requests, "responses": wire.responses}
    settings = {name: more.pop(name) for name in list(more) if name not in {"max_handlers", "user"}}
    return live(tmp_path, streams=[stream | {"backoff_max_seconds": 1} | more], **settings)


def asked(text: str = "hello", model: str = "echo", **more: Any) -> bytes:
    """A message."""
    return json.dumps({"metadata": {"n": text}, "body": {"model": model, "prompt": text}} | more).encode()


async def listening(server: Live) -> None:
    """Returns when the stream is listened to."""

    async def look() -> bool | None:
        _, told = await server.ask("GET", "/health/ready")
        return (all(ok for part, ok in told.items() if part.startswith("stream:")) and len(told) > 2) or None

    await until(look)


async def test_the_documents_example_in_is_the_documents_example_out(tmp_path: Path, wire: TopicClient) -> None:
    async with streamed(tmp_path, wire) as server:
        await server.model("my-model")
        await listening(server)
        await wire.send(EXAMPLE)
        told = (await wire.get()).body
        assert {*told} == {"status_code", "metadata", "body"}
        assert (told["status_code"], told["metadata"]) == (200, {"key": "val"})
        assert told["body"]["choices"][0]["text"] == "whats your favorite color?"


async def test_metadata_of_every_kind_come_back_as_they_were(tmp_path: Path, wire: TopicClient) -> None:
    kinds = [
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
        for metadata in kinds:
            await wire.send(asked(metadata=metadata))
        await wire.send(json.dumps({"body": {"model": "echo", "prompt": "none"}}).encode())
        told = [json.dumps((await wire.get()).body["metadata"], sort_keys=True) for _ in range(len(kinds) + 1)]
        assert sorted(told) == sorted(json.dumps(one, sort_keys=True) for one in [*kinds, None])


GARBAGE: dict[bytes, tuple[int, str, Any]] = {
    b"": (400, "invalid_json", None),
    b"hello": (400, "invalid_json", None),
    b"\xff\xfe\x00": (400, "invalid_json", None),
    b"[]": (400, "bad_request", None),
    b"[}": (400, "invalid_json", None),
    b'{"metadata": 1, "metadata"': (400, "invalid_json", None),
    b'{"metadata": {"n": 1}}': (400, "bad_request", {"n": 1}),
    b'{"metadata": {"n": 2}, "body": "words"}': (400, "bad_request", {"n": 2}),
    b'{"metadata": {"n": 3}, "body": {"model": 5}}': (400, "bad_request", {"n": 3}),
    b'{"metadata": {"n": 4}, "path": 5, "body": {}}': (400, "bad_request", {"n": 4}),
    b'{"metadata": {"n": 5}, "path": "/admin/../secrets", "body": {"model": "echo"}}': (400, "bad_request", {"n": 5}),
    b'{"metadata": {"n": 6}, "body": {"model": "nobody"}}': (404, "model_not_found", {"n": 6}),
    b'{"metadata": {"n": 7}, "body": {"model": "echo/status=418", "prompt": "x"}}': (418, "model_error", {"n": 7}),
    b'{"metadata": ' + b"[" * 5000 + b"]" * 5000 + b"}": (400, "invalid_json", None),
}


async def test_what_cannot_be_asked_is_answered_with_the_reason_and_stalls_nothing(
    tmp_path: Path, wire: TopicClient
) -> None:
    async with streamed(tmp_path, wire, max_handlers=2) as server:
        await listening(server)
        for message in GARBAGE:
            await wire.send(message)
        await wire.send(asked("after all that"))
        told = [await wire.get() for _ in range(len(GARBAGE) + 1)]

        good = [one.body for one in told if one.body["status_code"] == 200]
        assert [one["metadata"] for one in good] == [{"n": "after all that"}]
        bad = [one.body for one in told if one.body["status_code"] != 200]
        assert all({*one["body"]["error"]} == {"message", "type", "param", "code"} for one in bad)
        errors = [(one["status_code"], one["body"]["error"]["code"], one["metadata"]) for one in bad]
        assert sorted(errors, key=repr) == sorted(GARBAGE.values(), key=repr)
        assert len({one.id for one in told}) == len(told)


async def test_paths_are_understood_in_every_form(tmp_path: Path, wire: TopicClient) -> None:
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
        told = [(await wire.get()).body for _ in paths]
        assert {one["metadata"]: one["body"].get("object") for one in told} == paths


async def test_a_stream_that_is_asked_for_is_answered_whole(tmp_path: Path, wire: TopicClient) -> None:
    async with streamed(tmp_path, wire) as server, fake_upstream() as upstream:
        await server.model("streams", kind="openai", url=upstream.at("stream"))
        await listening(server)
        for model in ("echo", "streams"):
            body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "hello"}]}
            await wire.send(json.dumps({"path": "/v1/chat/completions", "metadata": model, "body": body}).encode())
        told = {one["metadata"]: one for one in [(await wire.get()).body for _ in range(2)]}
        assert [told[model]["status_code"] for model in ("echo", "streams")] == [200, 200]
        assert told["echo"]["body"]["choices"][0]["message"]["content"] == "hello"
        assert told["streams"]["body"]["object"] == "chat.completion"


async def test_a_large_message_comes_and_goes_whole_and_a_larger_one_is_a_413(
    tmp_path: Path, wire: TopicClient
) -> None:
    limit = 20 * 1024 * 1024
    large = "x" * (limit - 1000)
    async with streamed(tmp_path, wire) as server:
        await listening(server)
        await wire.send(asked(large, metadata="large"))
        told = (await wire.get()).body
        assert (told["status_code"], told["metadata"]) == (200, "large")
        assert told["body"]["choices"][0]["text"] == large
        await wire.send(asked("x" * limit, metadata="larger"))
        told = (await wire.get()).body
        assert (told["status_code"], told["metadata"]) == (413, "larger")


async def test_a_message_that_is_held_is_answered_after_its_verdict(tmp_path: Path, wire: TopicClient) -> None:
    async with streamed(tmp_path, wire) as server:
        await server.model("held", review="always")
        token = await server.token("admin")
        await listening(server)
        for text in ("good", "bad"):
            await wire.send(asked(text, "held"))

        async def held() -> dict[str, str] | None:
            jobs = (await server.ask("GET", "/api/jobs?status=human", token))[1]["data"]
            found = {job["metadata"]["n"]: job["job_id"] for job in jobs}
            return found if len(found) == 2 else None

        ids = await until(held)
        await wire.send(asked("free"))
        assert (await wire.get()).body["metadata"] == {"n": "free"}  # and nothing of the others came before it

        await server.ask("POST", "/reviewJob", token, json={"id": ids["bad"], "status": "fail", "reason": "No."})
        told = (await wire.get()).body
        assert (told["status_code"], told["metadata"]) == (403, {"n": "bad"})
        assert told["body"]["error"]["code"] == "rejected"
        assert "choices" not in json.dumps(told)
        edit = {"id": ids["good"], "status": "success", "response": "better"}
        await server.ask("POST", "/reviewJob", token, json=edit)
        told = (await wire.get()).body
        assert (told["status_code"], told["body"]["choices"][0]["text"]) == (200, "better")


@pytest.mark.parametrize("wire", ["rabbitmq", "mqtt"], indirect=True)  # elsewhere the broker gives the ids
async def test_a_message_under_one_id_is_one_job_and_every_reply_has_its_id(tmp_path: Path, wire: TopicClient) -> None:
    async with streamed(tmp_path, wire) as server:
        token = await server.token("admin")
        await listening(server)
        message = asked("once", "echo/delay=0.2")
        for _ in range(2):
            await wire.send(message, "mine")
        first = await wire.get()
        await wire.send(message, "mine")
        second = await wire.get()
        await wire.send(asked("another"), "mine")  # the same id, and not the same message
        while (third := await wire.get()).body["metadata"] != {"n": "another"}:
            assert third == first
        assert first == second
        assert (await server.ask("GET", "/api/jobs", token))[1]["total"] == 2


async def test_messages_without_an_id_are_as_many_jobs_however_alike_they_are(
    tmp_path: Path, wire: TopicClient
) -> None:
    async with streamed(tmp_path, wire, max_handlers=1) as server:
        await listening(server)
        for _ in range(5):
            await wire.send(asked("alike"))
        assert len({(await wire.get()).id for _ in range(5)}) == 5


async def test_what_was_not_acknowledged_comes_again_and_is_known_again(
    wire: TopicClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats, "ACK_SECONDS", 1.0)
    monkeypatch.setattr(redis, "IDLE_MILLISECONDS", 500)
    monkeypatch.setattr(redis, "CLAIM_POLL_MILLISECONDS", 100)
    came = asyncio.Queue[IncomingMessage]()

    async def never(arrived: IncomingMessage) -> None:
        came.put_nowait(arrived)
        await asyncio.Event().wait()

    async def at_once(arrived: IncomingMessage) -> None:
        came.put_nowait(arrived)

    async with listening_with(wire, never):
        await wire.send(asked())
        first = await came.get()
    async with listening_with(wire, at_once):
        again = await came.get()
        await wire.send(asked("another"))
        another = await came.get()
    assert (again.body, again.id) == (first.body, first.id)
    assert again.id is not None or (again.is_redelivery and not first.is_redelivery)
    assert json.loads(another.body)["metadata"] == {"n": "another"}
    # and what was acknowledged does not
    async with listening_with(wire, at_once):
        await wire.send(asked("last"))
        assert json.loads((await came.get()).body)["metadata"] == {"n": "last"}


async def test_no_more_are_handled_at_a_time_than_the_stream_says(wire: TopicClient) -> None:
    busy, most, done = 0, 0, asyncio.Event()

    async def slowly(arrived: IncomingMessage) -> None:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0.02)
        busy -= 1
        if json.loads(arrived.body)["metadata"] == {"n": "19"}:
            done.set()

    async with listening_with(wire, slowly, max_handlers=3):
        for number in range(20):
            await wire.send(asked(str(number)))
        async with asyncio.timeout(LIMIT_SECONDS):
            await done.wait()
    assert 1 <= most <= 3


@pytest.mark.parametrize("wire", ["redis"], indirect=True)  # elsewhere a broker knows who is connected
async def test_readers_that_have_long_been_silent_are_forgotten_and_what_they_had_is_not(
    wire: TopicClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "IDLE_MILLISECONDS", 600_000)
    came = asyncio.Queue[IncomingMessage]()

    async def never(arrived: IncomingMessage) -> None:
        came.put_nowait(arrived)
        await asyncio.Event().wait()

    async with Redis.from_url(wire.url, decode_responses=True) as client:

        async def hold(held: dict[str, int]) -> bool | None:
            readers = await client.xinfo_consumers(wire.requests, "signoff")
            return {told["name"]: told["pending"] for told in readers} == held or None

        async with listening_with(wire, came.put, consumer="gone"):
            await wire.send(asked("1"))
            await until(lambda: hold({"gone": 0}))
        async with listening_with(wire, never, consumer="holds"):
            await wire.send(asked("2"))
            await until(lambda: hold({"gone": 0, "holds": 1}))
        monkeypatch.setattr(redis, "STALE_CONSUMER_MILLISECONDS", -1)
        async with listening_with(wire, never, consumer="new"):
            await wire.send(asked("3"))
            await until(lambda: hold({"holds": 1, "new": 1}))


@pytest.mark.parametrize("wire", ["redis"], indirect=True)
async def test_redis_gives_what_takes_long_to_nobody_else_meanwhile(
    wire: TopicClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "IDLE_MILLISECONDS", 600_000)
    oldest = 0

    async with Redis.from_url(wire.url) as client, listening_with(wire, forever):
        await wire.send(asked())

        async def is_young_again() -> bool | None:
            nonlocal oldest
            ages = [
                told["time_since_delivered"]
                for told in await client.xpending_range(wire.requests, "signoff", "-", "+", 1)
            ]
            oldest = max([oldest, *ages])
            return (ages != [] and ages[0] < oldest) or None

        await until(is_young_again)


@pytest.mark.parametrize("wire", ["nats"], indirect=True)
async def test_nats_is_told_of_what_takes_long(wire: NatsClient) -> None:
    told = await wire.connection.subscribe("$JS.ACK.>")
    async with listening_with(wire, forever):
        await wire.send(asked())
        while (message := await told.next_msg(timeout=LIMIT_SECONDS)).data != b"+WPI":
            pass
        assert wire.prefix in message.subject


@pytest.mark.parametrize("wire", ["nats"], indirect=True)
async def test_nats_is_asked_where_answers_go_once_until_they_go_elsewhere(wire: NatsClient) -> None:
    looks = await wire.connection.subscribe("$JS.API.STREAM.NAMES")
    transport = TransportRegistry(lambda _: wire.url, "test")(stream_of(wire))
    message = OutgoingMessage(address=wire.responses, headers={"message-id": "m"}, body=b"{}")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(transport.close)
        for _ in range(3):
            await transport.publish(message)
        await wire.connection.flush()
        seen = [await looks.next_msg() for _ in range(looks.pending_msgs)]  # other tests look, too
        assert len([look for look in seen if wire.responses.encode() in look.data]) == 1

        await wire.js.delete_stream(f"{wire.prefix}all")
        await wire.js.add_stream(name=f"{wire.prefix}all-anew", subjects=[wire.responses])
        with pytest.raises(Exception, match="stream") as raised:  # it may be tried again at once
            await transport.publish(message)
        assert not isinstance(raised.value, Undelivered)
        await transport.publish(message)
    assert (await wire.js.stream_info(f"{wire.prefix}all-anew")).state.messages == 1
    await wire.js.delete_stream(f"{wire.prefix}all-anew")
    await wire.js.add_stream(name=f"{wire.prefix}all", subjects=[wire.responses])


async def forever(_: IncomingMessage) -> None:
    """Takes a message, and does not come to an end."""
    await asyncio.Event().wait()


async def test_a_stream_that_is_allowed_to_handle_more_handles_more(wire: TopicClient) -> None:
    busy = 0

    async def never(_: IncomingMessage) -> None:
        nonlocal busy
        busy += 1
        await asyncio.Event().wait()

    async def all_are_handled() -> bool | None:
        return busy == 8 or None

    async with listening_with(wire, never, max_handlers=1):
        pass
    async with listening_with(wire, never, max_handlers=8):
        for number in range(8):
            await wire.send(asked(str(number)))
        await until(all_are_handled)


async def test_answers_go_again_once_the_broker_is_back_and_no_connection_is_left_behind(
    wire: TopicClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rabbitmq, "RECONNECT_SECONDS", 0.05)  # what is left behind shows itself
    monkeypatch.setattr(nats, "ANSWER_SECONDS", 2.0)
    async with TcpProxy(wire.url) as proxy:
        transport = TransportRegistry(lambda _: proxy.url, "test")(stream_of(wire))

        async def sent(number: int) -> bool | None:
            body = json.dumps({"n": number}).encode()
            try:
                await transport.publish(OutgoingMessage(address=wire.responses, headers={"message-id": "m"}, body=body))
            except Exception:  # noqa: BLE001 -- each client has its own
                return None
            return True

        await until(functools.partial(sent, 0))
        proxy.cut()
        await until(functools.partial(sent, 1))
        assert (await wire.get()).body == {"n": 0}
        await transport.close()

        async def all_hung_up() -> bool | None:
            return proxy.standing == 0 or None

        await until(all_hung_up)


def stream_of(wire: TopicClient, *, max_handlers: int = 16) -> Stream:
    """The stream between its two topics."""
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
    """A transport that hands its messages to `take`, while the block runs."""
    stream, is_up = stream_of(wire, max_handlers=max_handlers), asyncio.Event()
    listening = asyncio.ensure_future(TransportRegistry(lambda _: wire.url, consumer)(stream).listen(take, is_up.set))
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            await is_up.wait()
        yield
    finally:
        listening.cancel()
        await asyncio.wait([listening])

"""The connections to models: framing, bounds, reuse, and what ends them, against a server that misbehaves."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Sequence
from math import inf
from typing import Any

import pytest
from aiohttp.abc import ResolveResult

from fakes.behaviours import ANSWER
from fakes.http_server import LIMIT_SECONDS, RecordedRequest, Reply, chunk, chunked, pause, raw, wait_for_wake, whole
from fakes.resolver import FakeResolver
from fakes.upstream import FakeUpstream
from signoff.core.model import Timeouts
from signoff.engines import http_pool
from signoff.engines.http_connection import MAX_HEAD_BYTES, MAX_HEADERS, HttpConnection
from signoff.engines.http_request import UpstreamRequest
from signoff.engines.upstream import UpstreamClient
from signoff.errors import ModelAnswered, ModelCut, ModelFailed, ModelGarbled, ModelUnreachable
from support.sinks import Events

pytestmark = pytest.mark.anyio
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
LENGTH = b"content-length: %d\r\n\r\n" % len(ANSWER)
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module", params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Run each test on both event loops, whose transports differ."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
async def upstream() -> AsyncIterator[UpstreamClient]:
    upstream = UpstreamClient(now=lambda: 0.0)
    await upstream.start()
    yield upstream
    await upstream.close()


def serving(*replies: Reply) -> FakeUpstream:
    """Return a server that sends the replies in turns."""

    async def reply(request: RecordedRequest) -> Reply:
        return replies[(request.number - 1) % len(replies)]

    return FakeUpstream(reply)


async def ask(upstream: UpstreamClient, fake: FakeUpstream, **more: Any) -> bytes | None:
    usual: dict[str, Any] = {"method": "POST", "url": fake.url, "body": b"{}", "headers": {}}
    request = UpstreamRequest(**usual | more)
    async with asyncio.timeout(LIMIT_SECONDS):
        return await upstream.ask(request, Events(), timeouts=Timeouts(), stream=False)


@pytest.mark.parametrize(
    ("reply", "connections"),
    [
        (whole(ANSWER), 1),
        (chunked(ANSWER, content_type="application/json"), 1),
        (raw(HEAD + LENGTH + ANSWER), 1),
        (raw(CHUNKED, chunk(ANSWER[:5]), chunk(ANSWER[5:]), b"0\r\nx-trailer: 1\r\n\r\n"), 1),
        (raw(b"HTTP/1.1 100 Continue\r\n\r\n", HEAD + LENGTH + ANSWER), 1),
        (raw(b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + HEAD + LENGTH, ANSWER), 1),
        (raw((HEAD + LENGTH).replace(b"\r\n", b"\n") + ANSWER), 1),
        (raw(HEAD + b"connection: close\r\n" + LENGTH + ANSWER), 2),
        (raw((HEAD + LENGTH + ANSWER).replace(b"HTTP/1.1", b"HTTP/1.0")), 2),
        (raw(HEAD + b"\r\n" + ANSWER, end="close"), 2),
        (raw(HEAD + LENGTH + ANSWER + b"more"), 2),
        (raw(HEAD + LENGTH + ANSWER + HEAD + LENGTH + b"[]" * 10), 2),
        (raw(HEAD + LENGTH + ANSWER, end="reset"), 2),
    ],
)
async def test_a_connection_is_used_again_if_its_answer_has_an_end(
    upstream: UpstreamClient, reply: Reply, connections: int
) -> None:
    async with serving(reply) as fake:
        assert await ask(upstream, fake) == ANSWER
        assert await ask(upstream, fake) == ANSWER
        assert fake.opened == connections


@pytest.mark.parametrize(
    "reply",
    [
        raw(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", end="hang"),
        raw(HEAD + b"x: y\r\n" * MAX_HEADERS + LENGTH + ANSWER),
        raw(HEAD + b"x: " + b"y" * MAX_HEAD_BYTES + b"\r\n" + LENGTH + ANSWER),
        raw(HEAD, repeat=b"x: " + b"y" * 1000 + b"\r\n"),
        raw(HEAD + b"x: ", repeat=b"y" * 10_000),
        raw(b"HTTP/1.1 ", repeat=b"2" * 10_000),
        raw(repeat=b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        raw(CHUNKED, b"5;", repeat=b"e=" + b"f" * 10_000),
        raw(CHUNKED, chunk(ANSWER), b"0\r\n", repeat=b"x: " + b"y" * 10_000 + b"\r\n"),
        raw(CHUNKED, chunk(ANSWER), b"fffffffffffffffffff\r\n"),
        raw(HEAD + b"content-length: -1\r\n\r\n" + ANSWER),
        raw(HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\n" + ANSWER),
        raw(b"\x15\x03\x01\x00\x02\x02\x50", end="close"),
    ],
    ids=range(13),
)
async def test_an_answer_that_is_not_http_or_has_no_bound_is_garbled(upstream: UpstreamClient, reply: Reply) -> None:
    async with serving(reply) as fake:
        with pytest.raises(ModelGarbled):
            await ask(upstream, fake)
        assert await fake.all_closed()


async def test_an_answer_to_a_part_of_the_request_counts(upstream: UpstreamClient) -> None:
    refused = b'HTTP/1.1 413 Too Large\r\ncontent-length: 21\r\n\r\n{"error": "too long"}'

    class Refusing(FakeUpstream):
        def reply_unread(self, request: RecordedRequest) -> Reply:
            return raw(refused, reads_body=False, end="hang")

    async with Refusing() as fake:
        with pytest.raises(ModelAnswered, match="too long") as raised:
            await ask(upstream, fake, body=b" " * 30_000_000)
        assert raised.value.status == 413
        assert await fake.all_closed()


@pytest.mark.parametrize("headers", [{"x": "a\r\nb: c"}, {"x": "a\n"}, {"x\r\ny": "a"}, {"x": "\0"}])
async def test_a_header_with_a_line_break_is_not_sent(upstream: UpstreamClient, headers: dict[str, str]) -> None:
    async with serving(whole(ANSWER)) as fake:
        with pytest.raises(ModelUnreachable):
            await ask(upstream, fake, headers=headers)
        assert fake.requests == []


async def test_headers_replace_the_usual_ones_but_those_of_framing(upstream: UpstreamClient) -> None:
    headers = {"User-Agent": "mine", "Content-Length": "1", "Transfer-Encoding": "chunked", "X-Name": "\u00e9"}
    async with serving(whole(ANSWER)) as fake:
        url = fake.url.replace("http://", "http://ann:p%40ss@")
        assert await ask(upstream, fake, url=f"{url}/a%20b?c=%2F", headers=headers) == ANSWER
        [request] = fake.requests
        assert (request.path, request.body) == ("/a%20b?c=%2F", b"{}")
        assert request.headers["user-agent"] == "mine"
        assert request.headers["content-length"] == "2"
        assert "transfer-encoding" not in request.headers
        assert request.headers["authorization"] == "Basic YW5uOnBAc3M="
        assert request.headers["host"] == fake.url.removeprefix("http://")


async def test_idle_connections_are_closed_before_the_server_would(
    upstream: UpstreamClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_pool, "KEEPALIVE_SECONDS", 0.01)
    async with serving(whole(ANSWER)) as fake:
        await ask(upstream, fake)
        assert await fake.all_closed()
        assert await ask(upstream, fake) == ANSWER


async def test_no_more_connections_are_open_than_allowed() -> None:
    upstream = UpstreamClient(now=lambda: 0.0, max_connections=2)
    await upstream.start()
    async with serving(whole(ANSWER, before=(pause(0.01),))) as one, serving(whole(ANSWER)) as other:
        most = 0

        async def look(fake: FakeUpstream) -> None:
            nonlocal most
            assert await ask(upstream, fake) == ANSWER
            most = max(most, one.open + other.open)

        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(look(other if number % 4 == 3 else one))
        assert most <= 3  # the server may see the end of a connection after the beginning of the next one
        await upstream.close()
        assert await one.all_closed()


async def test_a_released_connection_serves_the_next_request_to_its_server() -> None:
    upstream = UpstreamClient(now=lambda: 0.0, max_connections=2)
    await upstream.start()
    async with serving(whole(ANSWER, before=(pause(0.001),))) as one, serving(whole(ANSWER)) as other:
        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(ask(upstream, one))
        assert (len(one.requests), one.opened) == (20, 2)
        # a request to another server has its turn
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(ask(upstream, other if number == 10 else one))
        assert (len(other.requests), one.opened) == (1, 3)
    await upstream.close()


async def test_a_request_that_leaves_when_its_turn_comes_leaves_it_to_the_next_one() -> None:
    upstream = UpstreamClient(now=lambda: 0.0, max_connections=1)
    await upstream.start()
    async with serving(whole(ANSWER, before=(wait_for_wake,))) as fake:
        calls = [asyncio.ensure_future(ask(upstream, fake)) for _ in range(4)]
        await fake.until_stuck()
        calls[2].cancel()
        calls[0].add_done_callback(lambda _: calls[1].cancel())
        fake.wake.set()
        assert await calls[3] == ANSWER
        assert await calls[0] == ANSWER
        assert await ask(upstream, fake) == ANSWER
        assert [call.cancelled() for call in calls] == [False, True, True, False]
    await upstream.close()


async def test_a_lost_connection_makes_no_room_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_pool, "TICK_SECONDS", 1000.0)
    upstream = UpstreamClient(now=lambda: 0.0, max_connections=2)
    await upstream.start()
    leaving = serving(raw(HEAD + LENGTH + ANSWER, end="close"))
    async with leaving as lost, serving(whole(ANSWER)) as idle, serving(raw(end="hang")) as busy:
        assert await ask(upstream, lost) == ANSWER
        assert await lost.all_closed()
        assert await ask(upstream, idle) == ANSWER
        call = asyncio.ensure_future(ask(upstream, busy))
        await busy.until_stuck()
        async with serving(whole(ANSWER)) as other:
            assert await ask(upstream, other) == ANSWER
        await upstream.close()
        with pytest.raises(ModelFailed):
            await call


async def test_a_timeout_of_the_system_is_a_lost_connection() -> None:
    connection = HttpConnection(set())
    reading = asyncio.ensure_future(connection.read(due=inf))
    await asyncio.sleep(0)
    connection.connection_lost(TimeoutError(errno.ETIMEDOUT, "Connection timed out"))
    with pytest.raises(ConnectionResetError) as raised:
        await reading
    assert raised.value.errno == errno.ETIMEDOUT


async def test_a_slow_reader_slows_the_server_down(upstream: UpstreamClient) -> None:
    event = b"data: " + b"x" * 100_000 + b"\n\n"
    async with serving(chunked(wait_for_wake, *(event,) * 1000)) as fake:
        taken = asyncio.Event()

        class Stuck(Events):
            async def send(self, events: Sequence[bytes]) -> None:
                taken.set()
                await asyncio.Event().wait()

        request = UpstreamRequest("POST", fake.url, b"{}", {})
        async with asyncio.TaskGroup() as group:
            call = group.create_task(upstream.ask(request, Stuck(), timeouts=Timeouts(), stream=True, json_only=False))
            await fake.until_stuck()
            fake.wake.set()
            await taken.wait()
            sent = -1
            while sent != fake.sent_bytes:
                sent = fake.sent_bytes
                await asyncio.sleep(0.05)
            call.cancel()
        assert sent < 20_000_000
        assert await fake.all_closed()


async def test_closing_ends_calls_that_connect_or_wait(upstream: UpstreamClient) -> None:
    async with serving(raw(end="hang")) as fake:
        calls = [asyncio.ensure_future(ask(upstream, fake)) for _ in range(3)]
        await fake.until_stuck()
        await upstream.close()
        for call in calls:
            with pytest.raises(ModelFailed):
                await call


@pytest.mark.parametrize("server_url", ["http://model.example", "https://127.0.0.1"], ids=["lookup", "handshake"])
async def test_closing_ends_calls_whose_connection_is_not_open_yet(server_url: str) -> None:
    begun, left = asyncio.Event(), asyncio.Event()

    class Stuck(FakeResolver):
        async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
            begun.set()
            return await asyncio.get_running_loop().create_future()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.set()
        await reader.read()
        writer.close()
        left.set()

    upstream = UpstreamClient(now=lambda: 0.0, max_connections=1, resolver=Stuck([]))
    await upstream.start()
    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        url = f"{server_url}:{server.sockets[0].getsockname()[1]}/"
        request, patient = UpstreamRequest("GET", url, b"", {}), Timeouts(connect_seconds=2 * LIMIT_SECONDS)
        async with asyncio.timeout(LIMIT_SECONDS):
            asks = [upstream.ask(request, Events(), timeouts=patient, stream=False) for _ in range(3)]
            calls = [asyncio.ensure_future(each) for each in asks]
            await begun.wait()
            await upstream.close()
            for call in calls:
                with pytest.raises(ModelUnreachable):
                    await call
            if server_url == "https://127.0.0.1":
                await left.wait()


@pytest.mark.parametrize("extra", [b"HTTP/1.1 500 ", b"HTTP/1.1 500 Oops\r\nx: y\r\n", b"\r\nH"])
async def test_bytes_after_an_answer_are_no_part_of_the_next_one(upstream: UpstreamClient, extra: bytes) -> None:
    async with serving(raw(HEAD + LENGTH + ANSWER + extra)) as fake:
        for _ in range(3):
            assert await ask(upstream, fake) == ANSWER
        assert fake.opened == 3


@pytest.mark.parametrize(
    "headers",
    [
        b"transfer-encoding: chunked \r\n",
        b"transfer-encoding : chunked\r\n",
        b"transfer-encoding: gzip, chunked\r\n",
        b"transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n",
        b"content-length : 9999\r\n",
        b"content-length:\r\n 9999 \r\n",
    ],
)
async def test_an_answer_that_is_cut_off_does_not_end_with_its_connection(
    upstream: UpstreamClient, headers: bytes
) -> None:
    async with serving(raw(HEAD + headers + b"\r\n" + chunk(ANSWER), end="close")) as fake:
        with pytest.raises(ModelCut):
            await ask(upstream, fake)


async def test_spaces_around_the_value_of_a_header_are_no_part_of_it(upstream: UpstreamClient) -> None:
    refused = b"HTTP/1.1 429 Slow\r\nretry-after:  7 \t\r\ncontent-length: 2 \r\n\r\n{}"
    async with serving(raw(refused)) as fake:
        with pytest.raises(ModelAnswered) as raised:
            await ask(upstream, fake)
        assert raised.value.retry_after_seconds == 7


async def test_an_answer_without_length_is_not_whole_if_the_pool_was_closed(upstream: UpstreamClient) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    async with serving(raw(head + b"data: a\n\n", end="hang")) as fake:
        begun, slow = asyncio.Event(), asyncio.Event()

        class Slow(Events):
            async def send(self, events: Sequence[bytes]) -> None:
                begun.set()
                await slow.wait()

        request = UpstreamRequest("POST", fake.url, b"{}", {})
        call = asyncio.ensure_future(upstream.ask(request, Slow(), timeouts=Timeouts(), stream=True, json_only=False))
        await begun.wait()
        await upstream.close()
        assert await fake.all_closed()
        await asyncio.sleep(0)
        slow.set()
        with pytest.raises(ModelCut):
            await call


async def test_closing_ends_a_call_on_a_connection_that_was_used_before(upstream: UpstreamClient) -> None:
    replies = [whole(ANSWER), raw(end="hang")]
    async with serving(*replies) as fake:
        assert await ask(upstream, fake) == ANSWER
        call = asyncio.ensure_future(ask(upstream, fake))
        await fake.until_stuck()
        await upstream.close()
        with pytest.raises(ModelUnreachable):
            await call
        assert fake.opened == 1


async def test_a_closed_pool_connects_to_nothing() -> None:
    upstream = UpstreamClient(now=lambda: 0.0, max_connections=1)
    await upstream.start()
    async with serving(raw(end="hang")) as fake:
        calls = [asyncio.ensure_future(ask(upstream, fake)) for _ in range(3)]
        await fake.until_stuck()
        await upstream.close()
        for call in calls:
            with pytest.raises(ModelFailed):
                await call
        assert fake.opened == 1


async def test_requests_that_come_together_share_a_lookup_that_outlives_each_of_them() -> None:
    begun = asyncio.Event()
    resolved = asyncio.Event()

    class Slow(FakeResolver):
        async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
            results = await super().resolve(host, port, family)
            begun.set()
            await resolved.wait()
            return results

    resolver = Slow(["127.0.0.1"])
    upstream = UpstreamClient(now=lambda: 0.0, resolver=resolver)
    await upstream.start()
    async with serving(whole(ANSWER)) as fake:
        url = fake.url.replace("127.0.0.1", "model.example")
        first, *others = [asyncio.ensure_future(ask(upstream, fake, url=url)) for _ in range(5)]
        await begun.wait()
        first.cancel()
        await asyncio.wait([first])
        resolved.set()
        assert [await each for each in others] == [ANSWER] * 4
    await upstream.close()
    assert first.cancelled()
    assert resolver.hosts == ["model.example"]


async def test_a_failed_lookup_is_repeated() -> None:
    class Failing(FakeResolver):
        async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
            if not self.hosts:
                self.hosts.append(host)
                raise socket.gaierror
            return await super().resolve(host, port, family)

    upstream = UpstreamClient(now=lambda: 0.0, resolver=Failing(["127.0.0.1"]))
    await upstream.start()
    async with serving(whole(ANSWER)) as fake:
        url = fake.url.replace("127.0.0.1", "model.example")
        with pytest.raises(ModelUnreachable, match="its host name has no address"):
            await ask(upstream, fake, url=url)
        assert await ask(upstream, fake, url=url) == ANSWER
    await upstream.close()


async def test_the_addresses_of_a_name_are_used_in_turns() -> None:
    upstream = UpstreamClient(now=lambda: 0.0, resolver=FakeResolver(["127.0.0.1", "127.0.0.2"]))
    await upstream.start()
    closing = raw(HEAD + b"connection: close\r\n" + LENGTH + ANSWER)
    async with serving(closing) as one, FakeUpstream(one.reply, host="127.0.0.2", port=one.port) as other:
        url = one.url.replace("127.0.0.1", "model.example")
        for _ in range(4):
            assert await ask(upstream, one, url=url) == ANSWER
        assert (one.opened, other.opened) == (2, 2)
    await upstream.close()


async def test_a_name_with_other_letters_is_resolved_as_it_is_sent() -> None:
    resolver = FakeResolver(["127.0.0.1"])
    upstream = UpstreamClient(now=lambda: 0.0, resolver=resolver)
    await upstream.start()
    async with serving(whole(ANSWER)) as fake:
        assert await ask(upstream, fake, url=fake.url.replace("127.0.0.1", "fa\u00df.example")) == ANSWER
        assert resolver.hosts == ["xn--fa-hia.example"]
        assert fake.requests[0].headers["host"] == f"xn--fa-hia.example:{fake.port}"
    await upstream.close()

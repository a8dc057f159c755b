"""Bounds of what a client sends on a connection, driven through a transport in memory and ticks by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from signoff.server.connection_limits import ConnectionLimits
from signoff.server.protocol import (
    BODY_LINGER_SECONDS,
    HALF_CLOSED_SECONDS,
    LAST_HEAD_SECONDS,
    LINGER_SECONDS,
    ClientConnection,
    ConnectionRegistry,
)
from signoff.server.serving import uvicorn_options
from support.live_server import ANSWER_SECONDS, live

pytestmark = pytest.mark.anyio

LIMITS = ConnectionLimits(
    max_connections=3,
    max_pipelined=2,
    head_bytes=1000,
    head_fields=20,
    head_seconds=5,
    body_pause_seconds=5,
    body_grace_seconds=10,
    body_bytes_per_second=100,
    read_pause_seconds=10,
    unread_bytes=10_000,
)
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
FAST = 10_000


class Transport(asyncio.Transport):
    """Transport in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.sent, self.unread_bytes, self.late_writes = b"", 0, 0
        self.is_closed = self.is_aborted = self.is_paused = self.sent_eof = False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Record `data`; fail on a closed transport, as that of uvloop does."""
        assert not self.sent_eof
        if self.is_closed:
            self.late_writes += 1
            raise RuntimeError("the handler is closed")
        self.sent += data

    def close(self) -> None:
        """Record that the connection is closed."""
        self.is_closed = True

    def abort(self) -> None:
        """Record that the connection is closed at once."""
        self.is_closed = self.is_aborted = True

    def is_closing(self) -> bool:
        """Return True once the connection is closed."""
        return self.is_closed

    def get_write_buffer_size(self) -> int:
        """Return the number of bytes that the client has not read."""
        return self.unread_bytes

    def can_write_eof(self) -> bool:
        """Return True, as a TCP connection does."""
        return True

    def write_eof(self) -> None:
        """Record the end of what is sent."""
        self.sent_eof = True

    def pause_reading(self) -> None:
        """Record that nothing is read."""
        self.is_paused = True

    def resume_reading(self) -> None:
        """Record that data is read."""
        self.is_paused = False


class Server:
    """Connections of one process, and an application that reads the body and waits until it may answer."""

    def __init__(self) -> None:
        self.registry = ConnectionRegistry(LIMITS)
        self.may_read, self.may_answer = asyncio.Event(), asyncio.Event()
        self.may_read.set()
        self.may_answer.set()
        self.scopes = list[Any]()
        self.messages = list[str]()
        self.state = ServerState()
        self.config = uvicorn.Config(self._serve, interface="asgi3", **uvicorn_options(1, drain_seconds=1))

    def connect(self) -> tuple[ClientConnection, Transport]:
        """Return a new connection and its transport."""
        connection = ClientConnection(self.config, self.state, {}, asyncio.get_running_loop(), registry=self.registry)
        transport = Transport()
        connection.connection_made(transport)
        return connection, transport

    def tick(self, seconds: int) -> None:
        """Let seconds pass."""
        for _ in range(seconds):
            self.registry.tick()

    async def settle(self) -> None:
        """Let the application run until it waits."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def _serve(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        self.scopes.append(scope)
        await self.may_read.wait()
        while True:
            message = await receive()
            self.messages.append(message["type"])
            if not message.get("more_body"):
                break
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


def error_of(transport: Transport) -> tuple[int, str]:
    """Return status and code of the one response that was sent, which must be an error that closes the connection."""
    head, _, body = transport.sent.partition(b"\r\n\r\n")
    assert transport.sent.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in head
    assert b"content-type: application/problem+json" in head
    assert transport.sent_eof or transport.is_closed
    payload = json.loads(body)
    assert payload["status"] == int(head.split()[1])
    assert payload["detail"]
    return payload["status"], payload["code"]


TOO_LARGE, TOO_SLOW = (431, "head_too_large"), (408, "request_timed_out")


@pytest.mark.parametrize(
    ("start", "filler", "pieces"),
    [
        (b"GET /", b"a", LIMITS.head_bytes),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: ", b"a", LIMITS.head_bytes),
        (b"GET / HTTP/1.1\r\n", b"x", LIMITS.head_bytes),
        (b"GET / HTTP/1.1\r\n", b"a: b\r\n", LIMITS.head_fields + 2),
        (b"", b"\r\n", LIMITS.head_bytes),
    ],
    ids=["url", "value", "name", "headers", "line ends"],
)
async def test_a_head_that_never_ends_is_refused(start: bytes, filler: bytes, pieces: int) -> None:
    server = Server()
    connection, transport = server.connect()
    connection.data_received(start)
    for _ in range(pieces):
        if not transport.sent:
            connection.data_received(filler)
    assert error_of(transport) == TOO_LARGE
    # what comes after that is dropped
    sent = transport.sent
    connection.data_received(filler * 1000)
    await server.settle()
    assert transport.sent == sent
    assert not server.scopes


@pytest.mark.parametrize(
    "head",
    [
        b"GET /%b HTTP/1.1\r\nhost: a\r\n\r\n" % (b"a" * 1000),
        b"GET / HTTP/1.1\r\nhost: a\r\nx: %b\r\n\r\n" % (b"a" * 1000),
        b"GET / HTTP/1.1\r\n%b\r\n" % (b"a: b\r\n" * 21),
    ],
    ids=["url", "header", "headers"],
)
async def test_a_complete_head_that_is_too_large_never_reaches_the_application(head: bytes) -> None:
    server = Server()
    connection, transport = server.connect()
    connection.data_received(head)
    await server.settle()
    assert error_of(transport) == TOO_LARGE
    assert not server.scopes


async def test_a_large_head_behind_another_request_is_refused_too() -> None:
    server = Server()
    connection, transport = server.connect()
    connection.data_received(GET + b"GET / HTTP/1.1\r\nx: %b\r\n\r\n" % (b"a" * 1000))
    await server.settle()
    assert len(server.scopes) == 1
    assert transport.is_closed


async def test_a_head_within_the_limits_is_served_however_large_the_body_beside_it() -> None:
    server = Server()
    connection, transport = server.connect()
    fields = b"a: b\r\n" * 19
    connection.data_received(b"POST / HTTP/1.1\r\ncontent-length: 9000\r\n%b\r\n%b" % (fields, b"a" * 9000))
    await server.settle()
    assert transport.sent.startswith(b"HTTP/1.1 200")
    connection.data_received(CHUNKED + b"5dc\r\n%b\r\n0\r\nx: y\r\n\r\n" % (b"a" * 1500))
    await server.settle()
    assert transport.sent.count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("trailers", [b"x: " + b"a" * 1001, b"a: b\r\n" * 21 + b"a: b"], ids=["bytes", "number"])
async def test_trailers_that_are_too_large_are_refused(trailers: bytes, *, whole: bool) -> None:
    server = Server()
    server.may_answer.clear()
    connection, transport = server.connect()
    data = CHUNKED + b"1\r\na\r\n0\r\n" + trailers + b"\r\n\r\n"
    for start in range(0, len(data), len(data) if whole else 20):
        if not transport.sent:
            connection.data_received(data[start : start + (len(data) if whole else 20)])
    await server.settle()
    assert error_of(transport) == TOO_LARGE
    assert server.messages[-1] == "http.disconnect"


async def test_a_chunk_extension_that_never_ends_is_refused() -> None:
    server = Server()
    connection, transport = server.connect()
    connection.data_received(CHUNKED + b"1;")
    for _ in range(20):
        if not transport.sent:
            connection.data_received(b"a" * 100)
    assert error_of(transport) == TOO_LARGE


async def test_trailers_are_no_headers() -> None:
    server = Server()
    connection, _ = server.connect()
    connection.data_received(CHUNKED + b"1\r\na\r\n0\r\nauthorization: Bearer x\r\n\r\n")
    await server.settle()
    assert [name for name, _ in server.scopes[0]["headers"]] == [b"host", b"transfer-encoding"]


async def test_a_connection_that_sends_nothing_is_closed() -> None:
    server = Server()
    _, transport = server.connect()
    server.tick(LIMITS.head_seconds - 1)
    assert not transport.is_closed
    server.tick(1)
    assert transport.is_closed
    assert not transport.sent


async def test_a_head_that_drips_is_refused_in_time() -> None:
    server = Server()
    connection, transport = server.connect()
    server.tick(LIMITS.head_seconds - 1)  # the time counts from the first byte of the head
    for byte in GET[: LIMITS.head_seconds]:
        connection.data_received(bytes([byte]))
        server.tick(1)
    assert error_of(transport) == TOO_SLOW


async def test_a_kept_connection_that_drips_line_ends_is_refused() -> None:
    server = Server()
    connection, transport = server.connect()
    connection.data_received(GET)
    await server.settle()
    for _ in range(LIMITS.head_seconds * 2):
        connection.data_received(b"\r\n")
        server.tick(1)
    assert transport.sent.count(b"HTTP/1.1 408") == 1


async def test_a_body_that_pauses_is_refused() -> None:
    server = Server()
    connection, transport = server.connect()
    connection.data_received(POST + b"a")
    await server.settle()
    server.tick(LIMITS.body_pause_seconds)
    await server.settle()
    assert error_of(transport) == TOO_SLOW
    assert server.messages[-1] == "http.disconnect"


async def test_a_body_that_drips_is_refused_after_the_grace_time() -> None:
    server = Server()
    connection, transport = server.connect()
    connection.data_received(POST.replace(b"10", b"100000"))
    for second in range(LIMITS.body_grace_seconds + 1):
        assert not transport.sent, second
        connection.data_received(b"a")
        await server.settle()
        server.tick(1)
    assert error_of(transport) == TOO_SLOW


async def test_a_steady_body_may_take_any_time() -> None:
    server = Server()
    connection, transport = server.connect()
    connection.data_received(POST.replace(b"10", b"10000"))
    for _ in range(100):
        connection.data_received(b"a" * LIMITS.body_bytes_per_second)
        await server.settle()
        server.tick(1)
    assert transport.sent.startswith(b"HTTP/1.1 200")


async def test_a_client_that_waits_for_the_server_may_wait_for_any_time() -> None:
    server = Server()
    server.may_answer.clear()
    # while its request is answered, also if it has sent more line ends
    connection, transport = server.connect()
    connection.data_received(GET + b"\r\n")
    await server.settle()
    connection.data_received(b"\r\n")
    # while the server has paused reading, and while it has not asked for the body yet
    server.may_read.clear()
    large = POST.replace(b"10", b"100001") + b"a" * 100_000
    for data in (large, POST[:-2] + b"expect: 100-continue\r\n\r\n"):
        other, paused = server.connect()
        other.data_received(data)
        await server.settle()
        server.tick(1000)
        assert not paused.sent
        assert not paused.is_closed
        other.connection_lost(None)
    server.may_read.set()
    server.may_answer.set()
    await server.settle()
    assert transport.sent.startswith(b"HTTP/1.1 200")


async def test_a_client_that_sends_no_more_gets_the_answers_to_its_requests() -> None:
    server = Server()
    server.may_answer.clear()
    connection, transport = server.connect()
    connection.data_received(GET * 2)
    await server.settle()
    assert connection.eof_received()
    server.tick(HALF_CLOSED_SECONDS - 1)
    server.may_answer.set()
    await server.settle()
    assert transport.sent.count(b"HTTP/1.1 200") == 2
    assert transport.is_closed


async def test_a_client_that_sends_no_more_is_cut_off_if_the_answer_takes_too_long() -> None:
    server = Server()
    server.may_answer.clear()
    connection, transport = server.connect()
    connection.data_received(GET)
    await server.settle()
    assert connection.eof_received()
    server.tick(HALF_CLOSED_SECONDS)
    assert transport.is_closed


@pytest.mark.parametrize("data", [b"", GET[:-2], POST], ids=["nothing", "half a head", "half a request"])
async def test_a_client_that_sends_no_more_before_its_request_is_complete_has_left(data: bytes) -> None:
    server = Server()
    connection, _ = server.connect()
    connection.data_received(data)
    await server.settle()
    assert not connection.eof_received()


@pytest.mark.parametrize("is_watched_before", [True, False])
async def test_a_client_that_sends_no_more_and_waits_for_a_model_has_left(*, is_watched_before: bool) -> None:
    server = Server()
    server.may_answer.clear()
    connection, transport = server.connect()
    connection.data_received(GET)
    await server.settle()
    if is_watched_before:
        connection.watch(lambda: None)
        assert not connection.eof_received()
    else:
        assert connection.eof_received()
        connection.watch(lambda: None)
        assert transport.is_closed


async def test_a_request_behind_one_that_waits_for_a_model_does_not_hide_that_the_client_leaves() -> None:
    server = Server()
    server.may_answer.clear()
    connection, transport = server.connect()
    connection.data_received(GET)
    await server.settle()
    connection.watch(lambda: None)
    connection.data_received(GET)
    assert not transport.is_paused


async def test_half_closed_connections_get_answers_over_tcp(tmp_path: Path) -> None:
    async with live(tmp_path) as server, asyncio.timeout(ANSWER_SECONDS):
        token = await server.token()
        port = int(server.url.rpartition(":")[2])
        body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": "hi"}]})
        for line, status in (("GET /jobs", b"200"), ("POST /enqueue", b"200"), ("GET /missing", b"404")):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            content = body if line.startswith("POST") else ""
            head = (
                f"{line} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\ncontent-length: {len(content)}\r\n\r\n"
            )
            writer.write((head + content).encode())
            writer.write_eof()
            assert (await reader.read()).startswith(b"HTTP/1.1 " + status)
            writer.close()


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    """Answer without a look at the body."""
    del scope, receive
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


async def test_a_client_that_has_its_answer_must_end_its_body_or_is_cut_off() -> None:
    server = Server()
    connection, transport = server.connect()
    connection.app = refuse
    connection.data_received(POST)
    await server.settle()
    server.tick(LIMITS.body_pause_seconds)
    assert transport.is_closed
    assert transport.sent.count(b"HTTP/1.1 ") == 1


async def test_a_client_that_has_its_answer_can_end_its_body_and_send_another_request() -> None:
    server = Server()
    connection, transport = server.connect()
    connection.app = refuse
    connection.data_received(POST + b"a" * 5)
    await server.settle()
    server.tick(LIMITS.body_pause_seconds - 1)
    connection.data_received(b"a" * 5 + GET)
    await server.settle()
    assert transport.sent.count(b"HTTP/1.1 401") == 2
    assert not transport.is_closed


async def test_a_body_that_does_not_end_after_the_answer_is_cut_off() -> None:
    server = Server()
    connection, transport = server.connect()
    connection.app = refuse
    connection.data_received(CHUNKED)
    await server.settle()
    for _ in range(BODY_LINGER_SECONDS):
        assert not transport.is_closed
        connection.data_received(b"3e8\r\n%b\r\n" % (b"a" * 1000))
        server.tick(1)
    assert transport.is_closed


@pytest.mark.parametrize(
    "head",
    [POST.replace(b"a\r\n", b"a\r\nconnection: close\r\n", 1), POST.replace(b"1.1", b"1.0")],
    ids=["close", "1.0"],
)
async def test_a_client_that_keeps_no_connection_reads_an_answer_that_comes_before_the_end_of_its_body(
    head: bytes,
) -> None:
    server = Server()
    connection, transport = server.connect()
    connection.app = refuse
    connection.data_received(head.replace(b"10", b"1000000"))
    await server.settle()
    assert b"\r\nconnection: close\r\n" in transport.sent
    assert transport.sent_eof
    for _ in range(BODY_LINGER_SECONDS):
        assert not transport.is_closed
        connection.data_received(b"a" * 100)
        server.tick(1)
    assert transport.is_aborted


async def test_a_connection_without_the_body_that_was_not_asked_for_takes_no_other_request() -> None:
    server = Server()
    connection, transport = server.connect()
    connection.app = refuse
    connection.data_received(POST[:-2] + b"expect: 100-continue\r\n\r\n")
    await server.settle()
    connection.data_received(GET * 2)
    await server.settle()
    assert transport.sent.count(b"HTTP/1.1 401") == 1
    assert b"\r\nconnection: close\r\n" in transport.sent
    assert transport.sent_eof


async def test_a_client_that_reads_nothing_is_cut_off_and_a_slow_one_is_not() -> None:
    server = Server()
    server.may_answer.clear()
    connection, transport = server.connect()
    connection.data_received(GET)
    await server.settle()
    for unread_bytes in (1000, 900, 0, 900):
        transport.unread_bytes = unread_bytes
        server.tick(LIMITS.read_pause_seconds)
        assert not transport.is_closed
    server.tick(1)
    assert transport.is_aborted


async def test_responses_that_nobody_reads_take_a_bounded_memory_together() -> None:
    server = Server()
    _, reading = server.connect()
    _, stalled = server.connect()
    _, smaller = server.connect()
    stalled.unread_bytes, smaller.unread_bytes = 5000, 4000
    server.tick(2)
    assert not stalled.is_closed
    reading.unread_bytes = 6000
    server.tick(1)
    assert [each.is_aborted for each in (reading, stalled, smaller)] == [False, True, False]


async def test_one_connection_too_many_is_refused_and_the_others_go_on() -> None:
    server = Server()
    connections = [server.connect() for _ in range(LIMITS.max_connections)]
    _, surplus = server.connect()
    assert error_of(surplus) == (503, "overloaded")
    assert b"retry-after: 1" in surplus.sent
    assert surplus.is_closed
    connections[0][0].data_received(GET)
    await server.settle()
    assert connections[0][1].sent.startswith(b"HTTP/1.1 200")
    # and a connection that ends makes place for another one
    connections[0][0].connection_lost(None)
    assert not server.connect()[1].is_closed
    assert len(server.registry) == LIMITS.max_connections


async def test_requests_that_wait_on_one_connection_have_a_limit() -> None:
    server = Server()
    server.may_answer.clear()
    connection, transport = server.connect()
    connection.data_received(GET * (1 + LIMITS.max_pipelined))
    await server.settle()
    assert not transport.is_closed
    connection.data_received(GET)
    assert transport.is_closed
    server.may_answer.set()
    await server.settle()
    assert transport.late_writes == 0


@pytest.mark.parametrize("end", ["left", "refused"])
async def test_the_running_request_learns_that_nobody_waits_also_if_others_wait_behind_it(end: str) -> None:
    server, messages = Server(), list[str]()

    async def listen(_scope: Any, receive: Any, _send: Any) -> None:
        while not messages or messages[-1] != "http.disconnect":
            messages.append((await receive())["type"])

    connection, transport = server.connect()
    connection.app = listen
    connection.data_received(GET * 3)
    await server.settle()
    assert messages == ["http.request"]
    if end == "left":
        transport.close()
        connection.connection_lost(None)
    else:
        connection.data_received(b"no request\r\n\r\n")
    await server.settle()
    assert messages == ["http.request", "http.disconnect"]


async def test_a_refused_client_can_read_the_error_and_is_cut_off_afterwards() -> None:
    server = Server()
    connection, transport = server.connect()
    connection.data_received(b"GET / HTTP/1.1\r\nx: " + b"a" * 2000)
    assert error_of(transport) == TOO_LARGE
    assert transport.sent_eof
    assert not transport.is_closed
    server.tick(LINGER_SECONDS)
    assert transport.is_aborted


async def test_a_request_that_is_not_http_gets_an_error_of_the_same_form() -> None:
    server = Server()
    connection, transport = server.connect()
    connection.data_received(b"\x16\x03\x01\r\n\r\n")
    assert error_of(transport) == (400, "bad_request")


class Timers:
    """Loop that records its timers and runs them by hand."""

    def __init__(self) -> None:
        self.delays = list[float]()
        self._callbacks = list[Callable[[], object]]()

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> object:
        """Record a timer."""
        self.delays.append(delay)
        self._callbacks.append(lambda: callback(*args))
        return object()

    def run(self) -> None:
        """Run the one timer that is set, if there is one."""
        callbacks, self._callbacks = self._callbacks, []
        assert len(callbacks) <= 1
        for callback in callbacks:
            callback()


def timed_connection(server: Server, timers: Timers) -> ClientConnection:
    """Return a new connection whose loop has these timers."""
    connection = ClientConnection(server.config, server.state, {}, timers, registry=server.registry)  # type: ignore[arg-type]
    connection.connection_made(Transport())
    return connection


async def test_one_timer_serves_all_connections_and_ends_with_the_last() -> None:
    server, timers = Server(), Timers()
    connections = [timed_connection(server, timers) for _ in range(3)]
    assert timers.delays == [1]
    timers.run()
    assert timers.delays == [1, 1]
    for connection in connections:
        connection.connection_lost(None)
    for _ in range(3):
        timers.run()
    assert timers.delays == [1, 1]
    timed_connection(server, timers)
    assert timers.delays == [1, 1, 1]


async def test_a_fault_in_one_connection_does_not_stop_the_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    server, timers = Server(), Timers()
    connection = timed_connection(server, timers)

    def fail() -> None:
        raise OSError("broken")

    monkeypatch.setattr(connection, "tick", fail)
    for _ in range(3):
        with pytest.raises(OSError, match="broken"):
            timers.run()
    assert timers.delays == [1, 1, 1, 1]


async def test_a_client_reads_the_error_although_it_goes_on_sending(tmp_path: Path) -> None:
    async with live(tmp_path) as server, asyncio.timeout(ANSWER_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
        writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 2**20)
        response = await reader.read()
        assert response.startswith(b"HTTP/1.1 431 ")
        assert b"head_too_large" in response
        writer.close()


async def test_a_client_reads_the_answer_that_comes_before_the_end_of_its_body(tmp_path: Path) -> None:
    async with live(tmp_path) as server, asyncio.timeout(ANSWER_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
        writer.write(b"POST /enqueue HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 16777216\r\n\r\n")
        for _ in range(16):
            writer.write(b" " * 2**20)
            await writer.drain()
        assert (await reader.read()).startswith(b"HTTP/1.1 401 ")
        writer.close()


async def test_the_setting_max_connections_is_the_number_of_connections(tmp_path: Path) -> None:
    async with live(tmp_path, max_connections=2) as server, asyncio.timeout(ANSWER_SECONDS):
        port = int(server.url.rpartition(":")[2])
        streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for reader, writer in streams[:2]:
            writer.write(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        assert (await streams[2][0].readline()).startswith(b"HTTP/1.1 503 ")
        for _, writer in streams:
            writer.close()


async def test_a_stop_serves_a_request_that_is_on_its_way_and_closes_idle_connections() -> None:
    # given a connection that is new, one with a part of a head, an idle one, and one whose request is answered
    server = Server()
    (new, new_transport), (partial, partial_transport) = server.connect(), server.connect()
    partial.data_received(GET[:10])
    idle, idle_transport = server.connect()
    idle.data_received(GET)
    await server.settle()
    idle.shutdown()
    assert idle_transport.is_closed
    idle.connection_lost(None)
    server.may_answer.clear()
    running, running_transport = server.connect()
    running.data_received(GET)
    await server.settle()
    # when the server stops
    for connection in (new, partial, running):
        connection.shutdown()
    # then only the idle one is closed, and the requests of the others get their answers
    assert [each.is_closed for each in (new_transport, partial_transport, running_transport)] == [False] * 3
    new.data_received(GET)
    partial.data_received(GET[10:])
    server.may_answer.set()
    await server.settle()
    for transport in (new_transport, partial_transport, running_transport):
        assert transport.sent.startswith(b"HTTP/1.1 200")
        assert transport.is_closed


async def test_a_stop_does_not_wait_for_a_connection_that_sends_nothing() -> None:
    server = Server()
    connection, transport = server.connect()
    connection.shutdown()
    server.tick(LAST_HEAD_SECONDS)
    assert transport.is_closed
    assert not transport.sent

"""Responses on a connection: how they are framed, and what is sent at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from server.test_protocol import GET, LIMITS, Transport
from signoff.server.protocol import ClientConnection, ConnectionRegistry
from signoff.server.serving import uvicorn_options

pytestmark = pytest.mark.anyio
LENGTH = (b"content-length", b"2")
OK = b"HTTP/1.1 200 OK\r\n"


class Writes(Transport):
    """Transport that records each write of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = list[bytes]()

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        """Record the data as one write."""
        self.writes.append(b"".join(list_of_data))
        self.write(self.writes[-1])


def start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data: bytes = b"", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def exchange(messages: Sequence[dict[str, Any]], request: bytes = GET) -> tuple[Writes, str, ClientConnection]:
    """Return the transport, the message of the error, and the connection after an application has sent `messages`."""
    failure, is_over = "", asyncio.Event()

    async def application(_scope: Any, _receive: Any, send: Any) -> None:
        nonlocal failure
        try:
            for message in messages:
                await send(message)
        except RuntimeError as error:
            failure = str(error)
        is_over.set()

    config = uvicorn.Config(application, interface="asgi3", **uvicorn_options(1, drain_seconds=1))
    loop, registry = asyncio.get_running_loop(), ConnectionRegistry(LIMITS)
    connection, transport = ClientConnection(config, ServerState(), {}, loop, registry=registry), Writes()
    connection.connection_made(transport)
    connection.data_received(request)
    await is_over.wait()
    return transport, failure, connection


async def test_a_whole_response_is_one_write() -> None:
    transport, _, _ = await exchange([start(LENGTH), body(b"ok")])
    assert transport.writes == [OK + b"content-length: 2\r\n\r\nok"]
    assert not transport.is_closed


async def test_a_stream_begins_before_its_first_event_and_each_event_is_one_write() -> None:
    messages = [start((b"X-A", b"1")), body(b"one", more=True), body(b"", more=True), body(b"two"), body()]
    transport, failure, _ = await exchange(messages)
    head = OK + b"X-A: 1\r\ntransfer-encoding: chunked\r\n\r\n"
    assert [write for write in transport.writes if write] == [
        head,
        b"3\r\none\r\n",
        b"3\r\ntwo\r\n0\r\n\r\n",
    ]
    assert "must not be sent" in failure


@pytest.mark.parametrize(
    ("request_line", "headers", "sent"),
    [
        (b"HEAD / HTTP/1.1", [LENGTH], OK + b"content-length: 2\r\n\r\n"),
        (b"HEAD / HTTP/1.1", [], OK + b"\r\n"),
        (b"GET / HTTP/1.0", [LENGTH], OK + b"content-length: 2\r\nconnection: close\r\n\r\nok"),
        (
            b"GET / HTTP/1.1",
            [LENGTH, (b"Connection", b"Close")],
            OK + b"content-length: 2\r\nConnection: Close\r\n\r\nok",
        ),
    ],
    ids=["head", "head without a length", "http 1.0", "close"],
)
async def test_a_response_has_the_form_that_the_request_allows(
    request_line: bytes, headers: list[tuple[bytes, bytes]], sent: bytes
) -> None:
    messages = [start(*headers), body(b"ok")]
    transport, failure, _ = await exchange(messages, request_line + b"\r\nhost: a\r\n\r\n")
    assert (transport.sent, failure) == (sent, "")
    assert transport.is_closed == (b"lose\r\n" in sent)


async def test_a_stream_to_a_client_of_http_1_0_ends_with_its_connection() -> None:
    messages = [start(), body(b"one", more=True), body(b"two")]
    transport, failure, _ = await exchange(messages, b"GET / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n")
    assert (transport.writes[0], failure) == (OK + b"connection: close\r\n\r\n", "")
    assert transport.sent == OK + b"connection: close\r\n\r\nonetwo"
    assert transport.is_closed


async def test_a_status_without_a_body_has_no_framing() -> None:
    transport, failure, _ = await exchange([start(status=204), body()])
    assert (transport.sent, failure) == (b"HTTP/1.1 204 No Content\r\n\r\n", "")


@pytest.mark.parametrize(
    ("messages", "failure"),
    [
        ([start(LENGTH), body(b"long")], "longer"),
        ([start(LENGTH), body(b"x")], "shorter"),
        ([start(LENGTH), start(LENGTH)], "must not be sent"),
        ([body(b"ok")], "must not be sent"),
        ([start((b"x-a", b"1\r\nx-b: 2"))], "line break"),
        ([start((b"x-a", b"1\nx-b: 2"))], "line break"),
        ([start((b"x-a\r", b"1"))], "line break"),
    ],
)
async def test_a_response_that_clients_would_misread_is_an_error(messages: list[dict[str, Any]], failure: str) -> None:
    transport, error, _ = await exchange(messages)
    assert failure in error
    assert b"x-b" not in transport.sent


async def test_a_connection_without_a_request_is_closed_after_a_while() -> None:
    transport, _, connection = await exchange([start(LENGTH), body(b"ok")])
    for _ in range(connection.timeout_keep_alive):
        connection.tick()
    assert not transport.is_closed
    connection.tick()
    assert transport.is_closed

"""An HTTP/1.1 server on a plain socket, which records requests and sends scripted replies, also malformed ones."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal, Self

LIMIT_SECONDS = 30.0
"""Longest time that a test waits for an event; only a failing test waits that long."""


@dataclass
class RecordedRequest:
    """A request as it arrived."""

    method: str
    path: str
    """With the query, as it was sent."""
    headers: dict[str, str]
    """By lowercase name."""
    number: int
    """Its number at this server, from 1."""
    connection: int
    """The number of its connection at this server, from 1."""
    is_first: bool
    """True if it is the first of its connection."""
    body: bytes = b""

    def json(self) -> Any:
        """Return the decoded body."""
        return json.loads(self.body)


ReplyStep = bytes | Callable[["FakeServer"], Awaitable[bytes | None]]
"""Bytes to send, or an async function of the server that is awaited and may return bytes to send."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The reply to one request. `whole`, `chunked`, `raw` and `json_reply` make the usual ones."""

    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    before: tuple[ReplyStep, ...] = ()
    """Steps before the head."""
    steps: tuple[ReplyStep, ...] = ()
    """The body: each step is a write of its own, and a chunk if the framing is `chunked`."""
    repeat: ReplyStep | None = None
    """A step that follows the others again and again."""
    framing: Literal["length", "chunked", "until-close", "raw"] = "length"
    """Delimitation of the body; a `raw` reply has no head but the one that its steps send."""
    length: int | None = None
    """The announced `content-length`, if it is not the size of the steps."""
    end: Literal["keep", "close", "reset", "hang"] = "keep"
    """Fate of the connection after the steps: it serves on, is closed without the end of a chunked body, is reset, or
    stays open without an answer until the client leaves."""
    reads_body: bool = True
    """False if the request's body is left in the socket. Only for a reply that does not depend on the request."""

    def head(self) -> bytes:
        """Return the status line and the headers."""
        fields = {"content-type": self.content_type, **self.headers}
        match self.framing:
            case "raw":
                return b""
            case "chunked":
                fields["transfer-encoding"] = "chunked"
            case "until-close":
                fields["connection"] = "close"
            case "length":
                size = sum(len(step) for step in self.steps if isinstance(step, bytes))
                fields["content-length"] = str(size if self.length is None else self.length)
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}", *map(": ".join, fields.items())]
        return "\r\n".join([*lines, "", ""]).encode()

    def body(self) -> Iterator[ReplyStep]:
        """Yield every step, and repeat the last one without end if the reply says so."""
        yield from self.steps
        while self.repeat is not None:
            yield self.repeat


def whole(body: bytes, **more: Any) -> Reply:
    """Return a reply with a `content-length`."""
    return Reply(steps=(body,), **more)


def json_reply(payload: Any, **more: Any) -> Reply:
    """Return a reply whose body is `payload` as JSON."""
    return whole(json.dumps(payload).encode(), **more)


def chunked(*steps: ReplyStep, **more: Any) -> Reply:
    """Return a stream of server-sent events, or of what `content_type` says."""
    return Reply(**{"steps": steps, "framing": "chunked", "content_type": "text/event-stream"} | more)


def raw(*steps: ReplyStep, **more: Any) -> Reply:
    """Return a reply that consists of `steps`, including its status line and headers."""
    return Reply(steps=steps, framing="raw", **more)


def chunk(data: bytes) -> bytes:
    """Encode one chunk of a chunked body; the empty one ends the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def sse_event(data: Any, *, name: str = "", newline: str = "\n") -> bytes:
    """Encode one server-sent event; `data` is text, or a value to send as JSON."""
    text = data if isinstance(data, str) else json.dumps(data)
    return f"{f'event: {name}{newline}' if name else ''}data: {text}{newline}{newline}".encode()


def pause(seconds: float, then: bytes | None = None) -> ReplyStep:
    """Return a step that sends `then` after a pause."""

    async def step(_: FakeServer) -> bytes | None:
        await asyncio.sleep(seconds)
        return then

    return step


async def wait_for_wake(server: FakeServer) -> None:
    """Set `stuck`, and wait until the test sets `wake`."""
    server.stuck.set()
    await server.wake.wait()


class FakeServer:
    """A server that sends what `reply` returns. It runs while it is entered with `async with`."""

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host = host
        self.port = port
        """The port to listen on; 0 for a free one, which is then here."""
        self.requests: list[RecordedRequest] = []
        """Every request whose body was read."""
        self.sent_bytes = 0
        self.opened = 0
        """The number of connections, ever."""
        self.open = 0
        """The number of connections, now."""
        self.stuck = asyncio.Event()
        """Set when a client was sent all that will come for now."""
        self.wake = asyncio.Event()
        """Set by the test, for replies that wait for it."""
        self._heads = 0
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._changed = asyncio.Condition()

    async def reply(self, request: RecordedRequest) -> Reply:
        """Return the reply to a request that was read."""
        raise NotImplementedError

    def reply_unread(self, request: RecordedRequest) -> Reply | None:
        """Return the reply to a request whose body is not to be read, if this is one."""

    @property
    def url(self) -> str:
        """The base address."""
        return f"http://{self.host}:{self.port}"

    async def received(self, count: int = 1) -> list[RecordedRequest]:
        """Return all requests, once there are `count`. Raises TimeoutError after LIMIT_SECONDS."""
        async with asyncio.timeout(LIMIT_SECONDS), self._changed:
            await self._changed.wait_for(lambda: len(self.requests) >= count)
        return self.requests

    async def until_stuck(self) -> None:
        """Wait for `stuck`. Raises TimeoutError after LIMIT_SECONDS."""
        async with asyncio.timeout(LIMIT_SECONDS):
            await self.stuck.wait()

    async def all_closed(self) -> bool:
        """Return True as soon as no connection is open; False if one still is after LIMIT_SECONDS."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LIMIT_SECONDS), self._changed:
                await self._changed.wait_for(lambda: self.open == 0)
        return self.open == 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self.host, self.port, backlog=256)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task, writer in self._connections.items():
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        self.opened += 1
        self.open += 1
        connection, is_first = self.opened, True
        writer.transport.set_write_buffer_limits(high=0)  # what was sent has left this process
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                self._heads += 1
                request = _parse_head(head, self._heads, connection, is_first=is_first)
                is_first = False
                reply = self.reply_unread(request)
                if reply is None:
                    request.body = await reader.readexactly(int(request.headers.get("content-length", "0")))
                await self._record(request)
                await self._send(reply or await self.reply(request), request, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client left, or this server stops
        finally:
            writer.close()
            del self._connections[task]
            self.open -= 1
            async with self._changed:
                self._changed.notify_all()

    async def _record(self, request: RecordedRequest) -> None:
        self.requests.append(request)
        async with self._changed:
            self._changed.notify_all()

    async def _send(
        self, reply: Reply, request: RecordedRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        for step in reply.before:
            await self._write(writer, await self._bytes_of(step))
        await self._write(writer, reply.head())
        for step in reply.body():
            data = await self._bytes_of(step)
            await self._write(writer, chunk(data) if data and reply.framing == "chunked" else data)
        match reply.end:
            case "keep":
                await self._write(writer, chunk(b"") if reply.framing == "chunked" else b"")
            case "close":
                writer.close()
            case "hang":
                self.stuck.set()
                while data := await reader.read(2**16):
                    request.body += data
                writer.close()
            case "reset":
                peer: socket.socket = writer.get_extra_info("socket")
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()

    async def _bytes_of(self, step: ReplyStep) -> bytes:
        return step if isinstance(step, bytes) else await step(self) or b""

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if writer.is_closing():  # where asyncio writes into the void, uvloop raises RuntimeError
            raise ConnectionResetError
        if data:
            writer.write(data)
            await writer.drain()
            self.sent_bytes += len(data)


def _parse_head(head: bytes, number: int, connection: int, *, is_first: bool) -> RecordedRequest:
    start, *lines = head.decode("latin-1").rstrip().split("\r\n")
    method, path, _ = start.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return RecordedRequest(method, path, headers, number, connection, is_first)

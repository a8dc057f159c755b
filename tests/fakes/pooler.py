"""A pooler in transaction mode: each transaction runs on another connection of the server, as PgBouncer does it.

It knows as much of PostgreSQL's protocol as that takes: the start of a session, and when the server is ready again
(https://www.postgresql.org/docs/current/protocol-message-formats.html). It cannot encrypt, and knows no passwords.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

SSL_REQUEST, CANCEL_REQUEST = 80877103, 80877102
SERVERS = 3
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class TransactionPooler:
    """Pooler before the server of `url`; the connections of one kind of session rotate with each transaction."""

    def __init__(self, url: str) -> None:
        self._server = urlsplit(url)
        self._idle: dict[bytes, asyncio.Queue[Stream]] = {}
        self._greetings: dict[bytes, bytes] = {}
        self._locks: dict[bytes, asyncio.Lock] = {}
        self._pids = itertools.count(1_000_000)
        self._writers = set[asyncio.StreamWriter]()
        self._clients = set[asyncio.Task[None] | None]()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        self._writers.add(writer)
        self._clients.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            startup = await _read_startup(reader)
            while startup[:4] == struct.pack("!i", SSL_REQUEST):
                writer.write(b"N")
                startup = await _read_startup(reader)
            await self._open_servers(startup)
            secret = struct.pack("!ciii", b"K", 12, next(self._pids), 0)
            writer.write(self._greetings[startup] + secret + b"Z\0\0\0\x05I")
            await self._relay(startup, reader, writer)
        writer.close()

    async def close(self) -> None:
        """Close all connections."""
        clients = [client for client in self._clients if client is not None]
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _open_servers(self, startup: bytes) -> None:
        async with self._locks.setdefault(startup, asyncio.Lock()):
            if startup in self._idle:
                return
            servers = asyncio.Queue[Stream]()
            for _ in range(SERVERS):
                reader, writer = await asyncio.open_connection(self._server.hostname, self._server.port)
                self._writers.add(writer)
                writer.write(struct.pack("!i", len(startup) + 4) + startup)
                greeting = b""
                while (message := await _read_message(reader))[:1] != b"Z":
                    greeting += message if message[:1] in {b"R", b"S"} else b""
                self._greetings[startup] = greeting
                servers.put_nowait((reader, writer))
            self._idle[startup] = servers

    async def _relay(self, startup: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward messages of the client to a server, which it has until its transaction ends."""
        messages = asyncio.Queue[bytes]()
        reading = asyncio.ensure_future(_read_all(reader, messages))
        while (message := await messages.get())[:1] not in {b"X", b""}:
            server = await self._idle[startup].get()
            unanswered, is_idle = 0, False
            answer = asyncio.ensure_future(_read_message(server[0]))
            while unanswered or not is_idle:
                if message:
                    unanswered, is_idle = unanswered + (message[:1] in {b"Q", b"S"}), False
                    server[1].write(message)
                following = asyncio.ensure_future(messages.get())
                await asyncio.wait({answer, following}, return_when=asyncio.FIRST_COMPLETED)
                message = following.result() if following.done() else b""
                following.cancel()
                if answer.done():
                    writer.write(answer.result())
                    unanswered -= answer.result()[:1] == b"Z"
                    is_idle = answer.result()[:1] == b"Z" and answer.result()[5:] == b"I"
                    if unanswered or not is_idle or message:
                        answer = asyncio.ensure_future(_read_message(server[0]))
            self._idle[startup].put_nowait(server)
        reading.cancel()
        await asyncio.wait([reading])


async def _read_all(reader: asyncio.StreamReader, messages: asyncio.Queue[bytes]) -> None:
    """Put all messages of the client into the queue, and nothing at its end."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            messages.put_nowait(await _read_message(reader))
    messages.put_nowait(b"X")


async def _read_startup(reader: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack("!i", await reader.readexactly(4))
    return await reader.readexactly(length - 4)


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    (length,) = struct.unpack("!i", head[1:])
    return head + await reader.readexactly(length - 4)


@contextlib.asynccontextmanager
async def pooled(url: str) -> AsyncIterator[str]:
    """Yield the address of the database `url` through a pooler."""
    pooler = TransactionPooler(url)
    server = await asyncio.start_server(pooler.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield urlsplit(url)._replace(netloc=f"{urlsplit(url).netloc.rpartition('@')[0]}@127.0.0.1:{port}").geturl()
    finally:
        server.close()
        await pooler.close()
        await server.wait_closed()

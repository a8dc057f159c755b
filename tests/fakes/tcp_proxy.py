"""A TCP proxy in front of a server, which tests can cut, block and restore."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self
from urllib.parse import urlsplit

CHUNK_BYTES = 65536


class TcpProxy:
    """A proxy that forwards connections from `url`, which is the server's address with another port.

    It runs while it is entered with `async with`.
    """

    def __init__(self, url: str) -> None:
        self._far = urlsplit(url)
        self._port = 0
        self._server: asyncio.Server | None = None
        self._wires = set[asyncio.StreamWriter]()
        self._clients = set[asyncio.StreamWriter]()
        self._stranded = set[asyncio.StreamWriter]()
        self._flows = asyncio.Event()
        self._flows.set()
        self.calls = 0
        """The number of connections, ever."""

    @property
    def url(self) -> str:
        """The address to use instead of the server's."""
        user, at, _ = self._far.netloc.rpartition("@")
        return self._far._replace(netloc=f"{user}{at}127.0.0.1:{self._port}").geturl()

    @property
    def standing(self) -> int:
        """The number of open connections."""
        return len(self._clients)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.unblock()
        await self.shut()

    async def open(self) -> None:
        """Accept connections, at the same address each time."""
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        """Act as if the server were gone: reset every connection, and refuse new ones."""
        if self._server is not None:
            self._server.close()
        self.cut()

    def cut(self) -> None:
        """Reset every connection, on both sides."""
        for wire in [*self._wires, *self._stranded]:
            wire.transport.abort()
        self._stranded.clear()

    def strand(self) -> None:
        """Make every connection half-open: close it on the side of the server only."""
        self._stranded |= self._clients
        for wire in self._wires - self._clients:
            wire.transport.abort()

    def block(self) -> None:
        """Stop forwarding, without closing a connection."""
        self._flows.clear()

    def unblock(self) -> None:
        """Forward again, beginning with the data that was held back."""
        self._flows.set()

    def tell_clients(self, words: bytes) -> None:
        """Send `words` to every client, as if the server had sent them."""
        for client in self._clients:
            client.write(words)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.calls += 1
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(self._far.hostname, self._far.port)
            self._wires |= {writer, far_writer}
            self._clients.add(writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, far_writer))
                group.create_task(self._pass(far_reader, writer))
        if writer not in self._stranded:
            writer.close()
        self._clients.discard(writer)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # uvloop raises either when a connection is cut
            while data := await reader.read(CHUNK_BYTES):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        if writer not in self._stranded:
            writer.close()
        self._wires.discard(writer)

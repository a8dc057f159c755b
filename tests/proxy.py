"""A wire to a server which tests can cut, block and restore."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

CHUNK_BYTES = 65536


class Proxy:
    """Passes on what comes to `url`, an address like that of the server but for the port."""

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
        """How often somebody connected."""

    @property
    def url(self) -> str:
        """The address to use instead of the server's."""
        user = self._far.netloc.rpartition("@")[0]
        return self._far._replace(netloc=f"{user}@127.0.0.1:{self._port}").geturl()

    @property
    def standing(self) -> int:
        """How many connections stand."""
        return len(self._clients)

    async def open(self) -> None:
        """Takes calls, at the same address each time."""
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        """The server is gone: what stands is cut, and calls are refused."""
        if self._server is not None:
            self._server.close()
        self.cut()

    def cut(self) -> None:
        """Resets every connection, on both sides."""
        for wire in [*self._wires, *self._stranded]:
            wire.transport.abort()
        self._stranded.clear()

    def strand(self) -> None:
        """Half-open: the server has lost every connection, and no client is told."""
        self._stranded |= self._clients
        for wire in self._wires - self._clients:
            wire.transport.abort()

    def block(self) -> None:
        """Nothing passes any more, and nobody is told."""
        self._flows.clear()

    def unblock(self) -> None:
        """What was held back passes."""
        self._flows.set()

    def tell_clients(self, words: bytes) -> None:
        """Says something in the server's stead."""
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
        with contextlib.suppress(OSError, RuntimeError):  # whichever uvloop raises when the wire is cut
            while data := await reader.read(CHUNK_BYTES):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        if writer not in self._stranded:
            writer.close()
        self._wires.discard(writer)


@contextlib.asynccontextmanager
async def between(url: str) -> AsyncIterator[Proxy]:
    """A wire to the server at `url`, while the block runs."""
    proxy = Proxy(url)
    await proxy.open()
    try:
        yield proxy
    finally:
        proxy.unblock()
        await proxy.shut()

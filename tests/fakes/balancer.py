"""A load balancer that passes connections on to servers, to the next one if a server refuses them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from typing import Self

CHUNK_BYTES = 65536


class Balancer:
    """A balancer of connections to these ports of this host. It runs while it is entered with `async with`.

    The servers take turns; or the first one that accepts connections gets them all.
    """

    def __init__(self, ports: Sequence[int], *, by_turns: bool = True) -> None:
        self._ports, self._by_turns = ports, by_turns
        self._turns = itertools.count()
        self._server: asyncio.Server | None = None
        self.refused = 0
        """The number of connections that a server refused, and another one got."""

    @property
    def port(self) -> int:
        """Return the port that clients use."""
        assert self._server is not None
        return self._server.sockets[0].getsockname()[1]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            far_reader, far_writer = await self._open()
            with contextlib.closing(far_writer):
                async with asyncio.TaskGroup() as group:
                    group.create_task(_pass(reader, far_writer))
                    group.create_task(_pass(far_reader, writer))

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        turn = next(self._turns) if self._by_turns else 0
        for number in range(len(self._ports)):
            try:
                return await asyncio.open_connection("127.0.0.1", self._ports[(turn + number) % len(self._ports)])
            except ConnectionRefusedError:
                self.refused += 1
        raise ConnectionRefusedError("no server listens")


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what comes, and then its end, so that each side learns of it."""
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        writer.write_eof()

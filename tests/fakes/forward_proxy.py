"""A forward proxy, which sends every request to one server, whatever host it names, and records what it was sent."""

from __future__ import annotations

import asyncio
from typing import Self


class ForwardProxy:
    """A proxy for `async with`, which answers `status` instead if that is not 200."""

    def __init__(self, port: int, *, status: int = 200) -> None:
        self.heads = list[list[str]]()
        """Request line and headers of each request."""
        self.url = ""
        self._port = port
        self._status = status

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head.decode().split("\r\n")[:-2])
            if self._status != 200:
                writer.write(b"HTTP/1.1 %d Denied\r\ncontent-length: 0\r\n\r\n" % self._status)
                return
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._port)
            if head.startswith(b"CONNECT "):
                writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            else:
                upstream_writer.write(head)
            await asyncio.gather(_copy(reader, upstream_writer), _copy(upstream_reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()

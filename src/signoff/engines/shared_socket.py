"""The owner's socket, through which other processes of this host talk with a program that speaks lines."""

from __future__ import annotations

import asyncio
import os
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import msgspec

from signoff.core.model import Timeouts
from signoff.engines.jsonl import FAREWELL, MAX_LINE_BYTES, JsonLinesClient, NotDelivered
from signoff.errors import ModelCrashed, SignoffError

BACKLOG = 128
FAREWELL_SECONDS = 1
# Linux takes 107 bytes, macOS 103.
LONGEST_ADDRESS_BYTES = 100
# An answer goes on in an envelope.
LIMIT_BYTES = MAX_LINE_BYTES + 4096


class _SocketRequest(msgspec.Struct):
    id: str
    operation: str
    body: msgspec.Raw


class _Failure(msgspec.Struct):
    code: str
    message: str


@asynccontextmanager
async def serve_socket(
    path: Path, lines: JsonLinesClient, timeouts: Callable[[], Timeouts]
) -> AsyncGenerator[None, None]:
    """Others may ask at `path` while the block lasts; at its end each of them is told."""
    host = _SocketServer(lines, timeouts)
    _forget(path)
    with _address(path) as address:
        server = await asyncio.start_unix_server(host.serve, address, limit=LIMIT_BYTES, backlog=BACKLOG)
    try:
        yield
    finally:
        server.close()
        _forget(path)
        await host.leave()


async def connect_socket(
    name: str, path: Path, spawn: Callable[[Coroutine[None, None, None]], object]
) -> JsonLinesClient:
    """The way to the owner's program. Raises NotAsked where nobody listens."""
    try:
        with _address(path) as address:
            reader, writer = await asyncio.open_unix_connection(address, limit=LIMIT_BYTES)
    except OSError as error:
        raise NotDelivered(f"The model {name} has just stopped.") from error
    lines = JsonLinesClient(name, reader, writer, prefix="", hang_up=writer.close, by_id=True)

    async def follow() -> None:
        try:
            await lines.follow()
        finally:
            lines.crashed("lost the server process that owned it, before it had answered.")
            writer.close()

    spawn(follow())
    return lines


class _SocketServer:
    """The owner's side: each line of a neighbour is a request, and each of its answers a line."""

    def __init__(self, lines: JsonLinesClient, timeouts: Callable[[], Timeouts]) -> None:
        self._lines = lines
        self._timeouts = timeouts
        self._neighbours = set[StreamWriter]()
        self._relays = set[asyncio.Task[None]]()

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """One neighbour, until it leaves."""
        mine = set[asyncio.Task[None]]()
        self._neighbours.add(writer)
        try:
            async with asyncio.TaskGroup() as group:
                with suppress(OSError, ValueError):
                    while line := await reader.readline():
                        asked = msgspec.json.decode(line, type=_SocketRequest)
                        relay = group.create_task(self._relay(asked, writer))
                        for tasks in (mine, self._relays):
                            tasks.add(relay)
                            relay.add_done_callback(tasks.discard)
                for relay in mine:
                    relay.cancel()
        finally:
            self._neighbours.discard(writer)
            writer.close()

    async def _relay(self, asked: _SocketRequest, writer: StreamWriter) -> None:
        try:
            talk = self._lines.ask(asked.operation, bytes(asked.body), self._timeouts())
            async with aclosing(talk) as answers:
                async for said in answers:
                    await _write(writer, {"id": asked.id, said.kind: msgspec.Raw(said.raw)})
        except NotDelivered:
            pass  # the farewell says so
        except SignoffError as error:
            await _write(writer, {"id": asked.id, "failure": _Failure(error.code, error.message)})

    async def leave(self) -> None:
        """Tell each neighbour what became of its requests, and that no more can be made."""
        self._lines.end(ModelCrashed("The model was stopped before it had answered."))
        if self._relays:
            await asyncio.wait(set(self._relays), timeout=FAREWELL_SECONDS)
        for writer in list(self._neighbours):
            with suppress(OSError):
                writer.write(FAREWELL)
            writer.close()  # which ends its `serve`


async def _write(writer: StreamWriter, line: dict[str, object]) -> None:
    with suppress(OSError):
        writer.write(msgspec.json.encode(line) + b"\n")
        await writer.drain()


def _forget(path: Path) -> None:
    path.unlink(missing_ok=True)


@contextmanager
def _address(path: Path) -> Generator[str]:
    """`path`, by a shorter way where it is too long for a socket's address."""
    if len(os.fsencode(path)) <= LONGEST_ADDRESS_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)

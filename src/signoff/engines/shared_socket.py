"""Unix socket through which other processes of this host use a program that speaks JSON lines.

The process that started the program, its owner, listens; the others connect.
"""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import msgspec

from signoff.core.model import Timeouts
from signoff.engines.jsonl import MAX_LINE_BYTES, SHUTDOWN_LINE, JsonLinesClient, NotDelivered
from signoff.errors import ModelCrashed, SignoffError
from signoff.infra.unix_socket import socket_address

BACKLOG = 128
DRAIN_SECONDS = 1
# An answer is wrapped in an envelope.
MAX_ENVELOPE_BYTES = MAX_LINE_BYTES + 4096


class _SocketRequest(msgspec.Struct):
    id: str
    operation: str
    body: msgspec.Raw


class _Failure(msgspec.Struct):
    code: str
    message: str


@asynccontextmanager
async def serve_socket(
    path: Path, client: JsonLinesClient, timeouts: Callable[[], Timeouts]
) -> AsyncGenerator[None, None]:
    """Serve requests of other processes at `path` for the duration of the block.

    At its end, pending requests get an error and each connection gets SHUTDOWN_LINE.
    """
    relay = _SocketServer(client, timeouts)
    _unlink(path)
    with socket_address(path) as address:
        server = await asyncio.start_unix_server(relay.serve, address, limit=MAX_ENVELOPE_BYTES, backlog=BACKLOG)
    try:
        yield
    finally:
        server.close()
        _unlink(path)
        await relay.close()


async def connect_socket(
    name: str, path: Path, start_task: Callable[[Coroutine[None, None, None]], object]
) -> JsonLinesClient:
    """Connect to the owner of the program. Raises NotDelivered if no process listens at `path`."""
    try:
        with socket_address(path) as address:
            reader, writer = await asyncio.open_unix_connection(address, limit=MAX_ENVELOPE_BYTES)
    except OSError as error:
        raise NotDelivered(f"The model {name} has just stopped.") from error
    # The owner answers in any order, so answers are matched by id.
    client = JsonLinesClient(name, reader, writer, prefix="", disconnect=writer.close, by_id=True)

    async def read_responses() -> None:
        try:
            await client.read_responses()
        finally:
            client.close_crashed("stopped before it answered: the server process that owned it ended.")
            writer.close()

    start_task(read_responses())
    return client


class _SocketServer:
    """Server of the owner: each line of a connection is a request, each message of an answer is a line."""

    def __init__(self, client: JsonLinesClient, timeouts: Callable[[], Timeouts]) -> None:
        self._client = client
        self._timeouts = timeouts
        self._writers = set[StreamWriter]()
        self._relays = set[asyncio.Task[None]]()

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Serve one connection until the other side closes it."""
        relays = set[asyncio.Task[None]]()
        self._writers.add(writer)
        try:
            async with asyncio.TaskGroup() as group:
                with suppress(OSError, ValueError):  # a broken connection; a line that is too long or no request
                    while line := await reader.readline():
                        request = msgspec.json.decode(line, type=_SocketRequest)
                        relay = group.create_task(self._relay(request, writer))
                        for tasks in (relays, self._relays):
                            tasks.add(relay)
                            relay.add_done_callback(tasks.discard)
                for relay in relays:
                    relay.cancel()
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _relay(self, request: _SocketRequest, writer: StreamWriter) -> None:
        try:
            exchange = self._client.ask(request.operation, bytes(request.body), self._timeouts())
            async with aclosing(exchange) as messages:
                async for message in messages:
                    await _write(writer, {"id": request.id, message.kind: msgspec.Raw(message.raw)})
        except NotDelivered as error:
            if not self._client.is_closed:  # else SHUTDOWN_LINE reports it
                await _write(writer, {"id": request.id, "failure": _Failure(error.code, error.message)})
        except SignoffError as error:
            await _write(writer, {"id": request.id, "failure": _Failure(error.code, error.message)})

    async def close(self) -> None:
        """Report the outcome of all requests to the other processes, and that no more are accepted."""
        self._client.close(ModelCrashed("The model was stopped before it answered."))
        if self._relays:
            await asyncio.wait(set(self._relays), timeout=DRAIN_SECONDS)
        for writer in list(self._writers):
            with suppress(OSError):
                writer.write(SHUTDOWN_LINE)
            writer.close()  # ends its `serve`


async def _write(writer: StreamWriter, message: dict[str, object]) -> None:
    with suppress(OSError):
        writer.write(msgspec.json.encode(message) + b"\n")
        await writer.drain()


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)

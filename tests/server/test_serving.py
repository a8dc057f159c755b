"""The server of `signoff serve`: files that a process may open, and its stop."""

from __future__ import annotations

import asyncio
import pickle
import resource
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from signoff.runtime.shutdown import Shutdown
from signoff.server import serving
from signoff.server.serving import OTHER_FILES, SHUTDOWN, DrainingServer, allow_connections, uvicorn_options
from signoff.work.admin.health import check_readiness
from support.live_server import live

INFINITY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "connections", "new_soft"),
    [
        (1024, 524_288, 4096, 4096 + OTHER_FILES),
        (1024, INFINITY, 4096, 4096 + OTHER_FILES),
        (20_000, 20_000, 4096, None),
        (INFINITY, INFINITY, 4096, None),
        (1024, 2048, 2048 - OTHER_FILES, 2048),
        (256, 256, 128, 256),
    ],
)
def test_connections_leave_files_for_all_else(
    soft: int, hard: int, connections: int, new_soft: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = list[tuple[int, int]]()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    assert allow_connections(4096) == connections
    assert limits == ([] if new_soft is None else [(new_soft, hard)])


def test_the_options_reach_processes_that_are_spawned() -> None:
    copied = pickle.loads(pickle.dumps(uvicorn_options(7, drain_seconds=1)))
    assert copied["http"].keywords["registry"].limits.max_connections == 7


async def answer_ok(scope: Any, receive: Any, send: Any) -> None:
    """Answer a request with `ok`, as an ASGI application."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def started_server(listener: socket.socket, shutdown: Shutdown) -> DrainingServer:
    """Return a server that listens, and has not accepted anything yet."""
    options = uvicorn_options(10, drain_seconds=60)
    config = uvicorn.Config(answer_ok, lifespan="off", interface="asgi3", **options)
    config.load()
    server = DrainingServer(config)
    server.lifespan = config.lifespan_class(config)
    server.lifespan.state[SHUTDOWN] = shutdown
    await server.startup([listener])
    return server


@pytest.mark.anyio
async def test_a_stop_answers_a_request_whose_connection_was_not_accepted_yet() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    server = await started_server(listener, Shutdown())
    with socket.create_connection(listener.getsockname()) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await server.shutdown([listener])
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        assert client.recv(1000) == b""


@pytest.mark.anyio
async def test_a_server_that_is_not_ready_any_more_takes_requests_for_a_while() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    shutdown = Shutdown(unready_seconds=1000)
    server = await started_server(listener, shutdown)
    stop = asyncio.create_task(server.shutdown([listener]))
    while not shutdown.is_unready:
        await asyncio.sleep(0)
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    assert not shutdown.is_draining
    writer.close()
    shutdown.unready_seconds = 0
    await stop


@pytest.mark.anyio
async def test_a_server_that_stops_is_not_ready(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        assert (await server.ask("GET", "/health/ready"))[0] == 200
        server.services.runtime.shutdown.mark_unready()
        status, components = await server.ask("GET", "/health/ready")
        assert (status, components["stopping"], components["store"]) == (503, True, True)
        assert not (await check_readiness(server.services, with_names=True))[0]


@pytest.mark.anyio
async def test_an_idle_server_wakes_up_once_a_second_and_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "TICK_SECONDS", 1e6)
    listener = socket.create_server(("127.0.0.1", 0))
    server = await started_server(listener, Shutdown())
    serving_task = asyncio.create_task(server.main_loop())
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    assert not serving_task.done()
    server.handle_exit(signal.SIGTERM, None)
    await serving_task
    writer.close()
    await server.shutdown([listener])

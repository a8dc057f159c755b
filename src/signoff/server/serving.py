"""The server of `signoff serve`: uvicorn, its settings for this application, and its stop."""

import asyncio
import contextlib
import functools
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import structlog
import uvicorn
from uvicorn.supervisors import multiprocess

from signoff.runtime.shutdown import Shutdown
from signoff.server.connection_limits import ConnectionLimits
from signoff.server.protocol import ClientConnection, ConnectionRegistry

# Key of the application's `Shutdown` in the state of the ASGI lifespan.
SHUTDOWN = "signoff.shutdown"
POLL_SECONDS = 0.05
# Time between two looks at `should_exit`, which can also be set without a signal.
TICK_SECONDS = 1.0
# Time that interrupted requests get to send their errors.
INTERRUPT_SECONDS = 2.0
# Connections that are still accepted from a listening socket when it closes. It is the backlog that uvicorn sets.
MAX_ACCEPTED = 2048
FORCED_EXIT_CODE = 128 + signal.SIGINT
# Files that a process opens besides the connections of its clients: of the database, of upstreams, of models.
OTHER_FILES = 512
# Longer than proxies keep idle connections, 60 s by default, so that none sends a request while this side closes.
KEEP_ALIVE_SECONDS = 75
log = structlog.get_logger()


class DrainingServer(uvicorn.Server):
    """Server whose stop ends every request with a response: its answer, or an error that a retry helps against.

    A second Ctrl-C interrupts the requests at once, and ends the process.
    """

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None] = lambda: None) -> None:
        super().__init__(config)
        self._on_start = on_start
        self._is_closing = False
        self._exit_requested = asyncio.Event()
        self._wake_up: Callable[[], object] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application and listen; then call `on_start`."""
        await super().startup(sockets)
        if self.started:
            self._on_start()

    async def main_loop(self) -> None:
        """Serve until a stop is requested. As uvicorn's, but an idle server wakes up once a second, not ten times."""
        loop = asyncio.get_running_loop()
        self._wake_up = functools.partial(loop.call_soon_threadsafe, self._exit_requested.set)
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._exit_requested.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; on Ctrl-C after that, stop at once."""
        super().handle_exit(sig, frame)
        self._wake_up()
        if self.force_exit and self._is_closing:
            os._exit(FORCED_EXIT_CODE)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running requests end in time, interrupt the others, and close the application."""
        state, shutdown = self.server_state, self.lifespan.state.get(SHUTDOWN) or Shutdown()
        await self._wait_unready(shutdown)
        await self._stop_listening(sockets or ())
        shutdown.drain()
        for connection in list(state.connections):
            connection.shutdown()
        if state.tasks:
            seconds = self.config.timeout_graceful_shutdown
            log.info("draining", requests=len(state.tasks), seconds=seconds, remedy="press Ctrl-C again to end")
        await self._wait_for_requests(self.config.timeout_graceful_shutdown or 0)
        shutdown.interrupt()
        for task in list(state.tasks):
            task.cancel()
        self._is_closing = not self.force_exit
        await self._wait_for_requests(INTERRUPT_SECONDS, is_forced=self.force_exit)
        for connection in list(state.connections):
            connection.transport.abort()
        if self.force_exit:
            os._exit(FORCED_EXIT_CODE)
        await self.lifespan.shutdown()

    async def _wait_unready(self, shutdown: Shutdown) -> None:
        """Report that this server is not ready, and go on serving until load balancers know it, or until Ctrl-C."""
        shutdown.mark_unready()
        clock = asyncio.get_running_loop().time
        began_at = clock()
        while clock() < began_at + shutdown.unready_seconds and not self.force_exit:  # noqa: ASYNC110 -- a signal handler sets `force_exit`
            await asyncio.sleep(POLL_SECONDS)

    async def _stop_listening(self, listeners: Sequence[socket.socket]) -> None:
        """Close the listening sockets, and serve the connections that wait to be accepted.

        Their clients may have sent a request already, and the kernel would reset these connections.
        """
        copies = [listener.dup() for listener in listeners]
        for listener in (*self.servers, *listeners):
            listener.close()
        loop, waiting = asyncio.get_running_loop(), list[socket.socket]()
        for copy in copies:
            with copy:
                waiting += _accepted(copy)
        for connection in waiting:
            with contextlib.suppress(OSError):  # the client has left
                await loop.connect_accepted_socket(self._make_connection, connection)

    def _make_connection(self) -> asyncio.Protocol:
        options = {"config": self.config, "server_state": self.server_state, "app_state": self.lifespan.state}
        protocol_class: Any = self.config.http_protocol_class
        return protocol_class(**options)

    async def _wait_for_requests(self, seconds: float, *, is_forced: bool = False) -> None:
        """Wait until no request runs, at most `seconds`, and until Ctrl-C unless `is_forced`."""
        state, clock = self.server_state, asyncio.get_running_loop().time
        deadline = clock() + seconds
        while (state.tasks or state.connections) and clock() < deadline and (is_forced or not self.force_exit):  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)


def _accepted(listener: socket.socket) -> list[socket.socket]:
    """Return the connections that wait at a listening socket, at most `MAX_ACCEPTED`."""
    listener.setblocking(False)
    connections = list[socket.socket]()
    with contextlib.suppress(OSError):  # none is left, or this process has no file for it
        while len(connections) < MAX_ACCEPTED:
            connections.append(listener.accept()[0])
    return connections


class DrainingProcess(multiprocess.Process):
    """Serving process with a `DrainingServer`, where there are several."""

    @property
    def server(self) -> uvicorn.Server:
        """The server of this process."""
        if self._server is None:
            self._server = DrainingServer(self.config)
        return self._server


def serve_in_processes(config: uvicorn.Config, listener: socket.socket, on_start: Callable[[], None]) -> None:
    """Serve in as many processes as `config` says, until a signal comes; call `on_start` when the first one answers."""
    threading.Thread(target=_call_when_answered, args=(listener.getsockname()[:2], on_start), daemon=True).start()
    multiprocess.Process = DrainingProcess  # uvicorn has no other way to choose the class of the server
    multiprocess.Multiprocess(config, [listener]).run()


def _call_when_answered(address: tuple[str, int], on_start: Callable[[], None]) -> None:
    with contextlib.suppress(OSError), socket.create_connection(address) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        if connection.recv(1):
            on_start()


def uvicorn_options(max_connections: int, drain_seconds: float) -> dict[str, Any]:
    """Return options of uvicorn's `Config`: limits of connections, and `drain_seconds` for requests when it stops."""
    registry = ConnectionRegistry(ConnectionLimits(max_connections=max_connections))
    return {
        "loop": "uvloop",
        "http": functools.partial(ClientConnection, registry=registry),
        "ws": "none",  # no door takes WebSockets, and such a connection would have no limits
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "date_header": False,
        "proxy_headers": False,  # `doors.http.scheme_of` reads the one header that matters
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "timeout_graceful_shutdown": drain_seconds,
    }


def allow_connections(number: int) -> int:
    """Let this process and those that it starts open the files of `number` connections.

    Return `number`, or fewer if the hard limit of open files (RLIMIT_NOFILE) leaves none for other purposes.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = number + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return number
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (ValueError, OSError):  # macOS has a limit below an infinite hard one
        allowed = soft
    return max(allowed - OTHER_FILES, allowed // 2)

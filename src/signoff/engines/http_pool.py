"""Pool of HTTP/1.1 connections to models, directly or through a proxy.

A name is resolved once for a short time, and only addresses that were checked are connected to.
"""

import asyncio
import socket
from base64 import b64encode
from collections import OrderedDict
from contextlib import suppress
from ipaddress import ip_address
from math import inf
from typing import Any, NamedTuple, cast

import aiohappyeyeballs
from aiohttp.abc import AbstractResolver
from yarl import URL

from signoff.engines.http_connection import Disconnected, HttpConnection, ResponseHead
from signoff.infra.tls import default_context

# Shorter than the 5 s after which uvicorn, Node and llama.cpp close an idle connection, so that we close it first.
KEEPALIVE_SECONDS = 4.0
# How long the addresses of a name are used.
ADDRESS_SECONDS = 10.0
# How often deadlines are looked at: one timer for all connections costs less than one for each wait.
TICK_SECONDS = 0.05
# Pause before the next address of a name is tried beside the first one (RFC 8305).
NEXT_ADDRESS_SECONDS = 0.25

# As of `socket.getaddrinfo`.
AddressInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[str, int]]


# Wait of a request for its turn. The result is a connection that another request has used; None to open one.
_Turn = asyncio.Future[HttpConnection | None]


class ConnectTimeout(OSError):
    """No connection was open in time."""


class UnknownName(OSError):
    """A host name has no address."""


class ProxyUnreachable(OSError):
    """The proxy cannot be reached; the cause says why."""


class ProxyRefused(OSError):
    """The proxy did not open a connection to the model."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status
        """HTTP status of the proxy's answer."""


class Origin(NamedTuple):
    """A server, and the proxy on the way to it."""

    is_tls: bool
    """True for https."""
    host: str
    """Host name or IP address."""
    port: int
    """TCP port."""
    proxy: URL | None = None
    """URL of the proxy; None for a direct connection."""


class HttpPool:
    """At most `max_connections` connections, of which idle ones are used again. Create it in an event loop."""

    def __init__(self, resolver: AbstractResolver, max_connections: int) -> None:
        self._resolver = resolver
        self._free_slots = max_connections
        self._waiters = OrderedDict[_Turn, Origin | None]()
        """Requests that wait for a slot, the oldest first, with the server whose used connections they take, if any."""
        self._deadlines = set[asyncio.Timeout]()
        """Deadlines of the requests that wait or connect."""
        self._idle = dict[Origin, list[HttpConnection]]()
        self._open = set[HttpConnection]()
        self._waiting = set[HttpConnection]()
        self._lookups = dict[tuple[str, int], tuple[float, asyncio.Task[list[AddressInfo]]]]()
        """Lookups of names, and the times of the event loop at which their results expire."""
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def take(self, origin: Origin, *, connect_seconds: float, due: float, is_new: bool) -> HttpConnection:
        """Return a connection; unless `is_new`, one that was used before, if there is any. Give it back with `release`.

        `due` is a time of the event loop. Raises TimeoutError then, ConnectTimeout after `connect_seconds`,
        UnknownName, ProxyUnreachable, ProxyRefused, and OSError.
        """
        idle = self._idle.get(origin)
        while idle and not is_new:
            if (connection := idle.pop()).is_reusable:
                return connection
        deadline = asyncio.timeout_at(min(self._loop.time() + connect_seconds, due))
        self._deadlines.add(deadline)
        try:
            async with deadline:
                connection = await self._connect(origin, is_new=is_new)
        except TimeoutError:
            if self._is_closed:
                raise ConnectionAbortedError from None
            if deadline.when() == due:
                raise
            raise ConnectTimeout from None
        finally:
            self._deadlines.discard(deadline)
        if self._timer is None:
            self._tick()
        return connection

    def release(self, connection: HttpConnection, origin: Origin) -> None:
        """Keep the connection for another request if its answer was read to its end, and abort it otherwise.

        The request that has waited longest gets it, if it is one to the same server.
        """
        if not (connection.is_reusable and connection in self._open):
            connection.abort()
        elif (turn := self._next_turn()) is None:
            connection.idle_since = self._loop.time()
            self._idle.setdefault(origin, []).append(connection)
        elif self._waiters[turn] == origin:
            turn.set_result(connection)
        else:
            connection.abort()
            self._forget(connection)  # at once, so that no other connection is closed for the same request

    def close(self) -> None:
        """Abort all connections, so that the requests on them fail, and those that wait for one or open one."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._idle.clear()
        for connection in list(self._open):
            connection.abort()
        for deadline in self._deadlines:
            if not deadline.expired():
                deadline.reschedule(self._loop.time())

    async def _connect(self, origin: Origin, *, is_new: bool) -> HttpConnection:
        """Return a new connection, or one that another request has used while this one waited for its turn."""
        while (released := await self._take_slot(None if is_new else origin)) is not None:
            if released.is_reusable:
                return released
        try:
            connection = await self._open_connection(origin)
            self._check_open(connection)
        except BaseException:
            self._free_slot()
            raise
        self._open.add(connection)
        connection.on_lost = self._forget
        return connection

    async def _take_slot(self, origin: Origin | None) -> HttpConnection | None:
        """Wait for a slot, and return None; or return a connection to `origin` that another request has released."""
        if self._free_slots:
            self._free_slots -= 1
            return None
        self._drop_idle()
        turn: _Turn = self._loop.create_future()
        self._waiters[turn] = origin
        try:
            return await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the turn has come at the same time
                self._pass_on(turn.result(), origin)
            raise
        finally:
            self._waiters.pop(turn, None)

    def _pass_on(self, connection: HttpConnection | None, origin: Origin | None) -> None:
        """Leave to another request what `_take_slot` has returned."""
        if connection is None or origin is None:
            self._free_slot()
        else:
            self.release(connection, origin)

    def _next_turn(self) -> _Turn | None:
        """Return the turn of the request that has waited longest; None if no request waits."""
        return next((turn for turn in self._waiters if not turn.done()), None)

    def _free_slot(self) -> None:
        """Let the next request open a connection, or else count the slot as free."""
        if (turn := self._next_turn()) is None:
            self._free_slots += 1
        else:
            turn.set_result(None)

    def _check_open(self, connection: HttpConnection) -> None:
        """Raise ConnectionError if the pool or the connection was closed meanwhile."""
        if self._is_closed or not connection.is_reusable:
            connection.abort()
            raise ConnectionAbortedError if self._is_closed else Disconnected

    async def _open_connection(self, origin: Origin) -> HttpConnection:
        if self._is_closed:
            raise ConnectionAbortedError
        if origin.proxy is None:
            return await self._connect_to(origin.host, origin.port, is_tls=origin.is_tls)
        proxy = origin.proxy
        try:
            connection = await self._connect_to(proxy.host or "", proxy.port or 0, is_tls=proxy.scheme == "https")
        except OSError as error:
            raise ProxyUnreachable from error
        return await self._open_tunnel(connection, origin, proxy) if origin.is_tls else connection

    async def _connect_to(self, host: str, port: int, *, is_tls: bool) -> HttpConnection:
        addresses = await self._resolve(host, port)
        start: Any = cast("Any", aiohappyeyeballs).start_connection  # its types leave a part unknown
        connected = await start(addresses, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS, interleave=1, loop=self._loop)
        try:
            _, connection = await self._loop.create_connection(
                self._new_connection,
                sock=connected,
                ssl=default_context() if is_tls else None,
                server_hostname=host.rstrip(".") if is_tls else None,
            )
        except BaseException:
            # Before a handshake, asyncio leaves a transport on the socket, which closes it at its end.
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)
            raise
        return connection

    async def _open_tunnel(self, connection: HttpConnection, origin: Origin, proxy: URL) -> HttpConnection:
        """Ask the proxy for a connection to the server, and begin TLS on it (RFC 9110, section 9.3.6)."""
        server = f"[{origin.host}]:{origin.port}" if ":" in origin.host else f"{origin.host}:{origin.port}"
        credentials = "" if proxy.user is None else f"proxy-authorization: {basic_credentials(proxy)}\r\n"
        head = f"CONNECT {server} HTTP/1.1\r\nhost: {server}\r\n{credentials}\r\n"
        try:
            answer = await connection.send(head.encode(), b"", due=inf)
            _check_tunnel(answer)
            tunnel, name = self._new_connection(), origin.host.rstrip(".")
            transport = await self._loop.start_tls(
                connection.transport, tunnel, default_context(), server_hostname=name
            )
        except BaseException:
            connection.abort()
            raise
        tunnel.connection_made(cast("asyncio.Transport", transport))
        return tunnel

    def _new_connection(self) -> HttpConnection:
        return HttpConnection(self._waiting)

    async def _resolve(self, host: str, port: int) -> list[AddressInfo]:
        """Return the addresses of a host, of which each call puts another one first."""
        with suppress(ValueError):
            family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
            return [_address_info(family, host, port)]
        addresses = await asyncio.shield(self._shared_lookup(host, port))  # others wait for it, too
        addresses.append(addresses.pop(0))
        return list(addresses)

    def _shared_lookup(self, host: str, port: int) -> asyncio.Task[list[AddressInfo]]:
        """Return the lookup of a name that runs or has succeeded lately; begin one if there is none."""
        now = self._loop.time()
        self._lookups = {key: lookup for key, lookup in self._lookups.items() if now < lookup[0]}
        if (host, port) not in self._lookups:
            task = self._loop.create_task(self._look_up(host, port))
            self._lookups[host, port] = (now + ADDRESS_SECONDS, task)
        return self._lookups[host, port][1]

    async def _look_up(self, host: str, port: int) -> list[AddressInfo]:
        try:
            results = await self._resolver.resolve(host, port, socket.AF_UNSPEC)
        except BaseException as error:
            self._lookups.pop((host, port), None)
            if isinstance(error, socket.gaierror):
                raise UnknownName from error
            raise
        return [_address_info(result["family"], result["host"], result["port"]) for result in results]

    def _forget(self, connection: HttpConnection) -> None:
        if connection in self._open:
            self._open.remove(connection)
            self._free_slot()

    def _drop_idle(self) -> None:
        """Abort an idle connection, to make room for a connection to another server."""
        for connections in self._idle.values():
            while connections:
                connection = connections.pop(0)
                connection.abort()
                if connection in self._open:  # a lost one has made room before
                    return

    def _tick(self) -> None:
        """End the waits that are over, and the connections that were idle for too long."""
        now = self._loop.time()
        for connection in list(self._waiting):
            connection.expire(now)
        self._drop_stale(now)
        self._timer = self._loop.call_later(TICK_SECONDS, self._tick) if self._open else None

    def _drop_stale(self, now: float) -> None:
        for origin, connections in list(self._idle.items()):
            remaining = list[HttpConnection]()
            for connection in connections:
                if now - connection.idle_since < KEEPALIVE_SECONDS and connection.is_reusable:
                    remaining.append(connection)
                else:
                    connection.abort()
            if remaining:
                connections[:] = remaining
            else:
                del self._idle[origin]


def _check_tunnel(answer: ResponseHead) -> None:
    """Raise ProxyRefused unless the proxy has opened the connection."""
    if answer.status != 200:
        raise ProxyRefused(answer.status)


def _address_info(family: int, host: str, port: int) -> AddressInfo:
    return (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))


def basic_credentials(url: URL) -> str:
    """Return the value of `Authorization` for the user and the password of a URL (RFC 7617)."""
    return "Basic " + b64encode(f"{url.user or ''}:{url.password or ''}".encode()).decode()

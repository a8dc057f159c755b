"""HTTP/1.1 connections of `signoff serve`: their number, and the size and the pace of what clients send.

uvicorn's protocol bounds none of these. A client that exceeds a limit gets an error, and its connection is closed.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Literal, cast
from urllib.parse import unquote

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from signoff.doors.errors import PROBLEM, problem, raw_error_headers
from signoff.doors.http import CONNECTION
from signoff.errors import BadRequest, HeadTooLarge, Overloaded, RequestTimedOut, SignoffError
from signoff.server.connection_limits import ConnectionLimits
from signoff.server.exchange import Exchange

TICK_SECONDS = 1
# Seconds for which a client that was refused can still read the error, while all that it sends is dropped.
LINGER_SECONDS = 2
# Seconds for which the rest of a body is dropped, whose request has been answered.
BODY_LINGER_SECONDS = 60
# Seconds that a client has to complete the head of its request when the server stops.
LAST_HEAD_SECONDS = 2
# Seconds for which a client that sends no more can wait for the answer to a request; it may have left as well.
HALF_CLOSED_SECONDS = 30
# `head` lasts from the first byte of a connection or a request until its headers are complete; in `idle`, the client
# has sent a whole request.
Phase = Literal["head", "body", "idle", "closing"]


class ConnectionRegistry:
    """The open connections of one process, with the one timer that finds the clients that are too slow.

    It counts ticks instead of reading a clock, so a process that is too busy to tick makes no client late.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._connections = set["ClientConnection"]()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return the number of open connections."""
        return len(self._connections)

    def add(self, connection: "ClientConnection") -> bool:
        """Add `connection`, or return False if as many are open as there may be."""
        if len(self._connections) >= self.limits.max_connections:
            return False
        self._connections.add(connection)
        if self._timer is None:
            self._timer = connection.loop.call_later(TICK_SECONDS, self._tick_again, connection.loop)
        return True

    def discard(self, connection: "ClientConnection") -> None:
        """Remove `connection`, if it is there."""
        self._connections.discard(connection)

    def tick(self) -> None:
        """Let one second pass for each connection."""
        for connection in tuple(self._connections):
            connection.tick()
        self._bound_unread()

    def _bound_unread(self) -> None:
        """Close connections whose responses take too much memory together, first those whose clients read nothing."""
        surplus = sum(connection.unread_bytes for connection in self._connections) - self.limits.unread_bytes
        if surplus <= 0:
            return
        for connection in sorted(self._connections, key=lambda each: (not each.is_stalled, -each.unread_bytes)):
            if surplus <= 0:
                return
            surplus -= connection.unread_bytes
            connection.transport.abort()

    def _tick_again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(TICK_SECONDS, self._tick_again, loop) if self._connections else None
        self.tick()  # last, so that a fault does not stop the timer


class ClientConnection(HttpToolsProtocol):
    """HTTP connection within limits, which calls back when its client leaves, so that no request needs a task for it.

    Trailers are dropped: uvicorn would add them to the headers of a request that may be running already.
    """

    is_gone = False
    """True once the connection is lost."""

    def __init__(self, *args: Any, registry: ConnectionRegistry, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.on_gone = set[Callable[[], object]]()
        """Callbacks for when the connection is lost."""
        self._registry = registry
        self._limits = registry.limits
        self._phase: Phase = "head"
        self._is_half_closed = False
        self._running: Exchange | None = None
        self._is_ending = False  # after the next response, as the server stops
        self._error: SignoffError | None = None
        self._linger_seconds = LINGER_SECONDS
        self._seconds = 0  # of this phase; in a body, since its latest piece
        self._body_seconds = 0
        self._body_bytes = 0
        self._unused_bytes = 0  # received since the head or the latest piece of a body was complete
        self._data_bytes = 0  # of the data that is being parsed
        self.unread_bytes = 0
        """Bytes of responses that the client had not read at the latest tick."""
        self._unread_seconds = 0  # since their number was another one

    @property
    def is_stalled(self) -> bool:
        """True if the client has read nothing of a response for a second."""
        return self._unread_seconds > 0

    def watch(self, callback: Callable[[], object]) -> None:
        """Call `callback` when the client leaves, until it is taken from `on_gone`.

        Go on reading, because uvicorn stops that at a large body, and the end of a connection is something to read.
        A client that sends no more counts as gone.
        """
        self.on_gone.add(callback)
        self.flow.resume_reading()
        if self._is_half_closed:
            self.transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] -- as in uvicorn
        """Begin the connection, or refuse it if there are too many."""
        super().connection_made(transport)
        if not self._registry.add(self):
            number = self._limits.max_connections
            self._send(Overloaded(f"The server has {number} connections (setting `max_connections`); retry later."))
            self._phase = "closing"
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Parse `data`, and refuse a head or trailers that are too large before they are complete."""
        if self._phase == "closing":
            return
        if self._phase == "idle":
            self._phase, self._seconds = "head", 0
        self._data_bytes = len(data)
        self._unused_bytes += len(data)
        super().data_received(data)
        if self._unused_bytes > self._limits.head_bytes or len(self.headers or ()) > self._limits.head_fields:
            self._refuse(self._head_error())

    def eof_received(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride] -- as asyncio defines it
        """Return True to keep the connection of a client that sends no more, and waits for a response.

        Most clients that send no more have left; so the connection is closed if `watch` was called.
        """
        is_waiting = self._phase == "idle" and (self._is_answering() or bool(self.pipeline))
        self._is_half_closed = is_waiting and not self.on_gone
        self._seconds = 0
        return self._is_half_closed

    def on_message_begin(self) -> None:
        """Start a request."""
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: self}  # pyright: ignore[reportGeneralTypeIssues] -- ASGI allows any
        self._phase, self._seconds = "head", 0

    def on_headers_complete(self) -> None:
        """Serve the request, unless its head is too large."""
        limits = self._limits
        if self._is_large():
            self._check_fields(len(self.url))
        if len(self.pipeline) >= limits.max_pipelined:
            self._error = Overloaded(f"At most {limits.max_pipelined} requests may wait on a connection; retry later.")
            raise self._error
        keeps_alive = self._complete_scope()
        app = cast("Any", self.app)
        must_wait, self.cycle = self._is_answering(), self._exchange(keeps_alive=keeps_alive and not self._is_ending)
        if must_wait:
            if not self.on_gone:  # see `watch`
                self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, app))
        else:
            self._start_asgi_task(self.cycle, app)
        self.headers, self._phase = [], "body"  # headers are those of the trailers now
        self._seconds = self._body_seconds = self._body_bytes = self._unused_bytes = 0

    def _complete_scope(self) -> bool:
        """Add to the scope what the request line says; return True if the client may send another request."""
        parser: Any = self.parser
        scope: Any = self.scope
        version, url = parser.get_http_version(), httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope["method"] = parser.get_method().decode("ascii")
        scope["http_version"] = version
        scope["path"] = self.root_path + (unquote(path) if "%" in path else path)
        scope["raw_path"] = self.root_path.encode() + url.path
        scope["query_string"] = url.query or b""
        return version != "1.0" and parser.should_keep_alive()

    def _exchange(self, *, keeps_alive: bool) -> Exchange:
        return Exchange(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=keeps_alive,
            on_response=self.on_response_complete,
        )

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._unused_bytes = self._seconds = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request, unless its trailers are too large."""
        if self.headers and self._is_large():
            self._check_fields(0)
        self._phase = "idle"
        self._unused_bytes = self._seconds = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Begin the next request of the connection, if it is there already, or close it if there cannot be one.

        Idle connections end by `tick`.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self._phase == "body" and not self._is_answering():
            self._drop_body()
        elif self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._is_half_closed:
            self.transport.close()

    def _drop_body(self) -> None:
        """Read and drop the rest of the body for a while; left unread, it would make the kernel drop the response."""
        self._seconds = self._body_seconds = self._body_bytes = 0
        if not self.cycle.keep_alive:
            self._phase, self._linger_seconds = "closing", BODY_LINGER_SECONDS
            if self.transport.can_write_eof():
                self.transport.write_eof()

    def shutdown(self) -> None:
        """Close an idle connection at once, and any other one after its response.

        The request of a new connection may be on its way, and the head of one may have come in part.
        """
        self._is_ending = True
        if self._is_answering():
            self.cycle.keep_alive = False
        elif self._phase == "idle":
            self.transport.close()
        else:
            self._seconds = max(self._seconds, self._limits.head_seconds - LAST_HEAD_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that cannot be parsed, or that a callback of the parser refused."""
        self._refuse(self._error or BadRequest("The request is not valid HTTP/1.1; correct its head or its chunks."))

    def tick(self) -> None:
        """Let one second pass; refuse the client if it is too slow."""
        self._check_reading()
        if self._phase == "idle":
            self._tick_idle()
            return
        if self._is_served():
            return
        limits = self._limits
        self._seconds += 1
        if self._phase == "closing":
            if self._seconds >= self._linger_seconds:
                self.transport.abort()
        elif self._phase == "head":
            if self._seconds >= limits.head_seconds:
                self._refuse(RequestTimedOut(f"The request's head took over {limits.head_seconds} s; send it faster."))
        else:
            self._body_seconds += 1
            is_slow = self._body_bytes < self._body_seconds * limits.body_bytes_per_second
            is_answered = self.cycle.response_complete
            if self._seconds >= limits.body_pause_seconds:
                self._refuse(
                    RequestTimedOut(f"The body paused for {limits.body_pause_seconds} s; send it without pauses.")
                )
            elif is_answered and self._body_seconds >= BODY_LINGER_SECONDS:
                self.transport.close()
            elif is_slow and self._body_seconds > limits.body_grace_seconds:
                rate = limits.body_bytes_per_second
                self._refuse(RequestTimedOut(f"The body came more slowly than {rate} bytes a second; send it faster."))

    def _tick_idle(self) -> None:
        """Close the connection if it is idle for too long, or if a client that sends no more waits for too long."""
        is_served = self._is_answering() or bool(self.pipeline)
        self._seconds = 0 if is_served and not self._is_half_closed else self._seconds + 1
        if self._seconds > (HALF_CLOSED_SECONDS - 1 if self._is_half_closed else self.timeout_keep_alive):
            self.transport.close()

    def _check_reading(self) -> None:
        """Close the connection if its client has read nothing for too long, which holds up the response."""
        unread_bytes = self.transport.get_write_buffer_size()
        is_stalled = 0 < unread_bytes == self.unread_bytes
        self.unread_bytes = unread_bytes
        self._unread_seconds = self._unread_seconds + 1 if is_stalled else 0
        if self._unread_seconds >= self._limits.read_pause_seconds:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the connection."""
        self._disconnect()
        super().connection_lost(exc)
        self._registry.discard(self)
        self.is_gone = True
        for callback in tuple(self.on_gone):
            callback()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cast("Exchange", cycle)
        super()._start_asgi_task(cycle, app)

    def _disconnect(self) -> None:
        """Tell the applications that serve requests of this connection; `cycle` is the request that came last."""
        for exchange in (self._running, cast("Exchange | None", self.cycle)):
            if exchange is not None:
                exchange.disconnect()

    def _is_large(self) -> bool:
        """Return True if the parsed headers or trailers may exceed a limit; only then their sizes are summed up."""
        limits = self._limits
        received = max(self._data_bytes, self._unused_bytes)
        return received > limits.head_bytes or len(self.headers) > limits.head_fields

    def _check_fields(self, url_bytes: int) -> None:
        """Raise HeadTooLarge if the parsed headers or trailers are too many or too large."""
        sizes = (len(name) + len(value) + len(": \r\n") for name, value in self.headers)
        if len(self.headers) > self._limits.head_fields or url_bytes + sum(sizes) > self._limits.head_bytes:
            self._error = self._head_error()
            raise self._error

    def _head_error(self) -> HeadTooLarge:
        limits = self._limits
        return HeadTooLarge(
            f"The head of a request must have at most {limits.head_bytes} bytes and {limits.head_fields} headers; "
            "send fewer, or send the data in the body."
        )

    def _is_served(self) -> bool:
        """Return True if the server makes the client wait, and not the other way around."""
        if self._phase == "head":
            return self._is_answering()
        if self._phase == "body":
            return bool(self.pipeline) or self.flow.read_paused or self.cycle.waiting_for_100_continue
        return False

    def _refuse(self, error: SignoffError) -> None:
        """Send `error`, unless a response is under way or the client has sent nothing, and close the connection.

        The side of the client stays open for a moment: data that nobody reads would make the kernel drop the error.
        """
        if self._phase == "closing" or self.transport.is_closing():
            return
        can_answer = self._may_answer() and self.transport.can_write_eof()
        self._phase, self._seconds = "closing", 0
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        self._disconnect()
        if not can_answer:
            self.transport.close()
            return
        self._send(error)
        self.transport.write_eof()

    def _may_answer(self) -> bool:
        if self._phase == "body":
            return not self.cycle.response_started and not self.pipeline
        return self._unused_bytes > 0 and not self._is_answering()

    def _is_answering(self) -> bool:
        return bool(self.cycle) and not self.cycle.response_complete

    def _send(self, error: SignoffError) -> None:
        body = msgspec.json.encode(problem(error))
        headers = [
            *self.server_state.default_headers,
            *raw_error_headers(error),
            (b"content-type", PROBLEM.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        head = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[error.status] + head + b"\r\n" + body)

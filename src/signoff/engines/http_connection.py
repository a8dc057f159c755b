"""HTTP/1.1 connection to a model's server, for one request at a time (RFC 9112)."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, cast

import httptools

# Bounds of the head of an answer: the bytes of all headers, and their number.
MAX_HEAD_BYTES = 64 * 2**10
MAX_HEADERS = 1024
# A larger request is written in pieces, each after the server has taken the one before.
PIECE_BYTES = 256 * 2**10
# Bytes of an answer that wait for their reader; above them, no more are read from the server.
MAX_UNREAD_BYTES = 256 * 2**10
# Of an answer without Content-Type (RFC 9110, section 8.3).
DEFAULT_CONTENT_TYPE = "application/octet-stream"
_TLS_ALERT = b"\x15\x03"  # begins an alert of TLS (RFC 8446, section 5.1)
_WITHOUT_BODY = {204, 304}  # statuses of answers without a body


class Disconnected(ConnectionError):
    """The server closed the connection before the head of its answer."""


class MalformedAnswer(Exception):
    """The answer is not valid HTTP."""


class HeadTooLarge(MalformedAnswer):
    """The head of the answer, or what stands between two chunks of its body, is too large."""


class TlsAnswer(MalformedAnswer):
    """The server speaks TLS, and the request was sent without."""


class ResponseHead(NamedTuple):
    """Status line and headers of an answer."""

    status: int
    headers: list[tuple[str, str]]
    """Names in lower case, and values."""

    def get(self, name: str, default: str = "") -> str:
        """Return the value of the first header of that name."""
        return next((value for each, value in self.headers if each == name), default)

    def all(self, name: str) -> list[str]:
        """Return the values of all headers of that name."""
        return [value for each, value in self.headers if each == name]

    @property
    def is_chunked(self) -> bool:
        """True if chunks are the last coding of the body (RFC 9112, section 6.3)."""
        return ",".join(self.all("transfer-encoding")).rpartition(",")[2].strip().lower() == "chunked"

    @property
    def content_type(self) -> str:
        """The media type, in lower case and without parameters; the default one if there is none."""
        return self.get("content-type").partition(";")[0].strip().lower() or DEFAULT_CONTENT_TYPE


class HttpConnection(asyncio.Protocol):
    """Connection to a server.

    Every wait ends at `due`, a time of the event loop. The connection is in the set `waiting` while it waits, and the
    owner of the set calls `expire` regularly.
    """

    def __init__(self, waiting: set["HttpConnection"]) -> None:
        self._waiting = waiting
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._due = 0.0
        self._parser = httptools.HttpResponseParser(self)
        # Small servers write these; a wrong reading can harm only the answers of the same server.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self._is_full = False
        """True while the transport takes no more bytes of the request."""
        self._is_sent = True
        self._is_keep_alive = True
        self._head: ResponseHead | None = None
        self._headers = list[tuple[str, str]]()
        self._head_bytes = 0
        self._bytes_without_body = 0
        """Bytes received since the last ones of a body: of a head, or between two chunks."""
        self._unread = list[bytes]()
        self._unread_bytes = 0
        self._is_ended = False
        self._ends_with_connection = False
        self._error: Exception | None = None
        self.on_lost: Callable[[HttpConnection], None] = lambda _: None
        """Called when the connection has ended."""
        self.requests = 0
        """Number of requests that were sent."""
        self.idle_since = 0.0
        """Time of the event loop since when the connection waits for its next request."""
        self.has_answer_begun = False
        """True if any byte of the answer has arrived."""

    # For the caller

    @property
    def transport(self) -> asyncio.Transport:
        """The transport. Raises Disconnected if there is none."""
        if self._transport is None:
            raise Disconnected
        return self._transport

    @property
    def is_reusable(self) -> bool:
        """True if the last answer was read, and the server waits for another request."""
        ended = self._is_ended and self._is_keep_alive and self._is_sent and not self._unread and self._error is None
        return (ended or self.requests == 0) and self._transport is not None and not self._transport.is_closing()

    @property
    def is_ended(self) -> bool:
        """True if the whole answer has been read."""
        return self._is_ended and not self._unread

    async def send(self, head: bytes, body: bytes, due: float) -> ResponseHead:
        """Send a request, and return the head of its answer.

        Raises TimeoutError, Disconnected, MalformedAnswer, and OSError for a connection that was lost.
        """
        self._begin()
        if len(body) <= PIECE_BYTES:
            self._write(head + body)
        else:
            await self._send_in_pieces(head, body, due)
        while self._head is None:
            await self._wait(due)
        return self._head

    async def read(self, due: float) -> bytes:
        """Return the next bytes of the body, empty at its end. Raises as `send` does."""
        while not self._unread and not self._is_ended:
            await self._wait(due)
        data = self._unread[0] if len(self._unread) == 1 else b"".join(self._unread)
        self._unread.clear()
        if self._unread_bytes > MAX_UNREAD_BYTES and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        self._unread_bytes = 0
        return data

    def expire(self, now: float) -> None:
        """End the wait with TimeoutError if its end has come. `now` is the time of the event loop."""
        if now >= self._due and self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(TimeoutError())

    def abort(self) -> None:
        """Close the connection at once, without writing what is left of a request."""
        self._fail(ConnectionResetError("The connection was aborted."))
        if self._transport is not None:
            self._transport.abort()

    def _begin(self) -> None:
        self.requests += 1
        self.has_answer_begun = self._is_ended = self._ends_with_connection = False
        self._is_sent = self._is_keep_alive = True
        self._head, self._bytes_without_body = None, 0
        self._clear_headers()

    async def _send_in_pieces(self, head: bytes, body: bytes, due: float) -> None:
        """Write the request, and stop as soon as there is an answer: it is one to a part of it."""
        self._is_sent = False
        self._write(head)
        view = memoryview(body)
        for start in range(0, len(body), PIECE_BYTES):
            while self._is_full and self._head is None:
                await self._wait(due)
            if self._head is not None:
                return
            self._write(view[start : start + PIECE_BYTES])
        self._is_sent = True

    def _write(self, data: bytes | memoryview) -> None:
        if self._error is not None:
            raise self._error
        if self._transport is None or self._transport.is_closing():
            raise Disconnected
        self._transport.write(data)

    async def _wait(self, due: float) -> None:
        """Wait for any change of the state."""
        if self._error is not None:
            raise self._error
        self._due, self._waiter = due, self._loop.create_future()
        self._waiting.add(self)
        try:
            await self._waiter
        finally:
            self._waiting.discard(self)
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        """Let the request fail, unless its answer is there."""
        if self._error is None and not self._is_ended:
            self._error = error
        self._wake()

    # For the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`. Bytes that no request has asked for end the connection."""
        if self._is_ended or self.requests == 0:
            return self.abort()
        is_first, self.has_answer_begun = not self.has_answer_begun, True
        self._bytes_without_body += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._malformed(MalformedAnswer("upgrade"))
        except httptools.HttpParserError as error:
            if is_first and data.startswith(_TLS_ALERT):
                self._malformed(TlsAnswer())
            else:
                cause = error.__context__
                self._malformed(cause if isinstance(cause, MalformedAnswer) else MalformedAnswer(str(error)))
        if self._bytes_without_body > MAX_HEAD_BYTES and not self._is_ended:
            self._malformed(HeadTooLarge())
        self._wake()
        return None

    def eof_received(self) -> bool:
        """See `asyncio.Protocol`: the transport closes itself."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if isinstance(exc, TimeoutError):  # ETIMEDOUT of the system; TimeoutError is for our deadlines
            exc = ConnectionResetError(*exc.args)
        if self._ends_with_connection and exc is None and self._error is None:
            self._is_ended = True
        self._is_keep_alive = False
        self.on_lost(self)
        self._fail(exc or (Disconnected() if self._head is None else ConnectionResetError("The answer was cut off.")))

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._is_full = True

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._is_full = False
        self._wake()

    def _malformed(self, error: Exception) -> None:
        """End the connection; what came before the fault can still be read."""
        self._is_keep_alive = False
        self._fail(error)
        if self._transport is not None:
            self._transport.abort()

    # For the parser

    def on_message_begin(self) -> None:
        """Refuse a second answer to one request, even if only its first byte has arrived."""
        if self._is_ended:
            raise MalformedAnswer("a second answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer, which is only counted."""
        self._head_bytes += len(name) + len(value)
        self._headers.append((name.decode("latin-1").strip().lower(), value.decode("latin-1").strip()))
        if self._head_bytes > MAX_HEAD_BYTES or len(self._headers) > MAX_HEADERS:
            raise HeadTooLarge

    def on_headers_complete(self) -> None:
        """Take the head, unless it is an interim one (1xx)."""
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            return
        self._head = ResponseHead(status, self._headers)
        has_end = self._head.get("content-length") or self._head.is_chunked or status in _WITHOUT_BODY
        self._ends_with_connection = not has_end
        self._bytes_without_body = 0
        self._clear_headers()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._bytes_without_body = 0
        self._unread.append(body)
        was_full = self._unread_bytes > MAX_UNREAD_BYTES
        self._unread_bytes += len(body)
        if self._unread_bytes > MAX_UNREAD_BYTES and not was_full and self._transport is not None:
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """Take the end of the answer; or that of an interim head, after which the answer follows."""
        if self._head is None:
            self._clear_headers()
            return
        self._is_ended = True
        self._is_keep_alive = self._is_keep_alive and self._parser.should_keep_alive()

    def _clear_headers(self) -> None:
        self._headers, self._head_bytes = [], 0

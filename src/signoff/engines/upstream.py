"""HTTP client for models: it sends requests, passes answers on, and maps every failure to one of our errors."""

from __future__ import annotations

import asyncio
import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial

from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver

from signoff.core import sse
from signoff.core.allow_list import MODEL_ADDRESSES
from signoff.core.binary import BinaryBody, encode_binary
from signoff.core.content_coding import ContentDecoder, known_codings
from signoff.core.dialects.answer import collect, has_a_known_shape
from signoff.core.dialects.surrogates import as_utf8, without_lone_surrogates
from signoff.core.model import Timeouts
from signoff.engine import EventSink, Sink
from signoff.engines.connection_errors import malformed_message, map_connection_error
from signoff.engines.http_connection import DEFAULT_CONTENT_TYPE, HttpConnection, MalformedAnswer, ResponseHead
from signoff.engines.http_pool import HttpPool, Origin
from signoff.engines.http_request import PreparedRequest, UpstreamRequest, prepare, request_head
from signoff.engines.upstream_errors import MAX_ERROR_BYTES, answered_error, is_limit_header
from signoff.engines.upstream_events import EventStream
from signoff.errors import ModelAnswered, ModelCut, ModelGarbled, ModelTimedOut, TooLarge
from signoff.infra.proxies import NO_PROXIES, Proxies
from signoff.infra.ssrf import CheckedResolver

MAX_BODY_BYTES = 64 * 2**20
TOO_LARGE = f"The model's answer is larger than {MAX_BODY_BYTES} bytes."
MAX_EVENT_BYTES = 8 * 2**20
# After the last event, only the end of the body remains. A connection can be used again once that has been read.
LINGER_SECONDS = 0.1
_NUMBER = re.compile(r"\d{1,9}(\.\d{1,9})?")


class UpstreamClient:
    """Client of models, with at most `max_connections` connections. Call `start` before the first request.

    `now` returns seconds since the epoch. Every resolved address is checked against MODEL_ADDRESSES before the
    connection: that of the model, or that of its proxy, which resolves the model's name itself.
    """

    def __init__(
        self,
        *,
        now: Callable[[], float],
        max_connections: int = 10_000,
        resolver: AbstractResolver | None = None,
        proxies: Proxies = NO_PROXIES,
    ) -> None:
        self._resolver = resolver
        self._now = now
        self._max_connections = max_connections
        self._proxies = proxies
        self._pool: HttpPool | None = None
        self._prepare: Callable[[str, str], PreparedRequest] | None = None

    async def start(self) -> None:
        """Open the pool."""
        resolver = CheckedResolver(self._resolver or ThreadedResolver(), MODEL_ADDRESSES)
        self._pool = HttpPool(resolver, self._max_connections)
        self._prepare = lru_cache(maxsize=1024)(partial(prepare, self._proxies.find if self._proxies else None))

    async def close(self) -> None:
        """Abort all calls and close the pool."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    async def ask(
        self, request: UpstreamRequest, sink: Sink, *, timeouts: Timeouts, stream: bool, json_only: bool = True
    ) -> bytes | None:
        """Send `request` and return the JSON body of its answer; or, if `stream` is set, send its events to `sink`.

        Unless `json_only`, a body that is not JSON becomes a `BinaryBody`, and an event may contain any text. A stream
        ends after `[DONE]` or the event that ends a response, or at the end of its body; if `json_only`, its answer
        must be complete there, and a missing last event is added. If JSON comes in place of a stream, it is returned;
        if events come in place of JSON, they are combined to one body. All other bytes stay as they are, except that
        U+FFFD replaces lone surrogates and invalid UTF-8. Raises ModelFailed and its subclasses. Cancelling the call
        closes the connection at once.
        """
        call = _Call(timeouts)
        try:
            head = await self._send(call, request)
            _read_limits(head, request.response_headers)
            if head.status >= 300:
                raise await self._error_of(call, head)
            if stream and _is_stream(head.content_type, json_only=json_only):
                return await _pass_on_events(call, sink, json_only=json_only)
            if json_only and head.content_type == sse.CONTENT_TYPE:
                return await _collect_events(call)
            return _to_body(head, await _read_whole(call), json_only=json_only)
        except TimeoutError as error:
            raise call.timeout_error() from error
        except OSError as error:
            raise ModelCut from error
        except MalformedAnswer as error:
            raise ModelGarbled(malformed_message(error)) from error
        finally:
            call.end()

    async def _send(self, call: _Call, request: UpstreamRequest) -> ResponseHead:
        """Send the request, and return the head of the answer as soon as it has arrived."""
        pool = self._pool
        if pool is None or self._prepare is None:
            raise RuntimeError("UpstreamClient.start() was not awaited")
        try:
            prepared = self._prepare(request.method, request.url)
            head = request_head(prepared, request)
            try:
                return await call.send(pool, prepared.origin, head, request.body)
            except OSError as error:
                if isinstance(error, TimeoutError) or not call.is_stale:
                    raise
            # The server closed an idle connection while the request was written: retry once, on a new one.
            return await call.send(pool, prepared.origin, head, request.body, is_new=True)
        except TimeoutError:
            raise
        except (OSError, ValueError) as error:
            raise map_connection_error(error) from error

    async def _error_of(self, call: _Call, head: ResponseHead) -> ModelAnswered | ModelGarbled:
        if head.status < 400:
            return ModelGarbled(
                f"The model redirected the request (status {head.status}); set its `url` to the target."
            )
        body = b""
        with suppress(OSError, MalformedAnswer, ModelGarbled):
            while len(body) < MAX_ERROR_BYTES and (data := await call.read()):
                body += data
        headers = dict(head.headers)
        wait_seconds = self._parse_retry_after(headers)
        return answered_error(head.status, body, headers=headers, retry_after_seconds=wait_seconds)

    def _parse_retry_after(self, headers: Mapping[str, str]) -> float | None:
        """Return the time to wait in seconds: `retry-after-ms` of OpenAI, or a Retry-After (RFC 9110, section 10.2.3).

        A Retry-After is a number of seconds or a date.
        """
        if _NUMBER.fullmatch(milliseconds := headers.get("retry-after-ms", "")):
            return float(milliseconds) / 1000
        retry_after = headers.get("retry-after", "")
        if _NUMBER.fullmatch(retry_after):
            return float(retry_after)
        try:
            date = parsedate_to_datetime(retry_after)
            return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - self._now())
        except (ValueError, OverflowError):
            return None


class _Call:
    """State of one call: its deadlines, its connection, and the coding of its answer."""

    def __init__(self, timeouts: Timeouts) -> None:
        self.timeouts = timeouts
        self._pool: HttpPool | None = None
        self._origin: Origin | None = None
        self._connection: HttpConnection | None = None
        self._decoder: ContentDecoder | None = None
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._first_byte_due = now + timeouts.first_byte_seconds
        self._end = now + timeouts.total_seconds
        self._due = min(self._first_byte_due, self._end)

    @property
    def is_stale(self) -> bool:
        """True if the server has closed a connection that was used before, and answered nothing."""
        connection = self._connection
        return connection is not None and connection.requests > 1 and not connection.has_answer_begun

    async def send(
        self, pool: HttpPool, origin: Origin, head: bytes, body: bytes, *, is_new: bool = False
    ) -> ResponseHead:
        """Send the request on a connection of the pool, and return the head of the answer."""
        self.end()
        connect_seconds = self.timeouts.connect_seconds
        connection = await pool.take(origin, connect_seconds=connect_seconds, due=self._due, is_new=is_new)
        self._pool, self._origin, self._connection = pool, origin, connection
        answer = await connection.send(head, body, self._due)
        # A body can be coded although the request asks for no coding.
        if codings := known_codings(",".join(answer.all("content-encoding"))):
            self._decoder = ContentDecoder(codings, MAX_BODY_BYTES)
        return answer

    @property
    def is_ended(self) -> bool:
        """True if the whole body has been read."""
        return self._connection is None or self._connection.is_ended

    async def read(self) -> bytes:
        """Return the next bytes of the body, empty at its end. The first bytes share the deadline of the headers.

        Raises ModelGarbled if they are not what `Content-Encoding` says.
        """
        data = await self._read_coded()
        while self._decoder is not None and data:
            if decoded := self._decode(self._decoder, data):
                return decoded
            data = await self._read_coded()
        return data

    def _decode(self, decoder: ContentDecoder, data: bytes) -> bytes:
        try:
            decoded = decoder.feed(data)
        except TooLarge as error:
            raise ModelGarbled(TOO_LARGE, retryable=False) from error
        except ValueError as error:
            if not decoder.has_begun:  # a proxy has decoded the body, and has left the header
                self._decoder = None
                return data
            raise ModelGarbled(f"The model's answer is not what its `Content-Encoding` says: {error}.") from error
        return decoded

    async def _read_coded(self) -> bytes:
        if self._connection is None or self._connection.is_ended:
            return b""
        now = self._loop.time()
        self._due = min(max(self._first_byte_due, now + self.timeouts.between_chunks_seconds), self._end)
        if now >= self._end:  # no wait would end while the reader is slower than the model
            raise TimeoutError
        data = await self._connection.read(self._due)
        self._first_byte_due = 0
        return data

    def timeout_error(self) -> ModelTimedOut:
        """Return the error for the deadline that has passed. The clock is not read: timers can fire a little early."""
        limit = "first_byte_seconds" if self._first_byte_due else "between_chunks_seconds"
        return ModelTimedOut(f"The model {self.timeouts.fault('total_seconds' if self._due == self._end else limit)}.")

    def end(self) -> None:
        """Give the connection back to the pool."""
        if self._connection is not None and self._pool is not None and self._origin is not None:
            self._pool.release(self._connection, self._origin)
        self._connection = None


def _read_limits(head: ResponseHead, limits: dict[str, str]) -> None:
    """Add the headers of an answer about rate limits to `limits`."""
    if head.status < 300:
        limits |= {name: value for name, value in head.headers if name[0:1] in "xa" and is_limit_header(name)}


async def _read_whole(call: _Call) -> bytes:
    chunks: list[bytes] = []
    size_bytes = 0
    while data := await call.read():
        size_bytes += len(data)
        if size_bytes > MAX_BODY_BYTES:
            raise ModelGarbled(TOO_LARGE, retryable=False)
        chunks.append(data)
    return b"".join(chunks)


async def _pass_on_events(call: _Call, sink: Sink, *, json_only: bool) -> bytes | None:
    """Send the events to `sink`, those of one read together; or return the body if it is JSON instead of events."""
    stream = EventStream(MAX_EVENT_BYTES, json_only=json_only)
    while not stream.is_ended and (data := await call.read()):
        try:
            stream.feed(data)
        finally:  # the events before an error are part of the answer
            if events := stream.take():
                await sink.send(events)
    if stream.is_ended:
        await _drain(call)
        return None
    if json_only and (body := stream.whole_body()) is not None:
        return _check_json(body)
    stream.end()
    if events := stream.take():
        await sink.send(events)
    return None


async def _collect_events(call: _Call) -> bytes:
    """Return the answer in a stream that the request did not ask for."""
    events = EventSink()
    body = await _pass_on_events(call, events, json_only=True)
    return _collect(events.received) if body is None else body


def _collect(events: Sequence[bytes]) -> bytes:
    if not has_a_known_shape(events, with_messages=True):
        raise ModelGarbled("The model sent a stream although the request asked for a whole answer.")
    return collect(events).body


def _is_stream(content_type: str, *, json_only: bool) -> bool:
    """Return True if the body may be a stream: some servers label events as plain text, or not at all."""
    if content_type == sse.CONTENT_TYPE or not json_only:
        return content_type == sse.CONTENT_TYPE
    return content_type == DEFAULT_CONTENT_TYPE or (content_type.startswith("text/") and content_type != "text/html")


def _to_body(head: ResponseHead, body: bytes, *, json_only: bool) -> bytes:
    content_type = head.content_type
    if json_only or (body and (content_type == "application/json" or content_type.endswith("+json"))):
        return _check_json(body)
    return encode_binary(BinaryBody(head.get("content-type", DEFAULT_CONTENT_TYPE), body))


def _check_json(body: bytes) -> bytes:
    """Return the JSON body without a byte order mark; if it is a stream of events, the answer in it.

    Raises ModelGarbled, ModelCut, ModelAnswered.
    """
    body = as_utf8(body.removeprefix(codecs.BOM_UTF8))
    try:
        return without_lone_surrogates(body)
    except (ValueError, RecursionError) as error:
        if not body.lstrip().startswith((b"data:", b"event:", b":")):
            raise ModelGarbled("The model's answer is not JSON.") from error
    stream = EventStream(MAX_EVENT_BYTES, json_only=True)
    stream.feed(body)
    if not stream.is_ended:
        stream.end()
    return _collect(stream.take())


async def _drain(call: _Call) -> None:
    with suppress(OSError, MalformedAnswer, ModelGarbled):
        async with asyncio.timeout(LINGER_SECONDS):
            while await call.read():
                pass

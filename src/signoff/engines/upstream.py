"""HTTP client for models: sends requests, passes on answers, and maps every failure to one of our errors."""

from __future__ import annotations

import asyncio
import codecs
import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache
from weakref import WeakSet

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

from signoff.core import sse
from signoff.core.allow_list import MODEL_ADDRESSES
from signoff.core.binary import BinaryBody, encode_binary
from signoff.core.content_coding import ContentDecoder, known_codings
from signoff.core.dialects.answer import collect, has_a_known_shape
from signoff.core.dialects.surrogates import as_utf8, without_lone_surrogates
from signoff.core.model import Timeouts
from signoff.engine import EventSink, Sink
from signoff.engines.connection_errors import HEAD_TOO_LARGE, MAX_HEAD_BYTES, MAX_HEADERS, map_connection_error
from signoff.engines.upstream_errors import MAX_ERROR_BYTES, answered_error, is_limit_header
from signoff.engines.upstream_events import EventStream
from signoff.engines.url import parse_model_url
from signoff.errors import ModelAnswered, ModelCut, ModelGarbled, ModelTimedOut, TooLarge
from signoff.infra.proxies import NO_PROXIES, Proxies
from signoff.infra.ssrf import CheckedResolver

MAX_BODY_BYTES = 64 * 2**20
TOO_LARGE = f"The model's answer is larger than {MAX_BODY_BYTES} bytes."
MAX_EVENT_BYTES = 8 * 2**20
# Shorter than the 5 s after which uvicorn, Node and llama.cpp close an idle connection, so that we close it first.
KEEPALIVE_SECONDS = 4
# After the last event only the end of the body is due. Reading it makes the connection reusable.
LINGER_SECONDS = 0.1
# aiohttp's default for a response without Content-Type (RFC 9110, section 8.3).
DEFAULT_CONTENT_TYPE = "application/octet-stream"
_SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?")


class UpstreamClient:
    """Pool of at most `max_connections` connections to models. Call `start` before the first request.

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
        self._proxies = proxies
        self._find_proxy: Callable[[URL], URL | None] | None = None
        self._now = now
        self._max_connections = max_connections
        self._used = WeakSet[ResponseHandler]()
        self._calls = set[_Call]()
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the pool."""
        self._find_proxy = lru_cache(maxsize=1024)(self._proxies.find) if self._proxies else None
        self._session = aiohttp.ClientSession(
            connector=_Connector(
                limit=self._max_connections,
                keepalive_timeout=KEEPALIVE_SECONDS,
                resolver=CheckedResolver(self._resolver or aiohttp.ThreadedResolver(), MODEL_ADDRESSES),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"accept-encoding": "identity", "user-agent": "signoff"},
            skip_auto_headers=("content-type",),
            auto_decompress=False,  # it knows fewer codings, and names fewer of them
            max_line_size=MAX_HEAD_BYTES,
            max_field_size=MAX_HEAD_BYTES,
            max_headers=MAX_HEADERS,
        )

    async def close(self) -> None:
        # Without the abort, aiohttp would close the connections but leave their readers waiting.
        """Abort all calls and close the pool."""
        for call in self._calls:
            call.abort()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def ask(
        self, request: UpstreamRequest, sink: Sink, *, timeouts: Timeouts, stream: bool, json_only: bool = True
    ) -> bytes | None:
        """Send `request` and return the JSON body of its answer; or, if `stream` is set, send its events to `sink`.

        Unless `json_only`, a body that is not JSON becomes a `BinaryBody`, and an event may contain any text. A stream
        ends after `[DONE]` or the event that ends a response, or at the end of its body; if `json_only`, its answer
        must be whole there, and gets the last event that it lacks. JSON in place of a stream is returned, and events in
        place of JSON are collected. Else no byte is changed, except that a part of a character that no client can read
        becomes U+FFFD. Raises ModelFailed and its subclasses. Cancelling the call closes the connection at once.
        """
        call = _Call(timeouts, self._used)
        self._calls.add(call)
        try:
            response = await self._open_response(call, request)
            call.begin_body(response)
            _read_head(response, request.response_headers)
            if response.status >= 300:
                raise await self._error_of(call, response)
            if stream and _is_stream(response, json_only=json_only):
                return await _pass_on_events(call, response, sink, json_only=json_only)
            if json_only and response.content_type == sse.CONTENT_TYPE:
                return await _collect_events(call, response)
            return _to_body(response, await _read_whole(call, response), json_only=json_only)
        except TimeoutError as error:
            raise call.timeout_error() from error
        except (aiohttp.ClientError, OSError) as error:
            raise ModelCut from error
        finally:
            self._calls.discard(call)
            call.abort()

    async def _open_response(self, call: _Call, request: UpstreamRequest) -> aiohttp.ClientResponse:
        """Return the response as soon as its headers have arrived."""
        try:
            async with call.header_timeout():
                try:
                    return await self._send(call, request)
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                    if not call.is_reused:
                        raise
                # The server closed an idle connection while the request was written: retry once, on a new one.
                call.requires_new = True
                return await self._send(call, request)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
                raise
            raise map_connection_error(error) from error

    async def _send(self, call: _Call, request: UpstreamRequest) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("UpstreamClient.start() was not awaited")
        token, url = _CALL.set(call), parse_model_url(request.url)
        try:
            return await self._session.request(
                request.method,
                url,
                proxy=None if self._find_proxy is None else self._find_proxy(url),
                # aiohttp writes a file-like body in pieces.
                data=request.body if len(request.body) < 2**20 else io.BytesIO(request.body),
                headers=request.headers,
                allow_redirects=False,
                timeout=_connect_timeout(call.timeouts.connect_seconds),
            )
        finally:
            _CALL.reset(token)

    async def _error_of(self, call: _Call, response: aiohttp.ClientResponse) -> ModelAnswered | ModelGarbled:
        if response.status < 400:
            return ModelGarbled(
                f"The model redirected the request (status {response.status}); set its `url` to the target."
            )
        body = b""
        with suppress(aiohttp.ClientError, OSError, ModelGarbled):
            while len(body) < MAX_ERROR_BYTES and (data := await call.read(response)):
                body += data
        headers = {name.lower(): value for name, value in response.headers.items()}
        wait_seconds = self._parse_retry_after(headers)
        return answered_error(response.status, body, headers=headers, retry_after_seconds=wait_seconds)

    def _parse_retry_after(self, headers: Mapping[str, str]) -> float | None:
        """Return the time to wait in seconds: `retry-after-ms` of OpenAI, or a Retry-After (RFC 9110, section 10.2.3).

        A Retry-After is a number of seconds or a date.
        """
        if _SECONDS.fullmatch(milliseconds := headers.get("retry-after-ms", "")):
            return float(milliseconds) / 1000
        retry_after = headers.get("retry-after", "")
        if _SECONDS.fullmatch(retry_after):
            return float(retry_after)
        try:
            date = parsedate_to_datetime(retry_after)
            return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - self._now())
        except (ValueError, OverflowError):
            return None


@lru_cache(maxsize=1024)
def _connect_timeout(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=seconds)


class UpstreamRequest(msgspec.Struct, frozen=True):
    """Request to a model."""

    method: str
    url: str
    body: bytes
    headers: dict[str, str]
    response_headers: dict[str, str] = {}
    """Receiver of the headers about rate limits, with names in lower case."""


class _Call:
    """State of one call: its deadlines and its connection."""

    def __init__(self, timeouts: Timeouts, used: WeakSet[ResponseHandler]) -> None:
        self.timeouts = timeouts
        self.response: aiohttp.ClientResponse | None = None
        self.is_reused = False
        self.requires_new = False
        self._used = used
        self._transport: asyncio.Transport | None = None
        self._decoder: ContentDecoder | None = None
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._first_byte_due = now + timeouts.first_byte_seconds
        self._end = now + timeouts.total_seconds
        self._due = min(self._first_byte_due, self._end)

    def header_timeout(self) -> asyncio.Timeout:
        """Return the timeout that applies until the headers have arrived."""
        return asyncio.timeout_at(self._due)

    def accept(self, connection: Connection) -> bool:
        """Accept a connection; return False if it was used before and this call requires a new one."""
        protocol = connection.protocol
        self.is_reused = protocol in self._used
        if protocol is None or (self.is_reused and self.requires_new):
            return False
        self._used.add(protocol)
        self._transport = connection.transport
        return True

    def begin_body(self, response: aiohttp.ClientResponse) -> None:
        """Set the response, whose body can be coded although the request asks for no coding."""
        self.response = response
        if codings := known_codings(",".join(response.headers.getall("content-encoding", ()))):
            self._decoder = ContentDecoder(codings, MAX_BODY_BYTES)

    async def read(self, response: aiohttp.ClientResponse) -> bytes:
        """Return the next bytes of the body, empty at its end. The first bytes share the deadline of the headers.

        Raises ModelGarbled if they are not what `Content-Encoding` says.
        """
        data = await self._read_coded(response)
        while self._decoder is not None and data:
            if decoded := self._decode(self._decoder, data):
                return decoded
            data = await self._read_coded(response)
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

    async def _read_coded(self, response: aiohttp.ClientResponse) -> bytes:
        if response.content.is_eof():  # nothing to wait for
            return await response.content.readany()
        now = self._loop.time()
        self._due = min(max(self._first_byte_due, now + self.timeouts.between_chunks_seconds), self._end)
        # `timeout_at` does not act while buffered bytes make every read return at once.
        if now >= self._end:
            raise TimeoutError
        async with asyncio.timeout_at(self._due):
            try:
                data = await response.content.readany()
            except RuntimeError as error:
                # aiohttp raises RuntimeError if the connection is already lost.
                raise ConnectionResetError from error
        self._first_byte_due = 0
        return data

    def timeout_error(self) -> ModelTimedOut:
        """Return the error for the deadline that has passed. The clock is not read: timers can fire a little early."""
        if self._due == self._end:
            return ModelTimedOut(f"The model took more than {self.timeouts.total_seconds:g} s.")
        if self._first_byte_due:
            return ModelTimedOut(f"The model did not start to answer within {self.timeouts.first_byte_seconds:g} s.")
        return ModelTimedOut(f"The model sent nothing for {self.timeouts.between_chunks_seconds:g} s.")

    def abort(self) -> None:
        """Abort the connection, unless the response was read to its end and returned the connection to the pool.

        `close` alone would first write out the buffered request, which never ends when the model does not read.
        """
        is_read = self.response is not None and self.response.connection is None
        if self._transport is not None and not is_read:
            self._transport.abort()
        if self.response is not None and not is_read:
            self.response.close()


_CALL: ContextVar[_Call] = ContextVar("call")


class _Connector(aiohttp.TCPConnector):
    """Connector that passes each connection to the call that it is for."""

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
    ) -> Connection:
        while not _CALL.get().accept(connection := await super().connect(req, traces, timeout)):
            connection.close()
        return connection


def _read_head(response: aiohttp.ClientResponse, limits: dict[str, str]) -> None:
    """Add the headers of an answer about rate limits to `limits`. Raises ModelGarbled if the head is too large."""
    size_bytes, is_error = 0, response.status >= 300
    for name, value in response.raw_headers:
        size_bytes += len(name) + len(value)
        if not is_error and name[:1] in b"xXaA" and is_limit_header(key := name.decode("latin-1").lower()):
            limits[key] = value.decode("latin-1")
    if size_bytes > MAX_HEAD_BYTES:
        raise ModelGarbled(HEAD_TOO_LARGE)


async def _read_whole(call: _Call, response: aiohttp.ClientResponse) -> bytes:
    chunks: list[bytes] = []
    size_bytes = 0
    while not response.content.at_eof() and (data := await call.read(response)):
        size_bytes += len(data)
        if size_bytes > MAX_BODY_BYTES:
            raise ModelGarbled(TOO_LARGE, retryable=False)
        chunks.append(data)
    return b"".join(chunks)


async def _pass_on_events(
    call: _Call, response: aiohttp.ClientResponse, sink: Sink, *, json_only: bool
) -> bytes | None:
    """Send the events to `sink`, those of one read together; or return the body, if it is one of JSON after all."""
    stream = EventStream(MAX_EVENT_BYTES, json_only=json_only)
    while not stream.is_ended and (data := await call.read(response)):
        try:
            stream.feed(data)
        finally:  # the events before an error are part of the answer
            if events := stream.take():
                await sink.send(events)
    if stream.is_ended:
        await _drain(call, response)
        return None
    if json_only and (body := stream.whole_body()) is not None:
        return _check_json(body)
    stream.end()
    if events := stream.take():
        await sink.send(events)
    return None


async def _collect_events(call: _Call, response: aiohttp.ClientResponse) -> bytes:
    """Return the answer that a stream adds up to which the request did not ask for."""
    events = EventSink()
    body = await _pass_on_events(call, response, events, json_only=True)
    return _collect(events.received) if body is None else body


def _collect(events: Sequence[bytes]) -> bytes:
    if not has_a_known_shape(events, with_messages=True):
        raise ModelGarbled("The model sent a stream although the request asked for a whole answer.")
    return collect(events).body


def _is_stream(response: aiohttp.ClientResponse, *, json_only: bool) -> bool:
    """Return True if the body is a stream: some servers ignore `stream`, some label events as plain text."""
    content_type = response.content_type
    if content_type == sse.CONTENT_TYPE or not json_only:
        return content_type == sse.CONTENT_TYPE
    return content_type == DEFAULT_CONTENT_TYPE or (content_type.startswith("text/") and content_type != "text/html")


def _to_body(response: aiohttp.ClientResponse, body: bytes, *, json_only: bool) -> bytes:
    content_type = response.content_type
    if json_only or (body and (content_type == "application/json" or content_type.endswith("+json"))):
        return _check_json(body)
    return encode_binary(BinaryBody(response.headers.get("content-type", "application/octet-stream"), body))


def _check_json(body: bytes) -> bytes:
    """Return the JSON body without a byte order mark; events are collected.

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


async def _drain(call: _Call, response: aiohttp.ClientResponse) -> None:
    with suppress(aiohttp.ClientError, OSError, ModelGarbled):
        async with asyncio.timeout(LINGER_SECONDS):
            while await call.read(response):
                pass

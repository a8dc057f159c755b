"""The one place that speaks HTTP to models: a request out, its bytes back, and every failure under its own name."""

from __future__ import annotations

import asyncio
import io
import os
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC
from email.utils import parsedate_to_datetime
from weakref import WeakSet

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

from signoff.core import sse
from signoff.core.allow_list import MODEL_ADDRESSES
from signoff.core.answer import Chunk
from signoff.core.binary import BinaryBody, encode_binary
from signoff.core.model import Timeouts
from signoff.engines.url import NO_MODELS, parse_model_url
from signoff.errors import (
    ModelAnswered,
    ModelCut,
    ModelFailed,
    ModelGarbled,
    ModelTimedOut,
    ModelUnreachable,
)
from signoff.infra.ssrf import CheckedResolver, blocked_reason

MAX_BODY_BYTES = 64 * 2**20
MAX_EVENT_BYTES = 8 * 2**20
MAX_ERROR_BYTES = 64 * 2**10
MAX_MESSAGE_CHARS = 2000
# Less than the 5 s after which uvicorn, Node and llama.cpp close an idle connection: we should leave first.
KEEPALIVE_SECONDS = 4
# After the last event only the end of the body is due. Waiting for it lets the connection serve again.
LINGER_SECONDS = 0.1
# What aiohttp says where nothing was said (RFC 9110, section 8.3).
UNLABELLED = "application/octet-stream"
_SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?")


class UpstreamClient:
    """A pool of at most `connections` to models; `now` tells the seconds since the epoch. Start it before a `post`.

    Nothing is connected to where no model can be, whatever a name stands for at that moment.
    """

    def __init__(
        self, *, now: Callable[[], float], connections: int = 10_000, resolver: AbstractResolver | None = None
    ) -> None:
        self._resolver = resolver
        self._now = now
        self._connections = connections
        self._used = WeakSet[ResponseHandler]()
        self._calls = set[_Call]()
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=_Connector(
                limit=self._connections,
                keepalive_timeout=KEEPALIVE_SECONDS,
                resolver=CheckedResolver(self._resolver or aiohttp.ThreadedResolver(), MODEL_ADDRESSES),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"accept-encoding": "identity", "user-agent": "signoff"},
        )

    async def close(self) -> None:
        # aiohttp would close their connections and let them wait.
        for call in self._calls:
            call.hang_up()
        if self._session is not None:
            await self._session.close()
            self._session = None

    def post(
        self,
        url: str,
        *,
        body: bytes,
        headers: Mapping[str, str],
        timeouts: Timeouts,
        stream: bool,
    ) -> AsyncGenerator[Chunk, None]:
        """What is answered to a POST, JSON or events of it: see `ask`."""
        return self.ask(Sent("POST", url, body, headers), timeouts=timeouts, stream=stream)

    async def ask(
        self, sent: Sent, *, timeouts: Timeouts, stream: bool, json_only: bool = True
    ) -> AsyncGenerator[Chunk, None]:
        """The whole JSON body as one chunk; when `stream` is set and the model does stream, its events as they come.
        Unless `json_only`, a body that is not JSON is a parcel, and an event may say anything.

        A stream ends after `[DONE]`, or the event that ends a response; unless `json_only`, also where its body ends.
        No byte is changed. Raises ModelFailed and its kin. Cancelling the reader, or closing the generator, closes
        the connection at once.
        """
        call = _Call(timeouts, self._used)
        self._calls.add(call)
        try:
            response = call.response = await self._respond(call, sent)
            if response.status >= 300:
                raise await self._refusal(call, response)
            if not (stream and _is_stream(response, json_only=json_only)):
                yield Chunk(_packed(response, await _whole(call, response), json_only=json_only))
                return
            splitter = sse.EventSplitter(MAX_EVENT_BYTES)
            while data := await call.read(response):
                for event in splitter.feed(data):
                    last = _is_last(sse.data_of(event), json_only=json_only)
                    yield Chunk(event, event=True)
                    if last:
                        await _finish(call, response)
                        return
            if rest := _rest(splitter.rest, json_only=json_only):
                yield Chunk(rest, event=True)
        except TimeoutError as error:
            raise call.too_slow() from error
        except (aiohttp.ClientError, OSError) as error:
            raise ModelCut from error
        finally:
            self._calls.discard(call)
            call.hang_up()

    async def _respond(self, call: _Call, sent: Sent) -> aiohttp.ClientResponse:
        """The response, as soon as its headers are here."""
        try:
            async with call.first():
                try:
                    return await self._send(call, sent)
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                    if not call.reused:
                        raise
                # The server closed an idle connection just as we wrote to it: ask once more, on a new one.
                call.wants_new = True
                return await self._send(call, sent)
        except aiohttp.ClientResponseError as error:
            raise ModelGarbled("The model's answer is not HTTP that can be read.") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
                raise
            if blocked_reason(error) is not None:
                raise ModelFailed(NO_MODELS) from error
            raise ModelUnreachable(f"The model cannot be reached: {_reason(error)}.") from error

    async def _send(self, call: _Call, sent: Sent) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("Upstream.start() was not awaited")
        token = _CALL.set(call)
        try:
            return await self._session.request(
                sent.method,
                parse_model_url(sent.url),
                # A large body is written in pieces.
                data=sent.body if len(sent.body) < 2**20 else io.BytesIO(sent.body),
                headers=sent.headers,
                skip_auto_headers=("content-type",),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, connect=call.timeouts.connect_seconds),
            )
        finally:
            _CALL.reset(token)

    async def _refusal(self, call: _Call, response: aiohttp.ClientResponse) -> ModelAnswered | ModelGarbled:
        if response.status < 400:
            return ModelGarbled(f"The model redirects (status {response.status}), which is not followed.")
        body = b""
        with suppress(aiohttp.ClientError, OSError):
            while len(body) < MAX_ERROR_BYTES and (data := await call.read(response)):
                body += data
        body = body[:MAX_ERROR_BYTES]
        message = _error_message(body)[0] or f"The model answered with status {response.status}."
        wait_seconds = self._seconds(response.headers.get("retry-after", ""))
        return ModelAnswered(response.status, message, body=body, retry_after_seconds=wait_seconds)

    def _seconds(self, retry_after: str) -> float | None:
        """Either form of Retry-After (RFC 9110, section 10.2.3) as seconds from now."""
        if _SECONDS.fullmatch(retry_after):
            return float(retry_after)
        try:
            date = parsedate_to_datetime(retry_after)
            return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - self._now())
        except (ValueError, OverflowError):
            return None


class Sent(msgspec.Struct, frozen=True):
    """A request as it goes out."""

    method: str
    url: str
    body: bytes
    headers: Mapping[str, str]


class _Call:
    """One call: how long it may still wait, and the connection that it is on."""

    def __init__(self, timeouts: Timeouts, used: WeakSet[ResponseHandler]) -> None:
        self.timeouts = timeouts
        self.response: aiohttp.ClientResponse | None = None
        self.reused = False
        self.wants_new = False
        self._used = used
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._first = now + timeouts.first_byte_seconds
        self._end = now + timeouts.total_seconds
        self._due = min(self._first, self._end)

    def first(self) -> asyncio.Timeout:
        """The limit until the headers are here."""
        return asyncio.timeout_at(self._due)

    def accepts(self, connection: Connection) -> bool:
        """Takes a connection, unless it served others and this call wants a new one."""
        protocol = connection.protocol
        self.reused = protocol in self._used
        if protocol is None or (self.reused and self.wants_new):
            return False
        self._used.add(protocol)
        self._transport = connection.transport
        return True

    async def read(self, response: aiohttp.ClientResponse) -> bytes:
        """The next bytes of the body, empty at its end. The first ones have as long as the headers had."""
        if response.content.is_eof():  # nothing to wait for
            return await response.content.readany()
        now = self._loop.time()
        self._due = min(max(self._first, now + self.timeouts.between_chunks_seconds), self._end)
        # Bytes that wait in a buffer would never let the timeout act.
        if now >= self._end:
            raise TimeoutError
        async with asyncio.timeout_at(self._due):
            try:
                data = await response.content.readany()
            except RuntimeError as error:
                # This is how aiohttp says that the connection is already lost.
                raise ConnectionResetError from error
        self._first = 0
        return data

    def too_slow(self) -> ModelTimedOut:
        """The error that tells which limit has passed. (The clock may not: timers can be a little early.)"""
        if self._due == self._end:
            return ModelTimedOut(f"The model took more than {self.timeouts.total_seconds:g} s.")
        if self._first:
            return ModelTimedOut(f"The model did not begin within {self.timeouts.first_byte_seconds:g} s.")
        return ModelTimedOut(f"The model sent nothing for {self.timeouts.between_chunks_seconds:g} s.")

    def hang_up(self) -> None:
        """Closes the connection, unless the response was read to its end and gave it back.

        aiohttp alone would first write out what it holds, which never ends when the model does not read.
        """
        if self._transport is not None and (self.response is None or self.response.connection is not None):
            self._transport.abort()
        if self.response is not None:
            self.response.close()


_CALL: ContextVar[_Call] = ContextVar("call")


class _Connector(aiohttp.TCPConnector):
    """Shows each call the connection that it gets."""

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
    ) -> Connection:
        while not _CALL.get().accepts(connection := await super().connect(req, traces, timeout)):
            connection.close()
        return connection


async def _whole(call: _Call, response: aiohttp.ClientResponse) -> bytes:
    parts, size_bytes = list[bytes](), 0
    while data := await call.read(response):
        size_bytes += len(data)
        if size_bytes > MAX_BODY_BYTES:
            raise ModelGarbled("The model's answer is too large.")
        parts.append(data)
    return b"".join(parts)


def _is_stream(response: aiohttp.ClientResponse, *, json_only: bool) -> bool:
    """Some servers ignore `stream`; some label their events as plain text, where they can be nothing else."""
    kind = response.content_type
    if kind == sse.CONTENT_TYPE or not json_only:
        return kind == sse.CONTENT_TYPE
    return kind == UNLABELLED or (kind.startswith("text/") and kind != "text/html")


def _packed(response: aiohttp.ClientResponse, body: bytes, *, json_only: bool) -> bytes:
    kind = response.content_type
    if json_only or (body and (kind == "application/json" or kind.endswith("+json"))):
        return _checked(body)
    return encode_binary(BinaryBody(response.headers.get("content-type", "application/octet-stream"), body))


def _checked(body: bytes) -> bytes:
    try:
        body.decode()
        msgspec.json.decode(body, type=msgspec.Raw)
    except (ValueError, RecursionError) as error:
        raise ModelGarbled("The model's answer is not JSON.") from error
    return body


class _Event(msgspec.Struct):
    type: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


# Streams of responses know no `[DONE]`.
_LAST = {b'"response.completed"', b'"response.incomplete"', b'"response.failed"'}


def _is_last(data: bytes, *, json_only: bool) -> bool:
    """Whether an event ends its stream. Raises ModelAnswered when it is an error, and ModelGarbled when it is no object
    but has to be one.
    """
    if not data or data.startswith(b"[DONE]"):
        return bool(data)
    try:
        data.decode()
        event = msgspec.json.decode(data, type=_Event)
    except (ValueError, RecursionError) as error:
        if not json_only:
            return False
        raise ModelGarbled("The model sent an event that is not a JSON object.") from error
    kind = bytes(event.type)
    if bytes(event.error) != b"null" or kind == b'"error"':
        message, status = _error_message(data)
        raise ModelAnswered(status or ModelFailed.status, message, body=data[:MAX_ERROR_BYTES])
    return json_only and kind in _LAST


def _rest(raw: bytes, *, json_only: bool) -> bytes:
    """What to make of the end of a body that no blank line follows. Raises ModelCut."""
    if sse.data_of(raw).startswith(b"[DONE]"):
        return sse.DONE
    if json_only:
        raise ModelCut
    return raw


async def _finish(call: _Call, response: aiohttp.ClientResponse) -> None:
    with suppress(aiohttp.ClientError, OSError):
        async with asyncio.timeout(LINGER_SECONDS):
            while await call.read(response):
                pass


class _Error(msgspec.Struct):
    message: str | None = None
    code: int | str | None = None
    status: int | str | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error | str | None = None
    detail: str | None = None
    message: str | None = None


def _error_message(body: bytes) -> tuple[str, int | None]:
    """What an error says, in whichever of the usual shapes (else its text), and the status that it names."""
    try:
        told = msgspec.json.decode(body, type=_ErrorBody)
    except (ValueError, RecursionError):
        told = _ErrorBody()
    error = told.error if isinstance(told.error, _Error) else _Error(message=told.error)
    message = error.message or told.detail or told.message or body.decode(errors="replace").strip()
    status = next((code for code in (error.code, error.status) if isinstance(code, int) and 400 <= code < 600), None)
    return message[:MAX_MESSAGE_CHARS], status


def _reason(error: Exception) -> str:
    """Enough for an operator and nothing of our network's addresses, since callers read it too."""
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number is not None and number > 0 else type(error).__name__

"""How an answer leaves the OpenAI door: whole, or as events, with comments while the model says nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Generator

from signoff.core import sse
from signoff.core.answer import Chunk
from signoff.core.binary import decode_binary
from signoff.core.convert import stream_events
from signoff.core.endpoints import KNOWN, STREAMED
from signoff.doors.http import JSON, Header, Send, cache_header, send_bytes
from signoff.doors.openai.errors import error_event, gauge_headers
from signoff.errors import SignoffError
from signoff.runtime.background import Background
from signoff.work.call import Call, call_chunks
from signoff.work.perform import collect_answer
from signoff.work.services import Services

# Whatever a model says that it is, it is no page of ours.
AS_DATA = [(b"x-content-type-options", b"nosniff"), (b"content-security-policy", b"sandbox; default-src 'none'")]
EVENTS = b"text/event-stream; charset=utf-8"


async def send_whole(call: Call, chunks: AsyncIterator[Chunk], send: Send) -> None:
    """The answer in one piece; a parcel as what was in it."""
    body = b"".join([chunk.raw async for chunk in chunks])
    await send_body(call, body, send)


async def whole_answer(services: Services, call: Call) -> bytes:
    """The answer in one piece, also where the model was asked for a stream."""
    async with contextlib.aclosing(call_chunks(services, call)) as chunks:
        said = [chunk async for chunk in chunks]
    return collect_answer(call.inflight.job, said).body if call.ask.stream else b"".join([chunk.raw for chunk in said])


async def send_events(
    call: Call, chunks: AsyncIterator[Chunk], send: Send, background: Background, keep_alive_seconds: float
) -> None:
    """Events as they come. An error before the first one has its status; one after it is an event of its own."""
    events = EventSender(call, send, background, keep_alive_seconds)
    with events.kept_open():
        try:
            async for chunk in chunks:
                if chunk.event:
                    await events.send(chunk.raw)
                elif call.ask.path in STREAMED or events.began:
                    # A model that ignores `stream` answers whole; its caller still reads a stream.
                    pieces = stream_events(call.ask.path, chunk.raw, with_usage=call.with_usage)
                    await events.send(b"".join(piece.raw for piece in pieces))
                else:
                    events.close()
                    await send_body(call, chunk.raw, send)
                    return
        except SignoffError as error:
            if not events.began:
                raise
            await events.send(error_event(error, call.ask.path))
    await events.begin()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class EventSender:
    """One stream on its way out. While nothing is sent for a while, a comment keeps its connection open.

    `send` waits while the client reads slowly, and so nothing more is read from the model.
    """

    def __init__(self, call: Call, send: Send, background: Background, keep_alive_seconds: float) -> None:
        self.began = False
        self._call = call
        self._send = send
        self._background = background
        self._seconds = keep_alive_seconds
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._loop.time()
        self._sending = 0
        self._timer: asyncio.TimerHandle | None = None

    async def send(self, raw: bytes) -> None:
        """Sends events, as soon as the client has room for them."""
        self._sending += 1
        try:
            await self.begin()
            await self._send({"type": "http.response.body", "body": raw, "more_body": True})
        finally:
            self._sending -= 1
            self._sent_at = self._loop.time()

    async def begin(self) -> None:
        """Sends the head, once."""
        if self.began:
            return
        self.began = True
        headers = [(b"content-type", EVENTS), (b"cache-control", b"no-cache"), *call_headers(self._call)]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    @contextlib.contextmanager
    def kept_open(self) -> Generator[None]:
        """Sends comments while the block runs."""
        self._timer = self._loop.call_later(self._seconds, self._look)
        try:
            yield
        finally:
            self.close()

    def close(self) -> None:
        """No more comments."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _look(self) -> None:
        silent = self._loop.time() - self._sent_at
        is_stream = self.began or self._call.ask.path in KNOWN  # else it may become a sound
        if silent >= self._seconds and is_stream and not self._sending:
            self._background.spawn(self._comment())
            silent = 0
        self._timer = self._loop.call_later(max(self._seconds - silent, self._seconds / 10), self._look)

    async def _comment(self) -> None:
        if self._timer is not None:  # and not closed meanwhile
            await self.send(sse.comment(b"still at work"))


def call_headers(call: Call) -> list[Header]:
    """Which job this is, which model answers it, what became of the cache, and what is left under its limits."""
    job, room = call.inflight.job, call.inflight.reservation
    headers = [(b"x-signoff-job", job.id.encode()), (b"x-signoff-model", job.model.encode()), cache_header(job)]
    return headers if room is None else [*headers, *gauge_headers(room.gauges)]


async def send_body(call: Call, body: bytes, send: Send) -> None:
    """An answer that is there; a parcel as what was in it."""
    binary = None if call.ask.path in KNOWN else decode_binary(body)
    if binary is None:
        return await send_bytes(send, 200, body, JSON, call_headers(call))
    headers = [*call_headers(call), *AS_DATA]
    return await send_bytes(send, 200, binary.content, binary.content_type.encode(), headers)

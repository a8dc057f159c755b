"""Responses of the OpenAI door: whole answers, and event streams with comments while the model sends nothing."""

import asyncio
import contextlib
from collections.abc import Generator, Sequence

from signoff.core.api_paths import KNOWN, STREAMED
from signoff.core.binary import decode_binary
from signoff.core.dialects.convert import keep_alive, stream_events
from signoff.doors.http import JSON, Header, Send, cache_header, send_bytes
from signoff.doors.openai.errors import error_event, gauge_headers
from signoff.errors import SignoffError
from signoff.work.call import WaitingCall, answer_call
from signoff.work.services import Services

# A browser must not render a model's binary answer as a page of this server, whatever content type it declares.
NO_RENDERING_HEADERS: list[Header] = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"sandbox; default-src 'none'"),
]
EVENTS = b"text/event-stream; charset=utf-8"


async def send_events(services: Services, call: WaitingCall, send: Send, keep_alive_seconds: float) -> None:
    """Send events as they come, with a comment after each `keep_alive_seconds` of silence.

    Raises SignoffError for an error before the first event; a later one is sent as an event.
    """
    stream = EventSender(services, call, send, keep_alive_seconds)
    with stream.keep_alive():
        try:
            body = await answer_call(services, call, stream)
            if body is not None and not (call.ask.path in STREAMED or stream.has_begun):
                stream.stop_comments()
                await send_body(call, body, send)
                return
            if body is not None:  # the model ignored `stream`; the caller still reads a stream
                await stream.send(list(stream_events(call.ask.path, body, with_usage=call.with_usage)))
        except SignoffError as error:
            if not stream.has_begun:
                raise
            await stream.send([error_event(error, call.ask.path)])
    await stream.begin()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class EventSender:
    """Sender of one event stream, which sends a comment when nothing else was sent for a while.

    `send` waits while the client reads slowly, so that no more is read from the model meanwhile.
    """

    def __init__(self, services: Services, call: WaitingCall, send: Send, keep_alive_seconds: float) -> None:
        self.has_begun = False
        """True once the head of the response was sent."""
        self._services = services
        self._call = call
        self._send = send
        self._seconds = keep_alive_seconds
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._loop.time()
        self._sends_in_progress = 0
        self._timer: asyncio.TimerHandle | None = None

    async def send(self, events: Sequence[bytes]) -> None:
        """Send events in one write, after the head if it was not sent yet."""
        self._sends_in_progress += 1
        try:
            await self.begin()
            await self._send({"type": "http.response.body", "body": b"".join(events), "more_body": True})
        finally:
            self._sends_in_progress -= 1
            self._sent_at = self._loop.time()

    async def begin(self) -> None:
        """Send the head of the response, once."""
        if self.has_begun:
            return
        self.has_begun = True
        headers = [(b"content-type", EVENTS), (b"cache-control", b"no-cache"), *call_headers(self._call)]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    @contextlib.contextmanager
    def keep_alive(self) -> Generator[None]:
        """Send comments in silences while the block runs."""
        self._timer = self._loop.call_later(self._seconds, self._comment_if_silent)
        try:
            yield
        finally:
            self.stop_comments()

    def stop_comments(self) -> None:
        """Send no more comments."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _comment_if_silent(self) -> None:
        silent_seconds = self._loop.time() - self._sent_at
        # Before its first chunk, the answer of any other path may still turn out to be binary, such as a sound.
        is_stream = self.has_begun or self._call.ask.path in KNOWN
        if silent_seconds >= self._seconds and is_stream and not self._sends_in_progress:
            self._services.runtime.background.spawn(self._send_comment())
            silent_seconds = 0
        delay = max(self._seconds - silent_seconds, self._seconds / 10)
        self._timer = self._loop.call_later(delay, self._comment_if_silent)

    async def _send_comment(self) -> None:
        if self._timer is not None:  # comments may have been stopped before this task ran
            await self.send([keep_alive(self._call.ask.path, b"still at work")])


def call_headers(call: WaitingCall) -> list[Header]:
    """Return the headers with the job's id, the model that answers, the use of the cache, and the limits' gauges."""
    job, reservation = call.job, call.inflight.attempt.reservation
    headers = [(b"x-signoff-job", job.id.encode()), (b"x-signoff-model", job.model.encode()), cache_header(job)]
    if reservation is not None:
        return [*headers, *gauge_headers(reservation.gauges)]
    if not (upstream_headers := call.inflight.attempt.upstream_headers):
        return headers
    return [*headers, *((name.encode(), value.encode()) for name, value in upstream_headers.items())]


async def send_body(call: WaitingCall, body: bytes, send: Send) -> None:
    """Send a whole answer; a binary answer with its own bytes and content type."""
    binary = None if call.ask.path in KNOWN else decode_binary(body)
    if binary is None:
        return await send_bytes(send, 200, body, JSON, call_headers(call))
    headers = [*call_headers(call), *NO_RENDERING_HEADERS]
    return await send_bytes(send, 200, binary.content, binary.content_type.encode(), headers)

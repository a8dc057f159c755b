"""Answers of models with a content coding: no request asks for one, and some servers and proxies use one anyway."""

from __future__ import annotations

import asyncio
import gzip
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import brotli
import pytest

from fakes.behaviours import ANSWER, EVENTS
from fakes.http_server import LIMIT_SECONDS, RecordedRequest, Reply, chunked, whole
from fakes.upstream import fake_upstream
from signoff.core.model import Timeouts
from signoff.engine import EventSink
from signoff.engines.http_request import UpstreamRequest
from signoff.engines.upstream import UpstreamClient
from signoff.errors import ModelAnswered, ModelFailed, ModelGarbled

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = pytest.mark.anyio
Compress = Callable[[bytes], bytes]


def raw_deflate(body: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(body) + deflater.flush()


CODINGS: dict[str, tuple[str, Compress]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "in capitals": ("GZIP", gzip.compress),
    "zlib": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "br": ("br", brotli.compress),
    "zstd": ("zstd", zstd.compress),
    "identity": ("identity", bytes),
    "several": ("deflate, gzip", lambda body: gzip.compress(zlib.compress(body))),
    "several with identity": ("identity, gzip", gzip.compress),
    "a member for each byte": ("gzip", lambda body: b"".join(gzip.compress(bytes([byte])) for byte in body)),
    "a name that is none": ("utf-8", bytes),
    "a header that a proxy has left": ("gzip", bytes),
    "without its end": ("gzip", lambda body: gzip.compress(body)[:-8]),
}
coded = pytest.mark.parametrize("name", CODINGS)


@pytest.fixture
async def upstream() -> AsyncIterator[UpstreamClient]:
    upstream = UpstreamClient(now=lambda: 0)
    await upstream.start()
    yield upstream
    await upstream.close()


async def ask(upstream: UpstreamClient, reply: Reply, *, stream: bool = False, **more: Any) -> bytes:
    """Return the body of the answer to a request that gets `reply`, or its events joined."""

    async def script(_: RecordedRequest) -> Reply:
        return reply

    async with fake_upstream(script) as server, asyncio.timeout(LIMIT_SECONDS):
        events, request = EventSink(), UpstreamRequest("POST", server.url, b"{}", {})
        body = await upstream.ask(request, events, timeouts=Timeouts(), stream=stream, **more)
        return b"".join(events.received) if body is None else body


def headers(name: str) -> dict[str, str]:
    return {"content-encoding": CODINGS[name][0]}


@coded
async def test_a_whole_answer_is_decoded(upstream: UpstreamClient, name: str) -> None:
    assert await ask(upstream, whole(CODINGS[name][1](ANSWER), headers=headers(name))) == ANSWER


@coded
async def test_a_stream_is_decoded(upstream: UpstreamClient, name: str) -> None:
    sent = CODINGS[name][1](b"".join(EVENTS))
    pieces = (sent[:10], *(sent[at : at + 3] for at in range(10, len(sent), 3)))
    assert await ask(upstream, chunked(*pieces, headers=headers(name)), stream=True) == b"".join(EVENTS)


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
async def test_an_event_passes_on_as_soon_as_its_server_flushes_it(upstream: UpstreamClient, coding: str) -> None:
    flushed = list(flushed_events(coding))

    class Sink(EventSink):
        async def send(self, events: Any) -> None:
            await super().send(events)
            server.wake.set()

    async def script(_: RecordedRequest) -> Reply:
        async def wait(fake: Any) -> None:
            await fake.wake.wait()

        return chunked(flushed[0], wait, *flushed[1:], headers={"content-encoding": coding})

    async with fake_upstream(script) as server, asyncio.timeout(LIMIT_SECONDS):
        sink, request = Sink(), UpstreamRequest("POST", server.url, b"{}", {})
        assert await upstream.ask(request, sink, timeouts=Timeouts(), stream=True) is None
    assert sink.received == EVENTS


def flushed_events(coding: str) -> Any:
    """Yield the bytes that each event adds to a coded stream; the last ones end it."""
    if coding == "br":
        compressor = brotli.Compressor()
        yield from (compressor.process(event) + compressor.flush() for event in EVENTS)
        yield compressor.finish()
        return
    if coding == "gzip":
        deflater = zlib.compressobj(wbits=31)
        yield from (deflater.compress(event) + deflater.flush(zlib.Z_SYNC_FLUSH) for event in EVENTS)
        yield deflater.flush()
        return
    zstandard = zstd.ZstdCompressor()
    yield from (zstandard.compress(event, zstandard.FLUSH_BLOCK) for event in EVENTS)
    yield zstandard.flush()


@coded
async def test_an_error_is_decoded(upstream: UpstreamClient, name: str) -> None:
    body = CODINGS[name][1](b'{"error": {"message": "Slow down."}}')
    with pytest.raises(ModelAnswered, match="Slow down") as caught:
        await ask(upstream, whole(body, status=429, headers=headers(name)))
    assert caught.value.status == 429


async def test_an_error_that_cannot_be_decoded_keeps_its_status(upstream: UpstreamClient) -> None:
    body = gzip.compress(b'{"error": "Slow down."}')
    with pytest.raises(ModelAnswered) as caught:
        await ask(upstream, whole(body[:20] + b"\xff" * 20, status=429, headers={"content-encoding": "gzip"}))
    assert caught.value.status == 429


async def test_a_file_is_decoded(upstream: UpstreamClient) -> None:
    reply = whole(brotli.compress(b"MP3"), content_type="audio/mpeg", headers={"content-encoding": "br"})
    assert b'"TVAz"' in await ask(upstream, reply, json_only=False)  # MP3 in base64


async def test_an_answer_that_is_damaged_is_garbled(upstream: UpstreamClient) -> None:
    with pytest.raises(ModelGarbled, match="Content-Encoding"):
        await ask(upstream, whole(gzip.compress(ANSWER) + b"rest", headers={"content-encoding": "gzip"}))


@pytest.mark.parametrize("compress", [brotli.compress, zstd.compress])
async def test_a_small_answer_that_becomes_too_large_is_not_asked_for_again(
    upstream: UpstreamClient, compress: Compress
) -> None:
    bomb, coding = compress(b" " * 70_000_000), "br" if compress is brotli.compress else "zstd"
    with pytest.raises(ModelFailed, match="larger than") as caught:
        await ask(upstream, whole(bomb, headers={"content-encoding": coding}))
    assert not caught.value.retryable

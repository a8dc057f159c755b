"""Bodies of `POST /v1/messages/batches`, which are stored while they come."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from signoff.core.batch import MAX_MESSAGES
from signoff.stores.batches_schema import batches, files
from signoff.stores.schema import jobs
from support.live_server import Live, live, until

pytestmark = pytest.mark.anyio
PATH = "/v1/messages/batches"
MAX_BODY_BYTES, MAX_FILE_BYTES = 20_000, 100_000_000


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Live]:
    """Yield a server of the test's own, so that it can look at all that is stored."""
    async with live(tmp_path, max_body_bytes=MAX_BODY_BYTES, max_file_bytes=MAX_FILE_BYTES) as server:
        yield server


def a_request(number: int, text: str = "hello") -> bytes:
    params = {"model": "echo", "max_tokens": 50, "messages": [{"role": "user", "content": text}]}
    return json.dumps({"custom_id": f"r-{number}", "params": params}).encode()


def body_of(*requests: bytes, end: bytes = b"]}") -> bytes:
    return b'{"requests": [' + b",".join(requests) + end


async def sent(server: Live, body: Any, **headers: str) -> tuple[int, Any]:
    """Send a body; return the status and the body of the response."""
    return await server.ask("POST", PATH, await server.token(), data=body, headers=headers)


async def stored(server: Live, tmp_path: Path) -> list[int]:
    """Return the numbers of blobs, and of rows of files, of batches and of jobs."""
    tables = (files, batches, jobs)

    def count(connection: sa.Connection, _: object) -> list[int]:
        return [connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() for table in tables]

    rows = await server.services.store._database.read(count)  # type: ignore[attr-defined]
    return [len([path for path in (tmp_path / "data" / "blobs").rglob("*") if path.is_file()]), *rows]


async def test_a_body_larger_than_other_bodies_may_be_is_taken(server: Live, tmp_path: Path) -> None:
    body = body_of(*(a_request(number, "x" * 500) for number in range(200)))
    assert len(body) > 5 * MAX_BODY_BYTES
    status, batch = await sent(server, body)
    assert (status, batch["request_counts"]["processing"]) == (200, 200)
    token = await server.token()

    async def results() -> str | None:
        url, headers = f"{server.url}{PATH}/{batch['id']}/results", {"authorization": f"Bearer {token}"}
        async with server.http.get(url, headers=headers) as response:
            return await response.text() if response.status == 200 else None

    lines = [json.loads(line) for line in (await until(results)).splitlines()]
    assert [line["custom_id"] for line in lines] == [f"r-{number}" for number in range(200)]


@pytest.mark.slow
async def test_the_memory_for_a_large_body_does_not_grow_with_it_and_nothing_of_a_broken_one_is_left(
    tmp_path: Path,
) -> None:
    size, text = 0, "x" * 60_000

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal size
        yield b'{"requests": ['
        for number in range(1000):
            piece = a_request(number, text) + b","
            size += len(piece)
            yield piece
        yield b"{]}"

    async with live(tmp_path) as server:
        tracemalloc.start()
        try:
            status, error = await sent(server, pieces())
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert size > 60_000_000
        assert (status, error["error"]["code"]) == (400, "invalid_json")
        assert peak_bytes < 24_000_000
        assert await stored(server, tmp_path) == [0, 0, 0, 0]


GOOD = a_request(1)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (body_of(GOOD, end=b"]"), "not valid JSON"),
        (body_of(GOOD, end=b""), "not valid JSON"),
        (body_of(GOOD, end=b",]}"), "not valid JSON"),
        (body_of(GOOD, end=b"]}]"), "not valid JSON"),
        (body_of(GOOD, b'{"custom_id": "a", "params": {"a": }}'), "not valid JSON.*`requests.1`"),
        (body_of(GOOD, GOOD), "`requests.1.custom_id` 'r-1' occurs twice"),
        (body_of(GOOD, b'{"custom_id": 1, "params": {}}'), r"not a valid message batch.*requests\[1\].custom_id"),
        (body_of(GOOD, b'{"custom_id": "a"}'), r"Missing required parameter: 'requests\[1\]\.params'"),
        (body_of(GOOD, b"[]"), r"not a valid message batch.*requests\[1\]"),
        (body_of(GOOD, b'{"custom_id": "b", "params": ' + b"[" * 5000), "not valid JSON"),
        (body_of(GOOD, b'{"custom_id": "b", "params": ' + b"[" * 990 + b"]" * 990 + b"}"), "not valid JSON"),
        (b'{"requests": [' * 3000, "not valid JSON"),
        (body_of(GOOD, end=b'], "requests": []}'), "must occur once"),
        (b'{"requests": {}}', "not a valid message batch"),
        (b'{"other": []}', "Missing required parameter: 'requests'"),
        (b"[]", "not a valid message batch"),
        (b"", "not valid JSON"),
        (b'{"requests": []}', f"1 to {MAX_MESSAGES} requests"),
    ],
    ids=range(18),
)
async def test_a_body_that_is_not_valid_leaves_nothing_behind(
    body: bytes, text: str, server: Live, tmp_path: Path
) -> None:
    status, error = await sent(server, body)
    assert (status, error["type"], error["error"]["type"]) == (400, "error", "invalid_request_error")
    assert await matches(text, error["error"]["message"])
    assert await stored(server, tmp_path) == [0, 0, 0, 0]


async def matches(pattern: str, text: str) -> bool:
    """Return True; fail with both if `text` has no match of `pattern`."""
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)
    return True


async def test_a_body_has_at_most_as_many_requests_as_anthropic_allows(server: Live, tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"requests": ['
        for first in range(0, MAX_MESSAGES + 1, 1000):
            yield b",".join(b'{"custom_id":"%d","params":{}}' % number for number in range(first, first + 1000)) + b","

    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces():
            yield piece

    status, error = await sent(server, stream())
    assert (status, f"1 to {MAX_MESSAGES}" in error["error"]["message"]) == (400, True)
    assert await stored(server, tmp_path) == [0, 0, 0, 0]


@pytest.mark.parametrize("is_declared", [True, False])
async def test_a_body_that_is_too_large_gets_413_as_anthropic_words_it(is_declared: bool, tmp_path: Path) -> None:
    body = body_of(*(a_request(number, "x" * 500) for number in range(200)))

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    async with live(tmp_path, max_file_bytes=len(body) - 1) as server:
        status, error = await sent(server, body if is_declared else pieces())
        assert (status, error["type"], error["error"]["type"]) == (413, "error", "request_too_large")
        assert "max_file_bytes" in error["error"]["message"]
        assert await stored(server, tmp_path) == [0, 0, 0, 0]


async def test_a_request_is_no_larger_than_other_bodies_may_be(server: Live, tmp_path: Path) -> None:
    status, error = await sent(server, body_of(a_request(0), a_request(1, "x" * MAX_BODY_BYTES)))
    assert (status, error["error"]["type"]) == (413, "request_too_large")
    assert "`requests.1`" in error["error"]["message"]
    assert await stored(server, tmp_path) == [0, 0, 0, 0]


async def test_a_body_whose_client_leaves_is_discarded(server: Live, tmp_path: Path) -> None:
    token = await server.token()
    host, port = server.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {PATH} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\ncontent-length: 1000000\r\n\r\n"
    writer.write(head.encode() + body_of(*(a_request(number) for number in range(100)), end=b","))
    await writer.drain()

    async def is_begun() -> bool | None:
        return (await stored(server, tmp_path))[1] == 1 or None

    await until(is_begun)
    writer.close()

    async def is_clean() -> bool | None:
        return await stored(server, tmp_path) == [0, 0, 0, 0] or None

    await until(is_clean)


async def test_a_compressed_body_is_decoded_within_the_limit_of_other_bodies(server: Live) -> None:
    gzipped = {"content-encoding": "gzip"}
    assert (await sent(server, gzip.compress(body_of(a_request(0))), **gzipped))[0] == 200
    status, error = await sent(server, gzip.compress(body_of(a_request(0, "x" * MAX_BODY_BYTES))), **gzipped)
    assert (status, error["error"]["type"]) == (413, "request_too_large")


async def test_a_body_may_begin_with_a_byte_order_mark(server: Live) -> None:
    assert (await sent(server, b"\xef\xbb\xbf" + body_of(a_request(0))))[0] == 200

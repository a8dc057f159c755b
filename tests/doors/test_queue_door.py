"""The routes that queue jobs: the plain door and Litestar's handler of each route give the same response."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.live_server import Live, live

pytestmark = pytest.mark.anyio

VALID: dict[str, bytes] = {
    "/enqueue": b'{"model": "echo", "messages": [{"role": "user", "content": "hello"}]}',
    "/api/jobs": b'{"target": "echo", "body": {"messages": [{"role": "user", "content": "hello"}]}}',
    "/generate": b'{"content": "hello", "meta": {"model": "echo"}}',
    "/chat_completion": b'{"messages": [{"role": "user", "content": "hello"}], "meta": {"model": "echo"}}',
}
# Values that differ between any two responses.
VARIABLE = re.compile(rb"[0-9a-f]{8}-[0-9a-f-]{27}|\d{4}-\d\d-\d\dT[\d:.]+Z|\"queued\":[\d.e-]+")
IGNORED_HEADERS = {"date", "server", "x-request-id", "location", "x-signoff-job"}


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    """Yield a server that takes bodies of up to 10 kB."""
    async with live(Path(tmp_path_factory.mktemp("live")), max_body_bytes=10_000) as server:
        yield server


async def response_to(server: Live, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any, bytes]:
    """Return status, headers and body of the response, without values that differ each time."""
    async with server.http.request("POST", server.url + path, data=body, headers=headers) as response:
        names = {name.lower(): value for name, value in response.headers.items()}
        compared = {name: value for name, value in names.items() if name not in IGNORED_HEADERS}
        text = VARIABLE.sub(b"", await response.read())
        compared.pop("content-length", None)
        return response.status, compared, text


@pytest.mark.parametrize("path", VALID)
@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (None, {}, {200, 202}),
        (None, {"prefer": "respond-async"}, {200, 202}),
        (None, {"cache-control": "no-store", "content-type": "text/plain"}, {200, 202}),
        (None, {"authorization": ""}, {401}),
        (None, {"authorization": "Bearer wrong"}, {401}),
        (b"{", {}, {400}),
        (b"", {}, {400}),
        (b"[]", {}, {200, 400}),
        (b"\xff\xfe", {}, {400}),
        (b'{"target": "nobody", "model": "nobody", "body": {}, "content": "", "meta": {"model": "nobody"}}', {}, None),
        (b'{"body": {}, "priority": 10, "content": 5, "messages": 5}', {}, None),
        (b'"' + b"x" * 20_000 + b'"', {}, {413}),
    ],
)
async def test_both_ways_to_a_route_give_the_same_response(
    server: Live, path: str, body: bytes | None, headers: dict[str, str], status: set[int] | None
) -> None:
    token = await server.token()
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"} | headers
    headers = {name: value for name, value in headers.items() if value}
    body = VALID[path] if body is None else body
    plain = await response_to(server, path, headers, body)
    framed = await response_to(server, f"{path}?unknown=1", headers, body)
    slashed = await response_to(server, f"{path}/", headers, body)
    assert plain == framed == slashed
    assert status is None or plain[0] in status


async def test_other_methods_and_addresses_do_not_reach_the_plain_doors(server: Live) -> None:
    token = await server.token()
    for path in ("/enqueue", "/generate", "/chat_completion"):
        assert (await server.ask("GET", path, token))[0] == 405
    assert (await server.ask("GET", "/api/jobs", token))[0] == 200
    assert (await server.ask("POST", "/enqueue?x=%00", token))[0] == 400

"""HEAD is answered as GET without a body; other methods that a path does not support get 405 with `Allow`."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from signoff.doors.openapi.operations import OPERATIONS
from support.live_server import Live, chat, live

pytestmark = pytest.mark.anyio
VARYING = {"x-request-id", "content-length", "transfer-encoding"}


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    """Yield a server that all tests share."""
    async with live(tmp_path_factory.mktemp("head")) as running:
        yield running


async def send(server: Live, method: str, path: str, **headers: str) -> tuple[int, dict[str, Any], bytes]:
    headers |= {"authorization": f"Bearer {await server.token('admin')}"}
    async with server.http.request(method, server.url + path, headers=headers) as response:
        return response.status, {name.lower(): value for name, value in response.headers.items()}, await response.read()


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/liveness",
        "/health/live",
        "/health/ready",
        "/v1/models",
        "/v1/models/echo",
        "/v1/models/nowhere",
        "/openai/v1/models/",
        "/api/jobs",
        "/api/jobs/nowhere",
        "/jobs",
        "/job?id=nowhere",
        "/api/models",
        "/api/usage",
        "/api/cache",
        "/static/tokens.css",
        "/schema/openapi.json",
        "/nowhere",
    ],
)
async def test_head_has_the_status_and_the_headers_of_get(path: str, server: Live) -> None:
    status, headers, body = await send(server, "GET", path)
    head_status, head_headers, head_body = await send(server, "HEAD", path)
    assert (head_status, head_body) == (status, b"")
    assert body
    assert head_headers.keys() - VARYING == headers.keys() - VARYING
    assert head_headers["content-type"] == headers["content-type"]


async def test_head_of_an_event_stream_ends(server: Live) -> None:
    _, job = await server.ask("POST", "/api/jobs", await server.token("admin"), json={"body": chat("x", "echo/hang")})
    status, _, body = await send(server, "HEAD", f"/api/jobs/{job['job_id']}/events", accept="text/event-stream")
    assert (status, body) == (200, b"")


@pytest.mark.parametrize("path", ["/signin/code", "/get/predict?id=echo", "/POST/predict?id=echo"])
async def test_head_does_nothing_where_a_get_acts(path: str, server: Live) -> None:
    assert (await send(server, "HEAD", path))[0] == 405


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/health/live", {"GET", "HEAD", "OPTIONS"}),
        ("DELETE", "/enqueue", {"POST", "OPTIONS"}),
        ("PUT", "/signin/code", {"GET", "OPTIONS"}),
        ("PUT", "/api/jobs", {"GET", "HEAD", "OPTIONS", "POST"}),
        ("POST", "/v1/models", {"GET", "HEAD"}),
        ("GET", "/v1/embeddings", {"POST"}),
        ("GET", "/api/openai/v1/chat/completions", {"POST"}),
        ("PUT", "/api/cache", {"DELETE", "GET", "HEAD"}),
        ("PUT", "/get/predict?id=echo", {"GET", "POST"}),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(method: str, path: str, allow: set[str], server: Live) -> None:
    status, headers, _ = await send(server, method, path)
    assert status == 405
    assert set(headers["allow"].split(", ")) == allow


async def test_options_names_all_methods_of_each_path(server: Live) -> None:
    _, document = await server.ask("GET", "/schema/openapi.json")
    faults = list[tuple[str, int, set[str]]]()
    of_litestar = {route.partition(" ")[2] for route in OPERATIONS}
    for path in of_litestar & document["paths"].keys():
        operations = document["paths"][path]
        status, headers, _ = await send(server, "OPTIONS", re.sub(r"\{[^}]*\}", "7", path))
        documented = {method.upper() for method in operations} & {"DELETE", "GET", "PATCH", "POST", "PUT"}
        if "GET" in documented and not path.startswith("/signin/"):
            documented.add("HEAD")
        if {*headers.get("allow", "").split(", ")} - {"OPTIONS"} != documented:
            faults.append((path, status, documented))
    assert not faults, "\n".join(map(repr, faults))

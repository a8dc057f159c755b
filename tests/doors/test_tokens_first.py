"""Routes ask for the token before they look at anything else of a request."""

from __future__ import annotations

import asyncio
import io
import re
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from support.live_server import Live, live

pytestmark = pytest.mark.anyio

WITHOUT_TOKEN = {
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/liveness"),
    ("POST", "/api/session"),
    ("GET", "/signin/{code}"),
}
# Beside those of the document.
PLAIN_ASGI = {
    ("GET", "/v1/models/a"),
    ("POST", "/openai/v1/embeddings"),
    ("GET", "/v1/responses/resp_1"),
    ("POST", "/v1/things"),
    ("DELETE", "/v1/vector_stores/vs_1"),
    ("GET", "/get/predict"),
    ("POST", "/post/predict"),
    ("POST", "/post/addmodel"),
    ("GET", "/get/getlogs"),
    ("GET", "/get/cleanlogs"),
    ("POST", "/dashboard/decide"),
}
NONSENSE = ("%00", "-1", "%ff", "x" * 300)


async def routes(server: Live) -> list[tuple[str, str, list[str]]]:
    """Return method, path and names of query parameters of every route that needs a token."""
    _, document = await server.ask("GET", "/schema/openapi.json")
    listed = list[tuple[str, str, list[str]]]()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parameters: list[dict[str, Any]] = operation.get("parameters", [])
            queries = [each["name"] for each in parameters if each["in"] == "query"]
            listed.append((method.upper(), path, queries))
    assert len(listed) > 50
    listed += [(method, path, ["id", "type", "dest", "model", "user", "key", "wait"]) for method, path in PLAIN_ASGI]
    return [(method, path, queries) for method, path, queries in listed if (method, path) not in WITHOUT_TOKEN]


@pytest.mark.parametrize("token", [None, "nonsense"])
async def test_every_route_asks_for_the_token_before_its_parameters(token: str | None, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        faults, requests = list[Any](), dict[tuple[str, str], None]()
        for method, path, queries in await routes(server):
            for value in NONSENSE:
                # a path whose number is none is no route
                segment = "7" if re.search("(key|user|token|session|item)_id", path) else value
                address = re.sub(r"\{[^}]*\}", segment, path)
                for query in ("", "?" + "&".join(f"{name}={value}" for name in queries)):
                    requests[method, address + query] = None
        assert len(requests) > 500
        for method, address in requests:
            body = {} if method == "GET" else {"data": b"{"}
            status, _ = await server.ask(method, address, token, **body)
            if status != 401:
                faults.append((method, address, status))
        assert not faults, "\n".join(map(repr, faults))


@pytest.mark.parametrize(
    "route",
    [
        "POST /v1/things?Model=a",
        "DELETE /v1/vector_stores/vs_1?model=a&model=b",
        "POST /v1/responses%3fmodel=a",
        "PUT /v1/models",
        "PATCH /openai/v1/embeddings",
        "POST /v1/files/a.b",
        "PUT /post/predict?id=echo",
        "POST /get/nowhere?id=echo",
        "PUT /api/cache",
        "POST /api/openai/v1/nowhere",
    ],
)
async def test_a_caller_without_a_token_learns_nothing_of_paths_and_methods(route: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        method, path = route.split()
        address = URL(server.url + path, encoded=True)
        async with server.http.request(method, address) as response:
            assert response.status == 401, await response.text()


async def test_sign_in_reads_little(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        body = b'{"email": "a@b.c", "password": "x"%b}'
        for filler, status in ((4096 - len(body) + 2, 401), (4097 - len(body) + 2, 413), (10_000_000, 413)):
            assert (await server.ask("POST", "/api/session", data=io.BytesIO(body % (b" " * filler))))[0] == status
        # a size that is announced is refused before any of the body comes
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
        writer.write(b"POST /api/session HTTP/1.1\r\nhost: localhost\r\ncontent-length: 19000000\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        writer.close()

"""Requests as clients really send them: tokens in other headers, slashes, coded bodies, and marks of byte order."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import brotli
import pytest
from yarl import URL

from signoff.core.api_paths import CHAT
from support.live_server import Live, chat, live

pytestmark = pytest.mark.anyio
PATHS = [CHAT, "/openai/v1/chat/completions", "/api/openai/v1/chat/completions", "/enqueue", "/post/predict?id=echo"]
BODY = json.dumps(chat("hello", "echo")).encode()


async def send(server: Live, path: str, headers: dict[str, str], data: bytes = BODY, method: str = "POST") -> Any:
    """Return the status, the JSON, and the headers of a response to a request whose path is sent as it is."""
    url = URL(server.url + path, encoded=True)
    async with server.http.request(method, url, data=data or None, headers=headers) as response:
        return response.status, json.loads(await response.read() or b"null"), response.headers


async def test_a_token_may_come_in_the_headers_of_other_apis(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token, other = await server.token(), await server.token()
        for path in [*PATHS, "/api/jobs"]:
            method = "GET" if path == "/api/jobs" else "POST"
            for name in ("x-api-key", "api-key"):
                assert (await send(server, path, {name: token}, method=method))[0] < 300, path
                bearer = {"authorization": f"Bearer {token}"}
                assert (await send(server, path, bearer | {name: token}, method=method))[0] < 300, path
                assert (await send(server, path, bearer | {name: ""}, method=method))[0] < 300, path
                assert (await send(server, path, bearer | {name: other}, method=method))[0] == 401, path
                assert (await send(server, path, {name: "sg_wrong"}, method=method))[0] == 401, path
            assert (await send(server, path, {"x-api-key": token, "api-key": other}, method=method))[0] == 401, path


async def test_the_path_of_a_job_may_have_extra_slashes_and_the_prefix_of_the_api(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        body = json.loads(BODY)
        for path in ("/v1/chat/completions/", "v1/chat/completions", "/openai//v1/chat/completions"):
            status, job = await server.ask("POST", "/api/jobs", token, json={"path": path, "body": body})
            assert status == 202, job
        for path in ("", "/nowhere", "/v1/files/"):
            assert (await server.ask("POST", "/api/jobs", token, json={"path": path, "body": body}))[0] == 400, path


async def test_repeated_slashes_count_as_one(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        headers = {"authorization": f"Bearer {await server.token()}"}
        for path in ("//v1/chat/completions", "/v1//chat/completions", "//v1///chat//completions/", "///enqueue"):
            assert (await send(server, path, headers))[0] == 200, path
        assert (await send(server, "//api//jobs", headers, b"", "GET"))[0] == 200
        assert (await send(server, "//v1//models", headers, b"", "GET"))[0] == 200
        assert (await send(server, "//nowhere", headers, b"", "GET"))[0] == 404


async def test_a_coded_body_is_decoded_at_every_door(tmp_path: Path) -> None:
    async with live(tmp_path, max_body_bytes=10_000) as server:
        auth = {"authorization": f"Bearer {await server.token()}"}
        for path in [*PATHS, "/generate"]:
            plain = b'{"content": "hello", "meta": {"model": "echo"}}' if path == "/generate" else BODY
            for coding, body in (
                ("gzip", gzip.compress(plain)),
                ("deflate", zlib.compress(plain)),
                ("br", brotli.compress(plain)),
                ("identity", plain),
            ):
                assert (await send(server, path, auth | {"content-encoding": coding}, body))[0] == 200, (path, coding)
            assert (await send(server, path, auth, b"\xef\xbb\xbf" + plain))[0] == 200, path
            status, _, headers = await send(server, path, auth | {"content-encoding": "compress"}, plain)
            assert (status, headers["accept-encoding"]) == (415, "gzip, deflate, br, zstd"), path
            bomb = gzip.compress(bytes(1_000_000))
            assert (await send(server, path, auth | {"content-encoding": "gzip"}, bomb))[0] == 413, path
            assert (await send(server, path, auth | {"content-encoding": "gzip"}, plain))[0] == 400, path


async def test_a_body_that_is_announced_as_too_large_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        token = await server.token()
        for path in (CHAT, "/enqueue", "/api/prompts"):
            url = URL(server.url)
            reader, writer = await asyncio.open_connection(url.host, url.port)
            head = f"POST {path} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {token}\r\ncontent-length: 30000000\r\n"
            writer.write(f"{head}expect: 100-continue\r\n\r\n".encode())
            assert (await reader.readline()).startswith(b"HTTP/1.1 413 "), path
            writer.close()


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/v1/embeddings"])
async def test_a_known_endpoint_takes_a_post_only(path: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        headers = {"authorization": f"Bearer {await server.token('admin')}"}
        for method in ("GET", "PUT", "PATCH", "DELETE"):
            status, payload, _ = await send(server, path, headers, b"", method)
            assert (status, payload["error"]["code"]) == (405, "method_not_allowed")


async def test_a_path_without_its_version_gets_a_hint(tmp_path: Path) -> None:
    async with live(tmp_path) as server:
        headers = {"authorization": f"Bearer {await server.token()}"}
        for method, path in (("POST", "/chat/completions"), ("GET", "/models"), ("POST", "/embeddings/")):
            status, payload, _ = await send(server, path, headers, b"{}" if method == "POST" else b"", method)
            assert (status, f"/v1{path.rstrip('/')}" in payload["detail"]) == (404, True)
        assert "/v1" not in (await send(server, "/nowhere", headers, b"", "GET"))[1]["detail"]

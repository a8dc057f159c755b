"""CORS: pages of the configured origins may send requests with a token, and pages of other origins may not."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from signoff.settings import Settings
from support.live_server import Live, chat, live

pytestmark = pytest.mark.anyio
APP, ELSEWHERE = "https://app.example.com", "https://elsewhere.example.com"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, x-stainless-os"}
ROUTES = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/post/predict?id=echo"),
    ("GET", "/api/jobs"),
    ("POST", "/enqueue"),
    ("GET", "/nowhere"),
]


async def headers_of(
    server: Live, method: str, path: str, *, token: str | None, **headers: str
) -> tuple[int, dict[str, str]]:
    request_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request_headers |= {"authorization": f"Bearer {token}"} if token else {}
    body = chat("hello") if method == "POST" else None
    async with server.http.request(method, server.url + path, json=body, headers=request_headers) as response:
        await response.read()
        return response.status, {name.lower(): value for name, value in response.headers.items()}


@pytest.mark.parametrize("origins", [[APP], ["*"]])
@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_a_page_of_a_named_origin_reads_answers_and_errors(
    origins: list[str], method: str, path: str, tmp_path: Path
) -> None:
    async with live(tmp_path, cors_origins=origins) as server:
        for token in (await server.token(), None):
            _, headers = await headers_of(server, method, path, token=token, origin=APP)
            assert headers["access-control-allow-origin"] == APP
            assert "origin" in headers["vary"]
            exposed = set(headers["access-control-expose-headers"].split(", "))
            assert {
                "x-request-id",
                "retry-after",
                *(name for name in headers if name.startswith("x-signoff-")),
            } <= exposed
            assert "access-control-allow-credentials" not in headers


@pytest.mark.parametrize("origin", [{}, {"origin": "https://elsewhere.example"}], ids=["none", "other"])
async def test_no_cache_keeps_a_response_without_the_headers_for_a_page_of_a_named_origin(
    origin: dict[str, str], tmp_path: Path
) -> None:
    async with live(tmp_path, cors_origins=[APP]) as server:
        _, headers = await headers_of(server, "GET", "/v1/models", token=await server.token(), **origin)
        assert "access-control-allow-origin" not in headers
        assert headers["vary"] == "origin"


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_a_preflight_request_is_answered(method: str, path: str, tmp_path: Path) -> None:
    async with live(tmp_path, cors_origins=[APP]) as server:
        status, headers = await headers_of(server, "OPTIONS", path, token=None, origin=APP, **PREFLIGHT)
        assert status == 204
        assert method in headers["access-control-allow-methods"].split(", ")
        assert headers["access-control-allow-headers"] == PREFLIGHT["access-control-request-headers"]
        assert headers["access-control-allow-origin"] == APP


@pytest.mark.parametrize("origins", [[], [APP]])
@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_other_origins_get_no_cors_headers(origins: list[str], method: str, path: str, tmp_path: Path) -> None:
    async with live(tmp_path, cors_origins=origins) as server:
        for sent_method, more in ((method, {}), ("OPTIONS", PREFLIGHT)):
            _, headers = await headers_of(server, sent_method, path, token=None, origin=ELSEWHERE, **more)
            assert not [name for name in headers if name.startswith("access-control")]


async def test_a_page_of_a_named_origin_reads_a_stream(tmp_path: Path) -> None:
    async with live(tmp_path, cors_origins=[APP]) as server:
        headers = {"authorization": f"Bearer {await server.token()}", "origin": APP}
        body = chat("one two", stream=True)
        async with server.http.post(server.url + "/v1/chat/completions", json=body, headers=headers) as response:
            assert response.headers["access-control-allow-origin"] == APP
            assert (await response.read()).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("origin", ["app.example.com", "https://app.example.com/", "ftp://a", ""])
def test_an_invalid_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValidationError):
        Settings(cors_origins=[origin])

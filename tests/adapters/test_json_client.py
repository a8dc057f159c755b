"""Requests to services of the operator: bounds, proxies and faults."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from signoff.infra.json_client import MAX_ANSWER_BYTES, JsonClient, RequestFailed
from signoff.infra.proxies import Proxies

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def serving(handle: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """Yield the address of a server."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_form_is_sent_and_its_answer_read_with_its_status() -> None:
    async def handle(request: web.Request) -> web.Response:
        form = await request.post()
        return web.json_response({"form": dict(form), "token": request.headers["authorization"]}, status=401)

    async with serving(handle) as url:
        status, answer = await JsonClient().post(f"{url}/token", {"code": "a b&c"}, {"authorization": "Basic x"})
    assert (status, answer) == (401, {"form": {"code": "a b&c"}, "token": "Basic x"})


async def test_a_compressed_answer_is_decoded_within_the_limit() -> None:
    async def handle(request: web.Request) -> web.Response:
        text = b'{"a": 1}' if request.path == "/small" else b'{"a": "' + b"x" * (2 * MAX_ANSWER_BYTES) + b'"}'
        return web.Response(body=gzip.compress(text), headers={"content-encoding": "gzip"})

    async with serving(handle) as url:
        assert await JsonClient().get(f"{url}/small") == (200, {"a": 1})
        with pytest.raises(RequestFailed, match="is not a JSON object"):
            await JsonClient().get(f"{url}/bomb")


async def test_an_answer_without_an_end_is_given_up_by_its_size_or_by_time() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" " * 65536)
        return response

    async with serving(handle) as url:
        with pytest.raises(RequestFailed, match="larger than"):
            await JsonClient().get(url)
        with pytest.raises(RequestFailed, match="did not answer within"):
            await JsonClient(total_seconds=1e-6).get(url)


async def test_a_redirect_is_not_followed() -> None:
    paths = list[str]()

    async def handle(request: web.Request) -> web.Response:
        paths.append(request.path)
        raise web.HTTPFound("/elsewhere")

    async with serving(handle) as url:
        with pytest.raises(RequestFailed, match="redirect"):
            await JsonClient().get(f"{url}/first")
    assert paths == ["/first"]


async def test_requests_go_through_the_proxy_of_the_environment() -> None:
    targets = list[str]()

    async def handle(request: web.Request) -> web.Response:
        targets.append(str(request.url))
        return web.json_response({})

    async with serving(handle) as proxy:
        assert await JsonClient(Proxies({"http": proxy})).get("http://sso.example.com/keys") == (200, {})
    assert targets == ["http://sso.example.com/keys"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9/", "connection refused"),
        ("http://no-such-host.invalid/", "cannot be resolved"),
        ("http://[::bad/", "ValueError"),
        ("nothing", "request failed"),
    ],
)
async def test_a_fault_is_named_in_words(url: str, reason: str) -> None:
    with pytest.raises(RequestFailed, match=reason):
        await JsonClient().get(url)

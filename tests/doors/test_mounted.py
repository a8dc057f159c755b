"""`signoff.asgi.Application` mounted below a path of another ASGI application: every address has that path in front."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlencode

import aiohttp
import pytest
import uvicorn

from signoff.asgi import Application
from signoff.settings import Settings
from signoff.work.admin.people import create_token, create_user, sign_in_link
from support.database_files import make_file
from support.identity_provider import account, settings_of, small_provider

pytestmark = pytest.mark.anyio


def mount(app: Any, path: str, *, keeps_path: bool) -> Any:
    """Return an application as Starlette's `Mount` does it; earlier versions of it removed the path."""

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        inner = scope["path"] if keeps_path else scope["path"].removeprefix(path) or "/"
        await app({**scope, "root_path": path, "path": inner}, receive, send)

    return outer


@contextlib.asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """Yield the address of a server without a lifespan for `app`."""
    config = uvicorn.Config(app, port=0, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    task = asyncio.ensure_future(server.serve())
    async with asyncio.timeout(60):
        while not server.started:
            await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


async def test_a_provider_leads_back_below_the_mount(tmp_path: Path) -> None:
    make_file(tmp_path / "signoff.db")
    async with small_provider() as provider:
        app = Application(Settings(data_dir=tmp_path, **settings_of(provider)), work=False)
        async with serving(mount(app, "/ai", keeps_path=True)) as url, aiohttp.ClientSession() as http:
            async with http.get(f"{url}/ai/signin/oidc?next=/dashboard/jobs", allow_redirects=False) as response:
                address, cookie = response.headers["location"], response.headers["set-cookie"].partition(";")[0]
            assert f"{url}/ai/signin/oidc/callback" in unquote(address)
            answer = urlencode(provider.grant(address, account("ann-1", "ann@example.com", "staff")))
            callback = f"{url}/ai/signin/oidc/callback?{answer}"
            async with http.get(callback, headers={"cookie": cookie}, allow_redirects=False) as response:
                assert (response.status, response.headers["location"]) == (303, "/ai/dashboard/jobs")
                cookies = response.headers.getall("set-cookie")
            assert any(each.startswith("signoff_session=sg_") and "Path=/;" in each for each in cookies)
            assert any(each.startswith("signoff_id_token=") and "Path=/ai/signin/oidc;" in each for each in cookies)
            await app.close()


@pytest.mark.parametrize("keeps_path", [True, False])
async def test_every_address_has_the_path_of_the_mount(keeps_path: bool, tmp_path: Path) -> None:
    make_file(tmp_path / "signoff.db")
    app = Application(Settings(data_dir=tmp_path), work=True)
    async with serving(mount(app, "/ai", keeps_path=keeps_path)) as url, aiohttp.ClientSession() as http:
        # the first request opens the services, as no lifespan arrives
        async with http.get(f"{url}/ai/health/ready") as response:
            assert response.status == 200
        assert app.services is not None
        user = await create_user(app.services, "admin@example.com", "admin")
        headers = {"authorization": f"Bearer {await create_token(app.services, user)}"}
        body = {"body": {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}}
        async with http.post(f"{url}/ai/api/jobs", json=body, headers=headers) as response:
            location = response.headers["location"]
            assert location.startswith("/ai/api/jobs/")
        # a worker performs the job
        async with http.get(f"{url}{location}?wait=60", headers=headers) as response:
            assert (await response.json())["status"] == "success"
        async with http.get(f"{url}/ai/jobs?limit=0", headers=headers) as response:
            assert response.status == 200
        # the sign-in link leads to the page, whose addresses all lead to this application
        link = await sign_in_link(app.services, user)
        async with http.get(f"{url}/ai{link}", allow_redirects=False) as response:
            assert (response.status, response.headers["location"]) == (303, "/ai/")
        async with http.get(f"{url}/ai/") as response:
            page = await response.text()
        addresses = set(re.findall(r'(?:href|action|src)="([^"]*)"', page))
        assert "/ai/api/session" in addresses
        assert all(address.startswith(("/ai/", "#")) for address in addresses)
        for address in ("/ai/static/tokens.css", "/ai/schema"):
            async with http.get(url + address) as response:
                assert response.status == 200
        async with http.get(f"{url}/ai/schema/openapi.json") as response:
            assert (await response.json())["servers"] == [{"url": "/ai"}]
        async with http.get(f"{url}/ai/v1/models", headers=headers) as response:
            assert response.status == 200
    await app.close()


async def test_services_without_a_lifespan_close_with_the_event_loop(tmp_path: Path) -> None:
    make_file(tmp_path / "signoff.db")
    app = Application(Settings(data_dir=tmp_path), work=True)
    async with serving(mount(app, "/ai", keeps_path=True)) as url, aiohttp.ClientSession() as http:
        await (await http.get(f"{url}/ai/health/live")).read()
    # what `asyncio.run` does at its end
    assert app.owner is not None
    app.owner.cancel()
    await asyncio.wait([app.owner])
    assert app.owner.done()

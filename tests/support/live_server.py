"""A whole server on a free port, in the test's own event loop, with real sockets and an embedded database."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import argon2
import openai
import uvicorn
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from signoff.core.access import Role
from signoff.core.model import Model
from signoff.server.bootstrap import run_services
from signoff.server.http import make_router
from signoff.server.serving import uvicorn_options
from signoff.settings import Settings
from signoff.work.admin.people import create_token, create_user
from signoff.work.admin.registry import register_model
from signoff.work.services import Services
from support.database_files import make_file

T = TypeVar("T")
ANSWER_SECONDS = 60.0
QUICK_HASHES = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class GivenSettings(Settings):
    """Settings of which none comes from the environment or a file: a test gets what it says, and gets it faster."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, **_: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the arguments as the only source."""
        return (init_settings,)


class Live:
    """A running server, with a client that calls its doors."""

    def __init__(self, services: Services, url: str, http: aiohttp.ClientSession) -> None:
        self.services = services
        self.url = url
        self.http = http

    async def token(self, role: Role = "user", email: str | None = None) -> str:
        """Return a new token of a user with this role."""
        user = await create_user(self.services, email or f"{role}@example.com", role)
        return await create_token(self.services, user)

    async def model(self, name: str, **more: Any) -> None:
        """Register an echo model, with the fields in `more`."""
        await register_model(self.services, Model(**({"name": name, "kind": "echo"} | more)))

    async def ask(self, method: str, path: str, token: str | None = None, **more: Any) -> tuple[int, Any]:
        """Send a request; return the status, and the JSON or else the text of the response."""
        headers = ({"authorization": f"Bearer {token}"} if token else {}) | more.pop("headers", {})
        async with self.http.request(method, self.url + path, headers=headers, **more) as response:
            text = await response.text()
            return response.status, await response.json() if "json" in response.content_type else text

    async def job_when(self, token: str, job_id: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the job as soon as `holds` returns True for it; fail after ANSWER_SECONDS."""

        async def awaited_job() -> dict[str, Any] | None:
            _, job = await self.ask("GET", f"/job?id={job_id}", token)
            return job if holds(job) else None

        return await until(awaited_job)


async def until(look: Callable[[], Awaitable[T | None]]) -> T:
    """Return the first value of `look` that is not None; fail after ANSWER_SECONDS."""
    async with asyncio.timeout(ANSWER_SECONDS):
        while (value := await look()) is None:
            await asyncio.sleep(0.01)
    return value


@contextlib.asynccontextmanager
async def live(tmp_path: Path, **settings: Any) -> AsyncIterator[Live]:
    """Yield a running server with these settings, and close it after the block."""
    # Most tests of one user need no second one to review; those of the rule itself turn it on.
    quick = {
        "sweep_seconds": 0.1,
        "backoff_seconds": 0.01,
        "drain_seconds": 1,
        "echo_faults": True,
        "allow_self_review": True,
    }
    server_settings = GivenSettings(data_dir=tmp_path / "data", **(quick | settings))
    if server_settings.is_embedded:
        make_file(server_settings.data_dir / "signoff.db")
    async with run_services(server_settings, work=True) as services:
        services.runtime.passwords._argon2 = QUICK_HASHES  # a real one takes 0.2 s
        server = _Server(
            uvicorn.Config(
                make_router(services, server_settings),
                port=0,
                lifespan="off",
                **uvicorn_options(server_settings.max_connections, server_settings.drain_seconds),
            )
        )
        serving = asyncio.ensure_future(server.serve())
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await server.is_up.wait()
            port = server.servers[0].sockets[0].getsockname()[1]
            exempt_from_collection()
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as http:
                yield Live(services, f"http://127.0.0.1:{port}", http)
        finally:
            server.must_stop.set()
            await serving


@functools.cache
def exempt_from_collection() -> None:
    """Exempt what the first server of this process has loaded from garbage collection, as a server does at its start.

    The servers that follow share the modules and the routes. A collection would visit each object of them.
    """
    gc.freeze()


class _Server(uvicorn.Server):
    """A server that leaves the signals of the process alone, and stops at once instead of at its next tick."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up, self.must_stop = asyncio.Event(), asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Capture none."""
        yield

    async def main_loop(self) -> None:
        """Set the headers that every response gets, and wait for the end of the test."""
        await self.on_tick(0)
        self.is_up.set()
        await self.must_stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close all connections; after a second, cancel the requests that still run."""
        del sockets
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        deadline = asyncio.get_running_loop().time() + 1
        while self.server_state.connections or self.server_state.tasks:
            if asyncio.get_running_loop().time() > deadline:
                for task in self.server_state.tasks:
                    task.cancel()
                for connection in self.server_state.connections:
                    connection.transport.abort()
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def client(server: Live, **more: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    """Yield the official client of OpenAI, with a new token."""
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=await server.token(), **more) as api:
        yield api


def chat(text: str, model: str = "echo", **more: Any) -> dict[str, Any]:
    """Return the body of a chat request."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def words(answer: dict[str, Any]) -> str:
    """Return the text of a chat completion."""
    return answer["choices"][0]["message"]["content"]

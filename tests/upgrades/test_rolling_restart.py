"""A restart of one server after the other under load: no request fails, held calls and streams among them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from fakes.balancer import Balancer
from fakes.http_server import RecordedRequest, Reply, chunked
from fakes.upstream import fake_upstream
from support.live_server import chat, until, words
from support.processes import ask, first_token, free_port, migrated_environment, served, start_worker

pytestmark = [pytest.mark.anyio, pytest.mark.long]

CALLERS = 6
CHAT = "/v1/chat/completions"
# The first server waits for all that the test wants of it. The second one stops before its held call has a verdict.
DRAIN_SECONDS = ("300", "10")


class Servers:
    """Two servers, each of which can be stopped and started again at its port."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._environment, self._folder = environment, folder
        self._running: dict[int, contextlib.ExitStack] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self.ports = [free_port(), free_port()]

    async def start(self, number: int) -> None:
        """Start a server, and wait until it is ready."""
        stack = self._running[number] = contextlib.ExitStack()
        environment = self._environment | {"SIGNOFF_DRAIN_SECONDS": DRAIN_SECONDS[number]}
        entered = served(environment, self._folder, self.ports[number], "--no-work")
        self._processes[number] = await asyncio.to_thread(stack.enter_context, entered)

    async def begin_to_stop(self, number: int) -> None:
        """Send SIGTERM, and wait until the server takes no new connections."""
        self._processes[number].terminate()

        async def refuses() -> bool | None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.ports[number])
            except ConnectionRefusedError:
                return True
            writer.close()
            return None

        await until(refuses)

    async def restart_stopping(self, number: int) -> None:
        """Wait for the end of a server that stops, and start it again."""
        assert await asyncio.to_thread(self._processes[number].wait, 120) in {0, -15}
        self._running.pop(number).close()
        await self.start(number)

    def is_running(self, number: int) -> bool:
        return self._processes[number].poll() is None

    def close(self) -> None:
        """Stop both servers."""
        for stack in self._running.values():
            stack.close()


class Load:
    """Callers who send one request after another, each on a connection of its own, and what failed."""

    def __init__(self, url: str, token: str) -> None:
        self._url, self._headers = url, {"authorization": f"Bearer {token}"}
        self._numbers, self._is_over = itertools.count(), asyncio.Event()
        self.answered, self.failed, self.jobs = 0, list[str](), list[str]()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send requests while the block runs, and let the last ones end."""
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        http = aiohttp.ClientSession(connector=connector, headers=self._headers)
        async with http, asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(self._send_forever(http))
            yield
            self._is_over.set()

    async def more(self, count: int) -> None:
        """Wait for so many more answers."""
        wanted = self.answered + count

        async def has_come() -> bool | None:
            return self.answered + len(self.failed) >= wanted or None

        await until(has_come)

    async def _send_forever(self, http: aiohttp.ClientSession) -> None:
        while not self._is_over.is_set():
            number = next(self._numbers)
            try:
                await (self._submit(http, number) if number % 5 == 0 else self._call(http, number))
                self.answered += 1
            except (aiohttp.ClientError, AssertionError, OSError) as error:
                self.failed.append(f"request {number}: {error!r}")

    async def _call(self, http: aiohttp.ClientSession, number: int) -> None:
        text, stream = f"request {number}", number % 2 == 0
        async with http.post(self._url + CHAT, json=chat(text, "echo/delay=0.01", stream=stream)) as response:
            body = await response.text()
            assert response.status == 200, body
            assert body.endswith("data: [DONE]\n\n") if stream else text in body

    async def _submit(self, http: aiohttp.ClientSession, number: int) -> None:
        request = {"body": chat(f"job {number}"), "target": "echo"}
        async with http.post(f"{self._url}/api/jobs", json=request) as response:
            assert response.status in {200, 201, 202}, await response.text()
            self.jobs.append((await response.json())["job_id"])


class LongStream:
    """A model whose answer goes on for as long as the test needs: a part at each `go_on`, then the end."""

    def __init__(self) -> None:
        self._parts = asyncio.Queue[bytes]()

    def go_on(self, text: str) -> None:
        """Let the model send a part of its answer."""
        self._parts.put_nowait(b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % text.encode())

    def end(self) -> None:
        """Let the model end its answer."""
        self._parts.put_nowait(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n')
        self._parts.put_nowait(b"data: [DONE]\n\n")

    async def reply(self, _: RecordedRequest) -> Reply:
        return chunked(*[lambda _: self._parts.get()] * 5)


async def held_jobs(port: int, token: str, count: int = 1) -> list[dict[str, Any]]:
    """Return the held jobs, once there are so many."""

    async def look() -> list[dict[str, Any]] | None:
        jobs = (await asyncio.to_thread(ask, port, "/api/jobs?status=human", token))["data"]
        return jobs if len(jobs) == count else None

    return await until(look)


async def approve(port: int, token: str, job_id: str) -> None:
    body = {"round": 1, "verdict": "approve"}
    await asyncio.to_thread(ask, port, f"/api/reviews/{job_id}/decide", token, body)


async def test_a_rolling_restart_under_load_fails_no_request(postgres_url: str, tmp_path: Path) -> None:
    environment = migrated_environment(
        tmp_path / "data",
        SIGNOFF_DATABASE_URL=postgres_url,
        SIGNOFF_RELEASE_AFTER_SECONDS="0",
    )
    model, servers = LongStream(), Servers(environment, tmp_path)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(servers.close)
        for number in (0, 1):
            await servers.start(number)
        token, (first, second) = first_token(tmp_path), servers.ports
        worker = start_worker(environment, stderr=subprocess.DEVNULL)
        upstream = await stack.enter_async_context(fake_upstream(model.reply))
        for fields in (
            {"name": "held", "kind": "echo", "review": "always"},
            {"name": "long", "kind": "openai", "url": f"{upstream.url}/v1"},
        ):
            await asyncio.to_thread(ask, first, "/api/models", token, fields)
        balancer = await stack.enter_async_context(Balancer(servers.ports))
        second_first = await stack.enter_async_context(Balancer([second, first], by_turns=False))
        load = Load(f"http://127.0.0.1:{balancer.port}", token)
        group = await stack.enter_async_context(asyncio.TaskGroup())

        def caller(port: int) -> openai.AsyncOpenAI:
            return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=token, max_retries=20)

        async with caller(first) as ai, caller(second_first.port) as retrying, load.running():
            # given a call that waits for a review and a stream, both at the first server
            held = group.create_task(ai.chat.completions.create(**chat("held at the first", "held")))
            stream = await _begun(ai, model)
            [job] = await held_jobs(second, token)
            await load.more(20)
            # when the first server stops, then both go on until they have what they wait for
            await servers.begin_to_stop(0)
            model.go_on("second ")
            assert (await anext(stream)).choices[0].delta.content == "second "
            await load.more(20)
            assert servers.is_running(0)
            await approve(second, token, job["job_id"])
            assert "held at the first" in words((await held).model_dump())
            model.end()
            assert [part.choices[0].finish_reason async for part in stream] == ["stop"]
            await servers.restart_stopping(0)
            await load.more(20)
            # and a worker is replaced, and the second server stops while a call there has no verdict
            worker.terminate()
            worker = start_worker(environment, stderr=subprocess.DEVNULL)
            stack.callback(worker.wait)
            stack.callback(worker.terminate)
            late = group.create_task(retrying.chat.completions.create(**chat("held at both", "held")))
            [job] = await held_jobs(first, token)
            await servers.begin_to_stop(1)
            await servers.restart_stopping(1)
            await load.more(20)
            # then its caller, who repeats it, gets the answer of the same job
            [same] = await held_jobs(first, token)
            assert same["job_id"] == job["job_id"]
            await approve(first, token, job["job_id"])
            assert "held at both" in words((await late).model_dump())
        assert load.failed == []
        assert balancer.refused > 0
        await _all_succeed(first, token, load.jobs)


async def _begun(ai: openai.AsyncOpenAI, model: LongStream) -> AsyncIterator[Any]:
    """Return the stream of a call, after its first part."""
    model.go_on("first ")
    stream = aiter(await ai.chat.completions.create(**chat("go on", "long"), stream=True))
    assert (await anext(stream)).choices[0].delta.content == "first "
    return stream


async def _all_succeed(port: int, token: str, jobs: list[str]) -> None:
    """Wait until each of the queued jobs has succeeded."""
    left = set(jobs)

    async def have_succeeded() -> bool | None:
        for job_id in list(left):
            status = (await asyncio.to_thread(ask, port, f"/api/jobs/{job_id}", token))["status"]
            assert status in {"bot", "success"}
            left.difference_update([job_id] if status == "success" else [])
        return not left or None

    await until(have_succeeded)

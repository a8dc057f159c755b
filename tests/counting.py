"""A model server that counts its tokens, and callers of every kind who make it do so.

What a call is to come to stands in its message: `whole 5`, `bare 5` (whole, and it tells no usage), `slow 5` (whole,
once `go` is set), `told 5` (a stream that tells its usage), `untold 5` (one that does not), `steady 5` (one that tells
it with every event), `cut 5` (a stream that breaks off after five pieces), `left 5` (one that says no more after five,
until its caller leaves), `mute` (no answer until its caller leaves), `broken` (a 500). What is not told of counts a
token for four bytes, as `core/tokens.py` has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import web

KINDS = ("whole", "told", "untold", "steady", "cut", "left", "mute", "broken", "later")
AT_ONCE = 32
COUNTED = ("prompt_tokens", "cached_tokens", "completion_tokens")


class Meter:
    """What a model server has counted, and how often it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.tokens = Counter[str]()
        self.asked = Counter[str]()
        self.texts = Counter[str]()
        self.go = asyncio.Event()

    def count(self, prompt: int, said: int, cached: int = 0) -> dict[str, Any]:
        """Counts, and says so as an answer does."""
        self.tokens.update(prompt_tokens=prompt, completion_tokens=said, cached_tokens=cached)
        details = {"cached_tokens": cached}
        told = {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}
        return told | {"prompt_tokens_details": details}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One call."""
        text: str = (await request.json())["messages"][-1]["content"]
        kind, _, number = text.partition(" ")
        said = int(number or 0)
        self.asked[kind] += 1
        self.texts[text] += 1
        match kind:
            case "broken":
                return web.json_response({"error": {"message": "broken"}}, status=500)
            case "mute":
                await gone(request)
                return web.Response()
            case "whole" | "later" | "slow" | "bare":
                if kind == "slow":
                    await self.go.wait()
                words = "word " * said
                choice = {"index": 0, "message": {"role": "assistant", "content": words}}
                if kind == "bare":
                    self.count(prompt=-(-len(text) // 4), said=-(-len(words) // 4))
                    return web.json_response({"object": "chat.completion", "choices": [choice], "usage": None})
                usage = self.count(prompt=said * 3, said=said, cached=said)
                return web.json_response({"object": "chat.completion", "choices": [choice], "usage": usage})
            case _:
                return await self._stream(request, kind, text, said)

    async def _stream(self, request: web.Request, kind: str, text: str, said: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number in range(1, said + 1):
            piece: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": "word "}}]}
            usage = {"prompt_tokens": 7, "completion_tokens": number, "total_tokens": 7 + number}
            piece |= {"usage": usage} if kind == "steady" else {}
            await response.write(event(piece))
        match kind:
            case "told":
                await response.write(event({"choices": [], "usage": self.count(prompt=said * 3, said=said)}))
            case "steady":
                self.count(prompt=7, said=said)
            case _:
                self.count(prompt=-(-len(text) // 4), said=said)
        if kind == "cut":
            assert request.transport is not None
            request.transport.close()
        elif kind == "left":
            await gone(request)
        else:
            await response.write(b"data: [DONE]\n\n")
        return response


async def gone(request: web.Request) -> None:
    """Waits until whoever asks has hung up."""
    while request.transport is not None and not request.transport.is_closing():
        await asyncio.sleep(0.01)


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


@contextlib.asynccontextmanager
async def counting() -> AsyncIterator[Meter]:
    """A model server that counts, while the block runs."""
    meter = Meter()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", meter.answer)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        assert runner.addresses
        meter.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield meter
    finally:
        await runner.cleanup()


async def call_in_every_way(meter: Meter, urls: list[str], token: str, count: int, *, seed: int) -> Counter[str]:
    """Makes `count` calls of all kinds, of the model `counting`, which `meter` is; how many of each."""
    random_float = random.Random(seed)
    kinds = [random_float.choice(KINDS) for _ in range(count)]
    sizes = [number if kind == "mute" else random_float.randint(1, 40) for number, kind in enumerate(kinds)]
    waiting = iter([(kind, size, random_float.choice(urls)) for kind, size in zip(kinds, sizes, strict=True)])
    headers = {"authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as http,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(AT_ONCE):
            group.create_task(_call_on(meter, http, waiting))
    return Counter(kinds)


async def _call_on(meter: Meter, http: aiohttp.ClientSession, waiting: Any) -> None:
    for kind, size, url in waiting:
        text = f"{kind} {size}"
        body = {"model": "counting", "messages": [{"role": "user", "content": text}]}
        match kind:
            case "later":
                async with http.post(f"{url}/api/jobs", json={"target": "counting", "body": body}) as response:
                    assert response.status == 202, await response.text()
            case "mute":
                call = asyncio.ensure_future(http.post(f"{url}/v1/chat/completions", json=body))
                while not meter.texts[text]:
                    await asyncio.sleep(0.01)
                call.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await call
            case "whole" | "broken":
                async with http.post(f"{url}/v1/chat/completions", json=body) as response:
                    assert (response.status == 200) == (kind == "whole"), await response.text()
            case _:
                await _read(http, url, body | {"stream": True}, size if kind == "left" else None)


async def _read(http: aiohttp.ClientSession, url: str, body: dict[str, Any], pieces: int | None) -> None:
    """Reads a stream to its end, or leaves it after so many pieces."""
    seen = 0
    async with http.post(f"{url}/v1/chat/completions", json=body) as response:
        async for line in response.content:
            seen += line.startswith(b"data: {")
            if seen == pieces:
                response.close()
                return

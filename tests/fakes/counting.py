"""A fake model that counts its tokens, and callers that use it in every way.

The text of a message selects the behaviour:

- `whole 5`: a whole answer. `bare 5`: one without usage. `slow 5`: one that waits until `release` is set.
- `told 5`: a stream that ends with its usage. `untold 5`: one without. `steady 5`: one with usage in every event.
- `cut 5`: a stream that breaks off after five events. `left 5`: one that hangs after five, until its caller leaves.
- `mute`: no answer until its caller leaves. `broken`: a 500.

Without usage a token is counted for every four bytes, as `core/tokens.py` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from typing import Any

import aiohttp

from fakes.http_server import FakeServer, RecordedRequest, Reply, chunked, json_reply, raw, sse_event
from fakes.models import chat_chunk, chat_completion

KINDS = ("whole", "told", "untold", "steady", "cut", "left", "mute", "broken", "later")
AT_ONCE = 32
COUNTED = ("prompt_tokens", "cached_tokens", "completion_tokens")


class CountingModel(FakeServer):
    """A model that counts its tokens and its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = Counter[str]()
        """Tokens by kind of token."""
        self.kinds = Counter[str]()
        """Calls by kind of call."""
        self.texts = Counter[str]()
        """Calls by message."""
        self.release = asyncio.Event()
        """Set by the test, for `slow` calls."""

    async def reply(self, request: RecordedRequest) -> Reply:
        text: str = request.json()["messages"][-1]["content"]
        kind, _, number = text.partition(" ")
        size = int(number or 0)
        self.kinds[kind] += 1
        self.texts[text] += 1
        match kind:
            case "broken":
                return json_reply({"error": {"message": "broken"}}, status=500)
            case "mute":
                return raw(end="hang")
            case "bare":
                words = "word " * size
                self._count(-(-len(text) // 4), -(-len(words) // 4))
                return json_reply(chat_completion(words, None))
            case "whole" | "later" | "slow":
                if kind == "slow":
                    await self.release.wait()
                return json_reply(chat_completion("word " * size, self._count(size * 3, size, cached=size)))
            case _:
                return self._stream(kind, text, size)

    def _stream(self, kind: str, text: str, size: int) -> Reply:
        chunks = [chat_chunk("word ") for _ in range(size)]
        if kind == "told":
            chunks.append(chat_chunk() | {"choices": [], "usage": self._count(size * 3, size)})
        elif kind == "steady":
            self._count(7, size)
            chunks = [chunk | {"usage": _usage(7, number)} for number, chunk in enumerate(chunks, 1)]
        else:
            self._count(-(-len(text) // 4), size)
        events = map(sse_event, chunks)
        match kind:
            case "cut":
                return chunked(*events, end="close")
            case "left":
                return chunked(*events, end="hang")
            case _:
                return chunked(*events, sse_event("[DONE]"))

    def _count(self, prompt: int, completion: int, *, cached: int = 0) -> dict[str, Any]:
        """Count these tokens; return them as an answer's usage."""
        self.tokens.update(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)
        return _usage(prompt, completion) | {"prompt_tokens_details": {"cached_tokens": cached}}


def _usage(prompt: int, completion: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


async def call_in_every_way(
    counting: CountingModel, urls: list[str], token: str, count: int, *, seed: int
) -> Counter[str]:
    """Make `count` calls of all kinds of the model `counting`; return how many of each."""
    rng = random.Random(seed)
    kinds = [rng.choice(KINDS) for _ in range(count)]
    sizes = [number if kind == "mute" else rng.randint(1, 40) for number, kind in enumerate(kinds)]
    waiting = iter([(kind, size, rng.choice(urls)) for kind, size in zip(kinds, sizes, strict=True)])
    headers = {"authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as http,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(AT_ONCE):
            group.create_task(_call_on(counting, http, waiting))
    return Counter(kinds)


async def _call_on(counting: CountingModel, http: aiohttp.ClientSession, waiting: Any) -> None:
    for kind, size, url in waiting:
        text = f"{kind} {size}"
        body = {"model": "counting", "messages": [{"role": "user", "content": text}]}
        match kind:
            case "later":
                async with http.post(f"{url}/api/jobs", json={"target": "counting", "body": body}) as response:
                    assert response.status == 202, await response.text()
            case "mute":
                call = asyncio.ensure_future(http.post(f"{url}/v1/chat/completions", json=body))
                while not counting.texts[text]:
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
    """Read a stream to its end, or leave it after `pieces` events."""
    seen = 0
    async with http.post(f"{url}/v1/chat/completions", json=body) as response:
        async for line in response.content:
            seen += line.startswith(b"data: {")
            if seen == pieces:
                response.close()
                return

"""A model server that numbers its answers: whoever is given an old one is found out."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web


class Numbering:
    """The server as a test sees it. Answers wait while `open` is not set."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.url = ""
        self.bodies: list[bytes] = []
        self.padding = 0
        self.status = 200
        self.open = asyncio.Event()
        self.open.set()

    @property
    def asked(self) -> int:
        """How often it was asked."""
        return len(self.bodies)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """`NAME N`, in the form in which it was asked for."""
        body = await request.read()
        self.bodies.append(body)
        text = f"{self.name} {self.asked}" + "x" * self.padding
        await self.open.wait()
        if self.status != 200:
            return web.json_response({"error": {"message": "No."}}, status=self.status)
        asked: Any = json.loads(body)
        if request.path.endswith("/responses"):
            return web.json_response(_response(text))
        if not isinstance(asked, dict) or not asked.get("stream"):
            return web.json_response(_whole(request.path, text))
        return await self._stream(request, asked, text)

    async def _stream(self, request: web.Request, asked: dict[str, Any], text: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": self.name}
        for word in (text[: len(text) // 2], text[len(text) // 2 :]):
            choice = {"index": 0, "delta": {"role": "assistant", "content": word}, "finish_reason": None}
            await response.write(_event(head | {"choices": [choice]}))
        await response.write(_event(head | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
        if (asked.get("stream_options") or {}).get("include_usage"):
            await response.write(_event(head | {"choices": [], "usage": USAGE}))
        await response.write(b"data: [DONE]\n\n")
        return response


USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def _whole(path: str, text: str) -> dict[str, Any]:
    if path.endswith("/chat/completions"):
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}}
        kind = "chat.completion"
    else:
        choice, kind = {"index": 0, "text": text}, "text_completion"
    head = {"id": "c", "object": kind, "created": 1, "model": "numbered", "usage": USAGE}
    return head | {"choices": [choice | {"finish_reason": "stop"}]}


def _response(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [part]}
    return {"id": "r", "object": "response", "status": "completed", "model": "numbered", "output": [item]}


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


@contextlib.asynccontextmanager
async def numbering(name: str = "answer") -> AsyncIterator[Numbering]:
    """The server, on a port of its own."""
    made = Numbering(name)
    runner = web.ServerRunner(web.Server(made.answer), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield made
    finally:
        made.open.set()
        await runner.cleanup()

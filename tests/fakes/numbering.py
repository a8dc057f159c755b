"""A fake model that numbers its answers, so that a test can tell a new answer from a cached one."""

from __future__ import annotations

import asyncio
from typing import Any

from fakes.http_server import FakeServer, RecordedRequest, Reply, chunked, json_reply, sse_event
from fakes.models import chat_chunk, chat_completion, response, text_completion

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


class NumberingModel(FakeServer):
    """A model that answers `NAME N`, in the form of the request, to its call number N."""

    def __init__(self, name: str = "answer") -> None:
        super().__init__()
        self.name = name
        self.padding = 0
        """Number of characters that follow the number."""
        self.status = 200
        self.gate = asyncio.Event()
        """Answers wait while it is not set."""
        self.gate.set()

    @property
    def calls(self) -> int:
        """The number of requests that arrived."""
        return len(self.requests)

    async def reply(self, request: RecordedRequest) -> Reply:
        text = f"{self.name} {request.number}" + "x" * self.padding
        await self.gate.wait()
        if self.status != 200:
            return json_reply({"error": {"message": "No."}}, status=self.status)
        body: Any = request.json()
        if request.path.endswith("/responses"):
            return json_reply(response(text))
        if isinstance(body, dict) and body.get("stream"):
            return self._stream(body, text)
        shape = chat_completion if request.path.endswith("/chat/completions") else text_completion
        return json_reply(shape(text, USAGE))

    def _stream(self, body: dict[str, Any], text: str) -> Reply:
        halves = (text[: len(text) // 2], text[len(text) // 2 :])
        end = {"index": 0, "delta": {}, "finish_reason": "stop"}
        chunks = [*map(chat_chunk, halves), chat_chunk(choices=[end])]
        if (body.get("stream_options") or {}).get("include_usage"):
            chunks.append(chat_chunk(choices=[], usage=USAGE))
        return chunked(*map(sse_event, chunks), sse_event("[DONE]"))

"""A fake model that answers `OpenAI reply for <prompt>` and records requests."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

from fakes.http_server import FakeServer, RecordedRequest, Reply, json_reply
from fakes.models import chat_completion

REPLY = "OpenAI reply for "
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


class EchoingModel(FakeServer):
    """A model that repeats its prompts."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[str] = []
        """Every prompt, as it arrived."""
        self.answered: list[str] = []
        """Every prompt whose answer was sent."""
        self.statuses: dict[str, int] = {}
        """Prompts that are answered with an error of that status."""
        self.gate = asyncio.Event()
        """Answers wait while it is not set."""
        self.gate.set()
        self.closes_gate_at: int | None = None
        """Number of the request, counted from 1, that closes the gate before it is answered."""

    @property
    def keys(self) -> list[str | None]:
        """Return the credentials of each request."""
        return [request.headers.get("authorization") for request in self.requests]

    def times(self) -> Counter[str]:
        """Count the requests by prompt."""
        return Counter(self.prompts)

    async def reply(self, request: RecordedRequest) -> Reply:
        prompt = request.json()["messages"][-1]["content"]
        self.prompts.append(prompt)
        if len(self.prompts) == self.closes_gate_at:
            self.gate.clear()
        await self.gate.wait()
        status = self.statuses.get(prompt, 200)
        error = {"message": "No, not that.", "type": "x", "param": None, "code": str(status)}
        payload = chat_completion(REPLY + prompt, USAGE) if status == 200 else {"error": error}
        reply = json_reply(payload, status=status)

        async def tell_answered(_: FakeServer) -> None:
            self.answered.append(prompt)

        return replace(reply, steps=(*reply.steps, tell_answered))

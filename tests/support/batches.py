"""Batches for tests: input files, uploads, and waiting for the end."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
from openai.types import Batch

from support.live_server import Live, chat, until

_NUMBERS = itertools.count()
CHAT = "/v1/chat/completions"


def a_line(custom_id: str, text: str = "hello", *, url: str = CHAT, model: str = "echo", **more: Any) -> dict[str, Any]:
    """Return a request of an input file."""
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": chat(text, model, **more)}


def as_file(*lines: dict[str, Any] | str) -> bytes:
    """Return the contents of an input file; texts are lines as they are."""
    return "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines).encode()


@contextlib.asynccontextmanager
async def new_user(server: Live) -> AsyncIterator[openai.AsyncOpenAI]:
    """Yield the official client of OpenAI, with a token of a new user."""
    token = await server.token(email=f"user{next(_NUMBERS)}@example.com")
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=token, max_retries=0) as ai:
        yield ai


async def uploaded(ai: openai.AsyncOpenAI, content: bytes, **more: Any) -> str:
    """Upload an input file, and return its id."""
    file = await ai.files.create(file=("in.jsonl", content), purpose="batch", **more)
    return file.id


async def created(ai: openai.AsyncOpenAI, *lines: dict[str, Any] | str, endpoint: Any = CHAT, **more: Any) -> Batch:
    """Upload lines, and create a batch of them."""
    file_id = await uploaded(ai, as_file(*lines))
    return await ai.batches.create(input_file_id=file_id, endpoint=endpoint, completion_window="24h", **more)


async def ended(ai: openai.AsyncOpenAI, batch: Batch) -> Batch:
    """Wait for the end of a batch, and return it."""

    async def look() -> Batch | None:
        present = await ai.batches.retrieve(batch.id)
        return present if present.status in {"completed", "failed", "expired", "cancelled"} else None

    return await until(look)


async def results(ai: openai.AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """Return the lines of an output file."""
    if file_id is None:
        return []
    content = await ai.files.content(file_id)
    return [json.loads(line) for line in content.text.splitlines()]

"""The review desk in a browser: held answers, and what reviewers do on its pages."""

from __future__ import annotations

import json
from typing import Any

from signoff.core.job import Job
from support.browser import Person
from support.live_server import Live
from support.stores import a_step, leased


async def held(server: Live, number: int, answer: Any = "answer", **fields: Any) -> list[Job]:
    """Return held jobs, oldest first."""
    store, items = server.services.store, list[Job]()
    ruling = fields.pop("ruling", None)
    body = fields.pop("body", {"model": "echo"})
    for index in range(number):
        request = body | {"messages": body.get("messages") or [{"role": "user", "content": f"question {index}"}]}
        job = await leased(store, body=json.dumps(request).encode(), user_id=1000, **fields)
        changes = {"response": None if answer is None else json.dumps(answer).encode(), "ruling": ruling}
        items.append(await store.jobs.transition(job.id, a_step("hold", changes=changes)))
    return items


def completion(text: str | None, *calls: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": text} | ({"tool_calls": list(calls)} if calls else {})
    return {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}]}


async def step(visitor: Person, *keys: str) -> None:
    """Press keys of which the last one leads to another page."""
    await visitor.press(*keys[:-1])
    async with visitor.page.expect_navigation():
        await visitor.press(keys[-1])


async def text_of(visitor: Person) -> str:
    """Return the text of the page."""
    return await visitor.page.inner_text("main")

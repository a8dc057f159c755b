"""Webhooks about the ends of batches, as the official client of OpenAI verifies and reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
import sqlalchemy as sa

from fakes.webhook_receiver import OTHER_SECRET, SECRET, WebhookReceiver, message_id
from signoff.stores.batches_schema import batches
from support.batches import CHAT, a_line, created, ended, new_user
from support.live_server import Live, live, until
from support.stores import execute

pytestmark = pytest.mark.anyio
LOCAL: dict[str, Any] = {"webhook_allow": ["127.0.0.0/8"], "webhook_waits_seconds": [0.0] * 30}


async def test_the_official_client_unwraps_the_message_of_each_end(tmp_path: Path) -> None:
    async with (
        WebhookReceiver() as receiver,
        live(tmp_path, webhook_secret=SECRET, **LOCAL) as server,
        new_user(server) as ai,
    ):
        await server.model("careful", review="always")
        more = {"extra_body": {"deliver": {"url": receiver.url}}}
        ids = {
            "batch.completed": (await created(ai, a_line("a"), **more)).id,
            "batch.failed": (await created(ai, "{", **more)).id,
            "batch.cancelled": (await created(ai, a_line("a", model="careful"), **more)).id,
            "batch.expired": (await created(ai, a_line("a", model="careful"), **more)).id,
        }
        await ai.batches.cancel(ids["batch.cancelled"])
        is_expiring = batches.c.id == ids["batch.expired"]
        await execute(server.services.store, sa.update(batches).where(is_expiring).values(expires_at=0))  # type: ignore[arg-type]

        async def all_received() -> bool | None:
            return len(receiver.requests) == 4 or None

        await until(all_received)
        events = [
            openai.OpenAI(api_key="x").webhooks.unwrap(request.body, request.headers, secret=SECRET)
            for request in receiver.requests
        ]
        assert {event.type: event.data.id for event in events} == ids  # type: ignore[union-attr]
        assert all(event.id.startswith("evt_") and event.created_at > 0 for event in events)


async def test_a_message_with_a_secret_of_its_own_is_repeated_under_one_id_and_can_be_sent_again(
    tmp_path: Path,
) -> None:
    async with WebhookReceiver() as receiver, live(tmp_path, **LOCAL) as server, new_user(server) as ai:
        receiver.answers = [503, "cut"]
        deliver = {"url": receiver.url, "secret": OTHER_SECRET}
        batch = await ended(ai, await created(ai, a_line("a"), extra_body={"deliver": deliver}))
        await until(lambda: received(receiver, 3))
        assert {message_id(request) for request in receiver.requests} == {f"msg_{batch.id}"}
        for request in receiver.requests:
            openai.OpenAI(api_key="x").webhooks.unwrap(request.body, request.headers, secret=OTHER_SECRET)
        # by the owner, and nobody else
        path = f"/api/deliveries/msg_{batch.id}/resend"
        await until(lambda: is_done(server, batch.id))
        assert (await server.ask("POST", path, await server.token(email="other@example.com")))[0] == 404
        assert (await server.ask("POST", path, ai.api_key))[0] == 202
        await until(lambda: received(receiver, 4))


async def received(receiver: WebhookReceiver, count: int) -> bool | None:
    return len(receiver.requests) >= count or None


async def is_done(server: Live, batch_id: str) -> bool | None:
    [delivery] = await server.services.store.deliveries.of_job(batch_id)
    return delivery.state == "done" or None


@pytest.mark.parametrize(
    ("deliver", "text"),
    [
        ({"url": "http://10.0.0.1/"}, "allow"),
        ({"url": "https://example.com/"}, "secret"),
        ({"url": "https://example.com/", "secret": "short"}, "secret"),
        ({"url": "https://example.com/", "more": 1}, "more"),
    ],
    ids=str,
)
async def test_a_receiver_that_cannot_be_used_is_refused(deliver: Any, text: str, tmp_path: Path) -> None:
    async with live(tmp_path) as server, new_user(server) as ai:
        with pytest.raises(openai.BadRequestError, match=text):
            await ai.batches.create(
                input_file_id="file-x", endpoint=CHAT, completion_window="24h", extra_body={"deliver": deliver}
            )
        assert [each async for each in ai.batches.list()] == []

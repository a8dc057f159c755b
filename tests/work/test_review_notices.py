"""Digests of review queues: by a signed webhook and by e-mail, each answer once, none lost, and no storm of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import UnthreadedController
from aiosmtpd.smtp import SMTP, Envelope, Session
from standardwebhooks import Webhook

from fakes.webhook_receiver import OTHER_SECRET, WebhookReceiver, message_id
from signoff.work.reviews import notify
from support.live_server import Live, chat, live, until

pytestmark = pytest.mark.anyio
FAST = {"webhook_waits_seconds": [0.05] * 20, "webhook_allow": ["127.0.0.0/8"]}


class Mailbox:
    """A handler of a real SMTP server, which keeps the messages, and refuses the first `refusals` of them."""

    def __init__(self) -> None:
        self.messages: list[EmailMessage] = []
        self.recipients: list[list[str]] = []
        self.refusals = 0

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 -- a name of aiosmtpd
        """Keep a message."""
        if self.refusals > 0:
            self.refusals -= 1
            return "451 Try again later"
        assert isinstance(envelope.content, bytes)
        self.messages.append(message_from_bytes(envelope.content, policy=policy.default))  # type: ignore[arg-type]
        self.recipients.append(envelope.rcpt_tos)
        return "250 OK"


@asynccontextmanager
async def mail_server() -> AsyncIterator[tuple[Mailbox, str]]:
    """Yield the mailbox of a running SMTP server, and its URL."""
    mailbox = Mailbox()
    controller = UnthreadedController(mailbox, hostname="127.0.0.1", port=0, loop=asyncio.get_running_loop())
    controller.server = await controller._create_server()
    try:
        yield mailbox, f"smtp://127.0.0.1:{controller.server.sockets[0].getsockname()[1]}"
    finally:
        controller.server.close()


@asynccontextmanager
async def notified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> AsyncIterator[tuple[Live, Mailbox, WebhookReceiver]]:
    """Yield a server whose queue `legal` has both receivers, and its receivers."""
    monkeypatch.setattr(notify, "LAG_SECONDS", 0)
    async with mail_server() as (mailbox, url), WebhookReceiver() as receiver:
        more = FAST | {"smtp_url": url, "public_url": "https://signoff.example.com/"} | settings
        async with live(tmp_path, **more) as server:
            queue = {
                "emails": ["law@example.com", "chief@example.com"],
                "webhook": {"url": receiver.url, "secret": OTHER_SECRET},
                "digest_seconds": 1,
            }
            await put_queue(server, queue)
            yield server, mailbox, receiver


async def put_queue(server: Live, queue: dict[str, Any]) -> None:
    admin = await server.token("admin")
    status, answer = await server.ask("PUT", "/api/review-queues/legal", admin, json=queue)
    assert status == 200, answer
    assert "token" not in str(answer)


async def escalated(server: Live, text: str = "A secret question") -> str:
    """Return the id of a held answer that was escalated to the queue."""
    token, reviewer = await server.token(), await server.token("reviewer")
    _, job = await server.ask("POST", "/enqueue", token, json=chat(text))
    await server.job_when(reviewer, job["job_id"], lambda job: job["status"] == "human")
    path = f"/api/reviews/{job['job_id']}/escalate"
    assert (await server.ask("POST", path, reviewer, json={"queue": "legal"}))[0] == 200
    return job["job_id"]


async def received(items: list[Any], number: int = 1) -> list[Any]:
    """Return the items as soon as there are so many."""

    async def enough() -> list[Any] | None:
        return items if len(items) >= number else None

    return await until(enough)


async def test_a_queue_gets_a_signed_webhook_and_a_mail_with_links_and_no_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with notified(tmp_path, monkeypatch) as (server, mailbox, receiver):
        job_id = await escalated(server)
        [mail] = await received(mailbox.messages)
        [request] = await received(receiver.requests)
        link = f"https://signoff.example.com/dashboard/review/{job_id}"
        assert "escalated in legal" in mail["Subject"]
        assert link in mail.get_content()
        assert mailbox.recipients == [["law@example.com", "chief@example.com"]]
        message = Webhook(OTHER_SECRET).verify(request.body, dict(request.headers))
        assert message["type"] == "reviews.waiting"
        assert [item["url"] for item in message["data"]["escalated"]["items"]] == [link]
        assert b"secret question" not in request.body
        assert "secret question" not in mail.as_string()


async def test_many_answers_come_in_one_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with notified(tmp_path, monkeypatch) as (server, mailbox, _):
        await put_queue(server, {"emails": ["law@example.com"], "digest_seconds": 3})
        for number in range(23):
            await escalated(server, f"Hello {number}")
        await received(mailbox.messages)

        async def all_reported() -> int | None:
            counts = [json_count(mail) for mail in mailbox.messages]
            return len(counts) if sum(counts) >= 20 else None

        assert await until(all_reported) < 12  # one mail for several answers, and not one for each


def json_count(mail: EmailMessage) -> int:
    """Return the number of answers that a mail names in its subject."""
    return int(mail["Subject"].split()[1].rstrip("+"))


async def test_a_digest_that_is_refused_is_sent_again_under_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with notified(tmp_path, monkeypatch) as (server, mailbox, receiver):
        mailbox.refusals, receiver.answers = 2, [500, 503]
        await escalated(server)
        await received(mailbox.messages)
        requests = await received(receiver.requests, 3)
        assert len({message_id(request) for request in requests}) == 1
        assert len({request.body for request in requests}) == 1


async def test_a_stop_loses_no_digest_and_a_start_repeats_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"webhook_waits_seconds": [0.1] * 10**4}  # far more attempts than there is time for
    async with notified(tmp_path, monkeypatch, **more) as (server, mailbox, receiver):
        mailbox.refusals, receiver.answers = 10**6, [500] * 10**4
        job_id = await escalated(server)
        await received(receiver.requests)
    async with mail_server() as (later, url), live(tmp_path, **(FAST | more), smtp_url=url) as server:
        [mail] = await received(later.messages)
        assert job_id in mail.get_content()
        before = json.dumps(await names(server))
        await notify.write_digests(server.services)
        await notify.send_digests(server.services)
        assert json.dumps(await names(server)) == before
        assert len(later.messages) == 1


async def names(server: Live) -> list[str]:
    """Return the queues with news."""
    return [
        news.queue.name for news in await server.services.store.review_queues.news(lag_seconds=0) if not news.is_empty
    ]


async def test_an_answer_that_waits_is_reported_as_ageing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with notified(tmp_path, monkeypatch) as (server, mailbox, _):
        await put_queue(server, {"emails": ["law@example.com"], "digest_seconds": 1, "ageing_seconds": 2})
        job_id = await escalated(server)

        async def is_reported() -> EmailMessage | None:
            return next((mail for mail in mailbox.messages if "ageing" in mail["Subject"]), None)

        assert job_id in (await until(is_reported)).get_content()

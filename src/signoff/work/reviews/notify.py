"""Notification of reviewers: a digest for each queue with a receiver, by webhook and by e-mail.

A digest is stored in the transaction that marks its period as reported, and sent until it is received or given up. So a
crash loses none, and a start sends none again; a receiver may get one twice, under the same id.
"""

import asyncio

import msgspec
import structlog

from signoff.core.delivery import OutgoingMessage
from signoff.core.retry import scheduled_seconds
from signoff.core.reviews.notices import Notice, NoticeKind, NoticeOutcome, QueueNews
from signoff.core.reviews.queue_digest import digest_body, digest_mail
from signoff.core.reviews.queues import ReviewQueue
from signoff.core.signing import Secret
from signoff.core.webhook import webhook_headers
from signoff.errors import SignoffError, Undelivered
from signoff.infra.tasks import repeat
from signoff.work.reviews.queues import QueueWebhook
from signoff.work.services import Services

# A hold may be committed this long after the time that it has.
LAG_SECONDS = 10.0
LEASE_SECONDS = 120.0
BATCH_SIZE = 10
log = structlog.get_logger()


async def run_notifier(services: Services) -> None:
    """Write and send digests every `sweep_seconds`, until cancelled."""

    async def notify() -> None:
        await write_digests(services)
        await send_digests(services)

    await repeat(notify, seconds=services.rules.sweep_seconds, failure="notifier_failed")


async def write_digests(services: Services) -> None:
    """Store a digest for each receiver of a queue with news; if several processes try, one of them succeeds."""
    for news in await services.store.review_queues.news(lag_seconds=LAG_SECONDS):
        if not news.is_empty:
            await services.store.review_queues.add_notices(news, _notices(services, news))


def _notices(services: Services, news: QueueNews) -> list[Notice]:
    kinds = list[NoticeKind]()
    if news.queue.sealed is not None:
        kinds.append("webhook")
    if news.queue.emails:
        kinds.append("email")
    body = digest_body(news, services.rules.public_url)
    return [Notice(id=f"msg_{services.ids.new_id()}", queue=news.queue.name, kind=kind, body=body) for kind in kinds]


async def send_digests(services: Services) -> None:
    """Send the digests that are due, at most BATCH_SIZE at the same time."""
    lease = services.ids.new_id()
    queues = services.store.review_queues
    notices = await queues.claim_notices(lease=lease, limit=BATCH_SIZE, lease_seconds=LEASE_SECONDS)
    async with asyncio.TaskGroup() as group:
        for notice in notices:
            group.create_task(_send_one(services, notice, lease))


async def _send_one(services: Services, notice: Notice, lease: str) -> None:
    """Make one attempt at a leased digest, and store its outcome; when cancelled, make it due again."""
    settle = services.store.review_queues.settle_notice
    try:
        error = await _error_of(services, notice)
    except asyncio.CancelledError:
        released = settle(notice.id, lease, NoticeOutcome(after_seconds=0))
        await asyncio.shield(services.runtime.background.spawn(released))
        raise
    outcome = NoticeOutcome()
    if error is not None:
        fields = {"notice_id": notice.id, "queue": notice.queue, "kind": notice.kind, "error": error}
        waits = services.rules.webhook_waits_seconds
        outcome = NoticeOutcome(after_seconds=scheduled_seconds(waits, notice.attempt, services.ids.random_float()))
        if outcome.after_seconds is None:
            log.error("digest_failed", **fields)
        else:
            log.warning("digest_not_sent", **fields)
    await settle(notice.id, lease, outcome)


async def _error_of(services: Services, notice: Notice) -> str | None:
    """Send a digest to the receivers that its queue has now; return the reason of a failure."""
    queue = await services.store.review_queues.get(notice.queue)
    try:
        if queue is not None and notice.kind == "webhook" and queue.sealed is not None:
            await _post(services, notice, queue.sealed)
        elif queue is not None and notice.kind == "email" and queue.emails:
            await _mail(services, notice, queue)
    except SignoffError as error:
        return error.message
    except Exception:
        log.exception("digest_attempt_failed", notice_id=notice.id)
        return "The digest could not be sent because of a fault in this server; see the server's log."
    return None


async def _post(services: Services, notice: Notice, sealed: bytes) -> None:
    webhook = msgspec.json.decode(services.adapters.vault.open(sealed), type=QueueWebhook)
    secrets = services.rules.webhook_secrets if webhook.secret is None else (Secret(webhook.secret),)
    if not secrets:
        raise Undelivered("The webhook has no secret, and the setting `webhook_secret` is empty; set one of them.")
    headers = webhook_headers(notice.id, services.clock(), notice.body, secrets)
    message = OutgoingMessage(address=webhook.url, headers=headers, body=notice.body)
    status = await services.adapters.deliverers["webhook"].send(message)
    if status is None or not 200 <= status < 300:
        raise Undelivered(f"The receiver answered with status {status}.")


async def _mail(services: Services, notice: Notice, queue: ReviewQueue) -> None:
    if services.adapters.mailer is None:
        raise Undelivered("The setting `smtp_url` is empty, so no mail can be sent; set it.")
    subject, text = digest_mail(notice.body)
    await services.adapters.mailer.send(notice.id, queue.emails, subject, text)
